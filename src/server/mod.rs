//! The checkpoint server.
//!
//! Two threads: the [`data_plane`], which owns the transport and takes commits over from the
//! services, and the control plane, a single-threaded task set that does everything else: the local
//! socket, the connections to the other servers, membership, and the moves of checkpoints. Work
//! that blocks (making, verifying and copying regions) runs on threads of its own.

mod copies;
pub mod data_plane;
mod failures;
mod fenced;
mod fetch;
mod holders;
mod leave;
mod leftovers;
mod life;
mod lineage;
mod links;
mod local;
mod membership;
pub mod metrics;
mod mirrors;
mod negotiation;
mod node;
mod open;
pub mod peers;
mod recover;
mod requests;
pub mod rpc;
pub mod state_file;
mod status;
pub mod store;
mod suspicions;
mod take_over;
#[cfg(test)]
mod tests;
mod transports;

use std::{
    cell::Cell,
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

pub use self::negotiation::Policy;
use self::{
    data_plane::{DataPlane, Waiting},
    lineage::Lineage,
    membership::{Remembered, STATE_FILE, Shell},
    negotiation::Negotiation,
    node::{Mirror, Node, Owned, Parts},
    peers::Peers,
    state_file::{BootId, OpenStateError, StateFile},
    store::{Held, Store, Stored},
    transports::Opened,
};
use crate::{
    cluster_key::ClusterKey,
    membership::{Config as Timeouts, Member, Membership, NodeId, Peer},
    name::Name,
    region::{
        files::{Places, make_private_dir},
        sigbus,
    },
    transport::{many::Many, tcp::DATA_MAGIC},
};

/// Told to people whose large checkpoints lie in ordinary pages.
pub(crate) const HUGEPAGES_HINT: &str = "no room in huge pages: large checkpoints lie in ordinary memory; \
    `ringkeep doctor` shows the commands that give huge pages";

/// What a server runs with. Made from flags, environment and file by the command line.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub name: Name,
    /// Where other servers reach this one; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Servers of the ring to join; empty: found a ring.
    pub join: Vec<SocketAddr>,
    /// It votes and stores nothing; it needs a ring to join.
    pub witness: bool,
    /// What it shares a fate with.
    pub zone: Option<Name>,
    /// On how many predecessors its checkpoints have a copy.
    pub mirrors: u8,
    /// How long it may take to hand over what it holds before it stops; zero: it stops at once and
    /// stays a member.
    pub leave_timeout: Duration,
    /// The local socket.
    pub socket: PathBuf,
    /// The node's directory.
    pub dir: PathBuf,
    /// Most bytes of regions and mirrors.
    pub memory_bytes: u64,
    /// How the data plane waits.
    pub waiting: Waiting,
    /// Timeouts of the membership.
    pub membership: Timeouts,
    /// Where to serve metrics.
    pub metrics: Option<SocketAddr>,
    /// The ring's secret.
    pub key: Option<ClusterKey>,
    /// Which transports links may use.
    pub transport: Policy,
    /// The RDMA device; the first active one if none.
    pub device: Option<String>,
}

/// Why a server could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system refused something that is needed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Another server uses this directory.
    #[error("another server uses {dir}; stop it, or choose another --name or --dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The votes of the last life cannot be read or kept.
    #[error(transparent)]
    State(#[from] OpenStateError),
    /// RDMA alone is wanted, and there is none.
    #[error("{why}; {mend}, and --transport auto uses TCP where there is no RDMA")]
    NoRdma {
        /// What is missing.
        why: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// A witness has nobody to vote with.
    #[error(
        "a witness cannot begin a ring; give --join the addresses of the servers that it is to \
         vote with"
    )]
    WitnessAlone,
    /// The server had to end: the ring does not take this node in, or it cannot go on. In words.
    #[error("{0}")]
    Ended(String),
}

/// How old the numbers that the metrics show may be.
const METRICS_INTERVAL: Duration = Duration::from_secs(2);

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::System { what, source }
}

/// Runs a server until SIGTERM or SIGINT, which end it in order: clients are told, connections
/// closed, and everything in memory stays for the next start.
///
/// # Errors
/// What the server could not start without, or why the ring refused it.
pub fn run(config: Config) -> Result<(), ServeError> {
    sigbus::install().map_err(system("handling SIGBUS"))?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .map_err(system("starting the control plane"))?;
    LocalSet::new().block_on(&runtime, serve(config))
}

