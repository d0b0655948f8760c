//! A large state of which little changes: only the changed ranges travel to the mirror.
//!
//! ```sh
//! ringkeep serve &                     # or any server of a ring; RINGKEEP_SOCKET names its socket
//! cargo run --release --example incremental
//! cargo run --release --example incremental    # goes on from the version that is there
//! ```

use std::{error::Error, time::Instant};

use ringkeep::{Client, Durability, Options};

const STATE_BYTES: u64 = 64 << 20;
const RECORD_BYTES: usize = 512;
const ROUNDS: u64 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::connect()?;
    let mut state = client.open("incremental", Options::capacity(STATE_BYTES))?;
    if let Some(warning) = state.warning() {
        eprintln!("warning: {warning}");
    }
    let durability = match state.ring_mirrors() {
        true => Durability::Mirrored,
        false => Durability::Local,
    };

    let started = Instant::now();
    let found = state.latest()?.map(|saved| (saved.version(), saved.bytes().len()));
    match found {
        Some((version, len)) => {
            println!("version {version}: {len} bytes verified in {:?}", started.elapsed());
        }
        None => {
            // The first version: written straight into shared memory, no copy of it elsewhere.
            state.whole_mut(STATE_BYTES)?.fill(7);
            let started = Instant::now();
            let version = state.commit(durability)?;
            println!("version {version}: all {STATE_BYTES} bytes in {:?}", started.elapsed());
        }
    }

    for round in 0..ROUNDS {
        let started = Instant::now();
        let records = 1 + round as usize % 8;
        let next = state.version() + 1;
        for record in 0..records as u64 {
            // Anywhere in the state; a multiplication scatters well enough for an example.
            let places = STATE_BYTES / RECORD_BYTES as u64;
            let place = (next * 31 + record).wrapping_mul(0x9e37_79b9) % places;
            state.write_at(place * RECORD_BYTES as u64, &[next as u8; RECORD_BYTES])?;
        }
        let version = state.commit(durability)?;
        let changed = records * RECORD_BYTES;
        println!(
            "version {version}: {changed} bytes changed, {durability:?} in {:?}",
            started.elapsed()
        );
    }
    Ok(())
}
