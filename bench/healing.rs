//! How long a ring takes to be whole again, on real servers over TCP: from the death of a node to the
//! view, to the service that goes on elsewhere, to two copies of everything; how fast a large
//! checkpoint is copied to its new mirror beside what the transport can do, and what that does to
//! the commits of others.
//!
//! ```sh
//! cargo bench --bench healing -- 5           # so many rounds each
//! cargo bench --bench healing -- 5 --draw    # and docs/figures/healing.svg anew
//! ```

#[path = "figures/mod.rs"]
mod figures;
#[allow(dead_code)]
#[path = "transport/mod.rs"]
mod transport;

use std::{
    error::Error,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use figures::{Curve, Labels, draw};
use hdrhistogram::Histogram;
use plotters::prelude::IntoLogRange;
use ringkeep::{
    Client, Durability, Options,
    bench::failover::{Death, Failover, State, members},
    protocol::CopyState,
};

const NODES: usize = 4;
const STATE: &str = "state";
const OWNER: usize = 0;
const SIZES: [u64; 3] = [4 << 10, 64 << 20, 512 << 20];
const LARGE: u64 = 512 << 20;
/// So long the others' commits are watched without anything else going on.
const QUIET: Duration = Duration::from_secs(3);

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    println!(
        "A node dies (SIGKILL, and it comes back without its memory); median and worst of {rounds}, in ms"
    );
    println!("{:<10} {:>9} {:>17} {:>17} {:>17}", "detection", "#bytes", "view", "service", "ring");
    let mut curves: Vec<Curve> = Vec::new();
    for detection in ["fast", "normal"] {
        let mut healing = start(detection)?;
        let mut medians = [const { Vec::new() }; 3];
        for bytes in SIZES {
            let state = State { bytes, checkpoints: 1 };
            let mut times: Vec<[Duration; 3]> = Vec::new();
            for _ in 0..rounds {
                let healed = healing.server_dies(state, Death::Killed)?;
                times.push([healed.view, healed.served, healed.whole]);
            }
            let mut column = |at: usize| {
                let mut all: Vec<f64> = times.iter().map(|t| t[at].as_secs_f64() * 1e3).collect();
                all.sort_by(f64::total_cmp);
                let (median, worst) = (all[all.len() / 2], all[all.len() - 1]);
                medians[at].push((bytes as f64, median));
                format!("{median:.0} / {worst:.0}")
            };
            let (view, service, ring) = (column(0), column(1), column(2));
            println!("{detection:<10} {bytes:>9} {view:>17} {service:>17} {ring:>17}");
        }
        healing.end();
        for (until, points) in ["view", "service", "whole ring"].into_iter().zip(medians) {
            curves.push((format!("{until}, --detection {detection}"), points));
        }
    }
    if std::env::args().any(|argument| argument == "--draw") {
        let (file, title) = ("healing", "From the death of a node, median");
        let labels = Labels { file, title, x: "bytes of state", y: "ms" };
        draw(&labels, (10f64..1e4).log_scale(), &curves)?;
    }
    let mut healing = Healing { ring: start("fast")? };
    println!("\nThe node with the mirror of {} MiB dies", LARGE >> 20);
    println!("{:>12} {:>10} {:>12} {:>7}", "prepared ms", "copy GB/s", "stream GB/s", "ratio");
    for _ in 0..rounds {
        let (prepared, rate) = healing.holder_dies_alone()?;
        // As much memory, and pages that are there already.
        let stream = transport::ours(LARGE, 1).1;
        let prepared = prepared.as_secs_f64() * 1e3;
        println!("{prepared:>12.0} {rate:>10.2} {stream:>12.2} {:>7.2}", rate / stream);
    }
    println!("\nThe same beside a service that commits 4 KiB mirrored, median in us");
    println!("{:>12} {:>12} {:>7}", "quiet", "copying", "ratio");
    for _ in 0..rounds {
        let [quiet, copying] = healing.holder_dies_beside_others()?;
        println!("{quiet:>12.1} {copying:>12.1} {:>7.2}", copying / quiet);
    }
    healing.ring.end();
    Ok(())
}

