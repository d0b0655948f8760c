//! From one view to the next.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    MEMBERS_MAX, Member, NodeId, OWNERS_MAX, VOTERS_MIN, View,
    holders::{SyncFacts, holders_follow},
    quorum::majority,
};
use crate::name::Name;

/// What a view changes against the one before. Equal wishes make equal changes: the lists are
/// sorted by id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Change {
    /// Ring members taken out because they are suspected.
    pub removed: Vec<NodeId>,
    /// Ring members and witnesses that asked to go.
    pub left: Vec<NodeId>,
    /// New members. One with the name of a member is that node's next life and takes its place.
    pub joined: Vec<Member>,
}

/// Why a change does not make a view. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It changes nothing.
    #[error("an empty change")]
    Empty,
    /// Somebody is to go who is not there, or the lists are not sorted sets.
    #[error("a change that does not fit the view")]
    Misfit,
    /// A joiner's name has a life that the view knows and that is not older.
    #[error("{joiner} would replace {existing}, which is not older")]
    NotNewer {
        /// Who wants to join.
        joiner: NodeId,
        /// Who is there.
        existing: NodeId,
    },
    /// Nobody would be left in the ring.
    #[error("the ring would be empty")]
    RingEmpty,
    /// The ring, or the table of owners, would be too long.
    #[error("the ring would be too large")]
    TooLarge,
    /// Too few voters would stay to decide it.
    #[error("{staying} of {voters} voters would stay: no majority")]
    NoMajority {
        /// Voters that are not taken out.
        staying: usize,
        /// All voters.
        voters: usize,
    },
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.left.is_empty() && self.joined.is_empty()
    }

    /// Whether `node` is taken out without having asked.
    pub fn evicts(&self, node: &NodeId) -> bool {
        self.removed.contains(node) || self.joined.iter().any(|j| j.id.name == node.name)
    }

    /// All of both: every removal, every leave, every join, of one name the newest life.
    pub fn union(&self, other: &Change) -> Change {
        let ids = |a: &[NodeId], b: &[NodeId]| -> BTreeSet<NodeId> {
            a.iter().chain(b).cloned().collect()
        };
        let left = ids(&self.left, &other.left);
        let mut removed = ids(&self.removed, &other.removed);
        removed.retain(|node| !left.contains(node));
        let mut joined: BTreeMap<&Name, &Member> = BTreeMap::new();
        for member in self.joined.iter().chain(&other.joined) {
            let kept = joined.entry(&member.id.name).or_insert(member);
            if kept.id.incarnation < member.id.incarnation {
                *kept = member;
            }
        }
        Change {
            removed: removed.into_iter().collect(),
            left: left.into_iter().collect(),
            joined: joined.into_values().cloned().collect(),
        }
    }
}

impl View {
    /// The view after this one, with what the proposer knows of mirrors.
    pub fn next(&self, change: &Change, facts: &SyncFacts) -> Result<View, ChangeError> {
        let mut next = self.skeleton(change)?;
        next.holders = facts.holders_after(self, &next);
        if next.holders.len() > OWNERS_MAX {
            return Err(ChangeError::TooLarge);
        }
        Ok(next)
    }

    /// Whether `next`, which somebody proposes, follows from this view by the rules.
    pub fn precedes(&self, next: &View) -> bool {
        let Ok(expected) = self.skeleton(&next.change) else { return false };
        next.is_coherent()
            && next.cluster == expected.cluster
            && next.number == expected.number
            && next.ring == expected.ring
            && next.voters == expected.voters
            && holders_follow(self, next)
    }

    /// The next view without its holders.
    fn skeleton(&self, change: &Change) -> Result<View, ChangeError> {
        self.check(change)?;
        let ring = self.ring_after(change);
        if ring.is_empty() {
            return Err(ChangeError::RingEmpty);
        }
        let voters = self.voters_after(change, &ring);
        if ring.len() > MEMBERS_MAX || voters.len() > MEMBERS_MAX {
            return Err(ChangeError::TooLarge);
        }
        let number = self.number.checked_add(1).ok_or(ChangeError::TooLarge)?;
        let holders = Vec::new();
        Ok(View { cluster: self.cluster, number, ring, voters, holders, change: change.clone() })
    }

