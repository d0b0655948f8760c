//! How soon a ring of real servers goes on without a node that died, and whether it ever goes on
//! without one that lives.
//!
//! ```sh
//! cargo bench --bench detection -- kills 30      # rounds for each profile and each way to die
//! cargo bench --bench detection -- load 600 3    # seconds of full load, servers (and a profile)
//! ```
//!
//! `kills` wants a quiet machine. `load` keeps all cores busy four times over, fails when a view
//! changes meanwhile, and kills a server at the end. It also shows how late the membership's timers
//! ran. All other times are those of the servers' own logs.

use std::{
    error::Error,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use hdrhistogram::Histogram;
use ringkeep::demo::ring::{self, LIMIT, Node, Ring};

const ROUNDS_DEFAULT: u64 = 10;
const SECONDS_DEFAULT: u64 = 20;
const SERVERS_DEFAULT: usize = 3;
const PROFILE_DEFAULT: &str = "normal";
/// Busy threads for each core.
const BUSY_PER_CORE: usize = 4;
/// How often the logs are looked at under load.
const LOOK: Duration = Duration::from_secs(1);

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !args.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let words: Vec<&str> = args.iter().map(String::as_str).filter(|a| *a != "--bench").collect();
    match words[..] {
        [] => kills(ROUNDS_DEFAULT)
            .and_then(|()| load(SECONDS_DEFAULT, SERVERS_DEFAULT, PROFILE_DEFAULT)),
        ["kills"] => kills(ROUNDS_DEFAULT),
        ["kills", rounds] => kills(rounds.parse()?),
        ["load"] => load(SECONDS_DEFAULT, SERVERS_DEFAULT, PROFILE_DEFAULT),
        ["load", seconds] => load(seconds.parse()?, SERVERS_DEFAULT, PROFILE_DEFAULT),
        ["load", seconds, servers] => load(seconds.parse()?, servers.parse()?, PROFILE_DEFAULT),
        ["load", seconds, servers, profile] => load(seconds.parse()?, servers.parse()?, profile),
        _ => Err("usage: detection [kills [ROUNDS] | load [SECONDS [SERVERS [PROFILE]]]]".into()),
    }
}

/// How a server dies.
#[derive(Clone, Copy)]
enum Death {
    /// SIGKILL: the system closes its connections.
    Killed,
    /// SIGSTOP: it falls silent, as when the power fails.
    Silent,
}

impl Death {
    fn befall(self, node: &mut Node) -> SystemTime {
        let at = SystemTime::now();
        match self {
            Self::Killed => node.kill_9(),
            Self::Silent => node.pause(),
        }
        at
    }
}

fn kills(rounds: u64) -> Fallible<()> {
    println!(
        "{:<8} {:<7} {:>6}  {:>9} {:>9} {:>9} {:>9}   to the new view on every survivor, ms",
        "profile", "death", "rounds", "min", "median", "p99", "max"
    );
    for profile in ["fast", "normal"] {
        for (death, name) in [(Death::Killed, "kill"), (Death::Silent, "silent")] {
            let times = deaths(profile, death, rounds)?;
            let ms = |micros: u64| micros as f64 / 1e3;
            println!(
                "{profile:<8} {name:<7} {:>6}  {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                times.len(),
                ms(times.min()),
                ms(times.value_at_quantile(0.5)),
                ms(times.value_at_quantile(0.99)),
                ms(times.max()),
            );
        }
    }
    Ok(())
}

/// One server after the other dies and comes back.
fn deaths(profile: &str, death: Death, rounds: u64) -> Fallible<Histogram<u64>> {
    let mut ring = start(SERVERS_DEFAULT, &["--detection", profile])?;
    let mut times = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    for round in 0..rounds {
        let victim = round as usize % SERVERS_DEFAULT;
        let all = gone(&mut ring, victim, death)?;
        times.saturating_record(all.as_micros() as u64);
        let node = ring.node_mut(victim);
        node.kill_9();
        node.wipe_memory()?;
        ring.launch(victim)?;
        for index in 0..SERVERS_DEFAULT {
            ring.wait_for_members(index, SERVERS_DEFAULT)?;
        }
    }
    ring.stop();
    Ok(times)
}

