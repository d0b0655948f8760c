//! `ringkeep bench`.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use serde::Serialize;

use super::{
    args::{
        BenchArgs, BenchCommand, BenchCommitArgs, BenchRestoreArgs, BenchTransportArgs, Global,
        MeasureArgs,
    },
    exit::{self, Exit, Failure, Outcome},
    print_json, signals, socket_path, this_program,
    values::{Poll, Size, TransportChoice, text_of},
};
use crate::{
    bench::{
        BenchError,
        commits::{Commits, Work},
        limits::{Memory, PingPong, Waiting},
        report::Row,
        restores::{Left, Way},
        turns::{Budget, Contender, take_turns},
    },
    client::{Client, Durability},
    demo::ring::{Ring, RingError},
    name::Name,
    protocol::RingState,
};

/// Servers of a ring that is started for a measurement.
const SERVERS: usize = 3;
/// How long a server and its clients look before they sleep, unless told otherwise.
const LOOK: Duration = Duration::from_micros(20);
/// As good as for ever.
const LONG: Duration = Duration::from_secs(3600);
/// Memory must fit several times.
const SIZE_MAX: u64 = 4 << 30;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ring: Option<&'a Where>,
    rows: Vec<Row>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Where {
    /// The servers were started for this.
    started: bool,
    node: String,
    transport: String,
    members: usize,
    hugepages: bool,
}

/// Where to commit.
struct Target {
    client: Client,
    /// Ends with this.
    ring: Option<Ring>,
    at: Where,
}

pub(super) fn run(global: &Global, args: &BenchArgs) -> Outcome {
    let stop = signals::stop_flag()?;
    match &args.what {
        BenchCommand::Commit(args) => commit(global, args, &stop),
        BenchCommand::Restore(args) => restore(global, args, &stop),
        BenchCommand::Transport(args) => transport(args, &stop),
    }
}

fn commit(global: &Global, args: &BenchCommitArgs, stop: &Arc<AtomicBool>) -> Outcome {
    prepare(&args.measure)?;
    let durability = Durability::from(args.durability);
    let mirrored = durability == Durability::Mirrored;
    let target = target(global, &args.measure, args.transport, mirrored, stop)?;
    let mut out = Output::begin(&args.measure, Some(&target.at))?;
    for &Size(len) in &args.measure.sizes {
        let work = Work {
            len,
            checkpoints: args.checkpoints as usize,
            durability,
            inflight: usize::from(args.inflight),
            dirty_percent: args.dirty,
            spin: if args.measure.poll == Poll::Busy { LONG } else { LOOK },
        };
        let changed = work.changed_bytes();
        let (what, name, mut limit): (_, _, Box<dyn Contender>) = match durability {
            Durability::Mirrored => {
                let limit = round_trip(changed, waiting(args.measure.poll))?;
                ("mirrored commit", "copy, round trip of TCP", Box::new(limit))
            }
            Durability::Local => {
                let limit = Memory::copy_and_checksum(changed as usize);
                ("local commit", "copy, checksum", Box::new(limit))
            }
        };
        let name_of = format!("bench-{}", std::process::id());
        let mut commits = Commits::start(&target.client, &name_of, work).map_err(failure)?;
        let times = take_turns([&mut commits, &mut *limit], budget(&args.measure), stop);
        let [commits, limit] = times.map_err(failure)?;
        let limit = Row::new(name, len, changed, &limit);
        let row = Row::new(what, len, changed, &commits).beside(&limit);
        if !out.row(row)? || !out.row(limit)? {
            return Ok(Exit::Done);
        }
    }
    out.end()
}

