//! Deciding what comes after one view: one node's part in the ballots, and nothing else.
//!
//! There is no time in here. *When* somebody proposes, asks again or takes the lead is decided
//! elsewhere ([`rounds`](super::rounds)), by timers and suspicions that may be wrong; whatever they
//! do, this keeps the promise that each view number has one value. That is why it is apart, and why
//! the model checker drives it directly, in every order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Body, Change, NodeId, Refusal, View,
    ballot::{Ballot, Promise, Votes},
    chooser::{Choice, choose},
    quorum::{fast_quorum, majority},
};

/// Beyond this a round is nonsense.
const ROUND_MAX: u32 = u32::MAX / 2;

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Store [`Instance::votes`]. It must be durable before any later step is acted on (rule V5).
    Persist,
    /// Send this to a voter, never to this node itself.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        body: Body,
    },
    /// This was decided: it makes the next view. The instance is done.
    Decided(Arc<Change>),
}

/// What a message means for the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing.
    Unchanged,
    /// Something is to be decided; if that takes too long, somebody should take the lead.
    Begun,
    /// Different values are about: somebody should take the lead soon.
    Contested,
    /// Somebody leads: give him time.
    Led,
}

/// A slow ballot that this node leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lead {
    ballot: Ballot,
    /// What to decide if there is a free choice and nobody has proposed anything.
    wish: Option<Arc<Change>>,
    promises: BTreeMap<NodeId, Promise>,
    value: Option<Arc<Change>>,
    accepted: BTreeSet<NodeId>,
}

/// One node's part in deciding the view after `view`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance {
    me: NodeId,
    view: Arc<View>,
    votes: Votes,
    /// Who acknowledged this node's proposal.
    acks: BTreeSet<NodeId>,
    lead: Option<Lead>,
    round_seen: u32,
}

impl Instance {
    /// The part of `me`, with what it stored of its votes if it had begun before.
    pub fn new(me: NodeId, view: Arc<View>, votes: Votes) -> Self {
        let mine = votes.declarable(&me).map(|_| me.clone());
        let acks = mine.into_iter().collect();
        Self { me, view, votes, acks, lead: None, round_seen: 0 }
    }

    /// Whose part this is.
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// The view whose successor is decided.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// What must not be forgotten.
    pub fn votes(&self) -> &Votes {
        &self.votes
    }

    /// Whether this node has said anything yet by which it is bound.
    pub fn is_fresh(&self) -> bool {
        self.votes == Votes::default()
    }

    /// Whether this node may still vote in the one-round ballot.
    pub fn may_propose(&self) -> bool {
        self.votes.cast == Promise::default() && self.view.is_voter(&self.me)
    }

    /// Whether this node waits for answers.
    pub fn awaits_answers(&self) -> bool {
        self.lead.is_some() || self.votes.declarable(&self.me).is_some()
    }

    /// Proposes a change and votes for it (rule V1). False if that may not be: the change does not
    /// fit, or this node is bound already.
    pub fn propose(&mut self, change: &Arc<Change>, out: &mut Vec<Step>) -> bool {
        let may = self.view.is_voter(&self.me) && self.view.allows(change).is_ok();
        if !may || !self.votes.propose(&self.me, change.clone()) {
            return false;
        }
        out.push(Step::Persist);
        self.acks = BTreeSet::from([self.me.clone()]);
        self.ask_for_votes(change, out);
        self.declare_if_decided(out);
        true
    }

    /// Begins a slow ballot, above all that this node has seen. `wish` is what to decide if there
    /// is nothing else.
    pub fn take_the_lead(&mut self, wish: Option<Arc<Change>>, out: &mut Vec<Step>) -> bool {
        let rank = self.view.voter_rank(&self.me).and_then(|rank| u32::try_from(rank).ok());
        let promised = self.votes.promised.map_or(0, |ballot| ballot.round);
        let round = self.round_seen.max(promised) + 1;
        let Some(rank) = rank.filter(|_| round <= ROUND_MAX) else { return false };
        let ballot = Ballot { round, rank };
        if self.votes.promise(ballot).is_err() {
            return false;
        }
        out.push(Step::Persist);
        self.round_seen = round;
        let wish = wish.filter(|wish| self.view.allows(wish).is_ok());
        let (promises, accepted) = Default::default();
        self.lead = Some(Lead { ballot, wish, promises, value: None, accepted });
        self.send_to_voters(out, |_| Some(Body::Prepare(ballot)));
        let (me, cast) = (self.me.clone(), self.votes.cast.clone());
        self.promised(&me, ballot, cast, out);
        true
    }

