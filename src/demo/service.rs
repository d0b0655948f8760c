//! The demo's service as a process: indexes a directory, commits `mirrored` after every batch and
//! says so on its standard output, one JSON object a line.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::index::{Indexer, Outcome, ResumeError, StartError};
use crate::{
    client::{
        Checkpoint, Client, CommitError, Durability, OpenError, Options, OwnershipError, ReadError,
    },
    commit::Version,
    name::Name,
    protocol::FailureKind,
};

/// How long it asks for a checkpoint whose nodes cannot be asked yet, and waits for a mirror.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY_EVERY: Duration = Duration::from_millis(5);
/// Slots of its checkpoint: it waits for every commit.
const SLOTS: u32 = 2;

/// What the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// It has its checkpoint and begins, or goes on.
    Opened {
        /// The version that it goes on from; 0: it begins.
        version: Version,
        /// Files done.
        done: usize,
        /// Files in all.
        total: usize,
        /// Time from the first request to the verified state, microseconds.
        took_us: u64,
    },
    /// A batch is acknowledged as mirrored.
    Committed {
        /// Its version.
        version: Version,
        /// Files done.
        done: usize,
        /// Time of the commit, nanoseconds.
        took_ns: u64,
    },
    /// All files are done.
    Finished {
        /// The last version.
        version: Version,
    },
}

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The checkpoint.
    pub name: &'a Name,
    /// The directory to index.
    pub dir: &'a Path,
    /// Most files.
    pub files_max: u32,
    /// Files between two commits.
    pub batch: u32,
}

/// Why the service ended before its work was done. What was acknowledged is kept.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The checkpoint could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its state could not be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A batch was not acknowledged.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// There is nothing to index.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The saved state is not one.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// Nobody hears it, or its state does not encode.
    #[error("telling what was done: {0}")]
    Output(#[from] io::Error),
}

impl From<OwnershipError> for ServiceError {
    fn from(error: OwnershipError) -> Self {
        Self::Commit(error.into())
    }
}

/// Indexes until all is done, from wherever the checkpoint stands.
pub fn run(client: &Client, task: Task<'_>, out: &mut impl Write) -> Result<(), ServiceError> {
    let started = Instant::now();
    let (mut checkpoint, mut indexer) = begin(client, task)?;
    let position = indexer.position();
    let mut version = checkpoint.version();
    let took_us = started.elapsed().as_micros() as u64;
    let (done, total) = (position.done, position.total);
    say(out, &Event::Opened { version, done, total, took_us })?;
    while !indexer.position().is_finished() {
        let position = indexer.step_batch(task.batch as usize);
        let state = indexer.encode()?;
        let started = Instant::now();
        version = checkpoint.save(&state, Durability::Mirrored)?;
        let took_ns = started.elapsed().as_nanos() as u64;
        say(out, &Event::Committed { version, done: position.done, took_ns })?;
    }
    Ok(say(out, &Event::Finished { version })?)
}

fn say(out: &mut impl Write, event: &Event) -> io::Result<()> {
    // One write a line: a reader never sees half of one from a process that is killed.
    let line = serde_json::to_string(event)? + "\n";
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// Takes over what is there, else makes it.
fn begin(client: &Client, task: Task<'_>) -> Result<(Checkpoint, Indexer), ServiceError> {
    match open(client, task.name, Options::capacity(1).existing()) {
        Ok(checkpoint) => {
            let indexer = match checkpoint.latest()? {
                Some(saved) => Indexer::resume(task.dir, saved.bytes())?,
                None => Indexer::new(task.dir, task.files_max)?,
            };
            Ok((checkpoint, indexer))
        }
        Err(error) if error.kind() == Some(FailureKind::NoSuchCheckpoint) => {
            let indexer = Indexer::new(task.dir, task.files_max)?;
            let capacity = capacity(&indexer)?;
            let checkpoint = open(client, task.name, Options::capacity(capacity).slots(SLOTS))?;
            Ok((checkpoint, indexer))
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens as soon as the nodes that have to be asked can be.
fn open(client: &Client, name: &Name, options: Options) -> Result<Checkpoint, OpenError> {
    let options = options.timeout(PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.open(name.as_str(), options.clone()) {
            Err(error)
                if error.kind() == Some(FailureKind::Unavailable) && Instant::now() < deadline =>
            {
                // Nothing tells when they can be asked: ask again.
                std::thread::sleep(RETRY_EVERY);
            }
            result => return result,
        }
    }
}

/// Room for the index when it is finished.
fn capacity(indexer: &Indexer) -> io::Result<u64> {
    let outcome_bytes = size_of::<Outcome>() as u64 + 1;
    let list_bytes = indexer.encode()?.len() as u64;
    Ok(list_bytes + 16 + indexer.position().total as u64 * outcome_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finished_index_fits_the_capacity_computed_before() {
        let tmp = tempfile::tempdir().unwrap();
        for number in 0..300 {
            std::fs::write(tmp.path().join(number.to_string()), "content").unwrap();
        }
        let mut indexer = Indexer::new(tmp.path(), 1000).unwrap();
        let capacity = capacity(&indexer).unwrap();
        assert!(indexer.step_batch(1000).is_finished());
        let len = indexer.encode().unwrap().len() as u64;
        assert!(len <= capacity && capacity < len + 1000, "{len} of {capacity}");
    }

    #[test]
    fn an_event_is_one_line_and_reads_back() {
        let event = Event::Committed { version: 3, done: 150, took_ns: 12_345 };
        let mut line = Vec::new();
        say(&mut line, &event).unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Event>(&line).unwrap(), event);
    }
}
