//! How fast are the checksums, and what does it take to look whether a slot holds a version?
//!
//! `cargo bench --bench layout_and_hash`. `checksum` is XXH3 of so many bytes: what every commit and
//! every verification pays at least. `verify_slot` checks a committed slot of the same size, out of
//! memory that others may write: it copies before it looks, so its rate lies below that of
//! `checksum`, and the gap is the price of not trusting the memory. `verify_slot_quiet` is what a service
//! does that gets its state back: it is the only writer, so nothing is copied. `read_record` is the look
//! at the record alone and costs the same for any size; `encode_record` is a record written and read
//! back without a slot.
#![allow(missing_docs)]

#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use divan::{Bencher, counter::BytesCount};
use paths::{Path, region};

const SIZES: [usize; 6] = [64, 512, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

fn main() {
    divan::Divan::from_args().min_time(paths::TIME_PER_ROW).main();
}

fn run(bencher: Bencher<'_, '_>, len: usize, mut path: impl Path) {
    bencher.counter(BytesCount::new(len)).bench_local(|| path.step());
}

#[divan::bench(args = SIZES)]
fn checksum(bencher: Bencher<'_, '_>, len: usize) {
    run(bencher, len, region::checksum(len));
}

#[divan::bench(args = SIZES)]
fn verify_slot(bencher: Bencher<'_, '_>, len: usize) {
    run(bencher, len, region::verify_slot(len));
}

#[divan::bench(args = SIZES)]
fn verify_slot_quiet(bencher: Bencher<'_, '_>, len: usize) {
    run(bencher, len, region::verify_slot_quiet(len));
}

#[divan::bench]
fn read_record(bencher: Bencher<'_, '_>) {
    let mut path = region::read_record();
    bencher.bench_local(|| path.step());
}

#[divan::bench]
fn encode_record(bencher: Bencher<'_, '_>) {
    let mut path = region::encode_record();
    bencher.bench_local(|| path.step());
}