/// Each client takes four descriptors; what many systems begin with is enough for 250 of them.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(config: Config) -> Result<(), ServeError> {
    let Opened { transports, adopter } =
        transports::open(config.transport, config.device.as_deref(), config.listen.ip())?;
    let transports = Many::new(transports);
    let negotiation = Negotiation::new(config.transport, transports.kinds());
    let dir = &config.dir;
    make_private_dir(dir).map_err(system(format!("making {}", dir.display())))?;
    let _only_server = lock_dir(dir)?;
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let places = Places::prepare(dir, &mounts).map_err(system("preparing the region files"))?;
    if places.huge.is_none() && !places.joins_pages {
        tracing::warn!("{HUGEPAGES_HINT}");
    }
    let store = Store::new(places);

    // What an earlier life left.
    let boot = BootId::current().map_err(system("reading the boot id"))?;
    let mut state = StateFile::open(&dir.join(STATE_FILE), boot)?;
    let remembered: Option<Remembered> = state.load();
    let listener = listen(&config, remembered.as_ref()).map_err(system("listening for servers"))?;
    let address = listener.local_addr().map_err(system("listening for servers"))?;
    fs::write(dir.join("address"), address.to_string())
        .map_err(system("writing the address file"))?;

    let mut lineage = Lineage::open(dir, boot);
    // One that still joins has inherited already, and nothing of its own.
    let former = remembered.as_ref().and_then(Remembered::voter).cloned();
    let start = Start::new(&config, remembered, address)?;
    let me = start.machine.me().clone();
    let former = former.filter(|f| !start.resumed && f.name == me.id.name);
    if let Some(former) = &former {
        lineage.inherit(former.clone()).map_err(system("noting a new life"))?;
    }
    if let Some(joining) = &start.joining {
        state.store(joining).map_err(io::Error::other).map_err(system("noting a new life"))?;
    }
    let (data_plane, notices) = DataPlane::start(me.id.clone(), transports, config.waiting)
        .map_err(system("starting the data plane"))?;
    let cluster = Rc::new(Cell::new(0));
    let (peers, messages, events) = Peers::new(peers::Config {
        me: Peer::from(&me),
        cluster: cluster.clone(),
        key: config.key.clone(),
        data_magic: DATA_MAGIC,
    });
    let socket = local::listen(&config.socket)
        .map_err(system(format!("listening at {}", config.socket.display())))?;
    if let Some(address) = config.metrics {
        serve_metrics(address).await?;
    }
    let contacts = match &start.joining {
        Some(Remembered::Joining { contacts, .. }) => contacts.clone(),
        _ => config.join.clone(),
    };
    let old = membership::former_life(dir, boot, config.membership, &me.id)?;
    let membership = Shell::new(start.machine, state, old, contacts);
    let socket_path = config.socket.clone();
    let node = Node::new(Parts {
        config,
        me,
        data_plane,
        negotiation,
        peers: peers.clone(),
        store,
        membership,
        cluster,
        lineage,
    });
    node.load(start.resumed, former).await?;

    peers.serve(listener, move |socket| match &adopter {
        Some(adopter) if adopter.adopt(socket) => {}
        Some(_) => tracing::warn!("a data connection found no room"),
        None => tracing::debug!("closed a TCP data connection: --transport forbids TCP"),
    });
    tracing::info!(node = %node.id(), %address, socket = %socket_path.display(), "serving");
    println!("listening on {address}");
    tokio::task::spawn_local(node.clone().run_notices(notices));
    tokio::task::spawn_local(node.clone().run_messages(messages));
    tokio::task::spawn_local(node.clone().run_peer_events(events));
    tokio::task::spawn_local(node.clone().run_membership());
    tokio::task::spawn_local(node.clone().serve_clients(socket));
    tokio::task::spawn_local(node.clone().run_leftovers());
    if node.config.metrics.is_some() {
        tokio::task::spawn_local(node.clone().keep_metrics());
    }

    let mut terminate = signal(SignalKind::terminate()).map_err(system("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signals"))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.stop_wanted.notified() => {}
    }
    if !node.stopping.get() {
        tokio::select! {
            () = node.leave() => {}
            _ = terminate.recv() => tracing::warn!("told to stop twice: not leaving the ring"),
            _ = interrupt.recv() => tracing::warn!("told to stop twice: not leaving the ring"),
            () = node.stop_wanted.notified() => {}
        }
    }
    node.stopping.set(true);
    tracing::info!("stopping; what is in memory stays there for the next start");
    node.data_plane.stop();
    let _ = fs::remove_file(socket_path);
    match node.failure.borrow_mut().take() {
        Some(reason) => Err(ServeError::Ended(reason)),
        None => Ok(()),
    }
}

