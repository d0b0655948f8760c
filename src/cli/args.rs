//! The front door: every command, flag and default that a person can type.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use super::values::{
    Detection, DurabilityChoice, LogFormat, Period, Poll, Size, TransportChoice, parse_duration,
    parse_interval, parse_percent,
};
use crate::{bench::redis, name::Name};

const TOP_HELP: &str = "\
Exit status:
  0 done   1 failed   2 wrong usage   3 no such checkpoint   4 fenced or owned elsewhere
  5 durability not reached   6 no space   7 corrupt   8 no server

Examples:
  ringkeep demo                          see it work on this machine
  ringkeep doctor                        see what this machine offers
  ringkeep serve                         a ring of one, usable at once
  ringkeep put sched state.bin           keep a file's content
  ringkeep get sched -o state.bin        read it back, from any node";

/// Checkpoints in shared memory that survive the node.
///
/// A service's state is kept in shared memory twice: on its own node and on the node before it in
/// a ring of servers. A service that crashed maps its state back; a node that crashed is replaced
/// by any other.
#[derive(Debug, Parser)]
#[command(name = "ringkeep", version, after_help = TOP_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The local server's socket [default: one well-known path per user, see `ringkeep doctor`]
    #[arg(
        long,
        global = true,
        env = "RINGKEEP_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub socket: Option<PathBuf>,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// How log lines look; RINGKEEP_LOG filters them, as in RINGKEEP_LOG=ringkeep=debug
    #[arg(
        long,
        global = true,
        env = "RINGKEEP_LOG_FORMAT",
        hide_env_values = true,
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(ServeArgs),
    Put(PutArgs),
    Get(GetArgs),
    Ls(LsArgs),
    Status(StatusArgs),
    Verify(VerifyArgs),
    Rm(RmArgs),
    Doctor(DoctorArgs),
    Keygen(KeygenArgs),
    Demo(DemoArgs),
    Bench(BenchArgs),
    #[command(hide = true)]
    DemoService(DemoServiceArgs),
    #[command(hide = true)]
    BenchService(BenchServiceArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Run this node's checkpoint server.
///
/// With no flag it is a ring of one on the loopback address: local checkpoints work, mirrored ones
/// wait for a second node. Flags override RINGKEEP_* environment variables, which override the
/// file of --config.
#[derive(Debug, Args, Default)]
#[command(after_help = "\
Examples:
  ringkeep serve
      a ring of one
  ringkeep serve --name b --listen 127.0.0.1:7742 --join 127.0.0.1:7741 --socket /tmp/b.sock
      a second server on the same machine
  ringkeep serve --listen 10.0.0.2:7741 --join 10.0.0.1:7741 --cluster-key /etc/ringkeep/key
      a node of a cluster; `ringkeep keygen` makes the key
  ringkeep serve --name w --listen 127.0.0.1:7743 --join 127.0.0.1:7741,127.0.0.1:7742 --witness
      a third vote, so that two nodes survive the loss of one")]
pub struct ServeArgs {
    /// This node's name in the ring [default: the host's name]
    #[arg(long, env = "RINGKEEP_NAME", hide_env_values = true)]
    pub name: Option<Name>,
    /// Where other servers reach this one [default: 127.0.0.1:7741]
    #[arg(long, env = "RINGKEEP_LISTEN", hide_env_values = true, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Servers of the ring to join; one that answers is enough
    #[arg(
        long,
        env = "RINGKEEP_JOIN",
        hide_env_values = true,
        value_name = "IP:PORT",
        value_delimiter = ','
    )]
    pub join: Option<Vec<SocketAddr>>,
    /// Vote and store nothing: two nodes and a witness survive the loss of any one
    #[arg(
        long,
        env = "RINGKEEP_WITNESS",
        hide_env_values = true,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub witness: Option<bool>,
    /// What this node shares its fate with, as in rack-3: a failure domain
    #[arg(long, env = "RINGKEEP_ZONE", hide_env_values = true, value_name = "NAME")]
    pub zone: Option<Name>,
    /// On how many predecessors a checkpoint of this node has a copy, 1 to 8 [default: 1]
    #[arg(long, env = "RINGKEEP_MIRRORS", hide_env_values = true, value_name = "K")]
    pub mirrors: Option<u8>,
    /// How long SIGTERM may take to hand this node's mirrors over before it stops anyway; 0s stops
    /// at once, keeps everything in memory and does not leave the ring; so does a second SIGTERM
    /// or SIGINT [default: 30s]
    #[arg(long, env = "RINGKEEP_LEAVE_TIMEOUT", hide_env_values = true, value_name = "DURATION")]
    pub leave_timeout: Option<Period>,
    /// Where region files go when huge pages have no room [default: /dev/shm/ringkeep-UID/NAME]
    #[arg(long, env = "RINGKEEP_DIR", hide_env_values = true, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Most memory for checkpoints and mirrors, as in 64MiB or 8g [default: half of what there is]
    #[arg(long, env = "RINGKEEP_MEMORY", hide_env_values = true, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// How bytes travel to other nodes [default: auto]
    #[arg(long, env = "RINGKEEP_TRANSPORT", hide_env_values = true, value_enum)]
    pub transport: Option<TransportChoice>,
    /// The RDMA device to use, as in rxe0 [default: the one that has the address of --listen, or the first that works]
    #[arg(long, env = "RINGKEEP_DEVICE", hide_env_values = true, value_name = "NAME")]
    pub device: Option<Name>,
    /// The ring's secret; without it only loopback addresses are allowed
    #[arg(long, env = "RINGKEEP_CLUSTER_KEY", hide_env_values = true, value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
    /// How the data plane waits [default: adaptive]
    #[arg(long, env = "RINGKEEP_POLL", hide_env_values = true, value_enum)]
    pub poll: Option<Poll>,
    /// How long a neighbour may be silent before the ring goes on without it [default: normal]
    #[arg(long, env = "RINGKEEP_DETECTION", hide_env_values = true, value_enum)]
    pub detection: Option<Detection>,
    /// Pin the data plane to this core
    #[arg(long, env = "RINGKEEP_CPU", hide_env_values = true, value_name = "N")]
    pub cpu: Option<usize>,
    /// Serve Prometheus metrics here
    #[arg(long, env = "RINGKEEP_METRICS", hide_env_values = true, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// A TOML file whose keys are the long flags: name, listen, join, socket, dir, memory, …
    #[arg(long, env = "RINGKEEP_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Keep a file's content as a new version of a checkpoint, and print the version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep put sched state.bin
  produce-state | ringkeep put sched --durability local
  ringkeep put sched state.bin --timeout 500ms || echo \"not mirrored yet: status $?\"")]
