//! Rules taken out of the real code one at a time: a checker that passes without a rule does not
//! check it.
//!
//! That each mutant still fits the source is tested always. `bash tests/run mutants` makes them, in
//! a copy of the source, and expects the named test to fail with the named words.
#![cfg(feature = "server")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

struct Mutant {
    /// The wrong idea.
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// `cargo test` arguments that select the test that must fail.
    test: &'static [&'static str],
    /// What it says then.
    says: &'static str,
}

const THREE: &[&str] = &["--test", "model_membership", "three_voters"];
const AGREEMENT: &str = "I4 one value per view number";

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "in the second ballot the highest proposal wins",
        file: "src/membership/chooser.rs",
        from: "match candidates(voters, fast_quorum, promises).as_slice() {",
        to: "let votes = promises.values().filter_map(|promise| promise.vote.as_ref());
    let highest: Vec<_> = votes.map(|vote| vote.value.clone()).max().into_iter().collect();
    let _ = candidates(voters, fast_quorum, promises);
    match highest.as_slice() {",
        test: THREE,
        says: AGREEMENT,
    },
    Mutant {
        name: "in the second ballot the choice is always free",
        file: "src/membership/chooser.rs",
        from: "[value] => Choice::Bound(value.clone()),",
        to: "[_] => Choice::Free,",
        test: THREE,
        says: AGREEMENT,
    },
    Mutant {
        name: "a later slow ballot does not ask what an earlier one accepted",
        file: "src/membership/chooser.rs",
        from: "if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot) {",
        to: "if let Some((_, value)) = accepted.max_by_key(|(ballot, _)| *ballot).filter(|_| false) {",
        test: &["--test", "model_membership", "a_second_slow_ballot"],
        says: AGREEMENT,
    },
    Mutant {
        name: "V1: a proposer proposes although it has voted for somebody else's change",
        file: "src/membership/ballot.rs",
        from: "if self.promised.is_some() || self.cast.vote.is_some() {",
        to: "if self.promised.is_some() {",
        test: THREE,
        says: "I8 nobody votes after amnesia",
    },
    Mutant {
        name: "V2: a voter acknowledges after it promised to follow a slow ballot",
        file: "src/membership/ballot.rs",
        from: "if let Some(ballot) = self.promised {
            return Err(Refusal::Promised(ballot));
        }
        if value",
        to: "if value",
        test: THREE,
        says: AGREEMENT,
    },
    Mutant {
        name: "V3: a proposer declares after it promised",
        file: "src/membership/ballot.rs",
        from: "mine.filter(|_| self.promised.is_none()).map(|vote| &vote.value)",
        to: "mine.map(|vote| &vote.value)",
        test: THREE,
        says: AGREEMENT,
    },
    Mutant {
        name: "a majority is the fast quorum of seven",
        file: "src/membership/quorum.rs",
        from: "voters - slow_missing_max.min((voters + 1 - slow_missing_max) / 2)",
        to: "voters - slow_missing_max",
        test: &["--lib", "every_majority_chooses"],
        says: AGREEMENT,
    },
    Mutant {
        name: "a record's checksum does not cover the sequence",
        file: "src/commit/record.rs",
        from: "XxHash3_64::oneshot(&record[..CHECKSUM_AT])",
        to: "XxHash3_64::oneshot(&record[..32])",
        test: &["--lib", "one_wrong_bit"],
        says: "one_wrong_bit_anywhere_is_noticed",
    },
    Mutant {
        name: "a slot lacks only what the last version changed",
        file: "src/commit/slots.rs",
        from: "slot.stale.union_ranges(&self.changed);",
        to: "slot.stale.clear();
                slot.stale.union_ranges(&self.changed);",
        test: &["--lib", "every_version_is_whole"],
        says: "I2: the new version is torn",
    },
    Mutant {
        name: "what was kept to the byte is forgotten when blocks are kept",
        file: "src/commit/ranges.rs",
        from: "for e in self.extents.drain(..) {",
        to: "for e in self.extents.drain(..).skip(1) {",
        test: &["--lib", "nothing_that_was_put_in"],
        says: "nothing_that_was_put_in_is_ever_lost",
    },
    Mutant {
        name: "what a peer sends is written without a look at its checksums",
        file: "src/server/copies.rs",
        from: "table.check(at, bytes)?;",
        to: "let _ = table;",
        test: &["--lib", "what_arrives_is_written_where_it_belongs"],
        says: "Piece {",
    },
    Mutant {
        name: "the old entry of a changed chunk stays in the root",
        file: "src/region/mod.rs",
        from: "root.remove(chunk, self.entry(source, chunk));",
        to: "let _ = self.entry(source, chunk);",
        test: &["--lib", "a_version_made_of_what_changed"],
        says: "a_version_made_of_what_changed_is_the_one_that_a_whole_look_gives",
    },
    Mutant {
        name: "a write completes before it is placed",
        file: "src/transport/fake/flight.rs",
        from: "(placed, pieces.is_empty())",
        to: "(placed, true)",
        test: &["--test", "simulation", "nothing"],
        says: "I7 acknowledgements only at or above the floor",
    },
    Mutant {
        name: "voters shrink to two",
        file: "src/membership/mod.rs",
        from: "pub const VOTERS_MIN: usize = 3;",
        to: "pub const VOTERS_MIN: usize = 2;",
        test: &["--test", "model_membership", "with_one_crash"],
        says: "the next view can still be decided",
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

#[test]
#[ignore = "builds each mutant: bash tests/run mutants"]
fn every_mutant_is_caught() {
    let copy = copy_of_the_source();
    let mut survivors = Vec::new();
    for mutant in MUTANTS {
        let file = copy.join(mutant.file);
        fs::write(&file, mutated(mutant)).unwrap();
        let output = Command::new("cargo")
            .current_dir(&copy)
            .env("CARGO_TARGET_DIR", root().join("target/mutants/target"))
            .env("RINGKEEP_MODEL", "20")
            .args([
                "test",
                "--release",
                "--locked",
                "--no-default-features",
                "--features",
                "server",
            ])
            .args(mutant.test)
            .args(["--", "--nocapture"])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("running "), "{} does not build:\n{said}", mutant.name);
        let caught = !output.status.success() && said.contains(mutant.says);
        let counts = said.lines().find(|line| line.contains("VIOLATED"));
        let caught_by = if caught { counts.unwrap_or("caught") } else { "SURVIVED" };
        println!("{}: {caught_by}", mutant.name);
        if !caught {
            survivors.push(mutant.name);
        }
        fs::copy(root().join(mutant.file), file).unwrap();
    }
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