/// How this life of the node begins.
struct Start {
    machine: Membership,
    /// It is the same life as before: what it owned is still its own.
    resumed: bool,
    /// To be remembered before anybody hears of it.
    joining: Option<Remembered>,
}

impl Start {
    fn new(
        config: &Config,
        remembered: Option<Remembered>,
        address: SocketAddr,
    ) -> Result<Self, ServeError> {
        let (timeouts, now) = (config.membership, membership::now());
        // Another name or address is another member.
        let same = remembered.filter(|it| {
            let me = it.me();
            me.id.name == config.name && me.address == address
        });
        let incarnation = membership::new_incarnation();
        let mut me = membership::member(config, incarnation, address);
        // A node may stand in its own list, so that all can have the same one.
        let mut contacts = config.join.clone();
        let mut cluster = 0;
        match same {
            Some(Remembered::Voting(durable)) => {
                let view = durable.view.clone();
                let wanted = membership::member(config, durable.me.id.incarnation, address);
                let stored = (durable.me != wanted).then(|| durable.me.clone());
                match Membership::resume(timeouts, durable, now) {
                    Ok(machine) => {
                        if let Some(stored) = stored {
                            warn_of_stored(&stored);
                        }
                        return Ok(Self { machine, resumed: true, joining: None });
                    }
                    Err(error) => tracing::warn!(%error, "the last life is not resumed"),
                }
                // Who left a ring goes back to that one, also if it was the one that founded it.
                contacts.extend(view.everybody().map(|m| m.address));
                cluster = view.cluster;
            }
            Some(Remembered::Joining { me: asking, contacts: asked, cluster: its }) => {
                let wanted = membership::member(config, asking.id.incarnation, address);
                if asking == wanted {
                    me = asking;
                }
                contacts.extend(asked);
                cluster = its;
            }
            None => {}
        }
        contacts.retain(|contact| *contact != address);
        if contacts.is_empty() {
            if me.witness {
                return Err(ServeError::WitnessAlone);
            }
            let machine = Membership::found(timeouts, me, Node::draw().max(1), now);
            return Ok(Self { machine, resumed: false, joining: None });
        }
        let joining = Remembered::Joining { me: me.clone(), contacts: contacts.clone(), cluster };
        let machine = Membership::join(timeouts, me, contacts, now).expect_cluster(cluster);
        Ok(Self { machine, resumed: false, joining: Some(joining) })
    }
}

/// What the ring agreed on about a member is not changed by a restart.
fn warn_of_stored(stored: &Member) {
    tracing::warn!(
        witness = stored.witness,
        zone = stored.zone.as_ref().map_or("none", Name::as_str),
        mirrors = stored.mirrors,
        "the ring knows this node with these values, and they hold until it joins anew: what its \
         flags say now comes after that"
    );
}

