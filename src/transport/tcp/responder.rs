//! The granting end of a connection: what a NIC does for one-sided verbs.
//!
//! ```text
//!            ┌──────── head complete, admitted ────────┐
//!            ▼                                         │
//!   Write (placing) ── all placed ──►  Head  ──► Read (streaming) ── all sent ──► Head
//!            │                          │              │
//!            └──── key revoked ────► Refused ◄─────────┘      drains until the sender hangs up
//! ```

use std::sync::Arc;

use super::{
    frame::{FrameKind, HEADER_LEN, Header, READ_CHUNK, WireSegment, decode_table},
    iov::Gather,
    stream::{End, POLL_BYTES_MAX, Stream, window},
};
use crate::{
    region::mapping::Mapping,
    transport::{
        Access, ConnId, SEGMENTS_MAX, WorkError,
        keys::{Asked, Keys},
    },
};

/// Stands in for memory that a read may not see any more, to the end of a chunk already announced.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

enum State {
    /// Waiting for a frame's head.
    Head,
    /// Placing a write's payload.
    Write { key: u64, mapping: Arc<Mapping>, length: u64, placed: u64 },
    /// Streaming a read's bytes. Without a mapping it was fenced half-way.
    Read { key: u64, mapping: Option<Arc<Mapping>>, length: u64, sent: u64, chunk_left: u64 },
    /// Over, but the refusal has to arrive: a close with unread input would reset the socket
    /// under it.
    Refused,
}

pub(super) struct Responder {
    pub(super) stream: Stream,
    generation: u64,
    state: State,
    /// The request at hand; its sequence is `begun`.
    segments: Vec<WireSegment>,
    /// Sequences of the last request that was begun, done, and acknowledged.
    begun: u64,
    done: u64,
    acknowledged: u64,
    refusal: Option<WorkError>,
    /// The one answer's head that is being sent.
    head: [u8; HEADER_LEN],
    head_sent: usize,
}

