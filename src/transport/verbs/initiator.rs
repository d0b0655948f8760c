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
    completion_queue::BATCH,
    event_channel::{CmId, CmParameters},
    handshake::{Abilities, Token},
    ledger::{Ledger, Request},
    memories::{Local, Memories},
    queue_pair::{Chain, Direction, Piece, QueuePair, RETRIES, Side},
};
use crate::transport::{ConnId, Event, PostError, Segment, WORK_OUTSTANDING_MAX, Work};

/// How far the connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On the way to [`Stage::Ready`]; what is posted waits.
    Connecting,
    Ready,
}

pub(super) struct Initiator {
    stage: Stage,
    /// Goes before the identifier.
    pair: Option<QueuePair>,
    id: CmId,
    token: Token,
    common: Abilities,
    ledger: Ledger,
    pending: VecDeque<Piece>,
    /// The numbers after the last piece that was cut and posted.
    cut: u64,
    posted: u64,
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
            ledger: Ledger::default(),
            pending: VecDeque::new(),
            cut: 0,
            posted: 0,
            reads_end: 0,
        }
    }

    pub(super) fn id(&self) -> &CmId {
        &self.id
    }

    /// Anything that a completion may come for.
    pub(super) fn is_waiting(&self) -> bool {
        self.posted > self.ledger.done()
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
            responder_resources: 1, // nothing is read here, but none at all some devices refuse
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
        if self.ledger.len() == WORK_OUTSTANDING_MAX {
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
        self.ledger.push(Request {
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
                fenced: direction == Direction::Write && self.reads_end > self.ledger.done(),
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
            let room = u64::from(pieces_max) - (self.posted - self.ledger.done());
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

    /// Takes completions and tells the requests of which they decide.
    pub(super) fn complete(
        &mut self,
        conn: ConnId,
        memories: &mut Memories,
        events: &mut Vec<Event>,
        counts: &mut Counts,
    ) -> Result<bool, End> {
        let mut moved = false;
        if let Some(pair) = &self.pair {
            loop {
                let taken = pair.completions().poll(|it| self.ledger.completed(it));
                let taken = taken.map_err(End::System)?;
                counts.completions += taken as u64;
                moved |= taken > 0;
                if taken < BATCH {
                    break;
                }
            }
        }
        while let Some((request, result)) = self.ledger.next() {
            memories.done(request.memory);
            events.push(Event::Completed { conn, work: request.id, result });
        }
        match self.ledger.failed() {
            Some(outcome) => Err(End::Work(outcome)),
            None => Ok(moved),
        }
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
        self.ledger.end();
        while let Some((request, result)) = self.ledger.next() {
            memories.done(request.memory);
            events.push(Event::Completed { conn, work: request.id, result });
        }
    }
}
