//! Every history of a mirror, in small: the real `Mirror` and the real `recovery::choose`, in a
//! world where writes land late, in part or never, nodes crash, are evicted by mistake and come
//! back, and each hears of the views in its own time. What was checked, and how far, is in
//! `docs/model.md`. `bash tests/run model` goes further.

#[allow(dead_code)]
mod dice;
#[path = "model_mirror/history.rs"]
mod history;
#[allow(dead_code)]
mod invariants;
#[path = "model_mirror/model.rs"]
mod model;
#[path = "model_mirror/owner.rs"]
mod owner;
#[path = "model_mirror/recoveries.rs"]
mod recoveries;
#[path = "model_mirror/walks.rs"]
mod walks;
#[path = "model_mirror/world.rs"]
mod world;

use std::{collections::BTreeSet, time::Instant};

use invariants::{I1, I2, I3, I5, I6, I7, ONE_MIRROR};
use model::MirrorModel;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// What may happen, and how often.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Versions that the service commits.
    versions: u8,
    /// Nodes that lose their memory.
    crashes: u8,
    /// Connections that break at once, and not because the other end is gone.
    breaks: u8,
    /// Starts of the owner's server.
    restarts: u8,
    /// Writes whose source is overwritten meanwhile.
    spoils: u8,
    /// From each state, look whether a good end is possible.
    good_ends: bool,
}

const LIMITS: Limits =
    Limits { versions: 1, crashes: 1, breaks: 1, restarts: 0, spoils: 0, good_ends: false };

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// A holder that says what it has goes on accepting writes.
    NoFence,
    /// A holder that has not heard of the owner's removal says what it has to whoever asks.
    AnswersUnfenced,
    /// No fence, but a lease: whoever had one when it posted acknowledges.
    LeaseAtPosting,
    /// The same as it must be: whoever has one when it hears of the completion. Nothing is wrong
    /// with that.
    LeaseAfterCompletion,
    /// A recovery takes a record for a version, whatever the bytes are.
    RecordsAreBelieved,
    /// A recovery asks the newest holder and takes what it has.
    NewestHolderOnly,
    /// A holder that was evicted erases what it has.
    WipedAtEviction,
    /// The old holder goes on acknowledging while the new one is brought up to date.
    NoQuiesce,
    /// A posted mark raises the floor only when it is known to have landed.
    FloorRaisedLate,
    /// Holders outside the ring acknowledge.
    AnyoneAcknowledges,
    /// The slot follows from the version's number.
    ParitySlots,
    /// One of the holders is enough.
    AcknowledgedByPart,
    /// The new holders count as soon as their marks are posted.
    SwitchBeforeAllMarks,
    /// A life that lost its memory speaks for the one before.
    FormerHasNothing,
}

/// Explores everything that can happen, and demands all properties.
fn check(copies: usize, views: &'static str, limits: Limits) {
    check_model(MirrorModel::new(copies, views, limits, None), usize::MAX);
}

/// As [`check`], up to so many states, shallowest first.
fn check_model(model: MirrorModel, generated_max: usize) {
    let begun = Instant::now();
    let (copies, views, limits, mutant) = (model.copies, model.views, model.limits, model.mutant);
    let checker = model
        .checker()
        .target_state_count(generated_max)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let complete = checker.state_count() < generated_max;
    println!(
        "K={copies} {views:18} {limits:?}{}: {} states ({} generated), depth {}, {} of the owner, \
         {:.0?}, {}",
        mutant.map_or(String::new(), |mutant| format!(" {mutant:?}")),
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.model().owners.len(),
        begun.elapsed(),
        if complete { "complete" } else { "cut off" },
    );
    let properties = checker.model().properties();
    let (always, sometimes): (Vec<_>, Vec<_>) =
        properties.iter().partition(|p| p.expectation == Expectation::Always);
    for property in always {
        let found = checker.discovery(property.name).map(|path| path.into_actions());
        assert!(found.is_none(), "not so: {}\n{found:?}", property.name);
    }
    for property in sometimes {
        let found = checker.discovery(property.name).is_some();
        assert!(found || !complete, "never: {}", property.name);
    }
}

