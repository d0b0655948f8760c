//! Sets of byte ranges, bounded in size.

use super::blocks::Blocks;

/// Most extents that a [`RangeSet`] keeps to the byte. With one more it keeps whole blocks: the set
/// may grow to cover bytes that were not put in, never lose one that was.
pub const RANGES_MAX: usize = 60;

/// Bytes `start..end` of a payload; never empty inside a [`RangeSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True when it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// A set of bytes of a payload: a few extents as they were put in, or else the blocks that they
/// touch. Never allocates after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RangeSet {
    /// Sorted; they neither overlap nor touch. None while there are blocks.
    extents: Vec<Extent>,
    blocks: Blocks,
    in_blocks: bool,
}

/// What a [`Stale`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts<'a> {
    /// Nothing is known.
    Everything,
    /// At most [`RANGES_MAX`], in ascending order.
    Extents(&'a [Extent]),
    /// A bit for each block, the first in the lowest bit of the first word.
    Blocks(&'a [u64]),
}

impl RangeSet {
    /// The empty set of bytes of a payload of up to `capacity` bytes, with room for all that it will
    /// ever hold.
    pub fn new(capacity: u64) -> Self {
        let extents = Vec::with_capacity(RANGES_MAX + 1);
        Self { extents, blocks: Blocks::new(capacity), in_blocks: false }
    }

    /// True when nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && !self.in_blocks
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.extents.clear();
        if std::mem::take(&mut self.in_blocks) {
            self.blocks.clear();
        }
    }

    /// Adds `start..end`, which lies inside the capacity; nothing when that is empty.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if self.in_blocks {
            return self.blocks.set(start, end);
        }
        // The extents that overlap or touch the new one become one with it.
        let first = self.extents.partition_point(|e| e.end < start);
        let last = self.extents.partition_point(|e| e.start <= end);
        if first == last {
            self.extents.insert(first, Extent { start, end });
        } else {
            let merged = Extent {
                start: start.min(self.extents[first].start),
                end: end.max(self.extents[last - 1].end),
            };
            self.extents[first] = merged;
            self.extents.drain(first + 1..last);
        }
        if self.extents.len() > RANGES_MAX {
            self.keep_blocks();
        }
    }

    /// Adds everything of `other`, which is of the same payload.
    pub fn union(&mut self, other: &RangeSet) {
        if other.in_blocks {
            self.keep_blocks();
            self.blocks.union(&other.blocks);
        } else {
            other.extents.iter().for_each(|e| self.insert(e.start, e.end));
        }
    }

    /// Calls `f` for each extent, in ascending order.
    pub fn for_each(&self, f: impl FnMut(Extent)) {
        if self.in_blocks {
            self.blocks.for_each(f);
        } else {
            self.extents.iter().copied().for_each(f);
        }
    }

    fn keep_blocks(&mut self) {
        self.in_blocks = true;
        for e in self.extents.drain(..) {
            self.blocks.set(e.start, e.end);
        }
    }
}

/// By how much a slot lags behind the state that it is to hold. Never allocates after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stale {
    everything: bool,
    only: RangeSet,
}

impl Stale {
    /// The content is unknown (never written, or an update of it was aborted): all of it. The payload
    /// has up to `capacity` bytes.
    pub fn everything(capacity: u64) -> Self {
        Self { everything: true, only: RangeSet::new(capacity) }
    }

    /// The slot holds the state exactly, a payload of up to `capacity` bytes.
    pub fn nothing(capacity: u64) -> Self {
        Self { everything: false, only: RangeSet::new(capacity) }
    }

