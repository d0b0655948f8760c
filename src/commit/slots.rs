//! The writer's side: which slot, and what is stale in it.

use super::{RangeSet, Stale, Version};

#[derive(Debug, Clone)]
struct Slot {
    version: Version,
    stale: Stale,
}

/// The slots of one region as their only writer knows them.
///
/// Two rules hold it together. The target of the next version is never the slot of the newest
/// version: not by parity of the sequence, which after an abort would overwrite the good one. And
/// a slot is brought up to date by all that changed *since the version which that slot holds*, not
/// since the version before.
#[derive(Debug, Clone)]
pub struct Slots {
    slots: Vec<Slot>,
    newest: Option<usize>,
    /// Payload length of the newest version, and of the state.
    newest_len: u64,
    len: u64,
    changed: RangeSet,
}

/// An update under way: the slot that takes it, and the payload length so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Working {
    /// The slot that is being written.
    pub slot: usize,
    /// The newest version's slot, from which the target is brought up to date.
    pub source: Option<usize>,
}

impl Slots {
    /// Slots for up to `capacity` bytes with these versions in them (0: none), the newest valid one
    /// having `len` bytes. What the others hold is taken as unknown.
    pub fn new(capacity: u64, versions: &[Version], len: u64) -> Self {
        let slot = |&version| Slot { version, stale: Stale::everything(capacity) };
        let slots = versions.iter().map(slot).collect();
        let newest = (0..versions.len()).max_by_key(|&i| versions[i]).filter(|&i| versions[i] > 0);
        let changed = RangeSet::new(capacity);
        let mut all = Self { slots, newest, newest_len: len, len, changed };
        if let Some(i) = newest {
            all.slots[i].stale.clear();
        }
        all
    }

    /// The newest version, 0 when there is none.
    pub fn version(&self) -> Version {
        self.newest.map_or(0, |i| self.slots[i].version)
    }

    /// The slot of the newest version.
    pub fn newest(&self) -> Option<usize> {
        self.newest
    }

    /// Payload length of the newest version, 0 when there is none.
    pub fn newest_len(&self) -> u64 {
        self.newest_len
    }

    /// Payload length of the state: the newest version's, or what an update under way made of it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when the state has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the next version goes: the slot of the oldest version that is not the newest.
    pub fn target(&self) -> Working {
        let slot = (0..self.slots.len())
            .filter(|&i| Some(i) != self.newest)
            .min_by_key(|&i| self.slots[i].version)
            .expect("a region has at least two slots");
        Working { slot, source: self.newest }
    }

    /// What must be copied from the newest slot before `working` equals it.
    pub fn stale(&self, working: Working) -> &Stale {
        &self.slots[working.slot].stale
    }

    /// The slot's record was invalidated and its content may change from now on: until
    /// [`Slots::committed`] it holds nothing.
    pub fn spoiled(&mut self, working: Working) {
        let slot = &mut self.slots[working.slot];
        slot.version = 0;
        slot.stale.set_everything();
    }

    /// Notes that the update changes these bytes.
    pub fn changes(&mut self, start: u64, end: u64) {
        self.changed.insert(start, end);
    }

    /// Notes a new payload length. The chunk that holds the old or the new end gets a new checksum,
    /// so its last byte counts as changed.
    pub fn resize(&mut self, len: u64) {
        if len != self.len {
            let low = len.min(self.len).saturating_sub(1);
            self.changed.insert(low, len.max(self.len));
            self.len = len;
        }
    }

    /// What this update changed so far.
    pub fn changed(&self) -> &RangeSet {
        &self.changed
    }

    /// The record of `version` was written into the working slot: it is the newest now, and what
    /// this update changed is stale in every other slot.
    pub fn committed(&mut self, working: Working, version: Version) {
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if i == working.slot {
                slot.version = version;
                slot.stale.clear();
            } else {
                slot.stale.union_ranges(&self.changed);
            }
        }
        self.newest = Some(working.slot);
        self.newest_len = self.len;
        self.changed.clear();
    }

    /// The update under way is given up: its slot holds nothing known, the state is the newest
    /// version's again.
    pub fn abandoned(&mut self) {
        self.changed.clear();
        self.len = self.newest_len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reference: whole payloads per slot, updated by what the plan says.
    struct Model {
        plan: Slots,
        bytes: Vec<Vec<u8>>,
        versions: Vec<Version>,
        state: Vec<u8>,
    }

    impl Model {
        fn update(&mut self, writes: &[(u64, u8)], commit: bool) {
            let working = self.plan.target();
            assert_ne!(Some(working.slot), self.plan.newest(), "I5: the newest is overwritten");
            if let Some(source) = working.source {
                let from = self.bytes[source].clone();
                let into = &mut self.bytes[working.slot];
                self.plan.stale(working).for_each(self.state.len() as u64, |e| {
                    let at = e.start as usize..e.end as usize;
                    into[at.clone()].copy_from_slice(&from[at]);
                });
            }
            self.plan.spoiled(working);
            let mut state = self.state.clone();
            for &(at, value) in writes {
                state[at as usize] = value;
                self.bytes[working.slot][at as usize] = value;
                self.plan.changes(at, at + 1);
            }
            if commit {
                let version = self.versions.iter().max().unwrap() + 1;
                self.plan.committed(working, version);
                self.versions[working.slot] = version;
                self.state = state;
                assert_eq!(self.bytes[working.slot], self.state, "I2: the new version is torn");
            } else {
                self.versions[working.slot] = 0;
                self.plan.abandoned();
            }
        }
    }

    proptest! {
        #[test]
        fn every_version_is_whole_whatever_was_aborted_before(
            slots in 2usize..5,
            updates in prop::collection::vec(
                (prop::collection::vec((0u64..64, any::<u8>()), 0..8), prop::bool::weighted(0.8)),
                1..40,
            ),
        ) {
            let mut model = Model {
                plan: Slots::new(64, &vec![0; slots], 64),
                bytes: (0..slots).map(|i| vec![i as u8 + 200; 64]).collect(),
                versions: vec![0; slots],
                state: vec![0; 64],
            };
            // The first version writes everything, as a first commit does.
            let all: Vec<(u64, u8)> = (0..64).map(|i| (i, 0)).collect();
            model.update(&all, true);
            for (writes, commit) in updates {
                model.update(&writes, commit);
            }
        }
    }

    #[test]
    fn after_an_abort_the_good_version_is_not_the_target() {
        let mut plan = Slots::new(64, &[0, 0], 0);
        let first = plan.target();
        plan.spoiled(first);
        plan.committed(first, 1);
        let second = plan.target();
        plan.spoiled(second);
        plan.abandoned();
        // Parity of the sequence would now go on to the other slot, which holds version 1.
        assert_eq!(plan.target().slot, second.slot);
    }

    #[test]
    fn a_new_length_makes_the_chunk_at_the_old_end_changed() {
        let mut plan = Slots::new(200, &[1, 0], 100);
        plan.resize(200);
        let mut changed = Vec::new();
        plan.changed().for_each(|extent| changed.push((extent.start, extent.end)));
        assert_eq!(changed, [(99, 200)]);
    }
}
