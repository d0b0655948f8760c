//! The membership's decisions, checked by machine over the real code: every order of messages,
//! proposals, slow ballots, crashes and restarts within the limits that each check names.
//!
//! `RINGKEEP_MODEL=20 cargo test --release --test model_membership -- --nocapture` looks at twenty
//! times as much and prints the counts that stand in `docs/model.md`.
#![cfg(feature = "server")]

mod model;

use std::time::Duration;

use model::{budget, check, ring::*, walk};

const TIME_MAX: Duration = Duration::from_secs(600);

/// Everything that is reachable holds; if the budget does not reach the end, as far as looked.
fn holds(title: &str, ring: Ring, states: usize) {
    let checked = check(title, ring, budget(states), TIME_MAX);
    if let Some((property, steps)) = checked.violated {
        panic!("{title}: {property}\n{}", steps.join("\n"));
    }
    assert!(checked.complete || checked.states > states / 4, "hardly anything was looked at");
}

#[test]
fn three_voters_agree_on_one_view() {
    let limits = Limits { proposals: 3, leads: 1, restarts: 1, progress: true, ..SMALL };
    holds("3 nodes, 1 view, 3 proposals, 1 restart", Ring::new("abc", "", limits), 200_000);
}
