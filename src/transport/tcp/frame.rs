//! The bytes of a frame. Pure: no socket, no memory but what is handed in.
//!
//! ```text
//!  offset  0        4 5 6    8 9        16        24          32     40      48     56      64         72      80
//!          │ magic  │v│k│segs│s│ zero   │ sequence│ generation│ key  │ epoch │ view │ length│ table sum│head sum│
//!          └────────┴─┴─┴────┴─┴────────┴─────────┴───────────┴──────┴───────┴──────┴───────┴──────────┴────────┘
//!          v version   k kind   s status            all little endian
//!          then `segs` × { offset u64, len u64 }, then `length` bytes of payload (write, read data)
//! ```
//!
//! The sequence counts a connection's requests from one. An acknowledgement of success covers all
//! requests up to its sequence; one of failure says that exactly this request was refused and all
//! before it were done.

use twox_hash::XxHash3_64;

use crate::transport::{SEGMENTS_MAX, Stamp, WorkError};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"rkf\x01";
/// Layout version; another one is refused.
pub const VERSION: u8 = 1;
/// Length of a header.
pub const HEADER_LEN: usize = 80;
/// Length of one entry of the segment table.
pub const SEGMENT_LEN: usize = 16;
/// Longest header and table.
pub const HEAD_LEN_MAX: usize = HEADER_LEN + SEGMENTS_MAX * SEGMENT_LEN;
/// Most payload in one frame of read data. Between two such frames a read can be refused.
pub const READ_CHUNK: u64 = 1 << 20;

const AT_VERSION: usize = 4;
const AT_KIND: usize = 5;
const AT_SEGMENTS: usize = 6;
const AT_STATUS: usize = 8;
const AT_ZERO: usize = 9;
const AT_SEQUENCE: usize = 16;
const AT_GENERATION: usize = 24;
const AT_KEY: usize = 32;
const AT_EPOCH: usize = 40;
const AT_VIEW: usize = 48;
const AT_LENGTH: usize = 56;
const AT_TABLE_SUM: usize = 64;
const AT_HEADER_SUM: usize = 72;

const _: () = assert!(AT_ZERO + 7 == AT_SEQUENCE);
const _: () = assert!(AT_HEADER_SUM + 8 == HEADER_LEN);
const _: () = assert!(SEGMENTS_MAX <= u16::MAX as usize);

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Request: place the payload.
    Write = 1,
    /// Request: send these bytes.
    Read = 2,
    /// Answer: done or refused.
    Ack = 3,
    /// Answer: a part of what a read asked for.
    ReadData = 4,
}

/// A header that was found right in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: FrameKind,
    /// Entries in the segment table.
    pub segments: u16,
    /// Of an acknowledgement: what became of the request.
    pub status: Result<(), WorkError>,
    /// The request that this is or answers.
    pub sequence: u64,
    /// The connection's, so that a frame can never count on another one.
    pub generation: u64,
    /// The key, of a request.
    pub key: u64,
    /// Who asks, of a request.
    pub stamp: Stamp,
    /// Sum of the segments' lengths (a request), length of the payload (read data).
    pub length: u64,
    /// Checksum of the segment table.
    pub table_sum: u64,
}

/// A piece of remote memory, as a frame names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireSegment {
    /// Offset in the remote memory.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Other magic bytes, or another version.
    #[error("not a frame of this version")]
    Foreign,
    /// A checksum is wrong.
    #[error("a frame's checksum is wrong")]
    Checksum,
    /// A field has a value that its kind of frame cannot have.
    #[error("a frame's field {0} cannot have this value")]
    Field(&'static str),
}

