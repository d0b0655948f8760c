//! The posting end of a connection.
//!
//! ```text
//!   post_write ── cut into pieces ──► pending ──── one chain, one doorbell ───► queue pair
//!                                        ▲ waits when the queue pair is full         │
//!   Completed ◄── all pieces of a request done ◄── the last one's completion ◄───────┘
//! ```
//!
//! **Strategy.** A reliable queue pair completes in order, so the last piece of a request stands for
//! all of it: pieces are numbered, only the last of each request (and of each chain) is signalled,
//! and a completion means that everything up to its number is done.

use std::{collections::VecDeque, io};

use super::{
    Counts, End,
    completion_queue::{BATCH, Outcome},
    event_channel::{CmId, CmParameters},
    handshake::{Abilities, Token},
    memories::{Local, Memories},
    queue_pair::{Chain, Direction, Piece, QueuePair, RETRIES, Side},
};
use crate::transport::{
    ConnId, Event, MemoryId, PostError, Segment, WORK_OUTSTANDING_MAX, Work, WorkError, WorkId,
};

/// How far the connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On the way to [`Stage::Ready`]; what is posted waits.
    Connecting,
    Ready,
}

struct Request {
    id: WorkId,
    memory: MemoryId,
    /// The number after its last piece's.
    end: u64,
    /// It names bytes outside of the remote memory: what is posted of it is meant to be refused.
    outside: bool,
}

pub(super) struct Initiator {
    stage: Stage,
    /// Goes before the identifier.
    pair: Option<QueuePair>,
    id: CmId,
    token: Token,
    common: Abilities,
    requests: VecDeque<Request>,
    pending: VecDeque<Piece>,
    /// The numbers after the last piece that was cut, posted and completed.
    cut: u64,
    posted: u64,
    done: u64,
    /// The number after the last piece that reads.
    reads_end: u64,
}

impl Initiator {
    pub(super) fn new(id: CmId, token: Token, common: Abilities) -> Self {
        Self {
            stage: Stage::Connecting,
            pair: None,
            id,
            token,
            common,
            requests: VecDeque::new(),
            pending: VecDeque::new(),
            cut: 0,
            posted: 0,
            done: 0,
            reads_end: 0,
        }
    }

    pub(super) fn id(&self) -> &CmId {
        &self.id
    }

    /// Anything that a completion may come for.
    pub(super) fn is_waiting(&self) -> bool {
        self.posted > self.done
    }

    /// The next completion wakes the sleeper.
    pub(super) fn arm(&self) -> io::Result<()> {
        match &self.pair {
            Some(pair) if self.is_waiting() => pair.completions().arm(),
            _ => Ok(()),
        }
    }

    /// The way to the peer is known: asks it for the connection.
    pub(super) fn connect(&mut self, pair: QueuePair) -> io::Result<()> {
        self.id.connect(&CmParameters {
            qp_num: pair.number(),
            token: self.token,
            initiator_depth: self.common.reads,
            responder_resources: self.common.reads,
            retries: RETRIES,
        })?;
        self.pair = Some(pair);
        Ok(())
    }

    /// The peer accepted.
    pub(super) fn answered(&mut self) -> io::Result<()> {
        let pair = self.pair.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        pair.connect(&self.id, Side::Initiator, self.common)?;
        self.id.establish()?;
        self.stage = Stage::Ready;
        Ok(())
    }

    /// Takes a request over; it is on the wire when this returns, unless the queue pair is full or
    /// not connected yet.
    pub(super) fn post(
        &mut self,
        work: &Work<'_>,
        direction: Direction,
        local: Local,
        piece_bytes: u32,
    ) -> Result<(), PostError> {
        if self.requests.len() == WORK_OUTSTANDING_MAX {
            return Err(PostError::QueueFull);
        }
        // Should a segment lie outside, the peer's device is to refuse it, in its turn and before
        // any other piece of the same request had an effect: its last byte is posted, which is
        // outside for certain.
        let outside = work.segments.iter().find(|s| s.remote + s.len > work.key.len).map(|s| {
            let last = s.len - 1;
            Segment { local: s.local + last, remote: s.remote + last, len: 1 }
        });
        for segment in outside.as_ref().map_or(work.segments, std::slice::from_ref) {
            self.cut(segment, work, direction, local, piece_bytes);
        }
        if let Some(last) = self.pending.back_mut() {
            last.signalled = true;
        }
        self.requests.push_back(Request {
            id: work.id,
            memory: work.memory,
            end: self.cut,
            outside: outside.is_some(),
        });
        Ok(())
    }