/// As [`check`], but the expected property must fail.
fn caught(mutant: Mutant, copies: usize, views: &'static str, limits: Limits, by: &'static str) {
    let model = MirrorModel::new(copies, views, limits, Some(mutant));
    let expected = HasDiscoveries::AnyOf(BTreeSet::from([by]));
    let checker = model.checker().finish_when(expected).spawn_bfs().join();
    let path = checker.discovery(by).unwrap_or_else(|| panic!("{mutant:?} is not caught"));
    let steps = path.into_actions().len();
    let states = checker.unique_state_count();
    println!("{mutant:?}, K={copies} {views}: caught in {steps} steps, {states} states: {by}");
}

/// How many times as much as in a test run: `bash tests/run model` says it.
fn times() -> Option<usize> {
    let times = std::env::var("RINGKEEP_MODEL").ok()?;
    Some(times.parse().expect("RINGKEEP_MODEL is a whole number"))
}

// One copy.

#[test]
fn a_holder_is_evicted_and_its_later_life_is_asked() {
    let limits = Limits { restarts: 1, spoils: 1, good_ends: true, ..LIMITS };
    check(1, "b !b", Limits { versions: 2, ..limits });
    check(1, "ba a !ba", limits);
}

#[test]
fn somebody_is_the_predecessor_for_a_moment() {
    check(1, "b cb b !b", Limits { good_ends: true, ..LIMITS });
}

#[test]
fn a_holder_is_evicted_and_comes_back() {
    check(1, "ba a ba !ba", LIMITS);
}

/// The ring flaps, and a mark that was posted meanwhile lands late or never.
#[test]
fn the_predecessors_change_places_and_back() {
    check(1, "ab ba ab !ab", LIMITS);
}

#[test]
fn a_holder_leaves() {
    check(1, "ba Ba a !a", Limits { good_ends: true, ..LIMITS });
}

// Two copies.

#[test]
fn two_copies_in_a_ring_that_becomes_too_small() {
    check(2, "ba b !b", Limits { versions: 2, crashes: 2, good_ends: true, ..LIMITS });
}

#[test]
fn two_copies_and_one_holder_comes_back() {
    check(2, "ba a ba !ba", LIMITS);
}

#[test]
fn two_copies_and_a_holder_leaves() {
    check(2, "ba Ba a !a", Limits { crashes: 2, good_ends: true, ..LIMITS });
}

#[test]
fn two_copies_and_one_holder_is_replaced() {
    check(2, "ba ca !ca", Limits { crashes: 2, breaks: 0, ..LIMITS });
}

/// A view changes nothing for a holder that is marked, and the other is marked after it.
#[test]
fn two_copies_marked_in_different_views() {
    check(2, "ba bac !bac", Limits { breaks: 0, good_ends: true, ..LIMITS });
}

/// States generated of each history that takes longer, times what `bash tests/run model` says.
const GENERATED_EACH: usize = 600_000;

#[test]
#[ignore = "takes minutes: bash tests/run model"]
fn everything_that_takes_longer() {
    let generated_max = GENERATED_EACH * times().unwrap_or(1);
    let check = |copies, views, limits| {
        check_model(MirrorModel::new(copies, views, limits, None), generated_max);
    };
    for views in ["ba a !ba", "b cb b !b", "ba a ba !ba", "ba Ba a !a", "ba b ba !ba"] {
        check(1, views, Limits { versions: 2, restarts: 1, spoils: 1, good_ends: true, ..LIMITS });
    }
    check(1, "ba cba ba !ba", Limits { good_ends: true, ..LIMITS });
    check(1, "b cb b cb !cb", LIMITS);
    check(1, "ab ba ab !ab", Limits { versions: 2, restarts: 1, good_ends: true, ..LIMITS });
    check(1, "ab ba ab ba !ab", Limits { versions: 2, ..LIMITS });
    for views in ["ba b !b", "ba a ba !ba", "ba ca !ca", "ba cba !ba", "ba Cba a !a", "cba ba !cba"]
    {
        check(2, views, Limits { crashes: 2, good_ends: true, ..LIMITS });
    }
    check(2, "ba cba ba !ba", Limits { breaks: 0, ..LIMITS });
    check(2, "cba Cba ba !ba", Limits { breaks: 0, ..LIMITS });
    check(2, "abc cab abc !abc", Limits { breaks: 0, ..LIMITS });
    check(3, "cba ba !cba", Limits { crashes: 3, breaks: 0, ..LIMITS });
}

