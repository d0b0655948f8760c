//! A Redis server and one replica for the time of a measurement, without persistence: two copies in
//! memory, as ringkeep's. What ringkeep does for itself is done for them, too.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use super::{Address, RedisError, network::Network};

/// The program, looked for as a shell would.
const PROGRAM: &str = "redis-server";
const SOCKET: &str = "redis.sock";
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// What its allocator is told, by both names that it has; see jemalloc(3). That it keep large states
/// besides instead of giving them back brought nothing, and a backlog of their size is memory that the
/// system has to clear for each: 16 MiB took ten times as long.
const ALLOCATOR: [&str; 2] = ["MALLOC_CONF", "JE_MALLOC_CONF"];
const HUGE: &str = "thp:always";

/// Both processes. They end with this.
#[derive(Debug)]
pub(super) struct Servers {
    children: Vec<Child>,
    dir: TempDir,
    network: Network,
}

impl Servers {
    /// Starts both; neither may answer yet.
    pub(super) fn start() -> Result<Self, RedisError> {
        // A thread that nobody needs afterwards: it does not come back from its network.
        let started = thread::scope(|scope| scope.spawn(Self::start_there).join());
        started.unwrap_or_else(|_| Err(RedisError::Start { source: ErrorKind::Other.into() }))
    }

    fn start_there() -> Result<Self, RedisError> {
        let failed = |source| RedisError::Start { source };
        let network = Network::enter().map_err(failed)?;
        let dir = tempfile::tempdir().map_err(failed)?;
        // Both ports are free now; that they still are when the servers bind is likely enough.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (first, second) = (free().map_err(failed)?, free().map_err(failed)?);
        let port = |listener: TcpListener| listener.local_addr().map(|address| address.port());
        let (port, other) = (port(first).map_err(failed)?, port(second).map_err(failed)?);
        let mut servers = Self { children: Vec::new(), dir, network };
        for (port, master) in [(port, None), (other, Some(port))] {
            let child = command(servers.dir.path(), port, master).spawn().map_err(failed)?;
            servers.children.push(child);
        }
        Ok(servers)
    }

    /// Where the first one answers.
    pub(super) fn address(&self) -> Address {
        Address::Unix(socket(self.dir.path()))
    }

    /// What was done for them, in words.
    pub(super) fn tuning(&self) -> Vec<String> {
        let network = if self.network.private { "a private network" } else { "this network" };
        let pages = match fs::read_to_string(HUGE_PAGES) {
            Ok(said) if !said.contains("[never]") => "huge pages asked for",
            _ => "no huge pages: the system has none to give",
        };
        vec![
            format!("{network} with {}", self.network.congestion),
            pages.to_owned(),
            "no limit of what a replica is behind".to_owned(),
        ]
    }

    /// What could not be done, in words.
    pub(super) fn untuned(&self) -> Option<String> {
        let congestion = &self.network.congestion;
        (!self.network.is_tuned()).then(|| {
            format!(
                "its replica is sent everything with {congestion}, this system's congestion control, \
                 which can be half as fast as the one that ringkeep chooses; root is given a private \
                 network for it"
            )
        })
    }

    /// An error when one of them ended by itself.
    pub(super) fn check(&mut self) -> Result<(), RedisError> {
        for child in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(RedisError::Ended { status });
            }
        }
        Ok(())
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

fn command(dir: &Path, port: u16, master: Option<u16>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(dir);
    command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes"]);
    command.args(["--repl-diskless-sync-delay", "0", "--repl-disable-tcp-nodelay", "no"]);
    // Large states, and a replica that is never dropped for being behind.
    command.args(["--client-output-buffer-limit", "replica 0 0 0"]);
    command.args(["--proto-max-bulk-len", "8gb", "--disable-thp", "no"]);
    for variable in ALLOCATOR {
        command.env(variable, HUGE);
    }
    match master {
        Some(master) => command.args(["--replicaof", "127.0.0.1", &master.to_string()]),
        None => command.arg("--unixsocket").arg(socket(dir)),
    };
    // A process group of its own: a terminal's Ctrl-C is for this process, which then stops them.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
