//! Real server processes that form a ring on this machine, with their memory below one private
//! directory in `/dev/shm`. Nothing of it outlives the [`Ring`], unless it is kept on purpose.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    client::{Client, RequestError},
    protocol::{RingState, Status},
    region::files::Places,
};

/// How long a server may take to answer its socket, a ring to form, a view to change.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to end itself.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A server that does not answer a status request within this is not waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Written by a server into its directory once it listens.
const ADDRESS_FILE: &str = "address";

/// Why a ring is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A server ended by itself.
    #[error("the server {node} ended ({status}); the end of its log: {log}")]
    Ended {
        /// Its name.
        node: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// Something did not come about in time.
    #[error("waited {limit:?} for {what}; last seen: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The last status, or why there was none.
        last: String,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> RingError {
    let what = what.into();
    move |source| RingError::System { what, source }
}

/// Asks again and again, ever less often, until `done` gives something or the limit is over.
/// `Err` of `done` is what was seen instead.
pub fn poll<T>(
    what: &str,
    limit: Duration,
    stop: &AtomicBool,
    mut done: impl FnMut() -> Result<T, String>,
) -> Result<T, RingError> {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE_MIN;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(RingError::Interrupted);
        }
        let last = match done() {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RingError::TimedOut { what: what.to_owned(), limit, last });
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One server: a process, a socket, a directory and a log.
#[derive(Debug)]
pub struct Node {
    program: PathBuf,
    transport: String,
    name: String,
    root: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its local socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join(format!("{}.sock", self.name))
    }

    /// Its region files, those on ordinary pages.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// What it and its earlier lives said.
    pub fn log(&self) -> PathBuf {
        self.root.join(format!("{}.log", self.name))
    }

    /// Its process while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where other servers reach it, once it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        fs::read_to_string(self.dir().join(ADDRESS_FILE)).ok()?.trim().parse().ok()
    }

    /// A client of it.
    pub fn client(&self) -> Result<Client, RequestError> {
        Client::connect_to(self.socket())
    }

    /// Its status; a server that hangs is given up after some seconds.
    pub fn status(&self) -> Result<Status, String> {
        let (sender, receiver) = mpsc::channel();
        let socket = self.socket();
        thread::spawn(move || {
            let status = Client::connect_to(socket).and_then(|client| client.status());
            // Nobody listens any more when it took too long.
            let _ = sender.send(status.map_err(|e| e.to_string()));
        });
        let answer = receiver.recv_timeout(ANSWER_LIMIT);
        answer.unwrap_or_else(|_| Err(format!("{} does not answer", self.name)))
    }

    /// What its next start says besides.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
    }

    /// Starts the process, to join the ring of any of `join`.
    pub fn start(&mut self, join: &[SocketAddr]) -> Result<(), RingError> {
        let what = format!("starting the server {}", self.name);
        // An earlier life's address must not be taken for this one's.
        match fs::remove_file(self.dir().join(ADDRESS_FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(system(what)(e)),
            _ => {}
        }
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.map_err(system(format!("opening {:?}", self.log())))?;
        let both = log.try_clone().map_err(system(&*what))?;
        let mut command = clean(Command::new(&self.program));
        command.args(["serve", "--listen", "127.0.0.1:0", "--name", &self.name]);
        command.arg("--socket").arg(self.socket()).arg("--dir").arg(self.dir());
        command.args(["--transport", &self.transport]).args(&self.args);
        if !join.is_empty() {
            let addresses: Vec<String> = join.iter().map(ToString::to_string).collect();
            command.arg("--join").arg(addresses.join(","));
        }
        // A process group of its own: a terminal's Ctrl-C is for this process, which then stops
        // the servers in order.
        use std::os::unix::process::CommandExt;
        command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(both);
        self.child = Some(command.spawn().map_err(system(what))?);
        Ok(())
    }

    /// An error when the process ended by itself.
    pub fn check(&mut self) -> Result<(), RingError> {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        match ended {
            None => Ok(()),
            Some(status) => {
                self.child = None;
                Err(RingError::Ended { node: self.name.clone(), status, log: self.log_end(3) })
            }
        }
    }

    fn log_end(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let mut last: Vec<&str> = text.lines().rev().take(lines).collect();
        last.reverse();
        last.join(" / ")
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; how it ended, or `None` when SIGKILL was needed.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let mut child = self.child.take()?;
        let never = AtomicBool::new(false);
        let ended = poll("its end", STOP_LIMIT, &never, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            _ => Err("running".to_owned()),
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.ok()
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // A process that is gone needs no signal.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Removes its memory files, on ordinary and on huge pages: what a power cut does.
    pub fn wipe_memory(&self) -> io::Result<()> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let huge = Places::prepare(&self.dir(), &mounts)?.huge;
        for dir in huge.map(|(dir, _)| dir).into_iter().chain([self.dir()]) {
            fs::remove_dir_all(dir)?;
        }
        Ok(())
    }
}

/// A command that no `RINGKEEP_*` variable of this process changes.
pub fn clean(mut command: Command) -> Command {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("RINGKEEP_") {
            command.env_remove(variable);
        }
    }
    command
}

