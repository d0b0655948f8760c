//! The posting end of a connection.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use super::{
    frame::{
        FrameKind, HEAD_LEN_MAX, HEADER_LEN, Header, SEGMENT_LEN, WireSegment, encode_request,
    },
    handshake::{Answer, PREAMBLE_LEN, encode_preamble},
    iov::Gather,
    stream::{End, POLL_BYTES_MAX, Stream, window},
};
use crate::{
    region::mapping::Mapping,
    transport::{
        ConnId, Event, MemoryId, PostError, Segment, Stamp, WORK_OUTSTANDING_MAX, Work, WorkError,
        WorkId, keys::Keys,
    },
};

/// Room for the heads of the frames of one system call.
const HEADS_LEN: usize = HEAD_LEN_MAX + (16 << 10);

struct Request {
    work: WorkId,
    memory: MemoryId,
    mapping: Arc<Mapping>,
    kind: FrameKind,
    key: u64,
    stamp: Stamp,
    /// How many of the connection's segments are this request's.
    segments: usize,
    /// Sum of their lengths.
    length: u64,
    /// Of a read: how much has arrived.
    arrived: u64,
}

impl Request {
    fn head_len(&self) -> usize {
        HEADER_LEN + self.segments * SEGMENT_LEN
    }

    fn frame_len(&self) -> u64 {
        self.head_len() as u64 + if self.kind == FrameKind::Write { self.length } else { 0 }
    }

    fn is_complete(&self) -> bool {
        self.kind == FrameKind::Write || self.arrived == self.length
    }
}

/// A read data frame that is being received.
struct Arriving {
    sequence: u64,
    left: u64,
}

pub(super) struct Initiator {
    pub(super) stream: Stream,
    generation: u64,
    connecting: bool,
    preamble: [u8; 4 + PREAMBLE_LEN],
    preamble_sent: usize,
    /// Outstanding requests in posting order, and their segments one behind the other.
    requests: VecDeque<Request>,
    segments: VecDeque<Segment>,
    /// The sequence of the first outstanding request.
    first: u64,
    /// Of the outstanding requests, how many were sent whole; and of the next one, how many bytes.
    sent: usize,
    sent_bytes: u64,
    sent_segments: usize,
    arriving: Option<Arriving>,
    heads: Box<[u8]>,
}

impl Initiator {
    pub(super) fn new(stream: Stream, answer: &Answer) -> Self {
        Self {
            stream,
            generation: answer.generation,
            connecting: true,
            preamble: encode_preamble(&answer.token),
            preamble_sent: 0,
            requests: VecDeque::with_capacity(WORK_OUTSTANDING_MAX),
            segments: VecDeque::with_capacity(WORK_OUTSTANDING_MAX),
            first: 1,
            sent: 0,
            sent_bytes: 0,
            sent_segments: 0,
            arriving: None,
            heads: vec![0; HEADS_LEN].into(),
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn post(
        &mut self,
        work: &Work<'_>,
        kind: FrameKind,
        keys: &mut Keys,
    ) -> Result<(), PostError> {
        if self.requests.len() == WORK_OUTSTANDING_MAX {
            return Err(PostError::QueueFull);
        }
        let mapping = keys.post(work.memory, work.segments)?;
        self.segments.extend(work.segments);
        self.requests.push_back(Request {
            work: work.id,
            memory: work.memory,
            mapping,
            kind,
            key: work.key.key,
            stamp: work.stamp,
            segments: work.segments.len(),
            length: work.segments.iter().map(|segment| segment.len).sum(),
            arrived: 0,
        });
        Ok(())
    }

    /// How much of an outstanding request's payload the socket took or gave.
    pub(super) fn taken(&self, work: WorkId) -> u64 {
        let Some(at) = self.requests.iter().position(|request| request.work == work) else {
            return 0;
        };
        let request = &self.requests[at];
        match (request.kind, at.cmp(&self.sent)) {
            (FrameKind::Read, _) => request.arrived,
            (_, Ordering::Less) => request.length,
            (_, Ordering::Equal) => self.sent_bytes.saturating_sub(request.head_len() as u64),
            (_, Ordering::Greater) => 0,
        }
    }

    /// Moves what can move. `Ok(true)` when more can be moved at once.
    pub(super) fn drive(
        &mut self,
        conn: ConnId,
        keys: &mut Keys,
        events: &mut Vec<Event>,
    ) -> Result<bool, End> {
        if self.connecting {
            if !self.stream.connected()? {
                return Ok(false);
            }
            self.connecting = false;
        }
        let sending = self.send()?;
        let receiving = self.receive(conn, keys, events)?;
        Ok(sending || receiving)
    }

    fn send(&mut self) -> Result<bool, End> {
        while self.preamble_sent < self.preamble.len() {
            if !self.stream.writable() {
                return Ok(false);
            }
            self.preamble_sent += self.stream.send_bytes(&self.preamble[self.preamble_sent..])?;
        }
        let mut budget = POLL_BYTES_MAX;
        while self.sent < self.requests.len() && self.stream.writable() {
            if budget == 0 {
                return Ok(true);
            }
            let sent = self.send_batch(budget)?;
            budget -= sent;
            self.count_sent(sent);
        }
        Ok(false)
    }

    /// One system call for as many frames as fit.
    fn send_batch(&mut self, budget: u64) -> Result<u64, End> {
        let mut gather = Gather::new();
        let mut spare = &mut self.heads[..];
        let mut skip = self.sent_bytes;
        let mut segments_at = self.sent_segments;
        let mut left = budget;
        'batch: for (at, request) in self.requests.iter().enumerate().skip(self.sent) {
            let segments = self.segments.range(segments_at..segments_at + request.segments);
            segments_at += request.segments;
            let head_len = request.head_len();
            if skip < head_len as u64 {
                if spare.len() < head_len {
                    break;
                }
                let (head, rest) = std::mem::take(&mut spare).split_at_mut(head_len);
                spare = rest;
                let mut header =
                    Header::answer(request.kind, self.generation, self.first + at as u64);
                header.key = request.key;
                header.stamp = request.stamp;
                let table = segments.clone().map(|s| WireSegment { offset: s.remote, len: s.len });
                encode_request(&header, table, head);
                if !gather.bytes(&head[skip as usize..]) {
                    break;
                }
                left = left.saturating_sub(head_len as u64 - skip);
            }
            if request.kind == FrameKind::Write {
                let payload = segments.map(|segment| (segment.local, segment.len));
                let skip = skip.saturating_sub(head_len as u64);
                for (offset, len) in window(payload, skip, left) {
                    if !gather.mapping(&request.mapping, offset, len) {
                        break 'batch;
                    }
                    left -= len;
                }
            }
            if left == 0 {
                break;
            }
            skip = 0;
        }
        Ok((self.stream.send(&mut gather)? as u64).min(budget))
    }

    fn count_sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
        while let Some(request) = self.requests.get(self.sent) {
            let frame_len = request.frame_len();
            if self.sent_bytes < frame_len {
                break;
            }
            self.sent_bytes -= frame_len;
            self.sent += 1;
            self.sent_segments += request.segments;
        }
    }