    fn check(&self, change: &Change) -> Result<(), ChangeError> {
        if change.is_empty() {
            return Err(ChangeError::Empty);
        }
        let sorted = |ids: &[NodeId]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        let names_sorted = change.joined.windows(2).all(|p| p[0].id.name < p[1].id.name);
        let fits = sorted(&change.removed)
            && sorted(&change.left)
            && names_sorted
            && change.removed.iter().all(|id| self.contains(id) && !change.left.contains(id))
            && change.left.iter().all(|id| self.admits(id));
        if !fits {
            return Err(ChangeError::Misfit);
        }
        for joiner in change.joined.iter().map(|m| &m.id) {
            let newest = self.newest_life(&joiner.name);
            if let Some(existing) = newest.filter(|e| e.incarnation >= joiner.incarnation) {
                let (joiner, existing) = (joiner.clone(), existing.clone());
                return Err(ChangeError::NotNewer { joiner, existing });
            }
        }
        // Leavers agree and vote; whoever is evicted or replaced cannot be counted on.
        let staying = self.voters.iter().filter(|m| !change.evicts(&m.id)).count();
        if staying < majority(self.voters.len()) {
            return Err(ChangeError::NoMajority { staying, voters: self.voters.len() });
        }
        Ok(())
    }

    fn ring_after(&self, change: &Change) -> Vec<Member> {
        let next_life = |name: &Name| change.joined.iter().find(|j| j.id.name == *name);
        let mut ring = Vec::with_capacity(self.ring.len() + change.joined.len());
        for member in &self.ring {
            match next_life(&member.id.name) {
                Some(joiner) if !joiner.witness => ring.push(joiner.clone()),
                Some(_) => {}
                None if change.removed.contains(&member.id) => {}
                None if change.left.contains(&member.id) => {}
                None => ring.push(member.clone()),
            }
        }
        for joiner in change.joined.iter().filter(|j| !j.witness) {
            if !ring.iter().any(|m| m.id == joiner.id) {
                place(&mut ring, joiner.clone());
            }
        }
        ring
    }

    /// The new ring, the witnesses, and while those are fewer than three also voters of before:
    /// with fewer, a single failure could leave nobody who may decide. Whoever asked to leave is
    /// gone for good and is no use there.
    fn voters_after(&self, change: &Change, ring: &[Member]) -> Vec<Member> {
        let mut voters = ring.to_vec();
        let stays = |m: &&Member| {
            !change.left.contains(&m.id) && !change.joined.iter().any(|j| j.id.name == m.id.name)
        };
        voters.extend(self.voters.iter().filter(|m| m.witness).filter(stays).cloned());
        voters.extend(change.joined.iter().filter(|j| j.witness).cloned());
        for former in self.voters.iter().filter(stays) {
            if voters.len() >= VOTERS_MIN {
                break;
            }
            if !voters.iter().any(|m| m.id.name == former.id.name) {
                voters.push(former.clone());
            }
        }
        voters
    }
}

