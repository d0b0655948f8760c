//! What members say to each other, over connections that are authenticated.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Change, Member, NodeId, View,
    ballot::{Ballot, Promise},
};

/// Who a message comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Which life of which node.
    pub id: NodeId,
    /// Where its server listens.
    pub address: SocketAddr,
}

impl From<&Member> for Peer {
    fn from(member: &Member) -> Self {
        Self { id: member.id.clone(), address: member.address }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The sender's cluster; zero while it knows none.
    pub cluster: u64,
    /// The number of the sender's installed view; zero while it has none.
    pub view: u64,
    /// Whom it is for; none on first contact. A node that restarted ignores what was meant for its
    /// life before.
    pub to: Option<NodeId>,
    /// What it says.
    pub body: Body,
}

/// What a message says. All ballots are about the view after the sender's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// One-round ballot: vote for this change of the view, which the sender voted for.
    Propose(Arc<Change>),
    /// I voted for your proposal.
    Ack,
    /// I cannot.
    Nack(Refusal),
    /// This change of the sender's last view was decided: for those who have that view.
    Decided(Arc<Change>),
    /// This view was decided: for everybody else.
    Install(Arc<View>),
    /// Second ballot, first step.
    Prepare(Ballot),
    /// I follow no older ballot from now on, and this is how I voted.
    Promise(Ballot, Promise),
    /// Second ballot, second step.
    Accept(Ballot, Arc<Change>),
    /// I voted for that ballot's value.
    Accepted(Ballot),
    /// Take this node in.
    Join {
        /// The joiner.
        member: Member,
        /// True when a member passes it on; it is not passed on again.
        forwarded: bool,
    },
    /// The joiner cannot be taken in.
    JoinRefused(JoinRefusal),
    /// A member wants to go, or to stay after all.
    Leave {
        /// Who.
        member: NodeId,
        /// Which step.
        step: Departure,
        /// True when a member passes it on; it is not passed on again.
        forwarded: bool,
    },
    /// I live.
    Heartbeat(Beat),
}

/// A member goes in two views: in the first it stays a member but is nobody's predecessor any more,
/// so that what it holds is copied elsewhere while it still answers for it; in the second it is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Departure {
    /// Take this member out of its duties. (A witness has none, and is out at once.)
    Begin,
    /// Nobody counts on what it holds any more: let it go.
    Finish,
    /// It stays after all.
    Cancel,
}

/// Why a voter does not follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// It voted for another value, or the proposal takes it out.
    OtherVote,
    /// It promised this ballot.
    Promised(Ballot),
}

/// Why a node is not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
pub enum JoinRefusal {
    /// The joiner belongs to another cluster.
    #[error("this is cluster {existing:016x}, the joiner belongs to {joiner:016x}")]
    WrongCluster {
        /// The ring's cluster.
        existing: u64,
        /// What the joiner said.
        joiner: u64,
    },
    /// Another live node has this name.
    #[error("the name is in use by the live member {existing} at {address}; choose another --name")]
    NameInUse {
        /// The member of that name.
        existing: NodeId,
        /// Its address.
        address: SocketAddr,
    },
    /// A later life of the same node is a member.
    #[error("{existing}, a later life of this node, is a member already")]
    Outlived {
        /// The later life.
        existing: NodeId,
    },
    /// The ring is at its limit.
    #[error("the ring cannot grow further")]
    Full,
}

/// The body of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Beat {
    /// Grows with each beat of one node; older beats do not overrule newer ones.
    pub counter: u64,
    /// Whom the sender does not hear.
    pub suspects: Vec<NodeId>,
    /// Which owners' mirrors are complete, as far as that is news.
    pub confirmations: Vec<Confirmation>,
    /// Which owners that left have found new homes for all their checkpoints.
    pub settled: Vec<NodeId>,
}

/// An owner's predecessors of one view hold its whole mirror.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Confirmation {
    /// Whose mirror.
    pub owner: NodeId,
    /// The view for which it was synced.
    pub view: u64,
}
