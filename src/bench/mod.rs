//! `ringkeep bench`: what a commit takes, beside what the machine can do at best in the same run.
//!
//! Times alone say little: machines differ, and one machine differs from minute to minute. So
//! whatever is timed takes turns with its *limit*, and every row of a table ends with the ratio of
//! both medians.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`turns`] | contenders take turns; what they took |
//! | [`commits`] | services that commit |
//! | [`restores`] | services that get their state back |
//! | [`limits`] | what the machine can do: TCP, memory, checksums |
//! | [`report`] | the rows of a table |

pub mod commits;
pub mod limits;
pub mod report;
pub mod restores;
pub mod turns;

use std::io;

use crate::client::{CommitError, OpenError, ReadError, RequestError, WriteError};

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A checkpoint could not be opened.
    #[error("opening a checkpoint: {0}")]
    Open(#[from] OpenError),
    /// The server refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A commit failed.
    #[error("committing: {0}")]
    Commit(#[from] CommitError),
    /// Changing the state failed.
    #[error("writing: {0}")]
    Write(#[from] WriteError),
    /// What was committed could not be read.
    #[error("reading: {0}")]
    Read(#[from] ReadError),
    /// The system refused something.
    #[error("measuring: {0}")]
    System(#[from] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}