impl Node {
    /// Finds the regions again that an earlier life of this server left.
    async fn load(
        self: &Rc<Self>,
        resumed: bool,
        former: Option<NodeId>,
    ) -> Result<(), ServeError> {
        let store = self.store.clone();
        let found = node::blocking(move || store.load()).await;
        for stored in found.map_err(system("reading the region files"))? {
            let Stored { mut meta, region, path } = stored;
            self.memory_bytes.set(self.memory_bytes.get() + meta.bytes);
            let (name, version) = (meta.name.clone(), region.newest_by_record());
            let version = version.map_or(0, |f| f.record.sequence);
            tracing::info!(checkpoint = %name, version, held = ?meta.held, "found again");
            if let Held::Mirror(owner) = &meta.held {
                let id = (name, owner.clone(), meta.identity.generation);
                let fenced = !resumed;
                let mirror = Mirror { meta, region, path, memory: None, key: None, fenced };
                self.mirrors.borrow_mut().insert(id, mirror);
                continue;
            }
            let known = self.owned.borrow().get(&name).map(|o| o.meta.epoch);
            if known.is_some_and(|epoch| epoch >= meta.epoch) {
                self.remove_region(meta, path, region).await;
                continue;
            }
            let older = self.owned.borrow_mut().remove(&name);
            if let Some(older) = older {
                self.remove_region(older.meta, older.path, older.region).await;
            }
            if !resumed && meta.ended.is_none() {
                meta.held = Held::Superseded; // until it turns out that nobody took it over
                meta.ended = former.as_ref().map(|life| life.incarnation);
                self.store.write_meta(&meta).map_err(system("noting a new life"))?;
            }
            let checked = region.clone();
            let damaged = node::blocking(move || damage(&checked)).await;
            if let Some(damage) = &damaged {
                tracing::error!(checkpoint = %name, %damage, "damaged; its mirror will be asked");
            }
            let held = meta.held.clone();
            let owned = Owned { damaged, ..Owned::new(Stored { meta, region, path }) };
            if held == Held::Superseded || owned.damaged.is_some() {
                self.owned.borrow_mut().insert(name, owned);
            } else if let Err(failure) = self.serve(owned, self.life.get()).await {
                tracing::error!(checkpoint = %name, %failure, "serving what was found");
            }
        }
        Ok(())
    }

    async fn run_notices(
        self: Rc<Self>,
        mut notices: tokio::sync::mpsc::Receiver<data_plane::Notice>,
    ) {
        while let Some(notice) = notices.recv().await {
            self.notice(notice);
        }
        if !self.stopping.get() {
            self.stop_because(data_plane::Stopped);
        }
    }

    async fn run_messages(
        self: Rc<Self>,
        mut messages: tokio::sync::mpsc::Receiver<peers::Incoming>,
    ) {
        while let Some(peers::Incoming { from, bytes }) = messages.recv().await {
            self.received(from, &bytes);
        }
    }

    /// Keeps the numbers that the metrics show up to date.
    async fn keep_metrics(self: Rc<Self>) {
        let mut interval = tokio::time::interval(METRICS_INTERVAL);
        loop {
            interval.tick().await;
            if self.status().await.is_err() {
                return; // the data plane is gone
            }
        }
    }

    async fn run_peer_events(
        self: Rc<Self>,
        mut events: tokio::sync::mpsc::Receiver<peers::Event>,
    ) {
        let mut told = HashSet::new();
        while let Some(event) = events.recv().await {
            match event {
                peers::Event::Refused(address) => self.refused(address),
                peers::Event::OtherLife { .. } => {}
                peers::Event::Rejected { address, why } => {
                    if told.insert(address) {
                        tracing::error!(%address, %why, "this server and that one cannot talk");
                    }
                }
            }
        }
    }
}

/// What is wrong with the newest version, if something is. A client that outlived the server may
/// be writing: what changes while it is looked at is not damaged.
fn damage(region: &crate::region::Region) -> Option<String> {
    loop {
        let found = region.newest_by_record()?;
        let damage = region.verify(found.slot).err()?;
        if region.newest_by_record() == Some(found) {
            return Some(damage.to_string());
        }
    }
}

/// One server a directory.
fn lock_dir(dir: &Path) -> Result<fs::File, ServeError> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).map_err(system(path.display().to_string()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(ServeError::InUse { dir: dir.to_owned() }),
    }
}

/// With port 0, the port of the last life is tried first: a restarted server is the same member.
fn listen(config: &Config, remembered: Option<&Remembered>) -> io::Result<TcpListener> {
    let last = remembered.map(|it| it.me().address).filter(|a| a.ip() == config.listen.ip());
    let bind = |address: SocketAddr| -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() {
            tokio::net::TcpSocket::new_v4()?
        } else {
            tokio::net::TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    match last.filter(|_| config.listen.port() == 0).map(bind) {
        Some(Ok(listener)) => Ok(listener),
        _ => bind(config.listen),
    }
}

async fn serve_metrics(address: SocketAddr) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(system(format!("serving metrics at {address}")))?;
    let handle = metrics::install().map_err(|e| system("metrics")(io::Error::other(e)))?;
    let address = listener.local_addr().map_err(system("serving metrics"))?;
    tracing::info!(%address, "serving metrics");
    metrics::serve(listener, handle);
    Ok(())
}
