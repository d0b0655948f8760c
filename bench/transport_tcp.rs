//! The TCP transport beside a raw TCP exchange of the same bytes, both busy polling, in one run.
//!
//! `cargo bench --bench transport_tcp`. Differences under 1.5x on a shared machine prove nothing;
//! the ratios are what counts. A 16-byte answer stands for the acknowledgement in the raw rows.

#[path = "transport/pair.rs"]
mod pair;
#[path = "transport/mod.rs"]
mod transport;

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::Instant,
};

use pair::pair;
use transport::{Figures, measure, ours, pin};

/// Raw and ours take turns so often, and the best turn counts: a shared machine has bad moments.
const TURNS: usize = 4;
const STREAM_WINDOW: u64 = 8;

fn main() {
    pin(0);
    println!(
        "{:>9}  {:>22}  {:>22}  {:>6}",
        "round", "raw µs min/med/p99", "transport min/med/p99", "ratio"
    );
    for len in [64, 512, 4 << 10, 64 << 10, 1 << 20, 16 << 20] {
        let (raw, ours) = best(len, 1, |one, other| one.0[1] < other.0[1]);
        let ratio = ours.0[1] / raw.0[1];
        println!("{:>9}  {}  {}  {ratio:>6.2}", size(len), row(raw.0), row(ours.0));
    }
    println!("\n{:>9}  {:>10}  {:>10}  {:>6}", "stream", "raw GB/s", "ours GB/s", "ratio");
    for len in [64 << 10, 1 << 20, 16 << 20] {
        let (raw, ours) = best(len, STREAM_WINDOW, |one, other| one.1 > other.1);
        println!("{:>9}  {:>10.2}  {:>10.2}  {:>6.2}", size(len), raw.1, ours.1, ours.1 / raw.1);
    }
}

/// The best of several turns each, of raw and of ours.
fn best(len: u64, window: u64, better: impl Fn(&Figures, &Figures) -> bool) -> (Figures, Figures) {
    let mut best = (raw(len, window), ours(len, window));
    for _ in 1..TURNS {
        let (raw, ours) = (raw(len, window), ours(len, window));
        if better(&raw, &best.0) {
            best.0 = raw;
        }
        if better(&ours, &best.1) {
            best.1 = ours;
        }
    }
    best
}

fn raw(len: u64, window: u64) -> Figures {
    let (mut near, mut far) = pair();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let responder = thread::spawn(move || {
        pin(1);
        let mut place = vec![1; len as usize];
        while busy(&mut place, |rest| far.read(rest)) {
            if !busy(&mut [0; 16], |rest| far.write(rest)) {
                break;
            }
        }
    });
    let mut bytes = vec![1; len as usize];
    let (mut sent, mut answered) = (0, 0);
    let figures = measure(len, || {
        let posted = Instant::now();
        // A window of writes, sent and answered without ever waiting for one side only.
        let until = answered + 16;
        let due = (answered / 16 + window) * len;
        while answered < until {
            if sent < due {
                let from = (sent % len) as usize;
                match near.write(&bytes[from..]) {
                    Ok(some) => sent += some as u64,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            match near.read(&mut bytes[..16]) {
                Ok(some) => answered += some as u64,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        (posted, 1)
    });
    drop(near);
    responder.join().unwrap();
    figures
}

/// Moves the whole buffer, spinning. False at the end of the stream.
fn busy(bytes: &mut [u8], mut moves: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        match moves(&mut bytes[done..]) {
            Ok(0) => return false,
            Ok(some) => done += some,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}

fn size(len: u64) -> String {
    match len {
        1024.. if len >= 1 << 20 => format!("{} MiB", len >> 20),
        1024.. => format!("{} KiB", len >> 10),
        _ => format!("{len} B"),
    }
}

fn row([min, median, p99]: [f64; 3]) -> String {
    format!("{min:>6.1} {median:>7.1} {p99:>7.1}")
}
