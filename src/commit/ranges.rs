//! Sets of byte ranges, bounded in number.

/// Most extents that a [`RangeSet`] keeps apart. One more merges the two nearest neighbours: the set
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

/// A sorted set of extents that neither overlap nor touch. Never allocates after it was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RangeSet {
    extents: Vec<Extent>,
}

impl Default for RangeSet {
    fn default() -> Self {
        Self::new()
    }
}

impl RangeSet {
    /// The empty set, with room for all it will ever hold.
    pub fn new() -> Self {
        Self { extents: Vec::with_capacity(RANGES_MAX + 1) }
    }

    /// The extents in ascending order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// True when nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.extents.clear();
    }

    /// Bytes covered.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(Extent::len).sum()
    }

    /// Adds `start..end`; nothing when that is empty.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
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
            self.merge_nearest();
        }
    }

    /// Adds everything of `other`.
    pub fn union(&mut self, other: &RangeSet) {
        for e in &other.extents {
            self.insert(e.start, e.end);
        }
    }

    fn merge_nearest(&mut self) {
        let gap = |i: usize| self.extents[i + 1].start - self.extents[i].end;
        if let Some(i) = (0..self.extents.len() - 1).min_by_key(|&i| gap(i)) {
            self.extents[i].end = self.extents[i + 1].end;
            self.extents.remove(i + 1);
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
    /// The content is unknown (never written, or an update of it was aborted): all of it.
    pub fn everything() -> Self {
        Self { everything: true, only: RangeSet::new() }
    }

    /// The slot holds the state exactly.
    pub fn nothing() -> Self {
        Self { everything: false, only: RangeSet::new() }
    }

    /// True when the content is unknown.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// The extents that differ; without meaning when [`Stale::is_everything`].
    pub fn extents(&self) -> &[Extent] {
        self.only.extents()
    }

    /// The content became unknown.
    pub fn set_everything(&mut self) {
        self.everything = true;
        self.only.clear();
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
        for e in self.only.extents() {
            let clipped = Extent { start: e.start, end: e.end.min(len) };
            if !clipped.is_empty() {
                f(clipped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_that_was_put_in_is_ever_lost(
            inserts in prop::collection::vec((0u64..5_000, 1u64..40), 1..300)
        ) {
            let mut set = RangeSet::new();
            let mut reference = vec![false; 5_100];
            for &(start, len) in &inserts {
                set.insert(start, start + len);
                reference[start as usize..(start + len) as usize].fill(true);
            }
            prop_assert!(set.extents().len() <= RANGES_MAX);
            prop_assert!(set.extents().windows(2).all(|w| w[0].end < w[1].start));
            let covered = |i: u64| set.extents().iter().any(|e| e.start <= i && i < e.end);
            for (i, &wanted) in reference.iter().enumerate() {
                prop_assert!(!wanted || covered(i as u64), "byte {i} was lost");
            }
        }

        #[test]
        fn few_ranges_are_kept_exactly(
            inserts in prop::collection::vec((0u64..2_000, 1u64..40), 1..20)
        ) {
            let mut set = RangeSet::new();
            let mut reference = vec![false; 2_100];
            for &(start, len) in &inserts {
                set.insert(start, start + len);
                reference[start as usize..(start + len) as usize].fill(true);
            }
            prop_assert_eq!(set.bytes(), reference.iter().filter(|&&b| b).count() as u64);
        }
    }

    #[test]
    fn a_full_set_does_not_grow_its_memory() {
        let mut set = RangeSet::new();
        let room = set.extents.capacity();
        for i in 0..10_000u64 {
            set.insert(i * 7_919 % 100_000, i * 7_919 % 100_000 + 1);
        }
        assert_eq!(set.extents.capacity(), room);
    }
}
