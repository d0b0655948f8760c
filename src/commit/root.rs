//! The checksum of a chunk table.

/// The sum of all entries of a chunk table, each mixed with its place. An entry that changes is taken
/// out and put in again, so that a small change of a large state does not read the whole table.
///
/// Source: the additive construction of Bellare and Micciancio, *A New Paradigm for Collision-Free
/// Hashing* (1997), over 64 bits and without a secret: against damage, not against forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root(u64);

impl Root {
    /// Of a table without entries.
    pub const EMPTY: Self = Self(0);

    /// Of a whole table, 8 bytes an entry.
    pub fn of(table: &[u8]) -> Self {
        let mut root = Self::EMPTY;
        for (chunk, entry) in table.as_chunks().0.iter().enumerate() {
            root.add(chunk as u64, u64::from_le_bytes(*entry));
        }
        root
    }

    /// As it is written down in a record.
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// As [`Root::from_word`] takes it.
    pub fn word(self) -> u64 {
        self.0
    }

    /// The chunk has this entry now, and had none.
    pub fn add(&mut self, chunk: u64, entry: u64) {
        self.0 = self.0.wrapping_add(mixed(chunk, entry));
    }

    /// The chunk had this entry, and has none now.
    pub fn remove(&mut self, chunk: u64, entry: u64) {
        self.0 = self.0.wrapping_sub(mixed(chunk, entry));
    }
}

/// Every bit of the result depends on every bit of both: the finalizer of SplitMix64 (Steele, Lea,
/// Flood 2014), twice.
fn mixed(chunk: u64, entry: u64) -> u64 {
    finalized(entry ^ finalized(chunk.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn finalized(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(table: &[u64]) -> Root {
        Root::of(&table.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn entry_by_entry_it_is_that_of_the_whole_table(
            mut table in prop::collection::vec(any::<u64>(), 1..50),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..50),
        ) {
            let mut root = of(&table);
            for (at, entry) in changes {
                let at = at.index(table.len());
                root.remove(at as u64, table[at]);
                root.add(at as u64, entry);
                table[at] = entry;
            }
            prop_assert_eq!(root, of(&table));
        }

        #[test]
        fn another_entry_another_place_or_another_length_is_another_root(
            table in prop::collection::vec(any::<u64>(), 2..50),
            at in any::<prop::sample::Index>(),
            bit in 0..64,
        ) {
            let at = at.index(table.len() - 1);
            let mut other = table.clone();
            other[at] ^= 1u64 << bit;
            prop_assert_ne!(of(&other), of(&table));
            other.clone_from(&table);
            other.swap(at, at + 1);
            prop_assert!(of(&other) != of(&table) || table[at] == table[at + 1]);
            other.clone_from(&table);
            other.push(0);
            prop_assert_ne!(of(&other), of(&table), "an entry of zero is an entry");
        }
    }
}
