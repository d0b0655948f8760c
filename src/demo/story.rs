//! The demo: a service loses its node in the middle of its work and nothing else.

use std::{
    fmt, io,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    drawing::{Charset, Node as Drawn, NodeState, draw, ring_of},
    index::{Indexer, ResumeError, StartError},
    ring::{LIMIT, Ring, RingError, clean},
    service::Event,
};
use crate::{
    client::RequestError,
    commit::Version,
    name::Name,
    protocol::{CopyState, RingState, Status},
};

/// The checkpoint.
const CHECKPOINT: &str = "index";
/// Batches that a run has at most.
const BATCHES: u32 = 100;
/// The service runs here first.
const FIRST: usize = 0;
/// How long a service may be silent.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to play.
#[derive(Debug)]
pub struct Plan {
    /// The `ringkeep` binary.
    pub program: PathBuf,
    /// The directory to index.
    pub dir: PathBuf,
    /// Servers in the ring.
    pub nodes: usize,
    /// For their `--transport`.
    pub transport: String,
    /// Most files to index.
    pub files_max: u32,
    /// Leave the surviving servers running.
    pub keep: bool,
    /// Set when somebody wants to stop.
    pub stop: Arc<AtomicBool>,
}

/// How the demo can fail.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// The ring is not as it should be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A service could not be started or heard.
    #[error("the service: {0}")]
    System(#[from] io::Error),
    /// A service ended too early.
    #[error("the service ended ({status}) before its work was done")]
    ServiceEnded {
        /// How.
        status: ExitStatus,
    },
    /// A service said nothing for a long time.
    #[error("the service said nothing for {SILENCE_LIMIT:?}")]
    ServiceSilent,
    /// Nothing to index.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The final state is no index.
    #[error("LOST: the recovered state is no index: {0}")]
    NoIndex(#[from] ResumeError),
    /// A server refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An acknowledged version is gone.
    #[error("LOST: version {acknowledged} was acknowledged, the new service found {found}")]
    VersionLost {
        /// The last one acknowledged.
        acknowledged: Version,
        /// The one found.
        found: Version,
    },
    /// The index differs.
    #[error("LOST: the index differs from one that was made without failure")]
    Differs,
}

/// Plays the demo and tells it to `out`.
///
/// # Errors
/// Any loss is one. All processes are stopped and all files removed, whatever happens.
pub fn play(plan: &Plan, out: &mut impl Write) -> Result<(), StoryError> {
    // The index without failure also reads every file once, so that the service's times are not
    // those of a cold disk.
    let total = Indexer::new(&plan.dir, plan.files_max)?.position().total;
    let expected = without_failure(plan)?;
    let ring = Ring::start(&plan.program, plan.nodes, &plan.transport, Arc::clone(&plan.stop))?;
    let mut story = Story { plan, ring, out, total, charset: Charset::of_environment() };
    let result = story.play(&expected);
    let Story { ring, .. } = story;
    match (&result, plan.keep) {
        (Ok(()), true) => ring.keep(),
        _ => ring.stop(),
    }
    result
}

fn without_failure(plan: &Plan) -> Result<Indexer, StoryError> {
    let mut indexer = Indexer::new(&plan.dir, plan.files_max)?;
    while !indexer.step_batch(100).is_finished() {
        if plan.stop.load(Ordering::Relaxed) {
            return Err(RingError::Interrupted.into());
        }
    }
    Ok(indexer)
}

struct Story<'a, W> {
    plan: &'a Plan,
    ring: Ring,
    out: &'a mut W,
    total: usize,
    charset: Charset,
}

/// What was measured, all from the moment of the kill.
struct Times {
    suspected: Duration,
    view: Duration,
    recovered: Duration,
    protected: Duration,
}

