//! What was counted against what was recorded. Pure.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A path may grow or shrink by so much before somebody has to look at it.
pub(crate) const LIMIT_PERCENT: u64 = 5;

/// Instructions of one step of each path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// The processor's architecture: on another one there is nothing to compare.
    pub(crate) architecture: String,
    /// The compiler, which changes the counts by itself now and then.
    pub(crate) compiler: String,
    /// By the path's name.
    pub(crate) instructions: BTreeMap<String, u64>,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is about as long as it was.
    Same,
    /// It takes more than the limit allows.
    Grew,
    /// It takes so much less that the record is not its measure any more: what it gained would be
    /// lost again unseen.
    Shrank,
    /// It is not in the record.
    New,
    /// It is in the record only.
    Gone,
}

/// One path in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) path: &'a str,
    pub(crate) recorded: Option<u64>,
    pub(crate) counted: Option<u64>,
}

/// All paths of both, by name.
pub(crate) fn compare<'a>(recorded: &'a Counts, counted: &'a Counts) -> Vec<Row<'a>> {
    let (recorded, counted) = (&recorded.instructions, &counted.instructions);
    let mut paths: Vec<&String> = recorded.keys().chain(counted.keys()).collect();
    paths.sort();
    paths.dedup();
    let row = |path: &'a String| Row {
        path,
        recorded: recorded.get(path).copied(),
        counted: counted.get(path).copied(),
    };
    paths.into_iter().map(row).collect()
}

impl Row<'_> {
    pub(crate) fn finding(&self) -> Finding {
        match (self.recorded, self.counted) {
            (None, _) => Finding::New,
            (_, None) => Finding::Gone,
            (Some(before), Some(now)) if now * 100 > before * (100 + LIMIT_PERCENT) => {
                Finding::Grew
            }
            (Some(before), Some(now)) if now * 100 < before * (100 - LIMIT_PERCENT) => {
                Finding::Shrank
            }
            _ => Finding::Same,
        }
    }

    fn percent(&self) -> Option<f64> {
        let (before, now) = (self.recorded? as f64, self.counted? as f64);
        Some((now - before) * 100.0 / before.max(1.0))
    }

    /// What somebody has to know, if anything.
    pub(crate) fn complaint(&self) -> Option<String> {
        let (path, percent) = (self.path, self.percent().unwrap_or_default());
        let (before, now) = (self.recorded.unwrap_or(0), self.counted.unwrap_or(0));
        match self.finding() {
            Finding::Same => None,
            Finding::Grew => Some(format!(
                "{path} grew from {before} to {now} instructions, by {percent:.1} %; \
                 {LIMIT_PERCENT} % are allowed"
            )),
            Finding::Shrank => Some(format!(
                "{path} shrank from {before} to {now} instructions, by {:.1} %: record that, \
                 or the next one may lose it again unseen",
                -percent
            )),
            Finding::New => Some(format!("{path} takes {now} instructions and is not recorded")),
            Finding::Gone => Some(format!("{path} is recorded and not counted any more")),
        }
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        let percent = self.percent().map_or("-".to_owned(), |p| format!("{p:+.1} %"));
        let (before, now) = (number(self.recorded), number(self.counted));
        write!(f, "{:<24} {before:>10} {now:>10} {percent:>10}", self.path)
    }
}
