//! One node of [`Ring`]: what a step of the real code comes to.

use std::sync::Arc;

use ringkeep::membership::{
    Body, Change, NodeId, View,
    ballot::Votes,
    instance::{Instance, Step},
};

use super::ring::Ring;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Local {
    Joining(NodeId),
    In(Box<Voter>),
    /// Has no part in the newest view that it knows.
    Out(Arc<View>),
}

/// A member, or a former one that still counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Voter {
    pub(super) instance: Instance,
    /// What it would be if it were killed now. Of the right code what is in memory is stored
    /// whenever anybody hears anything, so this makes no states.
    pub(super) stored: Votes,
}

impl Voter {
    fn fresh(me: NodeId, view: Arc<View>) -> Self {
        Self::resumed(me, view, Votes::default())
    }

    fn resumed(me: NodeId, view: Arc<View>, stored: Votes) -> Self {
        Self { instance: Instance::new(me, view, stored.clone()), stored }
    }

    pub(super) fn me(&self) -> &NodeId {
        self.instance.me()
    }

    pub(super) fn view(&self) -> &Arc<View> {
        self.instance.view()
    }

    fn restarted(&self, stored: Votes) -> Self {
        Self::resumed(self.me().clone(), self.view().clone(), stored)
    }
}

impl Local {
    pub(super) fn enter(me: NodeId, view: Arc<View>) -> Self {
        match view.member(&me) {
            Some(_) => Self::In(Box::new(Voter::fresh(me, view))),
            None => Self::Out(view),
        }
    }
}

/// A message that was sent once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Fact {
    /// Of what was decided nobody: it does not matter who says so.
    pub(super) from: Option<NodeId>,
    /// Which node of the model.
    pub(super) to: usize,
    /// The sender's view.
    pub(super) view: u64,
    pub(super) body: Body,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Input {
    Propose(Arc<Change>),
    TakeTheLead,
    Receive(u32),
    /// Answers, one after the other.
    Collect(Vec<u32>),
    Restart,
    Forget,
    /// Declares what it did not propose.
    Overhear(Arc<Change>),
}

/// What one step of a node comes to.
pub(super) struct Outcome {
    pub(super) local: u32,
    pub(super) sent: Vec<u32>,
    /// The view number that was decided, and the change.
    pub(super) decided: Option<(u64, u32)>,
    /// It took back what it had voted.
    pub(super) broken: bool,
    /// What is left if it is killed in the middle, where that is news.
    pub(super) cuts: Vec<Outcome>,
}

impl Ring {
    /// None if nothing comes of it.
    pub(super) fn outcome(&self, local: u32, input: u32) -> Option<Arc<Outcome>> {
        self.outcomes.get((local, input), |&(local, input)| {
            let (before, input) = (self.locals.get(local), self.inputs.get(input));
            let mut after = (*before).clone();
            let mut steps = Vec::new();
            match (&mut after, &*input) {
                (Local::In(voter), Input::Propose(change)) => {
                    voter.instance.propose(change, &mut steps);
                }
                (Local::In(voter), Input::TakeTheLead) => {
                    voter.instance.take_the_lead(None, &mut steps);
                }
                (Local::In(voter), Input::Restart) => {
                    **voter = voter.restarted(voter.stored.clone());
                }
                (Local::In(voter), Input::Forget) => **voter = voter.restarted(Votes::default()),
                (Local::In(_), Input::Overhear(change)) => {
                    steps.push(Step::Decided(change.clone()));
                }
                (_, Input::Receive(fact)) => self.receive(&mut after, *fact, &mut steps),
                (_, Input::Collect(facts)) => {
                    facts.iter().for_each(|fact| self.receive(&mut after, *fact, &mut steps));
                }
                _ => return None,
            }
            // Answers of which nothing comes yet can as well be heard when something does.
            let waits = matches!(*input, Input::Collect(_)) && steps.is_empty();
            let mut outcome = self.take(&before, after, steps);
            outcome.broken &= *input != Input::Forget;
            let idle = outcome.local == local && outcome.sent.is_empty();
            (!waits && (!idle || outcome.decided.is_some())).then(|| Arc::new(outcome))
        })
    }

    /// What the machine around an instance does with a message.
    fn receive(&self, local: &mut Local, fact: u32, steps: &mut Vec<Step>) {
        let Fact { from, view: number, body, .. } = &*self.facts.get(fact);
        match (&mut *local, body) {
            (Local::Joining(me), Body::Install(view)) => {
                *local = Local::enter(me.clone(), view.clone());
            }
            (Local::In(voter), Body::Decided(change)) => {
                if voter.view().number + 1 == *number
                    && let Ok(next) = voter.view().next(change)
                {
                    *local = Local::enter(voter.me().clone(), Arc::new(next));
                }
            }
            (Local::In(voter), body) if voter.view().number == *number => {
                let from = from.as_ref().expect("a voter said it");
                voter.instance.receive(from, body, steps);
            }
            _ => {}
        }
    }

