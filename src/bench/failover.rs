//! What a failure costs: a server dies, or a service does.
//!
//! ```text
//!   killed ──▶ every survivor has the new view ──▶ the state is opened and verified on the node that
//!              has the copy ──▶ every survivor says that everything has two copies again
//! ```
//!
//! All times are from the kill.

use std::{
    io::{self, BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use super::{
    BenchError,
    limits::Memory,
    turns::{Contender, go_on},
};
use crate::{
    client::{Checkpoint, Client, Durability, OpenError, Options},
    demo::ring::{LIMIT, Ring, RingError, clean},
    name::Name,
    protocol::{FailureKind, RingState, Status},
};

/// The server that dies. It is not the first, which others joined.
const VICTIM: usize = 1;
/// The server of the service that dies.
const HOME: usize = 0;
/// How long a service waits for its mirror: a large state takes its time on a busy machine.
const COMMIT_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a server's status.
const LOOK_AFTER: Duration = Duration::from_millis(1);
/// What a service says when its state is on two nodes.
const READY: &str = "ready";

/// What a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Bytes in each checkpoint.
    pub bytes: u64,
    /// How many checkpoints.
    pub checkpoints: u32,
}

impl State {
    fn names(self) -> impl Iterator<Item = String> {
        (0..self.checkpoints).map(|number| format!("failover.{number}"))
    }

    fn content(self) -> Vec<u8> {
        let words = (0..self.bytes.div_ceil(8)).flat_map(u64::to_le_bytes);
        words.take(self.bytes as usize).collect()
    }

    /// Opens the checkpoints and commits to each; their locks are held for as long as they are kept.
    ///
    /// # Errors
    /// The server refused, or one was not mirrored.
    pub fn commit(self, client: &Client) -> Result<Vec<Checkpoint>, BenchError> {
        let options = Options::capacity(self.bytes).timeout(COMMIT_LIMIT);
        let content = self.content();
        let commit = |name: String| {
            let mut checkpoint = client.open(&name, options.clone())?;
            checkpoint.save(&content, Durability::Mirrored)?;
            Ok(checkpoint)
        };
        self.names().map(commit).collect()
    }

    /// Opens the checkpoints that somebody left behind and looks at every checksum. When it was done.
    fn verify(self, client: &Client, stop: &AtomicBool) -> Result<Instant, BenchError> {
        let opened: Vec<Checkpoint> =
            self.names().map(|name| reopen(client, &name, stop)).collect::<Result<_, _>>()?;
        for checkpoint in &opened {
            checkpoint.latest()?.ok_or(BenchError::NotRecovered)?;
        }
        let done = Instant::now();
        let content = self.content();
        let is_it =
            |one: &Checkpoint| one.latest_unverified().is_some_and(|s| s.bytes() == content);
        match opened.iter().all(is_it) {
            true => Ok(done),
            false => Err(BenchError::NotRecovered),
        }
    }

    fn remove(self, client: &Client) -> Result<(), BenchError> {
        for name in self.names() {
            let name = Name::new(&name).map_err(OpenError::from)?;
            client.remove(&name)?;
        }
        Ok(())
    }
}

/// Asks until those that have to be asked can be, and until the system has let go of what a dead
/// process had locked.
fn reopen(client: &Client, name: &str, stop: &AtomicBool) -> Result<Checkpoint, BenchError> {
    let deadline = Instant::now() + LIMIT;
    let existing = Options::capacity(1).existing().timeout(COMMIT_LIMIT);
    loop {
        match client.open(name, existing.clone()) {
            Err(error)
                if matches!(
                    error.kind(),
                    Some(FailureKind::Unavailable | FailureKind::OwnedElsewhere)
                ) && Instant::now() < deadline =>
            {
                go_on(stop)?;
                thread::sleep(LOOK_AFTER);
            }
            opened => return Ok(opened?),
        }
    }
}

/// How a server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: the system closes its connections, and its port refuses new ones.
    Killed,
    /// SIGSTOP: it is only silent, as a node without power.
    Silent,
}

/// What the death of a server cost, from its death on. Each includes those before it.
#[derive(Debug, Clone, Copy)]
pub struct Healed {
    /// Until every survivor had the view without it.
    pub view: Duration,
    /// Until its service's state was opened and verified on the node that had the copy.
    pub served: Duration,
    /// Until every survivor said that everything has two copies.
    pub whole: Duration,
}

/// What the end of a service cost.
#[derive(Debug, Clone, Copy)]
pub struct Restarted {
    /// From the signal until its state was mapped and verified by somebody else on the node.
    pub served: Duration,
    /// What that cannot do without: from the signal until the system had taken the process away, and
    /// the checksums of as much memory.
    pub limit: Duration,
}

