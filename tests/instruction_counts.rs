//! The guard of the instruction counts notices what it is there for: a path that grew, one that
//! shrank, one that nobody recorded, one that is not counted any more. Counting itself is
//! `bash tests/run instructions`.
#![cfg(feature = "server")]

#[path = "../bench/counts/mod.rs"]
mod counts;

use std::fs;

use counts::{Counts, Finding, LIMIT_PERCENT, compare};

/// What is recorded in the tree.
fn recorded() -> Counts {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/instructions.toml");
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What the guard says when one path takes so much now, or is not counted any more.
fn findings(path: &str, now: Option<u64>) -> Vec<(String, Finding, Option<String>)> {
    let (recorded, mut counted) = (recorded(), recorded());
    match now {
        Some(now) => counted.instructions.insert(path.to_owned(), now),
        None => counted.instructions.remove(path),
    };
    let rows = compare(&recorded, &counted);
    let found = rows.iter().map(|row| (row.path.to_owned(), row.finding(), row.complaint()));
    found.filter(|(_, finding, _)| *finding != Finding::Same).collect()
}

#[test]
fn every_path_that_grows_by_more_than_the_limit_is_named_with_both_numbers() {
    let recorded = recorded().instructions;
    assert!(recorded.len() > 10);
    for (path, before) in recorded {
        assert_eq!(findings(&path, Some(before)), []);
        let most = before * (100 + LIMIT_PERCENT) / 100;
        assert_eq!(findings(&path, Some(most)), [], "{path}: as much as is allowed");
        let found = findings(&path, Some(most + 1));
        let [(name, Finding::Grew, Some(said))] = &found[..] else {
            panic!("{path}: {found:?}");
        };
        assert_eq!(*name, path);
        assert!(said.contains(&format!("grew from {before} to {}", most + 1)), "{said}");
    }
}

#[test]
fn what_was_gained_is_to_be_recorded() {
    for (path, before) in recorded().instructions {
        let least = (before * (100 - LIMIT_PERCENT)).div_ceil(100);
        assert_eq!(findings(&path, Some(least)), [], "{path}");
        let found = findings(&path, Some(least - 1));
        assert!(matches!(&found[..], [(_, Finding::Shrank, Some(_))]), "{path}: {found:?}");
    }
}

#[test]
fn a_path_that_only_one_side_has_is_named() {
    let said = "another takes 5 instructions and is not recorded".to_owned();
    let found = findings("another", Some(5));
    assert_eq!(found, [("another".to_owned(), Finding::New, Some(said))]);
    let said = "handover is recorded and not counted any more".to_owned();
    let found = findings("handover", None);
    assert_eq!(found, [("handover".to_owned(), Finding::Gone, Some(said))]);
}
