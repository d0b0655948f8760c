//! What is said of a lost owner's checkpoints by those who can be asked, and what follows from it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::rpc::FencedCopy;
use crate::{
    membership::{Member, NodeId},
    name::Name,
    recovery::{Decision, Report, Run, choose, in_owners_memory, with_owner},
};

/// What a holder of an owner's mirrors has, said after it was fenced.
pub(super) struct Fenced {
    /// Who says so: the holder itself, or a later life of it.
    pub(super) by: Member,
    pub(super) copies: Vec<FencedCopy>,
    /// There is nothing else that may count.
    pub(super) complete: bool,
}

impl Fenced {
    fn copy(&self, name: &Name) -> Option<&FencedCopy> {
        self.copies.iter().find(|copy| copy.name == *name)
    }

    fn report(&self, name: &Name) -> Report {
        let (mark, version) = self.copy(name).map_or((None, 0), |copy| (copy.mark, copy.version));
        Report { mark, version }
    }
}

/// What all said in one round.
pub(super) struct Answers {
    /// The owner's holders.
    pub(super) runs: Vec<Run<NodeId>>,
    /// Those of them that could be asked.
    pub(super) fenced: BTreeMap<NodeId, Fenced>,
    /// A later life of the owner that has its memory.
    pub(super) own: Option<Fenced>,
}

impl Answers {
    fn all(&self) -> impl Iterator<Item = &Fenced> {
        self.fenced.values().chain(&self.own)
    }

    /// Of which checkpoints anybody has a copy.
    pub(super) fn names(&self) -> BTreeSet<Name> {
        self.all().flat_map(|said| &said.copies).map(|copy| copy.name.clone()).collect()
    }

    /// The copies of one checkpoint, and who has them.
    pub(super) fn copies(&self, name: &Name) -> Vec<(&FencedCopy, &Member)> {
        let all = self.all().flat_map(|said| said.copies.iter().map(|copy| (copy, &said.by)));
        all.filter(|(copy, _)| copy.name == *name).collect()
    }

    /// Where a checkpoint was taken up already. The last to take it up had the right to. Whatever came
    /// of it there, it is no older.
    pub(super) fn taken_up(&self, name: &Name) -> Option<&Member> {
        let newest =
            self.copies(name).into_iter().max_by_key(|(copy, _)| (copy.epoch, copy.taken_up));
        newest.filter(|(copy, _)| copy.taken_up).map(|(_, by)| by)
    }

    /// From where a checkpoint is recovered (rule H5).
    pub(super) fn decide(&self, owner: &NodeId, name: &Name) -> Decision<NodeId> {
        match self.own.as_ref().and_then(|own| own.copy(name)) {
            Some(copy) => choose(&with_owner(&self.runs, owner), |holder| {
                (holder == owner).then(|| in_owners_memory(copy.version))
            }),
            None => choose(&self.runs, |holder| Some(self.fenced.get(holder)?.report(name))),
        }
    }

    /// Who spoke for this holder, or for the owner itself.
    pub(super) fn speaker(&self, owner: &NodeId, holder: &NodeId) -> Option<&Member> {
        let said = if holder == owner { self.own.as_ref() } else { self.fenced.get(holder) };
        said.map(|said| &said.by)
    }

    /// Runs of which nobody can tell may have had checkpoints that nobody else has, but for the owner
    /// itself.
    pub(super) fn name_all(&self) -> bool {
        let told = |run: &Run<NodeId>| {
            run.holders.is_empty() || run.holders.iter().any(|h| self.fenced.contains_key(h))
        };
        self.own.as_ref().is_some_and(|own| own.complete) || self.runs.iter().all(told)
    }
}
