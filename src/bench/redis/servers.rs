//! A Redis server and one replica for the time of a measurement, without persistence: two copies in
//! memory, as ringkeep's.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{Address, RedisError};

/// The program, looked for as a shell would.
const PROGRAM: &str = "redis-server";

/// Both processes. They end with this.
#[derive(Debug)]
pub(super) struct Servers {
    children: Vec<Child>,
    _dir: TempDir,
    port: u16,
}

impl Servers {
    /// Starts both; neither may answer yet.
    pub(super) fn start() -> Result<Self, RedisError> {
        let failed = |source| RedisError::Start { source };
        let dir = tempfile::tempdir().map_err(failed)?;
        // Both ports are free now; that they still are when the servers bind is likely enough.
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (first, second) = (free().map_err(failed)?, free().map_err(failed)?);
        let port = |listener: TcpListener| listener.local_addr().map(|address| address.port());
        let (port, other) = (port(first).map_err(failed)?, port(second).map_err(failed)?);
        let mut servers = Self { children: Vec::new(), _dir: dir, port };
        for (port, master) in [(port, None), (other, Some(port))] {
            let child = command(servers._dir.path(), port, master).spawn().map_err(failed)?;
            servers.children.push(child);
        }
        Ok(servers)
    }

    /// Where the first one answers.
    pub(super) fn address(&self) -> Address {
        Address::Tcp(format!("{}:{}", Ipv4Addr::LOCALHOST, self.port))
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

fn command(dir: &Path, port: u16, master: Option<u16>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(dir);
    command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes"]);
    command.args(["--repl-diskless-sync-delay", "0"]);
    // Large states, and a replica that is never dropped for being behind.
    command.args(["--client-output-buffer-limit", "replica 0 0 0"]);
    command.args(["--proto-max-bulk-len", "8gb"]);
    if let Some(master) = master {
        command.args(["--replicaof", "127.0.0.1", &master.to_string()]);
    }
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
