//! Keeping the second copy: which version goes to which holder's which slot, when a completion
//! counts as `mirrored`, and how the copy moves when the predecessor changes. Pure.
//!
//! One [`Mirror`] belongs to one owned checkpoint. It is told what happens (`submitted`,
//! `prepared`, `completed`, `lost`, `view_installed`) and asked what to do next ([`Mirror::next`]).
//! The rules have the names of `docs/protocol.md`:
//!
//! * **H1** A version is `mirrored` only by a completion from a holder that is in the current
//!   view's ring and whose sync mark is at or above the floor.
//! * **H2** A new predecessor gets a copy first, while commits go on to the old one. Then commits
//!   are held back, what is missing is copied, the mark is posted (which raises the floor at once,
//!   since it may land late), and the new holder becomes the mirror.
//! * **H3** Until then the old holder, while it is a member, keeps acknowledging.
//! * **I5** The remote slot of the last acknowledged version is never a target.
//! * A remote slot whose write was cut off is unknown, and is written in full next time.

mod remote;

use self::remote::{Posted, Remote};
use crate::commit::{Stale, Version};

/// Which of the two remotes an action is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// The mirror whose completions count.
    Record,
    /// The one that is being made because the predecessor changed.
    Next,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<H> {
    /// Have this holder make a mirror region and a connection; answer with [`Mirror::prepared`].
    Prepare(H),
    /// Post the newest version to a remote; answer with [`Mirror::posted`], or
    /// [`Mirror::not_posted`] when its slot is being overwritten or the queue is full.
    Post(Post),
    /// Post the sync mark of this view to a remote; answer with [`Mirror::mark_posted`].
    PostMark {
        /// To which remote.
        which: Which,
        /// The view that the mark names.
        view: u64,
    },
    /// Nothing is sent to this holder any more. `confirmed` when a newer mirror is complete, so
    /// that the holder may let its copy go (rule H4: evicted alone is not erased).
    Release {
        /// The holder.
        holder: H,
        /// A newer copy is complete.
        confirmed: bool,
    },
    /// The mirror at this holder was synced for this view: older holders need not be asked in a
    /// recovery.
    Synced {
        /// The holder.
        holder: H,
        /// The view of its mark.
        view: u64,
    },
}

/// One version on its way to one remote slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Post {
    /// To which remote.
    pub which: Which,
    /// The version.
    pub version: Version,
    /// Payload length in bytes.
    pub len: u64,
    /// The local slot that holds it.
    pub from: usize,
    /// The remote slot that takes it.
    pub to: usize,
}

#[derive(Debug, Clone, Copy)]
struct Newest {
    version: Version,
    slot: usize,
    len: u64,
}

/// How well a checkpoint is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The newest version is on two nodes.
    InSync,
    /// A mirror is there and the newest version is on its way.
    Lagging,
    /// A mirror is being made.
    Syncing,
    /// There is nobody to hold one.
    None,
}

/// The second copy of one owned checkpoint, as its owner sees it.
#[derive(Debug)]
pub struct Mirror<H> {
    slots: usize,
    pace_ns: u64,
    newest: Newest,
    urgent_up_to: Version,
    changed_at_ns: Option<u64>,
    view: u64,
    predecessor: Option<H>,
    /// The view since which it has been the predecessor without a break.
    since: u64,
    record: Option<Remote<H>>,
    next: Option<Remote<H>>,
    floor: u64,
    mirrored: Version,
    released: Vec<(H, bool)>,
    synced: Option<(H, u64)>,
}

impl<H: Clone + Eq> Mirror<H> {
    /// A mirror of a checkpoint with `slots` slots that has no holder yet. Versions that nobody
    /// waits for are collected for `pace_ns` nanoseconds before the newest one is sent.
    pub fn new(slots: usize, pace_ns: u64) -> Self {
        Self {
            slots,
            pace_ns,
            newest: Newest { version: 0, slot: 0, len: 0 },
            urgent_up_to: 0,
            changed_at_ns: None,
            view: 0,
            predecessor: None,
            since: 0,
            record: None,
            next: None,
            floor: 0,
            mirrored: 0,
            released: Vec::new(),
            synced: None,
        }
    }

