//! `ringkeep put`.

use super::{
    args::{Global, PutArgs},
    exit::{Failure, Outcome},
};

/// Keeps a file's content as a new version.
pub(super) fn run(_global: &Global, _args: &PutArgs) -> Outcome {
    Err(Failure::not_wired("put"))
}
