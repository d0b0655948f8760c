//! The control plane's shared state: one thread, so no locks but those that order whole operations
//! on one checkpoint.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, Notify, OwnedMutexGuard, oneshot};

use super::{
    data_plane::{DataPlane, Stopped},
    failures::store_failure,
    lineage::Lineage,
    membership::Shell,
    negotiation::Negotiation,
    peers::Peers,
    rpc::{PeerMessage, Reply, Request},
    store::{Held, Meta, Store, Stored},
    suspicions::Lateness,
};
use crate::{
    membership::{Member, NodeId, Peer, View},
    name::Name,
    protocol::{Failure, FailureKind},
    region::Region,
    transport::{ConnId, MemoryId, RemoteKey},
};

/// How long a peer may take to answer.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// An unanswered question is asked again after this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(400);
/// Answers kept for being repeated.
const ANSWERS_MAX: usize = 256;
/// How long a peer may take for work that grows with a checkpoint's size.
pub(super) const LONG_CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A checkpoint that this node owns, or owned until somebody took it over.
pub(super) struct Owned {
    pub(super) meta: Meta,
    pub(super) region: Region,
    pub(super) path: PathBuf,
    /// None of an owned one: it is not served.
    pub(super) memory: Option<MemoryId>,
    /// Which attachment is the present one.
    pub(super) attachment: u64,
    /// The newest version was found damaged when the server started: it is not served until it is
    /// restored from its mirror.
    pub(super) damaged: Option<String>,
}

impl Owned {
    pub(super) fn new(stored: Stored) -> Self {
        let Stored { meta, region, path, .. } = stored;
        Self { meta, region, path, memory: None, attachment: 0, damaged: None }
    }
}

/// A mirror that this node holds.
pub(super) struct Mirror {
    pub(super) meta: Meta,
    pub(super) region: Region,
    pub(super) path: PathBuf,
    pub(super) memory: Option<MemoryId>,
    /// The owner's right to write it; gone once it is fenced.
    pub(super) key: Option<RemoteKey>,
    /// No writes of this owner are accepted any more.
    pub(super) fenced: bool,
}

/// Which mirror: a name can have several while it moves.
pub(super) type MirrorId = (Name, NodeId, u64);

/// A peer's question by its number, and the answer once there is one.
type Answered = ((NodeId, u64), Option<Result<Reply, Failure>>);

/// How a link towards a peer is.
pub(super) enum Link {
    Connecting {
        made: Rc<Notify>,
        /// A connection that ended meanwhile: perhaps the one that is being made.
        ended: Option<ConnId>,
    },
    Up(ConnId),
}

/// What everything on the control plane's thread shares.
pub(super) struct Node {
    pub(super) config: super::Config,
    pub(super) me: RefCell<Member>,
    pub(super) data_plane: DataPlane,
    pub(super) negotiation: RefCell<Negotiation>,
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) membership: RefCell<Shell>,
    pub(super) lateness: RefCell<Lateness>,
    pub(super) view: RefCell<Option<Arc<View>>>,
    /// Told whenever something changed that somebody may wait for.
    pub(super) changed: Notify,
    pub(super) owned: RefCell<BTreeMap<Name, Owned>>,
    pub(super) mirrors: RefCell<BTreeMap<MirrorId, Mirror>>,
    /// Per owned checkpoint, the view of its mirror's mark.
    pub(super) synced_views: RefCell<HashMap<Name, u64>>,
    pub(super) creating: RefCell<std::collections::HashSet<Name>>,
    /// Mirrors that holders are being asked for; true when one was lost again meanwhile.
    pub(super) preparing: RefCell<HashMap<(Name, NodeId), bool>>,
    pub(super) links: RefCell<HashMap<NodeId, Link>>,
    /// Rights to read that were given out, with what must be undone.
    pub(super) grants: RefCell<HashMap<u64, super::fetch::Granted>>,
    pub(super) recovering: RefCell<std::collections::HashSet<NodeId>>,
    /// Owners that left, all of whose checkpoints this node found homes for, be it that those have
    /// no second copy yet.
    pub(super) rehomed: RefCell<std::collections::HashSet<NodeId>>,
    /// Former lives of this node whose mirrors it still has.
    pub(super) lineage: RefCell<Lineage>,
    pub(super) memory_bytes: Cell<u64>,
    pub(super) warned: Cell<bool>,
    /// Counts the lives of this node in this process: an operation that began in one must not put
    /// an owner to work in the next.
    pub(super) life: Cell<u64>,
    pub(super) stopping: Cell<bool>,
    /// On its way out of the ring: takes on nothing new.
    pub(super) leaving: Cell<bool>,
    /// The server is to end.
    pub(super) stop_wanted: Notify,
    /// Why, if it is a failure.
    pub(super) failure: RefCell<Option<String>>,
    /// The membership's next deadline may have changed.
    pub(super) membership_moved: Notify,
    /// Which cluster this node belongs to; 0 while it knows none.
    pub(super) cluster: Rc<Cell<u64>>,
    pub(super) this: std::rc::Weak<Node>,
    calls: RefCell<HashMap<u64, oneshot::Sender<Result<Reply, Failure>>>>,
    last_call: Cell<u64>,
    answers: RefCell<VecDeque<Answered>>,
    locks: RefCell<HashMap<Name, Arc<Mutex<()>>>>,
}

