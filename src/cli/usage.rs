//! Refused command lines, told in one line; help and version as clap prints them.

use std::process::ExitCode;

use clap::{CommandFactory, error::ErrorKind};

use super::{
    args::Cli,
    exit::{self, Exit, Failure},
};

/// Longest message before its middle is left out: a refused value is quoted in it.
const MESSAGE_CHARS_MAX: usize = 300;

/// Prints what clap has to say and gives the exit status.
pub fn report(refused: &clap::Error) -> ExitCode {
    match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away is no failure.
            let _ = refused.print();
            Exit::Done.into()
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = refused.print();
            Exit::Usage.into()
        }
        _ => {
            let words = std::env::args_os().filter_map(|word| word.into_string().ok());
            exit::report(Err(failure(&refused.render().to_string(), words)))
        }
    }
}

/// Clap's several paragraphs about `words` as a message and a hint.
fn failure(rendered: &str, mut words: impl Iterator<Item = String>) -> Failure {
    let is_end = |line: &&str| line.starts_with("Usage:") || line.starts_with("For more");
    let told: Vec<String> = rendered
        .lines()
        .take_while(|line| !is_end(line))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| if line.starts_with("tip: ") { format!("({line})") } else { line.to_owned() })
        .collect();
    let message = told.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let commands = Cli::command();
    let command = words.find(|word| commands.get_subcommands().any(|c| c.get_name() == word));
    let failure = Failure::new(Exit::Usage, shorten(message));
    match command {
        Some(command) => failure.hint(format_args!("see `ringkeep {command} --help`")),
        None => failure.hint("see `ringkeep --help`"),
    }
}

fn shorten(text: &str) -> String {
    let len = text.chars().count();
    if len <= MESSAGE_CHARS_MAX {
        return text.to_owned();
    }
    let head = text.chars().take(MESSAGE_CHARS_MAX / 4);
    let tail = text.chars().skip(len - MESSAGE_CHARS_MAX / 2);
    head.chain("…".chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn refused(args: &[&str]) -> String {
        let error = Cli::try_parse_from([&["ringkeep"], args].concat()).unwrap_err();
        let words = args.iter().map(|&word| word.to_owned());
        failure(&error.render().to_string(), words).to_string()
    }

    #[test]
    fn a_refused_command_line_is_one_line_that_names_the_help() {
        let line = refused(&["put", "../etc"]);
        assert!(line.contains("must not start with a dot"), "{line}");
        assert!(line.ends_with("see `ringkeep put --help`"), "{line}");
        let line = refused(&["put"]);
        assert!(line.contains("<NAME>") && line.ends_with("see `ringkeep put --help`"), "{line}");
        let line = refused(&["serve", "--jion", "127.0.0.1:1"]);
        assert!(line.contains("--join"), "the tip is kept: {line}");
    }

    #[test]
    fn a_long_value_does_not_flood_the_terminal() {
        let line = refused(&["put", &"x".repeat(10_000)]);
        assert!(line.chars().count() < 400, "{line}");
        assert!(line.contains("a name has at most 128 bytes, this one has 10000"), "{line}");
    }
}