    /// The newest version that the owner submitted.
    pub fn version(&self) -> Version {
        self.newest.version
    }

    /// All versions up to this one are mirrored.
    pub fn mirrored(&self) -> Version {
        self.mirrored
    }

    /// The holder whose completions count.
    pub fn holder(&self) -> Option<&H> {
        self.record.as_ref().map(|r| &r.holder)
    }

    /// How well the checkpoint is protected now.
    pub fn protection(&self) -> Protection {
        match (&self.record, &self.predecessor) {
            (None, None) => Protection::None,
            (Some(record), _) if record.ready && self.record_counts() => {
                if self.mirrored >= self.newest.version {
                    Protection::InSync
                } else {
                    Protection::Lagging
                }
            }
            _ => Protection::Syncing,
        }
    }

    /// The owner installed a view. The predecessor comes with the view since which it has been that
    /// without a break; `in_ring` tells who is a member.
    pub fn view_installed(
        &mut self,
        view: u64,
        predecessor: Option<(H, u64)>,
        in_ring: impl Fn(&H) -> bool,
    ) {
        self.view = view;
        self.since = predecessor.as_ref().map_or(view, |(_, since)| *since);
        self.predecessor = predecessor.map(|(holder, _)| holder);
        // H1: who is not in the ring acknowledges nothing; H4: what it has is not erased.
        if self.record.as_ref().is_some_and(|r| !in_ring(&r.holder)) {
            self.release_record(false);
        }
        // A sync towards somebody who is not the predecessor any more is abandoned; its mark may
        // still land, which is why the floor stays where the mark raised it.
        if self.next.as_ref().is_some_and(|n| Some(&n.holder) != self.predecessor.as_ref()) {
            self.abandon_next();
        }
    }

    /// The service committed a version into a local slot. `changed` is what changed since the
    /// version submitted before; `urgent` when somebody waits for the mirror.
    pub fn submitted(
        &mut self,
        now_ns: u64,
        version: Version,
        slot: usize,
        len: u64,
        changed: &Stale,
        urgent: bool,
    ) {
        for remote in self.record.iter_mut().chain(&mut self.next) {
            remote.changed(changed);
        }
        self.newest = Newest { version, slot, len };
        self.changed_at_ns.get_or_insert(now_ns);
        if urgent {
            self.urgent_up_to = version;
        }
    }

    /// The holder is ready: connection up, key granted. `region` names the holder's memory: the
    /// same number as before means that it still holds what was completed there. `versions` is
    /// what its slots hold by its own word.
    pub fn prepared(&mut self, holder: &H, region: u64, versions: &[Version]) {
        let lost_memory = match self.remote_of(holder) {
            None => return, // an answer to an older question
            Some(remote) => remote.ready_again(region, versions),
        };
        if lost_memory && self.record.as_ref().is_some_and(|r| &r.holder == holder) {
            // Its mark is gone with its memory: it is a new holder that must be synced anew.
            let remote = self.record.take();
            if self.next.is_none() {
                self.next = remote;
            }
        }
    }

    /// The holder cannot be reached, or refused. It is asked again by [`Action::Prepare`].
    pub fn lost(&mut self, holder: &H) {
        if let Some(remote) = self.remote_of(holder) {
            remote.lost();
        }
    }

    /// What to do next, if anything. Ask again after each answer.
    pub fn next(&mut self, now_ns: u64) -> Option<Action<H>> {
        if let Some((holder, confirmed)) = self.released.pop() {
            return Some(Action::Release { holder, confirmed });
        }
        if let Some((holder, view)) = self.synced.take() {
            return Some(Action::Synced { holder, view });
        }
        let predecessor = self.predecessor.clone()?;
        if self.record.as_ref().is_some_and(|r| r.holder == predecessor) {
            self.steady(now_ns)
        } else {
            self.moving(predecessor, now_ns)
        }
    }

