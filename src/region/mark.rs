//! The sync mark: what a mirror says of itself to a recovery.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::{Identity, layout::MARK_BYTES};

const MAGIC: u64 = u64::from_le_bytes(*b"RKsynced");

/// "This mirror was brought up to date by that owner in this view" (rule H2). The owner writes it
/// into the mirror by the transport, behind the copy and on the same connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The view for which the mirror was synced.
    pub view: u64,
    /// The owner's ownership epoch.
    pub epoch: u64,
    /// The owner's incarnation.
    pub incarnation: u64,
}

/// Why there is no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// None was ever written.
    #[error("never synced")]
    Absent,
    /// Torn, damaged, or of another checkpoint.
    #[error("the sync mark is torn, damaged or of another checkpoint")]
    Invalid,
}

impl Mark {
    pub(super) fn encode(&self, of: Identity) -> [u8; MARK_BYTES as usize] {
        let mut out = [0; MARK_BYTES as usize];
        let words =
            [MAGIC, of.checkpoint, of.generation, self.view, self.epoch, self.incarnation, 0];
        for (i, word) in words.into_iter().enumerate() {
            out[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = XxHash3_64::oneshot(&out[..56]);
        out[56..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    pub(super) fn decode(
        bytes: &[u8; MARK_BYTES as usize],
        of: Identity,
    ) -> Result<Self, MarkError> {
        if bytes.iter().all(|&b| b == 0) {
            return Err(MarkError::Absent);
        }
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[8 * i..8 * i + 8]);
            u64::from_le_bytes(w)
        };
        let mark = Self { view: word(3), epoch: word(4), incarnation: word(5) };
        if mark.encode(of) == *bytes { Ok(mark) } else { Err(MarkError::Invalid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_believed_whole_and_for_its_own_checkpoint_only() {
        let of = Identity { checkpoint: 1, generation: 2 };
        let mark = Mark { view: 3, epoch: 4, incarnation: 5 };
        let bytes = mark.encode(of);
        assert_eq!(Mark::decode(&bytes, of), Ok(mark));
        assert_eq!(
            Mark::decode(&bytes, Identity { checkpoint: 9, generation: 2 }),
            Err(MarkError::Invalid)
        );
        assert_eq!(Mark::decode(&[0; 64], of), Err(MarkError::Absent));
        for i in 0..64 {
            let mut torn = bytes;
            torn[i] ^= 0x10;
            assert_eq!(Mark::decode(&torn, of), Err(MarkError::Invalid), "byte {i}");
        }
    }
}