    /// Does what the instance wants done, as the machine around it does.
    fn take(&self, before: &Local, after: Local, steps: Vec<Step>) -> Outcome {
        let none = |local| {
            let (sent, cuts) = Default::default();
            Outcome { local, sent, decided: None, broken: false, cuts }
        };
        let (Local::In(old), Local::In(new)) = (before, &after) else {
            return none(self.locals.number(after));
        };
        if old.view() != new.view() {
            return none(self.locals.number(after));
        }
        let (me, view) = (new.me(), new.view());
        let (mut after, mut sent, mut cuts) = (new.clone(), Vec::new(), Vec::new());
        for step in steps {
            // Killed before anything came of it: a restart before. Killed when all was stored: a
            // restart after, and what was still to be said is lost.
            let before_all = sent.is_empty() && after.stored == old.stored;
            let decides = matches!(step, Step::Decided(_));
            let after_all = after.stored == *new.instance.votes() && !decides;
            if !before_all && !after_all {
                let left = old.restarted(after.stored.clone());
                let broken = !sent.is_empty() && contradicts(&new.instance, &left.instance);
                let local = self.locals.number(Local::In(Box::new(left)));
                cuts.push(Outcome { sent: sent.clone(), broken, ..none(local) });
            }
            match step {
                Step::Persist => after.stored = new.instance.votes().clone(),
                Step::Send { body: Body::Nack(_), .. } => {} // it only tells the sender earlier
                Step::Send { to, body } => {
                    let (from, to) = (Some(me.clone()), self.index(&to));
                    sent.push(self.facts.number(Fact { from, to, view: view.number, body }));
                }
                Step::Decided(change) => {
                    let next = Arc::new(view.next(&change).unwrap());
                    self.tell(me, view, &next, &mut sent);
                    let decided = Some((next.number, self.changes.number((*change).clone())));
                    let local = self.locals.number(Local::enter(me.clone(), next));
                    return Outcome { sent, decided, cuts, ..none(local) };
                }
            }
        }
        let broken = contradicts(&old.instance, &after.instance);
        let local = self.locals.number(Local::In(after));
        Outcome { local, sent, decided: None, broken, cuts }
    }

    /// What is said of a decided view.
    fn tell(&self, me: &NodeId, view: &View, next: &Arc<View>, sent: &mut Vec<u32>) {
        if !self.is_told(next.number) {
            return;
        }
        let mut say = |to: &NodeId, body| {
            let (to, view) = (self.index(to), next.number);
            sent.push(self.facts.number(Fact { from: None, to, view, body }));
        };
        for member in view.everybody().filter(|m| m.id != *me) {
            say(&member.id, Body::Decided(Arc::new(next.change.clone())));
        }
        for joiner in next.everybody().filter(|m| view.member(&m.id).is_none()) {
            say(&joiner.id, Body::Install(next.clone()));
        }
    }

    /// Whether a message may still do something to its addressee, now or later; `known` tells
    /// whether another message has been sent already or would be without effect.
    ///
    /// One that may not is dropped, so that states that differ in nothing else are one. That is
    /// sound because a vote only grows (I8, which is checked): a question that changes nothing and
    /// brings no new answer is refused, or answered as before, for ever; a slow ballot that was
    /// given up, or has its value, never asks for promises again; and who may not declare now never
    /// may.
    pub(super) fn matters(&self, fact: u32, local: u32, known: impl Fn(u32) -> bool) -> bool {
        let about = self.facts.get(fact);
        let local_is = self.locals.get(local);
        let voter = match &*local_is {
            Local::Joining(_) => return true,
            Local::Out(_) => return false,
            Local::In(voter) => voter,
        };
        let number = voter.view().number;
        match about.body {
            Body::Decided(_) | Body::Install(_) => number < about.view,
            _ if number != about.view => number < about.view,
            // Each is counted, but only together they do something.
            Body::Ack => self.awaits_votes.get(local, |_| {
                let mut steps = Vec::new();
                let mut instance = voter.instance.clone();
                for other in voter.view().voters.iter().filter(|m| m.id != *voter.me()) {
                    instance.receive(&other.id, &Body::Ack, &mut steps);
                }
                !steps.is_empty()
            }),
            _ => self
                .outcome(local, self.hears(fact))
                .is_some_and(|o| o.local != local || o.sent.iter().any(|&answer| !known(answer))),
        }
    }
}

/// Whether a voter took back what it had said (rule V5, I8).
fn contradicts(old: &Instance, new: &Instance) -> bool {
    let (old, new) = (old.votes(), new.votes());
    let value = |v: &Votes| v.cast.vote.as_ref().map(|vote| vote.value.clone());
    let accepted = |v: &Votes| v.cast.accepted.as_ref().map(|(ballot, _)| *ballot);
    value(old).is_some() && value(old) != value(new)
        || old.promised > new.promised
        || accepted(old) > accepted(new)
}
