//! How a command ends: an exit status that scripts can rely on and one line that says what to do.

use std::{fmt, io, process::ExitCode};

/// The exit statuses of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for a reason that has no status of its own.
    Failed = 1,
    /// Wrong usage: a flag, a name, a configuration file.
    Usage = 2,
    /// No such checkpoint, or no such version of it.
    NotFound = 3,
    /// Another writer took the checkpoint over, or its owner lives on another node.
    Fenced = 4,
    /// The commit is not as durable as asked: the ring is degraded, or it took too long.
    NotDurable = 5,
    /// No space for the checkpoint here or on its mirror.
    NoSpace = 6,
    /// A checkpoint's bytes do not match their checksum.
    Corrupt = 7,
    /// No server answers on the local socket.
    NoServer = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What scripts see.
    pub status: Exit,
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What every command's function returns.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    /// A failure without a hint.
    pub fn new(status: Exit, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string(), hint: None }
    }

    /// The same with a hint: what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the parts hold: control characters are shown escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, &self.message)?;
        match &self.hint {
            Some(hint) => {
                f.write_str("; ")?;
                write_line(f, hint)
            }
            None => Ok(()),
        }
    }
}

fn write_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.trim_end().chars() {
        match c {
            c if c.is_control() => write!(f, "{}", c.escape_default())?,
            c => write!(f, "{c}")?,
        }
    }
    Ok(())
}

/// Says how `outcome` ended and turns it into the process's exit status.
pub fn report(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Not `eprintln!`, which panics when standard error is gone.
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("ringkeep: {failure}\n"));
            failure.status.into()
        }
    }
}

/// What became of writing to standard output: a reader that went away (`ringkeep ls | head -1`) is
/// the end of the work and no failure.
pub fn stdout_written(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Ok(Exit::Done),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(e) => Err(Failure::new(Exit::Failed, format_args!("writing to standard output: {e}"))),
    }
}

/// Writes `text` to standard output.
pub fn print(text: &str) -> Outcome {
    stdout_written(write_out(text))
}

/// The same for a text that more may follow. False when nobody reads it.
pub fn print_on(text: &str) -> Result<bool, Failure> {
    match write_out(text) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => stdout_written(written).map(|_| true),
    }
}

fn write_out(text: &str) -> io::Result<()> {
    use io::Write;
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new(Exit::NotFound, "no \"a\nb\u{1b}[31m\"\n").hint("try `ls`");
        assert_eq!(failure.to_string(), "no \"a\\nb\\u{1b}[31m\"; try `ls`");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        assert_eq!(stdout_written(Err(io::ErrorKind::BrokenPipe.into())), Ok(Exit::Done));
        let full = stdout_written(Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(full.unwrap_err().status, Exit::Failed);
    }
}
