//! The `ringkeep` binary: a thin shell over [`ringkeep::cli`].

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ringkeep::cli::run()
}
