//! The shared-memory hand-over between a service and its local server.
//!
//! One small memory file per attachment, made by the server, mapped by both. The client tells which
//! versions it committed and what changed in each; the server tells up to which version all is
//! mirrored, which slots it is reading, and whether the writer is still the owner. There is no
//! queue of completions: "mirrored up to version n" is one word. Drawn in `docs/layout.md`.
//!
//! **Who sleeps.** Each side has a flag that says that it is asleep, and a [`Bell`] that wakes it. A
//! side that hands something over rings only when the flag is up, so that two sides that are awake
//! make no system call. Flag and content are ordered by sequentially consistent
//! fences: whoever goes to sleep raises the flag and looks again; whoever hands over stores and
//! then looks at the flag; one of the two sees the other.
//!
//! **Who trusts whom.** The server takes nothing from this memory on trust: its own copies of the
//! indices count, every descriptor is copied out once and validated. A client that writes garbage
//! here is detached and has spoiled its own checkpoint only.

mod bell;

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

pub use bell::Bell;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::{
    commit::{Extent, Parts, RANGES_MAX, Stale, VERSION_MAX, Version, words_of},
    region::{layout::Layout, mapping::Mapping},
};

// What one side writes and the other waits for has a cache line of its own. What the server says
// shares one: whoever reads a word of it mostly wants the others, too. Two lines are fetched at once.
const SUBMITTED_AT: u64 = 0;
const WRITING_AT: u64 = 128;
const CLIENT_ASLEEP_AT: u64 = 132;
const CONSUMED_AT: u64 = 256;
const MIRRORED_AT: u64 = 264;
const PINNED_AT: u64 = 272;
const CONDITION_AT: u64 = 276;
const SERVER_ASLEEP_AT: u64 = 280;
const ENTRIES_AT: u64 = 4096;
const ENTRY_BYTES: usize = 1024;
const ENTRY_HEAD_BYTES: usize = 64;

/// Submissions that can wait for the server.
pub const ENTRIES: u64 = 16;
const _: () = assert!(ENTRY_HEAD_BYTES + 16 * RANGES_MAX == ENTRY_BYTES);
/// In place of the number of ranges: all changed.
const EVERYTHING: u32 = u32::MAX;
/// In place of the number of ranges: the map of blocks says it.
const BLOCKS: u32 = u32::MAX - 1;

/// Bytes of the hand-over file for a region with this layout.
pub fn bytes_for(layout: &Layout) -> u64 {
    ENTRIES_AT + ENTRIES * Entries::of(layout).bytes
}

/// Where submissions lie. Each has a head, ranges, and behind them room for a map of blocks.
#[derive(Debug, Clone, Copy)]
struct Entries {
    /// Bytes of one.
    bytes: u64,
    /// Words of its map.
    words: u64,
}

impl Entries {
    fn of(layout: &Layout) -> Self {
        let words = words_of(layout.capacity()) as u64;
        Self { bytes: ENTRY_BYTES as u64 + (8 * words).next_multiple_of(64), words }
    }

    fn at(&self, index: u64) -> u64 {
        ENTRIES_AT + (index % ENTRIES) * self.bytes
    }

    /// Where the words of the map lie in the entry that begins at `entry`.
    fn map(&self, entry: u64) -> impl Iterator<Item = u64> + use<> {
        let begin = entry + ENTRY_BYTES as u64;
        (0..self.words).map(move |word| begin + 8 * word)
    }
}

/// What the server says of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// All is well.
    Owner,
    /// Somebody else owns the checkpoint now; nothing written here counts any more.
    Fenced,
    /// The checkpoint was removed.
    Removed,
    /// The server found nonsense in this memory and let the client go.
    Violation,
    /// The server is stopping; attach again when it is back.
    Stopping,
}

impl Condition {
    fn code(self) -> u32 {
        match self {
            Self::Owner => 0,
            Self::Fenced => 1,
            Self::Removed => 2,
            Self::Violation => 3,
            Self::Stopping => 4,
        }
    }

    fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Owner,
            1 => Self::Fenced,
            2 => Self::Removed,
            3 => Self::Violation,
            _ => Self::Stopping,
        }
    }
}

/// One committed version, as the client tells it and the server believes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// The version.
    pub version: Version,
    /// The slot that holds it.
    pub slot: usize,
    /// Its payload length in bytes.
    pub len: u64,
    /// What changed since the version submitted before.
    pub changed: Stale,
    /// A client waits for the mirror: do not collect more first.
    pub urgent: bool,
}