impl Responder {
    pub(super) fn new(stream: Stream, generation: u64) -> Self {
        Self {
            stream,
            generation,
            state: State::Head,
            segments: Vec::with_capacity(SEGMENTS_MAX),
            begun: 0,
            done: 0,
            acknowledged: 0,
            refusal: None,
            head: [0; HEADER_LEN],
            head_sent: HEADER_LEN,
        }
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused)
    }

    /// The key opens nothing any more. True when the request at hand has to be dealt with.
    pub(super) fn fence(&mut self, revoked: u64) -> bool {
        match &mut self.state {
            State::Write { key, .. } if *key == revoked => {
                self.refuse(WorkError::Fenced);
                true
            }
            State::Read { key, mapping, .. } if *key == revoked => {
                *mapping = None;
                true
            }
            _ => false,
        }
    }

    fn refuse(&mut self, why: WorkError) {
        self.refusal = Some(why);
        self.state = State::Refused;
    }

    /// Moves what can move. `Ok(true)` when more can be moved at once.
    pub(super) fn drive(&mut self, conn: ConnId, keys: &Keys) -> Result<bool, End> {
        let mut budget = POLL_BYTES_MAX;
        let again = loop {
            if budget == 0 {
                break true;
            }
            let moved = match self.state {
                State::Head => self.take_head(conn, keys, &mut budget)?,
                State::Write { .. } => self.place(&mut budget)?,
                State::Read { .. } => self.stream_out(&mut budget)?,
                State::Refused => self.drain(&mut budget)?,
            };
            if !moved {
                break false;
            }
        };
        self.acknowledge()?;
        Ok(again)
    }

    fn take_head(&mut self, conn: ConnId, keys: &Keys, budget: &mut u64) -> Result<bool, End> {
        let Some(head) = self.stream.inbox().first_chunk::<HEADER_LEN>() else {
            return self.fill(budget);
        };
        let header = Header::decode(head)?;
        if !matches!(header.kind, FrameKind::Write | FrameKind::Read) {
            return Err(End::Broken("an answer to nothing"));
        }
        if header.generation != self.generation {
            return Err(End::Broken("a frame of another connection"));
        }
        if header.sequence != self.begun + 1 {
            return Err(End::Broken("a request out of sequence"));
        }
        let head_len = HEADER_LEN + header.table_len();
        let Some(table) = self.stream.inbox().get(HEADER_LEN..head_len) else {
            return self.fill(budget);
        };
        decode_table(&header, table, &mut self.segments)?;
        self.stream.consume(head_len);
        // The heads count too, or many tiny requests in a full socket would be one endless turn.
        *budget = budget.saturating_sub(head_len as u64);
        self.begin(&header, conn, keys);
        Ok(true)
    }

    fn begin(&mut self, header: &Header, conn: ConnId, keys: &Keys) {
        self.begun += 1;
        let access = if header.kind == FrameKind::Write { Access::Write } else { Access::Read };
        let segments = self.segments.iter().map(|segment| (segment.offset, segment.len));
        let asked = Asked { conn, key: header.key, access, stamp: &header.stamp, segments };
        let (key, length) = (header.key, header.length);
        match keys.admit(asked) {
            Ok(mapping) if access == Access::Write => {
                self.state = State::Write { key, mapping: mapping.clone(), length, placed: 0 };
            }
            Ok(mapping) => {
                let mapping = Some(mapping.clone());
                self.state = State::Read { key, mapping, length, sent: 0, chunk_left: 0 };
            }
            Err(why) => self.refuse(why),
        }
    }

    fn fill(&mut self, budget: &mut u64) -> Result<bool, End> {
        if !self.stream.readable() {
            return Ok(false);
        }
        let held = self.stream.inbox().len();
        self.stream.fill()?;
        *budget = budget.saturating_sub((self.stream.inbox().len() - held) as u64);
        Ok(true)
    }

    fn place(&mut self, budget: &mut u64) -> Result<bool, End> {
        let State::Write { mapping, length, placed, .. } = &mut self.state else {
            return Ok(false);
        };
        let want = (*length - *placed).min(*budget);
        let last = want == *length - *placed;
        let extents = self.segments.iter().map(|segment| (segment.offset, segment.len));
        let got = self.stream.land(mapping, window(extents, *placed, want), last)?;
        *placed += got;
        *budget -= got;
        if *placed == *length {
            self.done = self.begun;
            self.state = State::Head;
        }
        Ok(got > 0 || self.stream.readable())
    }

    fn drain(&mut self, budget: &mut u64) -> Result<bool, End> {
        self.stream.consume(self.stream.inbox().len());
        let moved = self.fill(budget)?;
        Ok(moved)
    }

    /// Sends a part of the read at hand. Later requests wait until all of it is in the socket, so
    /// that none of them takes effect before this one.
    fn stream_out(&mut self, budget: &mut u64) -> Result<bool, End> {
        if self.head_sent == HEADER_LEN && !self.announce()? {
            return Ok(!matches!(self.state, State::Read { .. }));
        }
        let State::Read { mapping, sent, chunk_left, .. } = &mut self.state else {
            return Ok(true);
        };
        if !self.stream.writable() {
            return Ok(false);
        }
        let mut gather = Gather::new();
        let head = &self.head[self.head_sent..];
        if !head.is_empty() {
            gather.bytes(head);
        }
        let want = (*chunk_left).min(*budget);
        match mapping {
            Some(mapping) => {
                let extents = self.segments.iter().map(|segment| (segment.offset, segment.len));
                for (offset, len) in window(extents, *sent, want) {
                    if !gather.mapping(mapping, offset, len) {
                        break;
                    }
                }
            }
            None => {
                gather.bytes(&ZEROS[..ZEROS.len().min(want as usize)]);
            }
        }
        let moved = self.stream.send(&mut gather)?;
        let of_head = moved.min(HEADER_LEN - self.head_sent);
        let of_payload = (moved - of_head) as u64;
        self.head_sent += of_head;
        *sent += of_payload;
        *chunk_left -= of_payload;
        *budget = budget.saturating_sub(moved as u64);
        Ok(moved > 0 || self.stream.writable())
    }

    /// Prepares the next chunk's head when one is due. False when there is no chunk to send now.
    fn announce(&mut self) -> Result<bool, End> {
        // Whatever was done before is told first: the sender may be waiting for it.
        if matches!(self.state, State::Read { sent: 0, chunk_left: 0, .. }) {
            self.acknowledge()?;
            if self.head_sent < HEADER_LEN {
                return Ok(false);
            }
        }
        let State::Read { mapping, length, sent, chunk_left, .. } = &mut self.state else {
            return Ok(false);
        };
        if *chunk_left > 0 {
            return Ok(true);
        }
        if *sent == *length {
            self.done = self.begun;
            self.state = State::Head;
            return Ok(false);
        }
        if mapping.is_none() {
            self.refuse(WorkError::Fenced);
            return Ok(false);
        }
        *chunk_left = (*length - *sent).min(READ_CHUNK);
        let mut header = Header::answer(FrameKind::ReadData, self.generation, self.begun);
        header.length = *chunk_left;
        header.encode(&mut self.head);
        self.head_sent = 0;
        Ok(true)
    }

    /// Tells how far the requests are done: one frame for all that became so since the last one.
    fn acknowledge(&mut self) -> Result<(), End> {
        loop {
            let in_chunk = matches!(self.state, State::Read { chunk_left: 1.., .. });
            if self.head_sent == HEADER_LEN {
                if in_chunk || !self.next_answer() {
                    return Ok(());
                }
            } else if in_chunk {
                // That head is the chunk's.
                return Ok(());
            }
            if !self.stream.writable() {
                return Ok(());
            }
            self.head_sent += self.stream.send_bytes(&self.head[self.head_sent..])?;
        }
    }

    fn next_answer(&mut self) -> bool {
        let mut header = Header::answer(FrameKind::Ack, self.generation, self.done);
        if self.done > self.acknowledged {
            self.acknowledged = self.done;
        } else if let Some(why) = self.refusal.take() {
            header.sequence = self.begun;
            header.status = Err(why);
        } else {
            return false;
        }
        header.encode(&mut self.head);
        self.head_sent = 0;
        true
    }
}
