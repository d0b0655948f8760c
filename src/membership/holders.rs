//! Which predecessors may hold an owner's mirror.
//!
//! Recovery walks an owner's holding runs from the newest to the oldest and takes the first holder
//! whose sync mark is at least as new as the begin of its run (rules H5 and H6). So a view remembers, per
//! owner, the runs since its last confirmed sync; all earlier ones are superseded. An owner that
//! left keeps its runs, frozen, until all its checkpoints live elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Change, Confirmation, NodeId, View};

/// Most runs kept per owner. If an owner goes through more predecessors without one confirmed
/// sync, the oldest are forgotten: recovery may then find nothing, but never something older.
pub const RUNS_MAX: usize = 256;

/// Consecutive views in which an owner had the same predecessors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HoldingRun {
    /// The first view of the run.
    pub since: u64,
    /// The predecessors, the nearest first: as many as the owner wants, or as there were; never
    /// none.
    pub holders: Vec<NodeId>,
}

/// The holding runs of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnerHolders {
    /// Whose mirror it is.
    pub owner: NodeId,
    /// Oldest first. Most often the same as in the view before, and shared with it.
    pub runs: Arc<Vec<HoldingRun>>,
    /// The first view without it; 0 while it is a member.
    pub left: u64,
}

impl OwnerHolders {
    /// Whether the owner left the ring; it is not settled yet then.
    pub fn is_gone(&self) -> bool {
        self.left > 0
    }
}

/// What a proposer has heard about mirrors. It only shortens the list, so members may differ in it.
#[derive(Debug, Clone, Default)]
pub struct SyncFacts {
    confirmed: BTreeMap<NodeId, u64>,
    settled: BTreeSet<NodeId>,
}

impl SyncFacts {
    /// `owner`'s predecessor of view `number` has the whole mirror. False if that says nothing new
    /// or nothing sensible.
    pub fn confirm(&mut self, view: &View, owner: &NodeId, number: u64) -> bool {
        if number > view.number || !view.contains(owner) {
            return false;
        }
        let known = self.confirmed.entry(owner.clone()).or_default();
        let news = number > *known;
        *known = number.max(*known);
        news
    }

    /// Every checkpoint of `owner`, which left, has two copies elsewhere.
    pub fn settle(&mut self, view: &View, owner: &NodeId) -> bool {
        let frozen = view.owner(owner).is_some_and(OwnerHolders::is_gone);
        frozen && self.settled.insert(owner.clone())
    }

    /// Forgets what `view` no longer asks about.
    pub fn prune(&mut self, view: &View) {
        self.confirmed.retain(|owner, _| view.contains(owner));
        self.settled.retain(|owner| view.owner(owner).is_some_and(OwnerHolders::is_gone));
    }

    /// The confirmations that would shorten a list of `view`.
    pub fn useful<'a>(&'a self, view: &'a View) -> impl Iterator<Item = (&'a NodeId, u64)> {
        self.confirmed.iter().map(|(owner, number)| (owner, *number)).filter(|(owner, number)| {
            view.holders_of(owner).get(1).is_some_and(|second| second.since <= *number)
        })
    }

    /// The owners that left and are settled.
    pub fn settled(&self) -> impl Iterator<Item = &NodeId> {
        self.settled.iter()
    }

    /// Adds to a change what else is worth deciding with it.
    pub fn attach(&self, view: &View, change: Change) -> Change {
        let confirmation =
            |(owner, view): (&NodeId, u64)| Confirmation { owner: owner.clone(), view };
        let synced = self.useful(view).map(confirmation).collect();
        let settled = self.settled.iter().cloned().collect();
        Change { synced, settled, ..change }
    }
}

/// The holders of `next`, of which everything else is complete, after those of `view`: the runs go
/// on, and what its change says of mirrors makes older ones superfluous.
pub(super) fn holders_after(view: &View, next: &View) -> Vec<OwnerHolders> {
    let Change { joined, settled, synced, .. } = &next.change;
    let mut owners = Vec::with_capacity(view.holders.len() + joined.len());
    let rest = view.holders.iter().filter(|h| settled.binary_search(&h.owner).is_err());
    owners.extend(rest.cloned());
    let new = joined.iter().filter(|joiner| !joiner.witness).map(|joiner| joiner.id.clone());
    owners.extend(new.map(|owner| OwnerHolders { owner, runs: Arc::default(), left: 0 }));
    owners.sort_by(|a, b| a.owner.cmp(&b.owner));

    // All members are among the owners, in the order of their ids.
    let mut members: Vec<(usize, &NodeId)> =
        next.ring.iter().map(|member| &member.id).enumerate().collect();
    members.sort_by_key(|(_, id)| *id);
    let (mut members, mut synced) = (members.into_iter().peekable(), synced.iter().peekable());
    for OwnerHolders { owner, runs, left } in &mut owners {
        match members.next_if(|(_, member)| *member == owner) {
            Some((at, _)) => {
                *left = 0;
                go_on(runs, next, at);
            }
            None if *left == 0 => *left = next.number,
            None => {}
        }
        if let Some(fact) = synced.next_if(|fact| fact.owner == *owner) {
            forget(runs, runs.iter().rposition(|run| run.since <= fact.view).unwrap_or(0));
        }
        forget(runs, runs.len().saturating_sub(RUNS_MAX));
    }
    owners
}

