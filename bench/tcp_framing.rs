//! What do the heads of TCP frames take of the processor?
//!
//! `cargo bench --bench tcp_framing`. One exchange: a request's header and segment table written,
//! checked and read, and the acknowledgement likewise; no socket and no payload. A version that
//! travels as one write has one segment, at most it has 4,096. What a whole round trip takes beside a
//! bare TCP exchange is `transport_tcp`; held against that, this is the part that framing has in it.
#![allow(missing_docs)]

#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use divan::Bencher;
use paths::{Path, frame::Exchange};

fn main() {
    divan::Divan::from_args().min_time(paths::TIME_PER_ROW).main();
}

#[divan::bench(args = [1, 3, 30, 4096])]
fn exchange(bencher: Bencher<'_, '_>, segments: usize) {
    let mut path = Exchange::new(segments);
    bencher.bench_local(|| path.step());
}
