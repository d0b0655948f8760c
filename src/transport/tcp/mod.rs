//! One-sided writes and reads over TCP.
//!
//! ```text
//!   listener ── magic read ──► Adopter ─┐ (queue and eventfd)
//!                                       ▼
//!   epoll ◄── waker, timer, ──── lobby: preamble, token ──► Responder   frames in, straight into
//!     │       sockets                                          │        the mirror; acks out
//!     ▼                                                        ▼
//!   poll: one turn for each connection with something to do ◄─ Initiator   frames out, straight
//!                                                                          from the region
//! ```
//!
//! **Strategy.** All on the caller's thread and without blocking, so that [`Transport::revoke`] is a
//! fence by itself: whoever runs it is the only one that could place a byte. Every connection has
//! one socket; the side that offered it sends requests and the side that accepted it answers. Each
//! end knows its next sequence number, so an acknowledgement is one number, however many requests it
//! covers, and a responder never queues anything for a peer that does not read.

pub mod frame;
pub mod handshake;
mod initiator;
mod iov;
mod lobby;
mod responder;
mod stream;
mod timeouts;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    fmt, io,
    mem::{self, MaybeUninit},
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    time::Timespec,
};

use self::{
    frame::FrameKind,
    handshake::{Answer, Token, encode_offer, is_offer},
    initiator::Initiator,
    lobby::{Admission, Lobby},
    responder::Responder,
    stream::{End, Stream},
};
pub use self::{handshake::DATA_MAGIC, lobby::Adopter, timeouts::Timeouts};
use super::{
    Access, ConnId, ConnectError, Event, Kind, MemoryError, MemoryId, PostError, Purpose,
    RemoteKey, Terms, Transport, Work, WorkId, keys::Keys, timer::Timer,
};
use crate::region::mapping::Mapping;

/// What epoll says about the lobby's waker and the timer, in place of a connection's number.
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Most readiness events taken in one `poll`.
const FIRED_MAX: usize = 128;
/// So often the busiest socket is looked into before epoll is asked about all of them.
const GUESSES_MAX: u32 = 7;

enum Role {
    /// Offered, not finished.
    Offered,
    Initiator(Box<Initiator>),
    /// Accepted; no socket has shown its token yet.
    Awaited {
        token: Token,
        generation: u64,
    },
    Responder(Box<Responder>),
}

struct Connection {
    role: Role,
    /// Stands in the list of those that get a turn.
    queued: bool,
    /// When it ends unless it gets on before.
    deadline: Option<Instant>,
}

impl Connection {
    fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.role {
            Role::Initiator(initiator) => Some(&mut initiator.stream),
            Role::Responder(responder) => Some(&mut responder.stream),
            Role::Offered | Role::Awaited { .. } => None,
        }
    }
}

/// See the module's text.
pub struct TcpTransport {
    epoll: OwnedFd,
    timer: Timer,
    timeouts: Timeouts,
    keys: Keys,
    connections: BTreeMap<ConnId, Connection>,
    tokens: HashMap<Token, ConnId>,
    lobby: Lobby,
    /// Connections and waiting sockets are numbered together: epoll tells them apart by it.
    numbers: u64,
    deadlines: BinaryHeap<Reverse<(Instant, ConnId)>>,
    /// Connections that get a turn at the next poll, and the list of those that have theirs.
    queue: Vec<ConnId>,
    turns: Vec<ConnId>,
    /// What happened outside of `poll` and is told by the next one.
    untold: Vec<Event>,
    /// The caller may have slept on the epoll instance since the last `poll`.
    armed: bool,
    /// The last `poll` did not ask the epoll instance.
    unasked: bool,
    /// The connection that something was received on last.
    busy: Option<ConnId>,
    /// So often its socket was looked into since the epoll instance was asked.
    guesses: u32,
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl TcpTransport {
    /// A transport without connections.
    ///
    /// # Errors
    /// The system gave no epoll instance, timer or eventfd.
    pub fn new(timeouts: Timeouts) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = Timer::new()?;
        let lobby = Lobby::new()?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        epoll::add(&epoll, lobby.waker(), EventData::new_u64(WAKER), EventFlags::IN)?;
        Ok(Self {
            epoll,
            timer,
            timeouts,
            keys: Keys::default(),
            connections: BTreeMap::new(),
            tokens: HashMap::new(),
            lobby,
            numbers: 0,
            deadlines: BinaryHeap::new(),
            queue: Vec::new(),
            turns: Vec::new(),
            untold: Vec::new(),
            armed: false,
            unasked: false,
            busy: None,
            guesses: 0,
        })
    }

