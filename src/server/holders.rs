//! Who holds an owner's mirrors, now and formerly, as the view tells it.
//!
//! The one place that knows how the membership writes this down. A holding run names one holder at
//! present; when it names several, and a member says how many copies it wants, only this file
//! changes.

use crate::{
    membership::{HoldingRun, NodeId, View},
    recovery::{self, Run},
};

/// The nearest predecessors of `node`, the nearest first, and since which view they have been that.
pub(super) fn predecessors(view: &View, node: &NodeId) -> (u64, Vec<NodeId>) {
    let holders: Vec<NodeId> = view.predecessor(node).map(|m| m.id.clone()).into_iter().collect();
    let run = view.holders_of(node).last().filter(|run| holders_in(run) == holders);
    (run.map_or(view.number, |run| run.since), holders)
}

/// Whether `node` is to keep a copy of what `owner` owns.
pub(super) fn is_predecessor(view: &View, node: &NodeId, owner: &NodeId) -> bool {
    predecessors(view, owner).1.contains(node)
}

/// The times in which an owner's predecessors were the same, the oldest first.
pub(super) fn runs(view: &View, owner: &NodeId) -> Vec<Run<NodeId>> {
    let runs = view.holders_of(owner).iter();
    runs.map(|run| Run { since: run.since, holders: holders_in(run).to_vec() }).collect()
}

/// The member that looks after what `owner` left behind when it was lost.
pub(super) fn caretaker<'a>(view: &'a View, owner: &NodeId) -> Option<&'a NodeId> {
    let later_life = |m: &NodeId, h: &NodeId| m.name == h.name && m.incarnation > h.incarnation;
    recovery::caretaker(&runs(view, owner), view.ring.iter().map(|m| &m.id), later_life)
}

fn holders_in(run: &HoldingRun) -> &[NodeId] {
    std::slice::from_ref(&run.holder)
}
