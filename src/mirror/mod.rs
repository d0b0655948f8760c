//! Keeping the copies: which version goes to which holder's which slot, when a completion counts as
//! `mirrored`, and how the copies move when the predecessors change. Pure.
//!
//! One [`Mirror`] belongs to one owned checkpoint and keeps K copies of it. It is told what happens
//! (`submitted`, `prepared`, `completed`, `lost`, `view_installed`) and asked what to do next
//! ([`Mirror::next`]). A holder is *wanted* while it is one of the K nearest predecessors, and *of
//! record* while its completions count. The rules have the names of `docs/protocol.md`:
//!
//! * **H1** A version is `mirrored` once every holder of record has completed it. They are K, all
//!   in the current view's ring, and the sync mark of each is at or above the floor.
//! * **H2** When the wanted holders are others than those of record, the new ones get a copy first,
//!   while commits go on to the old ones. Then commits are held back, what is missing is copied,
//!   each wanted holder gets the mark (posting the first raises the floor at once, since it may
//!   land late), and with the last of them they become the holders of record.
//! * **H3** Until then the holders of record, while all of them are members, keep acknowledging.
//! * **I5** At each holder the slot of the newest completed version is never a target.
//! * A remote slot whose write was cut off is unknown, and is written in full next time.

mod plan;
mod remote;

use self::remote::{Posted, Remote};
use crate::commit::{Stale, Version};

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action<H> {
    /// Have this holder make a mirror region and a connection; answer with [`Mirror::prepared`].
    Prepare(H),
    /// Post the newest version to a holder; answer with [`Mirror::posted`], or ask again later when
    /// its slot is being overwritten or the queue is full.
    Post(Post),
    /// Post the sync mark of this view to a holder; answer with [`Mirror::mark_posted`].
    PostMark {
        /// To which holder, as in [`Post::at`].
        at: usize,
        /// The view that the mark names.
        view: u64,
    },
    /// Nothing is sent to this holder any more. `confirmed` when newer copies are complete, so that
    /// the holder may let its own go (rule H4: evicted alone is not erased).
    Release {
        /// The holder.
        holder: H,
        /// The copies that replace it are complete.
        confirmed: bool,
    },
    /// All copies were synced for this view: holders of older views need not be asked in a recovery.
    Synced {
        /// Who has them.
        holders: Vec<H>,
        /// The oldest view among their marks.
        view: u64,
    },
}

/// One version on its way to one slot of one holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Post {
    /// To which holder: good for [`Mirror::holder_at`] until the mirror is told anything else.
    pub at: usize,
    /// The version.
    pub version: Version,
    /// Payload length in bytes.
    pub len: u64,
    /// The local slot that holds it.
    pub from: usize,
    /// The remote slot that takes it.
    pub to: usize,
}

/// What stays the same for one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Measures {
    /// How many holders keep a copy: K of the rules.
    pub copies: usize,
    /// How many slots a region has.
    pub slots: usize,
    /// Largest payload in bytes.
    pub capacity: u64,
    /// How long versions that nobody waits for are collected before the newest one is sent.
    pub pace_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Newest {
    version: Version,
    slot: usize,
    len: u64,
}

/// How well a checkpoint is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// There is nobody to hold a copy.
    None,
    /// Copies are being made, or fewer holders are there than are wanted.
    Syncing,
    /// The copies are there and the newest version is on its way.
    Lagging,
    /// The newest version is on as many nodes as are wanted.
    InSync,
}

/// One holder's copy, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyAt<'a, H> {
    /// Who has it.
    pub holder: &'a H,
    /// The newest version that is complete there.
    pub version: Version,
    /// Its completions count.
    pub of_record: bool,
    /// How it is, looked at alone.
    pub state: Protection,
}

/// The copies of one owned checkpoint, as its owner sees them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mirror<H> {
    measures: Measures,
    newest: Newest,
    urgent_up_to: Version,
    view: u64,
    /// The view since which the wanted holders have been that without a break.
    since: u64,
    /// The wanted holders, the nearest first, and others that are still of record.
    remotes: Vec<Remote<H>>,
    /// Marks of older views do not count.
    floor: u64,
    mirrored: Version,
    released: Vec<(H, bool)>,
    synced: bool,
}

