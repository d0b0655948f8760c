//! A bit for each block of a payload: what a [`RangeSet`](super::RangeSet) becomes when its extents
//! are too many to keep apart.

use super::Extent;

/// Most blocks of a payload: a map takes at most 8 KiB.
pub const BLOCKS_MAX: u64 = 1 << 16;
/// No block is smaller: less is neither checked nor sent for less.
const BLOCK_BYTES_MIN: u64 = 4096;

/// Bytes that one bit speaks for, in a payload of up to `capacity` bytes.
pub fn block_bytes(capacity: u64) -> u64 {
    capacity.div_ceil(BLOCKS_MAX).next_power_of_two().max(BLOCK_BYTES_MIN)
}

/// Words of 64 bits that a map for a payload of up to `capacity` bytes takes.
pub fn words_of(capacity: u64) -> usize {
    capacity.div_ceil(block_bytes(capacity)).div_ceil(64) as usize
}

/// Which blocks changed. Never allocates after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Blocks {
    capacity: u64,
    words: Box<[u64]>,
}

impl Blocks {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, words: vec![0; words_of(capacity)].into() }
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Takes somebody's word for a map. False, with nothing changed that counts, when it speaks of
    /// blocks behind the capacity.
    pub(super) fn set_words(&mut self, words: impl Iterator<Item = u64>) -> bool {
        self.words.iter_mut().zip(words).for_each(|(mine, theirs)| *mine = theirs);
        let behind = self.count()..self.words.len() * 64;
        !behind.into_iter().any(|block| self.words[block / 64] >> (block % 64) & 1 != 0)
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }

    pub(super) fn union(&mut self, other: &Self) {
        debug_assert_eq!(self.capacity, other.capacity);
        self.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Sets the blocks of `start..end`, which is not empty and lies inside.
    pub(super) fn set(&mut self, start: u64, end: u64) {
        debug_assert!(start < end && end <= self.capacity);
        let block = block_bytes(self.capacity);
        let (first, last) = ((start / block) as usize, ((end - 1) / block) as usize);
        for word in first / 64..=last / 64 {
            let from = first.max(word * 64) % 64;
            let to = last.min(word * 64 + 63) % 64;
            self.words[word] |= u64::MAX >> (63 - (to - from)) << from;
        }
    }

    /// The runs of set blocks, in ascending order.
    pub(super) fn for_each(&self, mut f: impl FnMut(Extent)) {
        let block = block_bytes(self.capacity);
        let mut at = 0;
        while let Some(start) = self.next(at, |word| word) {
            let end = self.next(start, |word| !word).unwrap_or(self.count());
            let end_bytes = (end as u64 * block).min(self.capacity);
            f(Extent { start: start as u64 * block, end: end_bytes });
            at = end;
        }
    }

    /// The first block at or behind `from` whose bit is set in what `seen` makes of its word.
    fn next(&self, from: usize, seen: impl Fn(u64) -> u64) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for (at, &word) in self.words.iter().enumerate().skip(from / 64) {
            let found = seen(word) & mask;
            if found != 0 {
                return Some(at * 64 + found.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    fn count(&self) -> usize {
        self.capacity.div_ceil(block_bytes(self.capacity)) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_map_is_small_whatever_the_capacity() {
        for (capacity, block, words) in [
            (1, 4096, 1),
            (4096, 4096, 1),
            (256 << 20, 4096, 1024),
            ((256 << 20) + 1, 8192, 513),
            (1 << 40, 16 << 20, 1024),
        ] {
            assert_eq!((block_bytes(capacity), words_of(capacity)), (block, words), "{capacity}");
        }
    }

    #[test]
    fn nobody_speaks_of_blocks_that_do_not_exist() {
        let mut blocks = Blocks::new(3 * 4096);
        assert!(blocks.set_words([0b111].into_iter()));
        assert!(!blocks.set_words([0b1000].into_iter()));
    }

    proptest! {
        #[test]
        fn runs_are_the_blocks_that_were_set(
            capacity in 1u64..2 << 20,
            inserts in prop::collection::vec((0u64..2 << 20, 1u64..20_000), 0..40)
        ) {
            let mut blocks = Blocks::new(capacity);
            let mut reference = vec![false; capacity.div_ceil(4096) as usize];
            for (start, len) in inserts {
                let (start, end) = (start % capacity, (start % capacity + len).min(capacity));
                blocks.set(start, end);
                reference[(start / 4096) as usize..end.div_ceil(4096) as usize].fill(true);
            }
            let mut runs = Vec::new();
            blocks.for_each(|run| runs.push(run));
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start));
            prop_assert!(runs.iter().all(|run| run.end <= capacity));
            for (block, set) in reference.into_iter().enumerate() {
                let at = block as u64 * 4096;
                prop_assert_eq!(set, runs.iter().any(|run| run.start <= at && at < run.end));
            }
        }
    }
}
