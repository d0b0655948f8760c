//! The commit record: 64 bytes that alone make a version exist.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::{VERSION_MAX, Version};

/// Size of an encoded [`Record`] in bytes: one cache line.
pub const RECORD_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"RKcr");
const FORMAT: u16 = 2;
const CHECKSUM_AT: usize = 56;

/// What a slot holds. The byte layout is drawn in `docs/layout.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The checkpoint that the slot belongs to.
    pub checkpoint: u64,
    /// Ownership epoch of the writer.
    pub epoch: u64,
    /// Generation of the region: a checkpoint that was given a new region has a new one.
    pub generation: u64,
    /// The version.
    pub sequence: Version,
    /// Payload length in bytes.
    pub len: u64,
    /// [`Root`](super::Root) of the chunk table, which holds the payload's checksums.
    pub root: u64,
}

/// Why 64 bytes are not the record that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// All zero: nothing was ever committed there.
    #[error("no version was ever committed there")]
    Empty,
    /// Not a record of this format.
    #[error("not a commit record of format {FORMAT}")]
    Foreign,
    /// The record's own checksum is wrong: torn, or damaged.
    #[error("the commit record is torn or damaged")]
    Checksum,
    /// A record of another checkpoint or generation.
    #[error("the record belongs to checkpoint {found:#x} generation {found_generation}")]
    OtherCheckpoint {
        /// Checkpoint id found.
        found: u64,
        /// Generation found.
        found_generation: u64,
    },
    /// The length is larger than the slot.
    #[error("the record claims {len} bytes in a slot of {capacity}")]
    Length {
        /// Bytes claimed.
        len: u64,
        /// Bytes that a slot has.
        capacity: u64,
    },
}

impl Record {
    /// The record as it lies in a slot.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        let words =
            [self.checkpoint, self.epoch, self.generation, self.sequence, self.len, self.root];
        for (i, word) in words.into_iter().enumerate() {
            out[8 + 8 * i..16 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = checksum(&out);
        out[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads a record and checks all that can be checked without the payload.
    pub fn decode(
        bytes: &[u8; RECORD_BYTES],
        checkpoint: u64,
        generation: u64,
        capacity: u64,
    ) -> Result<Self, RecordError> {
        if bytes.iter().all(|&b| b == 0) {
            return Err(RecordError::Empty);
        }
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(w)
        };
        let mut head = [0; RECORD_BYTES];
        head[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        head[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        if bytes[..8] != head[..8] {
            return Err(RecordError::Foreign);
        }
        if checksum(bytes) != word(CHECKSUM_AT) {
            return Err(RecordError::Checksum);
        }
        let record = Self {
            checkpoint: word(8),
            epoch: word(16),
            generation: word(24),
            sequence: word(32),
            len: word(40),
            root: word(48),
        };
        if (record.checkpoint, record.generation) != (checkpoint, generation) {
            return Err(RecordError::OtherCheckpoint {
                found: record.checkpoint,
                found_generation: record.generation,
            });
        }
        if record.len > capacity {
            return Err(RecordError::Length { len: record.len, capacity });
        }
        if record.sequence == 0 || record.sequence > VERSION_MAX {
            return Err(RecordError::Foreign);
        }
        Ok(record)
    }
}

/// Over all that stands before it: another sequence or another root is another record.
fn checksum(record: &[u8; RECORD_BYTES]) -> u64 {
    XxHash3_64::oneshot(&record[..CHECKSUM_AT])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record { checkpoint: 7, epoch: 3, generation: 1, sequence: 42, len: 100, root: 0xabcd }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        assert_eq!(Record::decode(&record().encode(), 7, 1, 100), Ok(record()));
    }

    #[test]
    fn an_empty_slot_is_not_a_damaged_one() {
        assert_eq!(Record::decode(&[0; RECORD_BYTES], 7, 1, 100), Err(RecordError::Empty));
    }

    #[test]
    fn a_record_never_speaks_for_another_checkpoint_generation_or_capacity() {
        let bytes = record().encode();
        assert!(matches!(
            Record::decode(&bytes, 8, 1, 100),
            Err(RecordError::OtherCheckpoint { found: 7, .. })
        ));
        assert!(matches!(
            Record::decode(&bytes, 7, 2, 100),
            Err(RecordError::OtherCheckpoint { found_generation: 1, .. })
        ));
        assert_eq!(
            Record::decode(&bytes, 7, 1, 99),
            Err(RecordError::Length { len: 100, capacity: 99 })
        );
    }

    proptest! {
        #[test]
        fn one_wrong_bit_anywhere_is_noticed(byte in 0..RECORD_BYTES, bit in 0u8..8) {
            let mut bytes = record().encode();
            bytes[byte] ^= 1 << bit;
            let taken = Record::decode(&bytes, 7, 1, 100).is_ok();
            prop_assert!(!taken, "I2 no torn read: bit {bit} of byte {byte} is wrong, and it counts");
        }

        #[test]
        fn random_bytes_are_no_record(bytes in prop::array::uniform32(any::<u8>())) {
            let mut all = [0; RECORD_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&bytes);
            prop_assert!(Record::decode(&all, 7, 1, u64::MAX).is_err());
        }
    }
}
