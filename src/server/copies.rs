//! Copies of a version, for readers: each piece is verified in a small buffer on its way.
//!
//! ```text
//!   a region here ────────────────▶ ┌────────┐  checked, then written
//!   a peer's, pieces under way  ──▶ │ buffer │ ───────────────────────▶ file in memory ──▶ reader
//!                                   └────────┘
//! ```
//!
//! So nothing that was not verified is ever in the file, a transport registers nothing but the buffer,
//! and memory that is short is an error rather than a signal ([`Filling`]).

use std::{
    cell::Cell,
    fs::File,
    future::ready,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, stream};
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    failures::{internal, no_such},
    node::{Node, blocking},
    rpc::Grant,
};
use crate::{
    commit::{Record, Version},
    membership::Member,
    name::Name,
    protocol::{Failure, FailureKind},
    region::{
        ChunkTable, Region, SlotError,
        layout::Layout,
        mapping::Mapping,
        room::Promise,
        transparent::{Filling, HUGE_PAGE_BYTES, join_all, memory_file},
    },
    transport::{MemoryId, Segment},
};

/// Bytes that are read from a peer at a time.
const PIECE_BYTES: u64 = 2 << 20;
/// Pieces between the peer and the file: one arrives, one is asked for, one is checked.
const PIECES: usize = 3;
/// A copy of so many bytes takes less time than handing it to another thread.
const AT_ONCE_BYTES: u64 = 64 << 10;
/// A larger buffer is made of huge pages, also where it fills none.
const ORDINARY_BUFFER_BYTES: u64 = 256 << 10;
/// Bytes that are checked and then written: less than a core's own cache.
const WRITTEN_AT_ONCE: u64 = 64 << 10;

/// A copy of a version.
pub(super) struct Copied {
    pub(super) version: Version,
    pub(super) len: u64,
    /// A newer one may have been acknowledged.
    pub(super) maybe_stale: bool,
    /// The payload from its begin to its end.
    pub(super) file: OwnedFd,
}

impl Copied {
    fn new(record: &Record, file: File) -> Self {
        Self { version: record.sequence, len: record.len, maybe_stale: false, file: file.into() }
    }
}

/// Why a version was not copied.
#[derive(Debug)]
pub(super) enum CopyError {
    NoVersion,
    Damaged(SlotError),
    /// There is no room for it.
    System(io::Error),
}

impl From<SlotError> for CopyError {
    fn from(damage: SlotError) -> Self {
        Self::Damaged(damage)
    }
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// The newest version by its record, or the one asked for. A newer one that turns out to be damaged
/// is not passed over.
pub(super) fn find_version(
    region: &Region,
    version: Option<Version>,
) -> Result<(usize, Record), CopyError> {
    let slots = 0..region.layout().slots();
    let mut claims = slots.filter_map(|slot| Some((slot, region.record(slot).ok()?)));
    match version {
        None => claims.max_by_key(|(_, record)| record.sequence),
        Some(version) => claims.find(|(_, record)| record.sequence == version),
    }
    .ok_or(CopyError::NoVersion)
}

/// A copy of a version in this node's memory, which may be overwritten meanwhile.
pub(super) fn copy_version(region: &Region, version: Option<Version>) -> Result<Copied, CopyError> {
    let (slot, claimed) = find_version(region, version)?;
    let mut file = new_file(claimed.len)?;
    let record =
        region.read_verified(slot, |at, piece| file.write(at, piece).map_err(CopyError::System))?;
    if record != claimed {
        return Err(SlotError::Unfinished.into());
    }
    Ok(Copied::new(&record, file.into_file()))
}

fn new_file(len: u64) -> io::Result<Filling> {
    Filling::new("ringkeep-copy", len)
}

/// A piece of the payload, and where in the buffer it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    at: u64,
    len: u64,
    buffered_at: u64,
}

/// How a version comes here: its chunk table into the begin of the buffer, its pieces in turns into
/// the places behind it.
#[derive(Debug, Clone, Copy)]
struct Way {
    layout: Layout,
    slot: usize,
    record: Record,
}

impl Way {
    fn table_bytes(&self) -> u64 {
        ChunkTable::bytes(&self.layout, &self.record)
    }

    fn piece_bytes(&self) -> u64 {
        PIECE_BYTES.next_multiple_of(self.layout.chunk_bytes())
    }

    fn first_piece_at(&self) -> u64 {
        self.table_bytes().next_multiple_of(64)
    }

    fn buffer_bytes(&self) -> u64 {
        self.first_piece_at() + self.record.len.min(PIECES as u64 * self.piece_bytes())
    }

    fn pieces(self) -> impl ExactSizeIterator<Item = Piece> {
        let (bytes, len) = (self.piece_bytes(), self.record.len);
        (0..len.div_ceil(bytes) as usize).map(move |n| Piece {
            at: n as u64 * bytes,
            len: bytes.min(len - n as u64 * bytes),
            buffered_at: self.first_piece_at() + (n % PIECES) as u64 * bytes,
        })
    }