fn start(detection: &str) -> Fallible<Failover> {
    let program = env!("CARGO_BIN_EXE_ringkeep").into();
    let flags = ["--detection", detection, "--memory", "8GiB"];
    Ok(Failover::start(program, NODES, "tcp", &flags, Arc::new(AtomicBool::new(false)))?)
}

struct Healing {
    ring: Failover,
}

impl Healing {
    fn client(&self, node: usize) -> Fallible<Client> {
        Ok(self.ring.ring().node(node).client()?)
    }

    /// A state of this size, committed on `node` and mirrored.
    fn state_on(&self, node: usize, bytes: u64) -> Fallible<()> {
        let options = Options::capacity(bytes).take_over();
        let mut checkpoint = self.client(node)?.open(STATE, options)?;
        let working = checkpoint.whole_mut(bytes)?;
        working.chunks_mut(8).enumerate().for_each(|(at, word)| {
            word.copy_from_slice(&(at as u64).to_le_bytes()[..word.len()]);
        });
        checkpoint.commit(Durability::Mirrored)?;
        Ok(())
    }

    /// A large checkpoint gets a new mirror. From the view to the first bytes: the new holder makes
    /// room, which the system fills with zeros; and GB/s from then on.
    fn holder_dies(&mut self, holder: usize) -> Fallible<(Duration, f64)> {
        let client = self.client(OWNER)?;
        self.ring.ring_mut().node_mut(holder).kill_9();
        self.ring.until(&client, |status| members(status) == NODES - 1)?;
        let begun = Instant::now();
        // When bytes were first seen to be sent, and how many.
        let mut first = None;
        self.ring.until(&client, |status| {
            let Some(state) = status.checkpoints.iter().find(|c| c.name.as_str() == STATE) else {
                return false;
            };
            let sent = state.syncing.first().map_or(0, |copy| copy.sent_bytes);
            if sent > 0 && first.is_none() {
                first = Some((Instant::now(), sent));
            }
            state.mirror.as_ref().is_some_and(|copy| copy.state == CopyState::InSync)
        })?;
        let (since, sent) = first.ok_or("the copy was not seen under way")?;
        let rate = (LARGE - sent) as f64 / since.elapsed().as_secs_f64() / 1e9;
        Ok((since - begun, rate))
    }

    fn holder_dies_alone(&mut self) -> Fallible<(Duration, f64)> {
        self.state_on(OWNER, LARGE)?;
        self.ring.ring().wait_until_protected()?;
        let holder = self.ring.holder_of(OWNER)?;
        let copied = self.holder_dies(holder)?;
        self.ring.replace(holder)?;
        Ok(copied)
    }

    /// The same while a service on another node commits; its median in microseconds before, and from
    /// the death on.
    fn holder_dies_beside_others(&mut self) -> Fallible<[f64; 2]> {
        self.state_on(OWNER, LARGE)?;
        self.ring.ring().wait_until_protected()?;
        // In the ring: the other's node, the next holder, the holder, the owner. The copy goes from
        // the owner to the next holder, and the other's commits from its node to the owner's.
        let holder = self.ring.holder_of(OWNER)?;
        let other = self.ring.holder_of(self.ring.holder_of(holder)?)?;
        let (commits, stop) = (Mutex::new(histogram()), AtomicBool::new(false));
        let mut checkpoint =
            self.client(other)?.open("other", Options::capacity(4096).take_over())?;
        let medians = thread::scope(|scope| {
            let committing = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    if checkpoint.save(&[7; 4096], Durability::Mirrored).is_err() {
                        return false;
                    }
                    let took = begun.elapsed().as_nanos() as u64;
                    commits.lock().unwrap().saturating_record(took);
                }
                true
            });
            let median = || {
                let mut all = commits.lock().unwrap();
                let median = all.value_at_quantile(0.5) as f64 / 1e3;
                all.reset();
                median
            };
            thread::sleep(QUIET / 4);
            median();
            thread::sleep(QUIET);
            let quiet = median();
            let died = self.holder_dies(holder);
            let copying = median();
            stop.store(true, Ordering::Relaxed);
            if !committing.join().map_err(|_| "a panic")? {
                return Err("the other service's commits failed".into());
            }
            died.map(|_| [quiet, copying])
        });
        self.ring.replace(holder)?;
        medians
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}
