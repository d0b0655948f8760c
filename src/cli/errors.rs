//! The library's errors as exit statuses: the one place that decides which is which.

use super::exit::{Exit, Failure};
use crate::{
    client::{CommitError, OpenError, OwnershipError, ReadError, RequestError, WriteError},
    protocol::FailureKind,
};

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::NoSuchCheckpoint => Self::NotFound,
            FailureKind::OwnedElsewhere | FailureKind::Fenced => Self::Fenced,
            FailureKind::NoSpace => Self::NoSpace,
            FailureKind::Corrupt => Self::Corrupt,
            FailureKind::Invalid => Self::Usage,
            FailureKind::Unavailable | FailureKind::Permission | FailureKind::Internal => {
                Self::Failed
            }
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let status = match &error {
            RequestError::NoServer { .. } => Exit::NoServer,
            RequestError::Refused(failure) => failure.kind.into(),
            RequestError::Broken(_) | RequestError::Unexpected => Exit::Failed,
        };
        let failure = Self::new(status, &error);
        match error {
            RequestError::Broken(_) => failure.hint("see the server's log, then try again"),
            _ => failure,
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Name(error) => Self::new(Exit::Usage, error),
            OpenError::Request(error) => error.into(),
            OpenError::Map(_) => Self::new(Exit::Failed, error)
                .hint("this process may have too little address space: see `ulimit -v`"),
        }
    }
}

impl From<OwnershipError> for Failure {
    fn from(error: OwnershipError) -> Self {
        let status = match error {
            OwnershipError::Fenced { .. } => Exit::Fenced,
            OwnershipError::Removed { .. } => Exit::NotFound,
            OwnershipError::Violation { .. } => Exit::Failed,
        };
        Self::new(status, error)
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::TooLarge(_) => Self::new(Exit::NoSpace, error),
            WriteError::Busy => Self::new(Exit::NotDurable, error)
                .hint("`ringkeep status` shows the mirror; try again with a longer --timeout"),
            WriteError::Lost(error) => error.into(),
        }
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DurabilityNotReached { .. } => Self::new(Exit::NotDurable, error),
            CommitError::Write(error) => error.into(),
            CommitError::Lost(error) => error.into(),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt { .. } => Self::new(Exit::Corrupt, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{name::Name, protocol};

    fn status(failure: impl Into<Failure>) -> u8 {
        failure.into().status as u8
    }

    #[test]
    fn each_failure_has_the_status_that_the_front_door_promises() {
        for (kind, wanted) in [
            (FailureKind::NoSuchCheckpoint, 3),
            (FailureKind::OwnedElsewhere, 4),
            (FailureKind::Fenced, 4),
            (FailureKind::NoSpace, 6),
            (FailureKind::Corrupt, 7),
            (FailureKind::Unavailable, 1),
            (FailureKind::Permission, 1),
            (FailureKind::Invalid, 2),
            (FailureKind::Internal, 1),
        ] {
            let refused = RequestError::Refused(protocol::Failure::new(kind, "no"));
            assert_eq!(status(refused), wanted, "{kind:?}");
        }
        let name = Name::new("sched").unwrap();
        let refused = io::ErrorKind::ConnectionRefused;
        let gone = RequestError::NoServer { socket: "/s".into(), source: refused.into() };
        assert_eq!(status(OpenError::from(gone)), 8);
        assert_eq!(status(OwnershipError::Fenced { name: name.clone() }), 4);
        assert_eq!(status(OwnershipError::Removed { name: name.clone() }), 3);
        let late = CommitError::DurabilityNotReached { name, version: 7 };
        let failure = Failure::from(late);
        assert_eq!(failure.status, Exit::NotDurable);
        assert!(failure.to_string().contains("version 7 of sched is local only"), "{failure}");
    }
}