fn forget(runs: &mut Arc<Vec<HoldingRun>>, oldest: usize) {
    if oldest > 0 {
        Arc::make_mut(runs).drain(..oldest);
    }
}

/// The runs of the member that stands at position `at` of `next`.
fn go_on(runs: &mut Arc<Vec<HoldingRun>>, next: &View, at: usize) {
    let holders = || next.predecessors_of(at).map(|m| &m.id);
    let same = |run: &HoldingRun| {
        run.holders.len() == holders().count() && holders().all(|h| run.holders.contains(h))
    };
    // Without a predecessor there is no run: who was the last one still has all that counts.
    if holders().next().is_some() && !runs.last().is_some_and(same) {
        let holders = holders().cloned().collect();
        Arc::make_mut(runs).push(HoldingRun { since: next.number, holders });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{
        Member,
        change::tests::{founded, member, remove},
    };

    fn holders(view: &View, owner: &NodeId) -> Vec<(u64, String)> {
        let runs = view.holders_of(owner).iter();
        let names = |r: &HoldingRun| r.holders.iter().map(|h| h.name.as_str()).collect();
        runs.map(|r| (r.since, names(r))).collect()
    }

    fn next(view: &View, change: Change, facts: &SyncFacts) -> View {
        view.next(&facts.attach(view, change)).unwrap()
    }

    #[test]
    fn a_new_predecessor_is_appended_until_a_sync_to_it_is_confirmed() {
        let view = founded(&["a", "b", "c", "d"]);
        let d = view.ring[3].id.clone();
        let mut facts = SyncFacts::default();
        let view5 = next(&view, remove(&["c"]), &facts);
        assert_eq!(holders(&view5, &d), [(4, "c".into()), (5, "b".into())]);

        assert!(facts.confirm(&view5, &d, 4), "a sync to c, which is no longer the predecessor");
        let stale = next(&view5, remove(&["a"]), &facts);
        assert_eq!(holders(&stale, &d), [(4, "c".into()), (5, "b".into())], "b has no mark yet");

        assert!(facts.confirm(&view5, &d, 5));
        let view6 = next(&view5, remove(&["a"]), &facts);
        assert_eq!(holders(&view6, &d), [(5, "b".into())]);
    }

    #[test]
    fn an_owner_that_left_keeps_its_holders_until_it_is_settled() {
        let view = founded(&["a", "b", "c", "d"]);
        let c = view.ring[2].id.clone();
        let mut facts = SyncFacts::default();
        assert!(!facts.settle(&view, &c), "a member is not settled");
        let view5 = next(&view, remove(&["c"]), &facts);
        assert_eq!(holders(&view5, &c).last(), Some(&(3, "b".into())));
        assert!(facts.settle(&view5, &c));
        let view6 = next(&view5, remove(&["d"]), &facts);
        assert_eq!(holders(&view6, &c), []);
    }

    #[test]
    fn with_two_mirrors_a_run_is_a_pair_and_ends_when_either_changes() {
        let mut view = founded(&["a", "b", "c"]);
        let d = Member { mirrors: 2, ..member("d", 1) };
        let joined = Change { joined: vec![d.clone()], ..Change::default() };
        view = view.next(&joined).unwrap();
        assert_eq!(holders(&view, &d.id), [(4, "cb".into())]);
        view = view.next(&remove(&["b"])).unwrap();
        assert_eq!(holders(&view, &d.id), [(4, "cb".into()), (5, "ca".into())]);
    }

    #[test]
    fn a_ring_of_one_keeps_who_held_its_mirror_last() {
        let view = founded(&["a", "b", "c"]);
        let a = view.ring[0].id.clone();
        let view = view.next(&remove(&["b"])).unwrap().next(&remove(&["c"])).unwrap();
        assert_eq!(view.predecessor(&a), None);
        assert_eq!(holders(&view, &a).last(), Some(&(3, "c".into())));
    }

    #[test]
    fn a_proposal_cannot_confirm_what_cannot_be() {
        let view = founded(&["a", "b", "c", "d"]);
        let d = view.ring[3].id.clone();
        let fact = |owner: &NodeId, view| Confirmation { owner: owner.clone(), view };
        let with = |synced| view.next(&Change { synced, ..remove(&["c"]) });
        assert!(with(vec![fact(&d, 4)]).is_ok());
        assert!(with(vec![fact(&d, 5)]).is_err(), "of a view that is not there yet");
        assert!(with(vec![fact(&member("x", 1).id, 4)]).is_err(), "of a stranger");
        assert!(with(vec![fact(&d, 3), fact(&d, 4)]).is_err(), "twice");
        let settled = Change { settled: vec![d], ..remove(&["c"]) };
        assert!(view.next(&settled).is_err(), "of a member");
    }

    #[test]
    fn an_owner_that_never_syncs_does_not_grow_the_view_for_ever() {
        let mut view = founded(&["a", "b", "c", "d"]);
        let facts = SyncFacts::default();
        for life in 2..300 {
            let change = Change { joined: vec![member("b", life)], ..Change::default() };
            view = next(&view, change, &facts);
            let c = view.ring.iter().find(|m| m.id.name.as_str() == "c").unwrap().id.clone();
            assert!(view.holders_of(&c).len() <= RUNS_MAX);
        }
    }
}
