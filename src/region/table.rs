//! The checksums of a version's chunks.

use twox_hash::XxHash3_64;

use super::{SlotError, layout::Layout};
use crate::commit::{Record, Root, Version};

/// A version's chunk table, known to be the one that the version's record speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkTable {
    entries: Vec<u8>,
    chunk_bytes: u64,
    version: Version,
}

impl ChunkTable {
    /// Bytes that the table of this version takes.
    pub fn bytes(layout: &Layout, record: &Record) -> u64 {
        8 * layout.chunks(record.len)
    }

    /// The table in these bytes.
    ///
    /// # Errors
    /// [`SlotError::Table`] when they do not match the record's root.
    pub fn new(entries: Vec<u8>, layout: &Layout, record: &Record) -> Result<Self, SlotError> {
        let version = record.sequence;
        let right = entries.len() as u64 == Self::bytes(layout, record)
            && Root::of(&entries).word() == record.root;
        let chunk_bytes = layout.chunk_bytes();
        right.then_some(Self { entries, chunk_bytes, version }).ok_or(SlotError::Table { version })
    }

    /// Checks whole chunks of the payload, of which the first begins at byte `at`.
    ///
    /// # Errors
    /// [`SlotError::Chunk`] with the first that is wrong.
    pub fn check(&self, at: u64, chunks: &[u8]) -> Result<(), SlotError> {
        debug_assert!(at.is_multiple_of(self.chunk_bytes));
        let first = at / self.chunk_bytes;
        let entries = self.entries.as_chunks::<8>().0.get(first as usize..).unwrap_or_default();
        let mut chunks = chunks.chunks(self.chunk_bytes as usize).enumerate();
        let right = |(n, chunk): (usize, &[u8])| {
            entries.get(n).is_some_and(|e| *e == XxHash3_64::oneshot(chunk).to_le_bytes())
        };
        match chunks.position(|chunk| !right(chunk)) {
            Some(wrong) => {
                Err(SlotError::Chunk { version: self.version, chunk: first + wrong as u64 })
            }
            None => Ok(()),
        }
    }
}