impl Submission {
    /// A place for submissions of a payload of up to `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self { version: 0, slot: 0, len: 0, changed: Stale::nothing(capacity), urgent: false }
    }
}

/// Nonsense found in the memory of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The producer index is more than the ring ahead, or went back.
    #[error("the submission index {submitted} does not follow {consumed}")]
    Index {
        /// What the client claims to have submitted.
        submitted: u64,
        /// What the server has consumed.
        consumed: u64,
    },
    /// A version that does not follow the one before.
    #[error("version {found} does not follow {last}")]
    Version {
        /// The version submitted.
        found: Version,
        /// The version submitted before.
        last: Version,
    },
    /// A slot or length outside the region, or ranges that are no ranges.
    #[error("a submission that does not fit the region")]
    Shape,
    /// Not in this memory, but as bad: the region's file is shorter than it was made.
    #[error("the region's file was cut off")]
    Cut,
}

/// The mapped hand-over memory.
#[derive(Debug, Clone)]
struct Shared(Arc<Mapping>);

impl Shared {
    fn word(&self, at: u64) -> &AtomicU64 {
        self.0.atomic_u64(at)
    }

    fn flag(&self, at: u64) -> &AtomicU32 {
        self.0.atomic_u32(at)
    }
}

/// Makes a fresh hand-over file, for a region with this layout, whose size nobody can change.
pub fn create(layout: &Layout) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("ringkeep-handover", flags)?;
    ftruncate(&fd, bytes_for(layout))?;
    // A client that shrank the file would make the server's next look a SIGBUS.
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn map(fd: OwnedFd, layout: &Layout) -> io::Result<Shared> {
    Ok(Shared(Arc::new(Mapping::new(&File::from(fd), bytes_for(layout) as usize)?)))
}

/// The client's side.
#[derive(Debug)]
pub struct Producer {
    shared: Shared,
    entries: Entries,
    submitted: u64,
    /// What the server had taken when this side looked last.
    consumed: u64,
}

impl Producer {
    /// Maps a hand-over file that the server just made for a region with this layout.
    pub fn new(fd: OwnedFd, layout: Layout) -> io::Result<Self> {
        let entries = Entries::of(&layout);
        Ok(Self { shared: map(fd, &layout)?, entries, submitted: 0, consumed: 0 })
    }

    /// Hands a version over; `changed` is of the layout's capacity. False, with nothing done, when the
    /// ring is full.
    pub fn submit(
        &mut self,
        version: Version,
        slot: usize,
        len: u64,
        changed: &Stale,
        urgent: bool,
    ) -> bool {
        if self.submitted.wrapping_sub(self.consumed) >= ENTRIES {
            self.consumed = self.shared.word(CONSUMED_AT).load(Ordering::Acquire);
            if self.submitted.wrapping_sub(self.consumed) >= ENTRIES {
                return false;
            }
        }
        let entry = self.entries.at(self.submitted);
        let put = |offset: usize, bytes: &[u8]| {
            // Inside: `Producer::new` mapped all entries.
            let _ = self.shared.0.write_at(entry + offset as u64, bytes);
        };
        let ranges = match changed.parts() {
            Parts::Everything => EVERYTHING,
            Parts::Extents(extents) => {
                for (i, e) in extents.iter().enumerate() {
                    put(ENTRY_HEAD_BYTES + 16 * i, &e.start.to_le_bytes());
                    put(ENTRY_HEAD_BYTES + 16 * i + 8, &e.end.to_le_bytes());
                }
                extents.len() as u32
            }
            Parts::Blocks(words) => {
                for (at, word) in self.entries.map(entry).zip(words) {
                    self.shared.word(at).store(word.to_le(), Ordering::Relaxed);
                }
                BLOCKS
            }
        };
        put(0, &version.to_le_bytes());
        put(8, &len.to_le_bytes());
        put(16, &(slot as u32).to_le_bytes());
        put(20, &ranges.to_le_bytes());
        put(24, &u32::from(urgent).to_le_bytes());
        self.submitted += 1;
        // SYNC POINT: pairs with the acquire load in `Consumer::next`.
        self.shared.word(SUBMITTED_AT).store(self.submitted, Ordering::Release);
        true
    }

