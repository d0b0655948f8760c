//! What the log of a real server says about a node that fails, and how that was noticed.
#![cfg(feature = "cli")]

mod common;

use std::fs;

use common::{Ring, members, poll};

/// Waits until the log of one of these servers has all of these words in one line.
#[track_caller]
fn logged(ring: &Ring, servers: &[usize], words: &[&str]) {
    poll(&format!("a line with {words:?}"), || {
        let logs = servers.iter().map(|&index| fs::read_to_string(ring.node(index).log()));
        let logs = logs.collect::<Result<String, _>>().map_err(|e| e.to_string())?;
        let found = logs.lines().any(|line| words.iter().all(|word| line.contains(word)));
        if found { Ok(()) } else { Err(logs) }
    });
}

#[test]
fn a_killed_server_is_noticed_by_its_closed_port_and_not_by_its_silence() {
    let mut ring = Ring::start(3);
    ring.node_mut(2).kill_9();
    for survivor in [0, 1] {
        ring.wait(survivor, "a ring without it", |status| members(status, 2));
        logged(&ring, &[survivor], &["the ring goes on without it", "suspect=c#", "accusers="]);
    }
    logged(&ring, &[0, 1], &["WARN", "suspected suspect=c#", "its server's port is closed"]);
    let logs: String =
        [0, 1].map(|index| fs::read_to_string(ring.node(index).log()).unwrap()).concat();
    assert!(!logs.contains("why=silent for"), "{logs}");
}

#[test]
fn a_server_that_fell_silent_and_lives_is_called_a_mistake() {
    let ring = Ring::start(3);
    ring.node(2).pause();
    for survivor in [0, 1] {
        ring.wait(survivor, "a ring without it", |status| members(status, 2));
    }
    logged(&ring, &[0, 1], &["WARN", "suspected suspect=c#", "silent for", "waited for"]);
    ring.node(2).resume();
    for server in [0, 1, 2] {
        ring.wait(server, "the whole ring", |status| members(status, 3));
    }
    logged(&ring, &[0, 1], &["WARN", "removed by mistake", "suspect=c#"]);
}
