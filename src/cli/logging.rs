//! Log lines on standard error.

use std::io;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    args::{Cli, Command},
    exit::{Exit, Failure},
    values::LogFormat,
};

/// The environment variable with a filter such as `ringkeep=debug`; it overrides `-v` and `-q`.
const FILTER_ENV: &str = "RINGKEEP_LOG";

/// Starts logging for the rest of the process.
///
/// # Errors
/// The filter in the environment cannot be understood.
pub fn init(cli: &Cli) -> Result<(), Failure> {
    let filter = match std::env::var(FILTER_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| {
            Failure::new(Exit::Usage, format_args!("{FILTER_ENV}={text:?}: {e}"))
                .hint("write a level (info) or targets (ringkeep=debug,info)")
        })?,
        _ => EnvFilter::default().add_directive(level(cli).into()),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    // A second initialization is left as it is: tests may call this more than once.
    let _ = match cli.global.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// A server tells what happens to the ring; a client command only what went wrong.
fn level(cli: &Cli) -> LevelFilter {
    let serving = matches!(cli.command, Command::Serve(_));
    match (cli.global.quiet, cli.global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) if serving => LevelFilter::INFO,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    }
}
