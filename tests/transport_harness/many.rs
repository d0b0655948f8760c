//! Nodes that have two transports as one and make every connection over the same one of them.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use ringkeep::{
    region::mapping::Mapping,
    transport::{
        Access, ConnId, ConnectError, Event, Kind, MemoryError, MemoryId, PostError, Purpose,
        RemoteKey, Terms, Transport, Work,
        many::Many,
        tcp::{TcpTransport, Timeouts},
    },
};

use super::harness::{FakeNetwork, Network, TcpNetwork};

/// A [`Many`] whose connections all use one transport.
struct One(Many, Kind);

impl Transport for One {
    fn kind(&self) -> Kind {
        self.1
    }

    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        self.0.register(mapping, purpose)
    }

    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        self.0.deregister(memory)
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        self.0.offer(self.1)
    }

    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        self.0.accept(self.1, offer)
    }

    fn finish(&mut self, conn: ConnId, answer: &[u8], at: SocketAddr) -> Result<(), ConnectError> {
        self.0.finish(conn, answer, at)
    }

    fn close(&mut self, conn: ConnId) {
        self.0.close(conn);
    }

    fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        self.0.grant(conn, memory, access, terms)
    }

    fn revoke(&mut self, key: RemoteKey) {
        self.0.revoke(key);
    }

    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.0.post_write(work)
    }

    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.0.post_read(work)
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        self.0.poll(events)
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.event_fds().next()
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.0.arm()
    }
}

/// Both networks, and each node's place in them.
struct Both {
    fake: FakeNetwork,
    tcp: TcpNetwork,
}

impl Both {
    fn new() -> Self {
        Self { fake: FakeNetwork::new(), tcp: TcpNetwork::new() }
    }

    fn endpoint(&mut self, kind: Kind) -> (Box<dyn Transport>, SocketAddr) {
        let tcp = TcpTransport::new(Timeouts::default()).unwrap();
        let address = self.tcp.listen(tcp.adopter());
        let many = Many::new(vec![self.fake.endpoint().0, Box::new(tcp)]);
        (Box::new(One(many, kind)), address)
    }

    fn step(&mut self) {
        self.fake.step();
        self.tcp.step();
    }
}

macro_rules! network {
    ($name:ident, $kind:expr, $like:ty) => {
        pub(super) struct $name(Both);

        impl Network for $name {
            const QUIET_STEPS: usize = <$like>::QUIET_STEPS;

            fn new() -> Self {
                Self(Both::new())
            }

            fn endpoint(&mut self) -> (Box<dyn Transport>, SocketAddr) {
                self.0.endpoint($kind)
            }

            fn step(&mut self) {
                self.0.step();
            }
        }
    };
}

network!(ManyOverTcp, Kind::Tcp, TcpNetwork);
network!(ManyOverFake, Kind::Fake, FakeNetwork);
