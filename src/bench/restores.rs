//! Services that get their state back.

use std::{
    hint::black_box,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use super::{BenchError, turns::Contender};
use crate::{
    client::{Client, Durability, Options},
    demo::ring::{LIMIT, RingError},
    name::Name,
    protocol::CopyState,
};

/// Between two looks whether a mirror has everything.
const LOOK_AFTER: Duration = Duration::from_millis(1);

/// How the state comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The region is mapped as it lies there.
    Mapped,
    /// The same, and every checksum is looked at.
    Verified,
    /// A copy is asked for, which is verified where it is made. Where the owner lives, it is read from
    /// there.
    Fetched,
}

/// A state that was committed by somebody who is gone. Its checkpoint is removed when this is
/// dropped.
pub struct Left<'a> {
    client: &'a Client,
    name: Name,
    len: u64,
}

impl<'a> Left<'a> {
    /// Commits a state of `len` bytes and lets it go.
    ///
    /// # Errors
    /// The server refused, or it could not be committed. Nothing is left behind.
    pub fn behind(
        client: &'a Client,
        name: Name,
        len: u64,
        durability: Durability,
    ) -> Result<Self, BenchError> {
        let left = Self { client, name, len };
        let mut checkpoint = client.open(left.name.as_str(), Options::capacity(len))?;
        checkpoint.save(&vec![7; len as usize], durability)?;
        Ok(left)
    }

    /// Whoever gets it back, at the server of `client`.
    pub fn restored<'b>(&'b self, client: &'b Client, way: Way) -> Restores<'b> {
        Restores { client, left: self, way }
    }

    /// Services on these nodes that take it over from each other, each time the next one.
    pub fn taken_over<'b>(&'b self, clients: &'b [Client]) -> TakesOver<'b> {
        TakesOver { left: self, clients, turn: 0 }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        // A server that is gone has nothing that could be removed.
        let _ = self.client.remove(&self.name);
    }
}

/// Somebody who gets the state back again and again.
pub struct Restores<'a> {
    client: &'a Client,
    left: &'a Left<'a>,
    way: Way,
}

impl Contender for Restores<'_> {
    fn step(&mut self) -> Result<Duration, BenchError> {
        let (name, len) = (&self.left.name, self.left.len);
        let began = Instant::now();
        if self.way == Way::Fetched {
            let fetched = self.client.get(name, None)?;
            fetched.file.read_exact_at(&mut [0], len - 1)?;
            return Ok(began.elapsed());
        }
        let checkpoint = self.client.open(name.as_str(), Options::capacity(len).existing())?;
        let saved = match self.way {
            Way::Verified => checkpoint.latest()?,
            _ => checkpoint.latest_unverified(),
        };
        black_box(saved.map(|saved| saved.bytes()[len as usize - 1]));
        // Letting go is not part of it.
        Ok(began.elapsed())
    }
}

/// Whoever needs the state on another node for good: it becomes the owner there, with a verified copy
/// in a region of its own.
pub struct TakesOver<'a> {
    left: &'a Left<'a>,
    clients: &'a [Client],
    turn: usize,
}

impl TakesOver<'_> {
    /// The one whose turn it is to take it.
    fn client(&self) -> &Client {
        &self.clients[self.turn % self.clients.len()]
    }
}

impl Contender for TakesOver<'_> {
    /// The last one that took it is still sending it to its mirror.
    fn prepare(&mut self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        let owner = &self.clients[(self.turn + self.clients.len() - 1) % self.clients.len()];
        while self.turn > 0 && !is_mirrored(owner, &self.left.name)? {
            if began.elapsed() > LIMIT {
                let (what, last) = ("the mirror of what was taken over", "it is not in sync");
                let (what, last) = (what.to_owned(), last.to_owned());
                return Err(RingError::TimedOut { what, limit: LIMIT, last }.into());
            }
            thread::sleep(LOOK_AFTER);
        }
        Ok(began.elapsed())
    }

    fn step(&mut self) -> Result<Duration, BenchError> {
        let (name, len) = (&self.left.name, self.left.len);
        let options = Options::capacity(len).existing().take_over();
        let began = Instant::now();
        let checkpoint = self.client().open(name.as_str(), options)?;
        let saved = checkpoint.latest_unverified().ok_or(BenchError::NotRecovered)?;
        black_box(saved.bytes()[len as usize - 1]);
        self.turn += 1;
        // Letting go is not part of it.
        Ok(began.elapsed())
    }
}

/// Whether this node owns it, and its mirror has all of it.
fn is_mirrored(client: &Client, name: &Name) -> Result<bool, BenchError> {
    let status = client.status()?;
    let owned = status.checkpoints.iter().find(|owned| owned.name == *name);
    let mirror = owned.and_then(|owned| owned.mirror.as_ref());
    Ok(mirror.is_some_and(|mirror| mirror.state == CopyState::InSync))
}
