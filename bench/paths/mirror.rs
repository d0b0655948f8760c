//! What the owner's server thinks about one commit: from the submission to `mirrored`.

use std::hint::black_box;

use ringkeep::{
    commit::{SEGMENTS_PER_VERSION_MAX, Stale, segments},
    membership::NodeId,
    mirror::{Action, Measures, Mirror},
    name::Name,
    region::layout::Layout,
    transport::Segment,
};

use super::Path;

const LEN: u64 = 1 << 20;
const SLOTS: usize = 2;

/// One version of which three pieces changed, with a transport that does everything at once.
pub(crate) struct MirroredCommit {
    mirror: Mirror<NodeId>,
    layout: Layout,
    changed: Stale,
    segments: Vec<Segment>,
    version: u64,
    work: u64,
}

impl MirroredCommit {
    /// A checkpoint whose only copy is complete.
    pub(crate) fn new() -> Self {
        let holder = NodeId { name: Name::new("b").unwrap(), incarnation: 1 };
        let mut changed = Stale::nothing(LEN);
        [0, 300_000, 900_000].into_iter().for_each(|at| changed.insert(at, at + 64));
        let mut commit = Self {
            mirror: Mirror::new(Measures { copies: 1, slots: SLOTS, capacity: LEN, pace_ns: 0 }),
            layout: Layout::new(LEN, SLOTS as u32).unwrap(),
            changed,
            segments: Vec::with_capacity(SEGMENTS_PER_VERSION_MAX),
            version: 0,
            work: 0,
        };
        commit.mirror.view_installed(1, 1, &[holder], |_| true);
        // Until nothing of what the copy's slots hold is unknown.
        (0..=SLOTS).for_each(|_| commit.step());
        commit
    }

    fn follow(&mut self) {
        while let Some(action) = self.mirror.next(0) {
            self.work += 1;
            match action {
                Action::Prepare(holder) => self.mirror.prepared(&holder, 1, &[0; SLOTS]),
                Action::Post(post) => {
                    let stale = self.mirror.stale(&post);
                    let (layout, into) = (&self.layout, &mut self.segments);
                    segments(layout, post.from, post.to, post.len, stale, into);
                    black_box(&self.segments);
                    self.mirror.posted(&post, self.work);
                    self.mirror.completed(self.work, true);
                }
                Action::PostMark { at, view } => {
                    self.mirror.mark_posted(at, view, self.work);
                    self.mirror.completed(self.work, true);
                }
                Action::Release { .. } | Action::Synced { .. } => {}
            }
        }
    }
}

impl Path for MirroredCommit {
    fn step(&mut self) {
        self.version += 1;
        let slot = self.version as usize % SLOTS;
        self.mirror.submitted(0, self.version, slot, LEN, &self.changed, true);
        self.follow();
    }

    fn settle(&mut self) {
        assert_eq!(self.mirror.mirrored(), self.version);
        assert_eq!(self.segments.len(), 7, "three pieces, their checksums, the record");
    }
}
