//! A committed version, read in place.

use std::io::Cursor;

use crate::{
    commit::{Record, Version},
    region::Region,
};

/// A verified version in this node's memory; no copy was made.
#[derive(Debug)]
pub struct Saved<'a> {
    region: &'a Region,
    slot: usize,
    record: Record,
}

impl<'a> Saved<'a> {
    pub(super) fn new(region: &'a Region, slot: usize, record: Record) -> Self {
        Self { region, slot, record }
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.record.sequence
    }

    /// Its payload.
    pub fn bytes(&self) -> &'a [u8] {
        let at = self.region.layout().payload(self.slot);
        // SAFETY: this borrows the `Checkpoint`, whose process is the region's only writer and
        // writes through `&mut` only, and never into the newest slot.
        let bytes = unsafe { self.region.mapping().quiet_slice(at, self.record.len) };
        bytes.expect("inside: the record was checked against the capacity")
    }

    /// Its payload as a reader.
    pub fn reader(&self) -> Cursor<&'a [u8]> {
        Cursor::new(self.bytes())
    }
}
