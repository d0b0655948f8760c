//! `ringkeep rm`.

use super::{
    args::{Global, RmArgs},
    exit::{Failure, Outcome},
};

/// Removes a checkpoint and its mirror.
pub(super) fn run(_global: &Global, _args: &RmArgs) -> Outcome {
    Err(Failure::not_wired("rm"))
}
