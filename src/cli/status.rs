//! `ringkeep status`.

use super::{
    args::{Global, StatusArgs},
    exit::{Failure, Outcome},
};

/// Shows the ring and its protection.
pub(super) fn run(_global: &Global, _args: &StatusArgs) -> Outcome {
    Err(Failure::not_wired("status"))
}
