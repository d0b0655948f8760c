//! Servers that are told to stop: what they have moves first, and they come back.
#![cfg(feature = "cli")]

mod common;

use std::{
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{
    Ring, get, in_sync, owned, payload, poll,
    servers::Server,
    writer::{self, Writer},
};
use ringkeep::{Client, Durability, Options, demo::ring::RingError, protocol::RingState};
use rustix::process::{Pid, Signal, kill_process};

const SEED: u64 = 0x1eaf;

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

/// Each server's own checkpoint, three versions of it, on two nodes.
fn fill(ring: &Ring) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (index, node) in ring.nodes().iter().enumerate() {
        let name = format!("of-{}", node.name());
        for version in 1..=3 {
            let bytes = payload::state(SEED + index as u64, version);
            let file = ring.root().join("payload");
            std::fs::write(&file, &bytes).unwrap();
            ring.ok(index, &["put", &name, file.to_str().unwrap(), "--durability", "mirrored"]);
        }
        all.push((name, payload::state(SEED + index as u64, 3)));
    }
    ring.protected();
    all
}

#[track_caller]
fn has_all(ring: &Ring, index: usize, all: &[(String, Vec<u8>)]) {
    for (name, bytes) in all {
        let (version, found) = get(&ring.client(index), name);
        assert_eq!(version, 3, "{name} at {}", ring.node(index).name());
        assert!(found == *bytes, "{name}: other bytes");
    }
}

fn signal(ring: &Ring, index: usize, signal: Signal) {
    let pid = ring.node(index).pid().unwrap();
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Waits until a server that was sent a signal has ended.
#[track_caller]
fn ended(ring: &mut Ring, index: usize) -> ExitStatus {
    poll("its end", || match ring.node_mut(index).check() {
        Err(RingError::Ended { status, .. }) => Ok(status),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn a_rolling_restart_never_leaves_a_checkpoint_with_one_copy() {
    let mut ring = Ring::start(3);
    let all = fill(&ring);
    for index in 0..3 {
        let status = ring.node_mut(index).terminate().expect("it ends by itself");
        assert!(status.success());
        // Not "soon": it must have been so before the server was gone.
        for other in (0..3).filter(|&other| other != index) {
            let status = ring.node(other).status().unwrap();
            assert_eq!(status.state, RingState::Protected, "{status:?}");
            assert_eq!(status.view.as_ref().unwrap().members.len(), 2);
            let synced = status.checkpoints.iter().all(|c| in_sync(&status, c.name.as_str()));
            assert!(synced, "{status:?}");
        }
        has_all(&ring, (index + 1) % 3, &all);
        ring.restart(index);
        ring.protected();
    }
    has_all(&ring, 0, &all);
}

/// Looks without a pause at whether servers have a second copy of what they own by now. (What they
/// are given meanwhile, the one that gives it still has.)
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Watch {
    fn start(ring: &Ring, servers: [usize; 2]) -> Self {
        let theirs = servers.map(|server| {
            let status = ring.node(server).status().unwrap();
            let names: Vec<_> = status.checkpoints.into_iter().map(|c| c.name).collect();
            (ring.node(server).socket(), names)
        });
        assert!(theirs.iter().any(|(_, names)| !names.is_empty()), "nothing to look at");
        let stop = Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut looked = 0;
            while !over.load(Ordering::Relaxed) {
                for (socket, names) in &theirs {
                    let status = Client::connect_to(socket).and_then(|c| c.status()).unwrap();
                    for name in names {
                        // Also while the next holder gets its copy: the one before goes on until
                        // then (H3). One version may be on its way.
                        let copy = owned(&status, name.as_str());
                        let mirror = copy.and_then(|c| Some((c.version, c.mirror.as_ref()?)));
                        let two = mirror.is_some_and(|(version, mirror)| {
                            let view = status.view.as_ref();
                            let there = view.is_some_and(|v| v.members.contains(&mirror.node));
                            there && mirror.version + 1 >= version
                        });
                        assert!(two, "one copy of {name}: {status:#?}");
                    }
                }
                looked += 1;
            }
            looked
        });
        Self { stop, thread }
    }

    /// How often it looked.
    #[track_caller]
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("two copies all the time")
    }
}

#[test]
fn while_a_ring_restarts_one_by_one_commits_go_on_and_copies_stay_two() {
    let mut ring = Ring::start(3);
    let all = fill(&ring);
    for index in 0..3 {
        let (busy, other) = ((index + 1) % 3, (index + 2) % 3);
        let state = format!("state-{index}");
        let mut writer = Writer::open(&ring.node(busy).socket(), &state, SEED, 0);
        assert!(writer.acknowledges(20));
        ring.protected();
        let watch = Watch::start(&ring, [busy, other]);
        signal(&ring, index, Signal::TERM);
        assert!(ended(&mut ring, index).success());
        assert!(watch.end() > 0);
        assert!(writer.acknowledges(20), "without the one that left");
        ring.restart(index);
        assert!(writer.acknowledges(20), "while it comes back");
        ring.protected();
        let acknowledged = writer.kill_9();
        let (version, bytes) = get(&ring.client(other), &state);
        assert!(version >= acknowledged, "{version} < {acknowledged}");
        assert!(bytes == payload::state(SEED, version));
    }
    has_all(&ring, 0, &all);
}

#[test]
fn a_node_that_dies_right_after_another_left_takes_nothing_with_it() {
    for victim in 1..4 {
        let mut ring = Ring::start(4);
        let all = fill(&ring);
        assert!(ring.node_mut(0).terminate().expect("it ends by itself").success());
        ring.node_mut(victim).kill_9();
        ring.node(victim).wipe_memory().unwrap();
        ring.node(0).wipe_memory().unwrap();
        ring.protected();
        has_all(&ring, if victim == 1 { 2 } else { 1 }, &all);
    }
}

#[test]
fn a_writer_on_a_node_that_leaves_loses_nothing_and_goes_on_elsewhere() {
    let mut ring = Ring::start(3);
    let mut writer = Writer::open(&ring.node(0).socket(), "state", SEED, 0);
    assert!(writer.acknowledges(50));
    signal(&ring, 0, Signal::TERM);
    assert!(ended(&mut ring, 0).success());
    let acknowledged = writer.kill_9();
    let (version, bytes) = get(&ring.client(1), "state");
    assert!(version >= acknowledged, "{version} < {acknowledged}");
    assert!(bytes == payload::state(SEED, version));
    let mut writer = Writer::open(&ring.node(2).socket(), "state", SEED, acknowledged);
    assert!(writer.acknowledges(20), "it goes on there");
}

#[test]
fn a_second_signal_stops_at_once_and_keeps_everything_in_memory() {
    let mut ring = Ring::start(3);
    let all = fill(&ring);
    // The heir does not answer, so leaving takes until somebody gives up.
    let heir = ring.predecessor(0);
    ring.node(heir).pause();
    signal(&ring, 0, Signal::TERM);
    poll("the begin of leaving", || {
        let log = std::fs::read_to_string(ring.node(0).log()).unwrap();
        if log.contains("leaving the ring") { Ok(()) } else { Err(log) }
    });
    assert!(ring.node_mut(0).terminate().expect("at once").success());
    ring.node(heir).resume();
    ring.restart(0);
    ring.protected();
    has_all(&ring, 0, &all);
}

#[test]
fn a_whole_cluster_comes_back_in_any_order() {
    let orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1], [2, 1, 0], [1, 0, 2]];
    for at_once in [Signal::KILL, Signal::TERM] {
        let mut ring = Ring::start(3);
        let all = fill(&ring);
        for order in orders {
            (0..3).for_each(|index| signal(&ring, index, at_once));
            (0..3).for_each(|index| {
                ended(&mut ring, index);
            });
            // The first one may not answer for a ring before a second one is there.
            for index in order {
                ring.restart(index);
            }
            ring.protected();
            for index in order {
                has_all(&ring, index, &all);
            }
        }
    }
}

