//! The model as the checker sees it: states, what can happen in each, what must always be so.

use ringkeep::recovery::Decision;
use stateright::{Model, Property};

use crate::{
    Limits, Mutant,
    history::{History, Holder},
    invariants::{I1, I2, I3, I5, I6, I7, ONE_MIRROR},
    owner::Owners,
    recoveries::Recoveries,
    world::{Action, NONE, State, broken},
};

pub(crate) const GOOD_END: &str = "a good end is possible";

/// One number of copies, one history.
pub(crate) struct MirrorModel {
    pub(crate) copies: usize,
    pub(crate) views: &'static str,
    pub(crate) history: History,
    pub(crate) limits: Limits,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) owners: Owners,
    pub(crate) recoveries: Recoveries,
}

impl MirrorModel {
    pub(crate) fn new(
        copies: usize,
        views: &'static str,
        limits: Limits,
        mutant: Option<Mutant>,
    ) -> Self {
        let history = History::new(copies, views);
        let owners = Owners::new(copies, history.views().to_vec(), mutant);
        Self { copies, views, history, limits, mutant, owners, recoveries: Recoveries::default() }
    }

    /// The owner acknowledges under a lease, and nobody fences it.
    pub(crate) fn has_leases(&self) -> bool {
        matches!(self.mutant, Some(Mutant::LeaseAtPosting | Mutant::LeaseAfterCompletion))
    }

    /// With at most K crashes a node that is up has the last acknowledged version.
    fn somebody_has_it(&self, state: &State) -> bool {
        let has = |n: &crate::world::Node| !n.crashed && n.newest() >= state.acked;
        usize::from(state.crashes) > self.copies
            || !state.owner_crashed
            || state.nodes.iter().any(has)
    }

    /// From here on nothing bad happens: everybody installs the owner's last view, what is on its
    /// way arrives. Then the owner is lost, and a recovery must find a copy. Nothing is promised
    /// when the owner, or every one of its predecessors, is lost or out of the ring already.
    fn good_end(&self, state: &State) -> bool {
        let history = &self.history;
        let last = history.last_with_owner();
        if state.owner_crashed || state.nodes.iter().any(|n| n.view > last) {
            return true;
        }
        let mut end = state.clone();
        let mut actions = Vec::new();
        for _ in 0..STEPS_MAX {
            actions.clear();
            self.possible(&end, &mut actions);
            let good = |a: &&Action| match **a {
                Action::OwnerInstalls(view) | Action::Installs(_, view) => view == last,
                Action::Returns { node, view, with_memory } => {
                    view == last && (with_memory || end.nodes[usize::from(node)].crashed)
                }
                Action::Prepare(_) | Action::Land(_) | Action::Complete(_) => true,
                Action::Break(n) => !end.nodes[usize::from(n)].open,
                _ => false,
            };
            let Some(&action) = actions.iter().find(good) else { break };
            self.happen(&mut end, action);
        }
        let wanted = &history.view(last).predecessors;
        let up = |h: &&Holder| {
            let node = &end.nodes[h.node()];
            !node.crashed && node.life == h.life()
        };
        let ready = wanted.iter().filter(up).count();
        if ready == self.copies && end.acked != end.version {
            return false; // a ring that is whole acknowledges everything
        }
        let heard = std::array::from_fn(|n| {
            let node = &end.nodes[n];
            let there = node.view == last && self.is_member(&end, n as u8);
            there.then(|| (node.life, node.memory_since, node.mark, node.newest()))
        });
        ready == 0
            || [&history.runs[..], history.runs_since(end.confirmed)].into_iter().all(|runs| {
                match self.decide(runs, &heard) {
                    Decision::Exact { version, .. } => version as u8 >= end.acked,
                    Decision::Nothing => end.acked == 0,
                    Decision::Unavailable { .. } => false,
                }
            })
    }
}

/// More than any good end takes.
const STEPS_MAX: usize = 200;

impl Model for MirrorModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.happen(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(I1, Self::somebody_has_it),
            Property::always(I2, |_, s: &State| s.broken & broken::I2_TORN == 0),
            // Also those that the old owner gives later: both only grow, and are compared in each
            // state.
            Property::always(I3, |_, s: &State| s.recovered == NONE || s.recovered >= s.acked),
            Property::always(I5, |_, s: &State| s.broken & broken::I5_OVERWRITTEN == 0),
            Property::always(I7, |_, s: &State| s.broken & broken::I7_BELOW_FLOOR == 0),
            Property::always(ONE_MIRROR, |_, s: &State| s.broken & broken::TWO_MIRRORS == 0),
            Property::sometimes("a version is acknowledged", |_, s: &State| s.acked > 0),
            Property::sometimes("a version is recovered", |_, s: &State| {
                s.recovered != NONE && s.recovered > 0
            }),
        ];
        // A lease stands in for the fence: what lands late is not acknowledged any more.
        if !self.has_leases() {
            properties
                .push(Property::always(I6, |_, s: &State| s.broken & broken::I6_LANDED_LATE == 0));
        }
        if self.history.has_former_lives() {
            properties
                .push(Property::sometimes("a former life's copy is recovered", |m: &Self, _| {
                    m.recoveries.used_a_former_life()
                }));
        }
        if self.limits.good_ends {
            let good_end = |m: &Self, s: &State| m.good_end(s);
            properties.push(Property::always(GOOD_END, good_end));
        }
        properties
    }
}
