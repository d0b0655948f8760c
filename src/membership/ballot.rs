//! How one voter votes on one view number: rules V1, V2, V3 and V5.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Change, Member, NodeId, Refusal, View};

/// The number of a slow ballot: rounds first, then the coordinator's rank among the voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Grows with every attempt.
    pub round: u32,
    /// The coordinator's place among the voters.
    pub rank: u32,
}

/// A vote in the one-round ballot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// The value, the only one this voter ever votes for in this ballot.
    pub value: Arc<Change>,
    /// Whose proposals of that value it acknowledged.
    pub proposers: BTreeSet<NodeId>,
}

/// What a voter tells the coordinator of a slow ballot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Promise {
    /// Its vote in the one-round ballot.
    pub vote: Option<Vote>,
    /// The newest slow ballot that it voted in.
    pub accepted: Option<(Ballot, Arc<Change>)>,
}

/// A voter's memory of the ballots on the next view number. A changed one must be stored before
/// anybody hears of the change (rule V5).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Votes {
    /// What it voted for, and accepted.
    pub cast: Promise,
    /// The newest slow ballot that it is bound to. From then on it takes no part in the one-round
    /// ballot, neither as voter nor as proposer.
    pub promised: Option<Ballot>,
}

impl Votes {
    /// V1: votes for `value` as a proposer. False if it has voted or promised already.
    pub fn propose(&mut self, me: &NodeId, value: Arc<Change>) -> bool {
        if self.promised.is_some() || self.cast.vote.is_some() {
            return false;
        }
        self.cast.vote = Some(Vote { value, proposers: BTreeSet::from([me.clone()]) });
        true
    }

    /// V2: acknowledges `proposer`'s `value` if it may. True when that changed anything.
    pub fn acknowledge(
        &mut self,
        me: &NodeId,
        proposer: &NodeId,
        value: &Arc<Change>,
    ) -> Result<bool, Refusal> {
        if let Some(ballot) = self.promised {
            return Err(Refusal::Promised(ballot));
        }
        if value.evicts(me) {
            return Err(Refusal::OtherVote);
        }
        let vote = self
            .cast
            .vote
            .get_or_insert_with(|| Vote { value: value.clone(), proposers: BTreeSet::new() });
        if vote.value != *value {
            return Err(Refusal::OtherVote);
        }
        Ok(vote.proposers.insert(proposer.clone()))
    }

    /// V3: the value that `me` proposed, as long as it may still declare it decided.
    pub fn declarable(&self, me: &NodeId) -> Option<&Arc<Change>> {
        let mine = self.cast.vote.as_ref().filter(|vote| vote.proposers.contains(me));
        mine.filter(|_| self.promised.is_none()).map(|vote| &vote.value)
    }

    /// Binds the voter to `ballot`. True when that changed anything.
    pub fn promise(&mut self, ballot: Ballot) -> Result<bool, Refusal> {
        match self.promised {
            Some(promised) if promised > ballot => Err(Refusal::Promised(promised)),
            promised => {
                self.promised = Some(ballot);
                Ok(promised != Some(ballot))
            }
        }
    }

    /// Votes for `value` in `ballot`. Who is taken out votes here too.
    pub fn accept(&mut self, ballot: Ballot, value: &Arc<Change>) -> Result<bool, Refusal> {
        self.promise(ballot)?;
        let news = self.cast.accepted.as_ref().is_none_or(|(accepted, _)| *accepted < ballot);
        if news {
            self.cast.accepted = Some((ballot, value.clone()));
        }
        Ok(news)
    }
}

/// All that a voter must not forget, to be stored where `kill -9` of its process does not reach
/// (rule V5). A node that has lost it starts as a new incarnation and never votes as the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// Who this is.
    pub me: Member,
    /// The installed view.
    pub view: Arc<View>,
    /// The ballots on the view after it.
    pub votes: Votes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::change::tests::{member, remove};

    fn value(name: &str) -> Arc<Change> {
        Arc::new(remove(&[name]))
    }

    fn id(name: &str) -> NodeId {
        member(name, 1).id
    }

    #[test]
    fn a_voter_votes_for_one_value_and_acknowledges_it_to_everybody() {
        let mut votes = Votes::default();
        assert_eq!(votes.acknowledge(&id("a"), &id("b"), &value("d")), Ok(true));
        assert_eq!(votes.acknowledge(&id("a"), &id("c"), &value("d")), Ok(true));
        assert_eq!(votes.acknowledge(&id("a"), &id("c"), &value("d")), Ok(false));
        let refused = votes.acknowledge(&id("a"), &id("d"), &value("c"));
        assert_eq!(refused, Err(Refusal::OtherVote));
        assert!(!votes.propose(&id("a"), value("c")), "V1");
    }

    #[test]
    fn nobody_acknowledges_his_own_eviction() {
        let refused = Votes::default().acknowledge(&id("d"), &id("b"), &value("d"));
        assert_eq!(refused, Err(Refusal::OtherVote));
    }

    #[test]
    fn after_a_promise_the_one_round_ballot_is_over() {
        let (mut votes, ballot) = (Votes::default(), Ballot { round: 1, rank: 2 });
        assert!(votes.propose(&id("a"), value("d")));
        assert!(votes.declarable(&id("a")).is_some());
        assert_eq!(votes.promise(ballot), Ok(true));
        assert_eq!(votes.declarable(&id("a")), None, "V3");
        let refused = Err(Refusal::Promised(ballot));
        assert_eq!(votes.acknowledge(&id("a"), &id("b"), &value("d")), refused);
        assert_eq!(votes.promise(Ballot { round: 1, rank: 1 }), refused);
        assert_eq!(votes.accept(Ballot { round: 0, rank: 9 }, &value("d")), refused);
        assert_eq!(votes.accept(ballot, &value("d")), Ok(true));
    }
}