pub struct PutArgs {
    /// The checkpoint
    pub name: Name,
    /// What to keep; - is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// What the version must survive before this command ends [default: mirrored; local, with a
    /// warning, when the ring has no node for a second copy]
    #[arg(long, value_enum)]
    pub durability: Option<DurabilityChoice>,
    /// How long to wait for that; exit status 5 afterwards, the version stays local
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Take the checkpoint over from a writer that is alive; that writer is fenced
    #[arg(long)]
    pub take_over: bool,
    /// Room for later versions, as in 64MiB; an existing checkpoint grows to it, never shrinks
    /// [default: what this version needs]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Size>,
}

/// Read a checkpoint back, verified, from any node.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep get sched -o state.bin
  ringkeep get sched --version 41 | sha256sum
  ringkeep get sched --maybe-stale -o state.bin   # after losing too many nodes")]
pub struct GetArgs {
    /// The checkpoint
    pub name: Name,
    /// Where to write it; it appears whole or not at all [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// This version instead of the newest
    #[arg(long, value_name = "V", value_parser = clap::value_parser!(u64).range(1..))]
    pub version: Option<u64>,
    /// Where nobody can tell which version is the newest, the newest that anybody shows: a newer
    /// one may have been acknowledged
    #[arg(long, conflicts_with = "version")]
    pub maybe_stale: bool,
}

/// List the checkpoints of the ring.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Show the ring and whether every checkpoint has its two copies.
#[derive(Debug, Args)]
#[command(after_help = "\
`protected` means that every checkpoint this node owns or holds has two live copies.

With --watch it follows the server until q, Ctrl-C or SIGTERM, and waits for one that went away.
Where standard output is no terminal, or with --json, it prints one status after another instead.

Examples:
  ringkeep status
  ringkeep status --watch
  ringkeep status --json | jq -r .state
  ringkeep status --json --watch --interval 5s | jq --unbuffered -r .state")]
pub struct StatusArgs {
    /// Show it again and again
    #[arg(short, long)]
    pub watch: bool,
    /// How often, at least 100ms
    #[arg(
        long,
        default_value = "1s",
        value_name = "DURATION",
        requires = "watch",
        value_parser = parse_interval
    )]
    pub interval: Duration,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Check the stored bytes against their checksums.
