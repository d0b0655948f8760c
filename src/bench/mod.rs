//! `ringkeep bench`: what a commit takes, beside what the machine can do at best in the same run.
//!
//! Times alone say little: machines differ, and one machine differs from minute to minute. So
//! whatever is timed takes turns with its *limit*, and every row of a table ends with the ratio of
//! both medians; a limit's own is 1.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`turns`] | contenders take turns; what they took |
//! | [`commits`] | services that commit |
//! | [`restores`] | services that get their state back |
//! | [`failover`] | servers and services that die, and what goes on without them |
//! | [`files`], [`redis`] | what people have instead: a file that is replaced, Redis with a replica |
//! | [`limits`], `rdma` | what the machine can do: TCP, memory, checksums, an RDMA device |
//! | [`pin`] | the measuring thread stays on its core |
//! | [`handed`] | the round trip of TCP of whom a server stands before |
//! | [`room`] | how much memory there is for all of that |
//! | [`report`] | the rows of a table |
//! | [`plot`] | the rows as a picture |

pub mod commits;
pub mod failover;
pub mod files;
pub mod handed;
pub mod limits;
pub mod pin;
pub mod plot;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod redis;
pub mod report;
pub mod restores;
pub mod room;
pub mod turns;

use std::io;

use self::redis::RedisError;
use crate::{
    client::{CommitError, OpenError, ReadError, RequestError, WriteError},
    demo::ring::RingError,
};

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
    /// The servers that were started are not as they should be.
    #[error(transparent)]
    Ring(RingError),
    /// Redis does not take part.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// A state that was acknowledged on two nodes is not what was found after one of them died.
    #[error("LOST: a state that was acknowledged is not there, or not the same")]
    NotRecovered,
    /// Nobody has this node's second copies.
    #[error("the node has no predecessor: nothing is mirrored")]
    Alone,
    /// A service that was started did not get as far as to commit.
    #[error("the service that was started ended before it had committed")]
    ServiceEnded,
    /// The system refused something.
    #[error("measuring: {0}")]
    System(#[from] io::Error),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<RingError> for BenchError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Interrupted => Self::Interrupted,
            error => Self::Ring(error),
        }
    }
}
