//! The shared memory that holds one checkpoint on one node.
//!
//! [`layout`] says where every byte lies, [`mapping`] reaches bytes by offset, [`files`] makes the
//! files (huge pages when there is room, reserved to the last byte), and [`Region`] reads, checks
//! and writes versions in them. Local region and mirror have the same layout.

pub mod files;
pub mod layout;
pub mod mapping;
mod mark;
pub mod room;
pub mod sigbus;
mod streaming;
mod table;
pub mod transparent;

use std::sync::{Arc, atomic::Ordering};

use twox_hash::XxHash3_64;

pub use mark::{Mark, MarkError};
pub use table::ChunkTable;

use self::{
    layout::{COMMIT_WORD_IN_SLOT, Layout, MARK_AT, MARK_BYTES},
    mapping::{Mapping, OutOfBounds},
};
use crate::commit::{Extent, RECORD_BYTES, RangeSet, Record, RecordError, Root, Version};

/// Whose region it is: a slot's record must name both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The checkpoint's id: 64 random bits, drawn when it was created.
    pub checkpoint: u64,
    /// Which region of this checkpoint: a larger capacity or a take-over makes a new one.
    pub generation: u64,
}

/// A mapped region.
#[derive(Debug, Clone)]
pub struct Region {
    mapping: Arc<Mapping>,
    layout: Layout,
    identity: Identity,
}

/// Why a slot does not hold a valid version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The commit word says that the slot is empty or was being written.
    #[error("an update of this slot was not finished")]
    Unfinished,
    /// The record is not right.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The chunk table does not match the record.
    #[error("the chunk table does not match the record of version {version}")]
    Table {
        /// The version that the record claims.
        version: Version,
    },
    /// A chunk does not match the table.
    #[error("chunk {chunk} of version {version} is torn or damaged")]
    Chunk {
        /// The version that the record claims.
        version: Version,
        /// The first chunk that is wrong.
        chunk: u64,
    },
}

/// A valid version found in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The slot that holds it.
    pub slot: usize,
    /// Its record.
    pub record: Record,
}

/// Bytes looked at once when the source may change meanwhile and must be copied out first, if a chunk
/// is not larger.
const BOUNCE_BYTES: u64 = 64 << 10;
/// Bytes of [`Region::write_whole`] that are checksummed and then copied: less than a core's own cache.
const WRITTEN_AT_ONCE: u64 = 64 << 10;
/// A payload of so many bytes does not stay in the cache until somebody reads it.
const AROUND_CACHE_FROM: u64 = 32 << 20;

impl Region {
    /// A region over a mapping.
    ///
    /// # Errors
    /// When the mapping is shorter than the layout needs.
    pub fn new(
        mapping: Arc<Mapping>,
        layout: Layout,
        identity: Identity,
    ) -> Result<Self, OutOfBounds> {
        mapping.check(0, layout.region_bytes())?;
        Ok(Self { mapping, layout, identity })
    }

    /// Its measures.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The mapped memory.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The record of a slot, if the slot claims to hold a version. The payload is not looked at.
    pub fn record(&self, slot: usize) -> Result<Record, SlotError> {
        let at = self.layout.slot(slot);
        // SYNC POINT: pairs with the release store in `publish_root`.
        let word = self.mapping.atomic_u64(at + COMMIT_WORD_IN_SLOT).load(Ordering::Acquire);
        if word == 0 {
            return Err(SlotError::Unfinished);
        }
        let mut bytes = [0; RECORD_BYTES];
        self.read(at, &mut bytes);
        let Identity { checkpoint, generation } = self.identity;
        let record = Record::decode(&bytes, checkpoint, generation, self.layout.capacity())?;
        if record.sequence == word { Ok(record) } else { Err(SlotError::Unfinished) }
    }

