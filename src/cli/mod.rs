//! The `ringkeep` command: parse, dispatch, report. One file per command.

pub mod args;
pub mod config;
pub mod exit;
pub mod logging;
pub mod progress;
pub mod usage;
pub mod values;

mod bench;
mod demo;
mod doctor;
mod errors;
mod get;
mod keygen;
mod ls;
mod pages;
mod put;
mod rm;
mod serve;
mod signals;
mod status;
mod table;
mod verify;

use std::{fmt, io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;

use self::{
    args::{Cli, Command, Global},
    exit::{Exit, Failure, Outcome},
};
use crate::{client::Client, paths};

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
        Command::Bench(args) => bench::run(&global, &args),
        Command::BenchService(args) => bench::service(&global, &args),
        Command::DemoService(args) => demo::service(&global, &args),
        Command::Completions(args) => pages::completions(&args),
        Command::Man(args) => pages::man(&args),
    }
}

/// The uid that this process acts as.
fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The program that this process runs: what starts servers of its own starts this.
fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::new(Exit::Failed, format_args!("finding this program: {e}")))
}

/// The local server's socket: as told, else the user's well-known one.
fn socket_path(global: &Global) -> PathBuf {
    let default = || paths::default_socket(uid(), paths::run_user_dir(uid()).as_deref());
    global.socket.clone().unwrap_or_else(default)
}

/// The local server.
fn connect(global: &Global) -> Result<Client, Failure> {
    Ok(Client::connect_to(socket_path(global))?)
}

/// Tells the person something that is no failure, unless they want to hear failures only.
fn warn(global: &Global, text: impl fmt::Display) {
    if !global.quiet {
        // The same escapes as a failure's; and nobody may be listening.
        let line = Failure::new(Exit::Done, text);
        let _ = writeln!(std::io::stderr(), "ringkeep: warning: {line}");
    }
}

/// One line of JSON.
fn json_line(value: &impl serde::Serialize) -> Result<String, Failure> {
    let json = serde_json::to_string(value)
        .map_err(|e| Failure::new(Exit::Failed, format_args!("writing JSON: {e}")))?;
    Ok(json + "\n")
}

/// One line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Outcome {
    exit::print(&json_line(value)?)
}