    /// When to ask [`Mirror::next`] again though nothing happened, nanoseconds.
    pub fn deadline_ns(&self) -> Option<u64> {
        let record = self.record.as_ref()?;
        let waiting = record.ready && record.posted.is_empty() && self.unsent(record);
        waiting.then(|| self.changed_at_ns.map(|at| at + self.pace_ns)).flatten()
    }

    /// What of the remote slot must be written for this post.
    pub fn stale(&self, post: &Post) -> &Stale {
        self.which(post.which).expect("a post names a remote that is there").stale(post.to)
    }

    /// The post is on its way as work request `work`.
    pub fn posted(&mut self, post: &Post, work: u64) {
        if post.which == Which::Record {
            self.changed_at_ns = None;
        }
        let remote = self.which_mut(post.which).expect("a post names a remote that is there");
        remote.posted(Posted::Version { work, version: post.version, to: post.to });
    }

    /// The post could not be made now. Whatever stood in its way ends with another event.
    pub fn not_posted(&mut self, now_ns: u64) {
        self.changed_at_ns = Some(now_ns);
    }

    /// The mark is on its way as work request `work`. The floor is raised here and now: whether
    /// the mark lands or not, no mirror synced for an older view acknowledges any more.
    pub fn mark_posted(&mut self, which: Which, view: u64, work: u64) {
        self.floor = self.floor.max(view);
        if let Some(remote) = self.which_mut(which) {
            remote.posted(Posted::Mark { work, view });
        }
    }

    /// A work request is done. True when [`Mirror::mirrored`] advanced.
    pub fn completed(&mut self, work: u64, ok: bool) -> bool {
        let Some((which, posted)) = self.take_posted(work) else { return false };
        let before = self.mirrored;
        let view = self.view;
        let remote = self.which_mut(which).expect("it had the work request");
        if !ok {
            remote.failed(posted);
            return false;
        }
        match posted {
            Posted::Version { version, to, .. } => remote.holds(version, to),
            Posted::Mark { view: mark, .. } => {
                remote.mark = mark;
                let holder = remote.holder.clone();
                self.synced = Some((holder, mark));
                if which == Which::Next {
                    self.switch();
                }
            }
        }
        debug_assert!(self.record.as_ref().is_none_or(|r| r.mark <= view));
        if self.record_counts()
            && let Some(record) = &self.record
        {
            self.mirrored = self.mirrored.max(record.newest());
        }
        self.mirrored > before
    }

    /// The version that a work request carries, if it is one of this mirror's and no mark.
    pub fn version_of(&self, work: u64) -> Option<Version> {
        let remotes = self.record.iter().chain(&self.next);
        remotes.flat_map(|r| &r.posted).find_map(|posted| match *posted {
            Posted::Version { work: w, version, .. } if w == work => Some(version),
            _ => None,
        })
    }

    /// A work request was completed, but its source was overwritten while it was read: the remote
    /// slot holds nothing known. Nothing is wrong with the connection.
    pub fn spoiled(&mut self, work: u64) {
        if let Some((which, posted)) = self.take_posted(work)
            && let Some(remote) = self.which_mut(which)
        {
            remote.spoil(posted);
        }
    }

    /// The predecessor is the mirror of record: mark it again if need be, else send what is new.
    fn steady(&mut self, now_ns: u64) -> Option<Action<H>> {
        let record = self.record.as_mut()?;
        if !record.ready {
            return record.ask().map(Action::Prepare);
        }
        if record.mark < self.floor.max(self.since) {
            // A mark was posted elsewhere meanwhile: this mirror counts again only once it is
            // synced for the present view. Or somebody else was the predecessor meanwhile and never
            // got that far: without a new mark here, a recovery that cannot ask that one would have
            // to take it for the holder of something newer (H5).
            return self.final_copy(Which::Record);
        }
        self.send_what_is_new(now_ns)
    }