    fn table_segment(&self) -> Segment {
        Segment { local: 0, remote: self.layout.table(self.slot), len: self.table_bytes() }
    }

    fn segment(&self, piece: Piece) -> Segment {
        let remote = self.layout.payload(self.slot) + piece.at;
        Segment { local: piece.buffered_at, remote, len: piece.len }
    }
}

/// What has arrived is checked and written.
struct Arrivals {
    buffer: Arc<Mapping>,
    way: Way,
    file: Mutex<Filling>,
}

impl Arrivals {
    fn new(way: Way) -> io::Result<Self> {
        let page = match way.buffer_bytes() {
            ..=ORDINARY_BUFFER_BYTES => rustix::param::page_size() as u64,
            _ => HUGE_PAGE_BYTES,
        };
        let bytes = way.buffer_bytes().next_multiple_of(page);
        let file = Mutex::new(new_file(way.record.len)?);
        let _promise = Promise::new(bytes)?;
        let memory = memory_file("ringkeep-buffer", bytes)?;
        // As far as it can.
        let _ = join_all(&memory, bytes);
        fallocate(&memory, FallocateFlags::empty(), 0, bytes)?;
        let buffer = Arc::new(Mapping::new(&memory, bytes as usize)?);
        Ok(Self { buffer, way, file })
    }

    fn file(&self) -> io::Result<File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).file().try_clone()
    }

    fn table(&self) -> Result<ChunkTable, SlotError> {
        let mut entries = vec![0; self.way.table_bytes() as usize];
        self.buffer.read_at(0, &mut entries).expect("inside: the buffer was made for it");
        ChunkTable::new(entries, &self.way.layout, &self.way.record)
    }

    /// Checks a piece and writes it to the file. One after the other.
    ///
    /// # Safety
    /// It has arrived, and nothing else arrives at its place in the buffer meanwhile.
    unsafe fn take(&self, piece: Piece, table: &ChunkTable) -> Result<(), CopyError> {
        // SAFETY: the caller's promise; nobody but this server and its transport knows the buffer.
        let bytes = unsafe { self.buffer.quiet_slice(piece.buffered_at, piece.len) };
        let bytes = bytes.expect("inside: the buffer was made for it");
        let step = WRITTEN_AT_ONCE.max(self.way.layout.chunk_bytes());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for (bytes, at) in bytes.chunks(step as usize).zip((piece.at..).step_by(step as usize)) {
            table.check(at, bytes)?;
            file.write(at, bytes)?;
        }
        Ok(())
    }
}

/// Does what takes long on another thread.
async fn apart<T: Send + 'static>(way: Way, work: impl FnOnce() -> T + Send + 'static) -> T {
    if way.record.len <= AT_ONCE_BYTES { work() } else { blocking(work).await }
}

impl Node {
    /// Reads a granted version from a peer.
    pub(super) async fn read_copy(
        &self,
        from: &Member,
        name: &Name,
        grant: &Grant,
    ) -> Result<Copied, Failure> {
        let (slot, record) = grant.version.ok_or_else(|| no_such(name))?;
        let way = Way { layout: grant.layout, slot: slot as usize, record };
        if way.slot >= way.layout.slots() || record.len > way.layout.capacity() {
            return Err(internal(&"the peer's answer does not fit"));
        }
        let failed = |error| match error {
            CopyError::System(error) => {
                let why = format!("no space for a copy of {name}: {error}");
                Failure::new(FailureKind::NoSpace, why)
            }
            CopyError::Damaged(damage) => {
                let why = format!("{name} arrived damaged from node {}: {damage}", from.id.name);
                Failure::new(FailureKind::Corrupt, why)
            }
            CopyError::NoVersion => no_such(name),
        };
        let arrivals = apart(way, move || Arrivals::new(way)).await;
        let arrivals = Arc::new(arrivals.map_err(|e| failed(e.into()))?);
        let memory = self.register_for_reading(arrivals.buffer.clone()).await?;
        let read = self.read_pieces(from, grant, memory, &arrivals, &failed).await;
        self.deregister(memory).await?;
        let file = arrivals.file().map_err(|e| internal(&e));
        // Freeing much memory takes long.
        apart(way, move || drop(arrivals)).await;
        read?;
        Ok(Copied::new(&record, file?))
    }