impl Header {
    /// Writes the header. `self.table_sum` must be that of the table that follows.
    pub fn encode(&self, into: &mut [u8; HEADER_LEN]) {
        into.fill(0);
        into[..4].copy_from_slice(&MAGIC);
        into[AT_VERSION] = VERSION;
        into[AT_KIND] = self.kind as u8;
        into[AT_SEGMENTS..AT_STATUS].copy_from_slice(&self.segments.to_le_bytes());
        into[AT_STATUS] = status_code(self.status);
        for (at, word) in [
            (AT_SEQUENCE, self.sequence),
            (AT_GENERATION, self.generation),
            (AT_KEY, self.key),
            (AT_EPOCH, self.stamp.epoch),
            (AT_VIEW, self.stamp.view),
            (AT_LENGTH, self.length),
            (AT_TABLE_SUM, self.table_sum),
        ] {
            into[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let sum = XxHash3_64::oneshot(&into[..AT_HEADER_SUM]);
        into[AT_HEADER_SUM..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads a header and checks all that can be checked without knowing the connection.
    ///
    /// # Errors
    /// The bytes are no header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, BadFrame> {
        if bytes[..4] != MAGIC || bytes[AT_VERSION] != VERSION {
            return Err(BadFrame::Foreign);
        }
        if word(bytes, AT_HEADER_SUM) != XxHash3_64::oneshot(&bytes[..AT_HEADER_SUM]) {
            return Err(BadFrame::Checksum);
        }
        let header = Self {
            kind: match bytes[AT_KIND] {
                1 => FrameKind::Write,
                2 => FrameKind::Read,
                3 => FrameKind::Ack,
                4 => FrameKind::ReadData,
                _ => return Err(BadFrame::Field("kind")),
            },
            segments: u16::from_le_bytes([bytes[AT_SEGMENTS], bytes[AT_SEGMENTS + 1]]),
            status: status_of(bytes[AT_STATUS])?,
            sequence: word(bytes, AT_SEQUENCE),
            generation: word(bytes, AT_GENERATION),
            key: word(bytes, AT_KEY),
            stamp: Stamp { epoch: word(bytes, AT_EPOCH), view: word(bytes, AT_VIEW) },
            length: word(bytes, AT_LENGTH),
            table_sum: word(bytes, AT_TABLE_SUM),
        };
        if bytes[AT_ZERO..AT_SEQUENCE] != [0; AT_SEQUENCE - AT_ZERO] {
            return Err(BadFrame::Field("reserved"));
        }
        if header.kind != FrameKind::Ack && header.status.is_err() {
            return Err(BadFrame::Field("status"));
        }
        let segments_right = match header.kind {
            FrameKind::Write | FrameKind::Read => {
                (1..=SEGMENTS_MAX).contains(&usize::from(header.segments))
            }
            FrameKind::Ack | FrameKind::ReadData => header.segments == 0,
        };
        if !segments_right {
            return Err(BadFrame::Field("segments"));
        }
        let length_right = match header.kind {
            FrameKind::Write | FrameKind::Read => header.length > 0,
            FrameKind::Ack => header.length == 0,
            FrameKind::ReadData => (1..=READ_CHUNK).contains(&header.length),
        };
        if !length_right {
            return Err(BadFrame::Field("length"));
        }
        Ok(header)
    }

    /// Length of the segment table behind this header.
    pub fn table_len(&self) -> usize {
        usize::from(self.segments) * SEGMENT_LEN
    }

    /// An answer's header; the fields of requests are zero.
    pub fn answer(kind: FrameKind, generation: u64, sequence: u64) -> Self {
        Self {
            kind,
            segments: 0,
            status: Ok(()),
            sequence,
            generation,
            key: 0,
            stamp: Stamp { epoch: 0, view: 0 },
            length: 0,
            table_sum: 0,
        }
    }
}

/// Writes a request's header and table to the front of `into`, filling in the header's count,
/// length and checksums. Answers the length.
///
/// # Panics
/// When `into` is too short or the lengths overflow: the poster has checked both.
pub fn encode_request(
    header: &Header,
    segments: impl Iterator<Item = WireSegment>,
    into: &mut [u8],
) -> usize {
    let mut header = *header;
    header.segments = 0;
    header.length = 0;
    let mut end = HEADER_LEN;
    for segment in segments {
        into[end..end + 8].copy_from_slice(&segment.offset.to_le_bytes());
        into[end + 8..end + SEGMENT_LEN].copy_from_slice(&segment.len.to_le_bytes());
        end += SEGMENT_LEN;
        header.segments += 1;
        header.length = header.length.checked_add(segment.len).expect("lengths were summed");
    }
    header.table_sum = XxHash3_64::oneshot(&into[HEADER_LEN..end]);
    header.encode(into.first_chunk_mut().expect("room for a header"));
    end
}

/// Reads the segment table of a request into `segments`, which is emptied first.
///
/// # Errors
/// The table is not the one that the header speaks of.
pub fn decode_table(
    header: &Header,
    bytes: &[u8],
    segments: &mut Vec<WireSegment>,
) -> Result<(), BadFrame> {
    segments.clear();
    if bytes.len() != header.table_len() || XxHash3_64::oneshot(bytes) != header.table_sum {
        return Err(BadFrame::Checksum);
    }
    let mut total = 0u64;
    for entry in bytes.chunks_exact(SEGMENT_LEN) {
        let segment = WireSegment { offset: word(entry, 0), len: word(entry, 8) };
        if segment.len == 0 || segment.offset.checked_add(segment.len).is_none() {
            return Err(BadFrame::Field("segment"));
        }
        total = total.checked_add(segment.len).ok_or(BadFrame::Field("segment"))?;
        segments.push(segment);
    }
    if total != header.length {
        return Err(BadFrame::Field("length"));
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn status_code(status: Result<(), WorkError>) -> u8 {
    match status {
        Ok(()) => 0,
        Err(WorkError::Fenced) => 1,
        Err(WorkError::BadKey) => 2,
        Err(WorkError::RemoteBounds) => 3,
        // Never sent: what a sender concludes by itself.
        Err(WorkError::Unreachable | WorkError::Device | WorkError::Flushed) => u8::MAX,
    }
}

fn status_of(code: u8) -> Result<Result<(), WorkError>, BadFrame> {
    match code {
        0 => Ok(Ok(())),
        1 => Ok(Err(WorkError::Fenced)),
        2 => Ok(Err(WorkError::BadKey)),
        3 => Ok(Err(WorkError::RemoteBounds)),
        _ => Err(BadFrame::Field("status")),
    }
}