    /// Another holder must become the mirror.
    fn moving(&mut self, to: H, now_ns: u64) -> Option<Action<H>> {
        let next = self.next.get_or_insert_with(|| Remote::new(to, self.slots));
        if let Some(holder) = next.ask() {
            return Some(Action::Prepare(holder));
        }
        let ready = next.ready;
        let bulk_missing = self.newest.version > 0 && !next.copied;
        let bulk_under_way = !next.posted.is_empty();
        if self.record_counts() && self.record.as_ref().is_some_and(|r| r.ready) {
            if ready && bulk_missing && !bulk_under_way {
                return Some(Action::Post(self.make_post(Which::Next)));
            }
            if !ready || bulk_missing {
                return self.send_what_is_new(now_ns); // H3
            }
            // Quiesce: from here on nothing is posted to the old holder.
            if self.record.as_ref().is_some_and(|r| !r.posted.is_empty()) {
                return None;
            }
        }
        if ready {
            return self.final_copy(Which::Next);
        }
        // Neither works: take whichever comes back first.
        self.record.as_mut()?.ask().map(Action::Prepare)
    }

    fn send_what_is_new(&self, now_ns: u64) -> Option<Action<H>> {
        let record = self.record.as_ref()?;
        let urgent = self.urgent_up_to > record.newest_sent();
        let due = self.changed_at_ns.is_some_and(|at| now_ns >= at + self.pace_ns);
        let room = record.posted.len() < self.slots - 1;
        (self.unsent(record) && room && (urgent || due))
            .then(|| Action::Post(self.make_post(Which::Record)))
    }

    /// Nothing is acknowledged while this runs: bring the remote up to at least everything that
    /// was ever acknowledged, then mark it.
    fn final_copy(&mut self, which: Which) -> Option<Action<H>> {
        let remote = self.which(which)?;
        if !remote.posted.is_empty() {
            return None;
        }
        // `mirrored` knows the acknowledgements of this life; those of an earlier one are covered
        // by the first copy, which is of the newest version that the region holds.
        let behind = !remote.copied || remote.newest() < self.mirrored;
        if self.newest.version > 0 && behind {
            return Some(Action::Post(self.make_post(which)));
        }
        Some(Action::PostMark { which, view: self.view })
    }

    fn switch(&mut self) {
        self.release_record(true);
        self.record = self.next.take();
        self.changed_at_ns = None;
        if let Some(record) = &self.record
            && record.newest() < self.newest.version
        {
            self.changed_at_ns = Some(0);
        }
    }

    fn release_record(&mut self, confirmed: bool) {
        if let Some(old) = self.record.take() {
            self.released.push((old.holder, confirmed));
        }
    }

    fn abandon_next(&mut self) {
        if let Some(next) = self.next.take()
            && self.record.as_ref().is_none_or(|r| r.holder != next.holder)
        {
            self.released.push((next.holder, false));
        }
    }

    /// Rule H1; a holder outside the ring is no record any more.
    fn record_counts(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.mark > 0 && r.mark >= self.floor)
    }

    fn unsent(&self, remote: &Remote<H>) -> bool {
        remote.newest_sent() < self.newest.version
    }

    fn make_post(&self, which: Which) -> Post {
        let Newest { version, slot, len } = self.newest;
        let to = self.which(which).map_or(0, Remote::target);
        Post { which, version, len, from: slot, to }
    }

    fn which(&self, which: Which) -> Option<&Remote<H>> {
        match which {
            Which::Record => self.record.as_ref(),
            Which::Next => self.next.as_ref(),
        }
    }

    fn which_mut(&mut self, which: Which) -> Option<&mut Remote<H>> {
        match which {
            Which::Record => self.record.as_mut(),
            Which::Next => self.next.as_mut(),
        }
    }

    /// The holder of a remote, for finding its connection.
    pub fn holder_of(&self, which: Which) -> Option<&H> {
        self.which(which).map(|r| &r.holder)
    }

    fn remote_of(&mut self, holder: &H) -> Option<&mut Remote<H>> {
        self.next.iter_mut().chain(&mut self.record).find(|r| &r.holder == holder)
    }

    fn take_posted(&mut self, work: u64) -> Option<(Which, Posted)> {
        for which in [Which::Record, Which::Next] {
            if let Some(remote) = self.which_mut(which)
                && let Some(posted) = remote.take_posted(work)
            {
                return Some((which, posted));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
