//! What servers ask each other.

use ringkeep::{commit::Version, membership::NodeId, name::Name, transport::RemoteKey};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Perhaps later.
    Unavailable,
    /// Not any more.
    Fenced,
}

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Link { offer: Vec<u8> },
    Prepare { name: Name, checkpoint: u64, epoch: u64, view: u64 },
    Confirm { name: Name, checkpoint: u64, epoch: u64, holders: Vec<NodeId>, view: u64 },
    Locate { name: Name },
    Fence { owner: NodeId, holder: NodeId, view: u64 },
    Adopt { owner: NodeId, name: Name, view: u64 },
    Inherit { name: Name, epoch: u64, version: Version },
    TakeOver { name: Name },
    Given { name: Name, checkpoint: u64, epoch: u64, to: NodeId },
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Done,
    Link { answer: Vec<u8> },
    Prepared { key: RemoteKey, region: u64, versions: Vec<Version>, mark_to: usize },
    Located(Vec<Copy>),
    Fenced(Vec<FencedCopy>),
    Kept { copies: Vec<FencedCopy>, complete: bool },
    Adopted { protected: bool },
    Granted { key: RemoteKey, checkpoint: u64, epoch: u64, newest: Option<(usize, Version)> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Owns,
    Superseded,
    Creating,
    Holds(NodeId),
}

#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) standing: Standing,
    pub(crate) checkpoint: u64,
    pub(crate) epoch: u64,
    /// The view for which the owner synced it, if it ever did; of an owned one: for which it has
    /// all its mirrors, if it has.
    pub(crate) synced: Option<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct FencedCopy {
    pub(crate) name: Name,
    pub(crate) mark: Option<u64>,
    pub(crate) version: Version,
    pub(crate) epoch: u64,
    /// This node took it up: it is that owner's no more.
    pub(crate) taken_up: bool,
    /// To whom that owner gave it.
    pub(crate) given_to: Option<NodeId>,
}
