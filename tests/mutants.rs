//! Rules taken out of the real code one at a time: a checker that passes without a rule does not
//! check it.
//!
//! That each mutant still fits the source is tested always. `bash tests/run mutants` makes them, in
//! a copy of the source, and expects the named test to fail with the named words. With
//! `RINGKEEP_MUTANT=WORDS` only those whose name has these words.
#![cfg(feature = "server")]

#[allow(dead_code)]
mod invariants;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use invariants::{I2, I3, I5, I7};

struct Mutant {
    /// The wrong idea.
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// `cargo test` arguments, each of which select tests one of which must fail.
    tests: &'static [&'static [&'static str]],
    /// What it says then.
    says: &'static str,
}

const THREE: &[&str] = &["--test", "model_membership", "three_voters"];
const FOUR: &[&str] = &["--test", "model_membership", "four_voters_decide"];
/// Nothing can go wrong in the first of its views.
const SECOND_VIEW: &[&str] = &["--test", "model_membership", "the_second_view"];
const NEXT_LIFE: &[&str] = &["--test", "model_membership", "comes_back_as_another_life"];
const FIVE_WALKED: &[&str] = &["--test", "model_membership", "five_nodes_over_four_views"];
const SEVEN_WALKED: &[&str] = &["--test", "model_membership", "seven_voters_walked"];
const AGREEMENT: &str = "I4 one value per view number";
const FLAPPING: &[&str] = &["--test", "model_mirror", "the_predecessors_change_places"];
const SIMULATION: &[&str] = &["--test", "simulation", "nothing"];
const GOOD_END: &str = "a good end is possible";
const MEMORY: &str = "I8 nobody votes after amnesia";

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "in the second ballot the highest proposal wins",
        file: "src/membership/chooser.rs",
        from: "match candidates(voters, fast_quorum, promises).as_slice() {",
        to: "let votes = promises.values().filter_map(|promise| promise.vote.as_ref());
    let highest: Vec<_> = votes.map(|vote| vote.value.clone()).max().into_iter().collect();
    let _ = candidates(voters, fast_quorum, promises);
    match highest.as_slice() {",
        tests: &[THREE, FOUR, SECOND_VIEW, NEXT_LIFE, FIVE_WALKED],
        says: AGREEMENT,
    },
    Mutant {
        name: "in the second ballot the choice is always free",
        file: "src/membership/chooser.rs",
        from: "[value] => Choice::Bound(value.clone()),",
        to: "[_] => Choice::Free,",
        tests: &[THREE, FOUR, SECOND_VIEW, FIVE_WALKED, SEVEN_WALKED],
        says: AGREEMENT,
    },
    Mutant {
        name: "a later slow ballot does not ask what an earlier one accepted",
        file: "src/membership/chooser.rs",
        from: "if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot) {",
        to: "if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot).filter(|_| false) {",
        tests: &[&["--test", "model_membership", "a_second_slow_ballot"]],
        says: AGREEMENT,
    },
    Mutant {
        name: "V1: a proposer proposes although it has voted for somebody else's change",
        file: "src/membership/ballot.rs",
        from: "if self.promised.is_some() || self.cast.vote.is_some() {",
        to: "if self.promised.is_some() {",
        tests: &[THREE],
        says: MEMORY,
    },
    Mutant {
        name: "V2: a voter acknowledges after it promised to follow a slow ballot",
        file: "src/membership/ballot.rs",
        from: "if let Some(ballot) = self.promised {
            return Err(Refusal::Promised(ballot));
        }
        if value",
        to: "if value",
        tests: &[THREE],
        says: AGREEMENT,
    },
    Mutant {
        name: "V3: a proposer declares after it promised",
        file: "src/membership/ballot.rs",
        from: "mine.filter(|_| self.promised.is_none()).map(|vote| &vote.value)",
        to: "mine.map(|vote| &vote.value)",
        tests: &[THREE, FOUR, SECOND_VIEW, FIVE_WALKED],
        says: AGREEMENT,
    },
    Mutant {
        name: "V5: an acknowledgement is sent before the vote is stored",
        file: "src/membership/instance.rs",
        from: "if news {
                    out.push(Step::Persist);
                }
                send(out, from, Body::Ack);",
        to: "send(out, from, Body::Ack);
                if news {
                    out.push(Step::Persist);
                }",
        tests: &[THREE],
        says: MEMORY,
    },
    Mutant {
        name: "V5: a promise is not stored",
        file: "src/membership/instance.rs",
        from: "if news {
                    out.push(Step::Persist);
                }
                self.give_way(ballot);
                send(out, from, Body::Promise",
        to: "let _ = news;
                self.give_way(ballot);
                send(out, from, Body::Promise",
        tests: &[THREE],
        says: MEMORY,
    },
    Mutant {
        name: "V5: a vote that could not be stored is heard all the same",
        file: "src/server/life.rs",
        from: "stored?;",
        to: "let _ = stored;",
        tests: &[&["--lib", "cannot_be_stored"]],
        says: MEMORY,
    },
    Mutant {
        name: "V5: a vote that could not be stored is repeated when it is asked for again",
        file: "src/server/life.rs",
        from: "self.silent = stored.is_err();",
        to: "",
        tests: &[&["--lib", "cannot_be_stored"]],
        says: MEMORY,
    },
    Mutant {
        name: "V4: a free choice keeps the first proposal only",
        file: "src/membership/instance.rs",
        from: "let union = Arc::new(all);",
        to: "let _ = all;
    let union = (*first).clone();",
        tests: &[
            &["--lib", "a_free_choice_merges"],
            &["--test", "membership_ring", "a_join_that_collides"],
        ],
        says: "V4: a free choice is the union",
    },
    Mutant {
        name: "a majority is the fast quorum of seven",
        file: "src/membership/quorum.rs",
        from: "voters - slow_missing_max.min((voters + 1 - slow_missing_max) / 2)",
        to: "voters - slow_missing_max",
        tests: &[&["--lib", "every_majority_chooses"]],
        says: AGREEMENT,
    },
    Mutant {
        name: "a record's checksum does not cover the sequence",
        file: "src/commit/record.rs",
        from: "XxHash3_64::oneshot(&record[..CHECKSUM_AT])",
        to: "XxHash3_64::oneshot(&record[..32])",
        tests: &[&["--lib", "one_wrong_bit"]],
        says: "I2 no torn read",
    },
    Mutant {
        name: "a slot lacks only what the last version changed",
        file: "src/commit/slots.rs",
        from: "slot.stale.union_ranges(&self.changed);",
        to: "slot.stale.clear();
                slot.stale.union_ranges(&self.changed);",
        tests: &[&["--lib", "every_version_is_whole"]],
        says: "I2: the new version is torn",
    },
    Mutant {
        name: "what was kept to the byte is forgotten when blocks are kept",
        file: "src/commit/ranges.rs",
        from: "for e in self.extents.drain(..) {",
        to: "for e in self.extents.drain(..).skip(1) {",
        tests: &[&["--lib", "nothing_that_was_put_in"]],
        says: "I2 no torn read",
    },
    Mutant {
        name: "what a peer sends is written without a look at its checksums",
        file: "src/server/copies.rs",
        from: "table.check(at, bytes)?;",
        to: "let _ = table;",
        tests: &[&["--lib", "what_arrives_is_written_where_it_belongs"]],
        says: "I2 no torn read",
    },
    Mutant {
        name: "the old entry of a changed chunk stays in the root",
        file: "src/region/mod.rs",
        from: "root.remove(chunk, self.entry(source, chunk));",
        to: "let _ = self.entry(source, chunk);",
        tests: &[&["--lib", "a_version_made_of_what_changed"]],
        says: "I2 no torn read",
    },
    Mutant {
        name: "a write completes before it is placed",
        file: "src/transport/fake/flight.rs",
        from: "(placed, pieces.is_empty())",
        to: "(placed, true)",
        tests: &[&["--test", "simulation", "nothing"]],
        says: "I7 acknowledgements only at or above the floor",
    },
    Mutant {
        name: "voters shrink to two",
        file: "src/membership/mod.rs",
        from: "pub const VOTERS_MIN: usize = 3;",
        to: "pub const VOTERS_MIN: usize = 2;",
        tests: &[&["--test", "model_membership", "all_but_any_one"]],
        says: "the next view can still be decided",
    },
    // The mirror.
    Mutant {
        name: "posting a mark does not raise the floor",
        file: "src/mirror/mod.rs",
        from: "self.floor = self.floor.max(view);
        self.remotes[at]",
        to: "self.remotes[at]",
        tests: &[FLAPPING],
        says: I7,
    },
    Mutant {
        name: "holders below the floor acknowledge",
        file: "src/mirror/mod.rs",
        from: "r.mark > 0 && r.mark >= self.floor)",
        to: "r.mark > 0)",
        tests: &[SIMULATION],
        says: I7,
    },
    Mutant {
        name: "holders outside the ring acknowledge",
        file: "src/mirror/mod.rs",
        from: "if self.record().any(|r| !in_ring(&r.holder)) {",
        to: "if self.record().any(|r| !in_ring(&r.holder)) && false {",
        tests: &[&["--test", "model_mirror", "a_holder_is_evicted_and_its"]],
        says: I7,
    },
    Mutant {
        name: "the last copy before the mark is left out",
        file: "src/mirror/plan.rs",
        from: "if self.bulk_missing(remote) || remote.newest() < self.mirrored {",
        to: "if self.bulk_missing(remote) {",
        tests: &[&["--test", "model_mirror", "random_walks"]],
        says: I5,
    },
    Mutant {
        name: "a mark below the floor will do",
        file: "src/mirror/plan.rs",
        from: "self.floor.max(self.since).max(1)",
        to: "self.since.max(1)",
        tests: &[&["--test", "model_mirror", "two_copies_marked_in_different_views"]],
        says: GOOD_END,
    },
    Mutant {
        name: "a mark of an older time as predecessor will do",
        file: "src/mirror/plan.rs",
        from: "self.floor.max(self.since).max(1)",
        to: "self.floor.max(1)",
        tests: &[&["--test", "model_mirror", "somebody_is_the_predecessor"]],
        says: GOOD_END,
    },
    Mutant {
        name: "the first mark of several switches",
        file: "src/mirror/plan.rs",
        from: "wanted.peek().is_some() && wanted.all(|r| r.mark >= self.mark_due())",
        to: "wanted.peek().is_some() && wanted.any(|r| r.mark >= self.mark_due())",
        tests: &[&["--test", "model_mirror", "two_copies_marked_in_different_views"]],
        says: GOOD_END,
    },
    Mutant {
        name: "the remote slot follows from the version's number",
        file: "src/mirror/plan.rs",
        from: "to: self.remotes[at].target() }",
        to: "to: version as usize % self.measures.slots }",
        tests: &[SIMULATION],
        says: I5,
    },
    Mutant {
        name: "what a holder claims to have is overwritten first",
        file: "src/mirror/remote.rs",
        from: ".filter(|&i| !under_way(i) && Some(i) != kept)",
        to: ".filter(|&i| !under_way(i) && (true || Some(i) != kept))",
        tests: &[&["--test", "model_mirror", "a_holder_is_evicted_and_its"]],
        says: I5,
    },
    Mutant {
        name: "a holder's slot lacks only what the last version changed",
        file: "src/mirror/remote.rs",
        from: "slot.stale.union(changed);",
        to: "slot.stale.clear();
            slot.stale.union(changed);",
        tests: &[SIMULATION],
        says: I7,
    },
    Mutant {
        name: "a recovery asks the newest holders only",
        file: "src/recovery.rs",
        from: "for run in runs.iter().rev().filter(",
        to: "for run in runs.iter().rev().take(1).filter(",
        tests: &[FLAPPING],
        says: I3,
    },
    Mutant {
        name: "a holder with a mark of whichever time is exact",
        file: "src/recovery.rs",
        from: "report.mark.is_some_and(|mark| mark >= run.since)",
        to: "report.mark.is_some_and(|mark| mark >= run.since.min(1))",
        tests: &[FLAPPING],
        says: I3,
    },
    Mutant {
        name: "holders that cannot be asked are passed over",
        file: "src/recovery.rs",
        from: "if heard().next().is_none() {",
        to: "if heard().next().is_none() && runs.is_empty() {",
        tests: &[FLAPPING],
        says: I3,
    },
    // Updates.
    Mutant {
        name: "after an update was given up the other slot is next",
        file: "src/commit/slots.rs",
        from: ".filter(|&i| Some(i) != self.newest)
            .min_by_key(|&i| self.slots[i].version)",
        to: ".min_by_key(|&i| match self.slots[i].version {
                0 => Version::MAX,
                version => version,
            })",
        tests: &[SIMULATION],
        says: I5,
    },
    Mutant {
        name: "the slot of an update follows from the version's number",
        file: "src/commit/slots.rs",
        from: "Working { slot, source: self.newest }",
        to: "let slot = (slot - slot) + self.version() as usize % self.slots.len();
        Working { slot, source: self.newest }",
        tests: &[SIMULATION],
        says: I5,
    },
    Mutant {
        name: "a slot lacks only what the last version changed, in a whole ring",
        file: "src/commit/slots.rs",
        from: "slot.stale.union_ranges(&self.changed);",
        to: "slot.stale.clear();
                slot.stale.union_ranges(&self.changed);",
        tests: &[SIMULATION],
        says: I2,
    },
    Mutant {
        name: "a record's checksum covers all but the sequence",
        file: "src/commit/record.rs",
        from: "XxHash3_64::oneshot(&record[..CHECKSUM_AT])",
        to: "XxHash3_64::oneshot(&[&record[..32], &record[40..CHECKSUM_AT]].concat())",
        tests: &[SIMULATION],
        says: I2,
    },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn mutated(mutant: &Mutant) -> String {
    let source = fs::read_to_string(root().join(mutant.file)).unwrap();
    let found = source.matches(mutant.from).count();
    assert_eq!(found, 1, "{}: {:?} stands {found} times", mutant.name, mutant.from);
    source.replace(mutant.from, mutant.to)
}

