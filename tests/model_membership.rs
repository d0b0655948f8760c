//! The membership's decisions, checked by machine over the real code: every order of messages,
//! proposals, slow ballots, crashes and restarts within the limits that each check names.
//!
//! `bash tests/run model` looks at far more and prints the counts that stand in `docs/model.md`.
#![cfg(feature = "server")]

mod model;

use std::time::Duration;

use model::{budget, check, ring::*, walk};

/// So long at most, on whichever machine: what was not looked at then is told.
const TIME_MAX: Duration = Duration::from_secs(900);

/// How far a check must look.
enum Reach {
    /// At everything.
    All,
    /// At histories of so many steps; further with a larger budget.
    Steps(usize),
}

/// All that is reachable holds; or as much of it as the budget of `states` looks at.
fn holds(title: &str, ring: Ring, states: usize, reach: Reach) {
    let checked = check(title, ring, budget(states), TIME_MAX, Ring::describe);
    if let Some((property, steps)) = checked.violated {
        panic!("{title}: {property}\n{}", steps.join("\n"));
    }
    let far_enough = match reach {
        Reach::All => checked.complete,
        Reach::Steps(steps) => checked.complete || checked.depth >= steps,
    };
    assert!(far_enough, "{title}: it looked no further than {} steps", checked.depth);
}

/// Random walks hold.
fn walks(title: &str, ring: Ring, walks: usize) {
    if let Some((property, path)) = walk(title, &ring, 1, budget(walks), 400) {
        let path: Vec<String> = path.iter().map(|action| ring.describe(action)).collect();
        panic!("{title}: {property}\n{}", path.join("\n"));
    }
}

#[test]
fn three_voters_decide_one_view_in_every_order() {
    let limits = Limits { proposals: 3, leads: 2, restarts: 1, ..SMALL };
    let ring = Ring::new("abc", "", limits);
    holds("3 nodes, 3 proposals, 2 slow ballots, a restart", ring, 100_000, Reach::Steps(8));
}

#[test]
fn a_second_slow_ballot_keeps_what_the_first_one_decided() {
    let ring = Ring::new("abc", "", Limits { leads: 2, ..SMALL });
    holds("3 nodes, 2 proposals, 2 slow ballots", ring, 200_000, Reach::All);
}

#[test]
fn four_voters_decide_one_view_in_every_order() {
    let ring = Ring::new("abcd", "", SMALL);
    holds("4 nodes, 2 proposals, 1 slow ballot", ring, 300_000, Reach::All);
}

#[test]
fn four_voters_and_a_second_slow_ballot() {
    let ring = Ring::new("abcd", "", Limits { leads: 2, ..SMALL });
    holds("4 nodes, 2 proposals, 2 slow ballots", ring, 30_000, Reach::Steps(5));
}

#[test]
fn five_voters_decide_one_view_in_every_order() {
    let ring = Ring::new("abcde", "", SMALL);
    holds("5 nodes, 2 proposals, 1 slow ballot", ring, 30_000, Reach::Steps(4));
}

#[test]
fn the_second_view_is_decided_like_the_first() {
    let limits = Limits { views: 2, calm: 1, ..SMALL };
    let ring = Ring::new("abc", "c", limits.clone());
    holds("3 nodes, one's next life, 2 views, the first one calm", ring, 50_000, Reach::All);
    let ring = Ring::new("abcd", "", limits);
    holds("4 nodes, 2 views, the first one calm", ring, 90_000, Reach::All);
}

/// The life that was taken out still votes where the ring has nobody else for it.
#[test]
fn a_node_comes_back_as_another_life_while_others_fail() {
    let ring = Ring::new("abc", "c", Limits { views: 2, ..SMALL });
    holds("3 nodes, one's next life, 2 views", ring, 60_000, Reach::Steps(8));
}

#[test]
fn a_joiner_and_a_second_view() {
    let ring = Ring::new("abc", "x", Limits { views: 2, ..SMALL });
    holds("3 nodes, a joiner, 2 views", ring, 60_000, Reach::Steps(8));
}

