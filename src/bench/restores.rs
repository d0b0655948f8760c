//! Services that get their state back.

use std::{
    hint::black_box,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use super::{BenchError, turns::Contender};
use crate::{
    client::{Client, Durability, Options},
    name::Name,
};

/// How the state comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The region is mapped as it lies there.
    Mapped,
    /// The same, and every checksum is looked at.
    Verified,
    /// A copy is asked for, which is verified where it is made.
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