/// Everything a [`Node`] is made of.
pub(super) struct Parts {
    pub(super) config: super::Config,
    pub(super) me: Member,
    pub(super) data_plane: DataPlane,
    pub(super) negotiation: Negotiation,
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) membership: Shell,
    pub(super) cluster: Rc<Cell<u64>>,
    pub(super) lineage: Lineage,
}

impl Node {
    pub(super) fn new(parts: Parts) -> Rc<Self> {
        let Parts {
            config,
            me,
            data_plane,
            negotiation,
            peers,
            store,
            membership,
            cluster,
            lineage,
        } = parts;
        Rc::new_cyclic(|this| Self {
            config,
            me: RefCell::new(me),
            data_plane,
            negotiation: RefCell::new(negotiation),
            peers,
            store,
            membership: RefCell::new(membership),
            lateness: RefCell::default(),
            view: RefCell::new(None),
            changed: Notify::new(),
            owned: RefCell::default(),
            mirrors: RefCell::default(),
            synced_views: RefCell::default(),
            creating: RefCell::default(),
            preparing: RefCell::default(),
            links: RefCell::default(),
            grants: RefCell::default(),
            recovering: RefCell::default(),
            rehomed: RefCell::default(),
            lineage: RefCell::new(lineage),
            memory_bytes: Cell::new(0),
            warned: Cell::new(false),
            life: Cell::new(0),
            stopping: Cell::new(false),
            leaving: Cell::new(false),
            stop_wanted: Notify::new(),
            failure: RefCell::default(),
            membership_moved: Notify::new(),
            cluster,
            this: this.clone(),
            calls: RefCell::default(),
            // A restarted server may be the same member: its questions must not look like old ones.
            last_call: Cell::new(Self::draw()),
            answers: RefCell::default(),
            locks: RefCell::default(),
        })
    }

    pub(super) fn id(&self) -> NodeId {
        self.me.borrow().id.clone()
    }

    /// This node votes and stores nothing.
    pub(super) fn is_witness(&self) -> bool {
        self.me.borrow().witness
    }

    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    /// The other members of the ring.
    pub(super) fn others(&self) -> Vec<Member> {
        let me = self.id();
        let view = self.view();
        let ring = view.iter().flat_map(|v| &v.ring);
        ring.filter(|m| m.id != me).cloned().collect()
    }