    /// The version that a slot holds by its commit word; 0 while it is being written.
    pub fn commit_word(&self, slot: usize) -> Version {
        let at = self.layout.slot(slot) + COMMIT_WORD_IN_SLOT;
        // SYNC POINT: pairs with the release store in `publish_root`, and with `invalidate`.
        self.mapping.atomic_u64(at).load(Ordering::SeqCst)
    }

    /// Reads the whole slot and checks every checksum. The bytes may be written meanwhile: then
    /// this finds it out.
    pub fn verify(&self, slot: usize) -> Result<Record, SlotError> {
        self.read_verified(slot, |_, _| Ok(()))
    }

    /// Reads the whole slot and hands it on piece by piece: where in the payload, and bytes whose
    /// checksums are right. What is written meanwhile is found out before it is handed on.
    ///
    /// # Errors
    /// The slot is damaged, or what `take` answers. The pieces before were handed on.
    pub fn read_verified<E: From<SlotError>>(
        &self,
        slot: usize,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<Record, E> {
        let record = self.record(slot)?;
        let table = self.table(slot, &record)?;
        let piece_bytes = BOUNCE_BYTES.max(self.layout.chunk_bytes());
        let mut bounce = vec![0; piece_bytes.min(record.len) as usize];
        for at in (0..record.len).step_by(piece_bytes as usize) {
            let piece = &mut bounce[..piece_bytes.min(record.len - at) as usize];
            self.read(self.layout.payload(slot) + at, piece);
            table.check(at, piece)?;
            take(at, piece)?;
        }
        Ok(record)
    }

    /// As [`Region::verify`], without copying anything.
    ///
    /// # Safety
    /// Nobody writes the slot's payload meanwhile.
    pub unsafe fn verify_quiet(&self, slot: usize) -> Result<Record, SlotError> {
        let record = self.record(slot)?;
        let table = self.table(slot, &record)?;
        // SAFETY: the caller's promise.
        let payload = unsafe { self.mapping.quiet_slice(self.layout.payload(slot), record.len) };
        let payload = payload.expect("inside: the record was checked against the capacity");
        table.check(0, payload)?;
        Ok(record)
    }

    fn table(&self, slot: usize, record: &Record) -> Result<ChunkTable, SlotError> {
        let mut entries = vec![0; ChunkTable::bytes(&self.layout, record) as usize];
        self.read(self.layout.table(slot), &mut entries);
        ChunkTable::new(entries, &self.layout, record)
    }

    /// The newest slot by its record alone: what is there if nothing is damaged.
    pub fn newest_by_record(&self) -> Option<Found> {
        (0..self.layout.slots())
            .filter_map(|slot| Some(Found { slot, record: self.record(slot).ok()? }))
            .max_by_key(|found| found.record.sequence)
    }

    /// The newest slot whose every checksum is right.
    pub fn newest_valid(&self) -> Option<Found> {
        let mut claims: Vec<Found> = (0..self.layout.slots())
            .filter_map(|slot| Some(Found { slot, record: self.record(slot).ok()? }))
            .collect();
        claims.sort_by_key(|found| std::cmp::Reverse(found.record.sequence));
        claims.into_iter().find(|found| self.verify(found.slot) == Ok(found.record))
    }

    /// The version that each slot claims by its record, 0 where it claims none.
    pub fn versions(&self) -> Vec<Version> {
        (0..self.layout.slots()).map(|s| self.record(s).map_or(0, |r| r.sequence)).collect()
    }

    /// Marks a slot as being written: from now on it holds no version.
    pub fn invalidate(&self, slot: usize) {
        let at = self.layout.slot(slot) + COMMIT_WORD_IN_SLOT;
        self.mapping.atomic_u64(at).store(0, Ordering::SeqCst);
    }

    /// Copies payload bytes from one slot to another, with their chunks' table entries.
    pub fn bring_up_to_date(&self, from: usize, to: usize, extent: Extent) {
        let (src, dst) = (self.layout.payload(from), self.layout.payload(to));
        self.copy(src + extent.start, dst + extent.start, extent.len());
        let first = extent.start / self.layout.chunk_bytes();
        let end = extent.end.div_ceil(self.layout.chunk_bytes());
        let (src, dst) = (self.layout.table(from), self.layout.table(to));
        self.copy(src + 8 * first, dst + 8 * first, 8 * (end - first));
    }

    /// Recomputes the table entries of the chunks that `extent` touches, of a payload of `len`
    /// bytes.
    ///
    /// # Safety
    /// Nobody may write the slot meanwhile: it is the caller's working slot.
    pub unsafe fn rehash(&self, slot: usize, extent: Extent, len: u64) {
        let chunk_bytes = self.layout.chunk_bytes();
        for chunk in extent.start / chunk_bytes..extent.end.min(len).div_ceil(chunk_bytes) {
            // SAFETY: the caller's promise.
            unsafe { self.rehash_chunk(slot, chunk, len) };
        }
    }

    /// Writes a whole payload with its chunk table.
    ///
    /// # Errors
    /// It is larger than the capacity; nothing was written.
    pub fn write_whole(&self, slot: usize, payload: &[u8]) -> Result<(), OutOfBounds> {
        let len = payload.len() as u64;
        self.check_payload(0, len)?;
        let chunk_bytes = self.layout.chunk_bytes();
        let piece_bytes = chunk_bytes.max(WRITTEN_AT_ONCE);
        let (mut at, mut entry_at) = (self.layout.payload(slot), self.layout.table(slot));
        // The copy finds in the cache what the checksum brought there.
        for piece in payload.chunks(piece_bytes as usize) {
            for chunk in piece.chunks(chunk_bytes as usize) {
                self.write(entry_at, &XxHash3_64::oneshot(chunk).to_le_bytes());
                entry_at += 8;
            }
            if len < AROUND_CACHE_FROM {
                self.mapping.write_at(at, piece)?;
            } else {
                self.mapping.write_around_cache(at, piece)?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Recomputes the table entries of the chunks that `changed` touches, in a slot that holds the
    /// state of `source` but for that; answers the root of the table. Every chunk that either payload
    /// has and the other lacks must be touched, too.
    ///
    /// # Errors
    /// The source holds no version; nothing was changed.
    ///
    /// # Safety
    /// As [`Region::rehash`], for both slots.
    pub unsafe fn rehash_changed(
        &self,
        source: usize,
        slot: usize,
        changed: &RangeSet,
        len: u64,
    ) -> Result<Root, SlotError> {
        let before = self.record(source)?;
        let mut root = Root::from_word(before.root);
        let (chunks_before, chunks) = (self.layout.chunks(before.len), self.layout.chunks(len));
        let mut next = 0; // the chunks below are done
        changed.for_each(|extent| {
            let first = (extent.start / self.layout.chunk_bytes()).max(next);
            next = extent.end.div_ceil(self.layout.chunk_bytes()).max(next);
            for chunk in first..next {
                if chunk < chunks_before {
                    root.remove(chunk, self.entry(source, chunk));
                }
                if chunk < chunks {
                    // SAFETY: the caller's promise.
                    root.add(chunk, unsafe { self.rehash_chunk(slot, chunk, len) });
                }
            }
        });
        Ok(root)
    }

    /// # Safety
    /// As [`Region::rehash`].
    unsafe fn rehash_chunk(&self, slot: usize, chunk: u64, len: u64) -> u64 {
        let chunk_bytes = self.layout.chunk_bytes();
        let start = chunk * chunk_bytes;
        let at = self.layout.payload(slot) + start;
        // SAFETY: the caller is the slot's only writer and does not write during this call.
        let bytes = unsafe { self.mapping.quiet_slice(at, chunk_bytes.min(len - start)) };
        let checksum = XxHash3_64::oneshot(bytes.expect("inside: `new` checked the layout"));
        self.write(self.layout.table(slot) + 8 * chunk, &checksum.to_le_bytes());
        checksum
    }

    fn entry(&self, slot: usize, chunk: u64) -> u64 {
        let mut entry = [0; 8];
        self.read(self.layout.table(slot) + 8 * chunk, &mut entry);
        u64::from_le_bytes(entry)
    }

    /// Writes the record and, last, the commit word: the version exists from here on.
    ///
    /// # Safety
    /// As [`Region::rehash`].
    pub unsafe fn publish(&self, slot: usize, epoch: u64, sequence: Version, len: u64) -> Record {
        let chunks = self.layout.chunks(len);
        // SAFETY: the caller is the slot's only writer and does not write during this call.
        let table = unsafe { self.mapping.quiet_slice(self.layout.table(slot), 8 * chunks) };
        let root = Root::of(table.expect("inside: `new` checked the layout"));
        self.publish_root(slot, epoch, sequence, len, root)
    }

    /// As [`Region::publish`], for a chunk table whose root is known.
    pub fn publish_root(
        &self,
        slot: usize,
        epoch: u64,
        sequence: Version,
        len: u64,
        root: Root,
    ) -> Record {
        let Identity { checkpoint, generation } = self.identity;
        let record = Record { checkpoint, epoch, generation, sequence, len, root: root.word() };
        let at = self.layout.slot(slot);
        self.write(at, &record.encode());
        // SYNC POINT: pairs with the acquire load in `record`.
        self.mapping.atomic_u64(at + COMMIT_WORD_IN_SLOT).store(sequence, Ordering::Release);
        record
    }

    /// The newer of the sync marks in the header page.
    pub fn mark(&self) -> Result<Mark, MarkError> {
        let [first, second] = [self.mark_in(0), self.mark_in(1)];
        match (first, second) {
            (Ok(first), Ok(second)) if second.view > first.view => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), Ok(second)) => Ok(second),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Which of the two does not hold the newer one: it takes the next.
    pub fn free_mark(&self) -> usize {
        let newer = self.mark();
        usize::from(newer.is_ok() && newer == self.mark_in(0))
    }

    fn mark_in(&self, which: usize) -> Result<Mark, MarkError> {
        let mut bytes = [0; MARK_BYTES as usize];
        self.read(MARK_AT[which], &mut bytes);
        Mark::decode(&bytes, self.identity)
    }

    /// Writes the only sync mark into the header page, in the first place.
    pub fn set_mark(&self, mark: Mark) {
        self.write(MARK_AT[0], &mark.encode(self.identity));
        self.write(MARK_AT[1], &[0; MARK_BYTES as usize]);
    }

    /// Copies payload bytes of a slot out.
    pub fn read_payload(
        &self,
        slot: usize,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), OutOfBounds> {
        self.check_payload(offset, into.len() as u64)?;
        self.mapping.read_at(self.layout.payload(slot) + offset, into)
    }

    /// Copies payload bytes into a slot.
    pub fn write_payload(&self, slot: usize, offset: u64, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check_payload(offset, from.len() as u64)?;
        self.mapping.write_at(self.layout.payload(slot) + offset, from)
    }

    /// Checks that payload bytes lie inside the capacity.
    pub fn check_payload(&self, offset: u64, len: u64) -> Result<(), OutOfBounds> {
        let capacity = self.layout.capacity();
        match offset.checked_add(len) {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(OutOfBounds { offset, len, mapping_len: capacity }),
        }
    }

    // Offsets that come from the layout are inside: `new` checked that the mapping holds it all.

    fn read(&self, at: u64, into: &mut [u8]) {
        self.mapping.read_at(at, into).expect("inside: `new` checked the layout");
    }

    fn write(&self, at: u64, from: &[u8]) {
        self.mapping.write_at(at, from).expect("inside: `new` checked the layout");
    }

    fn copy(&self, from: u64, to: u64, len: u64) {
        self.mapping.copy_within(from, to, len).expect("inside: `new` checked the layout");
    }
}

#[cfg(test)]
mod tests;