    /// Asks those again who have not answered.
    pub fn ask_again(&self, out: &mut Vec<Step>) {
        if let Some(lead) = &self.lead {
            self.send_to_voters(out, |to| match &lead.value {
                Some(_) if lead.accepted.contains(to) => None,
                Some(value) => Some(Body::Accept(lead.ballot, value.clone())),
                None if lead.promises.contains_key(to) => None,
                None => Some(Body::Prepare(lead.ballot)),
            });
        } else if let Some(change) = self.votes.declarable(&self.me) {
            self.ask_for_votes(change, out);
        }
    }

    /// A message from somebody who has the same view. Anything that no voter can have said is
    /// ignored.
    pub fn receive(&mut self, from: &NodeId, body: &Body, out: &mut Vec<Step>) -> Pace {
        let Some(rank) = self.view.voter_rank(from) else { return Pace::Unchanged };
        if !self.view.is_voter(&self.me) {
            return Pace::Unchanged;
        }
        let leads = |ballot: &Ballot| ballot.rank as usize == rank && ballot.round <= ROUND_MAX;
        let fits = |change: &Change| self.view.allows(change).is_ok();
        match body {
            Body::Propose(change) if fits(change) => self.proposed(from, change, out),
            Body::Ack => {
                self.acks.insert(from.clone());
                self.declare_if_decided(out);
                Pace::Unchanged
            }
            Body::Nack(refusal) => self.refused(refusal),
            Body::Prepare(ballot) if leads(ballot) => self.asked_to_promise(from, *ballot, out),
            Body::Promise(ballot, promise) if self.is_possible(promise) => {
                self.promised(from, *ballot, promise.clone(), out);
                Pace::Unchanged
            }
            Body::Accept(ballot, change) if leads(ballot) && fits(change) => {
                self.asked_to_accept(from, *ballot, change, out)
            }
            Body::Accepted(ballot) => {
                self.accepted(from, *ballot, out);
                Pace::Unchanged
            }
            _ => Pace::Unchanged,
        }
    }

    // The one-round ballot.

    fn ask_for_votes(&self, change: &Arc<Change>, out: &mut Vec<Step>) {
        self.send_to_voters(out, |to| {
            let wanted = !self.acks.contains(to) && !change.evicts(to);
            wanted.then(|| Body::Propose(change.clone()))
        });
    }

    fn proposed(&mut self, from: &NodeId, change: &Arc<Change>, out: &mut Vec<Step>) -> Pace {
        match self.votes.acknowledge(&self.me, from, change) {
            Ok(news) => {
                if news {
                    out.push(Step::Persist);
                }
                send(out, from, Body::Ack);
                Pace::Begun
            }
            Err(refusal) => {
                send(out, from, Body::Nack(refusal));
                if change.evicts(&self.me) { Pace::Begun } else { Pace::Contested }
            }
        }
    }

    fn refused(&mut self, refusal: &Refusal) -> Pace {
        if let Refusal::Promised(ballot) = *refusal
            && ballot.round <= ROUND_MAX
        {
            self.give_way(ballot);
        }
        Pace::Contested
    }

    /// V3: only the proposer declares, only while it has promised nothing, on a fast quorum.
    fn declare_if_decided(&mut self, out: &mut Vec<Step>) {
        let Some(change) = self.votes.declarable(&self.me) else { return };
        if self.acks.len() >= fast_quorum(self.view.voters.len()) {
            out.push(Step::Decided(change.clone()));
        }
    }

    // The second ballot.

    fn give_way(&mut self, to: Ballot) {
        self.round_seen = self.round_seen.max(to.round);
        self.lead.take_if(|lead| lead.ballot < to);
    }

