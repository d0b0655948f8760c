//! Moving a checkpoint's bytes into another node's memory, one-sided.
//!
//! One [`Transport`] belongs to one thread and does both ends' work: it posts this node's writes
//! and reads (the *initiator*), and it lets peers write into and read from memory that it granted
//! them (the *responder*, what a NIC does in hardware). Everything above this trait is the same
//! for every implementation, and every implementation passes `tests/transport_conformance.rs`:
//!
//! | implementation | what it is |
//! | --- | --- |
//! | `verbs` | one-sided RDMA (cargo feature `rdma`) |
//! | [`tcp`] | frames over one TCP connection per direction, received straight into the mirror |
//! | [`fake`] | an in-memory network with a seed: delay, cut, torn and late placement |
//!
//! A server that has several of them uses them as one: [`many`].
//!
//! # Meaning, the same for all
//!
//! * A connection is *reliable and ordered*: work requests posted on it take effect at the
//!   responder in the order in which they were posted; inside one request the order in which bytes
//!   are placed is not promised.
//! * A successful completion of a write means that all its bytes lie in the responder's memory.
//! * The first work request that fails puts its connection into the error state: everything posted
//!   after it completes as [`WorkError::Flushed`], and nothing more can be posted on it. A flushed
//!   request may have taken effect in full, in part or not at all.
//! * A key is good for one connection and one memory, with the rights it was granted, until
//!   [`Transport::revoke`] returns. **After that no byte of the memory changes through it**, also
//!   not by requests that the initiator posted before.
//! * The side that offered a connection posts on it, the side that accepted it grants on it.
//! * [`Transport::close`] at either end ends the connection; nothing resumes. A new connection is
//!   a new generation with new keys.

pub mod fake;
mod keys;
pub mod many;
pub mod tcp;
mod timer;
#[cfg(feature = "rdma")]
pub mod verbs;

use std::{fmt, io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::region::mapping::Mapping;

/// Most work requests that may be outstanding on one connection.
pub const WORK_OUTSTANDING_MAX: usize = 64;
/// Most segments in one work request.
pub const SEGMENTS_MAX: usize = 4096;

/// Which implementation a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One-sided verbs.
    Rdma,
    /// TCP with the same meaning.
    Tcp,
    /// The in-memory network of tests.
    Fake,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
            Self::Fake => "fake",
        })
    }
}

/// A connection of this transport. Never reused while the transport lives. Counted from one, so
/// that the upper eight bits are free: [`many`] tells its transports apart by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Memory registered with this transport. Never reused while the transport lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(pub u64);

/// The poster's own number for a work request, handed back in its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// What memory is registered for. A device may keep tables for each use and count the memory
/// against the limit of locked memory once for each, so only what is needed is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// This side's requests write from it and read into it.
    Post,
    /// Peers are granted keys to it.
    Grant,
    /// Both.
    Both,
}

impl Purpose {
    /// Work may be posted from it.
    pub fn posts(self) -> bool {
        self != Self::Grant
    }
}

/// What the peer of one connection may do to a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Remote write, for an owner's commits. Includes reading.
    Write,
    /// Remote read, for recovery.
    Read,
}

/// What a granted key demands of each request, checked where the implementation sees every frame
/// (rule F3); with verbs the key and the queue pair alone decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The ownership epoch; a request stamped with another one is refused.
    pub epoch: u64,
    /// The oldest view that a request may be stamped with.
    pub view_min: u64,
}

/// What a request says of its sender, held against the key's [`Terms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The sender's ownership epoch of the checkpoint.
    pub epoch: u64,
    /// The sender's installed view.
    pub view: u64,
}

/// The capability to reach one memory over one connection. Travels over the authenticated control
/// connection only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteKey {
    /// The secret: an rkey, or 64 random bits.
    pub key: u64,
    /// Where the memory begins at the responder (zero where the transport counts from zero).
    pub base: u64,
    /// The memory's length in bytes.
    pub len: u64,
}

/// A piece of a work request: `len` bytes between an offset in the local memory and one in the
/// remote memory, both counted from the memory's begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the local memory, bytes.
    pub local: u64,
    /// Offset in the remote memory, bytes.
    pub remote: u64,
    /// Length in bytes; not zero.
    pub len: u64,
}

/// One write or read: all its segments complete together.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// Handed back in the completion.
    pub id: WorkId,
    /// The connection to post on.
    pub conn: ConnId,
    /// The local memory: source of a write, destination of a read.
    pub memory: MemoryId,
    /// The remote memory.
    pub key: RemoteKey,
    /// Who asks.
    pub stamp: Stamp,
    /// 1 to [`SEGMENTS_MAX`] pieces, in the order in which they take effect.
    pub segments: &'a [Segment],
}

/// Why a posted work request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// The responder revoked the key, or its terms refuse this sender: it was fenced.
    #[error("the peer refused the access: this sender is fenced")]
    Fenced,
    /// The responder knows no such key on this connection, or the key lacks the right. A NIC does
    /// not tell this from [`WorkError::Fenced`] and answers that.
    #[error("the peer knows no such key with this right on this connection")]
    BadKey,
    /// A segment lies outside the remote memory.
    #[error("a segment lies outside the peer's memory")]
    RemoteBounds,
    /// The responder did not acknowledge, however often the request was sent; what it did is
    /// unknown. Soft-RoCE answers this for a read that was fenced while its bytes travelled.
    #[error("the peer does not answer: its node, its network device or the way to it is down")]
    Unreachable,
    /// The local device gave up the request; what it did is unknown.
    #[error("this node's network device gave the request up; see the log and `ringkeep doctor`")]
    Device,
    /// The connection ended before this request was acknowledged; what it did is unknown.
    #[error("the connection ended before the request was acknowledged")]
    Flushed,
}