impl<H: Clone + Eq> Mirror<H> {
    /// A checkpoint without any copy yet.
    pub fn new(measures: Measures) -> Self {
        Self {
            measures,
            newest: Newest { version: 0, slot: 0, len: 0 },
            urgent_up_to: 0,
            view: 0,
            since: 0,
            remotes: Vec::new(),
            floor: 0,
            mirrored: 0,
            released: Vec::new(),
            synced: false,
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

    /// How well the checkpoint is protected now.
    pub fn protection(&self) -> Protection {
        if self.remotes.is_empty() {
            Protection::None
        } else if !self.record_works() {
            Protection::Syncing
        } else if self.mirrored < self.newest.version {
            Protection::Lagging
        } else {
            Protection::InSync
        }
    }

    /// The copies of record and those that are being made, the nearest wanted first.
    pub fn copies(&self) -> impl Iterator<Item = CopyAt<'_, H>> {
        self.remotes.iter().map(|r| CopyAt {
            holder: &r.holder,
            version: r.newest(),
            of_record: r.of_record,
            state: if !r.ready || !r.of_record || r.mark < self.floor {
                Protection::Syncing
            } else if r.newest() < self.newest.version {
                Protection::Lagging
            } else {
                Protection::InSync
            },
        })
    }

    /// The owner installed a view. `predecessors` are the K nearest, or fewer in a small ring, the
    /// nearest first; `since` is the view since which they have been that without a break;
    /// `in_ring` tells who is a member.
    pub fn view_installed(
        &mut self,
        view: u64,
        since: u64,
        predecessors: &[H],
        in_ring: impl Fn(&H) -> bool,
    ) {
        (self.view, self.since) = (view, since);
        // H1: who is not in the ring acknowledges nothing, and it takes all of them. H4: what they
        // have is not erased.
        if self.record().any(|r| !in_ring(&r.holder)) {
            self.remotes.iter_mut().for_each(|r| r.of_record = false);
        }
        let mut others = std::mem::take(&mut self.remotes);
        for holder in predecessors {
            let known = others.iter().position(|r| r.holder == *holder);
            self.remotes.push(match known {
                Some(at) => others.remove(at),
                None => Remote::new(holder.clone(), &self.measures),
            });
        }
        self.remotes.iter_mut().for_each(|r| r.wanted = true);
        others.iter_mut().for_each(|r| r.wanted = false);
        self.remotes.append(&mut others);
        // A sync towards somebody who is not wanted any more is abandoned; its mark may still land,
        // which is why the floor stays where the mark raised it.
        self.release_needless(false);
    }

    /// The service committed a version into a local slot. `changed` is what changed since the
    /// version submitted before; `urgent` when somebody waits for it to be mirrored.
    pub fn submitted(
        &mut self,
        now_ns: u64,
        version: Version,
        slot: usize,
        len: u64,
        changed: &Stale,
        urgent: bool,
    ) {
        for remote in &mut self.remotes {
            remote.changed(changed, now_ns);
        }
        self.newest = Newest { version, slot, len };
        if urgent {
            self.urgent_up_to = version;
        }
    }

    /// The holder is ready: connection up, key granted. `region` names the holder's memory: the
    /// same number as before means that it still holds what was completed there. `versions` is
    /// what its slots hold by its own word.
    pub fn prepared(&mut self, holder: &H, region: u64, versions: &[Version]) {
        let Some(at) = self.position(holder) else { return }; // an answer to an older question
        let remote = &mut self.remotes[at];
        if remote.ready_again(region, versions) {
            // Its mark is gone with its memory: it must be synced anew before it counts.
            remote.of_record = false;
            self.release_needless(false);
        }
    }

    /// The holder cannot be reached, or refused. It is asked again by [`Action::Prepare`].
    pub fn lost(&mut self, holder: &H) {
        if let Some(at) = self.position(holder) {
            self.remotes[at].lost();
        }
    }

    /// The holder that an action is for, for finding its connection.
    pub fn holder_at(&self, at: usize) -> &H {
        &self.remotes[at].holder
    }

    /// What of the remote slot must be written for this post.
    pub fn stale(&self, post: &Post) -> &Stale {
        self.remotes[post.at].stale(post.to)
    }

    /// The post is on its way as work request `work`.
    pub fn posted(&mut self, post: &Post, work: u64) {
        let posted = Posted::Version { work, version: post.version, to: post.to };
        self.remotes[post.at].posted(posted);
    }

    /// The mark is on its way as work request `work`. The floor is raised here and now: whether
    /// the mark lands or not, no copy synced for an older view acknowledges any more.
    pub fn mark_posted(&mut self, at: usize, view: u64, work: u64) {
        self.floor = self.floor.max(view);
        self.remotes[at].posted(Posted::Mark { work, view });
    }

    /// A work request is done. True when [`Mirror::mirrored`] advanced.
    pub fn completed(&mut self, work: u64, ok: bool) -> bool {
        let Some((at, posted)) = self.take_posted(work) else { return false };
        let remote = &mut self.remotes[at];
        if !ok {
            remote.failed(posted);
            return false;
        }
        match posted {
            Posted::Version { version, to, .. } => remote.holds(version, to),
            Posted::Mark { view, .. } => {
                debug_assert!(view <= self.view, "marks are of views that the owner installed");
                remote.mark = view;
                self.switch_if_complete();
            }
        }
        let before = self.mirrored;
        if self.record_counts() {
            let by_all = self.record().map(Remote::newest).min().unwrap_or(0);
            self.mirrored = before.max(by_all);
        }
        self.mirrored > before
    }

    /// The version that a work request carries, if it is one of this mirror's and no mark.
    pub fn version_of(&self, work: u64) -> Option<Version> {
        self.remotes.iter().flat_map(|r| &r.posted).find_map(|posted| match *posted {
            Posted::Version { work: w, version, .. } if w == work => Some(version),
            _ => None,
        })
    }

    /// A work request was completed, but its source was overwritten while it was read: the remote
    /// slot holds nothing known. Nothing is wrong with the connection.
    pub fn spoiled(&mut self, now_ns: u64, work: u64) {
        if let Some((at, posted)) = self.take_posted(work) {
            self.remotes[at].spoil(posted);
            self.remotes[at].unsent_since_ns = Some(now_ns);
        }
    }

    /// Once every wanted holder is marked they are the holders of record, and the others go.
    fn switch_if_complete(&mut self) {
        if !self.is_complete() {
            return;
        }
        for remote in &mut self.remotes {
            remote.of_record = remote.wanted;
        }
        let full = self.record_counts();
        self.release_needless(full);
        // With fewer holders than wanted the older copies are worth keeping: nothing that they do
        // not have can be acknowledged until there are K again.
        self.synced = full;
    }

    fn release_needless(&mut self, confirmed: bool) {
        let needless = self.remotes.extract_if(.., |r| !r.wanted && !r.of_record);
        self.released.extend(needless.map(|r| (r.holder, confirmed)));
    }

    fn record(&self) -> impl Iterator<Item = &Remote<H>> {
        self.remotes.iter().filter(|r| r.of_record)
    }

    /// Rule H1; holders outside the ring are not of record any more.
    fn record_counts(&self) -> bool {
        self.record().count() == self.measures.copies
            && self.record().all(|r| r.mark > 0 && r.mark >= self.floor)
    }

    fn position(&self, holder: &H) -> Option<usize> {
        self.remotes.iter().position(|r| r.holder == *holder)
    }

    fn take_posted(&mut self, work: u64) -> Option<(usize, Posted)> {
        let mut all = self.remotes.iter_mut().enumerate();
        all.find_map(|(at, remote)| Some((at, remote.take_posted(work)?)))
    }
}

#[cfg(test)]
mod tests;