impl<W: Write> Story<'_, W> {
    fn play(&mut self, expected: &Indexer) -> Result<(), StoryError> {
        let count = self.ring.nodes().len();
        self.tell(format_args!(
            "A ring of {count} servers on this machine; each is a process with memory of its own."
        ))?;
        let (service, acknowledged, before) = self.work_until_half()?;
        let status = self.ring.node(FIRST).status().ok();
        if let Some(status) = &status {
            let picture = draw(&ring_of(status), self.charset);
            self.tell(format_args!("\n{picture}"))?;
        }
        let killed = self.kill_node(service)?;
        let heir = self.heir(status.as_ref());
        let (after, times) = self.recover(heir, killed, acknowledged)?;
        self.end(heir, expected, &times)?;
        self.tell(format_args!("\nMirrored commits        min     median        p99"))?;
        self.tell(format_args!("  before the kill {}", Latencies(&before)))?;
        self.tell(format_args!("  after it        {}", Latencies(&after)))?;
        if self.plan.keep {
            self.tell_kept()?;
        }
        Ok(())
    }

    fn tell(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        // A reader that went away does not end the demo: its exit status still counts.
        match writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            _ => Ok(()),
        }
    }

    fn service_on(&self, index: usize) -> io::Result<Service> {
        let batch = (self.total as u32).div_ceil(BATCHES).max(1);
        let mut command = clean(Command::new(&self.plan.program));
        command.arg("demo-service").arg("--socket").arg(self.ring.node(index).socket());
        command.args(["--files-max", &self.plan.files_max.to_string()]);
        command.args(["--batch", &batch.to_string(), CHECKPOINT]).arg(&self.plan.dir);
        Service::start(command, Arc::clone(&self.plan.stop))
    }

    /// The service works; the last acknowledged version.
    fn work_until_half(&mut self) -> Result<(Service, Version, Histogram<u64>), StoryError> {
        let node = self.ring.node(FIRST).name().to_owned();
        let (total, dir) = (self.total, self.plan.dir.clone());
        self.tell(format_args!(
            "A service on {node} indexes {total} files of {}: path and SHA-256. After every batch \
             it\ncommits its state mirrored.",
            dir.display()
        ))?;
        let mut service = self.service_on(FIRST)?;
        let mut latencies = histogram();
        loop {
            match service.next()? {
                Event::Committed { version, done, took_ns } => {
                    latencies.saturating_record(took_ns);
                    if done * 2 >= total {
                        self.tell(format_args!(
                            "  {done} files done, version {version} acknowledged"
                        ))?;
                        return Ok((service, version, latencies));
                    }
                }
                Event::Finished { version } => return Ok((service, version, latencies)),
                Event::Opened { .. } => {}
            }
        }
    }

    fn kill_node(&mut self, mut service: Service) -> Result<Instant, StoryError> {
        let killed = Instant::now();
        self.ring.node_mut(FIRST).kill_9();
        service.kill();
        let node = self.ring.node(FIRST);
        let what = format!("removing the memory of {}", node.name());
        node.wipe_memory().map_err(|source| RingError::System { what, source })?;
        let name = node.name().to_owned();
        self.tell(format_args!(
            "Node {name} dies: SIGKILL for its server and for the service, its memory files \
             removed."
        ))?;
        Ok(killed)
    }

    /// Where the service goes on: not where the mirror lies, if there is another node.
    fn heir(&self, before: Option<&Status>) -> usize {
        let mirror = before.and_then(|status| status.predecessor.as_ref());
        let mirror = mirror.and_then(|name| self.ring.index_of(name.as_str()));
        let candidates = || (0..self.ring.nodes().len()).filter(|&index| index != FIRST);
        candidates().find(|&index| Some(index) != mirror).unwrap_or(FIRST + 1)
    }

    fn recover(
        &mut self,
        heir: usize,
        killed: Instant,
        acknowledged: Version,
    ) -> Result<(Histogram<u64>, Times), StoryError> {
        let dead = self.ring.node(FIRST).name().to_owned();
        let is_dead = |name: &Name| name.as_str() == dead;
        let gone = |status: &Status| {
            status.view.as_ref().is_some_and(|view| !view.members.iter().any(is_dead))
        };
        self.ring.wait_for(heir, "suspicion of the dead node", LIMIT, |status| {
            status.suspects.iter().any(is_dead) || gone(status)
        })?;
        let suspected = killed.elapsed();
        let status = self.ring.wait_for(heir, "a view without the dead node", LIMIT, gone)?;
        let view = killed.elapsed();
        let node = self.ring.node(heir).name().to_owned();
        let number = status.view.map_or(0, |view| view.number);
        self.tell(format_args!("  {:>9} suspected by {node}", Shown(suspected)))?;
        self.tell(format_args!("  {:>9} view {number}, without {dead}", Shown(view)))?;

        let mut service = self.service_on(heir)?;
        let (found, done, took) = loop {
            if let Event::Opened { version, done, took_us, .. } = service.next()? {
                break (version, done, Duration::from_micros(took_us));
            }
        };
        let recovered = killed.elapsed();
        if found < acknowledged {
            return Err(StoryError::VersionLost { acknowledged, found });
        }
        self.tell(format_args!(
            "  {:>9} a new service on {node} goes on from version {found} with {done} files done; \
             it took over in {}",
            Shown(recovered),
            Shown(took)
        ))?;

        let mut latencies = histogram();
        let protected = thread::scope(|scope| {
            let ring = &self.ring;
            let waiting = scope.spawn(move || {
                let status = ring.wait_for(heir, "the second copy", LIMIT, is_protected)?;
                Ok::<_, RingError>((killed.elapsed(), status))
            });
            loop {
                match service.next()? {
                    Event::Committed { took_ns, .. } => latencies.saturating_record(took_ns),
                    Event::Finished { .. } => break,
                    Event::Opened { .. } => {}
                }
            }
            let waited = waiting.join().map_err(|_| RingError::Interrupted)?;
            Ok::<_, StoryError>(waited?.0)
        })?;
        self.tell(format_args!(
            "  {:>9} protected again: a second copy is there",
            Shown(protected)
        ))?;
        Ok((latencies, Times { suspected, view, recovered, protected }))
    }

    fn end(&mut self, heir: usize, expected: &Indexer, times: &Times) -> Result<(), StoryError> {
        let status = self.ring.wait_for(heir, "a protected ring", LIMIT, is_protected)?;
        let mut picture = ring_of(&status);
        picture.push(Drawn {
            name: self.ring.node(FIRST).name().to_owned(),
            state: NodeState::Dead,
            copies: Vec::new(),
        });
        let picture = draw(&picture, self.charset);
        self.tell(format_args!("The service finished.\n\n{picture}"))?;

        // Read back over yet another node than the one that wrote it, if there is one.
        let mut all = 0..self.ring.nodes().len();
        let reader = all.rfind(|&index| index != FIRST && index != heir).unwrap_or(heir);
        let name = Name::new(CHECKPOINT).expect("a constant that is a name");
        let fetched = self.ring.node(reader).client()?.get(&name, None)?;
        let mut state = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(fetched.file, fetched.len), &mut state)?;
        let found = Indexer::resume(&self.plan.dir, &state)?;
        if found != *expected {
            return Err(StoryError::Differs);
        }
        let sum: String = expected.digest().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let node = self.ring.node(reader).name().to_owned();
        let version = fetched.version;
        self.tell(format_args!(
            "The index, version {version} read from {node}, equals one made without failure \
             (digest {sum}…).\nNothing that was acknowledged is lost. From the kill: suspected {}, \
             view {}, recovered {}, protected {}.",
            Shown(times.suspected),
            Shown(times.view),
            Shown(times.recovered),
            Shown(times.protected)
        ))?;
        Ok(())
    }

    fn tell_kept(&mut self) -> io::Result<()> {
        self.tell(format_args!("\nThe other servers go on running:"))?;
        let running = self.ring.nodes().iter().filter_map(|node| {
            let pid = node.pid()?;
            Some(format!(
                "  RINGKEEP_SOCKET={} ringkeep status    # pid {pid}",
                node.socket().display()
            ))
        });
        let lines: Vec<String> = running.collect();
        self.tell(format_args!("{}", lines.join("\n")))?;
        let root = self.ring.root().display().to_string();
        self.tell(format_args!("Their logs and files are in {root}; end them with kill."))
    }
}