    fn cut(
        &mut self,
        segment: &Segment,
        work: &Work<'_>,
        direction: Direction,
        local: Local,
        piece_bytes: u32,
    ) {
        let mut at = 0;
        while at < segment.len {
            let len = (segment.len - at).min(piece_bytes.into()) as u32;
            self.pending.push_back(Piece {
                direction,
                local: local.base + segment.local + at,
                lkey: local.lkey,
                len,
                // An address that wraps around lies outside, as it should.
                remote: work.key.base.wrapping_add(segment.remote + at),
                rkey: work.key.key as u32,
                signalled: false,
                // A read that is sent again would bring what a later write has placed.
                fenced: direction == Direction::Write && self.reads_end > self.done,
            });
            self.cut += 1;
            if direction == Direction::Read {
                self.reads_end = self.cut;
            }
            at += u64::from(len);
        }
    }

    /// Posts what waits, as far as the queue pair has room.
    pub(super) fn pump(
        &mut self,
        chain: &mut Chain,
        pieces_max: u32,
        counts: &mut Counts,
    ) -> Result<bool, End> {
        let Some(pair) = self.pair.as_ref().filter(|_| self.stage == Stage::Ready) else {
            return Ok(false);
        };
        let mut moved = false;
        loop {
            let room = u64::from(pieces_max) - (self.posted - self.done);
            let count = self.pending.len().min(Chain::MAX).min(room as usize);
            let Some(last) = count.checked_sub(1).and_then(|at| self.pending.get_mut(at)) else {
                return Ok(moved);
            };
            last.signalled = true; // or nothing would tell that there is room again
            let pieces = self.pending.range(..count).copied();
            let (taken, posted) = match chain.post(pair, self.posted, pieces) {
                Ok(()) => (count, Ok(())),
                Err((taken, error)) => (taken, Err(End::System(error))),
            };
            counts.doorbells += 1;
            counts.pieces += taken as u64;
            counts.bytes += self.pending.drain(..taken).map(|p| u64::from(p.len)).sum::<u64>();
            self.posted += taken as u64;
            posted?;
            moved = true;
        }
    }

    /// Takes completions. Requests that are done, or the one that failed, are told.
    pub(super) fn complete(
        &mut self,
        conn: ConnId,
        memories: &mut Memories,
        events: &mut Vec<Event>,
        counts: &mut Counts,
    ) -> Result<bool, End> {
        let mut moved = false;
        let mut failed = None;
        if let Some(pair) = &self.pair {
            loop {
                let taken = pair.completions().poll(|completion| match completion.outcome {
                    Outcome::Done => self.done = completion.piece + 1,
                    outcome => {
                        // What was posted before a piece that failed was done.
                        failed.get_or_insert((completion.piece, outcome));
                    }
                });
                let taken = taken.map_err(End::System)?;
                counts.completions += taken as u64;
                moved |= taken > 0;
                if taken < BATCH {
                    break;
                }
            }
        }
        if let Some((piece, _)) = failed {
            self.done = self.done.max(piece);
        }
        while self.requests.front().is_some_and(|request| request.end <= self.done)
            && let Some(request) = self.requests.pop_front()
        {
            memories.done(request.memory);
            events.push(Event::Completed { conn, work: request.id, result: Ok(()) });
        }
        let Some((_, outcome)) = failed else { return Ok(moved) };
        if let Some(request) = self.requests.pop_front() {
            memories.done(request.memory);
            let result = Err(match outcome {
                Outcome::Refused if request.outside => WorkError::RemoteBounds,
                Outcome::Refused => WorkError::Fenced,
                Outcome::Unanswered => WorkError::Unreachable,
                Outcome::Done | Outcome::Flushed => WorkError::Flushed,
                Outcome::Broken(_) => WorkError::Device,
            });
            events.push(Event::Completed { conn, work: request.id, result });
        }
        Err(End::Work(outcome))
    }

    /// The end: what was completed is told as it was, all else as flushed. The device has let go of
    /// the memory when this returns.
    pub(super) fn end(
        mut self,
        conn: ConnId,
        memories: &mut Memories,
        events: &mut Vec<Event>,
        counts: &mut Counts,
    ) {
        // A failure that is found now is the end that this is about.
        let _ = self.complete(conn, memories, events, counts);
        self.id.disconnect();
        drop(self.pair);
        for request in self.requests {
            memories.done(request.memory);
            let result = Err(WorkError::Flushed);
            events.push(Event::Completed { conn, work: request.id, result });
        }
    }
}
