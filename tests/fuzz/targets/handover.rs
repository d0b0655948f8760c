//! The hand-over memory of a client that writes what it likes, and the mirror behind it.
//!
//! What the server takes fits the region: the slot is one, the length and all that changed lie inside
//! the capacity, versions grow. What would travel for it lies inside the region. An honest submission
//! arrives as it was sent.
#![no_main]

use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    commit::{Parts, Stale, VERSION_MAX, segments},
    handover::{Consumer, ENTRIES, Producer, Submission, bytes_for, create},
    region::{layout::Layout, mapping::Mapping},
    transport::SEGMENTS_MAX,
};
use ringkeep_fuzz::Number;

#[derive(Debug, Arbitrary)]
struct Input {
    capacity: Number,
    slots: u8,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A whole entry, handed over.
    Submit { version: Number, len: Number, slot: u8, blocks: bool, ranges: Vec<(Number, Number)> },
    /// A word anywhere.
    Word { at: u16, value: Number },
    /// The head of an entry, with so many ranges or the codes for everything and blocks.
    Head { entry: u8, version: Number, len: Number, slot: u8, ranges: Ranges, urgent: u32 },
    /// A range of an entry.
    Range { entry: u8, which: u8, start: Number, end: Number },
    /// A word of an entry's map.
    Map { entry: u8, word: u8, value: u64 },
    /// The client says that it has submitted up to here.
    Submitted(Number),
    /// The server takes one.
    Take,
    /// The server pins a slot and lets it go.
    Pin(u8),
    /// A client that plays by the rules hands over what it committed.
    Honest { ranges: Vec<(u32, u16)>, slot: u8, len: u32, urgent: bool },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Ranges {
    Count(u8),
    Everything,
    Blocks,
    Any(u32),
}

struct World {
    layout: Layout,
    memory: Mapping,
    consumer: Consumer,
    taken: u64,
    last: u64,
    got: Submission,
}

fuzz_target!(|input: Input| {
    let capacity = input.capacity.beside(10_000).clamp(1, 1 << 30);
    let layout = Layout::new(capacity, 2 + u32::from(input.slots % 7)).expect("inside the limits");
    let fd = create(&layout).expect("a memory file");
    let shared = fd.try_clone().expect("a descriptor");
    let memory = Mapping::new(&shared.into(), bytes_for(&layout) as usize).expect("mapped");
    let consumer = Consumer::new(fd, layout, 0).expect("mapped");
    let got = Submission::new(capacity);
    let mut world = World { layout, memory, consumer, taken: 0, last: 0, got };
    for step in &input.steps {
        if !world.step(step) {
            return;
        }
    }
    // What is left there.
    while world.take() {}
});

impl World {
    fn entry(&self, entry: u8) -> u64 {
        let bytes = (bytes_for(&self.layout) - 4096) / ENTRIES;
        4096 + u64::from(entry) % ENTRIES * bytes
    }

    fn put(&self, at: u64, value: u64) {
        if self.memory.check(at, 8).is_ok() {
            self.memory.atomic_u64(at).store(value, Ordering::SeqCst);
        }
    }