/// Where a joiner goes in the ring: behind the last member.
fn place(ring: &mut Vec<Member>, joiner: Member) {
    ring.push(joiner);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::membership) fn member(name: &str, incarnation: u64) -> Member {
        let id = NodeId { name: Name::new(name).unwrap(), incarnation };
        let port = 1000 + name.bytes().fold(0, |sum, byte| sum * 7 + u16::from(byte));
        Member { id, address: ([127, 0, 0, 1], port).into(), witness: false, zone: None }
    }

    pub(in crate::membership) fn founded(names: &[&str]) -> View {
        let mut view = View::first(9, member(names[0], 1));
        for name in &names[1..] {
            view = view.next(&join(&[member(name, 1)]), &SyncFacts::default()).unwrap();
        }
        view
    }

    pub(in crate::membership) fn join(members: &[Member]) -> Change {
        Change { joined: members.to_vec(), ..Change::default() }
    }

    pub(in crate::membership) fn remove(names: &[&str]) -> Change {
        let removed = names.iter().map(|name| member(name, 1).id).collect();
        Change { removed, ..Change::default() }
    }

    fn names(members: &[Member]) -> String {
        members.iter().map(|m| m.id.name.as_str()).collect()
    }

    fn next(view: &View, change: &Change) -> Result<View, ChangeError> {
        let next = view.next(change, &SyncFacts::default())?;
        assert!(view.precedes(&next) && next.is_coherent());
        Ok(next)
    }

    #[test]
    fn a_ring_that_shrinks_below_three_keeps_three_voters() {
        let view = next(&founded(&["a", "b", "c", "d"]), &remove(&["b"])).unwrap();
        assert_eq!((names(&view.ring), names(&view.voters)), ("acd".into(), "acd".into()));
        let view = next(&view, &remove(&["c"])).unwrap();
        assert_eq!((names(&view.ring), names(&view.voters)), ("ad".into(), "adc".into()));
    }

    #[test]
    fn who_asked_to_leave_is_not_waited_for_later() {
        let view = founded(&["a", "b"]);
        let left = Change { left: vec![member("b", 1).id], ..Change::default() };
        assert_eq!(names(&next(&view, &left).unwrap().voters), "a");
    }

    #[test]
    fn two_nodes_cannot_remove_each_other_but_with_a_witness_one_can() {
        let view = founded(&["a", "b"]);
        let refused = ChangeError::NoMajority { staying: 1, voters: 2 };
        assert_eq!(next(&view, &remove(&["b"])), Err(refused));
        let witness = Member { witness: true, ..member("w", 1) };
        let view = next(&view, &join(&[witness])).unwrap();
        assert_eq!((names(&view.ring), names(&view.voters)), ("ab".into(), "abw".into()));
        let view = next(&view, &remove(&["b"])).unwrap();
        assert_eq!((names(&view.ring), names(&view.voters)), ("a".into(), "awb".into()));
    }

    #[test]
    fn a_restarted_node_takes_its_old_place_in_one_change() {
        let view = next(&founded(&["a", "b", "c"]), &join(&[member("b", 2)])).unwrap();
        assert_eq!(names(&view.ring), "abc");
        assert_eq!(view.ring[1].id.incarnation, 2);
        assert_eq!(view.voters, view.ring);
        assert!(view.change.evicts(&member("b", 1).id));
    }

    #[test]
    fn a_join_that_comes_late_does_not_bring_back_a_dead_life() {
        let view = founded(&["a", "b", "c", "d"]);
        let late = |view: &View| next(view, &join(&[member("b", 1)]));
        let replaced = next(&view, &join(&[member("b", 2)])).unwrap();
        assert!(matches!(late(&replaced), Err(ChangeError::NotNewer { .. })));
        let removed = next(&view, &remove(&["b"])).unwrap();
        assert!(matches!(late(&removed), Err(ChangeError::NotNewer { .. })));
    }

    #[test]
    fn colliding_proposals_merge_into_all_of_both() {
        let merged = remove(&["b"]).union(&join(&[member("x", 1)])).union(&join(&[member("x", 2)]));
        assert_eq!(merged, Change { joined: vec![member("x", 2)], ..remove(&["b"]) });
    }

    #[test]
    fn a_proposal_that_breaks_a_rule_is_not_a_next_view() {
        let view = founded(&["a", "b", "c", "d"]);
        let good = next(&view, &remove(&["b"])).unwrap();
        let bad = |spoil: &dyn Fn(&mut View)| {
            let mut spoilt = good.clone();
            spoil(&mut spoilt);
            !view.precedes(&spoilt)
        };
        assert!(bad(&|v| v.number += 1));
        assert!(bad(&|v| v.cluster += 1));
        assert!(bad(&|v| v.voters.truncate(2)));
        assert!(bad(&|v| v.ring.reverse()));
        assert!(bad(&|v| v.ring.push(v.ring[0].clone())));
        assert!(bad(&|v| v.change = Change::default()));
        assert!(bad(&|v| v.change.removed.push(member("z", 1).id)));
        assert!(bad(&|v| v.holders.clear()));
    }
}
