//! `ringkeep demo`.

use super::{
    args::{DemoArgs, Global},
    exit::{Failure, Outcome},
};

/// Tells the story of a service that loses its node.
pub(super) fn run(_global: &Global, _args: &DemoArgs) -> Outcome {
    Err(Failure::not_wired("demo"))
}