    /// True when the server has taken everything that was submitted.
    pub fn all_consumed(&self) -> bool {
        self.shared.word(CONSUMED_AT).load(Ordering::Acquire) == self.submitted
    }

    /// True when the server must be woken by its bell to see what was just handed over.
    pub fn server_asleep(&self) -> bool {
        // SYNC POINT: pairs with the fence in `Consumer::fall_asleep`.
        fence(Ordering::SeqCst);
        self.shared.flag(SERVER_ASLEEP_AT).load(Ordering::Relaxed) != 0
    }

    /// All versions up to this one are mirrored.
    pub fn mirrored(&self) -> Version {
        self.shared.word(MIRRORED_AT).load(Ordering::Acquire)
    }

    /// What the server says of this writer.
    pub fn condition(&self) -> Condition {
        Condition::from_code(self.shared.flag(CONDITION_AT).load(Ordering::Acquire))
    }

    /// Claims a slot for writing. False when the server is reading it right now: wait and ask
    /// again.
    pub fn begin_writing(&self, slot: usize) -> bool {
        self.shared.flag(WRITING_AT).store(slot as u32 + 1, Ordering::SeqCst);
        // SYNC POINT: pairs with `Consumer::pin`: one of the two sides sees the other.
        if self.shared.flag(PINNED_AT).load(Ordering::SeqCst) & (1 << slot) == 0 {
            return true;
        }
        self.end_writing();
        false
    }

    /// Claims a slot when the server of this memory is gone: nobody reads by its pins any more.
    pub fn begin_writing_alone(&self, slot: usize) {
        self.shared.flag(WRITING_AT).store(slot as u32 + 1, Ordering::SeqCst);
    }

    /// The slot claimed by [`Producer::begin_writing`] is not written any more.
    pub fn end_writing(&self) {
        self.shared.flag(WRITING_AT).store(0, Ordering::Release);
    }

    /// True when the server is reading the slot.
    pub fn pinned(&self, slot: usize) -> bool {
        self.shared.flag(PINNED_AT).load(Ordering::SeqCst) & (1 << slot) != 0
    }

    /// Says that this side is about to sleep until its bell is rung. Whatever it waits for must be looked
    /// at once more after this call.
    pub fn fall_asleep(&self) {
        self.shared.flag(CLIENT_ASLEEP_AT).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that this side is awake.
    pub fn wake_up(&self) {
        self.shared.flag(CLIENT_ASLEEP_AT).store(0, Ordering::Relaxed);
    }
}

/// The server's side. It owns the indices; what lies in the shared memory is the client's word.
#[derive(Debug)]
pub struct Consumer {
    shared: Shared,
    layout: Layout,
    entries: Entries,
    consumed: u64,
    last: Version,
}

impl Consumer {
    /// Maps a file made by [`create`] with this layout, for a client whose newest version is `last`.
    pub fn new(fd: OwnedFd, layout: Layout, last: Version) -> io::Result<Self> {
        let entries = Entries::of(&layout);
        Ok(Self { shared: map(fd, &layout)?, layout, entries, consumed: 0, last })
    }

    /// Takes the next submission into `out`, which is of the layout's capacity. False when there is
    /// none. Does not allocate.
    pub fn next(&mut self, out: &mut Submission) -> Result<bool, Violation> {
        // SYNC POINT: pairs with the release store in `Producer::submit`.
        let submitted = self.shared.word(SUBMITTED_AT).load(Ordering::Acquire);
        if submitted == self.consumed {
            return Ok(false);
        }
        if submitted.wrapping_sub(self.consumed) > ENTRIES {
            return Err(Violation::Index { submitted, consumed: self.consumed });
        }
        let entry = self.entries.at(self.consumed);
        let word = |at| u64::from_le(self.shared.word(at).load(Ordering::Relaxed));
        let head = [word(entry), word(entry + 8), word(entry + 16), word(entry + 24)];
        let range = |i| {
            let at = entry + ENTRY_HEAD_BYTES as u64 + 16 * i;
            Extent { start: word(at), end: word(at + 8) }
        };
        parse(head, range, self.entries.map(entry).map(word), &self.layout, out)?;
        if out.version <= self.last {
            return Err(Violation::Version { found: out.version, last: self.last });
        }
        self.last = out.version;
        self.consumed += 1;
        self.shared.word(CONSUMED_AT).store(self.consumed, Ordering::Release);
        Ok(true)
    }