    /// What it is made of.
    pub fn parts(&self) -> Parts<'_> {
        match (self.everything, self.only.in_blocks) {
            (true, _) => Parts::Everything,
            (false, true) => Parts::Blocks(self.only.blocks.words()),
            (false, false) => Parts::Extents(&self.only.extents),
        }
    }

    /// The content became unknown.
    pub fn set_everything(&mut self) {
        self.everything = true;
        self.only.clear();
    }

    /// These blocks are stale and nothing else is, in words as of [`Parts::Blocks`]. False when they
    /// speak of blocks that the payload does not have; then the content counts as unknown.
    pub fn set_blocks(&mut self, words: impl Iterator<Item = u64>) -> bool {
        self.clear();
        self.only.in_blocks = true;
        let fits = self.only.blocks.set_words(words);
        if !fits {
            self.set_everything();
        }
        fits
    }

    /// Adds a range that changed.
    pub fn insert(&mut self, start: u64, end: u64) {
        if !self.everything {
            self.only.insert(start, end);
        }
    }

    /// Adds all that another version changed.
    pub fn union(&mut self, other: &Stale) {
        if other.everything {
            self.set_everything();
        } else {
            self.union_ranges(&other.only);
        }
    }

    /// Adds these ranges.
    pub fn union_ranges(&mut self, ranges: &RangeSet) {
        if !self.everything {
            self.only.union(ranges);
        }
    }

    /// The slot now holds the state exactly.
    pub fn clear(&mut self) {
        self.everything = false;
        self.only.clear();
    }

    /// Calls `f` for each stale extent of a payload of `len` bytes, in ascending order.
    pub fn for_each(&self, len: u64, mut f: impl FnMut(Extent)) {
        if self.everything {
            if len > 0 {
                f(Extent { start: 0, end: len });
            }
            return;
        }
        self.only.for_each(|e| {
            let clipped = Extent { start: e.start, end: e.end.min(len) };
            if !clipped.is_empty() {
                f(clipped);
            }
        });
    }

    /// As [`Stale::for_each`], with at most `extents_max` extents, of which there must be one: what
    /// lies between two neighbours is taken along as often as that is needed, small gaps first.
    pub fn for_each_of_at_most(&self, extents_max: usize, len: u64, mut f: impl FnMut(Extent)) {
        let mut extents = 0;
        self.for_each(len, |_| extents += 1);
        let too_many = usize::saturating_sub(extents, extents_max);
        if too_many == 0 {
            return self.for_each(len, f);
        }
        // All gaps of at most half of this are taken along, and so many of the larger ones. A power
        // of two: a few looks at all gaps find it.
        let (mut gap_max, mut smaller) = (2, 0);
        loop {
            let gaps = self.gaps_of_at_most(gap_max, len);
            if gaps >= too_many {
                break;
            }
            (gap_max, smaller) = (2 * gap_max, gaps);
        }
        let mut larger = too_many - smaller;
        let mut open: Option<Extent> = None;
        self.for_each(len, |next| {
            let gap = open.map_or(u64::MAX, |last| next.start - last.end);
            let along = gap <= gap_max / 2 || gap <= gap_max && larger > 0;
            match &mut open {
                Some(last) if along => {
                    larger -= usize::from(gap > gap_max / 2);
                    last.end = next.end;
                }
                last => last.replace(next).into_iter().for_each(&mut f),
            }
        });
        open.into_iter().for_each(f);
    }

    fn gaps_of_at_most(&self, bytes: u64, len: u64) -> usize {
        let (mut gaps, mut end) = (0, None);
        self.for_each(len, |e| {
            gaps += usize::from(end.is_some_and(|end| e.start - end <= bytes));
            end = Some(e.end);
        });
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u64 = 4 << 20;

    fn extents(set: &RangeSet) -> Vec<Extent> {
        let mut all = Vec::new();
        set.for_each(|e| all.push(e));
        all
    }

    fn covered(extents: &[Extent], at: u64) -> bool {
        extents.iter().any(|e| e.start <= at && at < e.end)
    }

    proptest! {
        #[test]
        fn nothing_that_was_put_in_is_ever_lost(
            inserts in prop::collection::vec((0u64..4_000_000, 1u64..9_000), 1..300),
            mut twice in 0usize..300
        ) {
            let (mut set, mut other) = (RangeSet::new(CAPACITY), RangeSet::new(CAPACITY));
            twice %= inserts.len();
            inserts[..twice].iter().for_each(|&(start, len)| set.insert(start, start + len));
            inserts[twice..].iter().for_each(|&(start, len)| other.insert(start, start + len));
            set.union(&other);
            let all = extents(&set);
            prop_assert!(all.windows(2).all(|w| w[0].end < w[1].start));
            for &(start, len) in &inserts {
                let whole = all.iter().any(|e| e.start <= start && start + len <= e.end);
                prop_assert!(whole, "I2 no torn read: {start} and {len} more would not be copied");
            }
            // What was not put in is in a block with something that was.
            for e in &all {
                for at in (e.start..e.end).step_by(4096) {
                    let (from, to) = (at / 4096 * 4096, at / 4096 * 4096 + 4096);
                    let wanted = |&(start, len): &(u64, u64)| start < to && from < start + len;
                    prop_assert!(inserts.iter().any(wanted), "{at}");
                }
            }
        }

        #[test]
        fn few_ranges_are_kept_exactly(
            inserts in prop::collection::vec((0u64..2_000, 1u64..40), 1..20)
        ) {
            let mut set = RangeSet::new(CAPACITY);
            let mut reference = vec![false; 2_100];
            for &(start, len) in &inserts {
                set.insert(start, start + len);
                reference[start as usize..(start + len) as usize].fill(true);
            }
            let bytes: u64 = extents(&set).iter().map(Extent::len).sum();
            prop_assert_eq!(bytes, reference.iter().filter(|&&b| b).count() as u64);
        }

        #[test]
        fn fewer_extents_cover_the_same_and_the_smallest_gaps(
            blocks in prop::collection::btree_set(0u64..1024, 1..400),
            most in 1usize..400
        ) {
            let mut stale = Stale::nothing(CAPACITY);
            blocks.iter().for_each(|block| stale.insert(block * 4096, block * 4096 + 4096));
            let (mut exact, mut fewer) = (Vec::new(), Vec::new());
            stale.for_each(CAPACITY, |e| exact.push(e));
            stale.for_each_of_at_most(most, CAPACITY, |e| fewer.push(e));
            prop_assert_eq!(fewer.len(), exact.len().min(most));
            prop_assert!(exact.iter().all(|e| covered(&fewer, e.start)));
            let mut gaps: Vec<_> = exact.windows(2).map(|w| w[1].start - w[0].end).collect();
            gaps.sort_unstable();
            let bytes = |all: &[Extent]| all.iter().map(Extent::len).sum::<u64>();
            let needed: u64 = gaps[..exact.len() - fewer.len()].iter().sum();
            prop_assert!(bytes(&fewer) - bytes(&exact) <= 2 * needed);
        }
    }

    #[test]
    fn a_full_set_does_not_grow_its_memory() {
        let mut set = RangeSet::new(CAPACITY);
        let room = set.extents.capacity();
        for i in 0..10_000u64 {
            set.insert(i * 7_919 % 100_000, i * 7_919 % 100_000 + 1);
        }
        set.clear();
        assert!(set.is_empty() && extents(&set).is_empty());
        assert_eq!(set.extents.capacity(), room);
    }

    #[test]
    fn one_percent_of_a_large_state_in_single_blocks_stays_one_percent() {
        let capacity = 256 << 20;
        let mut stale = Stale::nothing(capacity);
        (0..655u64).for_each(|at| stale.insert(at * 100 * 4096, at * 100 * 4096 + 4096));
        let mut bytes = 0;
        stale.for_each(capacity, |e| bytes += e.len());
        assert_eq!(bytes, 655 * 4096);
    }

    #[test]
    fn a_map_of_blocks_that_do_not_exist_is_refused() {
        let mut stale = Stale::nothing(8192);
        assert!(stale.set_blocks([0b11].into_iter()));
        assert_eq!(stale.parts(), Parts::Blocks(&[0b11]));
        assert!(!stale.set_blocks([0b100].into_iter()));
        assert_eq!(stale.parts(), Parts::Everything);
    }
}
