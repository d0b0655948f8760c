//! What does a ring take of the processor that has nothing to do?
//!
//! ```sh
//! cargo bench --bench idle -- 40      # so many seconds
//! ```
//!
//! Three real servers over TCP, without checkpoints; what the system says they used once they have
//! formed their ring and nothing changes any more. Nobody asks them anything meanwhile. Wanted is less
//! than 1 % of one core for all three together.

use std::{
    error::Error,
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ringkeep::{
    demo::ring::{LIMIT, Node, Ring},
    protocol::Status,
};

const SERVERS: usize = 3;
const SECONDS_DEFAULT: u64 = 40;
const WANTED_PERCENT: f64 = 1.0;
/// What stays the same for so long does not change any more.
const SETTLED: Duration = Duration::from_secs(2);

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    let seconds = seconds.unwrap_or(SECONDS_DEFAULT);
    let program = Path::new(env!("CARGO_BIN_EXE_ringkeep"));
    let ring = Ring::start(program, SERVERS, "tcp", Arc::default())?;
    ring.wait_until_protected()?;
    settle(&ring)?;
    let (began, before) = (Instant::now(), used(&ring)?);
    thread::sleep(Duration::from_secs(seconds));
    let (lasted, after) = (began.elapsed(), used(&ring)?);
    let percent =
        |used: Duration| used.as_secs_f64() * 100.0 / lasted.as_secs_f64().max(f64::MIN_POSITIVE);
    println!("{SERVERS} idle servers for {:.0} s, in % of one core", lasted.as_secs_f64());
    let mut together = 0.0;
    for ((node, before), after) in ring.nodes().iter().zip(before).zip(after) {
        let percent = percent(after.saturating_sub(before));
        println!("{:<10} {percent:>6.2}", node.name());
        together += percent;
    }
    println!("{:<10} {together:>6.2}   wanted: less than {WANTED_PERCENT}", "together");
    ring.stop();
    Ok(())
}

/// Until every server says the same as a while ago.
fn settle(ring: &Ring) -> Fallible<()> {
    let began = Instant::now();
    let all = || ring.nodes().iter().map(Node::status).collect::<Result<Vec<Status>, _>>();
    let mut last = all()?;
    loop {
        thread::sleep(SETTLED);
        let now = all()?;
        if now == last {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(format!("the ring does not come to rest: {now:?}").into());
        }
        last = now;
    }
}

fn used(ring: &Ring) -> Fallible<Vec<Duration>> {
    ring.nodes().iter().map(|node| used_by(node.pid().ok_or("a server is gone")?)).collect()
}

/// The time of a process in its own code and in the system, without that of its children.
fn used_by(pid: u32) -> Fallible<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may contain anything: the state is the third field, these are the 14th
    // and the 15th; see proc(5).
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    let all = ticks(14).zip(ticks(15)).ok_or("no times in /proc/PID/stat")?;
    let a_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64((all.0 + all.1) as f64 / a_second as f64))
}
