//! The second ballot: when the one-round ballot does not come to an end, a coordinator settles it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Body, Change, Membership, NodeId, Output, Peer, Time, View,
    ballot::{Ballot, Promise},
    chooser::{Choice, choose},
    quorum::{fast_quorum, majority},
    rounds::{DOUBLINGS_MAX, RANK_MAX, ROUND_MAX},
};

/// A slow ballot that this node coordinates.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) ballot: Ballot,
    pub(super) promises: BTreeMap<NodeId, Promise>,
    pub(super) value: Option<Arc<View>>,
    pub(super) accepted: BTreeSet<NodeId>,
}

impl Membership {
    /// Something is to be decided: if that takes too long, this node will coordinate a slow ballot.
    pub(super) fn stir(&mut self, now: Time, contested: bool) {
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

    pub(super) fn coordinate_if_due(&mut self, view: &View, now: Time, out: &mut Vec<Output>) {
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

    pub(super) fn asked_to_promise(
        &mut self,
        now: Time,
        from: &Peer,
        ballot: Ballot,
        out: &mut Vec<Output>,
    ) {
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

    pub(super) fn promised(
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

    pub(super) fn asked_to_accept(
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

    pub(super) fn accepted(
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
}

/// Whether a voter of `view` can have promised so.
pub(super) fn is_possible(view: &View, promise: &Promise) -> bool {
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
        Config, Durable, Event, Message, Refusal,
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
