//! `ringkeep get`.

use super::{
    args::{GetArgs, Global},
    exit::{Failure, Outcome},
};

/// Reads a checkpoint back.
pub(super) fn run(_global: &Global, _args: &GetArgs) -> Outcome {
    Err(Failure::not_wired("get"))
}
