//! What does a local commit take beside what it cannot do without: a copy of the bytes and their
//! checksum?
//!
//! `cargo bench --bench commit_path`. Everything is in one process and on one thread: the client
//! saves a whole state, then the server's end takes the version out of the hand-over memory, which in
//! a real ring another core does meanwhile. For each size, compare the medians of `local_commit` and
//! of `copy_and_checksum`: small states show what a commit takes in itself, large ones whether anything
//! is done twice. `changed_piece` commits 64 bytes of a state of that size: it should not grow with the
//! size, but for the checksum of one chunk.
#![allow(missing_docs)]

#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use divan::{Bencher, counter::BytesCount};
use paths::{
    Path,
    commit::{LocalCommit, Update},
    region,
};

const SIZES: [usize; 6] = [64, 512, 4 << 10, 64 << 10, 1 << 20, 16 << 20];
/// Of several chunks.
const LARGE: [usize; 3] = [64 << 10, 1 << 20, 16 << 20];

fn main() {
    divan::Divan::from_args().min_time(paths::TIME_PER_ROW).main();
}

fn run(bencher: Bencher<'_, '_>, len: usize, mut path: impl Path) {
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        path.step();
        path.settle();
    });
}

#[divan::bench(args = SIZES)]
fn local_commit(bencher: Bencher<'_, '_>, len: usize) {
    run(bencher, len, LocalCommit::new(len, Update::Whole));
}

#[divan::bench(args = SIZES)]
fn copy_and_checksum(bencher: Bencher<'_, '_>, len: usize) {
    run(bencher, len, region::copy_and_checksum(len));
}

#[divan::bench(args = LARGE)]
fn changed_piece(bencher: Bencher<'_, '_>, len: usize) {
    let mut commit = LocalCommit::new(len, Update::Piece);
    bencher.bench_local(|| {
        commit.step();
        commit.settle();
    });
}
