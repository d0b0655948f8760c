//! What a view change costs: messages, bytes and time against the size of the ring, over the real
//! membership machines in simulated time; and what it takes of the processor.
//!
//! `cargo bench --bench membership_cost` prints the tables of `docs/membership.md`; with `-- --draw` it
//! draws its `docs/figures/*.svg` anew. The network delays each message by 50 to 200 µs and loses nothing; timers are
//! those of the default. Times are the simulation's: they contain no processor time.
//!
//! The table of processor time stands by itself: one round in which a member asks to go, from the
//! question until all have the view, and one heartbeat interval of one member. The machines run one
//! after the other and messages arrive at once, so it is what the machines do and nothing else. *All
//! together* is what one core takes for every member's part; in a ring each member does its own, of
//! which *a member* is the mean. `cargo bench --bench membership_cost -- processor` prints it alone.
#![allow(missing_docs)]

#[path = "figures/mod.rs"]
mod figures;
#[path = "../tests/membership_net/mod.rs"]
#[allow(dead_code)]
mod membership_net;
#[path = "paths/mod.rs"]
#[allow(dead_code)]
mod paths;

use std::{env, error::Error, time::Instant};

use figures::{Curve, Labels, draw};
use membership_net::{Faults, Net, QUIET};
use paths::{
    Path, TIME_PER_ROW,
    membership::{Heartbeat, Ring},
};
use plotters::prelude::IntoLogRange;
use ringkeep::membership::{Config, Event};

const SIZES: [usize; 7] = [3, 5, 10, 30, 100, 300, 1000];
const KINDS: [&str; 7] = ["propose", "ack", "nack", "prepare", "promise", "accept", "accepted"];
const TOLD: [&str; 2] = ["decided", "install"];
const LIMIT_MS: u64 = 20_000;
/// A step is timed so often at least.
const STEPS_MIN: usize = 3;

fn network(seed: u64, size: usize) -> Net {
    let mut net = Net::formed(Config::default(), seed, size);
    net.faults = Faults { delay_min: 50, delay_max: 200, ..QUIET };
    net.run_ms(250);
    net.sent.clear();
    net.bytes.clear();
    net.weigh = true;
    net
}

struct Cost {
    messages: usize,
    bytes: usize,
    /// Until the first voter was asked, and until the last one had the view.
    asked_ms: f64,
    done_ms: f64,
}

/// What it takes from now on until everybody agrees.
fn cost(net: &mut Net) -> Cost {
    let began = net.now;
    let since = |net: &Net| net.now.since(began).as_secs_f64() * 1e3;
    let asked = |net: &Net| net.sent.contains_key("propose");
    assert!(net.run_until(LIMIT_MS, asked), "nothing was proposed");
    let asked_ms = since(net);
    assert!(net.run_until(LIMIT_MS, Net::is_whole), "not agreed{}", net.describe());
    let done_ms = since(net);
    let kinds = || KINDS.iter().chain(&TOLD);
    Cost {
        messages: kinds().filter_map(|kind| net.sent.get(kind)).map(Vec::len).sum(),
        bytes: kinds().filter_map(|kind| net.bytes.get(kind)).sum(),
        asked_ms,
        done_ms,
    }
}

fn removal(size: usize) -> Cost {
    let mut net = network(1, size);
    net.kill(&format!("n{:04}", size / 2));
    cost(&mut net)
}

fn join(size: usize) -> Cost {
    let mut net = network(2, size);
    net.join("x");
    cost(&mut net)
}

/// Both steps of it.
fn leave(size: usize) -> Cost {
    let mut net = network(3, size);
    let leaver = format!("n{:04}", size / 2);
    net.event(&leaver, Event::Leave);
    let first = cost(&mut net);
    net.event(&leaver, Event::HandedOver);
    let began = net.now;
    assert!(net.run_until(LIMIT_MS, |net| net.nodes[&leaver].left && net.is_whole()));
    let all = |map: &dyn Fn(&str) -> usize| KINDS.iter().chain(&TOLD).map(|kind| map(kind)).sum();
    Cost {
        messages: all(&|kind| net.sent.get(kind).map_or(0, Vec::len)),
        bytes: all(&|kind| net.bytes.get(kind).copied().unwrap_or(0)),
        asked_ms: first.asked_ms,
        done_ms: first.done_ms + net.now.since(began).as_secs_f64() * 1e3,
    }
}

