//! When to propose, to ask again and to take the lead: the schedule around one [`Instance`]. It
//! decides how fast a view follows another, never whether that is safe.

use std::sync::Arc;

use super::{
    Body, Change, Membership, NodeId, Output, Peer, Time, View,
    instance::{Pace, Step},
    machine::Phase,
};

/// A candidate waits for at most this many others.
const RANK_MAX: u32 = 20;
/// Waiting doubles with each attempt, so many times.
const DOUBLINGS_MAX: u32 = 4;

/// What is due when, about the view after the installed one.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    attempts: u32,
    retries: u32,
    propose_at: Option<Time>,
    retry_at: Option<Time>,
    /// When this node takes the lead; set as soon as it knows that something is to be decided.
    lead_at: Option<Time>,
}

impl Schedule {
    pub(super) fn deadlines(&self) -> [Option<Time>; 3] {
        [self.propose_at, self.retry_at, self.lead_at]
    }
}

impl Membership {
    /// Does whatever is due.
    pub(super) fn drive(&mut self, now: Time, out: &mut Vec<Output>) {
        // Where one vote decides, what was waiting for that decision comes next.
        for _ in 0..RANK_MAX {
            let votes = matches!(self.phase, Phase::Member | Phase::Outside);
            let Some(view) = self.view.clone().filter(|_| votes) else { return };
            self.requests.prune(&view, now);
            self.propose_if_due(&view, now, out);
            self.lead_if_due(&view, now, out);
            self.ask_again_if_due(&view, now, out);
            if self.number() == view.number {
                return;
            }
        }
    }

    /// After a restart: whatever was going on may still be undecided.
    pub(super) fn take_up_votes(&mut self, now: Time) {
        let Some(instance) = &self.instance else { return };
        if instance.awaits_answers() {
            self.schedule.retry_at = Some(now);
        }
        if !instance.is_fresh() {
            self.stir(now, false);
        }
    }

    pub(super) fn ballot_message(
        &mut self,
        now: Time,
        from: &Peer,
        body: &Body,
        out: &mut Vec<Output>,
    ) {
        let Some(instance) = &mut self.instance else { return };
        let mut steps = Vec::new();
        let pace = instance.receive(&from.id, body, &mut steps);
        self.take(now, steps, out);
        match pace {
            Pace::Unchanged => {}
            Pace::Begun => self.stir(now, false),
            Pace::Contested => self.stir(now, true),
            Pace::Led => self.postpone(now),
        }
    }

    /// Does what the instance wants done.
    fn take(&mut self, now: Time, steps: Vec<Step>, out: &mut Vec<Output>) {
        for step in steps {
            match step {
                Step::Persist => self.persist(out),
                Step::Send { to, body } => {
                    let to = self.view.as_ref().and_then(|view| view.member(&to)).map(Peer::from);
                    if let Some(to) = to {
                        self.send(&to, body, out);
                    }
                }
                Step::Decided(change) => return self.decided(now, &change, out),
            }
        }
    }

    /// What this node wants changed, and when it is its turn to say so.
    pub(super) fn wish(&self, view: &View, now: Time) -> Option<(Time, Change)> {
        let mut change = Change::default();
        let mut at: Option<Time> = None;
        let mut joiners = self.requests.joiners(view, &self.detector);
        if self.phase == Phase::Outside {
            // The last resort when nobody of the ring is left: one of those who still vote takes
            // in the first that wants to join, and so on from there.
            let (joiner, since) = joiners.next()?;
            change.joined.push(joiner.clone());
            return Some((since + self.outside_patience(), change));
        }
        change.joined.extend(joiners.map(|(joiner, _)| joiner.clone()));
        self.requests.departures(view, &mut change);
        if !change.is_empty() {
            at = Some(now);
        }
        for (suspect, since) in self.detector.removable() {
            let turn = since + self.config.propose_stagger * self.removal_rank(view, suspect);
            at = Some(at.map_or(turn, |at: Time| at.min(turn)));
            if !change.evicts(suspect) && !change.left.contains(suspect) {
                change.leaving.retain(|id| id != suspect);
                change.staying.retain(|id| id != suspect);
                change.removed.push(suspect.clone());
            }
        }
        at.map(|at| (at, self.facts.attach(view, change)))
    }

