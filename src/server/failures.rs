//! The words for what a server cannot do, each of them one line that says what to do.

use super::store::StoreError;
use crate::{
    commit::Version,
    membership::{Member, NodeId},
    name::Name,
    protocol::{Failure, FailureKind},
    region::files::CreateError,
};

pub(super) fn no_such(name: &Name) -> Failure {
    let why = format!("no such checkpoint: {name}; `ringkeep ls` lists those of the ring");
    Failure::new(FailureKind::NoSuchCheckpoint, why)
}

pub(super) fn no_version(name: &Name, version: Version) -> Failure {
    let why = format!("{name} has no version {version} (any more); try without --version");
    Failure::new(FailureKind::NoSuchCheckpoint, why)
}

/// On a witness, which has no memory for a checkpoint.
pub(super) fn stored_elsewhere(name: &Name, witness: &NodeId, ring: &[Member]) -> Failure {
    let ring: Vec<&str> = ring.iter().map(|member| member.id.name.as_str()).collect();
    let why = format!(
        "{name} cannot be opened on {}, which is a witness: it votes and stores nothing; open it on \
         a node of the ring ({}), whose server --socket names",
        witness.name,
        if ring.is_empty() { "none is known yet".to_owned() } else { ring.join(", ") },
    );
    Failure::new(FailureKind::Invalid, why)
}

pub(super) fn permission(name: &Name) -> Failure {
    let why =
        format!("permission denied: {name} belongs to another user, and its mode forbids this");
    Failure::new(FailureKind::Permission, why)
}

pub(super) fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Invalid, error.to_string())
}

pub(super) fn internal(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Internal, error.to_string())
}

/// Why a region could not be made, opened or changed.
pub(super) fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Create(CreateError::NoSpace { .. }) => Failure::new(
            FailureKind::NoSpace,
            format!("{error}; free memory there or remove checkpoints (`ringkeep doctor`)"),
        ),
        StoreError::Damaged(damage) => Failure::new(FailureKind::Corrupt, damage.to_string()),
        _ => Failure::new(FailureKind::Internal, error.to_string()),
    }
}