fn restore(global: &Global, args: &BenchRestoreArgs, stop: &Arc<AtomicBool>) -> Outcome {
    prepare(&args.measure)?;
    let target = target(global, &args.measure, args.transport, false, stop)?;
    // One that holds no mirror of the first one's: its predecessor is the last that joined.
    let elsewhere = target.ring.as_ref().map(|ring| ring.node(1).client()).transpose()?;
    let durability = match target.at.members {
        0 | 1 => Durability::Local,
        _ => Durability::Mirrored,
    };
    let mut out = Output::begin(&args.measure, Some(&target.at))?;
    for &Size(len) in &args.measure.sizes {
        let name = format!("bench-{}", std::process::id());
        let name = Name::new(&name).map_err(|e| Failure::new(Exit::Failed, e))?;
        let left = Left::behind(&target.client, name, len, durability).map_err(failure)?;
        let (mut mapped, mut verified, mut checksum) = (
            left.restored(&target.client, Way::Mapped),
            left.restored(&target.client, Way::Verified),
            Memory::checksum(len as usize),
        );
        let contenders: [&mut dyn Contender; 3] = [&mut mapped, &mut verified, &mut checksum];
        let times = take_turns(contenders, budget(&args.measure), stop).map_err(failure)?;
        let row = |what: &str, times| Row::new(what, len, len, times);
        let limit = row("checksum", &times[2]);
        let mut rows = vec![
            row("mapped", &times[0]),
            row("mapped and verified", &times[1]).beside(&limit),
            limit,
        ];
        if let Some(elsewhere) = &elsewhere {
            let mut fetched = left.restored(elsewhere, Way::Fetched);
            let mut limit = round_trip(len, waiting(args.measure.poll))?;
            let contenders: [&mut dyn Contender; 2] = [&mut fetched, &mut limit];
            let times = take_turns(contenders, budget(&args.measure), stop).map_err(failure)?;
            let limit = row("copy, round trip of TCP", &times[1]);
            rows.extend([row("read from another node", &times[0]).beside(&limit), limit]);
        }
        for row in rows {
            if !out.row(row)? {
                return Ok(Exit::Done);
            }
        }
    }
    out.end()
}

fn transport(args: &BenchTransportArgs, stop: &AtomicBool) -> Outcome {
    prepare(&args.measure)?;
    let mut out = Output::begin(&args.measure, None)?;
    for &Size(len) in &args.measure.sizes {
        let mut asleep = round_trip(len, Waiting::Asleep)?;
        let mut looking = round_trip(len, Waiting::Looking(LOOK))?;
        let mut spinning = round_trip(len, Waiting::Spinning)?;
        let (mut copy, mut checksum) = (Memory::copy(len as usize), Memory::checksum(len as usize));
        let contenders: [&mut dyn Contender; 5] =
            [&mut asleep, &mut looking, &mut spinning, &mut copy, &mut checksum];
        let times = take_turns(contenders, budget(&args.measure), stop).map_err(failure)?;
        let names = [
            "round trip of TCP, asleep",
            "round trip of TCP, adaptive",
            "round trip of TCP, busy",
            "copy",
            "checksum",
        ];
        for (name, times) in names.iter().zip(&times) {
            if !out.row(Row::new(name, len, len, times))? {
                return Ok(Exit::Done);
            }
        }
    }
    out.end()
}

fn prepare(args: &MeasureArgs) -> Result<(), Failure> {
    if let Some(size) = args.sizes.iter().find(|size| size.0 == 0 || size.0 > SIZE_MAX) {
        let why = format_args!("--sizes {size}: a size is 1 to {}", Size(SIZE_MAX));
        return Err(Failure::new(Exit::Usage, why));
    }
    match args.cpu {
        Some(cpu) if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) => {
            let why = format_args!("--cpu {cpu}: this program may not run on that core");
            Err(Failure::new(Exit::Usage, why).hint("`taskset -p $$` shows the cores that it may"))
        }
        _ => Ok(()),
    }
}

fn budget(args: &MeasureArgs) -> Budget {
    Budget { steps: args.iterations, time: args.duration, warm_up: args.warm_up }
}

fn round_trip(len: u64, waiting: Waiting) -> Result<PingPong, Failure> {
    PingPong::start(len as usize, waiting).map_err(|e| failure(e.into()))
}

fn waiting(poll: Poll) -> Waiting {
    match poll {
        Poll::Adaptive => Waiting::Looking(LOOK),
        Poll::Busy => Waiting::Spinning,
    }
}

