//! Some nodes in one thread, joined by one transport, and driven by hand.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its part.

use std::{
    fs::File,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

#[cfg(feature = "rdma")]
use ringkeep::transport::verbs::VerbsTransport;
use ringkeep::{
    region::mapping::Mapping,
    transport::{
        Access, ConnId, Event, MemoryId, PostError, Purpose, RemoteKey, Segment, Stamp, Terms,
        Transport, Work, WorkError, WorkId,
        fake::{FakeNet, Weather},
        tcp::{Adopter, DATA_MAGIC, TcpTransport, Timeouts},
    },
};
use rustix::fs::{MemfdFlags, memfd_create};

/// Length of every node's memory: more than a transport moves in one turn.
pub const LEN: usize = 12 << 20;
pub const TERMS: Terms = Terms { epoch: 5, view_min: 3 };
/// What those terms accept, just.
pub const STAMP: Stamp = Stamp { epoch: 5, view: 3 };
/// Steps after which nothing more is expected to happen.
const STEPS_MAX: usize = 2_000_000;

pub type Done = (ConnId, u64, Result<(), WorkError>);

/// What joins the nodes.
pub trait Network {
    fn new() -> Self;
    fn endpoint(&mut self) -> (Box<dyn Transport>, SocketAddr);
    /// Lets a little time pass.
    fn step(&mut self);
    /// Steps without an event after which a test may believe that nothing happens any more.
    const QUIET_STEPS: usize;
    /// How long something that is waited for may take, however many steps that is.
    const PATIENCE: Duration = Duration::ZERO;
    /// The terms of a key are held against each request. A NIC knows keys only.
    const CHECKS_TERMS: bool = true;
    /// What a refusal is told as.
    fn told(why: WorkError) -> WorkError {
        why
    }
    /// What the fence of a read may be told as whose first bytes came.
    const CUT_READ: &'static [WorkError] = &[WorkError::Fenced];
}

/// One listener for each node, as the server has.
pub struct TcpNetwork {
    listeners: Vec<(TcpListener, Adopter)>,
    unread: Vec<(TcpStream, Adopter)>,
}

impl Network for TcpNetwork {
    const QUIET_STEPS: usize = 2_000;

    fn new() -> Self {
        Self { listeners: Vec::new(), unread: Vec::new() }
    }

    fn endpoint(&mut self) -> (Box<dyn Transport>, SocketAddr) {
        let transport = TcpTransport::new(Timeouts::default()).unwrap();
        let address = self.listen(transport.adopter());
        (Box::new(transport), address)
    }

    fn step(&mut self) {
        for (listener, adopter) in &self.listeners {
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true).unwrap();
                self.unread.push((socket, adopter.clone()));
            }
        }
        for (mut socket, adopter) in std::mem::take(&mut self.unread) {
            let mut magic = [0; 4];
            match socket.peek(&mut magic) {
                Ok(4) if magic == DATA_MAGIC => {
                    socket.read_exact(&mut magic).unwrap();
                    adopter.adopt(socket);
                }
                Ok(1..4) | Err(_) => self.unread.push((socket, adopter)),
                Ok(_) => {}
            }
        }
    }
}

impl FakeNetwork {
    pub fn over(net: FakeNet) -> Self {
        Self { net, nodes: 0 }
    }
}

impl TcpNetwork {
    pub fn listen(&mut self, adopter: Adopter) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        self.listeners.push((listener, adopter));
        address
    }
}

/// The RDMA device of this machine.
#[cfg(feature = "rdma")]
pub struct VerbsNetwork;

#[cfg(feature = "rdma")]
impl VerbsNetwork {
    /// Whether there is a device. Where one must be there, its absence is a failure: see
    /// `soft-roce/vm.sh`.
    pub fn is_there() -> bool {
        let found = ringkeep::transport::verbs::discovery::devices();
        let there = found.iter().any(|device| device.problem.is_none());
        let wanted = std::env::var_os("RINGKEEP_REQUIRE_RDMA").is_some();
        assert!(there || !wanted, "no usable RDMA device: {found:?}");
        there
    }
}

