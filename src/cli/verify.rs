//! `ringkeep verify`.

use super::{
    args::{Global, VerifyArgs},
    exit::{Failure, Outcome},
};

/// Checks stored bytes against their checksums.
pub(super) fn run(_global: &Global, _args: &VerifyArgs) -> Outcome {
    Err(Failure::not_wired("verify"))
}
