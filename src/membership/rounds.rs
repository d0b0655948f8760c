//! The one-round ballot, and what is due when: the messages around one node's
//! [`Votes`](super::ballot::Votes).

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Body, Change, Member, Membership, NodeId, Output, Peer, Refusal, Time, View,
    ballot::{Ballot, Promise},
    machine::Phase,
    quorum::fast_quorum,
    slow::{Lead, is_possible},
};

/// A candidate waits for at most this many others.
pub(super) const RANK_MAX: u32 = 20;
/// Waiting doubles with each attempt, so many times.
pub(super) const DOUBLINGS_MAX: u32 = 4;
/// Beyond this a round is nonsense.
pub(super) const ROUND_MAX: u32 = u32::MAX / 2;
/// Refused proposals that are remembered for the merge.
const REFUSED_MAX: usize = 8;

/// What a node remembers of the ballots on the next number without having to.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Who acknowledged this node's proposal.
    pub(super) acks: BTreeSet<NodeId>,
    /// Proposals that this node could not follow, for the merge.
    pub(super) refused: Vec<Arc<View>>,
    /// The slow ballot that this node coordinates.
    pub(super) lead: Option<Lead>,
    pub(super) round_seen: u32,
    pub(super) attempts: u32,
    pub(super) retries: u32,
    pub(super) propose_at: Option<Time>,
    pub(super) retry_at: Option<Time>,
    /// When this node begins a slow ballot; set as soon as it knows that something is to be decided.
    pub(super) coordinate_at: Option<Time>,
}

impl Round {
    pub(super) fn deadlines(&self) -> [Option<Time>; 3] {
        [self.propose_at, self.retry_at, self.coordinate_at]
    }
}

impl Membership {
    /// Does whatever is due.
    pub(super) fn drive(&mut self, now: Time, out: &mut Vec<Output>) {
        // Where one vote decides, what was waiting for that decision comes next.
        for _ in 0..RANK_MAX {
            let Some(view) = self.view.clone().filter(|_| self.phase == Phase::Member) else {
                return;
            };
            self.requests.prune(&view, now);
            self.propose_if_due(&view, now, out);
            self.coordinate_if_due(&view, now, out);
            self.retry_if_due(&view, now, out);
            if self.number() == view.number {
                return;
            }
        }
    }

    /// After a restart: whatever was going on may still be undecided.
    pub(super) fn take_up_votes(&mut self, now: Time) {
        if self.votes.declarable(&self.me.id).is_some() {
            self.round.acks.insert(self.me.id.clone());
            self.round.retry_at = Some(now);
        }
        if self.votes.promised.is_some() || self.votes.cast != Promise::default() {
            self.stir(now, false);
        }
    }

    pub(super) fn ballot_message(
        &mut self,
        now: Time,
        from: &Peer,
        body: Body,
        out: &mut Vec<Output>,
    ) {
        let Some(view) = self.view.clone() else { return };
        let Some(rank) = view.voter_rank(&from.id) else { return };
        if !view.is_voter(&self.me.id) {
            return;
        }
        let from_coordinator =
            |ballot: Ballot| ballot.rank as usize == rank && ballot.round <= ROUND_MAX;
        match body {
            Body::Propose(value) if view.precedes(&value) => {
                self.proposed(now, from, &value, out);
            }
            Body::Ack => {
                self.round.acks.insert(from.id.clone());
                self.declare_if_decided(&view, now, out);
            }
            Body::Nack(refusal) => self.refused_by_voter(now, &refusal),
            Body::Prepare(ballot) if from_coordinator(ballot) => {
                self.asked_to_promise(now, from, ballot, out);
            }
            Body::Promise(ballot, promise) if is_possible(&view, &promise) => {
                self.promised(&view, now, from, ballot, promise, out);
            }
            Body::Accept(ballot, value) if from_coordinator(ballot) && view.precedes(&value) => {
                self.asked_to_accept(now, from, ballot, &value, out);
            }
            Body::Accepted(ballot) => self.accepted(&view, now, from, ballot, out),
            _ => {}
        }
    }

    /// What this node wants changed, and when it is its turn to say so.
    pub(super) fn wish(&self, view: &View, now: Time) -> Option<(Time, Change)> {
        let mut change = Change::default();
        let mut at = None;
        for joiner in self.requests.joiners(view, &self.detector) {
            change.joined.push(joiner.clone());
            at = Some(now);
        }
        for leaver in self.requests.leavers() {
            change.left.push(leaver.clone());
            at = Some(now);
        }
        for (suspect, since) in self.detector.removable() {
            let turn = since + self.config.propose_stagger * self.removal_rank(view, suspect);
            at = Some(at.map_or(turn, |at: Time| at.min(turn)));
            if !change.evicts(suspect) && !change.left.contains(suspect) {
                change.removed.push(suspect.clone());
            }
        }
        at.map(|at| (at, change))
    }

