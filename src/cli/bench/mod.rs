//! `ringkeep bench`.

mod compare;
mod failover;
mod output;
mod transport;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use self::output::{Output, Report, Where};
use super::{
    args::{
        BenchArgs, BenchCommand, BenchCommitArgs, BenchRestoreArgs, BenchServiceArgs, Global,
        MeasureArgs,
    },
    exit::{Exit, Failure, Outcome},
    signals, socket_path, this_program,
    values::{Poll, Size, TransportChoice, text_of},
    warn,
};
use crate::{
    bench::{
        BenchError,
        commits::{Commits, Work},
        handed::HandedPingPong,
        limits::{Memory, PingPong, Waiting},
        redis::RedisError,
        report::Row,
        restores::{Left, Way},
        turns::{Budget, Contender, take_turns},
    },
    client::{Client, Durability},
    demo::ring::Ring,
    name::Name,
    pause::LOOK,
    protocol::{RingState, Status},
};

/// Servers of a ring that is started for a measurement.
const SERVERS: usize = 3;
/// As good as for ever.
const LONG: Duration = Duration::from_secs(3600);
/// Memory must fit several times.
const SIZE_MAX: u64 = 4 << 30;

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
        BenchCommand::Compare(args) => compare::run(global, args, &stop),
        BenchCommand::Failover(args) => failover::run(global, args, &stop),
        BenchCommand::Transport(args) => transport::run(global, args, &stop),
    }
}

/// Is a service that is killed.
pub(super) fn service(global: &Global, args: &BenchServiceArgs) -> Outcome {
    failover::service(global, args)
}