    fn asked_to_promise(&mut self, from: &NodeId, ballot: Ballot, out: &mut Vec<Step>) -> Pace {
        match self.votes.promise(ballot) {
            Ok(news) => {
                if news {
                    out.push(Step::Persist);
                }
                self.give_way(ballot);
                send(out, from, Body::Promise(ballot, self.votes.cast.clone()));
                Pace::Led
            }
            Err(refusal) => {
                send(out, from, Body::Nack(refusal));
                Pace::Unchanged
            }
        }
    }

    fn promised(&mut self, from: &NodeId, ballot: Ballot, promise: Promise, out: &mut Vec<Step>) {
        let Some(lead) = self.lead.as_mut() else { return };
        if lead.ballot != ballot || lead.value.is_some() {
            return;
        }
        lead.promises.insert(from.clone(), promise);
        if lead.promises.len() < majority(self.view.voters.len()) {
            return;
        }
        let voters: Vec<NodeId> = self.view.voters.iter().map(|m| m.id.clone()).collect();
        let value = match choose(&voters, fast_quorum(voters.len()), &lead.promises) {
            Choice::Bound(value) => Some(value),
            Choice::Free => merged(&self.view, lead),
            Choice::Contradiction => None,
        };
        let Some(value) = value else {
            self.lead = None; // nobody in this majority wants anything
            return;
        };
        if self.votes.accept(ballot, &value).is_err() {
            return;
        }
        out.push(Step::Persist);
        lead.value = Some(value.clone());
        self.send_to_voters(out, |_| Some(Body::Accept(ballot, value.clone())));
        let me = self.me.clone();
        self.accepted(&me, ballot, out);
    }

    fn asked_to_accept(
        &mut self,
        from: &NodeId,
        ballot: Ballot,
        change: &Arc<Change>,
        out: &mut Vec<Step>,
    ) -> Pace {
        match self.votes.accept(ballot, change) {
            Ok(news) => {
                if news {
                    out.push(Step::Persist);
                }
                self.give_way(ballot);
                send(out, from, Body::Accepted(ballot));
                Pace::Led
            }
            Err(refusal) => {
                send(out, from, Body::Nack(refusal));
                Pace::Unchanged
            }
        }
    }

    fn accepted(&mut self, from: &NodeId, ballot: Ballot, out: &mut Vec<Step>) {
        let Some(lead) = self.lead.as_mut().filter(|lead| lead.ballot == ballot) else { return };
        let Some(value) = lead.value.clone() else { return };
        lead.accepted.insert(from.clone());
        if lead.accepted.len() >= majority(self.view.voters.len()) {
            out.push(Step::Decided(value));
        }
    }

    /// Whether a voter of this view can have promised so.
    fn is_possible(&self, promise: &Promise) -> bool {
        let vote = promise.vote.iter();
        let vote_fits = vote.clone().all(|v| v.proposers.iter().all(|p| self.view.is_voter(p)));
        let accepted = promise.accepted.iter().map(|(_, value)| value);
        let values = vote.map(|v| &v.value).chain(accepted);
        vote_fits && values.into_iter().all(|value| self.view.allows(value).is_ok())
    }

    fn send_to_voters(&self, out: &mut Vec<Step>, body: impl Fn(&NodeId) -> Option<Body>) {
        for to in self.view.voters.iter().map(|m| &m.id).filter(|id| **id != self.me) {
            if let Some(body) = body(to) {
                send(out, to, body);
            }
        }
    }
}

fn send(out: &mut Vec<Step>, to: &NodeId, body: Body) {
    out.push(Step::Send { to: to.clone(), body });
}