/// Until every survivor has a view without the victim.
fn gone(ring: &mut Ring, victim: usize, death: Death) -> Fallible<Duration> {
    let died = death.befall(ring.node_mut(victim));
    let name = ring.node(victim).name().to_owned();
    let never = AtomicBool::new(false);
    let mut last = Duration::ZERO;
    for survivor in ring.nodes().iter().filter(|node| node.name() != name) {
        let installed = ring::poll(&format!("a view without {name}"), LIMIT, &never, || {
            let views = views(survivor).map_err(|e| e.to_string())?;
            let without = |view: &&Installed| view.at >= died && !view.ring.contains(&name);
            let found = views.iter().find(without).map(|view| view.at);
            found.ok_or_else(|| format!("{views:?}"))
        })?;
        last = last.max(installed.duration_since(died)?);
    }
    Ok(last)
}

fn load(seconds: u64, servers: usize, profile: &str) -> Fallible<()> {
    let mut ring = start(servers, &["--detection", profile, "--metrics", "127.0.0.1:0"])?;
    let before = count_views(&ring)?;
    let busy = Busy::start()?;
    println!("{servers} servers beside {} busy threads for {seconds} s", busy.threads.len());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        thread::sleep(LOOK.min(end - Instant::now()));
        let now = count_views(&ring)?;
        if now != before {
            tell_suspicions(&ring)?;
            return Err(format!("a view changed although nobody died: {before} → {now}").into());
        }
    }
    println!("no view changed");
    tell_suspicions(&ring)?;
    for node in ring.nodes() {
        println!("  {}: timers late by at most … s: {}", node.name(), lateness(node)?);
    }
    let killed = gone(&mut ring, servers - 1, Death::Killed)?;
    println!("killed under this load: new view on every survivor after {killed:.1?}");
    drop(busy);
    ring.stop();
    Ok(())
}

fn start(servers: usize, args: &[&str]) -> Fallible<Ring> {
    let program = Path::new(env!("CARGO_BIN_EXE_ringkeep"));
    let args: Vec<&str> = ["--log-format", "json"].iter().chain(args).copied().collect();
    Ok(Ring::start_with(program, servers, "tcp", &args, Arc::default())?)
}

/// Threads that want every core for themselves.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Fallible<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = thread::available_parallelism()?.get() * BUSY_PER_CORE;
        let spin = |stop: Arc<AtomicBool>| move || while !stop.load(Ordering::Relaxed) {};
        let threads = (0..count).map(|_| thread::spawn(spin(stop.clone()))).collect();
        Ok(Self { stop, threads })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A view that a server installed.
#[derive(Debug)]
struct Installed {
    at: SystemTime,
    ring: Vec<String>,
}

fn views(node: &Node) -> Fallible<Vec<Installed>> {
    let mut views = Vec::new();
    for line in log(node)? {
        let fields = &line["fields"];
        if fields["message"] == "view installed" {
            let at = humantime::parse_rfc3339(line["timestamp"].as_str().unwrap_or_default())?;
            let ring = fields["ring"].as_str().unwrap_or_default();
            views.push(Installed { at, ring: ring.split(" → ").map(str::to_owned).collect() });
        }
    }
    Ok(views)
}

/// What a server logged; a line that is just being written is left for later.
fn log(node: &Node) -> Fallible<Vec<serde_json::Value>> {
    let text = fs::read_to_string(node.log())?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Of all runs of a server's membership timer, how many were so late.
fn lateness(node: &Node) -> Fallible<String> {
    let lines = log(node)?;
    let serving = lines.iter().find(|line| line["fields"]["message"] == "serving metrics");
    let address = serving.and_then(|line| line["fields"]["address"].as_str());
    let mut stream = TcpStream::connect(address.ok_or("no metrics in the log")?)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let bucket = |line: &str| {
        let line = line.strip_prefix("ringkeep_membership_lateness_seconds_bucket{le=\"")?;
        let (bound, count) = line.split_once("\"} ")?;
        Some(format!("{bound}: {count}"))
    };
    Ok(page.lines().filter_map(bucket).collect::<Vec<_>>().join(", "))
}

fn count_views(ring: &Ring) -> Fallible<usize> {
    ring.nodes().iter().map(|node| Ok(views(node)?.len())).sum()
}

fn tell_suspicions(ring: &Ring) -> Fallible<()> {
    for node in ring.nodes() {
        for line in log(node)? {
            let fields = &line["fields"];
            let about_late = fields.get("late_ms").is_some();
            if about_late || fields.get("suspect").is_some() {
                println!("  {}: {} {fields}", node.name(), line["timestamp"]);
            }
        }
    }
    Ok(())
}
