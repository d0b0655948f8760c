//! One node in a ring of its own, whose memory and files fail when a test says so.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    node::MirrorId,
    open::{Attached, Wish},
    recover::Progress,
    store::{Meta, Owner},
    *,
};
use crate::{
    handover::Condition,
    membership::Event,
    protocol::{Failure, FailureKind},
    region::{Identity, Region, layout::Layout, mapping::Mapping},
    transport::{
        Access, ConnId, ConnectError, Kind, MemoryError, MemoryId, PostError, Purpose, RemoteKey,
        Terms, Transport, Work,
    },
};

/// A transport with nobody at its other end.
struct NoNetwork {
    refuses: Arc<AtomicBool>,
    /// While somebody has it, registering memory takes longer.
    gate: Arc<Mutex<()>>,
    made: AtomicU64,
}

impl Transport for NoNetwork {
    fn kind(&self) -> Kind {
        Kind::Fake
    }

    fn register(&mut self, _: Arc<Mapping>, _: Purpose) -> Result<MemoryId, MemoryError> {
        drop(self.gate.lock());
        if self.refuses.load(Ordering::Relaxed) {
            return Err(MemoryError::System(io::ErrorKind::OutOfMemory.into()));
        }
        Ok(MemoryId(self.made.fetch_add(1, Ordering::Relaxed)))
    }

    fn deregister(&mut self, _: MemoryId) -> Result<(), MemoryError> {
        Ok(())
    }

    fn offer(&mut self) -> Result<(ConnId, Vec<u8>), ConnectError> {
        Err(ConnectError::WrongState)
    }

    fn accept(&mut self, _: &[u8]) -> Result<(ConnId, Vec<u8>), ConnectError> {
        Err(ConnectError::WrongState)
    }

    fn finish(&mut self, _: ConnId, _: &[u8], _: SocketAddr) -> Result<(), ConnectError> {
        Err(ConnectError::WrongState)
    }

    fn close(&mut self, _: ConnId) {}

    fn grant(
        &mut self,
        _: ConnId,
        _: MemoryId,
        _: Access,
        _: Terms,
    ) -> Result<RemoteKey, MemoryError> {
        Err(MemoryError::NoConnection)
    }

    fn revoke(&mut self, _: RemoteKey) {}

    fn post_write(&mut self, _: Work<'_>) -> Result<(), PostError> {
        Err(PostError::NotConnected)
    }

    fn post_read(&mut self, _: Work<'_>) -> Result<(), PostError> {
        Err(PostError::NotConnected)
    }

