//! Services that commit, as fast as they are acknowledged.

use std::{
    collections::VecDeque,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use super::{
    BenchError,
    turns::{Contender, go_on},
};
use crate::{
    client::{Checkpoint, Client, Durability, Options, Pending},
    region::layout::{SLOTS_MAX, SLOTS_MIN},
};

/// Partial updates change whole pieces of this size.
const PIECE: u64 = 4096;
/// Large states take their time on a busy machine.
const COMMIT_LIMIT: Duration = Duration::from_secs(60);

/// What the services do.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Bytes of state of each.
    pub len: u64,
    /// How many services; they take turns.
    pub checkpoints: usize,
    /// What is waited for.
    pub durability: Durability,
    /// Commits of one service that may be on their way; more than one with mirrored commits only.
    pub inflight: usize,
    /// How much of the state changes between two commits, in percent; 100 replaces it.
    pub dirty_percent: f64,
    /// How long a service looks for its acknowledgement before it sleeps.
    pub spin: Duration,
}

impl Work {
    /// Bytes that change between two commits.
    pub fn changed_bytes(&self) -> u64 {
        match self.dirty_percent < 100.0 {
            true => (self.pieces() * PIECE).min(self.len),
            false => self.len,
        }
    }

    fn pieces(&self) -> u64 {
        let all = self.len.div_ceil(PIECE);
        ((all as f64 * self.dirty_percent / 100.0).round() as u64).clamp(1, all)
    }
}

struct Service {
    checkpoint: Checkpoint,
    on_their_way: VecDeque<(Pending, Instant)>,
}

/// The services. Their checkpoints are removed when this is dropped.
pub struct Commits<'a> {
    client: &'a Client,
    work: Work,
    services: Vec<Service>,
    turn: usize,
    count: u64,
    state: Vec<u8>,
}

impl<'a> Commits<'a> {
    /// Opens the checkpoints and commits a whole state to each, which is not timed. `stop` ends it
    /// between two of them.
    ///
    /// # Errors
    /// The server refused one, or it could not be committed, or somebody asked to stop. None is left
    /// behind.
    pub fn start(
        client: &'a Client,
        name: &str,
        work: Work,
        stop: &AtomicBool,
    ) -> Result<Self, BenchError> {
        // One more than can be on their way.
        let slots = u32::try_from(work.inflight + 1).unwrap_or(SLOTS_MAX);
        let options = Options::capacity(work.len).slots(slots.clamp(SLOTS_MIN, SLOTS_MAX));
        let options = options.timeout(COMMIT_LIMIT).spin(work.spin);
        let (services, state) = (Vec::new(), vec![7; work.len as usize]);
        let mut all = Self { client, work, services, turn: 0, count: 0, state };
        for number in 0..work.checkpoints {
            go_on(stop)?;
            let mut checkpoint = client.open(&format!("{name}.{number}"), options.clone())?;
            let saved = checkpoint.save(&all.state, work.durability);
            all.services.push(Service { checkpoint, on_their_way: VecDeque::new() });
            saved?;
        }
        Ok(all)
    }

    fn is_on_its_way(&self) -> bool {
        self.work.inflight > 1 && self.work.durability == Durability::Mirrored
    }

    /// Changes the state of the service whose turn it is, and commits it.
    fn commit(&mut self) -> Result<(), BenchError> {
        let (work, pending) = (self.work, self.is_on_its_way());
        let service = &mut self.services[self.turn];
        let began = Instant::now();
        if work.dirty_percent >= 100.0 && !pending {
            service.checkpoint.save(&self.state, work.durability)?;
            return Ok(());
        }
        if work.dirty_percent >= 100.0 {
            service.checkpoint.whole_mut(work.len)?.copy_from_slice(&self.state);
        } else {
            let (pieces, all) = (work.pieces(), work.len.div_ceil(PIECE));
            for piece in 0..pieces {
                let at = (self.count + piece * all / pieces) % all * PIECE;
                let len = PIECE.min(work.len - at) as usize;
                service.checkpoint.write_at(at, &self.state[..len])?;
            }
        }
        if pending {
            let commit = service.checkpoint.commit_async()?;
            service.on_their_way.push_back((commit, began));
        } else {
            service.checkpoint.commit(work.durability)?;
        }
        Ok(())
    }
}

impl Contender for Commits<'_> {
    fn step(&mut self) -> Result<Duration, BenchError> {
        self.turn = (self.turn + 1) % self.services.len();
        self.count += 1;
        let at = self.count as usize % self.state.len();
        self.state[at] = self.state[at].wrapping_add(1);
        if !self.is_on_its_way() {
            let began = Instant::now();
            self.commit()?;
            return Ok(began.elapsed());
        }
        while self.services[self.turn].on_their_way.len() < self.work.inflight {
            self.commit()?;
        }
        let service = &mut self.services[self.turn];
        match service.on_their_way.pop_front() {
            Some((commit, began)) => {
                service.checkpoint.wait(commit)?;
                Ok(began.elapsed())
            }
            None => Ok(Duration::ZERO), // none may be on its way
        }
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        for service in &mut self.services {
            for (commit, _) in service.on_their_way.drain(..) {
                service.checkpoint.wait(commit)?;
            }
        }
        Ok(())
    }
}

impl Drop for Commits<'_> {
    fn drop(&mut self) {
        for service in self.services.drain(..) {
            let name = service.checkpoint.name().clone();
            drop(service);
            // A server that is gone has nothing that could be removed.
            let _ = self.client.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_update_changes_what_it_says_and_at_least_one_piece() {
        let work = |len, dirty_percent| Work {
            len,
            checkpoints: 1,
            durability: Durability::Mirrored,
            inflight: 1,
            dirty_percent,
            spin: Duration::ZERO,
        };
        assert_eq!(work(100 * PIECE, 1.0).changed_bytes(), PIECE);
        assert_eq!(work(100 * PIECE, 0.001).changed_bytes(), PIECE);
        assert_eq!(work(100 * PIECE, 50.0).changed_bytes(), 50 * PIECE);
        assert_eq!(work(10, 1.0).changed_bytes(), 10);
        assert_eq!(work(100 * PIECE + 1, 100.0).changed_bytes(), 100 * PIECE + 1);
    }
}
