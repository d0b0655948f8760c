//! Proposing, voting and deciding: the messages around one node's [`Votes`](super::ballot::Votes).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Body, Change, Member, Membership, NodeId, Output, Peer, Refusal, Time, View,
    ballot::{Ballot, Promise},
    chooser::{Choice, choose},
    machine::Phase,
    quorum::{fast_quorum, majority},
};

/// A candidate waits for at most this many others.
const RANK_MAX: u32 = 20;
/// Waiting doubles with each attempt, so many times.
const DOUBLINGS_MAX: u32 = 4;
/// Beyond this a round is nonsense.
const ROUND_MAX: u32 = u32::MAX / 2;
/// Refused proposals that are remembered for the merge.
const REFUSED_MAX: usize = 8;

/// What a node remembers of the ballots on the next number without having to.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Who acknowledged this node's proposal.
    acks: BTreeSet<NodeId>,
    /// Proposals that this node could not follow, for the merge.
    refused: Vec<Arc<View>>,
    /// The slow ballot that this node coordinates.
    lead: Option<Lead>,
    round_seen: u32,
    attempts: u32,
    retries: u32,
    propose_at: Option<Time>,
    retry_at: Option<Time>,
    /// When this node begins a slow ballot; set as soon as it knows that something is to be decided.
    coordinate_at: Option<Time>,
}

#[derive(Debug)]
struct Lead {
    ballot: Ballot,
    promises: BTreeMap<NodeId, Promise>,
    value: Option<Arc<View>>,
    accepted: BTreeSet<NodeId>,
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

    // The one-round ballot.