/// A ring whose servers may be killed.
#[derive(Debug)]
pub struct Failover {
    ring: Ring,
    program: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Failover {
    /// Starts so many servers with these flags from `program`. `stop` ends every wait early.
    ///
    /// # Errors
    /// They form no ring. Nothing is left behind then.
    pub fn start(
        program: PathBuf,
        servers: usize,
        transport: &str,
        flags: &[&str],
        stop: Arc<AtomicBool>,
    ) -> Result<Self, BenchError> {
        let ring = Ring::start_with(&program, servers, transport, flags, Arc::clone(&stop))?;
        Ok(Self { ring, program, stop })
    }

    /// The servers.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The servers.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Stops the servers in order.
    pub fn end(self) {
        self.ring.stop();
    }

    /// The node whose memory has this one's mirrors.
    ///
    /// # Errors
    /// The server does not answer, or is alone.
    pub fn holder_of(&self, node: usize) -> Result<usize, BenchError> {
        let status = self.ring.node(node).client()?.status()?;
        let holder = status.predecessor.ok_or(BenchError::Alone)?;
        self.ring.index_of(holder.as_str()).ok_or(BenchError::Alone)
    }

    /// A server dies that owns this state and comes back without its memory, once it is measured
    /// what that cost.
    ///
    /// # Errors
    /// Something was lost, or did not come about in time.
    pub fn server_dies(&mut self, state: State, death: Death) -> Result<Healed, BenchError> {
        drop(state.commit(&self.ring.node(VICTIM).client()?)?);
        self.ring.wait_until_protected()?;
        let heir = self.ring.node(self.holder_of(VICTIM)?).client()?;
        let survivors: Vec<Client> = (0..self.ring.nodes().len())
            .filter(|&node| node != VICTIM)
            .map(|node| self.ring.node(node).client())
            .collect::<Result<_, _>>()?;
        let dead = Instant::now();
        match death {
            Death::Killed => self.ring.node_mut(VICTIM).kill_9(),
            Death::Silent => self.ring.node(VICTIM).pause(),
        }
        for client in &survivors {
            self.until(client, |status| members(status) == survivors.len())?;
        }
        let view = dead.elapsed();
        let served = state.verify(&heir, &self.stop)? - dead;
        for client in &survivors {
            self.until(client, |status| {
                members(status) == survivors.len() && status.state == RingState::Protected
            })?;
        }
        let whole = dead.elapsed();
        state.remove(&heir)?;
        self.ring.node_mut(VICTIM).kill_9();
        self.replace(VICTIM)?;
        Ok(Healed { view, served, whole })
    }

    /// A service dies, a process of its own, and somebody else goes on with its state on its node.
    ///
    /// # Errors
    /// Something was lost, or the service did not get as far as to commit.
    pub fn service_dies(&mut self, state: State) -> Result<Restarted, BenchError> {
        let client = self.ring.node(HOME).client()?;
        let mut service = Service::start(&self.program, &client, state)?;
        let dead = Instant::now();
        service.kill();
        let gone = dead.elapsed();
        let served = state.verify(&client, &self.stop)? - dead;
        state.remove(&client)?;
        let mut limit = Memory::checksum(state.bytes as usize);
        limit.step()?;
        let checksums =
            (0..state.checkpoints).map(|_| limit.step()).sum::<Result<Duration, _>>()?;
        Ok(Restarted { served, limit: gone + checksums })
    }

    /// A node that died comes back without its memory.
    ///
    /// # Errors
    /// The ring does not become whole again.
    pub fn replace(&mut self, node: usize) -> Result<(), BenchError> {
        self.ring.node(node).wipe_memory()?;
        self.ring.launch(node)?;
        Ok(self.ring.wait_until_protected()?)
    }

    /// Looks at a server's status again and again.
    ///
    /// # Errors
    /// It did not come about in time, or somebody asked to stop.
    pub fn until(
        &self,
        client: &Client,
        mut is: impl FnMut(&Status) -> bool,
    ) -> Result<(), BenchError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = client.status_within(LIMIT)?;
            if is(&status) {
                return Ok(());
            }
            go_on(&self.stop)?;
            if Instant::now() > deadline {
                let last = serde_json::to_string(&status).unwrap_or_else(|e| e.to_string());
                let what = "the ring to heal".to_owned();
                return Err(RingError::TimedOut { what, limit: LIMIT, last }.into());
            }
            thread::sleep(LOOK_AFTER);
        }
    }
}

/// How many members this server's view has.
pub fn members(status: &Status) -> usize {
    status.view.as_ref().map_or(0, |view| view.members.len())
}

/// Is the service that dies: commits, says so, and waits for the end of its standard input.
///
/// # Errors
/// It could not commit, or nobody hears it.
pub fn serve_state(client: &Client, state: State) -> Result<(), BenchError> {
    let held = state.commit(client)?;
    writeln!(io::stdout(), "{READY}")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(held);
    Ok(())
}

/// The process of a service. Dropping it kills it.
struct Service(Child);

impl Service {
    /// Returns when its state is on two nodes.
    fn start(program: &PathBuf, client: &Client, state: State) -> Result<Self, BenchError> {
        use std::os::unix::process::CommandExt;
        let mut command = clean(Command::new(program));
        command.arg("bench-service").arg("--socket").arg(client.socket());
        command.args(["--bytes", &state.bytes.to_string()]);
        command.args(["--checkpoints", &state.checkpoints.to_string()]);
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut service = Self(command.spawn()?);
        let mut said = String::new();
        if let Some(stdout) = service.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        match said.trim_end() == READY {
            true => Ok(service),
            false => Err(BenchError::ServiceEnded),
        }
    }

    /// SIGKILL; returns when the process is gone.
    fn kill(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
