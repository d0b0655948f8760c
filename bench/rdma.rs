//! Mirrored commits over RDMA beside what the device itself can do, measured by perftest in the same
//! run. Compare ratios, not times: an emulated machine is slow in all of them alike.
//!
//! ```sh
//! cargo bench --bench rdma                    # where there is an RDMA device and perftest
//! soft-roce/vm.sh target/release/deps/rdma-… --bench
//! ```

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringkeep::{
    Checkpoint, Durability, Options,
    bench::{rdma::Writes, turns::Contender},
    demo::ring::Ring,
    transport::verbs::discovery,
};

const LATENCY_SIZES: [usize; 2] = [64, 4096];
const STREAM_SIZE: usize = 1 << 20;
const ROUNDS: usize = 5;
/// Not measured at the begin of each turn.
const WARM_UP: usize = 20;
/// How long a committing client looks for the answer before it sleeps.
const SPIN: Duration = Duration::from_millis(100);
const COMMITS: usize = 300;
const STREAM_COMMITS: usize = 12;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    // `cargo test --benches` runs this, too: then it only has to compile.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let devices = discovery::devices();
    let device = devices.iter().find(|device| device.problem.is_none());
    let Some(device) = device else {
        println!("NOT MEASURED: no RDMA device; run this in soft-roce/vm.sh");
        return Ok(());
    };
    let address = device.addresses[0];
    let program = std::env::var_os("RINGKEEP_BIN");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_ringkeep").into());
    let mut ring = Ring::start(Path::new(&program), 2, "rdma", Arc::new(AtomicBool::new(false)))?;
    // As perftest does, the poster looks for its completion without ever sleeping.
    ring.node_mut(0).set_args(&["--poll", "busy"]);
    ring.node_mut(0).terminate();
    ring.launch(0)?;
    ring.wait_for_members(0, 2)?;
    let client = ring.node(0).client()?;
    let mut checkpoints = BTreeMap::new();
    for size in LATENCY_SIZES.into_iter().chain([STREAM_SIZE]) {
        let options = Options::capacity(size as u64).spin(SPIN);
        let checkpoint = client.open(&format!("bench-{size}"), options)?;
        checkpoints.insert(size, checkpoint);
    }
    let holder = ring.node(1).pid().ok_or("the holder is gone")?;
    let mut ours: BTreeMap<usize, Histogram<u64>> = BTreeMap::new();
    let mut posted: BTreeMap<usize, Histogram<u64>> = BTreeMap::new();
    let mut perftest: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut holder_ran = Duration::ZERO;
    for _ in 0..ROUNDS {
        for (&size, checkpoint) in &mut checkpoints {
            let count = if size == STREAM_SIZE { STREAM_COMMITS } else { COMMITS };
            let times = ours.entry(size).or_insert_with(histogram);
            let before = data_plane_time(holder)?;
            turn(count, times, || commit(checkpoint, size))?;
            holder_ran += data_plane_time(holder)?.saturating_sub(before);
        }
    }
    drop(checkpoints);
    ring.stop(); // a server that never sleeps would take perftest's processor
    let mut raw: BTreeMap<usize, Writes> = BTreeMap::new();
    for &size in ours.keys() {
        raw.insert(size, Writes::open(size, 1)?);
    }
    for _ in 0..ROUNDS {
        for (&size, writes) in &mut raw {
            let count = if size == STREAM_SIZE { STREAM_COMMITS } else { COMMITS };
            let times = posted.entry(size).or_insert_with(histogram);
            turn(count, times, || write(writes))?;
            perftest.entry(size).or_default().push(match size {
                STREAM_SIZE => run_perftest("ib_write_bw", &device.name, size, 60, 3)?,
                _ => run_perftest("ib_write_lat", &device.name, size, 1000, 4)?,
            });
        }
    }
    println!("device {} at {address}; median of {ROUNDS} turns each", device.name);
    println!(
        "{:>8}  {:<34} {:>11} {:>11} {:>11} {:>8}",
        "#bytes", "", "min[us]", "median[us]", "p99[us]", "ratio"
    );
    for (size, times) in &ours {
        let theirs = median(&perftest[size]);
        let stream = *size == STREAM_SIZE;
        // A one-way time, doubled to a round trip; or the time that one of a stream takes.
        let (limit, name) = match stream {
            true => (*size as f64 / (theirs * (1 << 20) as f64) * 1e6, "ib_write_bw, one message"),
            false => (2.0 * theirs, "ib_write_lat, doubled"),
        };
        let line = |name: &str, times: &Histogram<u64>| {
            let us = |ns: u64| ns as f64 / 1e3;
            let middle = us(times.value_at_quantile(0.5));
            let (min, p99) = (us(times.min()), us(times.value_at_quantile(0.99)));
            let ratio = if stream { limit / middle } else { middle / limit };
            println!("{size:>8}  {name:<34} {min:>11.1} {middle:>11.1} {p99:>11.1} {ratio:>7.2}x");
        };
        line("mirrored commit", times);
        line("a write posted and completed", &posted[size]);
        println!("{size:>8}  {name:<34} {:>11} {limit:>11.1} {:>11} {:>7.2}x", "", "", 1.0);
    }
    println!("the holder's data plane ran {holder_ran:?} during all of these commits");
    let mut fenced = Writes::open(STREAM_SIZE, 1)?;
    let mut fences = Vec::new();
    for _ in 0..20 {
        fences.push(fenced.fence()?.as_secs_f64() * 1e3);
    }
    println!("a fence took {:.3} ms (median of 20)", median(&fences));
    let mut connecting = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        write(&mut Writes::open(8, 1)?)?;
        connecting.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let took = median(&connecting);
    println!("two devices opened, connected and the first write done: {took:.1} ms (median of 10)");
    Ok(())
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn turn(
    count: usize,
    times: &mut Histogram<u64>,
    mut once: impl FnMut() -> Fallible<()>,
) -> Fallible<()> {
    for number in 0..count + WARM_UP.min(count) {
        let started = Instant::now();
        once()?;
        let took = started.elapsed();
        if number >= WARM_UP.min(count) {
            times.saturating_record(took.as_nanos() as u64);
        }
    }
    Ok(())
}