    /// Returns when nothing is under way any more.
    async fn read_pieces(
        &self,
        from: &Member,
        grant: &Grant,
        memory: MemoryId,
        arrivals: &Arc<Arrivals>,
        failed: &impl Fn(CopyError) -> Failure,
    ) -> Result<(), Failure> {
        let way = arrivals.way;
        let pieces = way.pieces();
        // A small one comes with its table, in one round trip.
        let at_once = pieces.len() == 1;
        let first = pieces.take(usize::from(at_once)).map(|piece| way.segment(piece));
        let first = std::iter::once(way.table_segment()).chain(first).collect();
        self.post_read(from, grant, memory, first).await?;
        let table = Arc::new(arrivals.table().map_err(|damage| failed(damage.into()))?);

        let stopped = Cell::new(false);
        let read = async |piece| {
            if !at_once {
                self.post_read(from, grant, memory, vec![way.segment(piece)]).await?;
            }
            Ok(piece)
        };
        // One piece is checked while those behind it arrive; two writers would only wait for each
        // other's file.
        stream::iter(way.pieces())
            .take_while(|_| ready(!stopped.get()))
            .map(read)
            .buffered(PIECES)
            .fold(Ok(()), async |all: Result<(), Failure>, read: Result<Piece, Failure>| {
                let taken = match (&all, read) {
                    (Ok(()), Ok(piece)) => {
                        let (arrivals, table) = (arrivals.clone(), table.clone());
                        // SAFETY: it was read, and no more than `PIECES` are under way from the
                        // oldest that this did not return for: none is asked for at its place.
                        let take = move || unsafe { arrivals.take(piece, &table) };
                        apart(way, take).await.map_err(failed)
                    }
                    (_, read) => read.map(drop),
                };
                stopped.set(stopped.get() || taken.is_err());
                all.and(taken)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use twox_hash::XxHash3_64;

    use super::*;
    use crate::commit::Root;

    fn way(capacity: u64, payload: &[u8]) -> (Way, Vec<u8>) {
        let layout = Layout::new(capacity, 2).unwrap();
        let chunks = payload.chunks(layout.chunk_bytes() as usize);
        let table: Vec<u8> = chunks.flat_map(|c| XxHash3_64::oneshot(c).to_le_bytes()).collect();
        let (len, root) = (payload.len() as u64, Root::of(&table).word());
        let record = Record { checkpoint: 1, epoch: 1, generation: 1, sequence: 1, len, root };
        (Way { layout, slot: 1, record }, table)
    }

    proptest! {
        #[test]
        fn pieces_are_the_payload_and_those_under_way_do_not_touch(len in 0..20 * PIECE_BYTES) {
            let layout = Layout::new(20 * PIECE_BYTES, 2).unwrap();
            let record =
                Record { checkpoint: 1, epoch: 1, generation: 1, sequence: 1, len, root: 0 };
            let way = Way { layout, slot: 1, record };
            let pieces: Vec<Piece> = way.pieces().collect();
            let mut at = 0;
            for piece in &pieces {
                prop_assert_eq!((piece.at, piece.at % layout.chunk_bytes()), (at, 0));
                prop_assert!(piece.len > 0 && piece.buffered_at >= way.table_bytes());
                prop_assert!(piece.buffered_at + piece.len <= way.buffer_bytes());
                at += piece.len;
            }
            prop_assert_eq!(at, len);
            for under_way in pieces.windows(PIECES.min(pieces.len().max(1))) {
                let mut places: Vec<_> =
                    under_way.iter().map(|p| (p.buffered_at, p.buffered_at + p.len)).collect();
                places.sort_unstable();
                prop_assert!(places.is_sorted_by(|a, b| a.1 <= b.0), "{places:?}");
            }
        }
    }

    #[test]
    fn what_arrives_is_written_where_it_belongs_unless_it_is_damaged() {
        let payload: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (way, table) = way(6_000_000, &payload);
        let arrivals = Arrivals::new(way).unwrap();
        arrivals.buffer.write_at(0, &table).unwrap();
        let table = arrivals.table().unwrap();
        let take = |piece: Piece, bytes: &[u8]| {
            arrivals.buffer.write_at(piece.buffered_at, bytes).unwrap();
            // SAFETY: the test is the buffer's only user.
            unsafe { arrivals.take(piece, &table) }
        };
        let pieces: Vec<Piece> = way.pieces().collect();
        assert_eq!(pieces.len(), PIECES);
        for piece in &pieces {
            let bytes = &payload[piece.at as usize..][..piece.len as usize];
            let mut damaged = bytes.to_vec();
            *damaged.last_mut().unwrap() ^= 1;
            let refused = matches!(take(*piece, &damaged), Err(CopyError::Damaged(_)));
            assert!(refused, "I2 no torn read: {piece:?} is damaged, and it is written");
            take(*piece, bytes).unwrap();
        }
        let mut there = vec![0; payload.len()];
        let file = arrivals.file().unwrap();
        file.read_exact_at(&mut there, 0).unwrap();
        assert!(there == payload);
        assert_eq!(file.metadata().unwrap().len(), payload.len() as u64);
    }

    #[test]
    fn a_table_that_the_record_does_not_speak_of_is_refused() {
        let (way, mut table) = way(10_000, &[7; 10_000]);
        let arrivals = Arrivals::new(way).unwrap();
        table[9] ^= 1;
        arrivals.buffer.write_at(0, &table).unwrap();
        assert!(matches!(arrivals.table(), Err(SlotError::Table { version: 1 })));
    }
}