#[test]
fn every_mutant_fits_the_source() {
    MUTANTS.iter().for_each(|mutant| drop(mutated(mutant)));
}

/// A copy of what a build needs.
fn copy_of_the_source() -> PathBuf {
    let copy = root().join("target/mutants/source");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(&copy).unwrap();
    for part in ["src", "tests", "bench", "examples", "Cargo.toml", "Cargo.lock"] {
        let copied = Command::new("cp").arg("-r").arg(root().join(part)).arg(&copy).status();
        assert!(copied.unwrap().success(), "copying {part}");
    }
    copy
}

/// What a test says that notices a mutant.
fn run(copy: &Path, mutant: &Mutant, test: &[&str]) -> Option<String> {
    let output = Command::new("cargo")
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", root().join("target/mutants/target"))
        .env("RINGKEEP_MODEL", "20")
        .args(["test", "--release", "--locked", "--no-default-features", "--features", "server"])
        .args(test)
        .args(["--", "--nocapture"])
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("running "), "{} does not build:\n{said}", mutant.name);
    (!output.status.success() && said.contains(mutant.says)).then_some(said)
}

#[test]
#[ignore = "builds each mutant: bash tests/run mutants"]
fn every_mutant_is_caught() {
    let copy = copy_of_the_source();
    let mut survivors = Vec::new();
    let wanted = std::env::var("RINGKEEP_MUTANT").unwrap_or_default();
    for mutant in MUTANTS.iter().filter(|mutant| mutant.name.contains(&wanted)) {
        let file = copy.join(mutant.file);
        fs::write(&file, mutated(mutant)).unwrap();
        for test in mutant.tests {
            let said = run(&copy, mutant, test);
            let counts =
                said.as_ref().map(|said| said.lines().find(|line| line.contains("VIOLATED")));
            let caught_by = counts.map_or("SURVIVED", |line| line.unwrap_or("caught"));
            println!("{}, {}: {caught_by}", mutant.name, test.last().unwrap());
            if said.is_none() {
                survivors.push((mutant.name, test));
            }
        }
        fs::copy(root().join(mutant.file), file).unwrap();
    }
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
