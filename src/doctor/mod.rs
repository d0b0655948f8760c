//! What this machine offers to a server, and how to mend what is missing.
//!
//! [`facts`] reads the machine and decides nothing; [`parse`] understands the files it reads;
//! [`checks`] and [`rdma`] decide and read nothing. What only a device can tell is tried: `loopback`
//! lets it send to itself, `huge_page` is memory to register.

pub mod checks;
pub mod facts;
#[cfg(feature = "rdma")]
pub mod huge_page;
#[cfg(feature = "rdma")]
pub mod loopback;
pub mod parse;
pub mod rdma;

use serde::Serialize;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but slower, smaller or less.
    Warn,
    /// A server would not work.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; the same in every release.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it: where one command mends it, that command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// Everything looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst level of all checks.
    pub level: Level,
    /// The checks, in the order in which to read them.
    pub checks: Vec<Check>,
}

impl Report {
    /// Sums up `checks`.
    pub fn new(checks: Vec<Check>) -> Self {
        let level = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
        Self { level, checks }
    }
}
