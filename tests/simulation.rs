//! Whole rings in simulated time, with everything going wrong: the real membership, mirror, recovery
//! and region code over the simulated transport. What is simulated and what was reached is in
//! `docs/simulation.md`.
//!
//! A run that fails prints how to run it again, exactly:
//! `RINGKEEP_SEED=… cargo test --test simulation one_run -- --nocapture`.
#![cfg(feature = "server")]

#[path = "simulation/copies.rs"]
mod copies;
#[allow(dead_code)]
mod dice;
#[path = "simulation/homes.rs"]
mod homes;
#[allow(dead_code)]
mod invariants;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/plane.rs"]
mod plane;
#[path = "simulation/rpc.rs"]
mod rpc;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/service.rs"]
mod service;
#[path = "simulation/storm.rs"]
mod storm;
#[path = "simulation/tally.rs"]
mod tally;
#[path = "simulation/world.rs"]
mod world;

use std::time::{Duration, Instant};

use invariants::{I1, I3, I6, I8, MAJORITY, ONE_MIRROR};
use storm::run;
use tally::Tally;
use world::Params;

/// A rule that is broken on purpose, in the world around the real code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// A recovery asks the newest holder and takes what it has (H5).
    NewestHolderOnly,
    /// A holder that was evicted erases its mirrors (H4).
    WipedAtEviction,
    /// A node that lost its memory goes on as the same life (V5).
    Amnesia,
    /// A holder that says what it has goes on accepting writes (F1).
    NoFence,
    /// Whoever follows an owner keeps its epoch (C2).
    EpochKept,
    /// What a voter says leaves before what it must not forget is stored (V5).
    SendsBeforeItPersists,
}

/// What a seed makes: its size, its copies and how long it storms.
fn params(seed: u64) -> Params {
    let nodes = [3, 4, 5, 5, 6, 7, 9, 12][(seed % 8) as usize];
    let copies = if seed % 5 == 4 { 2 } else { 1 };
    let storm = Duration::from_secs(20);
    Params { seed, nodes, services: nodes.min(5), copies, storm, mutant: None, verbose: false }
}

/// Runs, and tells how to see it again if it fails.
fn checked(params: Params) -> Tally {
    match run(params) {
        Ok(tally) => tally,
        Err(_) => {
            let again = run(Params { verbose: true, ..params });
            let failure = again.err().unwrap_or_else(|| "NOT THE SAME AGAIN".to_owned());
            panic!(
                "{params:?}\nagain: RINGKEEP_SEED={} cargo test --test simulation one_run -- \
                 --nocapture\n{failure}",
                params.seed
            );
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs until so many faults were injected.
fn until(faults: u64, first_seed: u64) -> Tally {
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut tally = Tally::default();
    for seed in first_seed.. {
        tally.merge(&checked(params(seed)));
        if tally.faults() >= faults {
            break;
        }
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("{} of {faults} faults, {:.0?}", tally.faults(), begun.elapsed());
        }
    }
    println!("{tally}\n{:.0?}", begun.elapsed());
    tally
}

/// The run of `RINGKEEP_SEED` with all that happens; else any, which must be the same twice.
#[test]
fn one_run() {
    let wanted = number("RINGKEEP_SEED");
    let params = Params { verbose: wanted.is_some(), ..params(wanted.unwrap_or(1)) };
    let told = || run(params).unwrap_or_else(|failure| panic!("{failure}")).to_string();
    let first = told();
    println!("{first}");
    if wanted.is_none() {
        assert_eq!(first, told(), "the same seed does something else");
    }
}

/// The budget of every test run. More, and what then is still open, is in `docs/simulation.md`.
const FAULTS: u64 = 20_000;

#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    let faults = number("RINGKEEP_FAULTS").unwrap_or(FAULTS);
    let tally = until(faults, number("RINGKEEP_FIRST_SEED").unwrap_or(1));
    assert!(tally.acknowledged > 0 && tally.adopted > 0 && tally.given_up > 0);
    assert!(tally.kinds_left_out().is_empty(), "never: {:?}", tally.kinds_left_out());
    assert!(tally.stuck.is_empty(), "not everything came back: {:?}", tally.stuck);
}

/// Runs in which something was lost, torn, brought back too old or not at all once.
const FOUND_SOMETHING: [u64; 24] = [
    144, 293, 456, 632, 835, 1004, 1117, 1164, 1780, 1937, 2044, 2144, 2189, 2381, 10347, 10501,
    11648, 11653, 12312, 12800, 13574, 16341, 20470, 30827,
];

#[test]
fn what_went_wrong_once_does_not_any_more() {
    for seed in FOUND_SOMETHING {
        let tally = checked(params(seed));
        assert!(tally.stuck.is_empty(), "not everything came back: seed {seed}");
    }
}

/// As large as `RINGKEEP_NODES`, if it is set.
#[test]
fn a_large_ring_heals_itself() {
    let nodes = number("RINGKEEP_NODES").map_or(100, |nodes| nodes as usize);
    let storm = Duration::from_secs(3);
    let tally = checked(Params { nodes, services: 5, storm, ..params(7) });
    println!("{nodes} nodes\n{tally}");
    assert!(tally.stuck.is_empty() && tally.views > 0);
}

/// Whether a broken rule breaks this invariant within so many seeds from the first on.
fn is_noticed(mutant: Mutant, by: &str, first_seed: u64) -> bool {
    let found = (first_seed..first_seed + SEEDS_PER_RULE).find_map(|seed| {
        let failure = run(Params { mutant: Some(mutant), ..params(seed) }).err()?;
        let first = failure.lines().next().unwrap_or_default().to_owned();
        println!("{mutant:?}: seed {seed}: {first}");
        first.starts_with(by).then_some(())
    });
    found.is_some()
}

const SEEDS_PER_RULE: u64 = 150;

/// What is rare is looked for from where it was seen: in a debug build a run takes long.
#[test]
fn broken_rules_are_noticed() {
    let mut all = vec![
        (Mutant::NewestHolderOnly, I3, 30),
        (Mutant::WipedAtEviction, I1, 1),
        (Mutant::Amnesia, I8, 10),
        (Mutant::NoFence, I6, 1),
        (Mutant::EpochKept, ONE_MIRROR, 1),
        (Mutant::SendsBeforeItPersists, MAJORITY, 40),
    ];
    all.retain(|(mutant, by, first_seed)| !is_noticed(*mutant, by, *first_seed));
    assert!(all.is_empty(), "not noticed: {all:?}");
}
