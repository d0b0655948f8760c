//! The data plane: one thread that owns the transports, takes commits over from the services, posts
//! them to their mirrors and answers the peers' writes and reads.
//!
//! The control plane speaks to it in [`Command`]s over a bounded channel and hears [`Notice`]s. On
//! the way of a commit there is no lock, no allocation in the steady state, and no system call but
//! the transport's own, one send when a client sleeps, a look at the bells now and then, and giving the
//! core away where there are few.

mod copies;
mod engine;
mod links;
mod owned;
mod sleep;
mod timers;

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc, oneshot};

use self::engine::Engine;
use crate::{
    commit::Version,
    handover::{Bell, Condition, Consumer, Violation},
    membership::{NodeId, View},
    mirror::Protection,
    name::Name,
    pause,
    region::{Region, mapping::Mapping},
    transport::{
        Access, ConnId, ConnectError, Kind, MemoryError, MemoryId, Purpose, RemoteKey, Segment,
        Stamp, Terms, many::Many,
    },
};

/// Answers a command. A receiver that does not wait any more is fine.
pub type Reply<T> = oneshot::Sender<T>;

/// Commands that may wait for the data plane.
const COMMANDS_MAX: usize = 1024;
/// Notices that may wait for the control plane; more are kept until there is room.
const NOTICES_MAX: usize = 1024;

/// A committed version in a local slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The version.
    pub version: Version,
    /// The slot that holds it.
    pub slot: usize,
    /// Payload length in bytes.
    pub len: u64,
}

/// A slot that is kept from being overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// The slot.
    pub slot: usize,
    /// Of which region.
    pub memory: MemoryId,
}

/// A client that attached to an owned checkpoint.
#[derive(Debug)]
pub struct Attachment {
    /// The server's end of the hand-over memory.
    pub consumer: Consumer,
    /// Whichever side sleeps is woken by it.
    pub bell: Bell,
}

/// What the control plane wants done.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are what the variants' texts speak of")]
pub enum Command {
    /// This node, in this life, installed a view, or left the ring (`None`).
    View { me: NodeId, view: Option<Arc<View>> },
    /// Begin a connection to this peer over this transport; an older one is closed.
    Offer { peer: NodeId, kind: Kind, reply: Reply<Result<Vec<u8>, ConnectError>> },
    /// Answer a peer's offer over this transport; an older connection of this peer is closed first,
    /// whichever transport that one used (rule F2).
    Accept { peer: NodeId, kind: Kind, offer: Vec<u8>, reply: Reply<Result<Vec<u8>, ConnectError>> },
    /// Finish what [`Command::Offer`] began.
    Finish {
        peer: NodeId,
        answer: Vec<u8>,
        address: SocketAddr,
        reply: Reply<Result<ConnId, ConnectError>>,
    },
    /// Close all connections with this peer.
    Unlink { peer: NodeId },
    /// Make memory known to the transports.
    Register {
        mapping: Arc<Mapping>,
        purpose: Purpose,
        reply: Reply<Result<MemoryId, MemoryError>>,
    },
    /// Let memory go; all its keys are revoked first.
    Deregister { memory: MemoryId, reply: Reply<()> },
    /// Let a peer reach memory over the connection that it opened.
    Grant {
        peer: NodeId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
        reply: Reply<Result<RemoteKey, MemoryError>>,
    },
    /// The fence: once answered, nothing changes through this key any more.
    Revoke { key: RemoteKey, reply: Reply<()> },
    /// Read a peer's memory into this node's.
    Read {
        peer: NodeId,
        memory: MemoryId,
        key: RemoteKey,
        stamp: Stamp,
        segments: Vec<Segment>,
        reply: Reply<Result<(), ReadError>>,
    },
    /// This node owns a checkpoint from now on, and keeps so many copies of it on other nodes.
    Own {
        name: Name,
        region: Region,
        epoch: u64,
        copies: usize,
        newest: Option<Committed>,
        reply: Reply<Result<MemoryId, MemoryError>>,
    },
    /// A client attached; whoever was attached is fenced. Nobody waits for this: a client whose
    /// checkpoint is not owned any more is told in its hand-over memory.
    Attach { name: Name, attachment: Attachment },
    /// The client went away, or is sent away.
    Detach { name: Name, condition: Option<Condition> },
    /// This node does not own the checkpoint any more. Answered when nothing of it is under way.
    Disown { name: Name, condition: Condition, reply: Reply<()> },
    /// A holder is ready for this checkpoint's mirror, in this epoch of its ownership.
    Prepared {
        name: Name,
        epoch: u64,
        holder: NodeId,
        key: RemoteKey,
        region: u64,
        versions: Vec<Version>,
        /// Which of the two places takes the next sync mark.
        mark_to: usize,
    },
    /// A holder could not be made ready; ask again when it is wanted again.
    MirrorLost { name: Name, holder: NodeId },
    /// Keep the newest committed version from being overwritten while it is read.
    Pin { name: Name, reply: Reply<Option<Pinned>> },
    /// Ends a pin.
    Unpin { name: Name, pinned: Pinned },
    /// How the owned checkpoints are.
    Report { reply: Reply<Vec<Report>> },
    /// How the connections are.
    Links { reply: Reply<Vec<LinkReport>> },
    /// Stop: tell all clients, close all connections, end the thread.
    Stop,
}

/// Why [`Command::Read`] failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No usable connection to the peer.
    #[error("no connection to the peer")]
    NotConnected,
    /// The transport refused or broke.
    #[error(transparent)]
    Work(#[from] crate::transport::WorkError),
}

