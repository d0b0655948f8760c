//! Nodes, members and views.

use std::{fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Change, DEPARTED_MAX, MEMBERS_MAX, MIRRORS_MAX, OWNERS_MAX, OwnerHolders, holders::RUNS_MAX,
};
use crate::name::Name;

/// One life of a node. A node that restarted without its memory is another `NodeId` with the same
/// name and a higher incarnation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The node's name, unique in the cluster.
    pub name: Name,
    /// Which life of the node. Must grow with every start that does not resume a [`super::Durable`].
    pub incarnation: u64,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Who it is.
    pub id: NodeId,
    /// Where its server listens.
    pub address: SocketAddr,
    /// True for a node that votes and stores nothing: it is never in the ring.
    pub witness: bool,
    /// What it shares a fate with, such as a rack.
    pub zone: Option<Name>,
    /// On how many predecessors it keeps a copy of what it owns, 1 to [`MIRRORS_MAX`].
    pub mirrors: u8,
}

impl Member {
    /// Whether a ring can have this member: a witness is asked for nothing.
    pub(super) fn is_possible(&self) -> bool {
        self.witness || (1..=MIRRORS_MAX).contains(&self.mirrors)
    }
}

/// What the voters of the view before agreed on: everything that all members see alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Which cluster. Never zero.
    pub cluster: u64,
    /// The first view is number 1.
    pub number: u64,
    /// The directed circle: each member's predecessor stands before it, the first one's is the last.
    pub ring: Vec<Member>,
    /// Ring members that are on their way out, sorted. They are members in everything, but nobody's
    /// predecessor: what they hold moves to others before they go.
    pub leaving: Vec<NodeId>,
    /// Who decides the next view: the ring in its order, the witnesses, and enough of those who
    /// left against their will that there are three.
    pub voters: Vec<Member>,
    /// Per owner the predecessors that may hold its mirror, sorted by owner.
    pub holders: Vec<OwnerHolders>,
    /// The last lives of nodes of which nothing else is left here, sorted. Of more than
    /// [`DEPARTED_MAX`] the oldest lives are forgotten.
    pub departed: Vec<NodeId>,
    /// What was changed against the view before.
    pub change: Change,
}

impl View {
    /// The first view of a new cluster: a ring of one.
    pub fn first(cluster: u64, founder: Member) -> Self {
        let holders =
            vec![OwnerHolders { owner: founder.id.clone(), runs: Arc::default(), left: 0 }];
        let (ring, voters) = (vec![founder.clone()], vec![founder]);
        let (leaving, departed, change) = (Vec::new(), Vec::new(), Change::default());
        Self { cluster, number: 1, ring, leaving, voters, holders, departed, change }
    }

    /// Where `node` stands in the ring.
    pub fn position(&self, node: &NodeId) -> Option<usize> {
        self.ring.iter().position(|m| m.id == *node)
    }

    /// Whether `node` is on its way out of the ring.
    pub fn is_leaving(&self, node: &NodeId) -> bool {
        self.leaving.binary_search(node).is_ok()
    }

    /// The members that hold the mirrors of `node`, the nearest first: as many as it wants, or as
    /// there are. Empty of a stranger.
    pub fn predecessors(&self, node: &NodeId) -> Vec<&Member> {
        let Some(at) = self.position(node) else { return Vec::new() };
        self.predecessors_of(at).collect()
    }

    /// The first of [`View::predecessors`].
    pub fn predecessor(&self, node: &NodeId) -> Option<&Member> {
        self.standing_before(self.position(node)?).next()
    }

    /// The member whose first predecessor `node` is, or would be if it stayed.
    pub fn successor(&self, node: &NodeId) -> Option<&Member> {
        let (at, len) = (self.position(node)?, self.ring.len());
        let after = (1..len).map(|step| &self.ring[(at + step) % len]);
        after.into_iter().find(|m| !self.is_leaving(&m.id))
    }

