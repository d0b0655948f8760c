//! The authenticated control connections between servers.
//!
//! One port serves control and data. Each side sends only on connections that it dialed itself,
//! and receives only on those that it accepted; a pair of servers that talk has two. Sending is
//! best effort: everything above tolerates loss, and per destination the order is kept.
//!
//! | file | what it does |
//! | --- | --- |
//! | `noise` | the handshake with the cluster key |
//! | `connection` | frames and messages after it |
//! | `outgoing` | one destination: its bounded queue, dialing, backing off |
//! | `listener` | the port: who is let in, what strangers may cost |
//!
//! Everything runs on one thread, in a [`tokio::task::LocalSet`].

mod connection;
mod error;
mod listener;
mod noise;
mod outgoing;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
    rc::Rc,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::error::LinkError;
use self::outgoing::Destination;
use crate::{
    cluster_key::ClusterKey,
    membership::{NodeId, Peer},
};

/// The first bytes of a control connection.
pub const CONTROL_MAGIC: [u8; 4] = *b"RKct";
/// The version of the control protocol. Servers of different versions do not talk.
pub const PROTOCOL_VERSION: u16 = 1;
/// Longest message in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Most messages that wait for one destination.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Most bytes that wait for one destination.
pub const QUEUE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Most accepted connections that have not shown the key.
pub const STRANGERS_MAX: usize = 256;
/// Most received messages that wait to be taken.
const INCOMING_MAX: usize = 64;
/// Most events that wait to be taken; more are lost, and come again while they are true.
const EVENTS_MAX: usize = 256;

/// What the connections need to know.
#[derive(Debug)]
pub struct Config {
    /// Who this server is and where it listens.
    pub me: Peer,
    /// The cluster this server believes in, zero while it knows none. The caller changes it.
    pub cluster: Rc<Cell<u64>>,
    /// What the servers share. Without it only loopback addresses are talked to.
    pub key: Option<ClusterKey>,
    /// The first bytes of data connections, not [`CONTROL_MAGIC`].
    pub data_magic: [u8; 4],
}

/// A message from a peer that holds the cluster key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Who says so.
    pub from: Peer,
    /// What it sent.
    pub bytes: Vec<u8>,
}

/// What dialing taught.
#[derive(Debug)]
pub enum Event {
    /// Nobody listens at this address. Comes again with each attempt.
    Refused(SocketAddr),
    /// Another life, or another node, answers where this peer should. Comes again likewise.
    OtherLife {
        /// Who should have answered.
        expected: NodeId,
        /// Who did.
        found: NodeId,
    },
    /// The two servers cannot talk as they are configured: see [`LinkError::is_refusal`].
    Rejected {
        /// Who was dialed.
        address: SocketAddr,
        /// Why not.
        why: LinkError,
    },
}

/// Numbers for reports and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Destinations that were used lately.
    pub destinations: usize,
    /// Messages that wait to be sent.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Messages dropped since the start: no room, too old, or nobody to give them to.
    pub dropped: u64,
}

/// The connections with all other servers. Clones are the same.
#[derive(Clone, Debug)]
pub struct Peers(Rc<Inner>);

type Key = (SocketAddr, Option<NodeId>);

struct Inner {
    me: watch::Sender<Peer>,
    cluster: Rc<Cell<u64>>,
    key: Option<ClusterKey>,
    data_magic: [u8; 4],
    incoming: mpsc::Sender<Incoming>,
    events: mpsc::Sender<Event>,
    destinations: RefCell<HashMap<Key, Rc<Destination>>>,
    dropped: Cell<u64>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &*self.me.borrow()).finish_non_exhaustive()
    }
}

impl Peers {
    /// No connection yet. The receivers give what peers send and what dialing teaches; a receiver
    /// of messages that does not keep up slows the peers down.
    pub fn new(config: Config) -> (Self, mpsc::Receiver<Incoming>, mpsc::Receiver<Event>) {
        let Config { me, cluster, key, data_magic } = config;
        let (incoming, messages) = mpsc::channel(INCOMING_MAX);
        let (events, told) = mpsc::channel(EVENTS_MAX);
        let (me, dropped) = (watch::Sender::new(me), Cell::new(0));
        let destinations = RefCell::default();
        let inner = Inner { me, cluster, key, data_magic, incoming, events, destinations, dropped };
        (Self(Rc::new(inner)), messages, told)
    }

    /// Sends to this life of this node, best effort. If another one answers at its address the
    /// message is dropped. Must be called inside a [`tokio::task::LocalSet`].
    pub fn send(&self, to: &Peer, bytes: Vec<u8>) {
        self.push((to.address, Some(to.id.clone())), bytes);
    }

    /// Sends to whoever listens there, best effort. Must be called inside a
    /// [`tokio::task::LocalSet`].
    pub fn contact(&self, address: SocketAddr, bytes: Vec<u8>) {
        self.push((address, None), bytes);
    }

    /// This server is another life of its node from now on: all connections are made anew.
    pub fn set_me(&self, me: Peer) {
        self.0.me.send_if_modified(|current| {
            let other = *current != me;
            *current = me;
            other
        });
    }

    /// Accepts connections until the returned task is aborted, which ends them too. `data` gets the
    /// non-blocking sockets that began with the data magic, these 4 bytes read. Must be called
    /// inside a [`tokio::task::LocalSet`].
    pub fn serve(
        &self,
        listener: TcpListener,
        data: impl Fn(std::net::TcpStream) + 'static,
    ) -> JoinHandle<()> {
        tokio::task::spawn_local(listener::run(self.0.clone(), listener, Rc::new(data)))
    }

    /// How much waits and how much was dropped.
    pub fn stats(&self) -> Stats {
        let destinations = self.0.destinations.borrow();
        let mut stats = Stats {
            destinations: destinations.len(),
            dropped: self.0.dropped.get(),
            ..Stats::default()
        };
        for destination in destinations.values() {
            let (messages, bytes) = destination.waiting();
            stats.queued += messages;
            stats.queued_bytes += bytes;
        }
        stats
    }

    fn push(&self, key: Key, bytes: Vec<u8>) {
        if bytes.len() > MESSAGE_BYTES_MAX {
            tracing::error!("a message of {} bytes to {} is too long", bytes.len(), key.0);
            return self.0.count_dropped(1);
        }
        let destination = match self.0.destinations.borrow_mut().entry(key) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(unknown) => {
                let (address, expects) = unknown.key().clone();
                let destination = Rc::new(Destination::new(address, expects));
                tokio::task::spawn_local(outgoing::run(self.0.clone(), destination.clone()));
                unknown.insert(destination).clone()
            }
        };
        self.0.count_dropped(destination.push(bytes));
    }
}

impl Inner {
    fn count_dropped(&self, messages: u64) {
        self.dropped.set(self.dropped.get() + messages);
    }

    fn tell(&self, event: Event) {
        // Nobody listening, or too slow to: it is a hint.
        let _ = self.events.try_send(event);
    }

    fn forget(&self, destination: &Destination) {
        let key = (destination.address, destination.expects.clone());
        self.destinations.borrow_mut().remove(&key);
    }
}