/// A ring of three with these flags: its founder and the others.
fn started(flags: &[&str]) -> (Server, Vec<Server>) {
    let flags = [&["--listen", "127.0.0.1:0"], flags].concat();
    let mut founder = Server::new("a", &flags);
    founder.start();
    let address = founder.address();
    let join = [&flags[..], &["--join", &address]].concat();
    let mut others: Vec<Server> = ["b", "c"].map(|name| Server::new(name, &join)).into();
    others.iter_mut().for_each(Server::start);
    founder.wait("a ring of three", |status| common::members(status, 3));
    (founder, others)
}

#[test]
fn a_node_that_is_out_does_not_wait_for_ever_for_those_who_stay_to_know_it() {
    // Longer than this test waits for anything.
    let (mut leaver, others) = started(&["--leave-timeout", "1h"]);
    let [stays, hung] = &others[..] else { unreachable!() };
    // Whichever view the leaver is out in, one of its two voters never says that it knows it.
    hung.pause();
    leaver.terminate();
    assert!(leaver.ended().success());
    stays.wait("a view without it", |status| {
        let view = status.view.as_ref();
        view.is_some_and(|view| view.members.iter().all(|member| member.as_str() != "a"))
    });
}

#[test]
fn a_service_that_goes_on_committing_locally_holds_nobody_up() {
    let (mut leaver, others) = started(&["--leave-timeout", "5s"]);
    let mut checkpoint = leaver.client().open("state", Options::capacity(100)).unwrap();
    let last = checkpoint.save(b"with two copies", Durability::Mirrored).unwrap();
    let committed = Arc::new(AtomicU64::new(last));
    let newest = committed.clone();
    // It ends with this test. What it commits while its server leaves is for the next one to take, or
    // lost: it was told nothing else.
    std::thread::spawn(move || {
        while let Ok(version) = checkpoint.save(b"locally", Durability::Local) {
            newest.store(version, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1)); // several between two looks of the leaver
        }
    });
    poll("some commits", || match committed.load(Ordering::Relaxed) {
        version if version > last + 10 => Ok(()),
        version => Err(version.to_string()),
    });
    leaver.terminate();
    assert!(leaver.ended().success());
    let log = leaver.log();
    assert!(!log.contains("not everything could be handed over"), "{log}");
    assert!(get(&others[0].client(), "state").0 > last);
}

#[test]
fn the_founder_of_a_ring_that_left_it_goes_back_to_it() {
    let (mut founder, others) = started(&[]);
    let cluster_of = |server: &Server| server.wait("a view", |s| s.view.is_some()).view.unwrap();
    founder.terminate();
    assert!(founder.ended().success());
    let without = cluster_of(&others[0]);
    assert_eq!(without.members.len(), 2);
    founder.start(); // with the flags that founded the ring
    founder.wait("the ring that it left", |status| common::members(status, 3));
    assert!(cluster_of(&founder).number > without.number);
}
