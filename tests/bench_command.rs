//! `ringkeep bench`: it measures what it says, on whichever ring there is, and leaves nothing behind.
#![cfg(feature = "cli")]

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use common::{RINGKEEP, Ring, command, refused};
use ringkeep::demo::ring;
use rustix::process::{Pid, Signal, kill_process};

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

fn nothing_is_left(ring: &Ring) {
    assert_eq!(json(&ring.ok(0, &["ls", "--json"])), serde_json::json!([]));
}

#[test]
fn commits_on_a_running_ring_are_timed_beside_their_limit() {
    let ring = Ring::start(3);
    ring.protected();
    let common = ["bench", "commit", "--iterations", "16", "--sizes", "64,16KiB", "--json"];
    let cases: [&[&str]; 5] = [
        &[],
        &["--durability", "local"],
        &["--inflight", "3"],
        &["--dirty", "25", "--checkpoints", "3"],
        &["--poll", "busy", "--warm-up", "0"],
    ];
    for more in cases {
        let report = json(&ring.ok(0, &[&common[..], more].concat()));
        assert_eq!(report["ring"]["members"], 3, "{more:?}");
        assert_eq!(report["ring"]["started"], false);
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4, "two sizes, each with its limit");
        for pair in rows.chunks(2) {
            let median = |row: &serde_json::Value| row["median_ns"].as_u64().unwrap() as f64;
            let [timed, limit] = [&pair[0], &pair[1]];
            assert_eq!((&timed["iterations"], &limit["iterations"]), (&16.into(), &16.into()));
            let ratio = timed["of_limit"].as_f64().unwrap();
            assert!((ratio - median(timed) / median(limit)).abs() < 1e-6, "{timed} {limit}");
            assert!(timed["min_ns"].as_u64() <= timed["p99_ns"].as_u64());
            assert!(limit["of_limit"].is_null());
        }
        assert_eq!((&rows[0]["bytes"], &rows[2]["bytes"]), (&64.into(), &16384.into()));
        let quarter = more.contains(&"25");
        assert_eq!(rows[2]["changed_bytes"], if quarter { 4096 } else { 16384 });
        nothing_is_left(&ring);
    }
}

#[test]
fn a_state_that_somebody_left_is_restored_in_each_way() {
    let ring = Ring::start(2);
    ring.protected();
    let args = ["bench", "restore", "--iterations", "8", "--sizes", "1,64KiB", "--json"];
    let report = json(&ring.ok(0, &args));
    let rows = report["rows"].as_array().unwrap();
    let what: Vec<_> = rows.iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["mapped", "mapped and verified", "checksum"].repeat(2));
    assert!(rows.iter().all(|row| row["iterations"] == 8));
    nothing_is_left(&ring);

    let mut own = ring::clean(Command::new(RINGKEEP));
    own.args(["bench", "restore", "--iterations", "8", "--sizes", "64KiB", "--transport", "tcp"]);
    let output = own.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("read from another node"));
}

#[test]
fn without_a_server_it_starts_a_ring_of_its_own() {
    let mut command = ring::clean(Command::new(RINGKEEP));
    command.args(["bench", "commit", "--iterations", "8", "--sizes", "4KiB", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    assert!(report["ring"]["members"].as_u64() >= Some(2));
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
}

#[test]
fn the_limits_need_no_server() {
    let mut command = ring::clean(Command::new(RINGKEEP));
    command.args(["bench", "transport", "--iterations", "8", "--sizes", "1,64KiB"]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1 + 2 * 5, "{text}");
    assert!(text.lines().skip(1).all(|line| line.split_whitespace().any(|word| word == "8")));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let ring = Ring::start(1);
    let alone = refused(&ring.run(0, &["bench", "commit", "--iterations", "8"]), 5);
    assert!(alone.contains("--durability local"), "{alone}");
    ring.ok(0, &["bench", "commit", "--iterations", "8", "--durability", "local", "--sizes", "8"]);
    for wrong in [["--sizes", "0"], ["--sizes", "5g"], ["--dirty", "0"], ["--inflight", "8"]] {
        refused(&ring.run(0, &[&["bench", "commit"], &wrong[..]].concat()), 2);
    }
}

#[test]
fn somebody_who_has_seen_enough_stops_it_and_nothing_is_left() {
    let ring = Ring::start(3);
    ring.protected();
    let args = ["bench", "commit", "--duration", "1h", "--sizes", "64"];
    let mut command = command(&ring.node(0).socket(), &args);
    let mut bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("3 servers, running"));
    common::poll("a commit", || {
        let listed = json(&ring.ok(0, &["ls", "--json"]));
        if listed.as_array().is_some_and(|all| !all.is_empty()) {
            Ok(())
        } else {
            Err(listed.to_string())
        }
    });
    kill_process(Pid::from_child(&bench), Signal::TERM).unwrap();
    let ended = bench.wait().unwrap();
    assert_eq!(ended.code(), Some(1));
    nothing_is_left(&ring);
}
