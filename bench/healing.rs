//! How long a ring takes to be whole again, on real servers over TCP: from the death of a node to the
//! view, to the service that goes on elsewhere, to two copies of everything; how fast a large
//! checkpoint is copied to its new mirror beside what the transport can do, and what that does to
//! the commits of others.
//!
//! ```sh
//! cargo bench --bench healing -- 5      # so many rounds each
//! ```

#[allow(dead_code)]
#[path = "transport/mod.rs"]
mod transport;

use std::{
    error::Error,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringkeep::{
    Client, Durability, Options,
    demo::ring::{LIMIT, Ring},
    name::Name,
    protocol::{CopyState, RingState, Status},
};

const NODES: usize = 4;
const STATE: &str = "state";
const SIZES: [u64; 3] = [4 << 10, 64 << 20, 512 << 20];
const LARGE: u64 = 512 << 20;
const LOOK_AFTER: Duration = Duration::from_millis(1);
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
        "A node dies (SIGKILL, its memory files removed); median and worst of {rounds}, in ms"
    );
    println!("{:<10} {:>9} {:>17} {:>17} {:>17}", "detection", "#bytes", "view", "service", "ring");
    for detection in ["fast", "normal"] {
        let mut healing = Healing::start(detection)?;
        for bytes in SIZES {
            let times: Vec<[Duration; 3]> =
                (0..rounds).map(|_| healing.owner_dies(bytes)).collect::<Fallible<_>>()?;
            let column = |at: usize| {
                let mut all: Vec<f64> = times.iter().map(|t| t[at].as_secs_f64() * 1e3).collect();
                all.sort_by(f64::total_cmp);
                format!("{:.0} / {:.0}", all[all.len() / 2], all[all.len() - 1])
            };
            let [view, service, ring] = [0, 1, 2].map(column);
            println!("{detection:<10} {bytes:>9} {view:>17} {service:>17} {ring:>17}");
        }
        healing.ring.stop();
    }
    let mut healing = Healing::start("fast")?;
    println!("\nA node with the mirror of {} MiB dies; others commit 4 KiB mirrored", LARGE >> 20);
    println!(
        "{:>12} {:>12} {:>7} {:>14} {:>14} {:>7}",
        "copy GB/s", "stream GB/s", "ratio", "quiet med us", "copying med us", "ratio"
    );
    for _ in 0..rounds {
        let (rate, quiet, copying) = healing.holder_dies()?;
        let stream = transport::ours(1 << 20, 8).1;
        println!(
            "{rate:>12.2} {stream:>12.2} {:>7.2} {quiet:>14.1} {copying:>14.1} {:>7.2}",
            rate / stream,
            copying / quiet
        );
    }
    healing.ring.stop();
    Ok(())
}

struct Healing {
    ring: Ring,
}

impl Healing {
    fn start(detection: &str) -> Fallible<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_ringkeep"));
        let args = ["--detection", detection, "--memory", "8GiB"];
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self { ring: Ring::start_with(program, NODES, "tcp", &args, stop)? })
    }

    fn client(&self, node: usize) -> Fallible<Client> {
        Ok(self.ring.node(node).client()?)
    }

    /// The node whose memory has this one's mirrors.
    fn holder_of(&self, node: usize) -> Fallible<usize> {
        let status = self.client(node)?.status()?;
        let holder = status.predecessor.ok_or("alone")?;
        Ok(self.ring.index_of(holder.as_str()).ok_or("an unknown node")?)
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

    /// From the death to: the view, the state read and ready elsewhere, two copies of everything.
    fn owner_dies(&mut self, bytes: u64) -> Fallible<[Duration; 3]> {
        let victim = 1;
        self.state_on(victim, bytes)?;
        self.ring.wait_until_protected()?;
        let heir = self.holder_of(victim)?;
        let client = self.client(heir)?;
        let dead = self.kill(victim)?;
        self.until(&client, |status| members(status) == NODES - 1)?;
        let view = dead.elapsed();
        let checkpoint = client.open(STATE, Options::capacity(bytes).existing())?;
        let found = checkpoint.latest()?.ok_or("nothing recovered")?;
        if found.bytes().len() as u64 != bytes {
            return Err("not what was committed".into());
        }
        let service = dead.elapsed();
        for node in (0..NODES).filter(|&node| node != victim) {
            let client = self.client(node)?;
            self.until(&client, |status| {
                members(status) == NODES - 1 && status.state == RingState::Protected
            })?;
        }
        let ring = dead.elapsed();
        drop(checkpoint);
        client.remove(&Name::new(STATE)?)?;
        self.ring.launch(victim)?;
        self.ring.wait_until_protected()?;
        Ok([view, service, ring])
    }

    /// GB/s at which a large checkpoint gets a new mirror, and the median commit of another service,
    /// in µs, before and meanwhile. Its way shares no node's death and no connection with the copy.
    fn holder_dies(&mut self) -> Fallible<(f64, f64, f64)> {
        let owner = 0;
        self.state_on(owner, LARGE)?;
        self.ring.wait_until_protected()?;
        let holder = self.holder_of(owner)?;
        // In the ring: other, next holder, holder, owner; the copy goes from owner to next holder.
        let other = self.holder_of(self.holder_of(holder)?)?;
        let (commits, stop) = (Arc::new(Mutex::new(histogram())), Arc::new(AtomicBool::new(false)));
        let committing = {
            let mut checkpoint =
                self.client(other)?.open("other", Options::capacity(4096).take_over())?;
            let (commits, stop) = (Arc::clone(&commits), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    // Its own mirror may move, which takes some commits longer.
                    if checkpoint.save(&[7; 4096], Durability::Mirrored).is_err() {
                        return false;
                    }
                    let took = begun.elapsed().as_nanos() as u64;
                    commits.lock().unwrap().saturating_record(took);
                }
                true
            })
        };
        thread::sleep(Duration::from_millis(200));
        let median = || {
            let mut all = commits.lock().unwrap();
            let median = all.value_at_quantile(0.5) as f64 / 1e3;
            all.reset();
            median
        };
        median();
        thread::sleep(QUIET);
        let quiet = median();
        let client = self.client(owner)?;
        self.kill(holder)?;
        self.until(&client, |status| members(status) == NODES - 1)?;
        let begun = Instant::now();
        median();
        self.until(&client, |status| {
            let state = status.checkpoints.iter().find(|c| c.name.as_str() == STATE);
            state.is_some_and(|c| c.mirrors.iter().any(|copy| copy.state == CopyState::InSync))
        })?;
        let rate = LARGE as f64 / begun.elapsed().as_secs_f64() / 1e9;
        let copying = median();
        stop.store(true, Ordering::Relaxed);
        if !committing.join().map_err(|_| "a panic")? {
            return Err("the other service's commits failed".into());
        }
        self.ring.launch(holder)?;
        self.ring.wait_until_protected()?;
        Ok((rate, quiet, copying))
    }

    fn kill(&mut self, node: usize) -> Fallible<Instant> {
        let dead = Instant::now();
        self.ring.node_mut(node).kill_9();
        self.ring.node(node).wipe_memory()?;
        Ok(dead)
    }

    fn until(&self, client: &Client, is: impl Fn(&Status) -> bool) -> Fallible<()> {
        let deadline = Instant::now() + LIMIT;
        while !is(&client.status()?) {
            if Instant::now() > deadline {
                return Err(format!("waited {LIMIT:?}: {:?}", client.status()?).into());
            }
            thread::sleep(LOOK_AFTER);
        }
        Ok(())
    }
}

fn members(status: &Status) -> usize {
    status.view.as_ref().map_or(0, |view| view.members.len())
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}