#[derive(Debug, Args)]
#[command(after_help = "Exit status 7 when a version is corrupt.")]
pub struct VerifyArgs {
    /// The checkpoint [default: all that the local server holds]
    pub name: Option<Name>,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Remove checkpoints and their mirrors.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The checkpoints
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<Name>,
    /// Also what is left of one that nobody owns, because too many nodes lost their memory
    #[arg(long)]
    pub leftovers: bool,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Show what this machine offers and how to mend what is missing.
///
/// Looks and tries; changes nothing. Exit status 1 when something would keep a server from working,
/// 0 with warnings when it would only be slower or smaller.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep doctor
  ringkeep doctor --cluster-key /etc/ringkeep/key --listen 10.0.0.2:7741
  ringkeep doctor --transport rdma
      exit status 1 unless a server could use RDMA
  ringkeep doctor --json | jq '.checks[] | select(.level != \"ok\")'")]
pub struct DoctorArgs {
    /// The key that the server will use
    #[arg(long, env = "RINGKEEP_CLUSTER_KEY", hide_env_values = true, value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
    /// The address that the server will listen on
    #[arg(
        long,
        env = "RINGKEEP_LISTEN",
        hide_env_values = true,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7741"
    )]
    pub listen: SocketAddr,
    /// The transport that the server will use; with rdma, what keeps RDMA from working is a failure
    #[arg(
        long,
        env = "RINGKEEP_TRANSPORT",
        hide_env_values = true,
        value_enum,
        default_value = "auto"
    )]
    pub transport: TransportChoice,
    /// Look at this RDMA device only, as in rxe0
    #[arg(long, env = "RINGKEEP_DEVICE", hide_env_values = true, value_name = "NAME")]
    pub device: Option<Name>,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Make a new cluster key.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep keygen -o /etc/ringkeep/key
      a new file with mode 0600; copy it to every node, secretly
  ringkeep keygen
      to standard output")]
pub struct KeygenArgs {
    /// A file to make; one that is there is never overwritten [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Watch a service lose its node and lose nothing else.
///
/// Starts a ring of real server processes on this machine and a small service that indexes a
/// directory and checkpoints after every batch; kills the service and its server, removes the
/// node's memory, and goes on elsewhere. Exit status 1 if anything was lost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep demo
  ringkeep demo /etc --nodes 5")]
pub struct DemoArgs {
    /// The directory to index
    #[arg(default_value = crate::demo::index::DIR_DEFAULT)]
    pub dir: PathBuf,
    /// Servers in the ring; a majority of three is the least that can vote one out
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    pub nodes: u8,
    /// How bytes travel between them
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
    /// Index at most this many files
    #[arg(long, default_value_t = crate::demo::index::FILES_MAX_DEFAULT, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=crate::demo::index::FILES_MAX as i64))]
    pub files_max: u32,
    /// Leave the surviving servers running and say where their sockets are
    #[arg(long)]
    pub keep: bool,
}

/// Measure a ring beside what this machine can do at best.
///
/// What is timed takes turns with its limit, and each row ends with the ratio of both medians: compare
/// that, not times. A limit's own ratio is 1. Columns are those of perftest: the shortest, the longest,
/// the typical (median) and the mean time, the standard deviation, what 99 and 99.9 of 100 took at most,
/// and bytes a second. Uses the server that answers on the local socket; if none does, starts three
/// real servers for the time of the measurement.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep bench commit                                    mirrored commits of 8 B to 16 MiB
  ringkeep bench commit --sizes 256MiB --dirty 1           one percent of a large state changes
  ringkeep bench commit --json > commit.json
  ringkeep bench restore --sizes 4KiB,256MiB               a service comes back
  ringkeep bench compare --redis start --plot compare.svg  beside files and Redis, as a picture, too
  ringkeep bench failover --detection fast                 a server dies, a service dies
  ringkeep bench transport                                 the limits by themselves
  ringkeep bench commit --all --plot commit.svg            every size")]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    Commit(BenchCommitArgs),
    Restore(BenchRestoreArgs),
    Compare(BenchCompareArgs),
    Failover(BenchFailoverArgs),
    Transport(BenchTransportArgs),
}

/// Time commits.
///
/// The limit of a mirrored commit is a round trip of TCP with the same bytes, after a copy in memory, that
/// is handed to another thread, as a service hands it to its server: three that wait for each other.
/// `of bare` is the ratio to the same round trip between two. With servers that use RDMA the limit is a
/// write of the device, from its post to its completion; with mirrors on another machine there is none.
/// The limit of a local commit is a copy and a checksum. With --dirty, a commit of the whole state takes
/// turns with all of these, and `of whole` is the share of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep bench commit --sizes 64,4KiB,1MiB
  ringkeep bench commit --durability local --sizes 4KiB
  ringkeep bench commit --checkpoints 1000 --sizes 4KiB
  ringkeep bench commit --plot commit.svg")]
