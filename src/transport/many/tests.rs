use std::{
    collections::VecDeque,
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard},
};

use super::{
    super::{
        Segment, Stamp, WorkError, WorkId,
        fake::{FakeNet, FakeTransport},
        tcp::TcpTransport,
    },
    *,
};

const TERMS: Terms = Terms { epoch: 1, view_min: 1 };
const STAMP: Stamp = Stamp { epoch: 1, view: 1 };

/// What a [`Double`] was told, and what it is to answer.
#[derive(Debug, Default)]
struct Script {
    /// How many memories it knows.
    known: usize,
    revoked: Vec<u64>,
    armed: usize,
    register_fails: bool,
    busy: bool,
    /// Answers of `arm`; the network's when there are no more.
    arms: VecDeque<io::Result<bool>>,
}

/// A fake network's endpoint by another name, that fails when the test says so.
struct Double(Kind, FakeTransport, Arc<Mutex<Script>>);

impl Double {
    fn script(&self) -> MutexGuard<'_, Script> {
        script(&self.2)
    }
}

fn script(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap()
}

impl Transport for Double {
    fn kind(&self) -> Kind {
        self.0
    }

    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        if self.script().register_fails {
            return Err(MemoryError::System(io::ErrorKind::OutOfMemory.into()));
        }
        self.script().known += 1;
        self.1.register(mapping, purpose)
    }

    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        if self.script().busy {
            return Err(MemoryError::Busy);
        }
        self.1.deregister(memory)?;
        self.script().known -= 1;
        Ok(())
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        self.1.offer()
    }

    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        self.1.accept(offer)
    }

    fn finish(&mut self, conn: ConnId, answer: &[u8], at: SocketAddr) -> Result<(), ConnectError> {
        self.1.finish(conn, answer, at)
    }

    fn close(&mut self, conn: ConnId) {
        self.1.close(conn);
    }

    fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        self.1.grant(conn, memory, access, terms)
    }

    fn revoke(&mut self, key: RemoteKey) {
        self.script().revoked.push(key.key);
        self.1.revoke(key);
    }

    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.1.post_write(work)
    }

    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.1.post_read(work)
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        self.1.poll(events)
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.1.event_fd()
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.script().armed += 1;
        let answer = self.script().arms.pop_front();
        answer.unwrap_or_else(|| self.1.arm())
    }
}

/// Two nodes that two networks join: one goes by the name of RDMA, one by that of TCP.
struct Pair {
    nets: [FakeNet; 2],
    nodes: [Many; 2],
    mappings: [Arc<Mapping>; 2],
    memories: [MemoryId; 2],
}

impl Pair {
    fn new() -> Self {
        let nets = [FakeNet::new(1), FakeNet::new(2)];
        let node = |name: &str| {
            let end = |kind, net: &FakeNet| -> Box<dyn Transport> {
                Box::new(Double(kind, net.endpoint(name), Arc::default()))
            };
            Many::new(vec![end(Kind::Rdma, &nets[0]), end(Kind::Tcp, &nets[1])])
        };
        let mut nodes = [node("a"), node("b")];
        let mappings = [mapping(), mapping()];
        // The numbers of the two transports and of `Many` must not agree by accident.
        nodes[0].transports[1].register(mapping(), Purpose::Both).unwrap();
        let memories =
            [0, 1].map(|i| nodes[i].register(mappings[i].clone(), Purpose::Both).unwrap());
        Self { nets, nodes, mappings, memories }
    }

    fn link(&mut self, kind: Kind) -> (ConnId, ConnId, RemoteKey) {
        let [a, b] = &mut self.nodes;
        let (near, offer) = a.offer(kind).unwrap();
        let (far, answer) = b.accept(kind, &offer).unwrap();
        a.finish(near, &answer, ([127, 0, 0, 1], 1).into()).unwrap();
        (near, far, b.grant(far, self.memories[1], Access::Write, TERMS).unwrap())
    }

