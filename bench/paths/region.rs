//! Records, slots and their checksums; and what nobody can do them without.

use std::{hint::black_box, sync::Arc};

use ringkeep::{
    commit::{Extent, Record},
    region::{Identity, Region, layout::Layout},
};
use twox_hash::XxHash3_64;

use super::{Path, map, memory};

const IDENTITY: Identity = Identity { checkpoint: 7, generation: 1 };

/// A region with a version of so many bytes in slot 0.
fn committed(len: usize) -> Region {
    let layout = Layout::new(len as u64, 2).unwrap();
    let mapping = Arc::new(map(&memory(layout.region_bytes())));
    let region = Region::new(mapping, layout, IDENTITY).unwrap();
    region.write_payload(0, 0, &vec![7; len]).unwrap();
    // SAFETY: nobody else has this memory.
    unsafe { region.rehash(0, Extent { start: 0, end: len as u64 }, len as u64) };
    // SAFETY: as above.
    unsafe { region.publish(0, 1, 1, len as u64) };
    region
}

/// A slot's record, looked at alone: what tells whether a version is there.
pub(crate) fn read_record() -> impl Path {
    let region = committed(64);
    move || {
        black_box(region.record(black_box(0)).unwrap());
    }
}

/// Every checksum of a committed slot.
pub(crate) fn verify_slot(len: usize) -> impl Path {
    let region = committed(len);
    move || {
        black_box(region.verify(black_box(0)).unwrap());
    }
}

/// The same by somebody who knows that nobody writes meanwhile: what a service does that gets its state
/// back, and a server that took it over. Nothing is copied.
pub(crate) fn verify_slot_quiet(len: usize) -> impl Path {
    let region = committed(len);
    move || {
        // SAFETY: nobody else has this memory.
        black_box(unsafe { region.verify_quiet(black_box(0)) }.unwrap());
    }
}

/// A record written and read back, without a region.
pub(crate) fn encode_record() -> impl Path {
    let Identity { checkpoint, generation } = IDENTITY;
    let record = Record { checkpoint, epoch: 3, generation, sequence: 42, len: 100, root: 5 };
    move || {
        let bytes = black_box(black_box(record).encode());
        black_box(Record::decode(&bytes, checkpoint, generation, 100).unwrap());
    }
}

/// The checksum of so many bytes (XXH3).
pub(crate) fn checksum(len: usize) -> impl Path {
    let bytes = vec![7u8; len];
    move || {
        black_box(XxHash3_64::oneshot(black_box(&bytes)));
    }
}

/// A copy of so many bytes into memory that is there already.
pub(crate) fn copy(len: usize) -> impl Path {
    let (from, mut to) = (vec![7u8; len], vec![1; len]);
    move || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
}

/// Memory of so many bytes, zeroed, and given back.
pub(crate) fn zeroed(len: usize) -> impl Path {
    move || {
        black_box(vec![0u8; black_box(len)]);
    }
}

/// A copy, and the checksum of it, a piece at a time so that the checksum finds it in the cache: what
/// a local commit cannot do without.
pub(crate) fn copy_and_checksum(len: usize) -> impl Path {
    const PIECE: usize = 4 << 10;
    let (from, mut to) = (vec![7u8; len], vec![1; len]);
    move || {
        for (from, to) in black_box(&from).chunks(PIECE).zip(to.chunks_mut(PIECE)) {
            to.copy_from_slice(from);
            black_box(XxHash3_64::oneshot(black_box(to)));
        }
    }
}
