//! One-sided verbs: the device moves the bytes, and the other node's processor has no part in it.
//!
//! ```text
//!            event_channel   CmId, CmEvent: who connects, and who went away (rdma_cm)
//!  device ── protection_domain ── memory_region      what keys open
//!     │                │
//!     │          queue_pair ◄── Chain: many pieces of work, one doorbell
//!     └── completion_queue ──► Completion
//!
//!  initiator  posts: requests, pieces, completions     memories   what is registered
//!  responder  grants: keys, fences                     handshake  words over the control connection
//!  discovery  which devices there are                  readiness  what wakes a sleeper
//!  probe      whether memory can be registered
//! ```
//!
//! **Strategy.** One thread owns the device and everything on it. Connections are made with the
//! connection manager, which finds the way to the peer's device and tells when the peer's end, or its
//! process, is gone; a token that travelled over the authenticated control connection says who asks.
//!
//! Each accepted connection has a protection domain of its own and each grant a memory region of its
//! own in it, so a key is good for one connection and one memory with the rights granted, and
//! revoking it is deregistering that region: the NIC itself refuses what comes later. Objects hold
//! what they were made of, so that they end in the right order; while posting, nothing is counted up
//! or down but the memory's own number of outstanding requests.

mod completion_queue;
mod device;
pub mod discovery;
mod event_channel;
mod handshake;
mod initiator;
mod ledger;
mod memories;
mod memory_region;
pub mod probe;
mod protection_domain;
mod queue_pair;
mod readiness;
mod responder;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::discovery::OpenError;
pub(crate) use self::memory_region::is_memlock;
use self::{
    completion_queue::{CompletionChannel, CompletionQueue, Outcome},
    device::Device,
    event_channel::{CmEvent, CmFailure, CmId},
    handshake::{Answer, Offer, Token},
    initiator::Initiator,
    memories::Memories,
    memory_region::{MemoryRegion, Rights},
    protection_domain::ProtectionDomain,
    queue_pair::{Chain, Direction, QueuePair},
    readiness::Readiness,
    responder::Responder,
};
use super::{
    Access, ConnId, ConnectError, Event, Kind, MemoryError, MemoryId, PostError, Purpose,
    RemoteKey, Terms, Transport, Work,
};
use crate::region::mapping::Mapping;

/// From [`Transport::finish`] to a connection that is ready. The connection manager sends a request
/// that was lost again after four seconds.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// From [`Transport::accept`] until the peer's device asks for the connection.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(12);
/// Most events of the connection manager in one `poll`: whoever reaches the listener can make them.
const CONNECTION_EVENTS_MAX: usize = 32;
/// A thread that does not sleep, and whose connections are made, looks once in so many rounds for
/// what is not completions.
const ROUNDS_PER_LOOK: u32 = 64;

/// What was asked of the device so far: what a commit costs, however slow the machine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Requests taken over by the transport.
    pub requests: u64,
    /// Work requests of the device that they were cut into.
    pub pieces: u64,
    /// Calls of `ibv_post_send`.
    pub doorbells: u64,
    /// Completions taken.
    pub completions: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("work ended as {0:?}")]
    Work(Outcome),
    #[error(transparent)]
    Connect(#[from] CmFailure),
    #[error("{0}")]
    System(io::Error),
    #[error("the other side ended it")]
    Disconnected,
    #[error("it took too long to connect")]
    TimedOut,
    #[error("the peer's address is not reached through this server's RDMA device")]
    OtherDevice,
    #[error("the RDMA device was removed")]
    DeviceRemoved,
}

enum Role {
    /// Offered, not finished.
    Offered,
    Initiator(Box<Initiator>),
    Responder(Box<Responder>),
}

struct Connection {
    role: Role,
    /// When it ends unless it gets on before.
    deadline: Option<Instant>,
}

/// See the module's text.
pub struct VerbsTransport {
    connections: BTreeMap<ConnId, Connection>,
    tokens: HashMap<Token, ConnId>,
    numbers: u64,
    memories: Memories,
    chain: Chain,
    counts: Counts,
    /// What happened outside of `poll` and is told by the next one.
    untold: Vec<Event>,
    rounds: u32,
    /// The next `poll` looks at everything.
    look: bool,
    readiness: Readiness,
    /// Of the queue pairs that post nothing: nothing ever completes there.
    idle: Arc<CompletionQueue>,
    /// What this side posts from is registered here.
    home: Arc<ProtectionDomain>,
    completions: Arc<CompletionChannel>,
    device: Arc<Device>,
}

