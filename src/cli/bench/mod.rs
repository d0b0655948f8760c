//! `ringkeep bench`.

mod commit;
mod compare;
mod failover;
mod limit;
mod output;
mod restore;
mod sizes;
mod transport;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use self::{
    limit::Limit,
    output::{Report, Where},
};
use super::{
    args::{BenchArgs, BenchCommand, BenchServiceArgs, Global, MeasureArgs},
    exit::{Exit, Failure, Outcome},
    signals, socket_path, this_program,
    values::{Poll, TransportChoice, text_of},
    warn,
};
use crate::{
    bench::{
        BenchError,
        commits::Work,
        limits::Waiting,
        pin::Pinned,
        redis::RedisError,
        report::Row,
        turns::{Budget, Contender, take_turns_of},
    },
    client::{Client, Durability},
    demo::ring::Ring,
    pause::LOOK,
    protocol::{RingState, Status},
};

/// Servers of a ring that is started for a measurement.
const SERVERS: usize = 3;
/// As good as for ever.
const LONG: Duration = Duration::from_secs(3600);

/// Where to commit.
struct Target {
    client: Client,
    /// Ends with this.
    ring: Option<Ring>,
    status: Status,
    limit: Limit,
}

impl Target {
    fn at(&self) -> Where {
        where_it_is(&self.status, self.ring.is_some())
    }
}

/// What is timed, with what it is called.
type Contenders<'a> = Vec<(String, Box<dyn Contender + 'a>)>;

/// Contenders that belong together, and how much of the state each of them changes in a step.
struct Kind<'a> {
    changed: u64,
    all: Contenders<'a>,
}

pub(super) fn run(global: &Global, args: &BenchArgs) -> Outcome {
    let stop = signals::stop_flag()?;
    match &args.what {
        BenchCommand::Commit(args) => commit::run(global, args, &stop),
        BenchCommand::Restore(args) => restore::run(global, args, &stop),
        BenchCommand::Compare(args) => compare::run(global, args, &stop),
        BenchCommand::Failover(args) => failover::run(global, args, &stop),
        BenchCommand::Transport(args) => transport::run(global, args, &stop),
    }
}

/// Is a service that is killed.
pub(super) fn service(global: &Global, args: &BenchServiceArgs) -> Outcome {
    failover::service(global, args)
}

/// What can be refused is refused before anything is started.
fn prepare(args: &MeasureArgs) -> Result<(), Failure> {
    sizes::check(&args.sizes)?;
    pinned(args).map(drop)
}

/// This thread on its core, if it is to have one. Its threads and processes would inherit that, so
/// none may be started meanwhile.
fn pinned(args: &MeasureArgs) -> Result<Option<Pinned>, Failure> {
    let Some(cpu) = args.cpu else { return Ok(None) };
    Pinned::to(cpu).map(Some).map_err(|_| {
        let why = format_args!("--cpu {cpu}: this program may not run on that core");
        Failure::new(Exit::Usage, why).hint("`taskset -p $$` shows the cores that it may")
    })
}

/// Has all contenders of all kinds take turns with states of `len` bytes. The rows of each kind.
fn timed(
    kinds: Vec<Kind<'_>>,
    len: u64,
    args: &MeasureArgs,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Row>>, Failure> {
    let mut kinds = kinds;
    let _pinned = pinned(args)?;
    let all = kinds.iter_mut().flat_map(|kind| &mut kind.all);
    let all = all.map(|(_, contender)| &mut **contender as _).collect();
    let times = take_turns_of(all, budget(args), stop).map_err(failure)?;
    let mut times = times.iter();
    let rows = |kind: &Kind<'_>| {
        let timed = kind.all.iter().zip(times.by_ref());
        timed.map(|((what, _), times)| Row::new(what, len, kind.changed, times)).collect()
    };
    Ok(kinds.iter().map(rows).collect())
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
        Ok(_) if transport != TransportChoice::Auto => {
            let (socket, transport) = (socket_path(global), text_of(transport));
            let why = format_args!(
                "--transport {transport} is for servers that are started for this, and one runs at {}",
                socket.display()
            );
            return Err(
                Failure::new(Exit::Usage, why).hint("leave it out, or run it where none does")
            );
        }
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
    let limit = Limit::of(&status);
    Ok(Target { client, ring, status, limit })
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