pub struct BenchCommitArgs {
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// What is waited for
    #[arg(long, value_enum, default_value = "mirrored")]
    pub durability: DurabilityChoice,
    /// Commits of one checkpoint that are on their way at the same time; a commit's time is then from
    /// its begin to its acknowledgement
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=7))]
    pub inflight: u8,
    /// How much of the state changes between two commits
    #[arg(long, default_value_t = 100.0, value_name = "PERCENT", value_parser = parse_percent)]
    pub dirty: f64,
    /// How many checkpoints take turns
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub checkpoints: u32,
    /// How bytes travel between servers that are started for this
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
}

/// Time how a service gets its state back.
///
/// On its node by mapping what lies there, without and with a look at every checksum. The limits are
/// new memory that is mapped after a question over a Unix socket, and a checksum of as many bytes.
///
/// Where the servers are started for this, also on another node: by reading a copy, which comes from
/// the owner's node, and by taking it over, after which the next node takes it from there. Their
/// limit is one of a stream of TCP of as many bytes; `of bare` is the ratio to a copy and a round trip.
/// What it takes when the owner's node is dead shows `bench failover`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep bench restore --sizes 4KiB,256MiB
  ringkeep bench restore --plot restore.svg")]
pub struct BenchRestoreArgs {
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// How bytes travel between servers that are started for this
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
}

/// Time a mirrored commit beside what people have instead.
///
/// A file that is replaced (write, fsync, rename, fsync of its directory) on a disk and in memory: one
/// copy, on one node. Redis with a replica, SET and WAIT 1 in one write: two copies. All take turns;
/// `of ours` is how often ringkeep's median fits into another one's.
///
/// The limit of ringkeep and of Redis is that of `bench commit`. A file's is the same bytes written over
/// those of a file that is there, and an fdatasync.
#[derive(Debug, Args)]
#[command(after_help = "\
A Redis that wants a password is given that of the environment variable REDISCLI_AUTH, as by
redis-cli. What is written there is one key, ringkeep-bench-PID, removed afterwards.

`--redis start` starts both without persistence and tuned: a Unix socket for the client, cubic between
the two as ringkeep's own connections (root only: in a private network), huge pages, and a replica
that is never dropped. The head of the table says what of this is in effect.

Examples:
  ringkeep bench compare --dir /var/lib                   files on that disk
  ringkeep bench compare --redis start                    a Redis and its replica for the time of this
  ringkeep bench compare --redis 127.0.0.1:6379 --sizes 64,4KiB,64KiB
  ringkeep bench compare --redis unix:/run/redis.sock --plot compare.svg")]
pub struct BenchCompareArgs {
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// Where files are replaced; name a directory on the disk that a service would use
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// A Redis server that has a replica; `start` has both started for the time of the measurement
    #[arg(long, value_name = "HOST:PORT|unix:PATH|start")]
    pub redis: Option<redis::Address>,
    /// How bytes travel between servers that are started for this
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
}

/// Time how a ring goes on without a server, and a node without a service.
///
/// Starts a ring of three real servers, commits a state, and kills its server: until every survivor
/// has the new view, until the state is opened and verified on the node that has the copy, until
/// everything has two copies again. All three from the kill. Then it kills a service, a process of its
/// own: until somebody else on its node has mapped and verified the state.
///
/// The limit of the first is what --detection allows before a neighbour is suspected; it counts from
/// the last heartbeat, so the ratio can be below 1. The limit of the second and the third is the one
/// before: what cannot begin earlier. The limit of the last is the time until the system has taken the
/// process away, and a checksum of the state.
#[derive(Debug, Args)]
#[command(after_help = "\
It kills servers, so it never uses one that runs: it wants none there, and no --socket.

Examples:
  ringkeep bench failover
  ringkeep bench failover --detection fast --sizes 4KiB,64MiB,512MiB
  ringkeep bench failover --silent                         as without power: nobody closes connections
  ringkeep bench failover --checkpoints 1000 --sizes 4KiB --iterations 3")]
pub struct BenchFailoverArgs {
    /// Bytes of state
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "4KiB,64MiB")]
    pub sizes: Vec<Size>,
    /// How often each is killed
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iterations: u32,
    /// Kill for so long, and once at least, instead of so often
    #[arg(long, value_name = "TIME", conflicts_with = "iterations", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// How often each is killed before, which is not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warm_up: u32,
    /// How the servers wait
    #[arg(long, value_enum, default_value = "adaptive")]
    pub poll: Poll,
    /// How long a neighbour may be silent before the ring goes on without it
    #[arg(long, value_enum, default_value = "normal")]
    pub detection: Detection,
    /// How many checkpoints of that size the state is
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub checkpoints: u32,
    /// The server stops without a word (SIGSTOP) instead of being killed (SIGKILL), whose connections
    /// the system closes
    #[arg(long)]
    pub silent: bool,
    /// How bytes travel between the servers
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
    #[command(flatten)]
    pub plot: PlotFlag,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Time the limits.
