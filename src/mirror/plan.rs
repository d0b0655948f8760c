//! What the owner of a checkpoint does next.

use super::{Action, Mirror, Newest, Post, Remote};

impl<H: Clone + Eq> Mirror<H> {
    /// What to do next, if anything. Ask again after each answer.
    pub fn next(&mut self, now_ns: u64) -> Option<Action<H>> {
        if let Some((holder, confirmed)) = self.released.pop() {
            return Some(Action::Release { holder, confirmed });
        }
        if std::mem::take(&mut self.synced) {
            let holders = self.record().map(|r| r.holder.clone()).collect();
            let view = self.record().map(|r| r.mark).min().unwrap_or(0);
            return Some(Action::Synced { holders, view });
        }
        if let Some(holder) = self.ask() {
            return Some(Action::Prepare(holder));
        }
        if !self.is_complete() {
            return self.move_copies(now_ns);
        }
        debug_assert!(
            self.remotes.iter().all(|r| r.wanted && r.of_record),
            "the last mark switches"
        );
        self.send_what_is_new(now_ns)
    }

    /// When to ask [`Mirror::next`] again though nothing happened, nanoseconds.
    pub fn deadline_ns(&self) -> Option<u64> {
        let waiting = self.record().filter(|r| r.ready && r.posted.is_empty() && self.unsent(r));
        waiting.filter_map(|r| Some(r.unsent_since_ns? + self.measures.pace_ns)).min()
    }

    /// The holders wanted are those of record, each marked for their present time together and not
    /// below the floor. Somebody may have been a predecessor in between and never been synced:
    /// without a new mark a recovery that cannot ask that one would have to take it for the holder
    /// of something newer (H5).
    pub(super) fn is_complete(&self) -> bool {
        let mut wanted = self.remotes.iter().filter(|r| r.wanted).peekable();
        wanted.peek().is_some() && wanted.all(|r| r.mark >= self.mark_due())
    }

    /// True when a version that is sent now will be acknowledged as soon as it has arrived.
    pub(super) fn record_works(&self) -> bool {
        self.record_counts() && self.record().all(|r| r.ready)
    }

    /// A holder that must be asked to prepare and was not asked yet. Those of record that are not
    /// wanted are asked only while the wanted ones are not all ready: whichever comes back first.
    fn ask(&mut self) -> Option<H> {
        let all_ready = self.remotes.iter().all(|r| r.ready || !r.wanted);
        self.remotes.iter_mut().filter(|r| r.wanted || !all_ready).find_map(Remote::ask)
    }

    /// Brings the wanted holders to where those of record are, and marks them.
    fn move_copies(&mut self, now_ns: u64) -> Option<Action<H>> {
        if self.record_works() {
            let newcomers = || self.remotes.iter().filter(|r| r.wanted && !r.of_record);
            if newcomers().any(|r| !r.ready || self.bulk_missing(r)) {
                let bulk =
                    |r: &Remote<H>| r.wanted && !r.of_record && r.is_idle() && self.bulk_missing(r);
                if let Some(at) = self.remotes.iter().position(bulk) {
                    return Some(Action::Post(self.post_to(at)));
                }
                return self.send_what_is_new(now_ns); // H3
            }
            // Quiesce: from here on nothing is posted to the old holders.
            if self.record().any(|r| !r.posted.is_empty()) {
                return None;
            }
        }
        (0..self.remotes.len()).find_map(|at| self.final_copy(at))
    }

    fn send_what_is_new(&self, now_ns: u64) -> Option<Action<H>> {
        let is_due = |r: &Remote<H>| {
            let urgent = self.urgent_up_to > r.newest_sent();
            let due = r.unsent_since_ns.is_some_and(|at| now_ns >= at + self.measures.pace_ns);
            let room = r.posted.len() < self.measures.slots - 1;
            r.of_record && r.ready && self.unsent(r) && room && (urgent || due)
        };
        self.remotes.iter().position(is_due).map(|at| Action::Post(self.post_to(at)))
    }

    /// Nothing is acknowledged while this runs: bring a holder up to at least everything that was
    /// ever acknowledged, then mark it.
    fn final_copy(&self, at: usize) -> Option<Action<H>> {
        let remote = &self.remotes[at];
        if !remote.wanted || !remote.is_idle() || remote.mark >= self.mark_due() {
            return None;
        }
        // `mirrored` knows the acknowledgements of this life; those of an earlier one are covered
        // by the first copy, which is of the newest version that the region holds.
        if self.bulk_missing(remote) || remote.newest() < self.mirrored {
            return Some(Action::Post(self.post_to(at)));
        }
        Some(Action::PostMark { at, view: self.view })
    }

    /// The oldest mark that will do for a wanted holder.
    fn mark_due(&self) -> u64 {
        self.floor.max(self.since).max(1)
    }

    fn bulk_missing(&self, remote: &Remote<H>) -> bool {
        self.newest.version > 0 && !remote.copied
    }

    fn unsent(&self, remote: &Remote<H>) -> bool {
        remote.newest_sent() < self.newest.version
    }

    fn post_to(&self, at: usize) -> Post {
        let Newest { version, slot, len } = self.newest;
        Post { at, version, len, from: slot, to: self.remotes[at].target() }
    }
}
