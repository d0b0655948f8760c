//! What the tests with real servers share: a ring whose logs are shown when a test fails, the
//! binary run as a shell would, and a writer in a process of its own that can be killed.
//!
//! Nothing here sleeps for a guessed time: every wait has a condition and a limit.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod cluster;
pub mod network;
pub mod payload;
pub mod raw;
pub mod redis;
pub mod servers;
pub mod terminal;
pub mod views;
pub mod writer;

use std::{
    fs,
    ops::{Deref, DerefMut},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use ringkeep::{
    Client,
    demo::ring,
    name::Name,
    protocol::{CopyState, OwnedStatus, Status},
    transport::Kind,
};

/// The binary under test.
pub const RINGKEEP: &str = env!("CARGO_BIN_EXE_ringkeep");
/// How long a condition may take to come about.
pub const LIMIT: Duration = ring::LIMIT;

/// What the rings of these tests use: `RINGKEEP_TEST_TRANSPORT`, or TCP.
pub fn transport() -> Kind {
    match std::env::var("RINGKEEP_TEST_TRANSPORT").as_deref() {
        Ok("rdma") => Kind::Rdma,
        Ok("tcp") | Err(_) => Kind::Tcp,
        Ok(other) => panic!("RINGKEEP_TEST_TRANSPORT={other}"),
    }
}

/// A ring of real servers. When a test fails, what they logged is printed; in any case they are
/// killed and their files removed.
pub struct Ring(ring::Ring);

impl Ring {
    /// Servers a, b, c, …, each with a view of all.
    #[track_caller]
    pub fn start(count: usize) -> Self {
        Self::start_over(transport(), count)
    }

    /// The same over this transport, whatever the environment says.
    #[track_caller]
    pub fn start_over(transport: Kind, count: usize) -> Self {
        let transport = transport.to_string();
        let ring = ring::Ring::start(Path::new(RINGKEEP), count, &transport, Arc::default());
        Self(ring.unwrap_or_else(|e| panic!("{e}")))
    }

    /// A client of one server.
    #[track_caller]
    pub fn client(&self, index: usize) -> Client {
        self.node(index).client().unwrap()
    }

    /// Waits for a status of one server; the last one seen is in the panic's message.
    #[track_caller]
    pub fn wait(&self, index: usize, what: &str, until: impl FnMut(&Status) -> bool) -> Status {
        self.wait_for(index, what, LIMIT, until).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until all running servers agree that everything has its two copies.
    #[track_caller]
    pub fn protected(&self) {
        self.wait_until_protected().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Starts a server that was killed or stopped, with the memory files that are there.
    #[track_caller]
    pub fn restart(&mut self, index: usize) {
        self.launch(index).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Which server holds the mirrors of this one.
    #[track_caller]
    pub fn predecessor(&self, index: usize) -> usize {
        let status = self.node(index).status().unwrap();
        self.index_of(status.predecessor.expect("a predecessor").as_str()).unwrap()
    }

    /// Runs a command against one server.
    pub fn run(&self, index: usize, args: &[&str]) -> Output {
        command(&self.node(index).socket(), args).output().unwrap()
    }

    /// The same, and it must succeed. Its standard output.
    #[track_caller]
    pub fn ok(&self, index: usize, args: &[&str]) -> Vec<u8> {
        let output = self.run(index, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        output.stdout
    }

    /// The same, and it must fail with this status. The line on its standard error.
    #[track_caller]
    pub fn refused(&self, index: usize, args: &[&str], status: i32) -> String {
        refused(&self.run(index, args), status)
    }
}

impl Deref for Ring {
    type Target = ring::Ring;
    fn deref(&self) -> &ring::Ring {
        &self.0
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut ring::Ring {
        &mut self.0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.0.nodes() {
                let log = fs::read_to_string(node.log()).unwrap_or_default();
                eprintln!("---- log of {}\n{log}", node.name());
            }
        }
    }
}

/// A command for the server at this socket.
pub fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = ring::clean(Command::new(RINGKEEP));
    command.args(args).arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

/// What a refused command says: this status, one line on standard error that starts with the
/// program's name (warnings may stand before it), nothing on standard output.
#[track_caller]
pub fn refused(output: &Output, status: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(output.stdout.is_empty());
    let is_error = |line: &&str| !line.starts_with("ringkeep: warning: ");
    let lines: Vec<&str> = said.lines().filter(is_error).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].starts_with("ringkeep: "), "{said}");
    lines[0].to_owned()
}

/// Asks until `done` gives something.
#[track_caller]
pub fn poll<T>(what: &str, done: impl FnMut() -> Result<T, String>) -> T {
    let never = AtomicBool::new(false);
    ring::poll(what, LIMIT, &never, done).unwrap_or_else(|e| panic!("{e}"))
}

/// A name that is known to be one.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A checkpoint that this node owns.
pub fn owned<'a>(status: &'a Status, wanted: &str) -> Option<&'a OwnedStatus> {
    status.checkpoints.iter().find(|c| c.name.as_str() == wanted)
}

/// It is owned here, and its newest version is known to be on another node.
pub fn in_sync(status: &Status, wanted: &str) -> bool {
    let mirror = owned(status, wanted).and_then(|checkpoint| checkpoint.mirror.as_ref());
    mirror.is_some_and(|mirror| mirror.state == CopyState::InSync)
}

/// The view has exactly so many members.
pub fn members(status: &Status, count: usize) -> bool {
    status.view.as_ref().is_some_and(|view| view.members.len() == count)
}

/// The newest version of a checkpoint and its bytes, as this client gets them.
#[track_caller]
pub fn get(client: &Client, wanted: &str) -> (u64, Vec<u8>) {
    let fetched = client.get(&name(wanted), None).unwrap();
    (fetched.version, bytes_of(fetched))
}

/// The node that owns a checkpoint, as soon as the listing that this client gets says so.
#[track_caller]
pub fn listed_owner(client: &Client, wanted: &str) -> String {
    poll("the checkpoint in the ring's listing", || {
        let listed = client.list().map_err(|e| e.to_string())?;
        let found = listed.iter().find(|c| c.name.as_str() == wanted);
        let found = found.ok_or_else(|| format!("it is not in {listed:?}"))?;
        Ok(found.owner.to_string())
    })
}

/// What was fetched.
pub fn bytes_of(fetched: ringkeep::client::Fetched) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(fetched.file, fetched.len), &mut bytes)
        .unwrap();
    bytes
}
