//! What servers say to each other besides membership: requests and their answers.
//!
//! They travel over the authenticated peer connections, may be lost, and are answered at most once.
//! Every request can be repeated without harm.

use serde::{Deserialize, Serialize};

use super::store::Owner;
use crate::{
    commit::{Record, Version},
    membership::{Message, NodeId, Peer},
    name::Name,
    protocol::{Failure, Listed, Role, VerifiedCopy},
    region::{Identity, layout::Layout},
    transport::{Kind, RemoteKey},
};

/// One message between servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PeerMessage {
    /// For the membership state machine. The sender is named, because a node that was evicted
    /// votes on for its former life.
    Membership {
        /// Which life says it.
        from: Peer,
        /// What it says.
        message: Message,
    },
    /// Wants an answer with the same number.
    Request {
        /// Chosen by the asker.
        id: u64,
        /// What is asked.
        body: Request,
    },
    /// The answer.
    Reply {
        /// The request's number.
        id: u64,
        /// What is answered.
        body: Result<Reply, Failure>,
    },
}

/// What a server asks another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Open a data connection towards you.
    Link {
        /// Over which transport.
        kind: Kind,
        /// The transport's offer.
        offer: Vec<u8>,
    },
    /// Hold a mirror of this checkpoint, which I own.
    Prepare(Prepare),
    /// The mirrors of this checkpoint at `holders` are complete: older copies are superseded.
    Confirm {
        /// The checkpoint.
        name: Name,
        /// Whose region it is a copy of.
        identity: Identity,
        /// Ownership epoch.
        epoch: u64,
        /// Who has them.
        holders: Vec<NodeId>,
        /// The view for which they were synced.
        view: u64,
    },
    /// What do you have of this checkpoint?
    Locate {
        /// The checkpoint.
        name: Name,
    },
    /// Stop accepting this dead owner's writes, then say what you have of it (rule H5).
    Fence {
        /// The owner that left the ring.
        owner: NodeId,
        /// Which life of yours held its mirrors: the present one, or one whose memory you have.
        holder: NodeId,
        /// The view without it.
        view: u64,
    },
    /// Your mirror is the one to recover from: own the checkpoint from now on.
    Adopt {
        /// The dead owner.
        owner: NodeId,
        /// The checkpoint.
        name: Name,
        /// The view for which that was decided: its members are those to ask.
        view: u64,
    },
    /// I leave the ring: if your mirror of this checkpoint of mine is complete, it is yours now.
    Inherit {
        /// The checkpoint.
        name: Name,
        /// My ownership epoch.
        epoch: u64,
        /// The newest version.
        version: Version,
    },
    /// Let me own this checkpoint, and read its newest version.
    TakeOver {
        /// The checkpoint.
        name: Name,
        /// Also from a writer that is alive.
        force: bool,
        /// On whose behalf.
        caller: Owner,
    },
    /// I gave a checkpoint away whose mirror you hold.
    Given {
        /// The checkpoint.
        name: Name,
        /// Its id.
        checkpoint: u64,
        /// My ownership epoch.
        epoch: u64,
        /// Who has it next.
        to: NodeId,
    },
    /// Let me read a committed version.
    Fetch {
        /// The checkpoint.
        name: Name,
        /// This one and no other.
        version: Option<Version>,
        /// On whose behalf.
        caller: Owner,
    },
    /// I have read what [`Request::Fetch`] granted.
    Fetched {
        /// The grant's key.
        key: RemoteKey,
    },
    /// Remove a checkpoint that you own.
    Remove {
        /// The checkpoint.
        name: Name,
        /// On whose behalf.
        caller: Owner,
    },
    /// The checkpoint was removed: drop what you have of it, but for what you own.
    Drop {
        /// The checkpoint.
        name: Name,
        /// Its id.
        checkpoint: u64,
        /// On whose behalf.
        caller: Owner,
    },
    /// Check every checksum of your copy.
    Verify {
        /// The checkpoint.
        name: Name,
    },
    /// What do you own?
    List,
}

/// A mirror that is to be made ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    /// The checkpoint.
    pub name: Name,
    /// Whose region it is to mirror.
    pub identity: Identity,
    /// The region's measures.
    pub layout: Layout,
    /// Ownership epoch.
    pub epoch: u64,
    /// The owner's view.
    pub view: u64,
    /// Whose checkpoint it is.
    pub owner: Owner,
}

/// An answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// The transport's answer to an offer.
    Link {
        /// For the transport.
        answer: Vec<u8>,
    },
    /// No answer to an offer: another transport may do better.
    NoLink(NoLink),
    /// A mirror is ready.
    Prepared {
        /// The right to write it.
        key: RemoteKey,
        /// Names the memory: the same number as before means the same content.
        region: u64,
        /// The verified version in each slot, 0 where there is none.
        versions: Vec<Version>,
        /// Which of the two places takes the next sync mark.
        mark_to: usize,
    },
    /// What a node has of a checkpoint.
    Located(Vec<Copy>),
    /// The checkpoint has an owner again.
    Adopted {
        /// That one has all its copies.
        protected: bool,
    },
    /// What a fenced holder has of an owner's checkpoints.
    Fenced(Vec<FencedCopy>),
    /// What the life asked about owned when it ended.
    Kept {
        /// What is whole and whose turn it is.
        copies: Vec<FencedCopy>,
        /// That is all. Else there are copies that are damaged, or that were given to somebody who
        /// is not recovered.
        complete: bool,
    },
    /// The right to read a version.
    Granted(Grant),
    /// What was checked.
    Verified(Option<VerifiedCopy>),
    /// What a node owns.
    Listing(Vec<Listed>),
}

/// Why there is no answer to an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoLink {
    /// The answering node does not have this transport, or may not use it.
    NoTransport {
        /// What it does use, the best first.
        usable: Vec<Kind>,
    },
    /// The transport refused.
    Failed {
        /// One line.
        why: String,
    },
}

/// One copy that a node has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// In which way.
    pub standing: Standing,
    /// Which region.
    pub identity: Identity,
    /// Ownership epoch.
    pub epoch: u64,
    /// The newest version by its record.
    pub version: Version,
    /// The view for which the owner synced it, if it ever did; of an owned one: for which it has
    /// all its mirrors, if it has.
    pub synced: Option<u64>,
}

/// In which way a node has a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is about to make a new checkpoint of this name.
    Creating,
    /// It owns it.
    Owns(Role),
    /// It owned it until somebody took it over; kept until that one is mirrored.
    Superseded,
    /// It holds the mirror of this owner.
    Holds(NodeId),
}

/// A dead owner's checkpoint at a fenced holder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FencedCopy {
    /// The checkpoint.
    pub name: Name,
    /// The view of the sync mark.
    pub mark: Option<u64>,
    /// The newest version whose every checksum is right.
    pub version: Version,
    /// The ownership epoch of this copy.
    pub epoch: u64,
    /// This node took it up: it is that owner's no more.
    pub taken_up: bool,
    /// To whom that owner gave it.
    pub given_to: Option<NodeId>,
}

/// The right to read one version, and all that is needed to make a copy of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    /// The right.
    pub key: RemoteKey,
    /// The region's measures.
    pub layout: Layout,
    /// Whose region it is.
    pub identity: Identity,
    /// Ownership epoch.
    pub epoch: u64,
    /// The slot to read, and its record; `None` before the first commit.
    pub version: Option<(u32, Record)>,
    /// Whose checkpoint it is.
    pub owner: Owner,
}
