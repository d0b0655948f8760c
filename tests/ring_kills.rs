//! Whatever process is killed or stopped, and whenever: an acknowledged `mirrored` version is there
//! afterwards, byte for byte.
//!
//! `RINGKEEP_KILL_ROUNDS` says how many rounds, `RINGKEEP_KILL_SEED` repeats a run.
#![cfg(feature = "cli")]

mod common;

use common::{
    Ring, bytes_of, get, listed_owner, members, name,
    payload::{self, Random},
    poll, transport,
    writer::{self, Writer},
};
use ringkeep::{client::RequestError, protocol::FailureKind};

const ROUNDS_DEFAULT: u64 = 40;
const NODES: usize = 4;

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}

fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Service,
    Server,
    Both,
    OtherServer,
    /// Any server, for longer than the ring waits: it finds itself voted out when it goes on.
    Stopped,
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let rounds = number("RINGKEEP_KILL_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = number("RINGKEEP_KILL_SEED").unwrap_or_else(fresh_seed);
    eprintln!("{rounds} rounds; to repeat: RINGKEEP_KILL_SEED={seed}");
    let mut random = Random(seed);
    let mut play = Play::start(seed);
    for round in 0..rounds {
        play.round(round, &mut random);
    }
    let acknowledged = play.writer.kill_9();
    eprintln!("{rounds} rounds, {acknowledged} versions");
    for node in 0..NODES {
        let (version, bytes) = get(&play.ring.client(node), "state");
        assert!(version >= acknowledged, "LOST: {acknowledged}, {version} from {node}");
        assert!(bytes == payload::state(seed, version), "version {version} from {node}");
    }
}

struct Play {
    ring: Ring,
    writer: Writer,
    home: usize,
    /// Its node's incarnation when the service opened the checkpoint.
    life: u64,
    seed: u64,
}

impl Play {
    fn start(seed: u64) -> Self {
        let ring = Ring::start(NODES);
        let life = ring.node(0).status().unwrap().incarnation;
        let writer = Writer::open(&ring.node(0).socket(), "state", seed, 0);
        Self { ring, writer, home: 0, life, seed }
    }

    fn round(&mut self, round: u64, random: &mut Random) {
        // When it happens is told by what the service has done, not by a clock.
        self.go_on(1 + random.below(30) as u64);
        let victim = match random.below(5) {
            0 => Victim::Service,
            1 => Victim::Server,
            2 => Victim::Both,
            3 => Victim::OtherServer,
            _ => Victim::Stopped,
        };
        let has_memory = !matches!(victim, Victim::Service | Victim::Stopped);
        let wiped = has_memory && random.below(2) == 0;
        let other = (self.home + 1 + random.below(NODES - 1)) % NODES;
        let moves = random.below(2) == 0;
        eprintln!("round {round}: {victim:?} of {} (other {other}), wiped: {wiped}", self.home);
        match victim {
            Victim::Service => {
                // Where its own node is: elsewhere that would be a take-over by force.
                let acknowledged = self.writer.kill_9();
                self.open_anywhere(acknowledged);
            }
            Victim::Server => {
                self.kill_server(self.home, wiped);
                self.ring.restart(self.home);
            }
            Victim::Both => {
                self.kill_server(self.home, wiped);
                let acknowledged = self.writer.kill_9();
                let dead = self.home;
                if moves || wiped {
                    let seen = "the dead node's end";
                    self.ring.wait(other, seen, |status| members(status, NODES - 1));
                    self.open_writer(other, acknowledged);
                    self.ring.restart(dead);
                } else {
                    self.ring.restart(dead);
                    self.open_anywhere(acknowledged);
                }
            }
            Victim::OtherServer => {
                self.kill_server(other, wiped);
                self.go_on(5);
                self.ring.restart(other);
            }
            Victim::Stopped if moves => self.stop(self.home, Some(other)),
            Victim::Stopped => self.stop([self.home, other][random.below(2)], None),
        }
        for node in 0..NODES {
            self.ring.wait(node, "the whole ring", |status| members(status, NODES));
        }
        self.go_on(5);
        self.ring.protected();
        self.travels_as_asked();
        self.check(random.below(NODES));
    }

    /// Stops a server until the others have voted it out. The service is opened at the `heir`, if
    /// there is one, while the one before still runs: nothing of that one is acknowledged any more.
    fn stop(&mut self, stopped: usize, heir: Option<usize>) {
        self.ring.node(stopped).pause();
        let seen = heir.unwrap_or((stopped + 1) % NODES);
        self.ring.wait(seen, "the stopped node's end", |status| members(status, NODES - 1));
        if let Some(heir) = heir {
            let mut before = self.open_writer(heir, self.writer.acknowledged);
            let began = self.writer.found;
            self.ring.node(stopped).resume();
            assert!(!before.acknowledges(u64::MAX / 2), "two services write one checkpoint");
            let last = before.acknowledged;
            assert!(last <= began, "{last} acknowledged, after another began with {began}");
        } else {
            self.ring.node(stopped).resume();
        }
    }

    /// Waits for more acknowledged versions. A service whose node was voted out is fenced; it finds
    /// its checkpoint where the ring says.
    fn go_on(&mut self, versions: u64) {
        if !self.writer.acknowledges(versions) {
            poll("the node's next life, without which nobody takes over", || {
                match self.ring.node(self.home).status() {
                    Ok(status) if status.incarnation != self.life => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
            let acknowledged = self.writer.kill_9();
            self.open_anywhere(acknowledged);
            assert!(self.writer.acknowledges(versions), "nobody else has it");
        }
    }

    /// Mirrors are really written over the transport that this is about.
    fn travels_as_asked(&self) {
        let status = self.ring.node(self.home).status().unwrap();
        let mirrors = status.checkpoints.iter().filter_map(|c| c.mirror.as_ref());
        assert!(
            mirrors.map(|m| m.transport).all(|t| t.is_none_or(|t| t == transport())),
            "{status:?}"
        );
    }

    /// What any node hands out while the service goes on. On a machine so slow that a view changes
    /// once more meanwhile, it may have to be asked again.
    fn check(&mut self, node: usize) {
        let acknowledged = self.writer.acknowledged;
        let (version, bytes) =
            poll("the state", || match self.ring.client(node).get(&name("state"), None) {
                Ok(fetched) => Ok((fetched.version, bytes_of(fetched))),
                Err(RequestError::Refused(f)) if f.kind == FailureKind::Unavailable => {
                    Err(f.message)
                }
                Err(error) => panic!("{error}"),
            });
        assert!(version >= acknowledged, "LOST: {acknowledged}, {version} from {node}");
        assert!(bytes == payload::state(self.seed, version), "version {version} from {node}");
    }

    fn kill_server(&mut self, node: usize, wiped: bool) {
        self.ring.node_mut(node).kill_9();
        if wiped {
            self.ring.node(node).wipe_memory().unwrap();
        }
    }

    /// Answers with the writer before.
    fn open_writer(&mut self, node: usize, acknowledged: u64) -> Writer {
        let server = self.ring.node(node);
        let life = server.status().unwrap().incarnation;
        let writer = Writer::open(&server.socket(), "state", self.seed, acknowledged);
        (self.home, self.life) = (node, life);
        std::mem::replace(&mut self.writer, writer)
    }

    /// On the node that owns it now.
    fn open_anywhere(&mut self, acknowledged: u64) {
        let owner = listed_owner(&self.ring.client(self.home), "state");
        let owner = self.ring.index_of(&owner).expect("a node of this ring");
        self.open_writer(owner, acknowledged);
    }
}