    /// Orders whole operations on one checkpoint on this node.
    pub(super) async fn lock(&self, name: &Name) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            if locks.len() > 4096 {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            locks.entry(name.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Tells whoever asks meanwhile that a checkpoint of this name is about to be here. Of two that
    /// are about to have it each says so before it asks the other (rule C1).
    pub(super) async fn while_creating<T>(&self, name: &Name, work: impl Future<Output = T>) -> T {
        self.creating.borrow_mut().insert(name.clone());
        let done = work.await;
        self.creating.borrow_mut().remove(name);
        done
    }

    // Peers.

    pub(super) fn tell(&self, to: &Peer, message: &PeerMessage) {
        match postcard::to_stdvec(message) {
            Ok(bytes) => self.peers.send(to, bytes),
            Err(error) => tracing::error!(%error, "encoding a message"),
        }
    }

    pub(super) fn contact(&self, address: SocketAddr, message: &PeerMessage) {
        match postcard::to_stdvec(message) {
            Ok(bytes) => self.peers.contact(address, bytes),
            Err(error) => tracing::error!(%error, "encoding a message"),
        }
    }

    /// Asks a member and waits for its answer. A question or answer that was lost with a
    /// connection is sent again; the member does each thing that it is asked once.
    pub(super) async fn call(
        &self,
        to: &Member,
        body: Request,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let id = self.last_call.get().wrapping_add(1).max(1);
        self.last_call.set(id);
        let (reply, mut answer) = oneshot::channel();
        self.calls.borrow_mut().insert(id, reply);
        let (peer, message) = (Peer::from(to), PeerMessage::Request { id, body });
        let deadline = tokio::time::Instant::now() + timeout;
        let answer = loop {
            self.tell(&peer, &message);
            if let Ok(answer) = tokio::time::timeout(ASK_AGAIN_AFTER, &mut answer).await {
                break answer.ok();
            }
            let gone = self.view().is_none_or(|view| view.member(&to.id).is_none());
            if gone || tokio::time::Instant::now() >= deadline {
                break None;
            }
        };
        self.calls.borrow_mut().remove(&id);
        answer.unwrap_or_else(|| {
            Err(Failure::new(
                FailureKind::Unavailable,
                format!("node {} does not answer; see `ringkeep status`", to.id.name),
            ))
        })
    }

    /// Does what a peer asks, once, and answers. A question that is being worked on is not begun
    /// again; the answer to one that is done is repeated.
    pub(super) async fn answer(self: Rc<Self>, from: Peer, id: u64, body: Request) {
        if id == 0 {
            // Nobody waits for an answer.
            let _ = self.request(&from, body).await;
            return;
        }
        let question = (from.id.clone(), id);
        let known = self.answers.borrow().iter().find(|(q, _)| *q == question).cloned();
        match known {
            Some((_, None)) => return,
            Some((_, Some(body))) => return self.tell(&from, &PeerMessage::Reply { id, body }),
            None => {}
        }
        self.answers.borrow_mut().push_back((question.clone(), None));
        let body = self.request(&from, body).await;
        {
            let mut answers = self.answers.borrow_mut();
            if let Some(known) = answers.iter_mut().find(|(q, _)| *q == question) {
                known.1 = Some(body.clone());
            }
            // The oldest that is done goes; what is being worked on stays.
            if answers.len() > ANSWERS_MAX
                && let Some(done) = answers.iter().position(|(_, answer)| answer.is_some())
            {
                answers.remove(done);
            }
        }
        self.tell(&from, &PeerMessage::Reply { id, body });
    }

    /// Asks a member and does not wait; an answer is not looked at.
    pub(super) fn cast(&self, to: &Member, body: Request) {
        self.tell(&Peer::from(to), &PeerMessage::Request { id: 0, body });
    }

    pub(super) fn answered(&self, id: u64, body: Result<Reply, Failure>) {
        if let Some(reply) = self.calls.borrow_mut().remove(&id) {
            // Whoever asked may have given up.
            let _ = reply.send(body);
        }
    }

    // Memory.

    /// Makes an empty region within this server's memory limit, apart from this thread. Whoever fills it
    /// describes it then.
    pub(super) async fn make_region(&self, meta: Meta) -> Result<Stored, Failure> {
        let bytes = meta.layout.region_bytes();
        let used = self.memory_bytes.get();
        let limit = self.config.memory_bytes;
        if bytes > limit.saturating_sub(used) {
            return Err(Failure::new(
                FailureKind::NoSpace,
                format!(
                    "no space: {bytes} bytes are wanted and {} of the server's {limit} are free; \
                     remove checkpoints or start the server with a larger --memory",
                    limit.saturating_sub(used)
                ),
            ));
        }
        // Counted before it is made, so that two requests cannot both fit into the same room.
        self.memory_bytes.set(used + bytes);
        let store = self.store.clone();
        match blocking(move || store.create(meta)).await {
            Ok(stored) => {
                self.memory_bytes.set(self.memory_bytes.get() - bytes + stored.meta.bytes);
                Ok(stored)
            }
            Err(error) => {
                self.memory_bytes.set(self.memory_bytes.get() - bytes);
                Err(store_failure(&error))
            }
        }
    }

    /// Fills a new region with another one's version, if there is one. On error the new one is gone.
    pub(super) async fn fill_region(
        &self,
        stored: Stored,
        from: Region,
        slot: Option<usize>,
    ) -> Result<Stored, Failure> {
        let (store, bytes) = (self.store.clone(), stored.meta.bytes);
        blocking(move || store.fill(stored, &from, slot)).await.map_err(|error| {
            self.memory_bytes.set(self.memory_bytes.get().saturating_sub(bytes));
            store_failure(&error)
        })
    }

    /// Writes a filled region's description, so that a restart finds it. On error the region is gone.
    pub(super) async fn describe_region(&self, stored: Stored) -> Result<Stored, Failure> {
        let Err(error) = self.store.write_meta(&stored.meta) else { return Ok(stored) };
        let why = format!("writing the description of {}: {error}", stored.meta.name);
        self.remove_region(stored.meta, stored.path, stored.region).await;
        Err(Failure::new(FailureKind::Internal, why))
    }

    /// Removes a region's files. Giving a gigabyte back takes the system longer than a neighbour
    /// should wait for a heartbeat, so the mapping goes apart from this thread, too.
    pub(super) async fn remove_region(&self, meta: Meta, path: PathBuf, region: Region) {
        self.memory_bytes.set(self.memory_bytes.get().saturating_sub(meta.bytes));
        let store = self.store.clone();
        blocking(move || {
            store.remove(&meta, &path);
            drop(region);
        })
        .await;
        self.changed.notify_waiters();
    }

    /// Changes how this node has an owned checkpoint, on disk first. Nothing changed on error.
    pub(super) fn set_held(
        &self,
        name: &Name,
        held: Held,
        successor: Option<NodeId>,
    ) -> Result<(), Failure> {
        self.change_meta(name, |meta| {
            (meta.held, meta.successor, meta.ended) = (held, successor, None);
        })
    }

    fn change_meta(&self, name: &Name, change: impl FnOnce(&mut Meta)) -> Result<(), Failure> {
        if let Some(owned) = self.owned.borrow_mut().get_mut(name) {
            let mut meta = owned.meta.clone();
            change(&mut meta);
            self.store.write_meta(&meta).map_err(|error| {
                let why = format!("writing the description of {name}: {error}");
                Failure::new(FailureKind::Internal, why)
            })?;
            owned.meta = meta;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// The life of this node that owned everything here has ended: each checkpoint belongs to
    /// whoever recovers it.
    pub(super) fn set_ended(&self, name: &Name, life: &NodeId) -> Result<(), Failure> {
        self.change_meta(name, |meta| {
            meta.held = Held::Superseded;
            meta.ended.get_or_insert(life.incarnation);
        })
    }

    /// A random number that names new memory or a new checkpoint.
    pub(super) fn draw() -> u64 {
        let mut bytes = [0; 8];
        match getrandom::fill(&mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            // Without the system's generator: unique on this machine, which is what is needed.
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |t| t.as_nanos() as u64),
        }
    }
}

/// Runs something that blocks apart from the control plane's thread.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Self::new(FailureKind::Unavailable, stopped.to_string())
    }
}
