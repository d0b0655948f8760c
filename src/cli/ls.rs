//! `ringkeep ls`.

use super::{
    args::{Global, LsArgs},
    exit::{Failure, Outcome},
};

/// Lists the local server's checkpoints.
pub(super) fn run(_global: &Global, _args: &LsArgs) -> Outcome {
    Err(Failure::not_wired("ls"))
}
