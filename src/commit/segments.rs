//! From what is stale to what travels.

use super::{RECORD_BYTES, Stale};
use crate::{
    region::layout::Layout,
    transport::{SEGMENTS_MAX, Segment},
};

/// A version whose slot uses at most this many bytes travels as one single write.
pub const SINGLE_WRITE_BYTES_MAX: u64 = 16 << 10;

/// Most runs of changed bytes that travel apart; of more, those with the smallest gaps travel as one.
pub const RUNS_MAX: usize = 3071;
/// The same of the chunk table, which is short against the payload.
const TABLE_RUNS_MAX: usize = 1024;

/// Most segments that one version can need: its runs, their entries in the table, the record.
pub const SEGMENTS_PER_VERSION_MAX: usize = RUNS_MAX + TABLE_RUNS_MAX + 1;
const _: () = assert!(SEGMENTS_PER_VERSION_MAX <= SEGMENTS_MAX);
const _: () = assert!(RECORD_BYTES == 64);

/// Fills `out` with what must be written so that remote slot `to`, stale by `stale`, holds what
/// local slot `from` holds, a payload of `len` bytes: changed ranges, their chunks' checksums, and
/// last the record with its commit word.
pub fn segments(
    layout: &Layout,
    from: usize,
    to: usize,
    len: u64,
    stale: &Stale,
    out: &mut Vec<Segment>,
) {
    out.clear();
    let (local, remote) = (layout.slot(from), layout.slot(to));
    let mut push = |at: u64, len: u64| {
        out.push(Segment { local: local + at, remote: remote + at, len });
    };
    let whole = layout.payload_in_slot() + len;
    if whole <= SINGLE_WRITE_BYTES_MAX {
        push(0, whole);
        return;
    }
    stale.for_each_of_at_most(RUNS_MAX, len, |e| push(layout.payload_in_slot() + e.start, e.len()));
    let chunk_bytes = layout.chunk_bytes();
    let mut done = 0; // chunks below this one have their table entry in a segment already
    stale.for_each_of_at_most(TABLE_RUNS_MAX, len, |e| {
        let first = (e.start / chunk_bytes).max(done);
        let end = e.end.div_ceil(chunk_bytes);
        if first < end {
            push(layout.table_in_slot() + 8 * first, 8 * (end - first));
            done = end;
        }
    });
    push(0, layout.head_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_checkpoint_is_one_single_write() {
        let layout = Layout::new(4096, 2).unwrap();
        let mut out = Vec::new();
        segments(&layout, 0, 1, 4096, &Stale::everything(4096), &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].local, layout.slot(0));
        assert_eq!(out[0].remote, layout.slot(1));
        assert_eq!(out[0].len, layout.payload_in_slot() + 4096);
    }

    #[test]
    fn only_what_changed_travels_and_the_record_comes_last() {
        let layout = Layout::new(1 << 20, 2).unwrap();
        let mut set = Stale::nothing(1 << 20);
        set.insert(100, 164);
        set.insert(500_000, 500_008);
        let mut out = Vec::new();
        segments(&layout, 0, 0, 1 << 20, &set, &mut out);
        let bytes: u64 = out.iter().map(|s| s.len).sum();
        assert_eq!(out.len(), 5);
        assert_eq!(bytes, 64 + 8 + 2 * 8 + layout.head_bytes());
        assert_eq!(out[4], Segment { local: layout.slot(0), remote: layout.slot(0), len: 128 });
    }

    #[test]
    fn scattered_blocks_travel_apart_and_never_in_too_many_pieces() {
        let capacity = 256 << 20;
        let layout = Layout::new(capacity, 2).unwrap();
        let mut out = Vec::new();
        let mut bytes_of_every = |nth: u64| {
            let mut stale = Stale::nothing(capacity);
            let blocks = (0..capacity / 4096).step_by(nth as usize);
            blocks.for_each(|block| stale.insert(block * 4096, block * 4096 + 4096));
            segments(&layout, 0, 1, capacity, &stale, &mut out);
            assert!(out.len() <= SEGMENTS_PER_VERSION_MAX);
            out.iter().map(|s| s.len).sum::<u64>()
        };
        assert!(bytes_of_every(100) < capacity / 98);
        assert!(bytes_of_every(22) < capacity / 20);
        assert!(bytes_of_every(12) < capacity * 2 / 3);
        assert!(bytes_of_every(2) < capacity + layout.payload_in_slot());
    }
}