    /// The listener's end: hands over sockets that began with [`DATA_MAGIC`].
    pub fn adopter(&self) -> Adopter {
        self.lobby.adopter.clone()
    }

    fn number(&mut self) -> ConnId {
        self.numbers += 1;
        ConnId(self.numbers)
    }

    fn insert(&mut self, role: Role) -> ConnId {
        let id = self.number();
        self.connections.insert(id, Connection { role, queued: false, deadline: None });
        id
    }

    /// Gives a connection a turn at the next poll.
    fn enqueue(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
        {
            connection.queued = true;
            self.queue.push(id);
        }
    }

    fn set_deadline(&mut self, id: ConnId, after: Duration) {
        let at = Instant::now() + after;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.deadline = Some(at);
        }
        self.schedule(at, id);
    }

    fn schedule(&mut self, at: Instant, id: ConnId) {
        let first = self.deadlines.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.deadlines.push(Reverse((at, id)));
        if first {
            self.timer.set(Some(at.saturating_duration_since(Instant::now())));
        }
    }

    fn expire(&mut self, events: &mut Vec<Event>) {
        self.timer.quiet();
        let now = Instant::now();
        while let Some(Reverse((at, id))) = self.deadlines.peek().copied()
            && at <= now
        {
            self.deadlines.pop();
            let connection = self.connections.get(&id);
            if connection.is_some_and(|it| it.deadline.is_some_and(|at| at <= now)) {
                self.end(id, &End::TimedOut, events);
            }
        }
        self.lobby.expire(now);
        let next = self.deadlines.peek().map(|Reverse((at, _))| at.saturating_duration_since(now));
        self.timer.set(next);
    }

    fn watch(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), flags)?)
    }

    fn take_arrivals(&mut self) {
        self.lobby.quiet_waker();
        while let Some(socket) = self.lobby.arrival() {
            let id = self.number();
            // Registering tells whether the preamble is there already, as an edge.
            if let Err(error) = self.watch(&socket, id.0) {
                tracing::warn!(%error, "a data connection could not be watched");
                continue;
            }
            let until = Instant::now() + self.timeouts.preamble;
            self.lobby.wait(id.0, socket, until);
            self.schedule(until, id);
        }
    }

    /// A socket in the lobby has something to say.
    fn hear(&mut self, number: u64) {
        let (token, socket) = match self.lobby.hear(number) {
            Admission::Shown(token, socket) => (token, socket),
            Admission::Waits => return,
            Admission::Turned => {
                tracing::warn!("closed a data connection without a valid preamble");
                return;
            }
        };
        // Taken out: a token is good once.
        let Some(id) = self.tokens.remove(&token) else {
            tracing::warn!("closed a data connection with a token that nobody waits for");
            return;
        };
        if let Err(error) = self.install(id, socket) {
            let mut events = mem::take(&mut self.untold);
            self.end(id, &End::System(error), &mut events);
            self.untold = events;
        }
    }

    fn install(&mut self, id: ConnId, socket: OwnedFd) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let Role::Awaited { generation, .. } = connection.role else { return Ok(()) };
        let stream = Stream::adopt(socket, self.timeouts.silence)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        // Modifying tells the socket's present state once more, now in this connection's name.
        epoll::modify(&self.epoll, stream.fd(), EventData::new_u64(id.0), flags)?;
        connection.role = Role::Responder(Box::new(Responder::new(stream, generation)));
        connection.deadline = None;
        Ok(())
    }

    /// Without a connection, a socket that waits or a time to wait for, epoll has nothing to tell
    /// but that a socket was handed over, and the lobby's flag tells that, too: a transport that
    /// nobody uses costs no system call, so that it can stand beside another. After a sleep epoll
    /// is asked in any case. It is what ended the sleep if anything here did, and must not stay
    /// readable: the waker may be rung by a hand-over whose flag and socket were seen before it.
    fn is_idle(&self) -> bool {
        !self.armed
            && self.connections.is_empty()
            && self.deadlines.is_empty()
            && self.lobby.is_empty()
    }

    /// Whoever had something to say last most likely is the next, too: to look into its socket is one
    /// system call, to be told of it and look then are two. False when epoll is to be asked.
    fn guess(&mut self) -> bool {
        let Some(busy) = self.busy.filter(|_| !self.armed && self.guesses < GUESSES_MAX) else {
            self.guesses = 0;
            return false;
        };
        match self.connections.get_mut(&busy).and_then(|it| it.stream()) {
            Some(stream) => stream.look(),
            None => {
                self.busy = None;
                return false;
            }
        }
        self.guesses += 1;
        self.enqueue(busy);
        true
    }

    fn take_readiness(&mut self, events: &mut Vec<Event>) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fired = [const { MaybeUninit::<epoll::Event>::uninit() }; FIRED_MAX];
        let fired = match epoll::wait(&self.epoll, &mut fired, Some(&now)) {
            Ok((fired, _)) => fired,
            Err(rustix::io::Errno::INTR) => return,
            Err(errno) => {
                tracing::error!(%errno, "waiting for the data plane's sockets failed");
                return;
            }
        };
        for event in fired {
            match (event.data.u64(), event.flags) {
                (WAKER, _) => self.take_arrivals(),
                (TIMER, _) => self.expire(events),
                (number, flags) => match self.connections.get_mut(&ConnId(number)) {
                    Some(connection) => {
                        if let Some(stream) = connection.stream() {
                            stream.note(flags);
                        }
                        self.enqueue(ConnId(number));
                    }
                    None if self.lobby.has(number) => self.hear(number),
                    None => {}
                },
            }
        }
    }

    /// One connection's turn. True when something was received.
    fn drive(&mut self, id: ConnId, events: &mut Vec<Event>) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        connection.queued = false;
        let (outcome, heard) = match &mut connection.role {
            Role::Offered | Role::Awaited { .. } => return false,
            Role::Initiator(initiator) => {
                let outcome = initiator.drive(id, &mut self.keys, events);
                if !initiator.is_connecting() {
                    connection.deadline = None;
                }
                (outcome, initiator.stream.heard())
            }
            Role::Responder(responder) => {
                let outcome = responder.drive(id, &self.keys);
                let heard = responder.stream.heard();
                if responder.is_refused() && connection.deadline.is_none() {
                    self.set_deadline(id, self.timeouts.silence);
                }
                (outcome, heard)
            }
        };
        if heard {
            self.busy = Some(id);
        }
        match outcome {
            Ok(true) => self.enqueue(id),
            Ok(false) => {}
            Err(end) => self.end(id, &end, events),
        }
        heard
    }

    /// A connection ended that the caller did not close.
    fn end(&mut self, id: ConnId, why: &End, events: &mut Vec<Event>) {
        match why {
            End::Eof | End::Refused => tracing::debug!(connection = id.0, %why, "connection ended"),
            _ => tracing::warn!(connection = id.0, %why, "connection ended"),
        }
        self.remove(id, events);
        events.push(Event::Closed { conn: id });
    }

    /// Forgets a connection: its socket closes, its keys are gone, its work is flushed.
    fn remove(&mut self, id: ConnId, events: &mut Vec<Event>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.keys.forget(id);
        match connection.role {
            Role::Initiator(initiator) => initiator.flush(id, &mut self.keys, events),
            Role::Awaited { token, .. } => {
                self.tokens.remove(&token);
            }
            Role::Offered | Role::Responder(_) => {}
        }
    }

    fn fence(&mut self, id: ConnId, key: u64) {
        if let Some(Connection { role: Role::Responder(responder), .. }) =
            self.connections.get_mut(&id)
            && responder.fence(key)
        {
            self.enqueue(id);
        }
    }

    fn post(&mut self, work: &Work<'_>, kind: FrameKind) -> Result<(), PostError> {
        match self.connections.get_mut(&work.conn) {
            Some(Connection { role: Role::Initiator(initiator), .. }) => {
                initiator.post(work, kind, &mut self.keys)?;
            }
            _ => return Err(PostError::NotConnected),
        }
        self.enqueue(work.conn);
        Ok(())
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

impl Transport for TcpTransport {
    fn kind(&self) -> Kind {
        Kind::Tcp
    }

    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError> {
        Ok(self.keys.register(mapping, purpose))
    }

    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError> {
        for (conn, key) in self.keys.deregister(memory)? {
            self.fence(conn, key);
        }
        Ok(())
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        Ok((self.insert(Role::Offered), encode_offer().into()))
    }

    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        if !is_offer(offer) {
            return Err(ConnectError::Malformed);
        }
        let (token, generation) = (random()?, u64::from_le_bytes(random()?));
        let id = self.insert(Role::Awaited { token, generation });
        self.tokens.insert(token, id);
        self.set_deadline(id, self.timeouts.accept);
        Ok((id, Answer { generation, token }.encode().into()))
    }

    fn finish(
        &mut self,
        conn: ConnId,
        answer: &[u8],
        peer: SocketAddr,
    ) -> Result<(), ConnectError> {
        let Some(Connection { role: Role::Offered, .. }) = self.connections.get(&conn) else {
            return Err(ConnectError::WrongState);
        };
        self.connections.remove(&conn);
        let answer = Answer::decode(answer).ok_or(ConnectError::Malformed)?;
        let (stream, refused) = Stream::connect(peer, self.timeouts.silence)?;
        self.watch(stream.fd(), conn.0)?;
        let role = Role::Initiator(Box::new(Initiator::new(stream, &answer)));
        self.connections.insert(conn, Connection { role, queued: false, deadline: None });
        // A refusal at once is told like a later one: by the end of the connection.
        let patience = if refused.is_some() { Duration::ZERO } else { self.timeouts.connect };
        self.set_deadline(conn, patience);
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
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        match self.connections.get(&conn) {
            Some(Connection { role: Role::Awaited { .. } | Role::Responder(_), .. }) => {}
            _ => return Err(MemoryError::NoConnection),
        }
        let mut key = u64::from_le_bytes(random()?);
        while self.keys.is_taken(key) {
            key = u64::from_le_bytes(random()?);
        }
        let len = self.keys.grant(key, conn, memory, access, terms)?;
        Ok(RemoteKey { key, base: 0, len })
    }

    fn revoke(&mut self, key: RemoteKey) {
        if let Some(conn) = self.keys.revoke(key.key) {
            self.fence(conn, key.key);
        }
    }

    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, FrameKind::Write)
    }

    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError> {
        self.post(&work, FrameKind::Read)
    }

    fn taken_bytes(&self, conn: ConnId, work: WorkId) -> u64 {
        match self.connections.get(&conn) {
            Some(Connection { role: Role::Initiator(initiator), .. }) => initiator.taken(work),
            _ => 0,
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let told = events.len();
        events.append(&mut self.untold);
        // What was just posted goes out first, but whoever posts all the time hears of others, too.
        self.unasked = !self.queue.is_empty() && !self.unasked;
        let guessed = !self.unasked && self.queue.is_empty() && self.guess();
        if !self.unasked && !guessed && !self.is_idle() {
            self.armed = false;
            self.take_readiness(events);
        }
        mem::swap(&mut self.queue, &mut self.turns);
        let mut moved = !self.turns.is_empty() && !guessed;
        for at in 0..self.turns.len() {
            moved |= self.drive(self.turns[at], events);
        }
        self.turns.clear();
        moved || events.len() > told
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.armed = true;
        Ok(self.queue.is_empty() && self.untold.is_empty())
    }
}
