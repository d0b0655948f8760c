//! Which predecessors may hold an owner's mirror.
//!
//! Recovery walks an owner's holding runs from the newest to the oldest and takes the first holder
//! whose sync mark is at least as new as the begin of its run (rule H5). So a view remembers, per
//! owner, the runs since its last confirmed sync; all earlier ones are superseded. An owner that
//! left keeps its runs, frozen, until all its checkpoints live elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{NodeId, View};

/// Most runs kept per owner. If an owner goes through more predecessors without one confirmed
/// sync, the oldest are forgotten: recovery may then find nothing, but never something older.
pub const RUNS_MAX: usize = 64;

/// Consecutive views in which one node was an owner's predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingRun {
    /// The first view of the run.
    pub since: u64,
    /// The predecessor.
    pub holder: NodeId,
}

/// The holding runs of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerHolders {
    /// Whose mirror it is.
    pub owner: NodeId,
    /// Oldest first.
    pub runs: Vec<HoldingRun>,
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
        let frozen = !view.contains(owner) && view.holders.iter().any(|h| h.owner == *owner);
        frozen && self.settled.insert(owner.clone())
    }

    /// Forgets what `view` no longer asks about.
    pub fn prune(&mut self, view: &View) {
        let owners: BTreeSet<&NodeId> = view.holders.iter().map(|h| &h.owner).collect();
        let ring: BTreeSet<&NodeId> = view.ring.iter().map(|m| &m.id).collect();
        self.confirmed.retain(|owner, _| ring.contains(owner));
        self.settled.retain(|owner| owners.contains(owner) && !ring.contains(owner));
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

    /// The holders of `next`, whose ring is complete, after those of `view`.
    pub fn holders_after(&self, view: &View, next: &View) -> Vec<OwnerHolders> {
        let mut holders = holders_untrimmed(view, next);
        holders.retain(|h| !self.settled.contains(&h.owner) || next.contains(&h.owner));
        for entry in &mut holders {
            if let Some(&number) = self.confirmed.get(&entry.owner) {
                let current = entry.runs.iter().rposition(|run| run.since <= number).unwrap_or(0);
                entry.runs.drain(..current);
            }
            let surplus = entry.runs.len().saturating_sub(RUNS_MAX);
            entry.runs.drain(..surplus);
        }
        holders
    }
}

/// The holders of `next` with nothing forgotten: what every trimmed list must be a suffix of.
fn holders_untrimmed(view: &View, next: &View) -> Vec<OwnerHolders> {
    let mut runs: BTreeMap<NodeId, Vec<HoldingRun>> =
        view.holders.iter().map(|h| (h.owner.clone(), h.runs.clone())).collect();
    let predecessors = |v: &View| -> BTreeMap<NodeId, NodeId> {
        let before = v.ring.iter().cycle().skip(v.ring.len().saturating_sub(1));
        let pairs = v.ring.iter().zip(before).filter(|(m, p)| m.id != p.id);
        pairs.map(|(m, p)| (m.id.clone(), p.id.clone())).collect()
    };
    let (old, new) = (predecessors(view), predecessors(next));
    for member in &next.ring {
        let list = runs.entry(member.id.clone()).or_default();
        if let Some(holder) = new.get(&member.id)
            && old.get(&member.id) != Some(holder)
        {
            list.push(HoldingRun { since: next.number, holder: holder.clone() });
        }
    }
    runs.into_iter().map(|(owner, runs)| OwnerHolders { owner, runs }).collect()
}

/// Whether the holders of `next` follow from those of `view`: nothing invented, nothing reordered,
/// the current run of every member kept.
pub fn holders_follow(view: &View, next: &View) -> bool {
    let mut given = next.holders.iter().peekable();
    for full in holders_untrimmed(view, next) {
        if let Some(entry) = given.next_if(|h| h.owner == full.owner) {
            let keeps_current = full.runs.is_empty() || !entry.runs.is_empty();
            if !keeps_current || !full.runs.ends_with(&entry.runs) {
                return false;
            }
        } else if next.contains(&full.owner) {
            return false;
        }
    }
    given.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{
        Change,
        change::tests::{founded, member, remove},
    };

    fn holders(view: &View, owner: &NodeId) -> Vec<(u64, String)> {
        let runs = view.holders_of(owner).iter();
        runs.map(|r| (r.since, r.holder.name.to_string())).collect()
    }

    #[test]
    fn a_new_predecessor_is_appended_until_a_sync_to_it_is_confirmed() {
        let view = founded(&["a", "b", "c", "d"]);
        let d = view.ring[3].id.clone();
        let mut facts = SyncFacts::default();
        let view5 = view.next(&remove(&["c"]), &facts).unwrap();
        assert_eq!(holders(&view5, &d), [(4, "c".into()), (5, "b".into())]);

        assert!(facts.confirm(&view5, &d, 4), "a sync to c, which is no longer the predecessor");
        let stale = view5.next(&remove(&["a"]), &facts).unwrap();
        assert_eq!(holders(&stale, &d), [(4, "c".into()), (5, "b".into())], "b has no mark yet");

        assert!(facts.confirm(&view5, &d, 5));
        let view6 = view5.next(&remove(&["a"]), &facts).unwrap();
        assert_eq!(holders(&view6, &d), [(5, "b".into())]);
    }

    #[test]
    fn an_owner_that_left_keeps_its_holders_until_it_is_settled() {
        let view = founded(&["a", "b", "c", "d"]);
        let c = view.ring[2].id.clone();
        let mut facts = SyncFacts::default();
        assert!(!facts.settle(&view, &c), "a member is not settled");
        let view5 = view.next(&remove(&["c"]), &facts).unwrap();
        assert_eq!(holders(&view5, &c).last(), Some(&(3, "b".into())));
        assert!(facts.settle(&view5, &c));
        let view6 = view5.next(&remove(&["d"]), &facts).unwrap();
        assert_eq!(holders(&view6, &c), []);
    }

    #[test]
    fn a_proposal_cannot_invent_or_lose_the_current_holder() {
        let view = founded(&["a", "b", "c", "d"]);
        let next = view.next(&remove(&["c"]), &SyncFacts::default()).unwrap();
        assert!(holders_follow(&view, &next));
        let d = next.holders.iter().position(|h| h.owner.name.as_str() == "d").unwrap();
        let mut lost = next.clone();
        lost.holders[d].runs.clear();
        assert!(!holders_follow(&view, &lost));
        let mut invented = next.clone();
        invented.holders[d].runs[0].holder = member("x", 1).id;
        assert!(!holders_follow(&view, &invented));
        let mut trimmed = next.clone();
        trimmed.holders[d].runs.remove(0);
        assert!(holders_follow(&view, &trimmed));
        let mut forgotten = next;
        forgotten.holders.remove(d);
        assert!(!holders_follow(&view, &forgotten));
    }

    #[test]
    fn an_owner_that_never_syncs_does_not_grow_the_view_for_ever() {
        let mut view = founded(&["a", "b", "c", "d"]);
        let facts = SyncFacts::default();
        for life in 2..300 {
            let change = Change { joined: vec![member("b", life)], ..Change::default() };
            view = view.next(&change, &facts).unwrap();
            let c = view.ring.iter().find(|m| m.id.name.as_str() == "c").unwrap().id.clone();
            assert!(view.holders_of(&c).len() <= RUNS_MAX);
        }
    }
}