    /// False when the client was let go.
    fn step(&mut self, step: &Step) -> bool {
        match *step {
            Step::Submit { version, len, slot, blocks, ref ranges } => {
                let submitted = self.memory.atomic_u64(0).load(Ordering::SeqCst);
                let entry = (submitted % ENTRIES) as u8;
                let count = if blocks { Ranges::Blocks } else { Ranges::Count(ranges.len() as u8) };
                let urgent = 0;
                self.step(&Step::Head { entry, version, len, slot, ranges: count, urgent });
                for (which, &(start, end)) in (0..60).zip(ranges) {
                    self.step(&Step::Range { entry, which, start, end });
                }
                self.put(0, submitted.wrapping_add(1));
            }
            Step::Word { at, value } => self.put(u64::from(at) / 8 * 8, value.beside(self.taken)),
            Step::Head { entry, version, len, slot, ranges, urgent } => {
                let at = self.entry(entry);
                let ranges = match ranges {
                    Ranges::Count(count) => count.into(),
                    Ranges::Everything => u32::MAX,
                    Ranges::Blocks => u32::MAX - 1,
                    Ranges::Any(any) => any,
                };
                self.put(at, version.beside(self.last + 1));
                self.put(at + 8, len.beside(self.layout.capacity()));
                self.put(at + 16, u64::from(slot) | u64::from(ranges) << 32);
                self.put(at + 24, urgent.into());
            }
            Step::Range { entry, which, start, end } => {
                let at = self.entry(entry) + 64 + 16 * (u64::from(which) % 60);
                self.put(at, start.beside(0));
                self.put(at + 8, end.beside(self.layout.capacity()));
            }
            Step::Map { entry, word, value } => {
                self.put(self.entry(entry) + 1024 + 8 * u64::from(word), value);
            }
            Step::Submitted(number) => self.put(0, number.beside(self.taken + 1)),
            Step::Take => {
                return self.take()
                    || self.memory.atomic_u64(0).load(Ordering::SeqCst) == self.taken;
            }
            Step::Pin(slot) => {
                let slot = usize::from(slot) % self.layout.slots();
                if self.consumer.pin(slot) {
                    let _ = self.consumer.unpin(slot);
                }
            }
            Step::Honest { ref ranges, slot, len, urgent } => {
                self.honest(ranges, slot, len, urgent)
            }
        }
        true
    }

    /// False when there was nothing, or nonsense.
    fn take(&mut self) -> bool {
        match self.consumer.next(&mut self.got) {
            Ok(true) => {
                self.taken += 1;
                self.check();
                true
            }
            Ok(false) | Err(_) => false,
        }
    }

    fn check(&mut self) {
        let (layout, got) = (&self.layout, &self.got);
        let capacity = layout.capacity();
        assert!(got.slot < layout.slots() && got.len <= capacity);
        assert!(got.version > self.last && got.version <= VERSION_MAX);
        self.last = got.version;
        if got.changed.parts() != Parts::Everything {
            let mut end = 0;
            got.changed.for_each(u64::MAX, |extent| {
                assert!(extent.start < extent.end && extent.end <= capacity && extent.start >= end);
                end = extent.end;
            });
        }
        let mut travel = Vec::new();
        for to in 0..layout.slots() {
            segments(layout, got.slot, to, got.len, &got.changed, &mut travel);
            assert!(!travel.is_empty() && travel.len() <= SEGMENTS_MAX);
            for (begin, at) in [(got.slot, false), (to, true)] {
                let slot = layout.slot(begin)..layout.slot(begin) + layout.slot_bytes();
                for segment in &travel {
                    let at = if at { segment.remote } else { segment.local };
                    assert!(segment.len > 0 && slot.contains(&at));
                    assert!(at + segment.len <= slot.end);
                }
            }
        }
    }

    /// In memory of its own.
    fn honest(&self, ranges: &[(u32, u16)], slot: u8, len: u32, urgent: bool) {
        let (layout, capacity) = (self.layout, self.layout.capacity());
        let fd = create(&layout).expect("a memory file");
        let mut producer =
            Producer::new(fd.try_clone().expect("a descriptor"), layout).expect("mapped");
        let mut consumer = Consumer::new(fd, layout, 0).expect("mapped");
        let mut changed = Stale::nothing(capacity);
        for &(start, bytes) in ranges {
            let start = u64::from(start) % capacity;
            changed.insert(start, (start + u64::from(bytes)).min(capacity));
        }
        let (slot, len) = (usize::from(slot) % layout.slots(), u64::from(len) % (capacity + 1));
        assert!(producer.submit(1, slot, len, &changed, urgent));
        let mut got = Submission::new(capacity);
        assert_eq!(consumer.next(&mut got), Ok(true));
        assert_eq!(got, Submission { version: 1, slot, len, changed, urgent });
        assert!(producer.all_consumed());
    }
}