/// The server that answers, else a ring of this program's own.
fn target(
    global: &Global,
    args: &MeasureArgs,
    transport: TransportChoice,
    mirrored: bool,
    stop: &Arc<AtomicBool>,
) -> Result<Target, Failure> {
    let answering = Client::connect_to(socket_path(global));
    let (client, ring) = match answering {
        Ok(client) => (client, None),
        Err(error) if global.socket.is_some() => return Err(error.into()),
        Err(_) => {
            let program = this_program()?;
            let (transport, poll) = (text_of(transport), text_of(args.poll));
            let flags = ["--poll", &poll, "--detection", "patient"];
            let ring = Ring::start_with(&program, SERVERS, &transport, &flags, Arc::clone(stop));
            let ring = ring.map_err(|error| match error {
                RingError::Interrupted => failure(BenchError::Interrupted),
                error => Failure::new(Exit::Failed, error),
            })?;
            (ring.node(0).client()?, Some(ring))
        }
    };
    let status = client.status()?;
    let members = status.view.as_ref().map_or(0, |view| view.members.len());
    if members < 2 && mirrored {
        let why = format_args!("node {} is alone: nothing can be mirrored", status.node);
        return Err(Failure::new(Exit::NotDurable, why)
            .hint("start a second server, or measure with --durability local"));
    }
    if status.state == RingState::Degraded {
        super::warn(
            global,
            "the ring is degraded: what is measured is not what it does when whole",
        );
    }
    let at = Where {
        started: ring.is_some(),
        node: status.node.to_string(),
        transport: status.transport.to_string(),
        members,
        hugepages: status.hugepages,
    };
    Ok(Target { client, ring, at })
}

fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::Open(error) => error.into(),
        BenchError::Request(error) => error.into(),
        BenchError::Commit(error) => error.into(),
        BenchError::Read(error) => error.into(),
        BenchError::Interrupted => Failure::new(Exit::Failed, error)
            .hint("what was started for the measurement is stopped and removed"),
        error => Failure::new(Exit::Failed, error),
    }
}

/// Rows as they come, for people; all at once as JSON.
struct Output<'a> {
    json: bool,
    report: Report<'a>,
}

impl<'a> Output<'a> {
    fn begin(args: &MeasureArgs, ring: Option<&'a Where>) -> Result<Self, Failure> {
        let output = Self { json: args.output.json, report: Report { ring, rows: Vec::new() } };
        let mut text = String::new();
        if let Some(at) = ring {
            let whose = if at.started { "started for this" } else { "running" };
            let pages = if at.hugepages { "huge pages" } else { "ordinary pages" };
            let Where { node, members, transport, .. } = at;
            let _ = writeln!(text, "{members} servers, {whose}; at {node}, {transport}, {pages}");
        }
        let _ = writeln!(
            text,
            "{:>11} {:<28} {:>11} {:>12} {:>15} {:>12} {:>14} {:>10} {:>9}",
            "#bytes",
            "",
            "#iterations",
            "t_min[usec]",
            "t_median[usec]",
            "t_p99[usec]",
            "t_p99.9[usec]",
            "BW[MB/s]",
            "of limit"
        );
        output.say(&text)?;
        Ok(output)
    }

    /// As [`Output::say`].
    fn row(&mut self, row: Row) -> Result<bool, Failure> {
        let usec = |ns: u64| ns as f64 / 1e3;
        let text = format!(
            "{:>11} {:<28} {:>11} {:>12.2} {:>15.2} {:>12.2} {:>14.2} {:>10.1} {:>9}\n",
            row.bytes,
            row.what,
            row.iterations,
            usec(row.min_ns),
            usec(row.median_ns),
            usec(row.p99_ns),
            usec(row.p999_ns),
            row.bytes_per_second / 1e6,
            row.of_limit.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
        );
        self.report.rows.push(row);
        self.say(&text)
    }

    /// False when nobody reads on: there is nothing to measure for.
    fn say(&self, text: &str) -> Result<bool, Failure> {
        Ok(self.json || exit::print_on(text)?)
    }

    fn end(self) -> Outcome {
        match self.json {
            true => print_json(&self.report),
            false => Ok(Exit::Done),
        }
    }
}