/// Servers that form one ring.
#[derive(Debug)]
pub struct Ring {
    root: PathBuf,
    nodes: Vec<Node>,
    stop: Arc<AtomicBool>,
    kept: bool,
}

impl Ring {
    /// Starts `count` servers named a, b, c, … from `program` and waits until each has a view of
    /// them all. `stop` ends every wait early.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn start(
        program: &Path,
        count: usize,
        transport: &str,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, RingError> {
        Self::start_with(program, count, transport, &[], stop)
    }

    /// The same, with these flags for every server.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn start_with(
        program: &Path,
        count: usize,
        transport: &str,
        args: &[&str],
        stop: Arc<AtomicBool>,
    ) -> Result<Self, RingError> {
        let root = tempfile::Builder::new().prefix("ringkeep-").tempdir_in("/dev/shm");
        let root = root.map_err(system("making a directory in /dev/shm"))?.keep();
        let node = |name: char| Node {
            program: program.to_owned(),
            transport: transport.to_owned(),
            name: name.to_string(),
            root: root.clone(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            child: None,
        };
        let nodes = ('a'..='z').take(count).map(node).collect();
        let mut ring = Self { root: root.clone(), nodes, stop, kept: false };
        for index in 0..ring.nodes.len() {
            ring.launch(index)?;
        }
        for index in 0..ring.nodes.len() {
            ring.wait_for_members(index, count)?;
        }
        Ok(ring)
    }

    /// The private directory of everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All servers, also those that do not run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One server.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// One server.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Which server has this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Starts a server that does not run, to join the others, and waits until it answers.
    pub fn launch(&mut self, index: usize) -> Result<(), RingError> {
        let others = self.nodes.iter().enumerate().filter(|&(other, _)| other != index);
        let join: Vec<SocketAddr> = others
            .filter(|(_, node)| node.child.is_some())
            .filter_map(|(_, node)| node.address())
            .collect();
        let stop = Arc::clone(&self.stop);
        let node = &mut self.nodes[index];
        node.start(&join)?;
        let mut ended = Ok(());
        let waited = poll(&format!("the server {}", node.name), LIMIT, &stop, || {
            ended = node.check();
            match (&ended, node.address()) {
                (Err(_), _) => Ok(()),
                (Ok(()), None) => Err("it has not written its address".to_owned()),
                (Ok(()), Some(_)) => node.status().map(drop),
            }
        });
        ended.and(waited)
    }

    /// Waits for a status of one server.
    pub fn wait_for(
        &self,
        index: usize,
        what: &str,
        limit: Duration,
        mut until: impl FnMut(&Status) -> bool,
    ) -> Result<Status, RingError> {
        let node = &self.nodes[index];
        let what = format!("{what} (as {} sees it)", node.name);
        poll(&what, limit, &self.stop, || {
            let status = node.status()?;
            match until(&status) {
                true => Ok(status),
                // The whole status: the last one seen is what a failure is understood from.
                false => Err(serde_json::to_string(&status).unwrap_or_else(|e| e.to_string())),
            }
        })
    }

    /// Waits until this server's view has so many members and none of them is suspected.
    pub fn wait_for_members(&self, index: usize, count: usize) -> Result<Status, RingError> {
        self.wait_for(index, &format!("a view of {count}"), LIMIT, |status| {
            status.suspects.is_empty()
                && status.view.as_ref().is_some_and(|view| view.members.len() == count)
        })
    }

    /// Waits until every running server has a view of exactly the running ones and says
    /// `protected`.
    pub fn wait_until_protected(&self) -> Result<(), RingError> {
        let running: Vec<usize> =
            (0..self.nodes.len()).filter(|&index| self.nodes[index].child.is_some()).collect();
        for &index in &running {
            self.wait_for(index, "a protected ring", LIMIT, |status| {
                status.state == RingState::Protected
                    && status.view.as_ref().is_some_and(|v| v.members.len() == running.len())
            })?;
        }
        Ok(())
    }

    /// Stops every server in order: SIGTERM, then SIGKILL for one that does not listen.
    pub fn stop(mut self) {
        for node in &mut self.nodes {
            node.terminate();
        }
    }

    /// Leaves the running servers and their files behind.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for node in &mut self.nodes {
            node.kill_9();
            // What cannot be removed is reported by nobody better than by its still being there.
            let _ = node.wipe_memory();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