/// The checkpoint has its second copy and so has everything else here.
fn is_protected(status: &Status) -> bool {
    let copied = |state| matches!(state, CopyState::InSync | CopyState::Lagging);
    let ours = status.checkpoints.iter().find(|c| c.name.as_str() == CHECKPOINT);
    let mirror = ours.and_then(|checkpoint| checkpoint.mirror.as_ref());
    status.state == RingState::Protected && mirror.is_some_and(|mirror| copied(mirror.state))
}

/// A service's process. Dropping it kills it.
struct Service {
    child: Child,
    events: mpsc::Receiver<Event>,
    stop: Arc<AtomicBool>,
}

impl Service {
    fn start(mut command: Command, stop: Arc<AtomicBool>) -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (sender, events) = mpsc::sync_channel(64);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // What is no event is nothing that was promised.
                    let Ok(event) = serde_json::from_str(&line) else { continue };
                    if sender.send(event).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, events, stop })
    }

    /// The next thing that it says.
    fn next(&mut self) -> Result<Event, StoryError> {
        let deadline = Instant::now() + SILENCE_LIMIT;
        loop {
            match self.events.recv_timeout(LOOK_EVERY) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    return Err(StoryError::ServiceEnded { status });
                }
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => {
                    return Err(RingError::Interrupted.into());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(StoryError::ServiceSilent);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// SIGKILL; returns when the process is gone.
    fn kill(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

fn histogram() -> Histogram<u64> {
    // Nanoseconds up to a minute; the bounds are constants that it accepts.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}

struct Latencies<'a>(&'a Histogram<u64>);

impl fmt::Display for Latencies<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for value in [self.0.min(), self.0.value_at_quantile(0.5), self.0.value_at_quantile(0.99)] {
            write!(f, " {:>10}", Shown(Duration::from_nanos(value)))?;
        }
        write!(f, "  of {}", self.0.len())
    }
}

/// A duration with a unit that suits it.
struct Shown(Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_secs_f64() * 1e6;
        f.pad(&match us {
            us if us < 1_000.0 => format!("{us:.0} µs"),
            us if us < 1_000_000.0 => format!("{:.1} ms", us / 1e3),
            us => format!("{:.2} s", us / 1e6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_suits_them() {
        let shown = |us| Shown(Duration::from_micros(us)).to_string();
        assert_eq!(shown(42), "42 µs");
        assert_eq!(shown(4_200), "4.2 ms");
        assert_eq!(shown(4_200_000), "4.20 s");
    }

    #[test]
    fn a_service_that_ends_too_early_is_an_error_and_one_that_speaks_is_heard() {
        let script = r#"echo '{"event":"finished","version":7}'; echo nonsense; exit 3"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut service = Service::start(command, Arc::default()).unwrap();
        assert_eq!(service.next().unwrap(), Event::Finished { version: 7 });
        let error = service.next().unwrap_err();
        assert!(matches!(error, StoryError::ServiceEnded { status } if status.code() == Some(3)));
    }
}