    fn poll(&mut self, _: &mut Vec<crate::transport::Event>) -> bool {
        false
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

struct Alone {
    node: Rc<Node>,
    refuses: Arc<AtomicBool>,
    gate: Arc<Mutex<()>>,
    dir: PathBuf,
    _home: tempfile::TempDir,
}

impl Alone {
    fn start() -> Self {
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let (dir, boot) = (home.path().join("node"), BootId::current().unwrap());
        let places = Places::prepare(&dir, "").unwrap();
        let config = Config {
            name: Name::new("a").unwrap(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            join: Vec::new(),
            witness: false,
            zone: None,
            mirrors: 1,
            leave_timeout: Duration::ZERO,
            socket: home.path().join("sock"),
            dir: dir.clone(),
            memory_bytes: 64 << 20,
            waiting: Waiting::default(),
            membership: Timeouts::default(),
            metrics: None,
            key: None,
            transport: Policy::Auto,
            device: None,
        };
        let me = membership::member(&config, 1, SocketAddr::from(([127, 0, 0, 1], 1)));
        let refuses = Arc::new(AtomicBool::new(false));
        let (gate, made) = (Arc::new(Mutex::new(())), AtomicU64::new(0));
        let transport = NoNetwork { refuses: refuses.clone(), gate: gate.clone(), made };
        let (data_plane, _) = DataPlane::start(me.id.clone(), transport, config.waiting).unwrap();
        let (machine, cluster) = (
            Membership::found(config.membership, me.clone(), 1, membership::now()),
            Rc::new(Cell::new(0)),
        );
        let state = StateFile::open(&dir.join(STATE_FILE), boot).unwrap();
        let (peers, ..) = Peers::new(peers::Config {
            me: Peer::from(&me),
            cluster: cluster.clone(),
            key: None,
            data_magic: DATA_MAGIC,
        });
        let node = Node::new(Parts {
            negotiation: Negotiation::new(config.transport, [Kind::Fake]),
            config,
            me,
            data_plane,
            peers,
            store: Store::new(places),
            membership: Shell::new(machine, state, None, Vec::new()),
            cluster,
            lineage: Lineage::open(&dir, boot),
        });
        node.membership_event(Event::Tick);
        assert!(node.view().is_some(), "a ring of one");
        Self { node, refuses, gate, dir, _home: home }
    }

    /// From now on no transport takes memory, or it does again.
    fn refuse_memory(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    async fn open(&self, capacity: u64, take_over: bool) -> Result<Attached, Failure> {
        let uid = rustix::process::geteuid().as_raw();
        let caller = Owner { uid, gid: 0, mode: 0o600 };
        let wish =
            Wish { name: name(), layout: layout(capacity), caller, take_over, existing: false };
        self.node.open(wish).await
    }

    fn region(&self) -> Region {
        self.node.owned.borrow().get(&name()).expect("it is kept").region.clone()
    }

    /// Another node's mirror.
    async fn mirror(&self, name: Name) -> MirrorId {
        let stored = self.mirror_region(name.clone()).await;
        let Stored { meta, region, path } = self.node.describe_region(stored).await.unwrap();
        let id = (name, other(), 1);
        let mirror = Mirror { meta, region, path, memory: None, key: None, fenced: false };
        self.node.mirrors.borrow_mut().insert(id.clone(), mirror);
        id
    }

    /// What it lies in, not described yet.
    async fn mirror_region(&self, name: Name) -> Stored {
        let owner = Owner { uid: 0, gid: 0, mode: 0o600 };
        let (identity, layout) = (Identity { checkpoint: 1, generation: 1 }, layout(100));
        let held = Held::Mirror(other());
        let meta = Meta::new(name, identity, layout, 1, owner, held, Node::draw());
        self.node.make_region(meta).await.unwrap()
    }

    fn block_mirror(&self, id: &MirrorId) -> PathBuf {
        self.block_description(&self.node.mirrors.borrow()[id].meta)
    }

    /// No description of this region can be written, until what is returned is removed.
    fn block_description(&self, meta: &Meta) -> PathBuf {
        let path = self.dir.join(format!("{}.{:016x}.tmp", meta.name, meta.region));
        fs::create_dir(&path).unwrap();
        path
    }

    /// Files of regions, and their descriptions.
    fn files(&self) -> usize {
        let files = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let of_regions = |path: &PathBuf| {
            path.extension().is_some_and(|ext| ext == "region" || ext == "meta" || ext == "tmp")
        };
        files.filter(of_regions).count()
    }
}

fn name() -> Name {
    Name::new("state").unwrap()
}

fn layout(capacity: u64) -> Layout {
    Layout::new(capacity, 2).unwrap()
}

fn other() -> NodeId {
    NodeId { name: Name::new("b").unwrap(), incarnation: 1 }
}

/// Commits what a service would.
fn commit(region: &Region, version: u64) {
    region.write_payload(0, 0, b"state").unwrap();
    // SAFETY: the test is the region's only user.
    unsafe { region.rehash(0, crate::commit::Extent { start: 0, end: 5 }, 5) };
    // SAFETY: as above.
    unsafe { region.publish(0, 1, version, 5) };
}

fn run(test: impl AsyncFnOnce(&Alone)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let alone = Alone::start();
        test(&alone).await;
        alone.node.data_plane.stop();
    });
}

#[test]
fn what_no_transport_takes_is_kept_and_served_as_soon_as_one_does() {
    run(async |alone| {
        drop(alone.open(100, false).await.unwrap());
        commit(&alone.region(), 7);
        let (gone, condition) = (name(), Condition::Fenced);
        alone.node.disown(gone, condition).await.unwrap();
        alone.refuse_memory(true);
        let owned = alone.node.owned.borrow_mut().remove(&name()).unwrap();
        let refused = alone.node.serve(owned, 0).await.unwrap_err();
        assert!(refused.message.contains("registering memory"), "{refused}");
        assert!(alone.node.owns(&name()), "the name is not free");
        alone.node.look_after_leftovers().await;
        assert_eq!(alone.region().newest_valid().unwrap().record.sequence, 7);

        alone.refuse_memory(false);
        alone.node.look_after_leftovers().await;
        alone.open(100, false).await.unwrap();
        assert_eq!(alone.region().newest_valid().unwrap().record.sequence, 7);
    });
}

#[test]
fn a_new_region_that_no_transport_takes_is_not_put_in_place_of_the_old_one() {
    run(async |alone| {
        drop(alone.open(100, false).await.unwrap());
        commit(&alone.region(), 7);
        let (before, used) = (alone.files(), alone.node.memory_bytes.get());
        alone.refuse_memory(true);
        alone.open(100_000, true).await.map(drop).unwrap_err();
        alone.refuse_memory(false);
        assert_eq!((alone.files(), alone.node.memory_bytes.get()), (before, used));
        alone.node.look_after_leftovers().await;
        alone.open(100, true).await.unwrap();
        assert_eq!(alone.region().newest_valid().unwrap().record.sequence, 7);
        assert_eq!(alone.region().layout().capacity(), 100);
    });
}

#[test]
fn what_cannot_be_made_leaves_no_checkpoint_behind() {
    run(async |alone| {
        alone.refuse_memory(true);
        let refused = alone.open(100, false).await.map(drop).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Internal, "{refused}");
        assert!(!alone.node.owns(&name()));
        assert_eq!((alone.files(), alone.node.memory_bytes.get()), (0, 0));
    });
}

#[test]
fn news_of_a_former_ownership_does_not_count_for_the_next() {
    run(async |alone| {
        let node = &alone.node;
        drop(alone.open(100, false).await.unwrap());
        node.set_ended(&name(), &node.id()).unwrap();
        node.disown(name(), Condition::Fenced).await.unwrap();
        // The data plane said so before it heard of the eviction. Heard before this node goes on…
        let epoch = |node: &Node| node.owned.borrow()[&name()].meta.epoch;
        let of = epoch(node);
        let synced = |epoch| data_plane::Notice::Synced {
            name: name(),
            epoch,
            holders: Vec::new(),
            view: 1,
        };
        node.notice(synced(of));
        let mine = node.owned.borrow().get(&name()).unwrap().meta.clone();
        node.go_on_with(mine, 0).await.unwrap();
        assert!(node.owns(&name()));
        assert_eq!(node.synced_views.borrow().get(&name()), None);
        // … or after it.
        node.notice(synced(of));
        assert_eq!(node.synced_views.borrow().get(&name()), None);
        node.notice(synced(epoch(node)));
        assert_eq!(node.synced_views.borrow().get(&name()), Some(&1));
    });
}

#[test]
fn a_region_without_a_description_does_not_stay() {
    run(async |alone| {
        let stored = alone.mirror_region(name()).await;
        let blocked = alone.block_description(&stored.meta);
        alone.node.describe_region(stored).await.unwrap_err();
        fs::remove_dir(blocked).unwrap();
        assert_eq!((alone.files(), alone.node.memory_bytes.get()), (0, 0));
    });
}

#[test]
fn an_epoch_that_could_not_be_written_is_written_the_next_time() {
    run(async |alone| {
        let node = &alone.node;
        let id = alone.mirror(name()).await;
        let blocked = alone.block_mirror(&id);
        node.grant_mirror(&id, 2, 1).await.map(drop).unwrap_err();
        fs::remove_dir(blocked).unwrap();
        // Nobody is connected, so nothing is granted. What is granted is on disk by then.
        node.grant_mirror(&id, 2, 1).await.map(drop).unwrap_err();
        assert_eq!(node.store.load().unwrap()[0].meta.epoch, 2);
    });
}

#[test]
fn a_writer_goes_on_when_there_is_no_room_to_take_over_from_it() {
    run(async |alone| {
        let writer = alone.open(100, false).await.unwrap();
        let refused = alone.open(200 << 20, true).await.map(drop).unwrap_err();
        assert_eq!(refused.kind, FailureKind::NoSpace, "{refused}");
        let reports = alone.node.data_plane.ask(|reply| data_plane::Command::Report { reply });
        assert!(reports.await.unwrap()[0].attached);
        drop(writer);
    });
}

#[test]
fn one_that_cannot_be_adopted_holds_up_no_other() {
    run(async |alone| {
        let node = &alone.node;
        let names = ["first", "second"].map(|name| Name::new(name).unwrap());
        let first = alone.mirror(names[0].clone()).await;
        alone.mirror(names[1].clone()).await;
        let blocked = alone.block_mirror(&first);
        let mut progress = Progress::default();
        let mut adopt = async || {
            let at = node.me.borrow().clone();
            let homes = names.iter().map(|name| (name.clone(), at.clone())).collect();
            let view = node.view().unwrap().number;
            node.adopt_all(&other(), homes, view, &mut progress).await
        };
        assert!(adopt().await.is_err(), "it is tried again");
        assert!(!node.owns(&names[0]) && node.owns(&names[1]));
        fs::remove_dir(blocked).unwrap();
        assert!(adopt().await.is_ok());
        assert!(node.owns(&names[0]));
    });
}

#[test]
fn a_name_is_not_free_while_its_region_is_replaced() {
    run(async |alone| {
        drop(alone.open(100, false).await.unwrap());
        let closed = alone.gate.lock().unwrap();
        let look = async {
            while alone.node.owned.borrow().contains_key(&name()) {
                tokio::task::yield_now().await;
            }
            // The old one is taken out, and the new one is not served yet.
            assert!(!alone.node.located(&name()).is_empty());
            drop(closed);
        };
        let (opened, ()) = tokio::join!(alone.open(100_000, true), look);
        assert!(opened.is_ok());
    });
}