#[cfg(feature = "rdma")]
impl Network for VerbsNetwork {
    const QUIET_STEPS: usize = 2_000;
    const PATIENCE: Duration = Duration::from_secs(30);
    const CHECKS_TERMS: bool = false;
    // Soft-RoCE numbers its refusal as the read's first packet. A requester that is further ignores
    // that as old, and sends again to a queue pair that is at its end.
    const CUT_READ: &'static [WorkError] = &[WorkError::Fenced, WorkError::Unreachable];

    fn new() -> Self {
        Self
    }

    fn endpoint(&mut self) -> (Box<dyn Transport>, SocketAddr) {
        let any = [127, 0, 0, 1].into();
        let transport = VerbsTransport::open(None, any).unwrap();
        let address = transport.address();
        (Box::new(transport), address)
    }

    fn step(&mut self) {}

    fn told(why: WorkError) -> WorkError {
        // A NIC refuses what it has no key for, and does not say whether it ever had.
        if why == WorkError::BadKey { WorkError::Fenced } else { why }
    }
}

/// Fair weather but for delays and torn placement.
pub struct FakeNetwork {
    net: FakeNet,
    nodes: usize,
}

impl Network for FakeNetwork {
    const QUIET_STEPS: usize = 200;

    fn new() -> Self {
        let weather = Weather { delay_ticks_max: 3, torn: true, ..Weather::default() };
        Self { net: FakeNet::with_weather(7, weather), nodes: 0 }
    }

    fn endpoint(&mut self) -> (Box<dyn Transport>, SocketAddr) {
        self.nodes += 1;
        let transport = self.net.endpoint(&format!("node-{}", self.nodes));
        (Box::new(transport), SocketAddr::from(([127, 0, 0, 1], self.nodes as u16)))
    }

    fn step(&mut self) {
        self.net.advance(1);
    }
}

/// A connection from an initiator to a responder, and a key on it.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub from: usize,
    pub near: ConnId,
    pub far: ConnId,
    pub key: RemoteKey,
    pub stamp: Stamp,
}

impl Link {
    pub fn work<'a>(&self, id: u64, memory: MemoryId, segments: &'a [Segment]) -> Work<'a> {
        let (conn, key, stamp) = (self.near, self.key, self.stamp);
        Work { id: WorkId(id), conn, memory, key, stamp, segments }
    }
}

pub struct Cluster<N> {
    pub net: N,
    pub nodes: Vec<Box<dyn Transport>>,
    pub addresses: Vec<SocketAddr>,
    pub memories: Vec<MemoryId>,
    pub mappings: Vec<Arc<Mapping>>,
    /// What each node was told and no test has taken.
    pub seen: Vec<Vec<Event>>,
}

impl<N: Network> Cluster<N> {
    pub fn over(net: N) -> Self {
        Self {
            net,
            nodes: Vec::new(),
            addresses: Vec::new(),
            memories: Vec::new(),
            mappings: Vec::new(),
            seen: Vec::new(),
        }
    }

    pub fn new(nodes: usize) -> Self {
        let mut cluster = Self::over(N::new());
        for _ in 0..nodes {
            let (transport, address) = cluster.net.endpoint();
            cluster.join(transport, address);
        }
        cluster
    }

    pub fn join(&mut self, mut transport: Box<dyn Transport>, address: SocketAddr) {
        let mapping = mapping(LEN);
        self.memories.push(transport.register(mapping.clone(), Purpose::Both).unwrap());
        self.mappings.push(mapping);
        self.nodes.push(transport);
        self.addresses.push(address);
        self.seen.push(Vec::new());
    }

