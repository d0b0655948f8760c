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

/// All that is reachable holds; or as much of it as the budget of `states` looks at.
fn holds(title: &str, ring: Ring, states: usize) {
    let checked = check(title, ring, budget(states), TIME_MAX, Ring::describe);
    if let Some((property, steps)) = checked.violated {
        panic!("{title}: {property}\n{}", steps.join("\n"));
    }
    assert!(checked.complete || checked.states > states / 10, "hardly anything was looked at");
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
    holds("3 nodes, 1 view, 3 proposers, 2 slow ballots", Ring::new("abc", "", limits), 300_000);
}

#[test]
fn a_second_slow_ballot_keeps_what_the_first_one_decided() {
    let limits = Limits { proposals: 2, leads: 2, crashes: 0, ..SMALL };
    holds("3 nodes, 1 view, 2 slow ballots, no crash", Ring::new("abc", "", limits), 300_000);
}

#[test]
fn four_voters_decide_one_view_in_every_order() {
    let limits = Limits { proposals: 2, leads: 1, ..SMALL };
    holds("4 nodes, 1 view, 2 proposers, 1 slow ballot", Ring::new("abcd", "", limits), 300_000);
}

#[test]
fn a_joiner_and_a_second_view() {
    let limits = Limits { views: 2, proposals: 2, leads: 1, ..SMALL };
    holds("3 nodes, a joiner, 2 views", Ring::new("abc", "x", limits), 300_000);
}

#[test]
fn two_nodes_and_a_witness_over_two_views() {
    let limits = Limits { views: 2, proposals: 2, leads: 1, ..SMALL };
    holds("2 nodes, a witness, 2 views", Ring::new("abw", "", limits), 300_000);
}

#[test]
fn leaving_and_staying_while_others_fail() {
    let limits = Limits { views: 2, proposals: 2, leads: 0, departures: true, ..SMALL };
    holds("3 nodes, departures, 2 views", Ring::new("abc", "", limits), 200_000);
}

#[test]
fn with_one_crash_the_next_view_can_always_be_decided() {
    let limits = Limits { views: 2, proposals: 1, leads: 1, progress: true, ..SMALL };
    holds("3 nodes, 2 views, progress", Ring::new("abc", "", limits.clone()), 60_000);
    holds("2 nodes, a witness, 2 views, progress", Ring::new("abw", "", limits), 60_000);
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
        "5 nodes, a joiner, 4 views, 2 crashes, 2 restarts",
        Ring::new("abcde", "x", limits),
        300,
    );
}

#[test]
fn seven_voters_walked_at_random() {
    let limits = Limits { proposals: 3, leads: 3, crashes: 3, ..SMALL };
    walks("7 nodes, 1 view, 3 proposers, 3 crashes", Ring::new("abcdefg", "", limits), 1000);
}

/// V3: were others to declare what they overhear, a proposer that has promised, and so is known
/// never to declare, would not be safe to pass over.
#[test]
fn somebody_who_declares_what_another_proposed_is_caught() {
    let limits = Limits { proposals: 2, anyone_declares: true, ..SMALL };
    let ring = Ring::new("abc", "", limits);
    let checked = check("mutant: anyone declares", ring, 2_000_000, TIME_MAX, Ring::describe);
    let (property, _) = checked.violated.expect("caught");
    assert_eq!(property, "I4 one value per view number");
}

/// V5: were a process to come back with the same identity and without its votes, two values could
/// be decided. The check sees that.
#[test]
fn a_voter_that_forgets_and_votes_again_is_caught() {
    let limits = Limits { proposals: 2, forgetful: 1, ..SMALL };
    let checked =
        check("mutant: amnesia", Ring::new("abc", "", limits), 2_000_000, TIME_MAX, Ring::describe);
    let (property, steps) = checked.violated.expect("caught");
    assert_eq!(property, "I4 one value per view number");
    assert!(steps.len() < 20, "the shortest history");
}