    /// Keeps the client from writing a slot while it is read. False when it is being written.
    pub fn pin(&self, slot: usize) -> bool {
        self.shared.flag(PINNED_AT).fetch_or(1 << slot, Ordering::SeqCst);
        // SYNC POINT: pairs with `Producer::begin_writing`.
        if self.shared.flag(WRITING_AT).load(Ordering::SeqCst) == slot as u32 + 1 {
            self.shared.flag(PINNED_AT).fetch_and(!(1 << slot), Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Ends a [`Consumer::pin`]. True when the client must be woken.
    #[must_use]
    pub fn unpin(&self, slot: usize) -> bool {
        self.shared.flag(PINNED_AT).fetch_and(!(1 << slot), Ordering::SeqCst);
        self.client_asleep()
    }

    /// Tells that all versions up to this one are mirrored. True when the client must be woken.
    #[must_use]
    pub fn set_mirrored(&self, version: Version) -> bool {
        self.shared.word(MIRRORED_AT).store(version, Ordering::Release);
        self.client_asleep()
    }

    /// Tells the client where it stands. True when it must be woken.
    #[must_use]
    pub fn set_condition(&self, condition: Condition) -> bool {
        self.shared.flag(CONDITION_AT).store(condition.code(), Ordering::Release);
        self.client_asleep()
    }

    /// Says that the server is about to sleep. False when something was submitted meanwhile.
    pub fn fall_asleep(&self) -> bool {
        self.shared.flag(SERVER_ASLEEP_AT).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.shared.word(SUBMITTED_AT).load(Ordering::Acquire) == self.consumed
    }

    /// Says that the server is awake.
    pub fn wake_up(&self) {
        self.shared.flag(SERVER_ASLEEP_AT).store(0, Ordering::Relaxed);
    }

    fn client_asleep(&self) -> bool {
        // SYNC POINT: pairs with the fence in `Producer::fall_asleep`.
        fence(Ordering::SeqCst);
        self.shared.flag(CLIENT_ASLEEP_AT).load(Ordering::Relaxed) != 0
    }
}

/// `head` is version, length, slot and number of ranges, and urgency. Each word was read once, whatever
/// the client makes of it meanwhile.
fn parse(
    head: [u64; 4],
    range: impl Fn(u64) -> Extent,
    map: impl Iterator<Item = u64>,
    layout: &Layout,
    out: &mut Submission,
) -> Result<(), Violation> {
    let [version, len, slot_and_ranges, urgent] = head;
    let (slot, ranges) = (slot_and_ranges as u32 as usize, (slot_and_ranges >> 32) as u32);
    if slot >= layout.slots() || len > layout.capacity() || version > VERSION_MAX {
        return Err(Violation::Shape);
    }
    match ranges {
        EVERYTHING => out.changed.set_everything(),
        BLOCKS => {
            if !out.changed.set_blocks(map) {
                return Err(Violation::Shape);
            }
        }
        count if count as usize <= RANGES_MAX => {
            out.changed.clear();
            for extent in (0..u64::from(count)).map(range) {
                if extent.is_empty() || extent.end > layout.capacity() {
                    return Err(Violation::Shape);
                }
                out.changed.insert(extent.start, extent.end);
            }
        }
        _ => return Err(Violation::Shape),
    }
    (out.version, out.slot, out.len, out.urgent) = (version, slot, len, urgent as u32 != 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u64 = 1 << 20;

    fn pair() -> (Producer, Consumer) {
        let layout = Layout::new(CAPACITY, 2).unwrap();
        let fd = create(&layout).unwrap();
        let other = fd.try_clone().unwrap();
        (Producer::new(fd, layout).unwrap(), Consumer::new(other, layout, 0).unwrap())
    }

    fn everything() -> Stale {
        Stale::everything(CAPACITY)
    }

    #[test]
    fn a_submission_arrives_as_it_was_sent() {
        let (mut producer, mut consumer) = pair();
        let mut changed = Stale::nothing(CAPACITY);
        changed.insert(5, 10);
        changed.insert(100, 9_999);
        assert!(producer.submit(1, 1, 9_999, &changed, true));
        let mut got = Submission::new(CAPACITY);
        assert_eq!(consumer.next(&mut got), Ok(true));
        assert_eq!(got, Submission { version: 1, slot: 1, len: 9_999, changed, urgent: true });
        assert_eq!(consumer.next(&mut got), Ok(false));
    }

    #[test]
    fn scattered_changes_arrive_as_a_map_in_every_entry() {
        let (mut producer, mut consumer) = pair();
        let mut got = Submission::new(CAPACITY);
        for version in 1..=2 * ENTRIES {
            let mut changed = Stale::nothing(CAPACITY);
            for block in (version % 3..CAPACITY / 4096).step_by(3) {
                changed.insert(block * 4096 + 1, block * 4096 + 2);
            }
            assert!(matches!(changed.parts(), Parts::Blocks(_)));
            assert!(producer.submit(version, 0, CAPACITY, &changed, false));
            assert_eq!(consumer.next(&mut got), Ok(true));
            assert_eq!(got.changed, changed);
        }
    }

    #[test]
    fn a_full_ring_refuses_and_goes_on_when_the_server_took_one() {
        let (mut producer, mut consumer) = pair();
        for version in 1..=ENTRIES {
            assert!(producer.submit(version, 0, 1, &everything(), false));
        }
        assert!(!producer.submit(ENTRIES + 1, 0, 1, &everything(), false));
        assert_eq!(consumer.next(&mut Submission::new(CAPACITY)), Ok(true));
        assert!(producer.submit(ENTRIES + 1, 0, 1, &everything(), false));
    }

    #[test]
    fn a_slot_is_never_written_and_read_at_once() {
        let (producer, consumer) = pair();
        assert!(producer.begin_writing(1));
        assert!(!consumer.pin(1), "it is being written");
        assert!(consumer.pin(0));
        producer.end_writing();
        assert!(consumer.pin(1));
        assert!(!producer.begin_writing(1), "it is being read");
        let _ = consumer.unpin(1);
        assert!(producer.begin_writing(1));
    }

    #[test]
    fn garbage_in_the_ring_is_a_violation_and_no_crash() {
        let (producer, mut consumer) = pair();
        producer.shared.word(SUBMITTED_AT).store(1 << 40, Ordering::Release);
        assert!(matches!(
            consumer.next(&mut Submission::new(CAPACITY)),
            Err(Violation::Index { .. })
        ));
        producer.shared.word(SUBMITTED_AT).store(u64::MAX, Ordering::Release);
        assert!(matches!(
            consumer.next(&mut Submission::new(CAPACITY)),
            Err(Violation::Index { .. })
        ));
    }

    #[test]
    fn a_version_is_not_accepted_twice() {
        let (mut producer, mut consumer) = pair();
        producer.submit(3, 0, 1, &everything(), false);
        producer.submit(3, 0, 1, &everything(), false);
        let mut got = Submission::new(CAPACITY);
        assert_eq!(consumer.next(&mut got), Ok(true));
        assert_eq!(consumer.next(&mut got), Err(Violation::Version { found: 3, last: 3 }));
    }

    #[test]
    fn nobody_can_change_the_size_of_the_file() {
        let fd = create(&Layout::new(CAPACITY, 2).unwrap()).unwrap();
        assert!(ftruncate(&fd, 0).is_err());
    }

    proptest! {
        #[test]
        fn what_is_believed_fits_the_region(
            mut head in any::<[u64; 4]>(),
            ranges in any::<[(u64, u64); RANGES_MAX]>(),
            map in any::<u64>(),
            small in any::<bool>(),
        ) {
            let layout = Layout::new(10_000, 3).unwrap();
            if small {
                // Let the counts be plausible, so that the ranges themselves are looked at.
                head = [1, head[1] % 10_000, head[2] % RANGES_MAX as u64 * (1 << 32), 0];
            }
            let range = |i: u64| {
                let (start, end) = ranges[i as usize];
                match small {
                    true => Extent { start: start % 11_000, end: end % 11_000 },
                    false => Extent { start, end },
                }
            };
            for blocks in [false, true] {
                if blocks {
                    head[2] = head[2] as u32 as u64 | u64::from(BLOCKS) << 32;
                }
                let mut s = Submission::new(10_000);
                if parse(head, range, [map].into_iter(), &layout, &mut s).is_ok() {
                    prop_assert!(s.slot < 3 && s.len <= 10_000);
                    prop_assert!(!blocks || map < 8);
                    let mut inside = true;
                    s.changed.for_each(u64::MAX, |e| inside &= e.end <= 10_000);
                    prop_assert!(inside);
                }
            }
        }
    }
}