/// Histories too long to look at everything in them.
#[test]
fn random_walks_through_flapping_rings() {
    let walks = 2_000 * times().unwrap_or(1);
    let limits = Limits { versions: 4, crashes: 1, breaks: 3, restarts: 1, spoils: 1, ..LIMITS };
    for (copies, views) in [
        (1, "ab ba ab !ab"),
        (1, "ab ba ab ba ab !ab"),
        (1, "b cb b cb b !b"),
        (1, "ba a ba b ba a !ba"),
        (2, "abc cab abc cab abc !abc"),
        (2, "ba cba ba dba ba !ba"),
        (3, "abcd dabc abcd dabc !abcd"),
    ] {
        let model = MirrorModel::new(copies, views, limits, None);
        let found = walks::walk(&model, 1, walks, STEPS_OF_A_WALK);
        assert!(found.is_none(), "not so: {found:?}");
    }
}

const STEPS_OF_A_WALK: usize = 300;

// That the checker finds what is wrong.

#[test]
fn every_mutant_is_caught() {
    let limits = LIMITS;
    caught(Mutant::NoFence, 1, "ba a !a", limits, I3);
    caught(Mutant::NoFence, 1, "ba a !a", limits, I6);
    caught(Mutant::NoFence, 2, "ba b !b", limits, I3);
    caught(Mutant::NewestHolderOnly, 1, "ba a !a", limits, I3);
    caught(Mutant::WipedAtEviction, 1, "ba a !a", limits, I1);
    caught(Mutant::AnswersUnfenced, 1, "ba !ba", limits, I6);
    caught(Mutant::AnswersUnfenced, 1, "ba !ba", limits, I3);
    caught(Mutant::LeaseAtPosting, 1, "b !b", limits, I3);
    caught(Mutant::RecordsAreBelieved, 1, "b !b", Limits { versions: 3, ..limits }, I2);
    caught(Mutant::NoQuiesce, 1, "b cb !cb", limits, I3);
    caught(Mutant::NoQuiesce, 1, "b cb !cb", Limits { versions: 2, ..limits }, ONE_MIRROR);
    caught(Mutant::FloorRaisedLate, 1, "b cb !cb", limits, I3);
    caught(Mutant::FloorRaisedLate, 1, "ab ba ab !ab", limits, I3);
    caught(Mutant::AnyoneAcknowledges, 1, "ba a !a", limits, I7);
    caught(Mutant::ParitySlots, 1, "ba a ba !ba", Limits { versions: 2, ..limits }, I5);
    caught(Mutant::AcknowledgedByPart, 2, "ba b !b", limits, I3);
    caught(Mutant::SwitchBeforeAllMarks, 2, "ba b !b", limits, I3);
    caught(Mutant::FormerHasNothing, 1, "ba a !ba", limits, I3);
}

/// That the walks get where it matters.
#[test]
fn a_walk_finds_a_half_landed_mark() {
    let limits = Limits { versions: 4, breaks: 3, ..LIMITS };
    let late = Some(Mutant::FloorRaisedLate);
    let model = MirrorModel::new(1, "ab ba ab ba ab !ab", limits, late);
    let (property, walk) = walks::walk(&model, 1, 20_000, STEPS_OF_A_WALK).expect("not found");
    println!("{late:?}: {property} after {} steps", walk.len());
    assert!([I3, I7, ONE_MIRROR].contains(&property), "{property}");
}

/// A lease in place of the fence, checked when it must be: the model does not cry wolf.
#[test]
fn a_lease_that_is_checked_after_the_completion_is_enough() {
    let lease = Some(Mutant::LeaseAfterCompletion);
    for (copies, views) in [(1, "b !b"), (1, "ba a !a"), (2, "ba b !b")] {
        check_model(MirrorModel::new(copies, views, LIMITS, lease), usize::MAX);
    }
}