fn commit(global: &Global, args: &BenchCommitArgs, stop: &Arc<AtomicBool>) -> Outcome {
    prepare(&args.measure)?;
    let durability = Durability::from(args.durability);
    let mirrored = durability == Durability::Mirrored;
    let target = target(global, &args.measure, args.transport, mirrored, stop)?;
    let report = Report { ring: Some(target.at), ..Report::default() };
    let title = if mirrored { "A mirrored commit" } else { "A local commit" };
    let mut out = Output::begin(title, &args.measure.output, &args.measure.plot, report)?;
    for &Size(len) in &args.measure.sizes {
        let work = Work {
            checkpoints: args.checkpoints as usize,
            inflight: usize::from(args.inflight),
            dirty_percent: args.dirty,
            ..whole_state(len, durability, args.measure.poll)
        };
        let changed = work.changed_bytes();
        let mut commits = Commits::start(&target.client, &name(), work, stop).map_err(failure)?;
        let row = |what: &str, times| Row::new(what, len, changed, times);
        let budget = budget(&args.measure);
        let rows = if mirrored {
            let waiting = waiting(args.measure.poll);
            let mut handed =
                HandedPingPong::start(changed as usize, waiting).map_err(|e| failure(e.into()))?;
            let mut limit = round_trip(changed, waiting)?;
            let contenders: [&mut dyn Contender; 3] = [&mut commits, &mut handed, &mut limit];
            let times = take_turns(contenders, budget, stop).map_err(failure)?;
            let limit = row(output::ROUND_TRIP, &times[2]).as_limit();
            let handed = row("handed over, round trip", &times[1]).beside(&limit);
            vec![row("mirrored commit", &times[0]).beside(&limit), handed, limit]
        } else {
            let mut limit = Memory::copy_and_checksum(changed as usize);
            let contenders: [&mut dyn Contender; 2] = [&mut commits, &mut limit];
            let times = take_turns(contenders, budget, stop).map_err(failure)?;
            let limit = row("copy, checksum", &times[1]).as_limit();
            vec![row("local commit", &times[0]).beside(&limit), limit]
        };
        for row in rows {
            if !out.row(row)? {
                return Ok(Exit::Done);
            }
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
    let report = Report { ring: Some(target.at), ..Report::default() };
    let title = "A service gets its state back";
    let mut out = Output::begin(title, &args.measure.output, &args.measure.plot, report)?;
    for &Size(len) in &args.measure.sizes {
        let name = Name::new(&name()).map_err(|e| Failure::new(Exit::Failed, e))?;
        let left = Left::behind(&target.client, name, len, durability).map_err(failure)?;
        let (mut mapped, mut verified, mut checksum) = (
            left.restored(&target.client, Way::Mapped),
            left.restored(&target.client, Way::Verified),
            Memory::checksum(len as usize),
        );
        let contenders: [&mut dyn Contender; 3] = [&mut mapped, &mut verified, &mut checksum];
        let times = take_turns(contenders, budget(&args.measure), stop).map_err(failure)?;
        let row = |what: &str, times| Row::new(what, len, len, times);
        let limit = row("checksum", &times[2]).as_limit();
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
            let limit = row(output::ROUND_TRIP, &times[1]).as_limit();
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

fn prepare(args: &MeasureArgs) -> Result<(), Failure> {
    check_sizes(&args.sizes)?;
    match args.cpu {
        Some(cpu) if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) => {
            let why = format_args!("--cpu {cpu}: this program may not run on that core");
            Err(Failure::new(Exit::Usage, why).hint("`taskset -p $$` shows the cores that it may"))
        }
        _ => Ok(()),
    }
}

fn check_sizes(sizes: &[Size]) -> Result<(), Failure> {
    match sizes.iter().find(|size| size.0 == 0 || size.0 > SIZE_MAX) {
        Some(size) => {
            let why = format_args!("--sizes {size}: a size is 1 to {}", Size(SIZE_MAX));
            Err(Failure::new(Exit::Usage, why))
        }
        None => Ok(()),
    }
}

/// What the checkpoints of this measurement are called.
fn name() -> String {
    format!("bench-{}", std::process::id())
}

/// One service that replaces its whole state.
fn whole_state(len: u64, durability: Durability, poll: Poll) -> Work {
    Work {
        len,
        checkpoints: 1,
        durability,
        inflight: 1,
        dirty_percent: 100.0,
        spin: if poll == Poll::Busy { LONG } else { LOOK },
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
            let ring = ring.map_err(|error| failure(error.into()))?;
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
        warn(global, "the ring is degraded: what is measured is not what it does when whole");
    }
    let at = where_it_is(&status, ring.is_some());
    Ok(Target { client, ring, at })
}

fn where_it_is(status: &Status, started: bool) -> Where {
    Where {
        started,
        node: status.node.to_string(),
        transport: status.transport.to_string(),
        members: status.view.as_ref().map_or(0, |view| view.members.len()),
        hugepages: status.hugepages,
    }
}

fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::Open(error) => error.into(),
        BenchError::Request(error) => error.into(),
        BenchError::Commit(error) => error.into(),
        BenchError::Read(error) => error.into(),
        BenchError::Redis(error) => redis_failure(error),
        BenchError::Interrupted => Failure::new(Exit::Failed, error)
            .hint("what was started for the measurement is stopped and removed"),
        error => Failure::new(Exit::Failed, error),
    }
}

/// What to do about a replica that is dropped.
const REPLICA_HINT: &str = "a large state overruns the buffer of a replica; on the server: \
    `redis-cli CONFIG SET client-output-buffer-limit 'replica 0 0 0'`";

/// What to do about a Redis that does not take part.
fn redis_failure(error: RedisError) -> Failure {
    let code = match &error {
        RedisError::Refused { answer, .. } => answer.split(' ').next().unwrap_or_default(),
        _ => "",
    };
    let hint = match &error {
        RedisError::Start { .. } | RedisError::Ended { .. } => {
            "install it, or name one that runs: --redis HOST:PORT"
        }
        RedisError::NoServer { .. } => "--redis start has one started for the time of this",
        RedisError::NoReplica { .. } => {
            "start one: `redis-server --port 6380 --replicaof HOST PORT`; or let this program start \
             both: --redis start"
        }
        RedisError::ReplicaLost { .. } => REPLICA_HINT,
        RedisError::Broken { .. } => {
            "its log may say why; a state above proto-max-bulk-len, 512 MiB unless set, ends the \
             connection"
        }
        RedisError::Refused { .. } => match code {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => {
                "put its password into the environment variable REDISCLI_AUTH"
            }
            "READONLY" => "that is a replica: name its master",
            "OOM" => "raise its maxmemory",
            _ => "its log may say why",
        },
    };
    Failure::new(Exit::Failed, error).hint(hint)
}
