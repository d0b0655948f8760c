//! What clients and their local server say to each other over the Unix socket.
//!
//! Each message is a 4-byte little-endian length and that many bytes of JSON, at most
//! [`MESSAGE_BYTES_MAX`]. Descriptors travel beside a message as `SCM_RIGHTS`. JSON, because this
//! path is not hot and client and server may be of different versions.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    commit::Version,
    name::Name,
    region::{Identity, layout::Layout},
    transport,
};

/// Longest message in bytes: a listing of a few ten thousand checkpoints.
pub const MESSAGE_BYTES_MAX: u32 = 16 << 20;
/// Longest request in bytes.
pub const REQUEST_BYTES_MAX: u32 = 64 << 10;

/// From a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Attach to a checkpoint for writing; make it if there is none. Answered by
    /// [`Response::Opened`] with three descriptors: region, hand-over, bell.
    Open {
        /// The checkpoint.
        name: Name,
        /// Largest payload in bytes.
        capacity: u64,
        /// Number of slots for a new region.
        slots: u32,
        /// Permission bits of a new checkpoint, as of a file.
        mode: u32,
        /// Take the checkpoint over from a writer that is alive.
        take_over: bool,
        /// Do not make one; `no such checkpoint` instead.
        existing: bool,
    },
    /// Attach again after the server restarted. The region's descriptor travels with it: it proves
    /// that the client is still the writer.
    Reattach {
        /// The checkpoint.
        name: Name,
        /// The ownership epoch under which the client wrote.
        epoch: u64,
    },
    /// A copy of a committed version, from whichever node has it. Answered by
    /// [`Response::Fetched`] with one descriptor.
    Get {
        /// The checkpoint.
        name: Name,
        /// This version and no other.
        version: Option<Version>,
        /// Where nobody can tell which one is the newest: the newest that anybody shows.
        #[serde(default)]
        maybe_stale: bool,
    },
    /// The checkpoints of the ring.
    List,
    /// This server and its ring.
    Status,
    /// Check every checksum of one checkpoint or of all that this node holds.
    Verify {
        /// Only this one.
        name: Option<Name>,
    },
    /// Remove a checkpoint and its mirror.
    Remove {
        /// The checkpoint.
        name: Name,
        /// Where nobody owns it: remove what is left of it.
        #[serde(default)]
        leftovers: bool,
    },
}

/// From the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// Attached.
    Opened(Opened),
    /// A copy of a version: in the descriptor's first `len` bytes.
    Fetched {
        /// The version.
        version: Version,
        /// Bytes.
        len: u64,
        /// A newer one may have been acknowledged.
        #[serde(default)]
        maybe_stale: bool,
    },
    /// The ring's checkpoints.
    Listing {
        /// One entry a checkpoint, by name.
        checkpoints: Vec<Listed>,
    },
    /// This server.
    Status(Box<Status>),
    /// What was checked.
    Verified {
        /// One entry a copy.
        copies: Vec<VerifiedCopy>,
    },
    /// Removed.
    Removed,
    /// It did not work; nothing changed unless the text says so.
    Failed(Failure),
}

/// The terms of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The region's measures.
    pub layout: Layout,
    /// Whose region it is.
    pub identity: Identity,
    /// Ownership epoch under which the client writes.
    pub epoch: u64,
    /// Bytes of the region's file.
    pub bytes: u64,
    /// The ring has a node for the second copy.
    pub mirrored: bool,
    /// Said by the server for the person: huge pages missing, for example.
    pub warning: Option<String>,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No checkpoint of this name, or not this version of it.
    NoSuchCheckpoint,
    /// Another node's service owns it, or another process has it open.
    OwnedElsewhere,
    /// Somebody took it over.
    Fenced,
    /// No room.
    NoSpace,
    /// The checksums do not match.
    Corrupt,
    /// A node that would have to be asked cannot be.
    Unavailable,
    /// The caller may not.
    Permission,
    /// The request cannot be understood or makes no sense.
    Invalid,
    /// Something that should not happen.
    Internal,
}

/// Why a request failed, in words that tell a person what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// One line.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// A checkpoint in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// The node that owns it.
    pub owner: Name,
    /// The newest committed version.
    pub version: Version,
    /// Its payload length in bytes.
    pub bytes: u64,
    /// The node that has the mirror.
    pub mirror: Option<Name>,
    /// How the mirror is.
    pub state: CopyState,
}

/// How a second copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// It has the newest version.
    InSync,
    /// The newest version is on its way.
    Lagging,
    /// It is being made.
    Syncing,
    /// There is none.
    None,
    /// Its owner is gone and it is being taken over.
    Orphan,
    /// Its checksums do not match.
    Corrupt,
}

impl std::fmt::Display for CopyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::InSync => "in-sync",
            Self::Lagging => "lagging",
            Self::Syncing => "syncing",
            Self::None => "none",
            Self::Orphan => "orphan",
            Self::Corrupt => "corrupt",
        })
    }
}