/// Why a work request could not be posted. Nothing was posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The connection is closed or in the error state.
    #[error("the connection is not usable")]
    NotConnected,
    /// [`WORK_OUTSTANDING_MAX`] requests are outstanding; poll first.
    #[error("the connection's queue is full")]
    QueueFull,
    /// No segment, too many, an empty one, or one outside the local memory.
    #[error("a segment list that cannot be posted")]
    BadSegments,
    /// The local memory is not registered, or not for posting.
    #[error("the local memory is not registered for posting")]
    UnknownMemory,
}

/// Why memory could not be registered or let go. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not registered (any more).
    #[error("the memory is not registered")]
    Unknown,
    /// Keys are granted on connections that this side accepted, while they live.
    #[error("no accepted connection to grant a key on")]
    NoConnection,
    /// A posted request still uses the memory: close its connection and poll first.
    #[error("posted work still uses the memory")]
    Busy,
    /// The system refused.
    #[error("registering memory: {0}")]
    System(#[from] io::Error),
}

/// Why a connection could not be made. No connection is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer's offer or answer cannot be understood.
    #[error("the peer's connection offer is malformed")]
    Malformed,
    /// The connection is unknown or not in the state for this call.
    #[error("the connection is not waiting for this")]
    WrongState,
    /// There is no such transport here.
    #[error("no {0} transport here")]
    NoTransport(Kind),
    /// The system refused.
    #[error("connecting: {0}")]
    System(#[from] io::Error),
}

/// What [`Transport::poll`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A posted request is done, well or not. Exactly one per posted request, in posting order on
    /// each connection.
    Completed {
        /// The connection on which it was posted.
        conn: ConnId,
        /// The poster's number.
        work: WorkId,
        /// What became of it.
        result: Result<(), WorkError>,
    },
    /// The connection ended from the other side or by an error; its outstanding requests have
    /// completed before this event. Not told after the caller's own [`Transport::close`].
    Closed {
        /// The connection that ended.
        conn: ConnId,
    },
}

/// See the module's text for what every implementation promises.
pub trait Transport: Send {
    /// Which implementation this is.
    fn kind(&self) -> Kind;

    /// Makes memory known, so that work can be posted from it or keys granted to it, as `purpose`
    /// says. The mapping is kept alive until it is deregistered. What takes long is done here and
    /// in [`Transport::grant`], never while posting.
    fn register(
        &mut self,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> Result<MemoryId, MemoryError>;

    /// Lets memory go. All its keys are revoked first.
    fn deregister(&mut self, memory: MemoryId) -> Result<(), MemoryError>;

    /// Initiator, first step: begins a connection. The returned bytes (at most 256) go to the peer
    /// over the control connection, for its [`Transport::accept`].
    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError>;

    /// Responder: answers an offer. The returned bytes (at most 256) go back for
    /// [`Transport::finish`]. Keys can be granted on the connection at once.
    fn accept(&mut self, offer: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError>;

    /// Initiator, last step. `peer` is the address at which the peer's server listens. Work can be
    /// posted from now on; if the peer cannot be reached it is flushed and the connection closes.
    fn finish(&mut self, conn: ConnId, answer: &[u8], peer: SocketAddr)
    -> Result<(), ConnectError>;

    /// Ends a connection. Its outstanding work completes as [`WorkError::Flushed`] at the next
    /// [`Transport::poll`]; its keys are revoked before this returns. Unknown connections are fine.
    fn close(&mut self, conn: ConnId);

    /// Lets the peer of `conn` reach `memory`.
    fn grant(
        &mut self,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<RemoteKey, MemoryError>;

    /// The fence: when this returns, no byte changes through `key` any more. Later requests fail
    /// at their sender with [`WorkError::Fenced`]. Unknown keys are fine.
    fn revoke(&mut self, key: RemoteKey);

    /// Posts a write of local bytes into remote memory. Bytes may be taken from the local memory
    /// at any time until the completion.
    fn post_write(&mut self, work: Work<'_>) -> Result<(), PostError>;

    /// Posts a read of remote bytes into local memory.
    fn post_read(&mut self, work: Work<'_>) -> Result<(), PostError>;

    /// How many bytes of an outstanding request were taken from or put into local memory so far,
    /// for people who watch a long one. 0 from implementations that know only the completion.
    fn taken_bytes(&self, _conn: ConnId, _work: WorkId) -> u64 {
        0
    }

    /// Moves everything that can move without blocking, both as initiator and as responder, and
    /// appends what happened to `events`. True when anything moved.
    fn poll(&mut self, events: &mut Vec<Event>) -> bool;

    /// A descriptor that becomes readable when [`Transport::poll`] has something to do, once
    /// [`Transport::arm`] was called.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// To be called before sleeping on [`Transport::event_fd`]. False when there is something to
    /// do already: poll again instead of sleeping.
    fn arm(&mut self) -> io::Result<bool>;
}