    /// What this node wants changed, and when it is its turn to say so.
    fn wish(&self, view: &View, now: Time) -> Option<(Time, Change)> {
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
        for (suspect, since) in self.detector.suspects() {
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
    fn wished(&self, view: &View, change: &Change) -> Option<Arc<View>> {
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

    // The slow ballot.

    /// Something is to be decided: if that takes too long, this node will coordinate a slow ballot.
    fn stir(&mut self, now: Time, contested: bool) {
        let Some(view) = self.view.as_ref() else { return };
        let stagger = self.config.propose_stagger;
        let rank = self.live_rank(view);
        let at = match contested {
            true => now + stagger * (rank + 1),
            false => now + self.config.slow_ballot_after + stagger * rank,
        };
        let planned = self.round.coordinate_at;
        self.round.coordinate_at = match planned {
            Some(planned) if self.round.attempts > 0 || planned < at => Some(planned),
            _ => Some(at),
        };
    }

    /// How many voters before this one seem to live.
    fn live_rank(&self, view: &View) -> u32 {
        let before = view.voters.iter().take_while(|m| m.id != self.me.id);
        let live = before.filter(|m| !self.detector.is_suspect(&m.id)).count();
        u32::try_from(live).unwrap_or(RANK_MAX).min(RANK_MAX)
    }

    fn postpone(&mut self, view: &View, now: Time) {
        let patience =
            self.config.slow_ballot_after * (1 << self.round.attempts.min(DOUBLINGS_MAX));
        let stagger = self.config.propose_stagger * self.live_rank(view);
        self.round.coordinate_at = Some(now + patience + stagger);
    }

    fn coordinate_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
        if self.number() != view.number || self.round.coordinate_at.is_none_or(|at| at > now) {
            return;
        }
        self.round.coordinate_at = None;
        let Some(rank) = view.voter_rank(&self.me.id).and_then(|rank| u32::try_from(rank).ok())
        else {
            return;
        };
        let promised = self.votes.promised.map_or(0, |ballot| ballot.round);
        let ballot = Ballot { round: self.round.round_seen.max(promised) + 1, rank };
        if ballot.round > ROUND_MAX || self.votes.promise(ballot).is_err() {
            return;
        }
        self.persist(out);
        self.round.attempts += 1;
        self.round.round_seen = ballot.round;
        let (promises, accepted) = Default::default();
        self.round.lead = Some(Lead { ballot, promises, value: None, accepted });
        self.postpone(view, now);
        self.round.retry_at = Some(now + self.config.retry_after);
        self.send_to_voters(view, out, |_| Some(Body::Prepare(ballot)));
        let (me, cast) = (Peer::from(&self.me), self.votes.cast.clone());
        self.promised(view, now, &me, ballot, cast, out);
    }

    fn asked_to_promise(&mut self, now: Time, from: &Peer, ballot: Ballot, out: &mut Vec<Output>) {
        match self.votes.promise(ballot) {
            Ok(news) => {
                if news {
                    self.persist(out);
                }
                self.follow(now, ballot);
                let cast = self.votes.cast.clone();
                self.send(from, Body::Promise(ballot, cast), out);
            }
            Err(refusal) => self.send(from, Body::Nack(refusal), out),
        }
    }

    /// Somebody else coordinates: give him time.
    fn follow(&mut self, now: Time, ballot: Ballot) {
        self.round.round_seen = self.round.round_seen.max(ballot.round);
        self.round.lead.take_if(|lead| lead.ballot < ballot);
        if let Some(view) = self.view.clone() {
            self.postpone(&view, now);
        }
    }

    fn promised(
        &mut self,
        view: &View,
        now: Time,
        from: &Peer,
        ballot: Ballot,
        promise: Promise,
        out: &mut Vec<Output>,
    ) {
        let Some(lead) = self.round.lead.as_mut() else { return };
        if lead.ballot != ballot || lead.value.is_some() {
            return;
        }
        lead.promises.insert(from.id.clone(), promise);
        if lead.promises.len() < majority(view.voters.len()) {
            return;
        }
        let voters: Vec<NodeId> = view.voters.iter().map(|m| m.id.clone()).collect();
        let value = match choose(&voters, fast_quorum(voters.len()), &lead.promises) {
            Choice::Bound(value) => Some(value),
            Choice::Free => self.merged(view, now),
            Choice::Contradiction => None,
        };
        let Some(value) = value else {
            // Nobody in this majority wants anything; whoever does will begin again.
            self.round.lead = None;
            self.round.coordinate_at = None;
            return;
        };
        if self.votes.accept(ballot, &value).is_err() {
            return;
        }
        self.persist(out);
        if let Some(lead) = self.round.lead.as_mut() {
            lead.value = Some(value.clone());
        }
        self.send_to_voters(view, out, |_| Some(Body::Accept(ballot, value.clone())));
        let me = Peer::from(&self.me);
        self.accepted(view, now, &me, ballot, out);
    }

    /// A free choice: all that anybody proposed, or if that is too much, one of the proposals.
    fn merged(&self, view: &View, now: Time) -> Option<Arc<View>> {
        let lead = self.round.lead.as_ref()?;
        let votes = lead.promises.values().filter_map(|promise| promise.vote.as_ref());
        let proposals: Vec<&Arc<View>> =
            votes.map(|vote| &vote.value).chain(&self.round.refused).collect();
        let Some(first) = proposals.first() else {
            let (_, change) = self.wish(view, now)?;
            return self.wished(view, &change);
        };
        if proposals.iter().all(|value| value == first) {
            return Some((*first).clone());
        }
        let union = proposals.iter().fold(Change::default(), |all, v| all.union(&v.change));
        let merged = view.next(&union, &self.facts).ok().map(Arc::new);
        merged.or_else(|| Some((*first).clone()))
    }

    fn asked_to_accept(
        &mut self,
        now: Time,
        from: &Peer,
        ballot: Ballot,
        value: &Arc<View>,
        out: &mut Vec<Output>,
    ) {
        match self.votes.accept(ballot, value) {
            Ok(news) => {
                if news {
                    self.persist(out);
                }
                self.follow(now, ballot);
                self.send(from, Body::Accepted(ballot), out);
            }
            Err(refusal) => self.send(from, Body::Nack(refusal), out),
        }
    }

    fn accepted(
        &mut self,
        view: &View,
        now: Time,
        from: &Peer,
        ballot: Ballot,
        out: &mut Vec<Output>,
    ) {
        let Some(lead) = self.round.lead.as_mut().filter(|lead| lead.ballot == ballot) else {
            return;
        };
        let Some(value) = lead.value.clone() else { return };
        lead.accepted.insert(from.id.clone());
        if lead.accepted.len() >= majority(view.voters.len()) {
            self.decided(now, value, out);
        }
    }

    // Both.

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

    fn send_to_voters(
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

/// Whether a voter of `view` can have promised so.
fn is_possible(view: &View, promise: &Promise) -> bool {
    let vote = promise.vote.iter();
    let vote_fits = vote.clone().all(|vote| vote.proposers.iter().all(|p| view.is_voter(p)));
    let values = vote.map(|v| &v.value).chain(promise.accepted.iter().map(|(_, value)| value));
    vote_fits && values.into_iter().all(|value| view.precedes(value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::membership::{
        Config, Durable, Event, Message,
        ballot::{Vote, Votes},
        change::tests::{founded, join, member, remove},
        holders::SyncFacts,
    };

    fn at(ms: u64) -> Time {
        Time(0) + Duration::from_millis(ms)
    }

    fn hear(machine: &mut Membership, now: Time, from: &str, body: Body) -> Vec<Output> {
        let message = Message { cluster: 9, view: 3, to: None, body };
        let mut out = Vec::new();
        let from = Peer::from(&member(from, 1));
        machine.handle(now, Event::Received { from, message }, &mut out);
        out
    }

    fn values(out: &[Output]) -> Vec<Arc<View>> {
        let bodies = out.iter().filter_map(|output| match output {
            Output::Send { message, .. } => Some(&message.body),
            _ => None,
        });
        bodies
            .filter_map(|body| match body {
                Body::Propose(value) | Body::Accept(_, value) => Some(value.clone()),
                _ => None,
            })
            .collect()
    }

    /// Node a of the ring a b c proposes to take in x, b has voted otherwise, and c is not heard
    /// of. What a asks to accept, after b's promise.
    fn chosen(vote: Option<Vote>) -> Change {
        let view = Arc::new(founded(&["a", "b", "c"]));
        let me = member("a", 1);
        let durable = Durable { me, view, votes: Votes::default(), leaving: false };
        let mut a = Membership::resume(Config::default(), durable, at(0)).unwrap();
        let joiner = Body::Join { member: member("x", 1), forwarded: true };
        let proposed = values(&hear(&mut a, at(0), "b", joiner));
        assert_eq!(proposed[0].change, join(&[member("x", 1)]));
        hear(&mut a, at(1), "b", Body::Nack(Refusal::OtherVote));
        a.handle(at(60), Event::Tick, &mut Vec::new());
        let ballot = a.votes.promised.expect("a slow ballot has begun");
        let promise = Promise { vote, accepted: None };
        let accepts = values(&hear(&mut a, at(61), "b", Body::Promise(ballot, promise)));
        assert_eq!(accepts.len(), 2, "to b and c");
        accepts[0].change.clone()
    }

    fn vote_of_b(proposer: &str) -> Vote {
        let value = founded(&["a", "b", "c"]).next(&remove(&["c"]), &SyncFacts::default()).unwrap();
        Vote { value: Arc::new(value), proposers: vec![member(proposer, 1).id] }
    }

    #[test]
    fn a_coordinator_gives_up_its_own_proposal_for_one_that_may_be_decided() {
        assert_eq!(chosen(Some(vote_of_b("c"))), remove(&["c"]), "c and b may have decided it");
    }

    #[test]
    fn a_coordinator_with_a_free_choice_merges_the_proposals() {
        let all = remove(&["c"]).union(&join(&[member("x", 1)]));
        assert_eq!(chosen(Some(vote_of_b("b"))), all, "b has promised and will not decide alone");
        assert_eq!(chosen(None), join(&[member("x", 1)]));
    }

    #[test]
    fn malformed_and_foreign_messages_change_nothing() {
        let view = Arc::new(founded(&["a", "b", "c"]));
        let (me, votes) = (member("a", 1), Votes::default());
        let durable = Durable { me, view: view.clone(), votes, leaving: false };
        let mut a = Membership::resume(Config::default(), durable, at(0)).unwrap();
        a.handle(at(0), Event::Tick, &mut Vec::new());
        let good = vote_of_b("b").value;
        let spoil = |spoil: &dyn Fn(&mut View)| {
            let mut spoilt = (*good).clone();
            spoil(&mut spoilt);
            Arc::new(spoilt)
        };
        let ballot = |round, rank| Ballot { round, rank };
        let bodies = [
            ("x", Body::Propose(good.clone())),
            ("b", Body::Propose(spoil(&|v| v.number = u64::MAX))),
            ("b", Body::Propose(spoil(&|v| v.ring.clear()))),
            ("b", Body::Install(spoil(&|v| v.voters.clear()))),
            ("b", Body::Install(spoil(&|v| v.number = u64::MAX))),
            ("b", Body::Install(spoil(&|v| v.cluster = 5))),
            ("b", Body::Prepare(ballot(1, 2))),
            ("b", Body::Prepare(ballot(u32::MAX, 1))),
            ("b", Body::Accept(ballot(1, 1), spoil(&|v| v.holders.clear()))),
            ("b", Body::Accepted(ballot(1, 0))),
            ("b", Body::Promise(ballot(1, 0), Promise::default())),
            ("x", Body::Ack),
        ];
        for (from, body) in bodies {
            let out = hear(&mut a, at(10), from, body.clone());
            assert_eq!(out, [], "{from}: {body:?}");
        }
        assert_eq!((&a.votes, a.view()), (&Votes::default(), Some(&view)));
    }
}
