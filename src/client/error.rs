//! What can go wrong for a service, one enum an operation.

use std::{io, path::PathBuf};

use crate::{
    commit::Version,
    name::Name,
    protocol::{Failure, FailureKind},
    region::{SlotError, mapping::OutOfBounds},
};

/// Why a request to the local server failed. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No server answers at this socket.
    #[error(
        "no server answers at {socket}: {source}; start one with `ringkeep serve`, or name its socket with --socket or RINGKEEP_SOCKET"
    )]
    NoServer {
        /// The socket's path.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection to the server broke.
    #[error("the connection to the local server broke: {0}")]
    Broken(#[from] io::Error),
    /// The server says no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The server answers what was not asked.
    #[error(
        "the server's answer does not fit the question; client and server are of different versions"
    )]
    Unexpected,
}

impl RequestError {
    /// The kind of refusal, if it was one.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Refused(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// Why a read of the saved state failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The newest version's checksums do not match. Nothing older is handed out in its place.
    #[error(
        "version {version} of {name} is damaged in this node's memory: {damage}; `ringkeep get {name}` fetches it from the mirror"
    )]
    Corrupt {
        /// The checkpoint.
        name: Name,
        /// The version whose record is right but whose content is not.
        version: Version,
        /// What does not match.
        damage: SlotError,
    },
}

/// Why a write into the working slot failed. The update under way is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More than the capacity.
    #[error("{0}; open the checkpoint with a larger capacity")]
    TooLarge(#[from] OutOfBounds),
    /// The server reads the slot, because an earlier version is still on its way to the mirror, and
    /// this did not end in time.
    #[error("the slot is still being mirrored after the time limit")]
    Busy,
    /// Somebody else owns the checkpoint.
    #[error(transparent)]
    Lost(#[from] OwnershipError),
}

/// This process is not the checkpoint's writer any more. Nothing that it writes counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// Taken over, or this node was evicted from the ring.
    #[error(
        "{name} is fenced: it was taken over, or this node was evicted; open it again to go on from the newest version"
    )]
    Fenced {
        /// The checkpoint.
        name: Name,
    },
    /// Removed.
    #[error("{name} was removed")]
    Removed {
        /// The checkpoint.
        name: Name,
    },
    /// The server found nonsense in the hand-over memory of this process.
    #[error("the server let this process go: it found damaged hand-over memory of {name}")]
    Violation {
        /// The checkpoint.
        name: Name,
    },
}

/// Why a commit did not reach what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The version is `local`, and will be mirrored when the ring is whole again; but not by the
    /// deadline.
    #[error(
        "durability not reached: version {version} of {name} is local only; it will be mirrored when the ring is whole again (see `ringkeep status`)"
    )]
    DurabilityNotReached {
        /// The checkpoint.
        name: Name,
        /// The version.
        version: Version,
    },
    /// The update could not be written; nothing was committed.
    #[error(transparent)]
    Write(WriteError),
    /// Somebody else owns the checkpoint; nothing was committed.
    #[error(transparent)]
    Lost(#[from] OwnershipError),
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Lost(lost) => Self::Lost(lost),
            other => Self::Write(other),
        }
    }
}