    /// Who stands next to `node` on either side: they watch each other. Leaving members too.
    pub fn neighbours(&self, node: &NodeId) -> impl Iterator<Item = &Member> {
        self.position(node).into_iter().flat_map(|at| self.neighbours_of(at))
    }

    /// The [`View::neighbours`] of the member at position `at`.
    pub(super) fn neighbours_of(&self, at: usize) -> impl Iterator<Item = &Member> {
        let len = self.ring.len();
        let before = (len > 1).then(|| &self.ring[(at + len - 1) % len]);
        let after = (len > 2).then(|| &self.ring[(at + 1) % len]);
        before.into_iter().chain(after)
    }

    /// The [`View::predecessors`] of the member at position `at`.
    pub(super) fn predecessors_of(&self, at: usize) -> impl Iterator<Item = &Member> {
        self.standing_before(at).take(usize::from(self.ring[at].mirrors))
    }

    /// The members that stay, from the one before position `at` backwards.
    fn standing_before(&self, at: usize) -> impl Iterator<Item = &Member> {
        let len = self.ring.len();
        let before = (1..len).map(move |step| &self.ring[(at + len - step) % len]);
        before.filter(|m| !self.is_leaving(&m.id))
    }

    /// Whether this life of the node is in the ring: those and no others are owners that did not
    /// leave.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.owner(node).is_some_and(|owner| !owner.is_gone())
    }

    /// The life of this node that is in the ring.
    pub fn life_of(&self, name: &Name) -> Option<&NodeId> {
        self.owners_named(name).find(|owner| !owner.is_gone()).map(|owner| &owner.owner)
    }

    /// The life of this node that votes: whoever is in the ring does.
    pub(super) fn voter_named(&self, name: &Name) -> Option<&NodeId> {
        let outside = || self.outside().map(|m| &m.id).find(|id| id.name == *name);
        self.life_of(name).or_else(outside)
    }

    /// The members of an earlier view that are not in this one, sorted.
    pub fn gone_since(&self, before: &View) -> Vec<NodeId> {
        let mut present = self.holders.iter().filter(|h| !h.is_gone()).peekable();
        let mut gone = Vec::new();
        for owner in before.holders.iter().filter(|h| !h.is_gone()).map(|h| &h.owner) {
            while present.next_if(|h| h.owner < *owner).is_some() {}
            if present.next_if(|h| h.owner == *owner).is_none() {
                gone.push(owner.clone());
            }
        }
        gone
    }

    /// The lives of a node that own something, or did and are not settled.
    fn owners_named(&self, name: &Name) -> impl Iterator<Item = &OwnerHolders> {
        let first = self.holders.partition_point(|h| h.owner.name < *name);
        self.holders[first..].iter().take_while(move |h| h.owner.name == *name)
    }

    /// The ring member or voter with this id.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.everybody().find(|m| m.id == *node)
    }

    /// The ring member or voter with this name, of whichever life.
    pub fn member_named(&self, name: &Name) -> Option<&Member> {
        match self.life_of(name) {
            Some(life) => self.ring.iter().find(|m| m.id == *life),
            None => self.outside().find(|m| m.id.name == *name),
        }
    }

    /// The newest life of a node that this view knows, be it gone: a message of that one or of an
    /// older one may still be on its way, and must not bring it back.
    pub fn newest_life(&self, name: &Name) -> Option<&NodeId> {
        let owners = self.owners_named(name).map(|h| &h.owner);
        let outside = self.outside().map(|m| &m.id).filter(|id| id.name == *name);
        let departed = self.departed.binary_search_by(|id| id.name.cmp(name)).ok();
        let all = owners.chain(outside).chain(departed.map(|at| &self.departed[at]));
        all.max_by_key(|id| id.incarnation)
    }

    /// Whether `node` votes on the next view.
    pub fn is_voter(&self, node: &NodeId) -> bool {
        self.contains(node) || self.outside().any(|m| m.id == *node)
    }

    /// Where `node` stands among the voters.
    pub fn voter_rank(&self, node: &NodeId) -> Option<usize> {
        self.voters.iter().position(|m| m.id == *node)
    }

    /// Whether this view counts `node` in: in the ring, or as a witness.
    pub fn admits(&self, node: &NodeId) -> bool {
        self.contains(node) || self.outside().any(|m| m.witness && m.id == *node)
    }

    /// The voters outside the ring.
    pub(super) fn outside(&self) -> impl Iterator<Item = &Member> {
        self.voters.iter().skip(self.ring.len())
    }

    /// The ring, then the voters outside it.
    pub fn everybody(&self) -> impl Iterator<Item = &Member> {
        self.ring.iter().chain(self.outside())
    }

    /// Who may hold `owner`'s mirrors; of a member, and of one that left and is not settled.
    pub fn owner(&self, owner: &NodeId) -> Option<&OwnerHolders> {
        let at = self.holders.binary_search_by(|h| h.owner.cmp(owner)).ok()?;
        Some(&self.holders[at])
    }

    /// The holding runs of `owner`'s mirror, oldest first; empty if there were none.
    pub fn holders_of(&self, owner: &NodeId) -> &[super::HoldingRun] {
        self.owner(owner).map_or(&[], |holders| holders.runs.as_slice())
    }

    /// Whether a view from outside can be worked with at all: sizes, order and uniqueness. That it
    /// follows from the view before is checked by [`Change`] where that one is known.
    pub fn is_coherent(&self) -> bool {
        let unique = |members: &[Member]| {
            let mut names: Vec<&Name> = members.iter().map(|m| &m.id.name).collect();
            names.sort_unstable();
            names.windows(2).all(|pair| pair[0] != pair[1])
        };
        let ring_votes_in_order = self.voters.get(..self.ring.len()) == Some(&self.ring[..]);
        self.cluster != 0
            && (1..u64::MAX).contains(&self.number)
            && !self.ring.is_empty()
            && self.ring.len() <= MEMBERS_MAX
            && self.voters.len() <= MEMBERS_MAX
            && self.holders.len() <= OWNERS_MAX
            && self.holders.iter().all(|h| h.runs.len() <= RUNS_MAX)
            && self.holders.windows(2).all(|pair| pair[0].owner < pair[1].owner)
            && self.holders.iter().filter(|h| !h.is_gone()).count() == self.ring.len()
            && self.ring.iter().all(|m| self.contains(&m.id))
            && self.departed.len() <= DEPARTED_MAX
            && self.departed.is_sorted_by(|a, b| a.name < b.name)
            && self.ring.iter().all(|m| !m.witness && m.is_possible())
            && self.leaving.is_sorted_by(|a, b| a < b)
            && self.leaving.iter().all(|id| self.contains(id))
            && unique(&self.voters)
            && ring_votes_in_order
    }
}

#[cfg(test)]
mod tests {
    use crate::membership::change::tests::{founded, member};

    #[test]
    fn the_ring_is_one_directed_circle() {
        let view = founded(&["a", "b", "c"]);
        let (a, b, c) = (&view.ring[0].id, &view.ring[1].id, &view.ring[2].id);
        assert_eq!(&view.predecessor(a).unwrap().id, c);
        assert_eq!(&view.predecessor(b).unwrap().id, a);
        assert_eq!(&view.successor(c).unwrap().id, a);
        assert_eq!(view.predecessor(&member("x", 1).id), None);
    }

    #[test]
    fn a_ring_of_one_has_no_predecessor() {
        let view = founded(&["a"]);
        assert_eq!(view.predecessor(&view.ring[0].id), None);
        assert_eq!(view.successor(&view.ring[0].id), None);
    }

    #[test]
    fn a_view_with_a_name_twice_is_incoherent() {
        let mut view = founded(&["a", "b"]);
        assert!(view.is_coherent());
        view.ring.push(member("a", 7));
        view.voters = view.ring.clone();
        assert!(!view.is_coherent());
    }
}
