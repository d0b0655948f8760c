//! One owned checkpoint on the data plane.

use std::collections::HashMap;

use super::{Attachment, Committed, CopyReport, Report, copies::Copies};
use crate::{
    commit::Stale,
    handover::{Condition, Consumer, ENTRIES, Submission, Violation},
    membership::NodeId,
    mirror::{Measures, Mirror, Post, Protection},
    name::Name,
    region::Region,
    transport::{ConnId, Kind, MemoryId, RemoteKey, WorkId},
};

/// Marks have no slot to pin.
const NO_SLOT: usize = 15;

/// A work request of a mirror, packed into the number that the completion brings back: which
/// checkpoint, which pinned slot, and a count that is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MirrorWork {
    pub(super) index: usize,
    pub(super) slot: Option<usize>,
    pub(super) id: WorkId,
}

impl MirrorWork {
    const INDEX_SHIFT: u32 = 40;
    const SLOT_SHIFT: u32 = 36;
    /// Largest number of checkpoints of one server.
    pub(super) const INDEX_MAX: usize = (1 << 23) - 1;

    pub(super) fn new(index: usize, slot: Option<usize>, count: u64) -> Self {
        let count = count & ((1 << Self::SLOT_SHIFT) - 1);
        let id = (index as u64) << Self::INDEX_SHIFT
            | (slot.unwrap_or(NO_SLOT) as u64) << Self::SLOT_SHIFT
            | count;
        Self { index, slot, id: WorkId(id) }
    }

    /// `None` for work of another kind.
    pub(super) fn unpack(id: WorkId) -> Option<Self> {
        let index = (id.0 >> Self::INDEX_SHIFT) as usize;
        let slot = (id.0 >> Self::SLOT_SHIFT & 15) as usize;
        (index <= Self::INDEX_MAX).then_some(Self {
            index,
            slot: (slot != NO_SLOT).then_some(slot),
            id,
        })
    }
}

/// What a holder granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) key: RemoteKey,
    /// Which of its two places takes the next sync mark: not the one of the last that is complete.
    pub(super) mark_to: usize,
}

pub(super) struct Owned {
    pub(super) name: Name,
    pub(super) region: Region,
    pub(super) memory: MemoryId,
    pub(super) epoch: u64,
    pub(super) mirror: Mirror<NodeId>,
    pub(super) keys: HashMap<NodeId, Granted>,
    /// Posted and not completed.
    pub(super) outstanding: usize,
    pub(super) copies: Copies,
    pub(super) attachment: Option<Attachment>,
    /// Someone waits for this checkpoint to be let go.
    pub(super) leaving: Option<super::Reply<()>>,
    /// The region's file was cut off, and the control plane was told: there is nothing to mirror.
    pub(super) cut: bool,
    pins: [u16; 8],
    submission: Submission,
}

impl Owned {
    pub(super) fn new(
        name: Name,
        region: Region,
        memory: MemoryId,
        epoch: u64,
        copies: usize,
        pace_ns: u64,
    ) -> Self {
        let (slots, capacity) = (region.layout().slots(), region.layout().capacity());
        let mirror = Mirror::new(Measures { copies, slots, capacity, pace_ns });
        Self {
            name,
            region,
            memory,
            epoch,
            mirror,
            keys: HashMap::new(),
            outstanding: 0,
            copies: Copies::default(),
            attachment: None,
            leaving: None,
            cut: false,
            pins: [0; 8],
            submission: Submission::new(capacity),
        }
    }

    /// A version whose changes are not known.
    pub(super) fn found(&mut self, now_ns: u64, newest: Committed) {
        let Committed { version, slot, len } = newest;
        if version > self.mirror.version() {
            let everything = Stale::everything(self.region.layout().capacity());
            self.mirror.submitted(now_ns, version, slot, len, &everything, false);
        }
    }

    /// Takes over what the client submitted, so much of it as its ring holds: a client that goes on
    /// submitting is asked again when others had their turn. True when there was anything.
    pub(super) fn take_submissions(&mut self, now_ns: u64) -> Result<bool, Violation> {
        let Some(attachment) = &mut self.attachment else { return Ok(false) };
        let mut any = false;
        for _ in 0..ENTRIES {
            if !attachment.consumer.next(&mut self.submission)? {
                break;
            }
            let Submission { version, slot, len, changed, urgent } = &self.submission;
            any = true;
            // A client that attached again submits its newest version once more.
            if *version >= self.mirror.version() {
                self.mirror.submitted(now_ns, *version, *slot, *len, changed, *urgent);
            }
        }
        Ok(any)
    }