impl fmt::Debug for VerbsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsTransport")
            .field("device", &self.device.name)
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl VerbsTransport {
    /// Opens the RDMA device of this name, or without a name the one that has the address `listen`,
    /// or else the first that works.
    ///
    /// # Errors
    /// No device can be used, in words that say what to do.
    pub fn open(device: Option<&str>, listen: IpAddr) -> Result<Self, OpenError> {
        let device = Device::open(device, listen)?;
        let failed = |source| OpenError::System { name: device.name.clone(), source };
        let completions = CompletionChannel::new(&device).map_err(failed)?;
        let home = ProtectionDomain::new(&device).map_err(failed)?;
        let idle = CompletionQueue::new(&completions, 1).map_err(failed)?;
        let events = device.async_events().map_err(failed)?;
        let readiness =
            Readiness::new(device.channel.fd(), completions.fd(), events).map_err(failed)?;
        Ok(Self {
            connections: BTreeMap::new(),
            tokens: HashMap::new(),
            numbers: device::LISTENER.0,
            memories: Memories::default(),
            chain: Chain::new(),
            counts: Counts::default(),
            untold: Vec::new(),
            rounds: 0,
            look: false,
            readiness,
            idle,
            home,
            completions,
            device: device.clone(),
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device.name
    }

    /// Where the device takes connections.
    pub fn address(&self) -> SocketAddr {
        self.device.address
    }

    /// What was asked of the device so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn insert(&mut self, role: Role, patience: Option<Duration>) -> ConnId {
        self.numbers += 1;
        let id = ConnId(self.numbers);
        let deadline = patience.map(|patience| Instant::now() + patience);
        self.connections.insert(id, Connection { role, deadline });
        self.set_timer();
        id
    }

    fn set_timer(&self) {
        let first = self.connections.values().filter_map(|c| c.deadline).min();
        let now = Instant::now();
        self.readiness.timer.set(first.map(|at| at.saturating_duration_since(now)));
    }

    fn expire(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        let late = |c: &Connection| c.deadline.is_some_and(|at| at <= now);
        let ids: Vec<_> =
            self.connections.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, &End::TimedOut, events);
        }
        self.set_timer();
    }

    // Connections.

    fn take_connection_events(&mut self, events: &mut Vec<Event>) {
        for _ in 0..CONNECTION_EVENTS_MAX {
            match self.device.channel.next() {
                Ok(Some(event)) => self.connection_event(event, events),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "asking the connection manager");
                    return;
                }
            }
        }
        self.look = true;
    }

    fn connection_event(&mut self, event: CmEvent, events: &mut Vec<Event>) {
        let (id, done) = match event {
            CmEvent::Requested { id, token } => return self.requested(id, token, events),
            CmEvent::AddressResolved(conn) => (conn, self.address_resolved(conn)),
            CmEvent::RouteResolved(conn) => (conn, self.route_resolved(conn)),
            CmEvent::Answered(conn) => (conn, self.answered(conn)),
            CmEvent::Established(conn) => (conn, Ok(())),
            CmEvent::Failed(conn, failure) => (conn, Err(failure.into())),
            CmEvent::Disconnected(conn) => (conn, Err(End::Disconnected)),
            CmEvent::DeviceRemoved(device::LISTENER) => {
                tracing::error!(device = self.device(), "the RDMA device is being removed");
                return;
            }
            CmEvent::DeviceRemoved(conn) => (conn, Err(End::DeviceRemoved)),
        };
        if let Err(end) = done {
            self.end(id, &end, events);
        }
    }

    fn initiator(&mut self, conn: ConnId) -> Option<&mut Initiator> {
        match self.connections.get_mut(&conn) {
            Some(Connection { role: Role::Initiator(initiator), .. }) => Some(initiator),
            _ => None,
        }
    }

    fn address_resolved(&mut self, conn: ConnId) -> Result<(), End> {
        let device = self.device.clone();
        let Some(initiator) = self.initiator(conn) else { return Ok(()) };
        if !device.carries(initiator.id()) {
            return Err(End::OtherDevice);
        }
        initiator.id().resolve_route(CONNECT_PATIENCE).map_err(End::System)
    }

    fn route_resolved(&mut self, conn: ConnId) -> Result<(), End> {
        let pieces = self.device.limits.pieces;
        let (home, channel) = (self.home.clone(), self.completions.clone());
        let Some(initiator) = self.initiator(conn) else { return Ok(()) };
        // Each piece has at most one completion: the queue cannot overflow.
        let queue = CompletionQueue::new(&channel, pieces).map_err(End::System)?;
        let pair = QueuePair::new(&home, &queue, pieces).map_err(End::System)?;
        initiator.connect(pair).map_err(End::System)
    }

    fn answered(&mut self, conn: ConnId) -> Result<(), End> {
        let Some(initiator) = self.initiator(conn) else { return Ok(()) };
        initiator.answered().map_err(End::System)?;
        self.in_time(conn);
        self.pump(conn).map(drop)
    }

    fn in_time(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.deadline = None;
        }
        self.set_timer();
    }

    fn requested(&mut self, mut id: CmId, token: Option<Token>, events: &mut Vec<Event>) {
        // Taken out: a token is good once.
        let Some(conn) = token.and_then(|token| self.tokens.remove(&token)) else {
            tracing::debug!("refused an RDMA connection without a token that somebody waits for");
            return id.reject();
        };
        id.set_conn(conn);
        let Some(Connection { role: Role::Responder(responder), .. }) =
            self.connections.get_mut(&conn)
        else {
            return id.reject();
        };
        match responder.connect(id, &self.idle) {
            // From here on the connection manager tells when the peer does not go on.
            Ok(()) => self.in_time(conn),
            Err(error) => self.end(conn, &End::System(error), events),
        }
    }

    /// A connection ended that the caller did not close.
    fn end(&mut self, id: ConnId, why: &End, events: &mut Vec<Event>) {
        if !self.connections.contains_key(&id) {
            return;
        }
        match why {
            End::Disconnected | End::Work(Outcome::Refused) => {
                tracing::debug!(connection = id.0, %why, "connection ended");
            }
            _ => tracing::warn!(connection = id.0, %why, "connection ended"),
        }
        self.remove(id, events);
        events.push(Event::Closed { conn: id });
    }

    /// Forgets a connection: its queue pair and its keys are gone, its work is flushed.
    fn remove(&mut self, id: ConnId, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        match connection.role {
            Role::Offered => {}
            Role::Initiator(initiator) => {
                initiator.end(id, &mut self.memories, events, &mut self.counts);
            }
            Role::Responder(responder) => {
                self.tokens.remove(&responder.token);
                responder.disconnect();
            }
        }
        if connection.deadline.is_some() {
            self.set_timer();
        }
    }

    // Work.

    fn post(&mut self, work: &Work<'_>, direction: Direction) -> Result<(), PostError> {
        let Some(Connection { role: Role::Initiator(initiator), .. }) =
            self.connections.get_mut(&work.conn)
        else {
            return Err(PostError::NotConnected);
        };
        let local = self.memories.check(work.memory, work.segments)?;
        initiator.post(work, direction, local, self.device.limits.piece_bytes)?;
        self.memories.posted(work.memory);
        self.counts.requests += 1;
        if let Err(end) = self.pump(work.conn) {
            // The request was taken over: it is told as flushed, with the connection's end.
            let mut untold = mem::take(&mut self.untold);
            self.end(work.conn, &end, &mut untold);
            self.untold = untold;
        }
        Ok(())
    }

    fn pump(&mut self, conn: ConnId) -> Result<bool, End> {
        match self.connections.get_mut(&conn) {
            Some(Connection { role: Role::Initiator(initiator), .. }) => {
                initiator.pump(&mut self.chain, self.device.limits.pieces, &mut self.counts)
            }
            _ => Ok(false),
        }
    }

    /// Takes completions of all connections, and posts what has room now.
    fn complete(&mut self, events: &mut Vec<Event>) -> bool {
        let mut moved = false;
        let mut ended = None;
        for (id, connection) in &mut self.connections {
            let Role::Initiator(initiator) = &mut connection.role else { continue };
            if !initiator.is_waiting() {
                continue;
            }
            let done = initiator
                .complete(*id, &mut self.memories, events, &mut self.counts)
                .and_then(|done| {
                    let pieces = self.device.limits.pieces;
                    Ok(done | initiator.pump(&mut self.chain, pieces, &mut self.counts)?)
                });
            match done {
                Ok(done) => moved |= done,
                Err(end) => {
                    ended = Some((*id, end));
                    break; // the others have their turn at the next poll
                }
            }
        }
        if let Some((id, end)) = ended {
            self.end(id, &end, events);
            moved = true;
        }
        moved
    }

    fn revoke_key(&mut self, key: u64) {
        let mut holders = self.connections.iter_mut().filter_map(|(id, c)| match &mut c.role {
            Role::Responder(responder) if responder.has(key) => Some((*id, responder)),
            _ => None,
        });
        if let Some((id, responder)) = holders.next()
            && !responder.revoke(key)
        {
            let mut untold = mem::take(&mut self.untold);
            self.remove(id, &mut untold);
            untold.push(Event::Closed { conn: id });
            self.untold = untold;
        }
    }
}