/// Of so many pairs of failures within a time of each other, how many needed a second ballot, in
/// percent.
fn contested(size: usize, apart_ms: u64) -> f64 {
    const RUNS: u64 = 200;
    let second = (0..RUNS).filter(|&seed| {
        let mut net = network(seed, size);
        net.weigh = false;
        let mut victims: Vec<u64> = (0..size as u64).collect();
        let mut victim = |net: &mut Net| {
            let at = net.rng.below(victims.len() as u64) as usize;
            format!("n{:04}", victims.swap_remove(at))
        };
        let (one, other) = (victim(&mut net), victim(&mut net));
        net.kill(&one);
        let pause = net.rng.below(apart_ms + 1);
        net.run_ms(pause);
        net.kill(&other);
        assert!(net.run_until(LIMIT_MS, Net::is_whole), "seed {seed}{}", net.describe());
        net.sent.contains_key("prepare")
    });
    second.count() as f64 * 100.0 / RUNS as f64
}

/// The median of a step, in microseconds.
fn median_us(mut path: impl Path) -> f64 {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < STEPS_MIN || begin.elapsed() < TIME_PER_ROW {
        let began = Instant::now();
        path.step();
        times.push(began.elapsed().as_secs_f64() * 1e6);
        path.settle();
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn processor_time() {
    println!("| members | a view change, all together, µs | a member, µs | a heartbeat, µs |");
    println!("| --- | --- | --- | --- |");
    for size in [3, 10, 100, 1000] {
        let (view, beat) = (median_us(Ring::formed(size)), median_us(Heartbeat::new(size)));
        println!("| {size} | {view:.0} | {:.1} | {beat:.2} |", view / size as f64);
    }
}

/// Makes one change in a ring of this size.
type Change = fn(usize) -> Cost;
fn main() -> Result<(), Box<dyn Error>> {
    processor_time();
    if env::args().any(|argument| argument == "processor") {
        return Ok(());
    }
    let draws = env::args().any(|argument| argument == "--draw");
    println!();
    let kinds: [(&str, Change); 3] =
        [("removal", removal), ("join", join), ("leave, both steps", leave)];
    println!("| change | members | messages | bytes | first asked, ms | all have the view, ms |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let (mut messages, mut bytes): (Vec<Curve>, Vec<Curve>) = Default::default();
    for (name, change) in kinds {
        let costs: Vec<(usize, Cost)> = SIZES.iter().map(|&size| (size, change(size))).collect();
        for (size, Cost { messages, bytes, asked_ms, done_ms }) in &costs {
            println!("| {name} | {size} | {messages} | {bytes} | {asked_ms:.1} | {done_ms:.1} |");
        }
        let curve = |of: &dyn Fn(&Cost) -> usize| {
            costs.iter().map(|(size, cost)| (*size as f64, of(cost) as f64)).collect()
        };
        messages.push((name.to_owned(), curve(&|cost| cost.messages)));
        bytes.push((name.to_owned(), curve(&|cost| cost.bytes)));
    }
    if draws {
        let (file, title) = ("view-messages", "Messages of one view change");
        let labels = Labels { file, title, x: "members", y: "messages" };
        draw(&labels, (1f64..2e4).log_scale(), &messages)?;
        let (file, title) = ("view-bytes", "Bytes of one view change");
        let labels = Labels { file, title, x: "members", y: "bytes" };
        draw(&labels, (10f64..1e6).log_scale(), &bytes)?;
    }

    println!("\n| members | failures at most so far apart, ms | needed a second ballot, % |");
    println!("| --- | --- | --- |");
    let mut curves: Vec<Curve> = Vec::new();
    for size in [5, 10, 30] {
        let mut points = Vec::new();
        for apart_ms in [0, 1, 10, 50, 200, 1000] {
            let percent = contested(size, apart_ms);
            println!("| {size} | {apart_ms} | {percent:.1} |");
            points.push(((apart_ms as f64).max(0.1), percent));
        }
        curves.push((format!("{size} members"), points));
    }
    if draws {
        let (file, title) = ("second-ballots", "Two failures that needed a second ballot");
        let labels = Labels { file, title, x: "apart at most, ms", y: "percent" };
        draw(&labels, 0f64..10.0, &curves)?;
    }
    Ok(())
}
