//! One holder's copy as the owner knows it.

use std::collections::VecDeque;

use super::Measures;
use crate::commit::{Stale, Version};

/// A work request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Posted {
    Version { work: u64, version: Version, to: usize },
    Mark { work: u64, view: u64 },
}

impl Posted {
    fn work(&self) -> u64 {
        match *self {
            Self::Version { work, .. } | Self::Mark { work, .. } => work,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot {
    /// What this life of the owner completed there; 0: nothing, or unknown.
    version: Version,
    /// What the holder said of it when it was prepared.
    claimed: Version,
    stale: Stale,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Remote<H> {
    pub(super) holder: H,
    /// It is one of the nearest predecessors.
    pub(super) wanted: bool,
    /// Its completions count.
    pub(super) of_record: bool,
    /// Connection up and key granted.
    pub(super) ready: bool,
    /// The view of its sync mark, as far as this life of the owner posted it; 0: none.
    pub(super) mark: u64,
    pub(super) posted: VecDeque<Posted>,
    /// This life of the owner completed a copy there: what it holds is known, not only claimed.
    pub(super) copied: bool,
    /// Since when a version waits to be sent.
    pub(super) unsent_since_ns: Option<u64>,
    asked: bool,
    region: Option<u64>,
    slots: Vec<Slot>,
}

impl<H: Clone> Remote<H> {
    pub(super) fn new(holder: H, measures: &Measures) -> Self {
        let slot = |_| Slot { version: 0, claimed: 0, stale: Stale::everything(measures.capacity) };
        let slots = (0..measures.slots).map(slot).collect();
        Self {
            holder,
            wanted: false,
            of_record: false,
            ready: false,
            mark: 0,
            posted: VecDeque::with_capacity(8),
            copied: false,
            unsent_since_ns: None,
            asked: false,
            region: None,
            slots,
        }
    }

    /// Ready, and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.ready && self.posted.is_empty()
    }

    /// The holder, if it must be asked to prepare and was not asked yet.
    pub(super) fn ask(&mut self) -> Option<H> {
        if self.ready || std::mem::replace(&mut self.asked, true) {
            return None;
        }
        Some(self.holder.clone())
    }

    /// True when what the holder had is gone.
    pub(super) fn ready_again(&mut self, region: u64, versions: &[Version]) -> bool {
        (self.ready, self.asked) = (true, false);
        let same = self.region == Some(region);
        let had_memory = self.region.is_some();
        self.region = Some(region);
        if !same {
            self.mark = 0;
            self.copied = false;
            for (i, slot) in self.slots.iter_mut().enumerate() {
                slot.version = 0;
                slot.claimed = versions.get(i).copied().unwrap_or(0);
                slot.stale.set_everything();
            }
        }
        had_memory && !same
    }

    pub(super) fn lost(&mut self) {
        (self.ready, self.asked) = (false, false);
        while let Some(posted) = self.posted.pop_front() {
            self.spoil(posted);
        }
    }

    pub(super) fn failed(&mut self, posted: Posted) {
        self.spoil(posted);
        self.lost();
    }

    pub(super) fn changed(&mut self, changed: &Stale, now_ns: u64) {
        self.unsent_since_ns.get_or_insert(now_ns);
        for slot in &mut self.slots {
            slot.stale.union(changed);
        }
    }

    pub(super) fn stale(&self, slot: usize) -> &Stale {
        &self.slots[slot].stale
    }

    /// The slot that takes the next version: the one with the oldest version, neither under way
    /// nor the newest completed one (I5). Before this life of the owner completed anything there,
    /// the newest that the holder claims may be the last acknowledged one.
    pub(super) fn target(&self) -> usize {
        let newest = self.newest();
        let kept = if newest > 0 {
            self.slots.iter().position(|s| s.version == newest)
        } else {
            (0..self.slots.len())
                .max_by_key(|&i| self.slots[i].claimed)
                .filter(|&i| self.slots[i].claimed > 0)
        };
        let under_way = |i: usize| {
            self.posted.iter().any(|p| matches!(p, Posted::Version { to, .. } if *to == i))
        };
        (0..self.slots.len())
            .filter(|&i| !under_way(i) && Some(i) != kept)
            .min_by_key(|&i| self.slots[i].version)
            .expect("at most slots - 1 versions are under way")
    }

    pub(super) fn posted(&mut self, posted: Posted) {
        if let Posted::Version { to, .. } = posted {
            // From now on, what changes is stale again; what is under way is not.
            self.slots[to].version = 0;
            self.slots[to].stale.clear();
            self.unsent_since_ns = None;
        }
        self.posted.push_back(posted);
    }

    pub(super) fn take_posted(&mut self, work: u64) -> Option<Posted> {
        let at = self.posted.iter().position(|p| p.work() == work)?;
        self.posted.remove(at)
    }

    pub(super) fn holds(&mut self, version: Version, to: usize) {
        self.slots[to].version = version;
        self.copied = true;
    }

    /// The newest completed version.
    pub(super) fn newest(&self) -> Version {
        self.slots.iter().map(|s| s.version).max().unwrap_or(0)
    }

    /// The newest version completed or under way.
    pub(super) fn newest_sent(&self) -> Version {
        let under_way = self.posted.iter().filter_map(|p| match p {
            Posted::Version { version, .. } => Some(*version),
            Posted::Mark { .. } => None,
        });
        under_way.max().unwrap_or(0).max(self.newest())
    }

    pub(super) fn spoil(&mut self, posted: Posted) {
        if let Posted::Version { to, .. } = posted {
            self.slots[to].version = 0;
            self.slots[to].stale.set_everything();
            self.unsent_since_ns.get_or_insert(0); // what was sent has waited long enough already
        }
    }
}