/// How a connection ended that this node had opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    /// It had been of use.
    Proven,
    /// No request on it was ever done well.
    Unproven,
    /// Its transport cannot do what is wanted, in words.
    Unfit(String),
}

/// What the data plane tells the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what the variants' texts speak of")]
pub enum Notice {
    /// This holder should prepare a mirror of this checkpoint.
    NeedMirror { name: Name, holder: NodeId },
    /// The mirrors at these holders are complete and marked for this view, as those of this epoch's
    /// owner.
    Synced { name: Name, epoch: u64, holders: Vec<NodeId>, view: u64 },
    /// Nothing more is sent to this holder; when `confirmed` it may let its copy go.
    Released { name: Name, holder: NodeId, confirmed: bool },
    /// The connection that this node opened towards this peer ended.
    LinkDown { peer: NodeId, conn: ConnId, kind: Kind, end: LinkEnd },
    /// The holder refused a commit: this node is fenced for this checkpoint.
    Fenced { name: Name, holder: NodeId },
    /// The client wrote nonsense into its hand-over memory and was let go.
    Violation { name: Name, violation: Violation },
}

/// One owned checkpoint, as reported.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its name.
    pub name: Name,
    /// The newest version.
    pub version: Version,
    /// Its payload length in bytes.
    pub len: u64,
    /// All versions up to this one are mirrored.
    pub mirrored: Version,
    /// Its copies, the nearest first.
    pub copies: Vec<CopyReport>,
    /// How well it is protected.
    pub protection: Protection,
    /// A client is attached.
    pub attached: bool,
    /// How far those are that are being made.
    pub under_way: Vec<Progress>,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Who gets it.
    pub holder: NodeId,
    /// Bytes on their way or there.
    pub sent_bytes: u64,
    /// Bytes to be sent, as far as that is known.
    pub bytes: u64,
}

/// One connection, as reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The other end.
    pub peer: NodeId,
    /// The peer opened it and writes on it; else this node.
    pub incoming: bool,
    /// What it uses.
    pub kind: Option<Kind>,
    /// It can be used.
    pub up: bool,
}

impl Report {
    /// The copy of record that is furthest behind.
    pub fn slowest(&self) -> Option<&CopyReport> {
        self.copies.iter().filter(|c| c.of_record).min_by_key(|c| (c.state, c.version))
    }
}

/// One copy of an owned checkpoint, as reported.
#[derive(Debug, Clone)]
pub struct CopyReport {
    /// Who has it.
    pub holder: NodeId,
    /// The newest version that is complete there.
    pub version: Version,
    /// How the holder is reached at present.
    pub transport: Option<Kind>,
    /// Its completions count.
    pub of_record: bool,
    /// How it is, looked at alone.
    pub state: Protection,
}

/// How the thread waits.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// How long to look for work before going to sleep; `Duration::MAX` never sleeps.
    pub spin: Duration,
    /// The core to run on.
    pub cpu: Option<usize>,
    /// How long to collect versions that nobody waits for.
    pub pace: Duration,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { spin: pause::LOOK, cpu: None, pace: Duration::from_millis(5) }
    }
}

/// The control plane's handle.
#[derive(Debug)]
pub struct DataPlane {
    commands: SyncSender<Command>,
    alarm: Arc<OwnedFd>,
    thread: RefCell<Option<JoinHandle<()>>>,
}

/// The data plane's thread is gone: the server cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane has stopped")]
pub struct Stopped;

impl DataPlane {
    /// Starts the thread. `me` is this node, the transports become the thread's own.
    pub fn start(
        me: NodeId,
        transport: impl Into<Many>,
        waiting: Waiting,
    ) -> io::Result<(Self, mpsc::Receiver<Notice>)> {
        let alarm = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let (notices, outbox) = mpsc::channel(NOTICES_MAX);
        let channels = Channels { inbox, notices, backlog: VecDeque::new(), alarm: alarm.clone() };
        let mut engine = Engine::new(me, transport.into(), waiting, channels)?;
        let thread =
            std::thread::Builder::new().name("data-plane".into()).spawn(move || engine.run())?;
        Ok((Self { commands, alarm, thread: RefCell::new(Some(thread)) }, outbox))
    }

    /// Hands a command over and wakes the thread.
    pub fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        ring(&*self.alarm);
        Ok(())
    }

    /// Hands a command over and waits for its answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| Stopped)
    }

    /// Stops the thread and waits for its end.
    pub fn stop(&self) {
        // A thread that is gone already is as good as stopped.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.borrow_mut().take()
            && thread.join().is_err()
        {
            tracing::error!("the data plane ended by a panic");
        }
    }
}

/// The thread's ends of the channels.
struct Channels {
    inbox: Receiver<Command>,
    notices: mpsc::Sender<Notice>,
    /// Notices for which the channel had no room. Bounded by what was asked of this thread: each
    /// checkpoint has at most one open question of each kind.
    backlog: VecDeque<Notice>,
    alarm: Arc<OwnedFd>,
}

impl Channels {
    fn tell(&mut self, notice: Notice) {
        self.backlog.push_back(notice);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(notice) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(notice)) = self.notices.try_send(notice) {
                self.backlog.push_front(notice);
                return;
            }
        }
    }
}

impl Attachment {
    /// Tells the client where it stands.
    fn tell(&self, condition: Condition) {
        if self.consumer.set_condition(condition) {
            self.bell.ring();
        }
    }
}

/// Makes an eventfd readable. A full counter is readable already.
fn ring(eventfd: impl AsFd) {
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}