    /// The client is gone or sent away: what it committed last counts, also when it did not live
    /// to submit it.
    pub(super) fn detach(&mut self, now_ns: u64, condition: Option<Condition>) {
        if let Err(violation) = self.take_submissions(now_ns) {
            tracing::warn!(checkpoint = %self.name, %violation, "the client left nonsense behind");
        }
        if let (Some(attachment), Some(condition)) = (self.attachment.take(), condition) {
            attachment.tell(condition);
        }
        if let Some(found) = self.region.newest_by_record() {
            let (version, len) = (found.record.sequence, found.record.len);
            self.found(now_ns, Committed { version, slot: found.slot, len });
        }
    }

    /// The client may have begun already, and waits for what is mirrored, or overwrites a slot that
    /// is being read: then the commit word tells it when the reading is done.
    pub(super) fn attach(&mut self, attachment: Attachment) {
        for slot in (0..8).filter(|&s| self.pins[s] > 0) {
            attachment.consumer.pin(slot);
        }
        let asleep = attachment.consumer.set_mirrored(self.mirror.mirrored());
        self.attachment = Some(attachment);
        self.wake_client(asleep);
    }

    pub(super) fn consumer(&self) -> Option<&Consumer> {
        self.attachment.as_ref().map(|a| &a.consumer)
    }

    /// Keeps the client from overwriting a slot that is about to be read. False when it is being
    /// overwritten already.
    pub(super) fn pin(&mut self, slot: usize) -> bool {
        if self.pins[slot] == 0 && self.consumer().is_some_and(|c| !c.pin(slot)) {
            return false;
        }
        self.pins[slot] += 1;
        true
    }

    pub(super) fn unpin(&mut self, slot: usize) {
        let asleep = self.release(slot);
        self.wake_client(asleep);
    }

    /// True when a client that waits for the slot may be asleep.
    fn release(&mut self, slot: usize) -> bool {
        self.pins[slot] = self.pins[slot].saturating_sub(1);
        self.pins[slot] == 0 && self.consumer().is_some_and(|c| c.unpin(slot))
    }

    /// A work request that read this slot is done; `advanced` when more is mirrored now.
    pub(super) fn work_done(&mut self, slot: Option<usize>, advanced: bool) {
        let mut asleep = slot.is_some_and(|slot| self.release(slot));
        if let (true, Some(attachment)) = (advanced, &self.attachment) {
            asleep = attachment.consumer.set_mirrored(self.mirror.mirrored());
        }
        self.wake_client(asleep);
    }

    fn wake_client(&self, asleep: bool) {
        if let (true, Some(attachment)) = (asleep, &self.attachment) {
            attachment.bell.ring();
        }
    }

    /// The newest committed version.
    pub(super) fn newest(&self) -> Option<Committed> {
        let found = self.region.newest_by_record()?;
        let (version, len) = (found.record.sequence, found.record.len);
        Some(Committed { version, slot: found.slot, len })
    }

    /// Whether a post makes a holder's copy, and is not a commit that a complete one follows.
    pub(super) fn makes_copy(&self, post: &Post) -> bool {
        let holder = self.mirror.holder_at(post.at);
        let mut others = self.mirror.copies().filter(|copy| !copy.of_record);
        self.mirror.protection() == Protection::Syncing || others.any(|c| c.holder == holder)
    }

    pub(super) fn report(
        &self,
        reached_by: impl Fn(&NodeId) -> Option<Kind>,
        taken: impl Fn(ConnId, WorkId) -> u64,
    ) -> Report {
        let newest = self.newest();
        Report {
            name: self.name.clone(),
            // What a client that was sent away commits is not this server's any more.
            version: match &self.attachment {
                Some(_) => newest.map_or(0, |n| n.version),
                None => self.mirror.version(),
            },
            len: newest.map_or(0, |n| n.len),
            mirrored: self.mirror.mirrored(),
            copies: self
                .mirror
                .copies()
                .map(|copy| CopyReport {
                    holder: copy.holder.clone(),
                    version: copy.version,
                    transport: reached_by(copy.holder),
                    of_record: copy.of_record,
                    state: copy.state,
                })
                .collect(),
            protection: self.mirror.protection(),
            attached: self.attachment.is_some(),
            under_way: self.copies.report(taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_number_says_whose_it_is() {
        for (index, slot) in [(0, Some(0)), (77, None), (MirrorWork::INDEX_MAX, Some(7))] {
            let work = MirrorWork::new(index, slot, u64::MAX);
            assert_eq!(MirrorWork::unpack(work.id), Some(work));
        }
        assert_eq!(MirrorWork::unpack(WorkId(u64::MAX)), None);
    }
}