/// Whether everything is on two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingState {
    /// Every checkpoint that this node owns or holds has two live copies.
    Protected,
    /// At least one has not.
    Degraded,
}

/// One server and its ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: Name,
    /// Which life of it.
    pub incarnation: u64,
    /// It votes and stores nothing.
    #[serde(default)]
    pub witness: bool,
    /// What it shares a fate with.
    #[serde(default)]
    pub zone: Option<Name>,
    /// On how many predecessors its checkpoints are to have a copy.
    #[serde(default = "one")]
    pub mirrors_wanted: u8,
    /// The best transport that it has and may use; each mirror has its own.
    pub transport: transport::Kind,
    /// Large regions lie in huge pages.
    pub hugepages: bool,
    /// The installed view; absent while joining.
    pub view: Option<StatusView>,
    /// Holds this node's mirrors.
    pub predecessor: Option<Name>,
    /// Where other servers reach that one.
    #[serde(default)]
    pub predecessor_address: Option<SocketAddr>,
    /// Whose mirrors this node holds.
    pub successor: Option<Name>,
    /// Whether everything is on two nodes.
    pub state: RingState,
    /// Data connections with other nodes: those that are there, and those that are wanted.
    #[serde(default)]
    pub links: Vec<LinkStatus>,
    /// What this node owns.
    pub checkpoints: Vec<OwnedStatus>,
    /// What this node holds for others.
    pub mirrors: Vec<MirrorStatus>,
    /// Bytes of regions and mirrors.
    pub memory_bytes: u64,
    /// The largest that they may become.
    pub memory_bytes_max: u64,
    /// Members that do not answer at present.
    pub suspects: Vec<Name>,
}

/// A view in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// Its number.
    pub number: u64,
    /// The ring in its order.
    pub members: Vec<Name>,
    /// Who decides the next one.
    pub voters: Vec<Name>,
    /// Those of the voters that store nothing.
    #[serde(default)]
    pub witnesses: Vec<Name>,
    /// Members that are on their way out of the ring.
    #[serde(default)]
    pub leaving: Vec<Name>,
    /// The zones of those that have one.
    #[serde(default)]
    pub zones: BTreeMap<Name, Name>,
}

fn one() -> u8 {
    1
}

/// A data connection in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The node at the other end.
    pub node: Name,
    /// Which way bytes are written.
    pub direction: Direction,
    /// What it uses; absent while it is not there.
    pub transport: Option<transport::Kind>,
    /// How it is.
    pub state: LinkState,
}

/// Which way bytes are written on a data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From this node into the other one's memory.
    To,
    /// From the other node into this one's memory.
    From,
}

/// How a data connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Bytes can be written.
    Up,
    /// It is being made.
    Connecting,
    /// It is wanted, and it is not there.
    Down,
}

impl std::fmt::Display for LinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Connecting => "connecting",
            Self::Down => "down",
        })
    }
}

/// An owned checkpoint in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedStatus {
    /// Its name.
    pub name: Name,
    /// `owner`, or `orphan` when it was taken over from a dead node and nobody has opened it yet.
    pub role: Role,
    /// The newest committed version.
    pub version: Version,
    /// Its payload length in bytes.
    pub bytes: u64,
    /// A service has it open.
    pub attached: bool,
    /// Ownership epoch.
    pub epoch: u64,
    /// The second copy; with several mirrors the one that is furthest behind.
    pub mirror: Option<MirrorOf>,
    /// Copies that are being made.
    #[serde(default)]
    pub syncing: Vec<SyncStatus>,
    /// With several mirrors all of them, the nearest first, also those that are being made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<MirrorOf>,
}

/// A copy that is being made, in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// The node that gets it.
    pub node: Name,
    /// Bytes that are on their way or there. Over RDMA a copy counts when it is there.
    pub sent_bytes: u64,
    /// Bytes that are to be sent.
    pub bytes: u64,
}

/// In which way a node has a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its service writes here.
    Owner,
    /// Taken over from a dead node; whoever opens it next owns it.
    Orphan,
    /// The second copy.
    Mirror,
}

/// Where an owned checkpoint's second copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorOf {
    /// The node.
    pub node: Name,
    /// The newest version that is known to be there.
    pub version: Version,
    /// How it is.
    pub state: CopyState,
    /// How it is reached; absent while the link to it is down.
    pub transport: Option<transport::Kind>,
}

/// A mirror in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// The checkpoint.
    pub name: Name,
    /// Whose it is.
    pub owner: Name,
    /// The newest version in it.
    pub version: Version,
    /// How it is.
    pub state: CopyState,
}

/// One copy that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedCopy {
    /// The checkpoint.
    pub name: Name,
    /// The node that has this copy.
    pub node: Name,
    /// Its role there.
    pub role: Role,
    /// The newest version whose every checksum is right; 0: none.
    pub version: Version,
    /// Its payload length in bytes.
    pub bytes: u64,
    /// What is wrong, if something is.
    pub damage: Option<String>,
}