impl Transport for VerbsTransport {
    fn kind(&self) -> Kind {
        Kind::Rdma
    }

    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        Ok(self.memories.register(&self.home, mapping, purpose)?)
    }

    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        self.memories.check_idle(memory)?;
        let keys: Vec<u64> = self
            .connections
            .values()
            .filter_map(|connection| match &connection.role {
                Role::Responder(responder) => Some(responder.keys_to(memory)),
                _ => None,
            })
            .flatten()
            .collect();
        for key in keys {
            self.revoke_key(key);
        }
        self.memories.remove(memory);
        Ok(())
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let offer = Offer(self.device.limits.initiator).encode();
        Ok((self.insert(Role::Offered, None), offer))
    }

    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        let Offer(theirs) = Offer::decode(offer).ok_or(ConnectError::Malformed)?;
        let mut token = Token::default();
        getrandom::fill(&mut token).map_err(io::Error::other)?;
        let domain = ProtectionDomain::new(&self.device)?;
        let (abilities, address) = (self.device.limits.responder, self.device.address);
        let responder = Responder::new(domain, token, abilities.common(theirs));
        let id = self.insert(Role::Responder(Box::new(responder)), Some(ACCEPT_PATIENCE));
        self.tokens.insert(token, id);
        Ok((id, Answer { abilities, token, address }.encode()))
    }

    fn finish(&mut self, conn: ConnId, answer: &[u8], _: SocketAddr) -> Result<(), ConnectError> {
        let Some(Connection { role: Role::Offered, .. }) = self.connections.get(&conn) else {
            return Err(ConnectError::WrongState);
        };
        self.connections.remove(&conn);
        let Answer { abilities, token, address } =
            Answer::decode(answer).ok_or(ConnectError::Malformed)?;
        let id = CmId::new(&self.device.channel, conn)?;
        id.resolve_address(self.device.address.ip(), address, CONNECT_PATIENCE)?;
        let common = self.device.limits.initiator.common(abilities);
        let role = Role::Initiator(Box::new(Initiator::new(id, token, common)));
        let deadline = Some(Instant::now() + CONNECT_PATIENCE);
        self.connections.insert(conn, Connection { role, deadline });
        self.set_timer();
        Ok(())
    }

    fn close(&mut self, conn: ConnId) {
        let mut untold = mem::take(&mut self.untold);
        self.remove(conn, &mut untold);
        self.untold = untold;
    }

    fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        _: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        let Some(Connection { role: Role::Responder(responder), .. }) =
            self.connections.get_mut(&conn)
        else {
            return Err(MemoryError::NoConnection);
        };
        let mapping = self.memories.mapping(memory)?;
        let region = MemoryRegion::register(&responder.domain, mapping, Rights::Remote(access))?;
        // The device's keys come again; with a random half no two grants ever share a key.
        let mut salt = [0; 4];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let key = u64::from(u32::from_ne_bytes(salt)) << 32 | u64::from(region.rkey());
        let (base, len) = (region.base(), region.len());
        responder.grant(key, memory, region);
        Ok(RemoteKey { key, base, len })
    }

    fn revoke(&mut self, key: RemoteKey) {
        self.revoke_key(key.key);
    }

    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, Direction::Write)
    }

    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, Direction::Read)
    }

    /// Completions are polled in user memory; the rest takes one system call once in
    /// [`ROUNDS_PER_LOOK`] rounds, and after each sleep.
    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let told = events.len();
        events.append(&mut self.untold);
        let mut moved = self.complete(events);
        self.rounds = self.rounds.wrapping_add(1);
        let connecting = self.connections.values().any(|c| c.deadline.is_some());
        if mem::take(&mut self.look) || connecting || self.rounds.is_multiple_of(ROUNDS_PER_LOOK) {
            let fired = self.readiness.look();
            if fired.completions {
                self.completions.quiet();
            }
            if fired.device {
                self.device.log_async_events();
            }
            if fired.connections {
                self.take_connection_events(events);
                moved = true;
            }
            if fired.timer {
                self.expire(events);
            }
        }
        moved || events.len() > told
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.readiness.fd())
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.look = true;
        let mut armed = Ok(());
        for connection in self.connections.values() {
            if let Role::Initiator(initiator) = &connection.role {
                armed = armed.and(initiator.arm());
            }
        }
        // What completed before it was armed does not wake anybody.
        let mut untold = mem::take(&mut self.untold);
        let moved = self.complete(&mut untold);
        self.untold = untold;
        armed.map(|()| !moved && self.untold.is_empty())
    }
}

/// The status of a call that answers -1 and sets `errno`, or answers the error itself.
fn checked(status: i32) -> io::Result<()> {
    match status {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        errno => Err(io::Error::from_raw_os_error(errno.abs())),
    }
}