///
/// TCP over loopback: a round trip, the bytes there and one byte back, in each way of waiting: blocking
/// in read, in epoll, adaptive (looking for 100 µs, then asleep) and busy; and one of a stream, which
/// waits as --poll says. A copy in memory, and into the pages that regions lie in: ordinary ones, and
/// huge ones where the machine has some to give. A checksum. And where there is an RDMA device, a write
/// from its post to its completion, and one of a stream.
///
/// These are limits and have none: `of best` is the ratio to the best of the same kind, which are round
/// trips, streams, copies and checksums.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep bench transport
  ringkeep bench transport --sizes 1MiB,16MiB --plot limits.svg
  ringkeep bench transport --transport rdma                fails unless a device can be used")]
pub struct BenchTransportArgs {
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// Whether an RDMA device is timed, too: where there is one, always, or never
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: TransportChoice,
}

/// What every measurement has.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// Bytes of state
    #[arg(
        long,
        value_name = "SIZE,…",
        value_delimiter = ',',
        default_value = "8,64,4KiB,64KiB,1MiB,16MiB"
    )]
    pub sizes: Vec<Size>,
    /// 8 B to 1 GiB, doubling; what has no room in memory is left out, which is said
    #[arg(long, short, conflicts_with = "sizes")]
    pub all: bool,
    /// Steps of each, instead of a time; rounded up to a multiple of eight
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
    /// How long each is measured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Steps that are not counted, at the begin of each of eight turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warm_up: u64,
    /// How whoever waits does it: this program, its limit, and servers that are started for it
    #[arg(long, value_enum, default_value = "adaptive")]
    pub poll: Poll,
    /// Keep the thread that measures on one core; servers, and whoever answers, have all of them
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,
    #[command(flatten)]
    pub plot: PlotFlag,
    #[command(flatten)]
    pub output: JsonFlag,
}

/// Output to look at.
#[derive(Debug, Args)]
pub struct PlotFlag {
    /// Draw the table, too: the time by the size, both in powers
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// The service of a measurement, a process of its own, which is killed.
#[derive(Debug, Args)]
pub struct BenchServiceArgs {
    /// Bytes in each checkpoint
    #[arg(long)]
    pub bytes: u64,
    /// How many checkpoints
    #[arg(long)]
    pub checkpoints: u32,
}

/// The service of the demo, a process of its own. It speaks JSON lines.
#[derive(Debug, Args)]
pub struct DemoServiceArgs {
    /// The checkpoint that it keeps its state in
    pub name: Name,
    /// The directory to index
    pub dir: PathBuf,
    /// Index at most this many files
    #[arg(long)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=crate::demo::index::FILES_MAX as i64))]
    pub files_max: u32,
    /// Files between two commits
    #[arg(long)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep completions bash > ~/.local/share/bash-completion/completions/ringkeep
  ringkeep completions zsh > ~/.zfunc/_ringkeep
  ringkeep completions fish > ~/.config/fish/completions/ringkeep.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Print a manual page.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringkeep man | man -l -
  ringkeep man serve > ringkeep-serve.1")]
pub struct ManArgs {
    /// The command to describe [default: ringkeep itself]
    pub command: Option<String>,
}

/// Output for programs.
#[derive(Debug, Args)]
pub struct JsonFlag {
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_and_globals_are_read() {
        let cli = Cli::try_parse_from([
            "ringkeep",
            "serve",
            "--join",
            "127.0.0.1:1,127.0.0.1:2",
            "--socket",
            "/s",
        ])
        .unwrap();
        assert_eq!(cli.global.socket, Some("/s".into()));
        let Command::Serve(args) = cli.command else { panic!("serve") };
        assert_eq!(args.join.unwrap().len(), 2);
    }

    #[test]
    fn put_reads_standard_input_unless_told() {
        let cli = Cli::try_parse_from(["ringkeep", "put", "a"]).unwrap();
        let Command::Put(args) = cli.command else { panic!("put") };
        assert_eq!((args.file, args.timeout), ("-".into(), Duration::from_secs(5)));
        assert_eq!((args.durability, args.capacity, args.take_over), (None, None, false));
    }
}