    fn receive(
        &mut self,
        conn: ConnId,
        keys: &mut Keys,
        events: &mut Vec<Event>,
    ) -> Result<bool, End> {
        let mut budget = POLL_BYTES_MAX;
        loop {
            if let Some(arriving) = &mut self.arriving {
                let at = (arriving.sequence - self.first) as usize;
                let before: usize = self.requests.range(..at).map(|r| r.segments).sum();
                let request = &mut self.requests[at];
                let want = arriving.left.min(budget);
                let extents = self.segments.range(before..before + request.segments);
                let pieces = window(extents.map(|s| (s.local, s.len)), request.arrived, want);
                let got = self.stream.land(&request.mapping, pieces, want == arriving.left)?;
                if got == 0 {
                    if self.stream.readable() {
                        continue;
                    }
                    return Ok(false);
                }
                request.arrived += got;
                arriving.left -= got;
                budget -= got;
                if arriving.left == 0 {
                    self.arriving = None;
                } else if budget == 0 {
                    return Ok(true);
                }
                continue;
            }
            if let Some(head) = self.stream.inbox().first_chunk::<HEADER_LEN>() {
                let header = Header::decode(head)?;
                self.stream.consume(HEADER_LEN);
                self.answered(&header, conn, keys, events)?;
                continue;
            }
            if budget == 0 {
                return Ok(true);
            }
            if !self.stream.readable() {
                return Ok(false);
            }
            let before = self.stream.inbox().len();
            self.stream.fill()?;
            budget = budget.saturating_sub((self.stream.inbox().len() - before) as u64);
        }
    }

    fn answered(
        &mut self,
        header: &Header,
        conn: ConnId,
        keys: &mut Keys,
        events: &mut Vec<Event>,
    ) -> Result<(), End> {
        if header.generation != self.generation {
            return Err(End::Broken("a frame of another connection"));
        }
        let at = header.sequence.wrapping_sub(self.first);
        if at >= self.requests.len() as u64 {
            return Err(End::Broken("an answer to no outstanding request"));
        }
        let at = at as usize;
        match header.kind {
            FrameKind::ReadData => {
                // Answers come in posting order, and only to what was asked.
                let request = &self.requests[at];
                let next = self.requests.iter().position(|request| !request.is_complete());
                if at >= self.sent || next != Some(at) {
                    return Err(End::Broken("read data that nobody asked for"));
                }
                if header.length > request.length - request.arrived {
                    return Err(End::Broken("more read data than was asked for"));
                }
                self.arriving = Some(Arriving { sequence: header.sequence, left: header.length });
                Ok(())
            }
            FrameKind::Ack => {
                let begun = at < self.sent || at == self.sent && self.sent_bytes > 0;
                if !begun || header.status.is_ok() && at == self.sent {
                    return Err(End::Broken("an acknowledgement of what was not sent"));
                }
                let done = at + usize::from(header.status.is_ok());
                if !self.requests.range(..done).all(Request::is_complete) {
                    return Err(End::Broken("a read acknowledged before its data"));
                }
                for _ in 0..done {
                    self.complete(Ok(()), conn, keys, events);
                }
                if header.status.is_err() {
                    self.complete(header.status, conn, keys, events);
                    return Err(End::Refused);
                }
                Ok(())
            }
            FrameKind::Write | FrameKind::Read => Err(End::Broken("a request from the responder")),
        }
    }

    /// The first outstanding request is done.
    fn complete(
        &mut self,
        result: Result<(), WorkError>,
        conn: ConnId,
        keys: &mut Keys,
        events: &mut impl Extend<Event>,
    ) {
        let Some(request) = self.requests.pop_front() else { return };
        self.segments.drain(..request.segments);
        self.first += 1;
        if self.sent > 0 {
            self.sent -= 1;
            self.sent_segments -= request.segments;
        }
        keys.done(request.memory);
        events.extend([Event::Completed { conn, work: request.work, result }]);
    }

    /// The connection is over: everything outstanding completes as flushed.
    pub(super) fn flush(mut self, conn: ConnId, keys: &mut Keys, events: &mut impl Extend<Event>) {
        while !self.requests.is_empty() {
            self.complete(Err(WorkError::Flushed), conn, keys, events);
        }
    }
}
