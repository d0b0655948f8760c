//! A region's memory as a client, a peer or a damaged file may leave it.
//!
//! A record that counts lies inside the limits and writes the same bytes again; a version whose
//! checksums are right is read in pieces that are its payload, whole and in order; the newest valid
//! version is none but the newest claimed one that is right.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    commit::{RECORD_BYTES, Record, Root, VERSION_MAX},
    region::{
        Identity, Mark, Region, SlotError,
        layout::{COMMIT_WORD_IN_SLOT, Layout, MARK_AT, MARK_BYTES},
        mapping::Mapping,
    },
};
use ringkeep_fuzz::{Number, memory, sum};

const IDENTITY: Identity = Identity { checkpoint: 7, generation: 3 };

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    capacity: u16,
    slots: u8,
    steps: Vec<Step<'a>>,
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// Bytes anywhere.
    Bytes { at: u32, bytes: &'a [u8] },
    /// Bytes in a slot's payload, and the table made right for so many bytes.
    Payload { slot: u8, bytes: &'a [u8], len: u16 },
    /// A record, with or without the right checksum and commit word.
    Record {
        slot: u8,
        sequence: Number,
        len: Number,
        root: Option<u64>,
        other: bool,
        torn: bool,
        word: Option<Number>,
    },
    /// An honest version.
    Commit { slot: u8, sequence: u8, len: u16 },
    /// A sync mark.
    Mark { which: bool, view: Number, torn: bool },
    /// One more bit is wrong.
    Flip { at: u32, bit: u8 },
}

fuzz_target!(|input: Input<'_>| {
    let capacity = u64::from(input.capacity % 20_000) + 1;
    let layout = Layout::new(capacity, 2 + u32::from(input.slots % 7)).expect("inside the limits");
    let bytes = layout.region_bytes().next_multiple_of(4096);
    let mapping = Arc::new(Mapping::new(&memory(bytes), bytes as usize).expect("mapped"));
    let region = Region::new(mapping, layout, IDENTITY).expect("large enough");
    for step in &input.steps {
        take(&region, step);
    }
    check(&region);
});

fn take(region: &Region, step: &Step<'_>) {
    let (layout, mapping) = (region.layout(), region.mapping());
    let capacity = layout.capacity();
    let slot_of = |slot: u8| usize::from(slot) % layout.slots();
    let put = |at: u64, bytes: &[u8]| {
        let room = mapping.len().saturating_sub(at).min(bytes.len() as u64);
        mapping.write_at(at, &bytes[..room as usize]).expect("inside");
    };
    match *step {
        Step::Bytes { at, bytes } => put(u64::from(at) % mapping.len(), bytes),
        Step::Payload { slot, bytes, len } => {
            let (slot, len) = (slot_of(slot), u64::from(len) % (capacity + 1));
            let fits = bytes.len().min(capacity as usize);
            region.write_payload(slot, 0, &bytes[..fits]).expect("it fits");
            rehash(region, slot, len);
        }
        Step::Record { slot, sequence, len, root, other, torn, word } => {
            let slot = slot_of(slot);
            let len = len.beside(capacity);
            let right = layout.chunks(len.min(capacity));
            let mut table = vec![0; 8 * right as usize];
            mapping.read_at(layout.table(slot), &mut table).expect("inside");
            let record = Record {
                checkpoint: if other { 8 } else { IDENTITY.checkpoint },
                epoch: 1,
                generation: IDENTITY.generation,
                sequence: sequence.beside(5),
                len,
                root: root.unwrap_or(Root::of(&table).word()),
            };
            let mut bytes = record.encode();
            if torn {
                bytes[RECORD_BYTES - 1] ^= 1;
            }
            put(layout.slot(slot), &bytes);
            let word = word.map_or(record.sequence, |word| word.beside(record.sequence));
            put(layout.slot(slot) + COMMIT_WORD_IN_SLOT, &word.to_le_bytes());
        }
        Step::Commit { slot, sequence, len } => {
            let (slot, len) = (slot_of(slot), u64::from(len) % (capacity + 1));
            rehash(region, slot, len);
            // SAFETY: nobody else has this region.
            let record = unsafe { region.publish(slot, 1, u64::from(sequence) + 1, len) };
            assert_eq!(region.verify(slot), Ok(record), "what was published is valid");
        }
        Step::Mark { which, view, torn } => {
            let mark = Mark { view: view.beside(9), epoch: 1, incarnation: 1 };
            let (before, other) = (mark_bytes(region, 0), mark_bytes(region, 1));
            region.set_mark(mark);
            assert_eq!((region.mark(), region.free_mark()), (Ok(mark), 1));
            let mut bytes = mark_bytes(region, 0);
            if torn {
                bytes[17] ^= 4;
            }
            let places = if which { [before, bytes] } else { [bytes, other] };
            put(MARK_AT[0], &places[0]);
            put(MARK_AT[1], &places[1]);
        }
        Step::Flip { at, bit } => {
            let at = u64::from(at) % mapping.len();
            let mut byte = [0];
            mapping.read_at(at, &mut byte).expect("inside");
            put(at, &[byte[0] ^ 1 << (bit % 8)]);
        }
    }
}

