//! Does a commit take the same, however many checkpoints a server has, however many services commit at
//! once, and however large the state is? And what memory does a checkpoint take beside its bytes?
//!
//! ```sh
//! cargo bench --bench scale
//! ```
//!
//! On a ring of three real servers. What is compared takes turns in one run: read the ratios. Those of
//! many at once come one after the other. Their limit is as many round trips of TCP at the same pace, each
//! with a connection and an answering thread of its own; one that is handed over took longer. Below 1, a
//! server does at once for many what each of them would do alone.

use std::{
    error::Error,
    fs, io,
    path::Path,
    sync::{Arc, Barrier, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use ringkeep::{
    Client, Durability,
    bench::{
        commits::{Commits, Work},
        limits::{PingPong, Waiting},
        room,
        turns::{Budget, Contender, Times, take_turns},
    },
    demo::ring::{Node, Ring},
};

const MANY: usize = 1000;
const LEN: u64 = 4096;
const SERVICES: usize = 64;
const COMMITS_A_SECOND: u32 = 10_000;
/// How long somebody looks before it sleeps, as services do unless told otherwise.
const SPIN: Duration = Duration::from_micros(100);
const LASTS: Duration = Duration::from_secs(5);
/// States of which one block changes between two commits.
const STATES: [u64; 4] = [64 << 10, 16 << 20, 256 << 20, 1 << 30];
/// The largest, committed locally. Its mirror gets it all the same.
const LARGEST: u64 = 4 << 30;
/// Two slots on each of two nodes, and what they are written from.
const COPIES: u64 = 5;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let program = Path::new(env!("CARGO_BIN_EXE_ringkeep"));
    let ring = Ring::start(program, 3, "tcp", Arc::clone(&stop))?;
    ring.wait_until_protected()?;
    let client = ring.node(0).client()?;
    many_checkpoints(&ring, &client, &stop)?;
    many_services(&ring, &stop)?;
    large_states(&client, &stop)?;
    ring.stop();
    Ok(())
}

fn work(len: u64, checkpoints: usize, durability: Durability) -> Work {
    Work { len, checkpoints, durability, inflight: 1, dirty_percent: 100.0, spin: SPIN }
}

fn budget(time: Duration) -> Budget {
    Budget { steps: None, time, warm_up: 3 }
}

fn row(what: &str, times: &Times, beside: &Times) {
    let us = |share| times.quantile(share) as f64 / 1e3;
    let ratio = times.quantile(0.5) as f64 / beside.quantile(0.5).max(1) as f64;
    println!(
        "{what:<44} {:>9} {:>10.1} {:>10.1} {ratio:>7.2}x",
        times.histogram.len(),
        us(0.5),
        us(0.99)
    );
}

fn head(what: &str) {
    println!("\n{what:<44} {:>9} {:>10} {:>10} {:>8}", "commits", "median us", "p99 us", "ratio");
}

fn many_checkpoints(ring: &Ring, client: &Client, stop: &AtomicBool) -> Fallible<()> {
    head("mirrored, 4 KiB, in turns over");
    let mut one = Commits::start(client, "one", work(LEN, 1, Durability::Mirrored), stop)?;
    let before = Footprint::of(ring)?;
    let mut many = Commits::start(client, "many", work(LEN, MANY, Durability::Mirrored), stop)?;
    let after = Footprint::of(ring)?;
    let contenders: [&mut dyn Contender; 2] = [&mut one, &mut many];
    let [one, all] = take_turns(contenders, budget(LASTS), stop)?;
    row("1 checkpoint", &one, &one);
    row(&format!("{MANY} checkpoints"), &all, &one);
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / MANY as f64 / 1024.0;
    println!(
        "a checkpoint of 4 KiB: {:.1} KiB of region files (its own and the mirror), {:.1} KiB in the \
         servers",
        each(after.files, before.files),
        each(after.servers, before.servers)
    );
    Ok(())
}

/// Bytes that the ring's servers take.
struct Footprint {
    /// Region files on all nodes.
    files: u64,
    /// Private and shared memory of all server processes but region files.
    servers: u64,
}

impl Footprint {
    fn of(ring: &Ring) -> Fallible<Self> {
        let (mut files, mut servers) = (0, 0);
        for node in ring.nodes() {
            files += bytes_in(&node.dir())?;
            servers += anonymous(node)?;
        }
        Ok(Self { files, servers })
    }
}

fn bytes_in(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "region") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn anonymous(node: &Node) -> Fallible<u64> {
    let pid = node.pid().ok_or("a server is gone")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// Each on a thread and a connection of its own.
fn many_services(ring: &Ring, stop: &AtomicBool) -> Fallible<()> {
    head("mirrored, 4 KiB, a thread each");
    let every = Duration::from_secs(1) * SERVICES as u32 / COMMITS_A_SECOND;
    let services = |name: &str, count: usize, checkpoints: usize, every: Duration| {
        let clients = (0..count).map(|_| ring.node(0).client()).collect::<Result<Vec<_>, _>>()?;
        together(count, every, |number| {
            // As even as they can be shared out.
            let own = (number..checkpoints).step_by(count).count();
            let work = work(LEN, own, Durability::Mirrored);
            Ok(Commits::start(&clients[number], &format!("{name}.{number}"), work, stop)?)
        })
    };
    let one = services("alone", 1, 1, every)?;
    row("1 service, one commit each 6.4 ms", &one, &one);
    let paced = services("paced", SERVICES, SERVICES, every)?;
    row(&format!("{SERVICES} services, {COMMITS_A_SECOND} commits/s together"), &paced, &one);
    let busy = services("busy", SERVICES, SERVICES, Duration::ZERO)?;
    row(&format!("{SERVICES} services, as fast as they can"), &busy, &one);
    println!("{:.0} commits/s", a_second(&busy));

    head(&format!("mirrored, 4 KiB, {SERVICES} at once, {COMMITS_A_SECOND}/s together"));
    let wait = Waiting::Looking(SPIN);
    let limit = together(SERVICES, every, |_| Ok(PingPong::start(LEN as usize, wait)?))?;
    row("the limit: copies, round trips of TCP", &limit, &limit);
    let many = services("spread", SERVICES, MANY, every)?;
    row(&format!("commits over {MANY} checkpoints"), &many, &limit);
    println!("{:.0} round trips/s, {:.0} commits/s", a_second(&limit), a_second(&many));
    Ok(())
}

/// Of those that took turns with nobody.
fn a_second(times: &Times) -> f64 {
    times.histogram.len() as f64 / LASTS.as_secs_f64()
}

/// So many at once, each a step each time that so much has passed.
fn together<C: Contender>(
    count: usize,
    every: Duration,
    start: impl Fn(usize) -> Fallible<C> + Sync,
) -> Fallible<Times> {
    let begin = Barrier::new(count);
    let one = |number| -> Result<Vec<Duration>, String> {
        let started = start(number);
        begin.wait(); // also for one that fails: the others wait for it
        paced(started.map_err(|e| e.to_string())?, every).map_err(|e| e.to_string())
    };
    let all = thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic")).collect::<Vec<_>>()
    });
    let mut times = Vec::new();
    for one in all {
        times.extend(one??);
    }
    Ok(Times::of(times))
}

fn paced(mut contender: impl Contender, every: Duration) -> Fallible<Vec<Duration>> {
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < LASTS {
        // Somebody who has something to do between two steps.
        thread::sleep((every * took.len() as u32).saturating_sub(began.elapsed()));
        took.push(contender.step()?);
    }
    Ok(took)
}

fn large_states(client: &Client, stop: &AtomicBool) -> Fallible<()> {
    for (durability, states) in
        [(Durability::Mirrored, &STATES[..]), (Durability::Local, &[STATES[0], LARGEST])]
    {
        head(&format!("{durability:?}, 4 KiB changed of"));
        let mut first = None;
        for &len in states {
            if room::free_bytes().is_some_and(|free| free < COPIES * len) {
                println!("{} MiB left out: it takes {COPIES} times as much memory", len >> 20);
                continue;
            }
            let one_block = Work { dirty_percent: 1e-9, ..work(len, 1, durability) };
            let mut commits = Commits::start(client, "large", one_block, stop)?;
            let [times] = take_turns([&mut commits], budget(LASTS / 5), stop)?;
            let first = first.get_or_insert_with(|| times.clone());
            row(&format!("{} MiB", len as f64 / f64::from(1 << 20)), &times, first);
        }
    }
    Ok(())
}
