//! Where every byte of a region lies. Drawn in `docs/layout.md`.
//!
//! ```text
//! region  ┌ header page 4096 ┬ slot 0 ┬ slot 1 ┬ … ┐
//! slot    ┌ record 64 ┬ commit word 64 ┬ chunk table, 8 a chunk ┬ payload ┐  each part on a cache line
//! ```

use serde::{Deserialize, Serialize};

use crate::commit::RECORD_BYTES;

/// Bytes of the header page.
pub const HEADER_BYTES: u64 = 4096;
/// Where the sync marks lie in the header page: each on a cache line of its own. There are two, since
/// one that is cut off half-way must not take the one before along.
pub const MARK_AT: [u64; 2] = [1024, 1024 + MARK_BYTES];
/// Bytes of an encoded sync mark.
pub const MARK_BYTES: u64 = 64;
/// Where the commit word lies in a slot: on a cache line of its own, behind the record.
pub const COMMIT_WORD_IN_SLOT: u64 = 64;
/// Smallest number of slots.
pub const SLOTS_MIN: u32 = 2;
/// Largest number of slots.
pub const SLOTS_MAX: u32 = 8;
/// Largest capacity of a checkpoint in bytes: 1 TiB.
pub const CAPACITY_BYTES_MAX: u64 = 1 << 40;

const LINE: u64 = 64;
const CHUNK_BYTES_MIN: u64 = 4 << 10;
const CHUNK_BYTES_MAX: u64 = 1 << 20;
/// Beyond so many chunks of the smallest size they are larger: whoever verifies holds a table of at
/// most 16 MiB.
const SMALL_CHUNKS_MAX: u64 = 1 << 20;

const _: () = assert!(RECORD_BYTES as u64 == LINE);
const _: () = assert!(MARK_AT[1] + MARK_BYTES <= HEADER_BYTES);

/// A region's measures. Made by [`Layout::new`] only, so they are always coherent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Measures", into = "Measures")]
pub struct Layout {
    capacity: u64,
    slots: u32,
}

#[derive(Serialize, Deserialize)]
struct Measures {
    capacity: u64,
    slots: u32,
}

/// Why there is no region with these measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Zero, or more than [`CAPACITY_BYTES_MAX`].
    #[error("a checkpoint's capacity is 1 byte to 1 TiB, not {0} bytes")]
    Capacity(u64),
    /// Less than [`SLOTS_MIN`] or more than [`SLOTS_MAX`].
    #[error("a region has {SLOTS_MIN} to {SLOTS_MAX} slots, not {0}")]
    Slots(u32),
}

impl Layout {
    /// Measures of a region for payloads of up to `capacity` bytes in `slots` slots.
    pub fn new(capacity: u64, slots: u32) -> Result<Self, LayoutError> {
        if capacity == 0 || capacity > CAPACITY_BYTES_MAX {
            return Err(LayoutError::Capacity(capacity));
        }
        if !(SLOTS_MIN..=SLOTS_MAX).contains(&slots) {
            return Err(LayoutError::Slots(slots));
        }
        Ok(Self { capacity, slots })
    }

    /// Largest payload in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Bytes of payload that one entry of the chunk table speaks for.
    pub fn chunk_bytes(&self) -> u64 {
        let wanted = (self.capacity / SMALL_CHUNKS_MAX).next_power_of_two();
        wanted.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    }

    /// Chunks of a payload of `len` bytes.
    pub fn chunks(&self, len: u64) -> u64 {
        len.div_ceil(self.chunk_bytes())
    }

    /// Record and commit word together, bytes.
    pub fn head_bytes(&self) -> u64 {
        2 * LINE
    }

    /// Offset of the chunk table from the slot's begin.
    pub fn table_in_slot(&self) -> u64 {
        self.head_bytes()
    }

    /// Offset of the payload from the slot's begin.
    pub fn payload_in_slot(&self) -> u64 {
        self.table_in_slot() + (8 * self.chunks(self.capacity)).next_multiple_of(LINE)
    }

    /// Offset of a slot from the region's begin.
    pub fn slot(&self, slot: usize) -> u64 {
        debug_assert!(slot < self.slots());
        HEADER_BYTES + slot as u64 * self.slot_bytes()
    }

    /// Offset of a slot's payload from the region's begin.
    pub fn payload(&self, slot: usize) -> u64 {
        self.slot(slot) + self.payload_in_slot()
    }

    /// Offset of a slot's chunk table from the region's begin.
    pub fn table(&self, slot: usize) -> u64 {
        self.slot(slot) + self.table_in_slot()
    }

    /// Bytes from one slot to the next.
    pub fn slot_bytes(&self) -> u64 {
        (self.payload_in_slot() + self.capacity).next_multiple_of(LINE)
    }

    /// Bytes of the whole region, before rounding up to a page.
    pub fn region_bytes(&self) -> u64 {
        HEADER_BYTES + self.slots as u64 * self.slot_bytes()
    }
}

impl TryFrom<Measures> for Layout {
    type Error = LayoutError;
    fn try_from(m: Measures) -> Result<Self, LayoutError> {
        Self::new(m.capacity, m.slots)
    }
}

impl From<Layout> for Measures {
    fn from(l: Layout) -> Self {
        Self { capacity: l.capacity, slots: l.slots }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_region_of_nothing_and_none_beyond_a_tebibyte() {
        assert_eq!(Layout::new(0, 2), Err(LayoutError::Capacity(0)));
        assert_eq!(Layout::new(1 << 63, 2), Err(LayoutError::Capacity(1 << 63)));
        assert_eq!(Layout::new(1, 1), Err(LayoutError::Slots(1)));
        assert!(Layout::new(CAPACITY_BYTES_MAX, SLOTS_MAX).is_ok());
    }

    proptest! {
        #[test]
        fn parts_follow_each_other_on_cache_lines(capacity in 1u64..1 << 40, slots in 2u32..8) {
            let l = Layout::new(capacity, slots).unwrap();
            prop_assert!(l.payload_in_slot() >= l.table_in_slot() + 8 * l.chunks(capacity));
            prop_assert_eq!(l.payload_in_slot() % LINE, 0);
            prop_assert_eq!(l.slot(1) % LINE, 0);
            prop_assert!(l.slot(0) + l.payload_in_slot() + capacity <= l.slot(1));
            prop_assert!(l.slot(l.slots() - 1) + l.slot_bytes() <= l.region_bytes());
        }

        #[test]
        fn the_table_stays_small(capacity in 1u64..1 << 40) {
            let l = Layout::new(capacity, 2).unwrap();
            let bytes = 8 * l.chunks(capacity);
            prop_assert!(bytes <= 8 + capacity / 512 && bytes <= 16 << 20);
        }
    }
}
