//! A service in a process of its own: commits `mirrored` without a pause and says each version
//! that was acknowledged on its standard output.
//!
//! The process is the test binary itself, started with a variable that says what to write. Each
//! test binary that uses it has a test named [`ENTRY`] that calls [`run_if_asked`].

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ringkeep::{
    Checkpoint, Client, Durability, Options, client::CommitError, protocol::FailureKind,
};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::{LIMIT, payload};

/// The test that becomes the writer.
pub const ENTRY: &str = "writer_process";
const VARIABLE: &str = "RINGKEEP_TEST_WRITER";

/// What a writer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It has the checkpoint, and this version in it has the right bytes.
    Opened(u64),
    /// This version is acknowledged.
    Acknowledged(u64),
    /// It may not write any more: fenced or removed.
    Lost,
    /// Something that must not happen.
    Wrong(String),
}

/// A writer's process. Dropping it kills it.
pub struct Writer {
    child: Child,
    said: mpsc::Receiver<Said>,
    /// The last version that was acknowledged, to this one or one before.
    pub acknowledged: u64,
    /// The version found at opening. It may be a later one, that nobody was told is mirrored: as
    /// long as it is not, it goes with its node.
    pub found: u64,
}

impl Writer {
    /// Starts one for the server at this socket.
    pub fn start(socket: &std::path::Path, checkpoint: &str, seed: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ENTRY, "--exact", "--nocapture", "--test-threads=1"]);
        let socket = socket.to_str().unwrap();
        command.env(VARIABLE, format!("{seed} {checkpoint} {socket}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(said) = parse(&line)
                    && sender.send(said).is_err()
                {
                    break;
                }
            }
        });
        Self { child, said, acknowledged: 0, found: 0 }
    }

    /// Starts one and waits until it has opened the checkpoint with at least this version.
    #[track_caller]
    pub fn open(socket: &std::path::Path, checkpoint: &str, seed: u64, at_least: u64) -> Self {
        let mut writer = Self::start(socket, checkpoint, seed);
        match writer.next() {
            Some(Said::Opened(version)) => {
                assert!(version >= at_least, "LOST: {at_least} acknowledged, {version} found");
                (writer.acknowledged, writer.found) = (at_least, version);
            }
            other => panic!("instead of opening: {other:?}"),
        }
        writer
    }

    /// The next thing said; `None` at its end.
    #[track_caller]
    pub fn next(&mut self) -> Option<Said> {
        let said = match self.said.recv_timeout(LIMIT) {
            Ok(said) => said,
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the writer said nothing: {LIMIT:?}"),
        };
        match &said {
            Said::Acknowledged(version) => {
                assert!(*version > self.acknowledged, "{version} after {}", self.acknowledged);
                self.acknowledged = *version;
            }
            Said::Wrong(what) => panic!("the writer: {what}"),
            Said::Opened(_) | Said::Lost => {}
        }
        Some(said)
    }

    /// Waits for so many more acknowledged versions; false when the writer lost its checkpoint.
    #[track_caller]
    pub fn acknowledges(&mut self, more: u64) -> bool {
        let wanted = self.acknowledged + more;
        while self.acknowledged < wanted {
            match self.next() {
                Some(Said::Lost) => return false,
                Some(_) => {}
                None => panic!("the writer ended after version {}", self.acknowledged),
            }
        }
        true
    }

    /// SIGKILL. Everything that it said before counts; the last acknowledged version.
    #[track_caller]
    pub fn kill_9(&mut self) -> u64 {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while self.next().is_some() {}
        self.acknowledged
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Said> {
    // The test harness writes lines of its own, and perhaps the begin of this one.
    let (_, said) = line.split_once("@@ ")?;
    let (kind, rest) = said.split_once(' ').unwrap_or((said, ""));
    Some(match (kind, rest.parse()) {
        ("opened", Ok(version)) => Said::Opened(version),
        ("acknowledged", Ok(version)) => Said::Acknowledged(version),
        ("lost", _) => Said::Lost,
        _ => Said::Wrong(said.to_owned()),
    })
}

fn say(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // One write, so that a kill never leaves half of it. A parent that is gone ends this process.
    if out.write_all(format!("@@ {text}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Is the writer, if this process was started as one; never returns then.
pub fn run_if_asked() {
    let Ok(asked) = std::env::var(VARIABLE) else { return };
    // One that is acknowledged nothing says nothing, and would never notice that nobody listens.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal when the test ends");
    let mut words = asked.splitn(3, ' ');
    let mut word = || words.next().expect("seed, checkpoint and socket");
    let seed = word().parse().expect("a seed");
    let (checkpoint, socket) = (word().to_owned(), word().to_owned());
    match write(seed, &checkpoint, &socket) {
        CommitError::Lost(_) => say(format_args!("lost")),
        error => say(format_args!("wrong {error}")),
    }
    std::process::exit(0);
}

fn write(seed: u64, checkpoint: &str, socket: &str) -> CommitError {
    let mut checkpoint = open(checkpoint, socket);
    let found = checkpoint.version();
    match checkpoint.latest() {
        Ok(Some(saved)) if saved.bytes() == payload::state(seed, found) => {}
        Ok(None) if found == 0 => {}
        Ok(_) => wrong(format_args!("version {found} has other bytes")),
        Err(error) => wrong(format_args!("version {found}: {error}")),
    }
    say(format_args!("opened {found}"));
    loop {
        let next = checkpoint.version() + 1;
        for block in payload::changed(seed, next) {
            let bytes = payload::block(seed, next, block);
            let written = checkpoint.write_at((block * payload::BLOCK_BYTES) as u64, &bytes);
            if let Err(error) = written {
                return error.into();
            }
        }
        match checkpoint.commit(Durability::Mirrored) {
            Ok(version) if version == next => say(format_args!("acknowledged {version}")),
            Ok(version) => wrong(format_args!("committed {version} instead of {next}")),
            // It stays local and is mirrored later: nothing was acknowledged, go on.
            Err(CommitError::DurabilityNotReached { .. }) => {}
            Err(error) => return error,
        }
    }
}

/// Opens as soon as the ring lets it: not before the last writer's end has been noticed, nor while
/// a node that has to be asked cannot be.
fn open(checkpoint: &str, socket: &str) -> Checkpoint {
    let deadline = Instant::now() + LIMIT;
    let options = Options::capacity(payload::STATE_BYTES).timeout(LIMIT / 2);
    loop {
        let opened = Client::connect_to(socket)
            .map_err(|error| (true, error.to_string()))
            .and_then(|client| {
                client.open(checkpoint, options.clone()).map_err(|error| {
                    let passing = matches!(
                        error.kind(),
                        None | Some(FailureKind::Unavailable | FailureKind::OwnedElsewhere)
                    );
                    (passing, error.to_string())
                })
            });
        match opened {
            Ok(checkpoint) => return checkpoint,
            Err((true, _)) if Instant::now() < deadline => {
                // Nothing tells when it will be possible: ask again.
                thread::sleep(Duration::from_millis(10));
            }
            Err((_, error)) => wrong(format_args!("opening: {error}")),
        }
    }
}

fn wrong(text: std::fmt::Arguments<'_>) -> ! {
    say(format_args!("wrong {text}"));
    std::process::exit(1);
}
