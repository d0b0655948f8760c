//! What any recovery could hand out: the real [`choose`], with whoever of the holders is reached.

use std::{
    collections::HashMap,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ringkeep::recovery::{Decision, Report, Run, choose};

use crate::{
    Mutant,
    history::{Holder, NODES},
    model::MirrorModel,
    world::{NONE, State, TORN, broken},
};

/// What a node can say: its life, since which life it has its memory, its mark, its newest version.
type Said = Option<(u8, u8, u8, u8)>;
type Question = (u8, [Said; NODES]);

/// What recoveries that reach some nodes and not others could hand out.
#[derive(Clone, Copy)]
struct Outcome {
    /// The oldest version.
    oldest: u8,
    /// One that is not whole.
    torn: bool,
}

/// Which versions could be handed out was worked out before.
#[derive(Default)]
pub(crate) struct Recoveries {
    outcomes: RwLock<HashMap<Question, Outcome>>,
    used_former: AtomicBool,
}

impl Recoveries {
    /// Whether the copy of a former life was the one to take.
    pub(crate) fn used_a_former_life(&self) -> bool {
        self.used_former.load(Ordering::Relaxed)
    }
}

impl MirrorModel {
    /// Once a node has fenced the owner, a recovery may ask it, at any time. Notes the oldest
    /// version that one could hand out that reaches some of these nodes and not others.
    pub(crate) fn note_recoveries(&self, state: &mut State) {
        let said = self.said(state);
        if said.iter().all(Option::is_none) {
            return;
        }
        let question = (state.confirmed, said);
        let known =
            self.recoveries.outcomes.read().expect("no checker panicked").get(&question).copied();
        let outcome = known.unwrap_or_else(|| {
            let outcome = self.outcome_for(&question);
            let mut outcomes = self.recoveries.outcomes.write().expect("no checker panicked");
            outcomes.insert(question, outcome);
            outcome
        });
        state.recovered = state.recovered.min(outcome.oldest);
        if outcome.torn {
            state.broken |= broken::I2_TORN;
        }
    }

    /// What each node that has fenced the owner can say. Fenced once, its copy does not change.
    pub(crate) fn said(&self, state: &State) -> [Said; NODES] {
        std::array::from_fn(|n| {
            let node = &state.nodes[n];
            let newest = match self.mutant {
                Some(Mutant::RecordsAreBelieved) => node.newest_by_record(),
                _ => node.newest(),
            };
            self.answers(state, n as u8).then_some((
                node.life,
                node.memory_since,
                node.mark,
                newest,
            ))
        })
    }

    /// Whether a node says in a recovery what it has: it has fenced the owner.
    pub(crate) fn answers(&self, state: &State, n: u8) -> bool {
        let removed = |view: u8| view > 0 && !self.history.view(view).owner;
        let asked = self.mutant == Some(Mutant::AnswersUnfenced)
            && state.nodes.iter().any(|node| removed(node.view));
        self.is_member(state, n) && (asked || removed(state.nodes[usize::from(n)].view))
    }

    fn outcome_for(&self, &(confirmed, said): &Question) -> Outcome {
        let history = &self.history;
        let (mut oldest, mut torn) = (NONE, false);
        for reached in 1..1u8 << NODES {
            let nobody_else = |n: &usize| reached >> n & 1 == 0;
            if (0..NODES).filter(|n| !nobody_else(n)).any(|n| said[n].is_none()) {
                continue;
            }
            let heard = std::array::from_fn(|n| said[n].filter(|_| !nobody_else(&n)));
            // The confirmation shortens the list if it was heard.
            for runs in [&history.runs[..], history.runs_since(confirmed)] {
                oldest = match self.decide(runs, &heard) {
                    Decision::Exact { holder, version } => {
                        if let Some((life, _, _, newest)) = heard[holder.node()] {
                            torn |= newest & TORN != 0;
                            if life != holder.life() {
                                self.recoveries.used_former.store(true, Ordering::Relaxed);
                            }
                        }
                        oldest.min(version as u8)
                    }
                    Decision::Nothing => 0,
                    Decision::Unavailable { .. } => oldest,
                };
            }
        }
        Outcome { oldest, torn }
    }

    /// What a recovery that hears this decides.
    pub(crate) fn decide(&self, runs: &[Run<Holder>], heard: &[Said; NODES]) -> Decision<Holder> {
        let answer = |holder: &Holder| {
            let (life, memory_since, mark, version) = heard[holder.node()]?;
            let mark = (mark > 0).then_some(mark.into());
            let report = Report { mark, version: u64::from(version & !TORN) };
            let has_its_memory = life == holder.life() || memory_since <= holder.life();
            if self.mutant == Some(Mutant::FormerHasNothing) && !has_its_memory {
                return Some(Report { mark: None, version: 0 });
            }
            has_its_memory.then_some(report)
        };
        if self.mutant == Some(Mutant::NewestHolderOnly) {
            let newest = runs.last().into_iter().flat_map(|run| &run.holders);
            let mut reports = newest.map(|h| (h, answer(h)));
            let exact =
                |(h, r): (&Holder, Report)| Decision::Exact { holder: *h, version: r.version };
            let first = reports.find_map(|(h, report)| Some(exact((h, report?))));
            return first.unwrap_or(Decision::Unavailable { holders: Vec::new() });
        }
        choose(runs, answer)
    }
}