    /// What of a wish can be: where the suspects are too many to be taken out, or nobody would
    /// stay, the other wishes stand.
    fn possible(&self, view: &View, change: Change) -> Option<Arc<Change>> {
        let nobody_goes = Change { leaving: Vec::new(), ..change.clone() };
        let nobody_fails = Change { removed: Vec::new(), ..change.clone() };
        let neither = Change { removed: Vec::new(), ..nobody_goes.clone() };
        let choices = [change, nobody_goes, nobody_fails, neither];
        choices.into_iter().find(|change| view.allows(change).is_ok()).map(Arc::new)
    }

    /// Its predecessor takes out a failed member, then that one's predecessor, and so on.
    fn removal_rank(&self, view: &View, suspect: &NodeId) -> u32 {
        let len = view.ring.len();
        let Some(at) = view.position(suspect) else { return RANK_MAX };
        let before = (1..len).map(|step| &view.ring[(at + len - step) % len].id);
        let live = before.filter(|id| !self.detector.is_suspect(id));
        live.take_while(|id| **id != self.me.id).take(RANK_MAX as usize).count() as u32
    }

    fn propose_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        self.schedule.propose_at = None;
        if !self.instance.as_ref().is_some_and(|instance| instance.may_propose()) {
            return;
        }
        let Some((at, wish)) = self.wish(view, now) else { return };
        if at > now {
            self.schedule.propose_at = Some(at);
            return;
        }
        let Some(change) = self.possible(view, wish) else { return };
        let Some(instance) = &mut self.instance else { return };
        let mut steps = Vec::new();
        if instance.propose(&change, &mut steps) {
            self.schedule.retry_at = Some(now + self.config.retry_after);
            self.stir(now, false);
            self.take(now, steps, out);
        } else if self.schedule.lead_at.is_none() {
            self.stir(now, false); // promised, so it takes a slow ballot
        }
    }

    fn lead_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        if self.number() != view.number || self.schedule.lead_at.is_none_or(|at| at > now) {
            return;
        }
        self.schedule.lead_at = None;
        let wish = self.wish(view, now).and_then(|(_, wish)| self.possible(view, wish));
        let Some(instance) = &mut self.instance else { return };
        let mut steps = Vec::new();
        if instance.take_the_lead(wish, &mut steps) {
            self.schedule.attempts += 1;
            self.schedule.retry_at = Some(now + self.config.retry_after);
            self.postpone(now);
            self.take(now, steps, out);
        }
    }

    fn ask_again_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        if self.number() != view.number || self.schedule.retry_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(instance) = self.instance.as_ref().filter(|i| i.awaits_answers()) else {
            self.schedule.retry_at = None;
            return;
        };
        let doublings = self.schedule.retries.min(DOUBLINGS_MAX);
        self.schedule.retries += 1;
        self.schedule.retry_at = Some(now + self.config.retry_after * (1 << doublings));
        let mut steps = Vec::new();
        instance.ask_again(&mut steps);
        self.take(now, steps, out);
    }

    /// Something is to be decided: if that takes too long, this node will take the lead.
    fn stir(&mut self, now: Time, contested: bool) {
        let Some(view) = self.view.as_ref() else { return };
        let stagger = self.config.propose_stagger;
        let rank = self.live_rank(view);
        let at = match contested {
            true => now + stagger * (rank + 1),
            false => now + self.config.slow_ballot_after + stagger * rank,
        };
        let planned = self.schedule.lead_at;
        self.schedule.lead_at = match planned {
            Some(planned) if self.schedule.attempts > 0 || planned < at => Some(planned),
            _ => Some(at),
        };
    }

    /// Somebody leads: give him time.
    fn postpone(&mut self, now: Time) {
        let Some(view) = self.view.as_ref() else { return };
        let doublings = self.schedule.attempts.min(DOUBLINGS_MAX);
        let patience = self.config.slow_ballot_after * (1 << doublings);
        let stagger = self.config.propose_stagger * self.live_rank(view);
        self.schedule.lead_at = Some(now + patience + stagger);
    }

    /// How many voters before this one seem to live.
    fn live_rank(&self, view: &View) -> u32 {
        let before = view.voters.iter().take_while(|m| m.id != self.me.id);
        let live = before.filter(|m| !self.detector.is_suspect(&m.id));
        live.take(RANK_MAX as usize).count() as u32
    }
}