    fn write(
        &mut self,
        (conn, key): (ConnId, RemoteKey),
        id: u64,
        at: u64,
    ) -> Result<(), PostError> {
        let segments = &[Segment { local: 0, remote: at, len: 8 }];
        let (id, memory) = (WorkId(id), self.memories[0]);
        self.nodes[0].post_write(Work { id, conn, memory, key, stamp: STAMP, segments })
    }

    /// Lets everything arrive; what the node was told.
    fn told(&mut self, node: usize) -> Vec<Event> {
        self.nets.iter().for_each(|net| net.advance(100));
        let mut events = Vec::new();
        self.nodes[node].poll(&mut events);
        events
    }
}

fn mapping() -> Arc<Mapping> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    Arc::new(Mapping::new(&file, 4096).unwrap())
}

fn done(conn: ConnId, id: u64, result: Result<(), WorkError>) -> Event {
    Event::Completed { conn, work: WorkId(id), result }
}

#[test]
fn each_connection_uses_its_own_transport_and_both_the_same_memory() {
    let mut pair = Pair::new();
    let (rdma, _, rdma_key) = pair.link(Kind::Rdma);
    let (tcp, _, tcp_key) = pair.link(Kind::Tcp);
    assert_ne!(rdma, tcp);
    assert_eq!(pair.nodes[0].kind_of(rdma), Some(Kind::Rdma));
    assert_eq!(pair.nodes[0].kind_of(tcp), Some(Kind::Tcp));
    pair.mappings[0].write_at(0, b"8 bytes!").unwrap();
    pair.write((rdma, rdma_key), 1, 0).unwrap();
    pair.write((tcp, tcp_key), 2, 64).unwrap();
    let told = pair.told(0);
    assert_eq!(told, [done(rdma, 1, Ok(())), done(tcp, 2, Ok(()))]);
    for at in [0, 64] {
        let mut bytes = [0; 8];
        pair.mappings[1].read_at(at, &mut bytes).unwrap();
        assert_eq!(&bytes, b"8 bytes!");
    }
}

#[test]
fn a_fence_reaches_the_transport_that_granted_the_key_and_no_other_key() {
    let mut pair = Pair::new();
    let (rdma, _, rdma_key) = pair.link(Kind::Rdma);
    let (tcp, far, tcp_key) = pair.link(Kind::Tcp);
    pair.nodes[1].revoke(tcp_key);
    pair.write((rdma, rdma_key), 1, 0).unwrap();
    pair.write((tcp, tcp_key), 2, 0).unwrap();
    let told = pair.told(0);
    assert_eq!(
        told,
        [done(rdma, 1, Ok(())), done(tcp, 2, Err(WorkError::Fenced)), Event::Closed { conn: tcp }]
    );
    assert_eq!(pair.told(1), [Event::Closed { conn: far }]);
    pair.nodes[1].close(far);
    pair.write((rdma, rdma_key), 3, 0).unwrap();
    assert_eq!(pair.told(0), [done(rdma, 3, Ok(()))]);
}

#[test]
fn a_kind_that_is_not_there_is_said_to_be_missing() {
    let mut many = Many::from(TcpTransport::new(Default::default()).unwrap());
    let missing = ConnectError::NoTransport(Kind::Rdma).to_string();
    assert_eq!(many.offer(Kind::Rdma).unwrap_err().to_string(), missing);
    assert_eq!(many.accept(Kind::Rdma, b"").unwrap_err().to_string(), missing);
    assert_eq!(many.kinds().collect::<Vec<_>>(), [Kind::Tcp]);
}

#[test]
fn numbers_that_nobody_gave_out_are_refused() {
    let mut pair = Pair::new();
    let (near, _, key) = pair.link(Kind::Tcp);
    let (stray, peer) = (ConnId(u64::MAX), ([127, 0, 0, 1], 1).into());
    assert!(matches!(pair.write((stray, key), 1, 0), Err(PostError::NotConnected)));
    assert!(matches!(pair.nodes[0].finish(stray, b"", peer), Err(ConnectError::WrongState)));
    let granted = pair.nodes[0].grant(stray, pair.memories[0], Access::Read, TERMS);
    assert!(matches!(granted, Err(MemoryError::NoConnection)));
    pair.nodes[0].close(stray);
    for memory in [MemoryId(77), MemoryId(1 << SLOT_BITS), MemoryId(u64::MAX)] {
        assert!(matches!(pair.nodes[0].deregister(memory), Err(MemoryError::Unknown)));
        pair.memories[0] = memory;
        assert!(matches!(pair.write((near, key), 1, 0), Err(PostError::UnknownMemory)));
    }
}