    /// Connects and lets the initiator reach the responder's memory.
    pub fn link(&mut self, from: usize, to: usize, access: Access) -> Link {
        let (near, offer) = self.nodes[from].offer().unwrap();
        let (far, answer) = self.nodes[to].accept(&offer).unwrap();
        self.nodes[from].finish(near, &answer, self.addresses[to]).unwrap();
        Link { from, near, far, key: self.grant(to, far, access), stamp: STAMP }
    }

    pub fn grant(&mut self, node: usize, conn: ConnId, access: Access) -> RemoteKey {
        self.nodes[node].grant(conn, self.memories[node], access, TERMS).unwrap()
    }

    pub fn write(&mut self, link: &Link, id: u64, segments: &[Segment]) -> Result<(), PostError> {
        let work = link.work(id, self.memories[link.from], segments);
        self.nodes[link.from].post_write(work)
    }

    pub fn read(&mut self, link: &Link, id: u64, segments: &[Segment]) -> Result<(), PostError> {
        let work = link.work(id, self.memories[link.from], segments);
        self.nodes[link.from].post_read(work)
    }

    pub fn step(&mut self) -> bool {
        self.net.step();
        let mut moved = false;
        for (node, seen) in self.nodes.iter_mut().zip(&mut self.seen) {
            moved |= node.poll(seen);
        }
        moved
    }

    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let (began, mut steps) = (Instant::now(), 0);
        while steps < STEPS_MAX || began.elapsed() < N::PATIENCE {
            if condition(self) {
                return;
            }
            self.step();
            steps += 1;
        }
        panic!("never came: {what}; seen: {:?}", self.seen);
    }

    pub fn step_until_anything(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.step() {
                return;
            }
        }
    }

    /// Waits for a node's next completions and takes them.
    pub fn complete(&mut self, node: usize, count: usize) -> Vec<Done> {
        let completed = |events: &[Event]| -> Vec<Done> {
            let done = |event: &Event| match event {
                Event::Completed { conn, work, result } => Some((*conn, work.0, *result)),
                Event::Closed { .. } => None,
            };
            events.iter().filter_map(done).collect()
        };
        self.until("completions", |cluster| completed(&cluster.seen[node]).len() >= count);
        let done = completed(&self.seen[node]);
        assert_eq!(done.len(), count, "more completions than requests");
        self.seen[node].retain(|event| matches!(event, Event::Closed { .. }));
        done
    }

    /// Waits until a node was told that a connection ended.
    pub fn closed(&mut self, node: usize, conn: ConnId) {
        let closed = Event::Closed { conn };
        self.until("the end of a connection", |cluster| cluster.seen[node].contains(&closed));
        assert_eq!(self.seen[node].iter().filter(|event| **event == closed).count(), 1);
    }

    /// No completion comes that nobody waits for.
    pub fn nothing_more(&mut self) {
        for _ in 0..N::QUIET_STEPS {
            self.step();
        }
        let completed = |event: &&Event| matches!(event, Event::Completed { .. });
        assert_eq!(self.seen.iter().flatten().find(completed), None);
    }

    /// Fills a node's memory with a pattern and answers it.
    pub fn fill(&mut self, node: usize, seed: u64) -> Vec<u8> {
        let bytes = pattern(seed);
        self.mappings[node].write_at(0, &bytes).unwrap();
        bytes
    }

    pub fn bytes(&self, node: usize) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        self.mappings[node].read_at(0, &mut bytes).unwrap();
        bytes
    }
}

pub fn seg(local: u64, remote: u64, len: u64) -> Segment {
    Segment { local, remote, len }
}

/// Bytes in which no two places look alike.
pub fn pattern(seed: u64) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; LEN];
    for place in bytes.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

pub fn mapping(len: usize) -> Arc<Mapping> {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    Arc::new(Mapping::new(&file, len).unwrap())
}

/// Timeouts short enough to wait for in a test.
pub fn impatient() -> Timeouts {
    let short = Duration::from_millis(150);
    let long = Duration::from_secs(2); // The other tests of a busy machine must not end it.
    Timeouts { connect: long, accept: long, preamble: short, silence: short }
}
