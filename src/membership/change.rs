//! From one view to the next.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Confirmation, DEPARTED_MAX, MEMBERS_MAX, Member, NodeId, OWNERS_MAX, VOTERS_MIN, View,
    holders::holders_after,
    order::{place, untangle},
    quorum::majority,
};
use crate::name::Name;

/// What is voted on: all by which a view differs from the one before. Who has the view before can
/// make the next one of it, so this is also all that travels. Equal wishes make equal changes: the
/// lists are sorted by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Change {
    /// Ring members taken out because they are suspected.
    pub removed: Vec<NodeId>,
    /// Ring members that begin to leave: see [`View::leaving`].
    pub leaving: Vec<NodeId>,
    /// Leaving members that stay after all.
    pub staying: Vec<NodeId>,
    /// Leaving members, and witnesses, that go.
    pub left: Vec<NodeId>,
    /// New members. One with the name of a member is that node's next life and takes its place.
    pub joined: Vec<Member>,
    /// Which owners' mirrors are known to be complete, and since which view.
    pub synced: Vec<Confirmation>,
    /// Former members all of whose checkpoints have their copies elsewhere.
    pub settled: Vec<NodeId>,
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
    /// Nobody would be left in the ring, or nobody who is not leaving.
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

fn union(a: &[NodeId], b: &[NodeId], without: &[&[NodeId]]) -> Vec<NodeId> {
    let all: BTreeSet<&NodeId> = a.iter().chain(b).collect();
    let kept = all.into_iter().filter(|id| !without.iter().any(|list| list.contains(id)));
    kept.cloned().collect()
}

impl Change {
    /// Whether there is nothing to do. Facts about mirrors alone are not worth a view.
    pub fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.departures().next().is_none()
    }

    /// Everybody who goes, begins to go, or does not go after all.
    fn departures(&self) -> impl Iterator<Item = &NodeId> {
        self.removed.iter().chain(&self.leaving).chain(&self.staying).chain(&self.left)
    }

    /// Whether `node` is taken out without having asked.
    pub fn evicts(&self, node: &NodeId) -> bool {
        self.removed.binary_search(node).is_ok() || self.joiner_named(&node.name).is_some()
    }

    fn joiner_named(&self, name: &Name) -> Option<&Member> {
        let at = self.joined.binary_search_by(|j| j.id.name.cmp(name)).ok()?;
        Some(&self.joined[at])
    }

    /// Whether this member is new.
    pub(super) fn lets_in(&self, member: &Member) -> bool {
        self.joiner_named(&member.id.name).is_some_and(|joiner| joiner.id == member.id)
    }

    fn has_left(&self, node: &NodeId) -> bool {
        self.left.binary_search(node).is_ok()
    }

    /// Whether a voter may still be one that is not in the ring.
    fn keeps_voter(&self, voter: &Member) -> bool {
        !self.has_left(&voter.id) && self.joiner_named(&voter.id.name).is_none()
    }

    /// Whether a member, or a witness, is as it is in the view after this.
    fn leaves_as_is(&self, node: &NodeId) -> bool {
        !self.evicts(node) && !self.has_left(node)
    }

    /// All of both. Of one name the newest life joins; of one member that is to go in several ways,
    /// what it said last counts, and a suspicion only if it did not consent.
    pub fn union(&self, other: &Change) -> Change {
        let staying = union(&self.staying, &other.staying, &[]);
        let left = union(&self.left, &other.left, &[&staying]);
        let removed = union(&self.removed, &other.removed, &[&left]);
        let leaving = union(&self.leaving, &other.leaving, &[&left, &removed]);
        let staying = union(&staying, &[], &[&removed]);
        let mut joined: BTreeMap<&Name, &Member> = BTreeMap::new();
        for member in self.joined.iter().chain(&other.joined) {
            let kept = joined.entry(&member.id.name).or_insert(member);
            if kept.id.incarnation < member.id.incarnation {
                *kept = member;
            }
        }
        let mut synced: BTreeMap<&NodeId, u64> = BTreeMap::new();
        for fact in self.synced.iter().chain(&other.synced) {
            let view = synced.entry(&fact.owner).or_default();
            *view = fact.view.max(*view);
        }
        let confirmation =
            |(owner, view): (&NodeId, u64)| Confirmation { owner: owner.clone(), view };
        Change {
            removed,
            leaving,
            staying,
            left,
            joined: joined.into_values().cloned().collect(),
            synced: synced.into_iter().map(confirmation).collect(),
            settled: union(&self.settled, &other.settled, &[]),
        }
    }
}

