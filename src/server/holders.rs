//! Who holds an owner's mirrors, now and formerly, as recovery and the data plane want to know it.

use crate::{
    membership::{NodeId, OwnerHolders, View},
    recovery::{self, Run},
};

/// The nearest predecessors of `node`, the nearest first, and since which view they have been that.
pub(super) fn predecessors(view: &View, node: &NodeId) -> (u64, Vec<NodeId>) {
    let holders: Vec<NodeId> = view.predecessors(node).into_iter().map(|m| m.id.clone()).collect();
    let same = |run: &&crate::membership::HoldingRun| {
        run.holders.len() == holders.len() && holders.iter().all(|h| run.holders.contains(h))
    };
    let run = view.holders_of(node).last().filter(same);
    (run.map_or(view.number, |run| run.since), holders)
}

/// Whether `node` is to keep a copy of what `owner` owns.
pub(super) fn is_predecessor(view: &View, node: &NodeId, owner: &NodeId) -> bool {
    view.predecessors(owner).iter().any(|m| m.id == *node)
}

/// The times in which an owner's predecessors were the same, the oldest first.
pub(super) fn runs(view: &View, owner: &NodeId) -> Vec<Run<NodeId>> {
    let runs = view.holders_of(owner).iter();
    runs.map(|run| Run { since: run.since, holders: run.holders.clone() }).collect()
}

/// The member that looks after what `owner` left behind when it was lost.
pub(super) fn caretaker<'a>(view: &'a View, owner: &NodeId) -> Option<&'a NodeId> {
    view.owner(owner)?; // else it is settled
    let holders = view.holders_of(owner).iter().rev().flat_map(|run| &run.holders);
    recovery::caretaker(owner, holders, |node| view.life_of(&node.name))
}

/// The runs of a lost owner that had not ended in view `since`.
pub(super) fn runs_after(gone: &OwnerHolders, since: u64) -> Vec<Run<NodeId>> {
    let ends = gone.runs.iter().skip(1).map(|run| run.since).chain([gone.left]);
    let later = gone.runs.iter().zip(ends).filter(|(_, end)| *end > since);
    later.map(|(run, _)| Run { since: run.since, holders: run.holders.clone() }).collect()
}