fn rehash(region: &Region, slot: usize, len: u64) {
    let extent = ringkeep::commit::Extent { start: 0, end: len };
    // SAFETY: nobody else has this region.
    unsafe { region.rehash(slot, extent, len) };
}

fn mark_bytes(region: &Region, which: usize) -> [u8; MARK_BYTES as usize] {
    let mut bytes = [0; MARK_BYTES as usize];
    region.mapping().read_at(MARK_AT[which], &mut bytes).expect("inside");
    bytes
}

fn check(region: &Region) {
    let layout = region.layout();
    assert!(region.free_mark() < 2);
    if let Ok(mark) = region.mark() {
        let newest = (0..2).map(|which| mark_bytes(region, which));
        let view = mark.view.to_le_bytes();
        let is_it = |b: [u8; 64]| b[24..32] == view && b[56..] == sum(&b[..56]);
        assert!(newest.into_iter().any(is_it), "a mark that nobody wrote");
    }
    let mut valid = Vec::new();
    for slot in 0..layout.slots() {
        let claimed = region.record(slot);
        let verified = region.verify(slot);
        // SAFETY: nobody else has this region.
        assert_eq!(unsafe { region.verify_quiet(slot) }, verified);
        let Ok(record) = claimed else {
            assert_eq!(verified, claimed);
            continue;
        };
        assert!(record.len <= layout.capacity());
        assert!((1..=VERSION_MAX).contains(&record.sequence));
        assert_eq!((record.checkpoint, record.generation), (7, 3));
        assert_eq!(region.commit_word(slot), record.sequence);
        let mut bytes = [0; RECORD_BYTES];
        region.mapping().read_at(layout.slot(slot), &mut bytes).expect("inside");
        assert_eq!(record.encode(), bytes);
        if verified.is_err() {
            continue;
        }
        assert_eq!(verified, Ok(record));
        valid.push(record.sequence);
        read(region, slot, &record);
    }
    let newest = region.newest_valid().map(|found| found.record.sequence);
    assert_eq!(newest, valid.into_iter().max());
    assert!(newest <= region.newest_by_record().map(|found| found.record.sequence));
}

/// What is handed on is the payload, and its checksums are the table's.
fn read(region: &Region, slot: usize, record: &Record) {
    let layout = region.layout();
    let mut payload = vec![0; record.len as usize];
    region.read_payload(slot, 0, &mut payload).expect("inside the capacity");
    let mut handed_on = Vec::new();
    let take = |at: u64, piece: &[u8]| {
        assert_eq!(at, handed_on.len() as u64);
        handed_on.extend_from_slice(piece);
        Ok::<_, SlotError>(())
    };
    assert_eq!(region.read_verified(slot, take), Ok(*record));
    assert!(handed_on == payload);
    let table: Vec<u8> = payload.chunks(layout.chunk_bytes() as usize).flat_map(sum).collect();
    assert_eq!(Root::of(&table).word(), record.root);
}