/// How much there is in a next view.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    ring: usize,
    /// Without those of before who are kept because they are too few.
    voters: usize,
    owners: usize,
}

impl Sizes {
    fn of(view: &View) -> Self {
        let (ring, owners) = (view.ring.len(), view.holders.len());
        Self { ring, voters: ring + view.outside().filter(|m| m.witness).count(), owners }
    }
}

impl View {
    /// The view after this one.
    ///
    /// # Errors
    /// The change does not fit this view, or may not be made.
    pub fn next(&self, change: &Change) -> Result<View, ChangeError> {
        self.allows(change)?;
        let ring = self.ring_after(change);
        let voters = self.voters_after(change, &ring);
        let cloned = |members: Vec<&Member>| members.into_iter().cloned().collect();
        let mut next = View {
            cluster: self.cluster,
            number: self.number + 1,
            ring: cloned(ring),
            leaving: self.leaving_after(change),
            voters: cloned(voters),
            holders: Vec::new(),
            departed: Vec::new(),
            change: change.clone(),
        };
        next.holders = holders_after(self, &next);
        next.departed = self.departed_after(&next);
        debug_assert_eq!(self.sizes_after(change), Sizes::of(&next), "{self:?} {change:?}");
        Ok(next)
    }

    /// Whether [`View::next`] makes a view of this change. Takes much less than making it.
    ///
    /// # Errors
    /// As there.
    pub fn allows(&self, change: &Change) -> Result<(), ChangeError> {
        self.check(change)?;
        let Sizes { ring, voters, owners } = self.sizes_after(change);
        if ring == 0 || !change.leaving.is_empty() && self.leaving_after(change).len() == ring {
            return Err(ChangeError::RingEmpty);
        }
        let too_many = ring > MEMBERS_MAX || voters > MEMBERS_MAX || owners > OWNERS_MAX;
        if too_many || self.number >= u64::MAX - 1 {
            return Err(ChangeError::TooLarge);
        }
        Ok(())
    }

    fn sizes_after(&self, change: &Change) -> Sizes {
        let (joiners, witnesses): (Vec<&Member>, Vec<&Member>) =
            change.joined.iter().partition(|joiner| !joiner.witness);
        let in_ring = |m: &&&Member| self.life_of(&m.id.name).is_some();
        // Who is replaced is not counted among those who go.
        let gone = change.removed.iter().chain(&change.left).filter(|id| self.contains(id));
        let gone = gone.filter(|id| change.joiner_named(&id.name).is_none()).count();
        let replaced = joiners.iter().filter(in_ring).count();
        let become_witnesses = witnesses.iter().filter(in_ring).count();
        let ring = self.ring.len() + joiners.len() - replaced - gone - become_witnesses;
        let old_witnesses = self.outside().filter(|m| m.witness && change.keeps_voter(m));
        let voters = ring + witnesses.len() + old_witnesses.count();
        let settled = change.settled.iter().filter(|id| self.owner(id).is_some()).count();
        Sizes { ring, voters, owners: self.holders.len() + joiners.len() - settled }
    }

    /// Whether `next`, which somebody says was decided, follows from this view by the rules.
    pub fn precedes(&self, next: &View) -> bool {
        self.next(&next.change).as_ref() == Ok(next)
    }

