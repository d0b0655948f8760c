//! A job queue that survives being killed: each change is checkpointed before it is answered.
//!
//! ```sh
//! ringkeep serve &                     # or any server of a ring; RINGKEEP_SOCKET names its socket
//! cargo run --example service          # commands on standard input: add TEXT, take, list
//! ```
//!
//! Add jobs, kill it with `kill -9`, start it again: what it answered for is there. On a ring of
//! several nodes it may be started on any other node when its own is gone.

use std::{
    collections::VecDeque,
    error::Error,
    io::{BufRead, Write},
};

use ringkeep::{Checkpoint, Client, Durability, Options};
use serde::{Deserialize, Serialize};

const CAPACITY_BYTES: u64 = 1 << 20;

/// All that the service must not lose.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Queue {
    next_number: u64,
    jobs: VecDeque<(u64, String)>,
}

impl Queue {
    /// What to answer, and whether something changed.
    fn handle(&mut self, line: &str) -> (String, bool) {
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("add", text) if !text.is_empty() => {
                self.next_number += 1;
                self.jobs.push_back((self.next_number, text.to_owned()));
                (format!("added job {}", self.next_number), true)
            }
            ("take", _) => match self.jobs.pop_front() {
                Some((number, text)) => (format!("job {number}: {text}"), true),
                None => ("nothing to do".to_owned(), false),
            },
            ("list", _) => (format!("{:?}", self.jobs), false),
            _ => ("add TEXT, take or list".to_owned(), false),
        }
    }
}

fn restore(checkpoint: &Checkpoint) -> Result<Queue, Box<dyn Error>> {
    match checkpoint.latest()? {
        Some(saved) => {
            let queue: Queue = serde_json::from_slice(saved.bytes())?;
            let jobs = queue.jobs.len();
            eprintln!("going on from version {} with {jobs} jobs", saved.version());
            Ok(queue)
        }
        None => Ok(Queue::default()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::connect()?;
    let mut checkpoint = client.open("job-queue", Options::capacity(CAPACITY_BYTES))?;
    let durability = match checkpoint.ring_mirrors() {
        true => Durability::Mirrored,
        false => {
            eprintln!("a ring of one: the queue survives this process, not this node");
            Durability::Local
        }
    };
    let mut queue = restore(&checkpoint)?;
    for line in std::io::stdin().lock().lines() {
        let (answer, changed) = queue.handle(&line?);
        if changed {
            // First kept, then answered. An error ends the service: an answer that was not given
            // promised nothing.
            checkpoint.save(&serde_json::to_vec(&queue)?, durability)?;
        }
        writeln!(std::io::stdout(), "{answer}")?;
    }
    Ok(())
}
