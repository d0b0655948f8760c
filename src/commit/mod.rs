//! Which slot takes the next version, what of it must be brought up to date, and the record that
//! makes a version exist. Pure: numbers in, numbers out; the bytes are moved by [`crate::region`].
//!
//! A version is valid when its record's checksum is right (it covers the sequence and the root) and
//! the root is the checksum of the chunk table, and every chunk has the checksum that the table
//! says. Nothing is ever concluded from the order in which bytes arrived.
//!
//! Source: Liang, Wang, Fan, Fang 2010, section on the update of two copies; the rules are those
//! of `docs/protocol.md`, "Update".

mod blocks;
mod ranges;
mod record;
mod root;
mod segments;
mod slots;

pub use blocks::{BLOCKS_MAX, block_bytes, words_of};
pub use ranges::{Extent, Parts, RANGES_MAX, RangeSet, Stale};
pub use record::{RECORD_BYTES, Record, RecordError};
pub use root::Root;
pub use segments::{RUNS_MAX, SEGMENTS_PER_VERSION_MAX, SINGLE_WRITE_BYTES_MAX, segments};
pub use slots::{Slots, Working};

/// A checkpoint's version number, also called its sequence: 1, 2, 3, …; 0 is "nothing yet".
pub type Version = u64;

/// Largest version: a million commits a second for a hundred thousand years. A record beyond it is
/// no record, so that adding one never overflows.
pub const VERSION_MAX: Version = 1 << 62;
