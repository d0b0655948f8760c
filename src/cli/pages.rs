//! `ringkeep completions` and `ringkeep man`: the front door for shells and manual readers.

use std::io::{self, Write};

use clap::CommandFactory;

use super::{
    args::{Cli, CompletionsArgs, ManArgs},
    exit::{Exit, Failure, Outcome, stdout_written},
};

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> Outcome {
    // Into memory first: the generator panics on a standard output that is gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringkeep", &mut script);
    let mut out = io::stdout().lock();
    stdout_written(out.write_all(&script).and_then(|()| out.flush()))
}

/// Prints a manual page.
pub(super) fn man(args: &ManArgs) -> Outcome {
    let mut top = Cli::command();
    top.build();
    let page = match &args.command {
        None => top,
        Some(wanted) => find(&top, wanted)?,
    };
    let mut out = io::stdout().lock();
    stdout_written(clap_mangen::Man::new(page).render(&mut out).and_then(|()| out.flush()))
}

/// The command called `wanted`. Its display name, `ringkeep-serve`, becomes the page's.
fn find(top: &clap::Command, wanted: &str) -> Result<clap::Command, Failure> {
    top.find_subcommand(wanted).cloned().ok_or_else(|| {
        Failure::new(Exit::Usage, format_args!("there is no command {wanted:?}"))
            .hint("`ringkeep --help` lists them")
    })
}