fn commit(checkpoint: &mut Checkpoint, size: usize) -> Fallible<()> {
    let buffer = checkpoint.whole_mut(size as u64)?;
    buffer[0] = buffer[0].wrapping_add(1);
    checkpoint.commit(Durability::Mirrored)?;
    Ok(())
}

fn write(writes: &mut Writes) -> Fallible<()> {
    writes.step()?;
    Ok(())
}

/// How long the thread that the mirror's server would need for a commit has run.
fn data_plane_time(pid: u32) -> Fallible<Duration> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "data-plane" {
            let all = fs::read_to_string(task.join("schedstat"))?;
            let ran = all.split_whitespace().next().ok_or("an empty schedstat")?;
            return Ok(Duration::from_nanos(ran.parse()?));
        }
    }
    Err("the server has no data plane".into())
}

/// Runs both ends of a perftest program on this machine and answers one column of its result.
fn run_perftest(
    program: &str,
    device: &str,
    size: usize,
    iterations: usize,
    column: usize,
) -> Fallible<f64> {
    let command = || {
        let mut command = Command::new(program);
        command.args(["-d", device, "-F", "-s", &size.to_string(), "-n", &iterations.to_string()]);
        command
    };
    let mut server = Ended(command().stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let mut last = String::new();
    // The server may not listen yet.
    for _ in 0..50 {
        let output = command().arg("127.0.0.1").output()?;
        last = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            server.0.wait()?;
            let line = last.lines().rfind(|l| l.trim_start().starts_with(&size.to_string()));
            let value = line.and_then(|l| l.split_whitespace().nth(column));
            let value: f64 = value.ok_or("no result")?.parse()?;
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            return run_perftest(program, device, size, iterations, column);
        }
        if server.0.try_wait()?.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(format!("{program} gave no result: {last}").into())
}

/// A process that does not outlive its measurement.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