/// A free choice: all that anybody voted for, or if that makes no view, one of the values.
fn merged(view: &View, lead: &Lead) -> Option<Arc<Change>> {
    let votes = lead.promises.values().filter_map(|promise| promise.vote.as_ref());
    let values: BTreeSet<&Arc<Change>> = votes.map(|vote| &vote.value).collect();
    let Some(first) = values.first() else { return lead.wish.clone() };
    let all = values.iter().fold(Change::default(), |all, value| all.union(value));
    let union = Arc::new(all);
    Some(if view.allows(&union).is_ok() { union } else { (*first).clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{
        ballot::Vote,
        change::tests::{founded, join, member, remove},
    };

    fn id(name: &str) -> NodeId {
        member(name, 1).id
    }

    fn instance() -> Instance {
        Instance::new(id("a"), Arc::new(founded(&["a", "b", "c"])), Votes::default())
    }

    fn hear(instance: &mut Instance, from: &str, body: Body) -> Vec<Step> {
        let mut out = Vec::new();
        instance.receive(&id(from), &body, &mut out);
        out
    }

    fn sent<T>(steps: &[Step], wanted: impl Fn(&Body) -> Option<T>) -> Vec<T> {
        let bodies = steps.iter().filter_map(|step| match step {
            Step::Send { body, .. } => wanted(body),
            _ => None,
        });
        bodies.collect()
    }

    /// Node a of the ring a b c proposes to take in x, b has voted otherwise, and c is not heard
    /// of. What a asks to accept, after b's promise.
    fn chosen(vote: Option<Vote>) -> Change {
        let mut a = instance();
        let joins = Arc::new(join(&[member("x", 1)]));
        assert!(a.propose(&joins, &mut Vec::new()));
        assert_eq!(hear(&mut a, "b", Body::Nack(Refusal::OtherVote)), []);
        assert!(a.take_the_lead(None, &mut Vec::new()));
        let ballot = a.votes().promised.expect("a slow ballot has begun");
        let out = hear(&mut a, "b", Body::Promise(ballot, Promise { vote, accepted: None }));
        let accepts = sent(&out, |body| match body {
            Body::Accept(_, change) => Some(change.clone()),
            _ => None,
        });
        assert_eq!(accepts.len(), 2, "to b and c");
        (*accepts[0]).clone()
    }

    fn vote_of_b(proposer: &str) -> Vote {
        Vote { value: Arc::new(remove(&["c"])), proposers: BTreeSet::from([id(proposer)]) }
    }

    #[test]
    fn a_coordinator_gives_up_its_own_proposal_for_one_that_may_be_decided() {
        assert_eq!(chosen(Some(vote_of_b("c"))), remove(&["c"]), "c and b may have decided it");
    }

    #[test]
    fn a_coordinator_with_a_free_choice_merges_the_proposals() {
        let all = remove(&["c"]).union(&join(&[member("x", 1)]));
        // b has promised and will not decide alone.
        assert_eq!(chosen(Some(vote_of_b("b"))), all, "V4: a free choice is the union");
        assert_eq!(chosen(None), join(&[member("x", 1)]));
    }

    #[test]
    fn a_proposer_that_restarts_asks_again_and_counts_only_what_it_hears_now() {
        let mut a = instance();
        assert!(a.propose(&Arc::new(remove(&["c"])), &mut Vec::new()));
        let mut again = Instance::new(id("a"), a.view().clone(), a.votes().clone());
        let mut out = Vec::new();
        again.ask_again(&mut out);
        let asked = sent(&out, |body| matches!(body, Body::Propose(_)).then_some(()));
        assert_eq!(asked.len(), 1, "b; c is not asked about its own removal");
        let decided = hear(&mut again, "b", Body::Ack);
        assert_eq!(decided, [Step::Decided(Arc::new(remove(&["c"])))]);
    }

    #[test]
    fn what_no_voter_can_have_said_changes_nothing() {
        let mut a = instance();
        let good = Arc::new(remove(&["c"]));
        let ballot = |round, rank| Ballot { round, rank };
        let bodies = [
            ("x", Body::Propose(good.clone())),
            ("b", Body::Propose(Arc::new(Change::default()))),
            ("b", Body::Propose(Arc::new(remove(&["z"])))),
            ("b", Body::Prepare(ballot(1, 2))),
            ("b", Body::Prepare(ballot(u32::MAX, 1))),
            ("b", Body::Accept(ballot(1, 1), Arc::new(remove(&["a", "b", "c"])))),
            ("b", Body::Accepted(ballot(1, 0))),
            ("b", Body::Promise(ballot(1, 0), Promise::default())),
            ("x", Body::Ack),
        ];
        for (from, body) in bodies {
            assert_eq!(hear(&mut a, from, body.clone()), [], "{from}: {body:?}");
        }
        assert_eq!(a, instance());
    }
}