    /// The view that this node wants next. Where its suspects are too many to be taken out, the
    /// other wishes stand.
    pub(super) fn wished(&self, view: &View, change: &Change) -> Option<Arc<View>> {
        let without = Change { removed: Vec::new(), ..change.clone() };
        let next = view.next(change, &self.facts).or_else(|_| view.next(&without, &self.facts));
        next.ok().map(Arc::new)
    }

    /// Its predecessor takes out a failed member, then that one's predecessor, and so on.
    fn removal_rank(&self, view: &View, suspect: &NodeId) -> u32 {
        let len = view.ring.len();
        let Some(at) = view.position(suspect) else { return RANK_MAX };
        let before = (1..len).map(|step| &view.ring[(at + len - step) % len].id);
        let live = before.filter(|id| !self.detector.is_suspect(id));
        let rank = live.take_while(|id| **id != self.me.id).count();
        u32::try_from(rank).unwrap_or(RANK_MAX).min(RANK_MAX)
    }

    fn propose_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        self.round.propose_at = None;
        let Some((at, change)) = self.wish(view, now) else { return };
        if self.votes.cast.vote.is_some() || self.votes.cast.accepted.is_some() {
            return;
        }
        if at > now {
            self.round.propose_at = Some(at);
            return;
        }
        let Some(value) = self.wished(view, &change) else { return };
        if !self.votes.propose(&self.me.id, value.clone()) {
            // Promised, so it takes a slow ballot.
            if self.round.coordinate_at.is_none() {
                self.stir(now, false);
            }
            return;
        }
        self.persist(out);
        self.round.acks = BTreeSet::from([self.me.id.clone()]);
        self.send_to_voters(view, out, |member| {
            (!value.change.evicts(&member.id)).then(|| Body::Propose(value.clone()))
        });
        self.round.retry_at = Some(now + self.config.retry_after);
        self.stir(now, false);
        self.declare_if_decided(view, now, out);
    }

    fn proposed(&mut self, now: Time, from: &Peer, value: &Arc<View>, out: &mut Vec<Output>) {
        match self.votes.acknowledge(&self.me.id, &from.id, value) {
            Ok(news) => {
                if news {
                    self.persist(out);
                }
                self.send(from, Body::Ack, out);
                self.stir(now, false);
            }
            Err(refusal) => {
                let refused = &mut self.round.refused;
                if refused.len() < REFUSED_MAX && !refused.contains(value) {
                    refused.push(value.clone());
                }
                let contested = !value.change.evicts(&self.me.id);
                self.send(from, Body::Nack(refusal), out);
                self.stir(now, contested);
            }
        }
    }

    fn refused_by_voter(&mut self, now: Time, refusal: &Refusal) {
        if let Refusal::Promised(ballot) = *refusal
            && ballot.round <= ROUND_MAX
        {
            self.round.round_seen = self.round.round_seen.max(ballot.round);
            self.round.lead.take_if(|lead| lead.ballot < ballot);
        }
        self.stir(now, true);
    }

    fn declare_if_decided(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        let Some(value) = self.votes.declarable(&self.me.id).cloned() else { return };
        if self.round.acks.len() >= fast_quorum(view.voters.len()) {
            self.decided(now, value, out);
        }
    }

    fn retry_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        if self.number() != view.number || self.round.retry_at.is_none_or(|at| at > now) {
            return;
        }
        let doublings = self.round.retries.min(DOUBLINGS_MAX);
        self.round.retries += 1;
        self.round.retry_at = Some(now + self.config.retry_after * (1 << doublings));
        if let Some(lead) = &self.round.lead {
            self.send_to_voters(view, out, |to| match &lead.value {
                Some(_) if lead.accepted.contains(&to.id) => None,
                Some(value) => Some(Body::Accept(lead.ballot, value.clone())),
                None if lead.promises.contains_key(&to.id) => None,
                None => Some(Body::Prepare(lead.ballot)),
            });
        } else if let Some(value) = self.votes.declarable(&self.me.id) {
            self.send_to_voters(view, out, |to| {
                let wanted = !self.round.acks.contains(&to.id) && !value.change.evicts(&to.id);
                wanted.then(|| Body::Propose(value.clone()))
            });
        } else {
            self.round.retry_at = None;
        }
    }

    pub(super) fn send_to_voters(
        &self,
        view: &View,
        out: &mut Vec<Output>,
        body: impl Fn(&Member) -> Option<Body>,
    ) {
        for member in &view.voters {
            if let Some(body) = body(member) {
                self.send(&member.into(), body, out);
            }
        }
    }
}
