//! The `ringkeep` command: parse, dispatch, report. One file per command.

pub mod args;
pub mod config;
pub mod exit;
pub mod logging;
pub mod progress;
pub mod usage;
pub mod values;

mod demo;
mod doctor;
mod get;
mod keygen;
mod ls;
mod pages;
mod put;
mod rm;
mod serve;
mod status;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use self::{
    args::{Cli, Command, Global},
    exit::{Exit, Outcome},
};
use crate::paths;

/// Runs the command that this process was started with.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return usage::report(&refused),
    };
    let outcome = logging::init(&cli).and_then(|()| dispatch(cli));
    exit::report(outcome)
}

fn dispatch(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Serve(args) => serve::run(&global, args),
        Command::Put(args) => put::run(&global, &args),
        Command::Get(args) => get::run(&global, &args),
        Command::Ls(args) => ls::run(&global, &args),
        Command::Status(args) => status::run(&global, &args),
        Command::Verify(args) => verify::run(&global, &args),
        Command::Rm(args) => rm::run(&global, &args),
        Command::Doctor(args) => doctor::run(&global, &args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Demo(args) => demo::run(&global, &args),
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
    }
}

/// The uid that this process acts as.
fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The local server's socket: as told, else the user's well-known one.
fn socket_path(global: &Global) -> PathBuf {
    let default = || paths::default_socket(uid(), paths::run_user_dir(uid()).as_deref());
    global.socket.clone().unwrap_or_else(default)
}

/// One line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Outcome {
    let json = serde_json::to_string(value)
        .map_err(|e| exit::Failure::new(Exit::Failed, format_args!("writing JSON: {e}")))?;
    exit::print(&(json + "\n"))
}