#[test]
fn two_nodes_and_a_witness_over_two_views() {
    let limits = Limits { views: 2, restarts: 1, ..SMALL };
    holds("2 nodes, a witness, 2 views", Ring::new("abw", "", limits), 100_000, Reach::All);
}

#[test]
fn leaving_and_staying_while_others_fail() {
    let limits = Limits { views: 2, leads: 0, departures: true, ..SMALL };
    holds("3 nodes, departures, 2 views", Ring::new("abc", "", limits), 150_000, Reach::All);
}

#[test]
fn every_majority_and_all_but_any_one_can_decide_the_next_view() {
    let limits = Limits { progress: true, ..SMALL };
    let two = Limits { views: 2, ..limits.clone() };
    holds("3 nodes, 2 views, progress", Ring::new("abc", "", two.clone()), 110_000, Reach::All);
    let ring = Ring::new("abw", "", two);
    holds("2 nodes, a witness, 2 views, progress", ring, 60_000, Reach::All);
    let ring = Ring::new("abc", "c", limits.clone());
    holds("3 nodes, one's next life, progress", ring, 60_000, Reach::All);
    let ring = Ring::new("abcd", "", limits.clone());
    holds("4 nodes, progress", ring, 12_000, Reach::Steps(5));
    let ring = Ring::new("abcd", "", Limits { views: 2, proposals: 1, ..limits });
    holds("4 nodes, 2 views, 1 proposal, progress", ring, 13_000, Reach::Steps(6));
}

/// What the model leaves out makes no difference: with and without, the nodes vote and decide the
/// same.
#[test]
fn what_is_left_out_is_nothing() {
    for (proposals, leads) in [(1, 1), (2, 1)] {
        let limits = Limits { proposals, leads, ..SMALL };
        let voted = |plain| {
            let limits = Limits { plain, ..limits.clone() };
            Ring::new("abc", "", limits).reachable()
        };
        let (all, plain) = (voted(false), voted(true));
        assert!(all.len() > 100, "hardly anything was looked at");
        assert!(all == plain, "{} and {} ways", all.len(), plain.len());
    }
}

#[test]
fn five_nodes_over_four_views_walked_at_random() {
    let limits = Limits {
        views: 4,
        proposals: 3,
        leads: 2,
        crashes: 2,
        restarts: 2,
        departures: true,
        ..SMALL
    };
    walks(
        "5 nodes, a joiner, a next life, 4 views, 2 crashes, 2 restarts",
        Ring::new("abcde", "xe", limits),
        300,
    );
}

#[test]
fn seven_voters_walked_at_random() {
    // With more crashes hardly a walk has the five votes of a fast quorum.
    let limits = Limits { proposals: 3, leads: 2, crashes: 1, ..SMALL };
    walks("7 nodes, 3 proposals, 2 slow ballots", Ring::new("abcdefg", "", limits), 500);
}

/// V3: were others to declare what they overhear, a proposer that has promised, and so is known
/// never to declare, would not be safe to pass over.
#[test]
fn somebody_who_declares_what_another_proposed_is_caught() {
    let limits = Limits { anyone_declares: true, plain: true, ..SMALL };
    let ring = Ring::new("abc", "", limits);
    let checked = check("mutant: anyone declares", ring, 2_000_000, TIME_MAX, Ring::describe);
    let (property, _) = checked.violated.expect("caught");
    assert_eq!(property, "I4 one value per view number");
}

/// V5: were a process to come back with the same identity and without its votes, two values could
/// be decided. The check sees that.
#[test]
fn a_voter_that_forgets_and_votes_again_is_caught() {
    let limits = Limits { forgetful: 1, plain: true, ..SMALL };
    let checked =
        check("mutant: amnesia", Ring::new("abc", "", limits), 2_000_000, TIME_MAX, Ring::describe);
    let (property, steps) = checked.violated.expect("caught");
    assert_eq!(property, "I4 one value per view number");
    assert!(steps.len() < 20, "a short history");
}