    fn check(&self, change: &Change) -> Result<(), ChangeError> {
        if change.is_empty() {
            return Err(ChangeError::Empty);
        }
        if !self.fits(change) {
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
        let replaced = change.joined.iter().filter_map(|j| self.voter_named(&j.id.name));
        let replaced = replaced.filter(|id| change.removed.binary_search(id).is_err()).count();
        let staying = self.voters.len() - change.removed.len() - replaced;
        if staying < majority(self.voters.len()) {
            return Err(ChangeError::NoMajority { staying, voters: self.voters.len() });
        }
        Ok(())
    }

    fn fits(&self, change: &Change) -> bool {
        let sorted = |ids: &[NodeId]| ids.is_sorted_by(|a, b| a < b);
        let mut going: Vec<&NodeId> = change.departures().collect();
        going.sort_unstable();
        let witness = |id: &NodeId| self.admits(id) && !self.contains(id);
        sorted(&change.removed)
            && sorted(&change.leaving)
            && sorted(&change.staying)
            && sorted(&change.left)
            && going.is_sorted_by(|a, b| a < b)
            && change.removed.iter().all(|id| self.contains(id))
            && change.leaving.iter().all(|id| self.contains(id) && !self.is_leaving(id))
            && change.staying.iter().all(|id| self.is_leaving(id))
            && change.left.iter().all(|id| self.is_leaving(id) || witness(id))
            && change.joined.is_sorted_by(|a, b| a.id.name < b.id.name)
            && change.joined.iter().all(Member::is_possible)
            && change.synced.is_sorted_by(|a, b| a.owner < b.owner)
            && change.synced.iter().all(|c| self.contains(&c.owner) && c.view <= self.number)
            && sorted(&change.settled)
            && change.settled.iter().all(|id| !self.contains(id))
            && change.joined.iter().all(|j| change.settled.binary_search(&j.id).is_err())
    }

    fn ring_after<'a>(&'a self, change: &'a Change) -> Vec<&'a Member> {
        let mut ring = Vec::with_capacity(self.ring.len() + change.joined.len());
        for member in &self.ring {
            match change.joiner_named(&member.id.name) {
                Some(joiner) if !joiner.witness => ring.push(joiner),
                None if change.leaves_as_is(&member.id) => ring.push(member),
                _ => {}
            }
        }
        for joiner in change.joined.iter().filter(|j| !j.witness) {
            if self.life_of(&joiner.id.name).is_none() {
                place(&mut ring, joiner);
            }
        }
        untangle(&mut ring);
        ring
    }

    fn leaving_after(&self, change: &Change) -> Vec<NodeId> {
        let mut leaving = union(&self.leaving, &change.leaving, &[&change.staying]);
        leaving.retain(|id| change.leaves_as_is(id));
        leaving
    }

    /// Who was known here and is not in `next`, of which everything else is complete. All members
    /// are owners there: who is not is settled, stood outside the ring or was gone before.
    fn departed_after(&self, next: &View) -> Vec<NodeId> {
        let mut known: BTreeMap<&Name, u64> = BTreeMap::new();
        let settled = next.change.settled.iter().filter(|id| self.owner(id).is_some());
        let outside = self.outside().map(|m| &m.id);
        for id in self.departed.iter().chain(settled).chain(outside) {
            if next.newest_life(&id.name).is_none() {
                let last = known.entry(&id.name).or_default();
                *last = id.incarnation.max(*last);
            }
        }
        let life = |(name, incarnation): (&Name, u64)| NodeId { name: name.clone(), incarnation };
        let mut departed: Vec<NodeId> = known.into_iter().map(life).collect();
        while departed.len() > DEPARTED_MAX {
            let oldest = (0..departed.len()).min_by_key(|&at| departed[at].incarnation);
            oldest.map(|at| departed.remove(at));
        }
        departed
    }

    /// The new ring, the witnesses, and while those are fewer than three also voters of before:
    /// with fewer, a single failure could leave nobody who may decide. Whoever asked to leave is
    /// gone for good and is no use there.
    fn voters_after<'a>(&'a self, change: &'a Change, ring: &[&'a Member]) -> Vec<&'a Member> {
        let mut voters = ring.to_vec();
        let stays = |m: &&Member| change.keeps_voter(m);
        voters.extend(self.outside().filter(|m| m.witness).filter(stays));
        voters.extend(change.joined.iter().filter(|j| j.witness));
        for former in self.voters.iter().filter(stays) {
            if voters.len() >= VOTERS_MIN {
                break;
            }
            if !voters.iter().any(|m| m.id.name == former.id.name) {
                voters.push(former);
            }
        }
        voters
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::membership::MIRRORS_MAX;

    pub(in crate::membership) fn member(name: &str, incarnation: u64) -> Member {
        let id = NodeId { name: Name::new(name).unwrap(), incarnation };
        let port = 1000 + name.bytes().fold(0, |sum, byte| sum * 7 + u16::from(byte));
        Member {
            id,
            address: ([127, 0, 0, 1], port).into(),
            witness: false,
            zone: None,
            mirrors: 1,
        }
    }

    pub(in crate::membership) fn founded(names: &[&str]) -> View {
        let mut view = View::first(9, member(names[0], 1));
        for name in &names[1..] {
            view = view.next(&join(&[member(name, 1)])).unwrap();
        }
        view
    }

    pub(in crate::membership) fn join(members: &[Member]) -> Change {
        Change { joined: members.to_vec(), ..Change::default() }
    }

    pub(in crate::membership) fn remove(names: &[&str]) -> Change {
        Change { removed: ids(names), ..Change::default() }
    }

    fn ids(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| member(name, 1).id).collect()
    }

    fn leave(names: &[&str]) -> Change {
        Change { leaving: ids(names), ..Change::default() }
    }

    fn left(names: &[&str]) -> Change {
        Change { left: ids(names), ..Change::default() }
    }

    fn names(members: &[Member]) -> String {
        members.iter().map(|m| m.id.name.as_str()).collect()
    }

    fn next(view: &View, change: &Change) -> Result<View, ChangeError> {
        let next = view.next(change)?;
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
        let view = next(&founded(&["a", "b"]), &leave(&["b"])).unwrap();
        assert_eq!((names(&view.ring), names(&view.voters)), ("ab".into(), "ab".into()));
        assert_eq!(names(&next(&view, &left(&["b"])).unwrap().voters), "a");
    }

    #[test]
    fn a_member_that_leaves_is_first_nobodys_predecessor_and_then_out() {
        let view = founded(&["a", "b", "c", "d"]);
        assert_eq!(next(&view, &left(&["b"])), Err(ChangeError::Misfit), "not in one step");
        let (b, c) = (&view.ring[1].id, &view.ring[2].id);
        let going = next(&view, &leave(&["b"])).unwrap();
        assert_eq!(names(&going.ring), "abcd", "still a member");
        assert_eq!(going.predecessor(c).unwrap().id.name.as_str(), "a");
        assert_eq!(going.predecessor(b).unwrap().id.name.as_str(), "a", "its own mirror stays");
        assert_eq!(going.holders_of(c).last().unwrap().since, going.number);
        assert_eq!(going.holders_of(b), view.holders_of(b));
        let stays = Change { staying: vec![b.clone()], ..Change::default() };
        assert_eq!(next(&going, &stays).unwrap().predecessor(c).unwrap().id, *b);
        let gone = next(&going, &left(&["b"])).unwrap();
        assert_eq!((names(&gone.ring), gone.leaving.len()), ("acd".into(), 0));
        assert_eq!(gone.holders_of(c), going.holders_of(c), "the second step moves nothing");
    }

    #[test]
    fn somebody_stays() {
        let view = next(&founded(&["a", "b"]), &leave(&["a"])).unwrap();
        assert_eq!(next(&view, &leave(&["b"])), Err(ChangeError::RingEmpty));
        assert_eq!(view.predecessor(&view.ring[1].id), None);
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
        let settled = Change { settled: vec![member("b", 1).id], ..remove(&["c"]) };
        let settled = next(&removed, &settled).unwrap();
        assert_eq!(settled.owner(&member("b", 1).id), None);
        assert!(matches!(late(&settled), Err(ChangeError::NotNewer { .. })));
        let back = next(&settled, &join(&[member("b", 2)])).unwrap();
        assert!(back.departed.is_empty(), "the member stands for its older lives");
    }

    #[test]
    fn a_member_wants_one_copy_at_least_and_not_too_many() {
        let with = |mirrors| next(&founded(&["a"]), &join(&[Member { mirrors, ..member("b", 1) }]));
        assert!(with(1).is_ok() && with(MIRRORS_MAX).is_ok());
        for mirrors in [0, MIRRORS_MAX + 1] {
            assert_eq!(with(mirrors), Err(ChangeError::Misfit), "{mirrors}");
        }
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
