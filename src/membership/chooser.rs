//! What a slow ballot may choose (rule V4).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Change, NodeId, ballot::Promise};

/// What the promises of a majority leave to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This value may have been decided: nothing else may be.
    Bound(Arc<Change>),
    /// Nothing can have been decided: any value.
    Free,
    /// The promises contradict each other; no honest voters give such. Nothing may be chosen.
    Contradiction,
}

/// Chooses from the promises of a majority of `voters`, given the size of a fast quorum.
///
/// In this order: the value of the highest slow ballot that anybody accepted; a value that a fast
/// quorum may have decided; anything. V4's "value of anyone that declared" needs no case here:
/// who declared has installed, and answers a `Prepare` with that view instead of a promise.
pub fn choose(
    voters: &[NodeId],
    fast_quorum: usize,
    promises: &BTreeMap<NodeId, Promise>,
) -> Choice {
    let accepted = promises.values().filter_map(|promise| promise.accepted.as_ref());
    if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot) {
        return Choice::Bound(value.clone());
    }
    match candidates(voters, fast_quorum, promises).as_slice() {
        [] => Choice::Free,
        [value] => Choice::Bound(value.clone()),
        _ => Choice::Contradiction,
    }
}

/// The values that a fast quorum may have decided.
///
/// A proposer that promised has not declared and never will, so only proposers outside count. For
/// each of them: everybody who acknowledged it, and everybody unheard of who may have, because he
/// is not known to have proposed (and so voted for) something else.
fn candidates(
    voters: &[NodeId],
    fast_quorum: usize,
    promises: &BTreeMap<NodeId, Promise>,
) -> Vec<Arc<Change>> {
    let mut proposals: BTreeMap<&NodeId, &Arc<Change>> = BTreeMap::new();
    let votes = promises.values().filter_map(|promise| promise.vote.as_ref());
    for vote in votes.clone() {
        proposals.extend(vote.proposers.iter().map(|proposer| (proposer, &vote.value)));
    }
    let unheard: Vec<&NodeId> = voters.iter().filter(|v| !promises.contains_key(v)).collect();
    let silent: BTreeSet<&NodeId> = unheard.iter().copied().collect();
    let mut possible: Vec<Arc<Change>> = Vec::new();
    for (&proposer, &value) in proposals.iter().filter(|(p, _)| silent.contains(**p)) {
        let acknowledged = votes.clone().filter(|vote| vote.proposers.contains(proposer)).count();
        let voted_otherwise = |voter: &NodeId| proposals.get(voter).is_some_and(|v| *v != value);
        let may_have = unheard.iter().filter(|voter| !voted_otherwise(voter)).count();
        if acknowledged + may_have >= fast_quorum && !possible.contains(value) {
            possible.push(value.clone());
        }
    }
    possible
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{
        ballot::{Ballot, Vote},
        change::tests::{member, remove},
        quorum::{fast_quorum, majority},
    };

    const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

    fn id(name: &str) -> NodeId {
        member(name, 1).id
    }

    fn values() -> (Arc<Change>, Arc<Change>) {
        (Arc::new(remove(&["f"])), Arc::new(remove(&["g"])))
    }

    /// For which value, acknowledging which proposers.
    type Voted<'a> = (&'a Arc<Change>, &'a [&'a str]);
    /// Who promised, and how he had voted.
    type Promised<'a> = (&'a str, Option<Voted<'a>>);

    fn promises(votes: &[Promised]) -> BTreeMap<NodeId, Promise> {
        let promise = |vote: &Option<Voted>| Promise {
            vote: vote.map(|(value, proposers)| Vote {
                value: value.clone(),
                proposers: proposers.iter().map(|p| id(p)).collect(),
            }),
            accepted: None,
        };
        votes.iter().map(|(voter, vote)| (id(voter), promise(vote))).collect()
    }

    fn decide(voters: usize, votes: &[Promised]) -> Choice {
        let voters: Vec<NodeId> = NAMES[..voters].iter().map(|name| id(name)).collect();
        assert!(votes.len() >= majority(voters.len()));
        choose(&voters, fast_quorum(voters.len()), &promises(votes))
    }

    #[test]
    fn a_value_that_an_absent_proposer_may_have_decided_is_kept() {
        let (x, _) = values();
        // c proposed, a acknowledged, c may have declared with a's vote and its own.
        assert_eq!(decide(3, &[("a", Some((&x, &["c"]))), ("b", None)]), Choice::Bound(x));
    }

    #[test]
    fn a_proposer_that_promised_without_deciding_never_will() {
        let (x, _) = values();
        let votes = [("a", Some((&x, &["a"][..]))), ("b", Some((&x, &["a"]))), ("c", None)];
        assert_eq!(decide(5, &votes), Choice::Free);
    }

    #[test]
    fn a_value_out_of_reach_of_a_fast_quorum_does_not_bind() {
        let (x, y) = values();
        // d proposed x, e proposed y: either has one vote inside and its own, of three needed.
        let votes = [("a", Some((&x, &["d"][..]))), ("b", Some((&y, &["e"][..]))), ("c", None)];
        assert_eq!(decide(5, &votes), Choice::Free);
        // Without e's proposal, e may have acknowledged d.
        assert_eq!(decide(5, &[votes[0], ("b", None), ("c", None)]), Choice::Bound(x));
    }

    #[test]
    fn equal_values_of_two_proposers_do_not_exclude_each_other() {
        let (x, _) = values();
        let votes = [("a", Some((&x, &["d", "e"][..]))), ("b", None), ("c", None)];
        assert_eq!(decide(5, &votes), Choice::Bound(x));
    }

    #[test]
    fn the_newest_slow_ballot_overrules_every_vote() {
        let (x, y) = values();
        let mut given = promises(&[("a", Some((&x, &["c"]))), ("b", None)]);
        let ballot = |round| Ballot { round, rank: 0 };
        given.get_mut(&id("a")).unwrap().accepted = Some((ballot(1), x.clone()));
        given.get_mut(&id("b")).unwrap().accepted = Some((ballot(2), y.clone()));
        let voters = [id("a"), id("b"), id("c")];
        assert_eq!(choose(&voters, 2, &given), Choice::Bound(y));
    }

    #[test]
    fn a_majority_is_no_fast_quorum_of_seven() {
        let (x, y) = values();
        let votes = [
            ("c", Some((&x, &["a"][..]))),
            ("d", Some((&x, &["a"][..]))),
            ("e", Some((&y, &["b"][..]))),
            ("f", Some((&y, &["b"][..]))),
        ];
        let voters: Vec<NodeId> = NAMES.iter().map(|name| id(name)).collect();
        // g may have followed either: with four votes, one of two values is decided, which?
        assert_eq!(choose(&voters, 4, &promises(&votes)), Choice::Contradiction);
        assert_eq!(decide(7, &votes), Choice::Free);
    }

    /// Two proposers, every way in which the others may have voted, every majority that promises.
    #[test]
    fn every_majority_chooses_what_a_fast_quorum_decided() {
        let (x, y) = values();
        for voters in 3..=NAMES.len() {
            let names = &NAMES[..voters];
            let ids: Vec<NodeId> = names.iter().map(|name| id(name)).collect();
            let (mut bound, mut free) = (0, 0);
            for ways in 0..3_usize.pow(voters as u32 - 2) {
                // a voted for its own x, b for its own y.
                let voted = |at: usize| match (at, ways / 3_usize.pow(at.max(2) as u32 - 2) % 3) {
                    (0, _) | (2.., 1) => Some((&x, &["a"][..])),
                    (1, _) | (2.., 2) => Some((&y, &["b"][..])),
                    _ => None,
                };
                let votes: Vec<Option<Voted>> = (0..voters).map(voted).collect();
                let count = |value| votes.iter().flatten().filter(|(v, _)| *v == value).count();
                for there in 0..1_u32 << voters {
                    if (there.count_ones() as usize) < majority(voters) {
                        continue;
                    }
                    let promised: Vec<Promised> = (0..voters)
                        .filter(|at| there & (1 << at) != 0)
                        .map(|at| (names[at], votes[at]))
                        .collect();
                    let chosen = choose(&ids, fast_quorum(voters), &promises(&promised));
                    for (proposer, value) in [&x, &y].into_iter().enumerate() {
                        let declared =
                            there & (1 << proposer) == 0 && count(value) >= fast_quorum(voters);
                        assert!(
                            !declared || chosen == Choice::Bound(value.clone()),
                            "I4 one value per view number: {promised:?} of {voters}: {chosen:?}"
                        );
                    }
                    match chosen {
                        Choice::Bound(_) => bound += 1,
                        Choice::Free => free += 1,
                        Choice::Contradiction => {
                            panic!("I4 one value per view number: {promised:?} of {voters}")
                        }
                    }
                }
            }
            assert!(bound > 0 && free > 0, "{voters} voters: {bound} bound, {free} free");
        }
    }
}