/// Two transports that follow their scripts.
fn scripted() -> (Many, [Arc<Mutex<Script>>; 2]) {
    let scripts: [Arc<Mutex<Script>>; 2] = Default::default();
    let net = FakeNet::new(1);
    let end = |script: &Arc<Mutex<Script>>| -> Box<dyn Transport> {
        Box::new(Double(Kind::Fake, net.endpoint("a"), script.clone()))
    };
    (Many::new(scripts.iter().map(end).collect()), scripts)
}

#[test]
fn memory_is_registered_with_each_that_takes_it() {
    let (mut many, [first, second]) = scripted();
    script(&first).register_fails = true;
    let memory = many.register(mapping(), Purpose::Both).unwrap();
    assert_eq!((script(&first).known, script(&second).known), (0, 1));
    many.deregister(memory).unwrap();
    assert_eq!(script(&second).known, 0);
    script(&second).register_fails = true;
    let refused = many.register(mapping(), Purpose::Both);
    assert!(matches!(refused, Err(MemoryError::System(_))), "nobody takes it");
    script(&first).register_fails = false;
    many.register(mapping(), Purpose::Both).unwrap();
    assert_eq!((script(&first).known, script(&second).known), (1, 0));
}

#[test]
fn memory_that_is_busy_in_one_transport_is_let_go_later_and_its_number_not_used_again() {
    let (mut many, [first, second]) = scripted();
    let memory = many.register(mapping(), Purpose::Both).unwrap();
    script(&first).busy = true;
    for _ in 0..2 {
        assert!(matches!(many.deregister(memory), Err(MemoryError::Busy)));
        assert_eq!((script(&first).known, script(&second).known), (1, 0));
    }
    script(&first).busy = false;
    many.deregister(memory).unwrap();
    assert_eq!(script(&first).known, 0);
    assert!(matches!(many.deregister(memory), Err(MemoryError::Unknown)));
    let next = many.register(mapping(), Purpose::Both).unwrap();
    assert_ne!(next, memory);
    assert_eq!(many.memories.len(), 1, "the slot is used again");
    assert!(matches!(many.deregister(memory), Err(MemoryError::Unknown)));
    many.deregister(next).unwrap();
}

#[test]
fn every_transport_is_fenced_and_armed() {
    let (mut many, [first, second]) = scripted();
    many.revoke(RemoteKey { key: 7, base: 0, len: 1 });
    assert_eq!((&script(&first).revoked[..], &script(&second).revoked[..]), (&[7][..], &[7][..]));

    let failure = || Err(io::ErrorKind::Other.into());
    assert!(many.arm().unwrap());
    script(&first).arms.push_back(Ok(false));
    assert!(!many.arm().unwrap());
    script(&first).arms.push_back(failure());
    assert!(many.arm().is_err());
    // What cannot be armed is no reason to sleep over what there is to do.
    script(&first).arms.push_back(failure());
    script(&second).arms.push_back(Ok(false));
    assert!(!many.arm().unwrap());
    assert_eq!((script(&first).armed, script(&second).armed), (4, 4));
}

#[test]
fn what_to_sleep_on_is_each_transports_own() {
    let tcp = TcpTransport::new(Default::default()).unwrap();
    let own = tcp.event_fd().map(|fd| fd.as_raw_fd());
    let many = Many::new(vec![Box::new(FakeNet::new(1).endpoint("a")), Box::new(tcp)]);
    assert_eq!(many.event_fds().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>(), [own.unwrap()]);
}
