//! `ringkeep bench`: it measures what it says, on whichever ring there is, and leaves nothing behind.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::AtomicBool,
    time::Duration,
};

use common::{
    RINGKEEP, Ring, command,
    redis::{FakeRedis, Manner},
    refused,
};
use ringkeep::{
    Durability,
    bench::{
        BenchError,
        commits::{Commits, Work},
    },
    demo::ring,
};
use rustix::process::{Pid, Signal, kill_process};

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The binary without a server and without anything that this process's environment says.
fn alone(args: &[&str]) -> Command {
    let mut command = ring::clean(Command::new(RINGKEEP));
    command.args(args).env_remove("REDISCLI_AUTH").stdin(Stdio::null());
    command
}

fn median(row: &serde_json::Value) -> f64 {
    row["median_ns"].as_u64().unwrap() as f64
}

/// A ratio that a row tells is that of two medians.
#[track_caller]
fn is_ratio(told: &serde_json::Value, of: &serde_json::Value, to: &serde_json::Value) {
    let ratio = told.as_f64().unwrap();
    assert!((ratio - median(of) / median(to)).abs() < 1e-6, "{told}: {of} {to}");
}

fn names(rows: &[serde_json::Value]) -> Vec<&str> {
    rows.iter().map(|row| row["what"].as_str().unwrap()).collect()
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
        let local = more.contains(&"local");
        let part = more.contains(&"25");
        let mut wanted = match local {
            true => vec!["local commit", "copy, checksum"],
            false => vec!["mirrored commit", "handed over, round trip", "copy, round trip of TCP"],
        };
        let of_part = wanted.len();
        if part {
            wanted.extend(["whole state committed", "limit of the whole state"]);
        }
        assert_eq!(names(rows), wanted.repeat(2), "two sizes");
        for rows in rows.chunks(wanted.len()) {
            for (number, row) in rows.iter().enumerate() {
                assert_eq!(row["iterations"], 16);
                assert!(row["min_ns"].as_u64() <= row["p99_ns"].as_u64());
                assert_eq!(row["is_limit"], ![0, of_part].contains(&number), "{row}");
                let limit = if number < of_part { &rows[1] } else { &rows[of_part + 1] };
                is_ratio(&row["of_limit"], row, limit);
                assert!(row.get("of_ringkeep").is_none(), "nothing is compared here");
            }
            for row in &rows[..of_part] {
                if !local {
                    is_ratio(&row["of_bare"], row, &rows[2]);
                }
                assert_eq!(row.get("of_bare").is_some(), !local);
            }
            assert_eq!(rows[0].get("of_whole").is_some(), part);
            if part {
                is_ratio(&rows[0]["of_whole"], &rows[0], &rows[of_part]);
                assert_eq!(rows[of_part]["changed_bytes"], rows[of_part]["bytes"]);
            }
        }
        let second = &rows[wanted.len()];
        assert_eq!((&rows[0]["bytes"], &second["bytes"]), (&64.into(), &16384.into()));
        assert_eq!(second["changed_bytes"], if part { 4096 } else { 16384 });
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
    let here = ["mapped", "memfd, mmap, a question", "mapped and verified", "checksum"];
    assert_eq!(names(rows), here.repeat(2));
    for pair in rows.chunks(2) {
        assert!(pair.iter().all(|row| row["iterations"] == 8));
        is_ratio(&pair[0]["of_limit"], &pair[0], &pair[1]);
        assert_eq!(pair[1]["of_limit"], 1.0);
    }
    assert!(report.get("elsewhere").is_none(), "these servers are somebody's");
    nothing_is_left(&ring);

    let args = ["bench", "restore", "--iterations", "8", "--sizes", "64KiB", "--transport", "tcp"];
    let output = alone(&[&args[..], &["--json"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    let elsewhere = serde_json::json!({"owner": "a", "reader": "b", "takers": ["b", "c", "a"]});
    assert_eq!(report["elsewhere"], elsewhere);
    let rows = report["rows"].as_array().unwrap();
    let there = ["read from another node", "taken over"];
    let limits = ["one of a stream of TCP", "copy, round trip of TCP"];
    assert_eq!(names(rows), [&here[..], &there, &limits].concat());
    let [.., stream, round_trip] = &rows[..] else { panic!("{rows:?}") };
    for row in &rows[here.len()..] {
        assert_eq!(row["iterations"], 8);
        is_ratio(&row["of_limit"], row, stream);
        is_ratio(&row["of_bare"], row, round_trip);
    }
}

/// Where this thread, process or thread of it may run.
fn cores(status: impl AsRef<Path>) -> Option<String> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(line.trim().to_owned())
}

/// The processes that this one started.
fn children(pid: u32) -> Vec<String> {
    let said = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    said.split_whitespace().map(str::to_owned).collect()
}

/// A measurement that is asked to end, also when its test fails: its servers go with it.
struct Measuring(Child);

impl Measuring {
    fn end(&mut self) -> ExitStatus {
        // It may be gone already.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        self.0.wait().unwrap()
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

#[test]
fn only_the_thread_that_measures_is_kept_on_its_core() {
    let ours = cores("/proc/thread-self/status").unwrap();
    let first: String = ours.chars().take_while(char::is_ascii_digit).collect();
    let args = ["bench", "commit", "--duration", "1h", "--sizes", "64", "--cpu", &first];
    let mut command = alone(&args);
    let bench = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (pid, mut bench) = (bench.id(), Measuring(bench));
    // That it may run there is tried before any server is started.
    let servers = common::poll("a measurement on one core", || {
        let (list, servers) = (cores(format!("/proc/{pid}/status")), children(pid));
        match servers.len() == 3 && list.as_ref() == Some(&first) {
            true => Ok(servers),
            false => Err(format!("{list:?} {servers:?}")),
        }
    });
    for server in servers {
        assert_eq!(cores(format!("/proc/{server}/status")).unwrap(), ours, "a server");
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    let helpers: Vec<_> = threads.filter(|thread| !thread.ends_with(pid.to_string())).collect();
    assert!(helpers.len() > 1, "whoever answers is a thread: {helpers:?}");
    for helper in helpers {
        let list = cores(helper.join("status"));
        assert!(list.is_none_or(|list| list == ours), "{helper:?}");
    }
    assert_eq!(bench.end().code(), Some(1));
    let nowhere = alone(&["bench", "commit", "--cpu", "99999"]).output().unwrap();
    assert!(refused(&nowhere, 2).contains("--cpu 99999"));
}

#[test]
fn without_a_server_it_starts_a_ring_of_its_own() {
    let mut command = ring::clean(Command::new(RINGKEEP));
    command.args(["bench", "commit", "--iterations", "8", "--sizes", "4KiB", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    assert!(report["ring"]["members"].as_u64() >= Some(2));
    assert_eq!(report["rows"].as_array().unwrap().len(), 3);
}

#[test]
fn the_limits_need_no_server() {
    let args = ["bench", "transport", "--iterations", "8", "--sizes", "1,64KiB", "--transport"];
    let output = alone(&[&args[..], &["tcp", "--json"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["iterations"] == 8 && row["is_limit"] == true));
    let (small, large) = rows.split_at(rows.len() / 2);
    assert_eq!(names(small), names(large));
    let round_trips = ["blocking", "epoll", "adaptive", "busy"];
    let round_trips = round_trips.map(|way| format!("round trip of TCP, {way}"));
    assert_eq!(names(&small[..4]), round_trips);
    let always = ["one of a stream of TCP", "copy into 4 KiB pages", "checksum"];
    assert!(always.iter().all(|name| names(small).contains(name)), "{rows:?}");
    for rows in [small, large] {
        let of_best = |row: &serde_json::Value| row["of_limit"].as_f64().unwrap();
        assert!(rows.iter().all(|row| of_best(row) >= 1.0), "{rows:?}");
        assert_eq!(rows[..4].iter().map(of_best).fold(f64::MAX, f64::min), 1.0);
    }
    // A huge page that is not there is told, not timed.
    let is_timed = names(small).iter().any(|name| name.contains("MiB pages"));
    assert_ne!(is_timed, String::from_utf8_lossy(&output.stderr).contains("no huge page"));
    assert!(!names(small).iter().any(|name| name.contains("RDMA")));
}

#[test]
fn a_device_that_is_demanded_is_timed_or_its_absence_told() {
    let args = ["bench", "transport", "--iterations", "8", "--sizes", "64", "--transport", "rdma"];
    let output = alone(&args).output().unwrap();
    if output.status.success() {
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("RDMA write") && text.contains("one of a stream of RDMA"), "{text}");
    } else {
        assert!(refused(&output, 1).contains("--transport rdma"));
    }
}

const COMPARE: [&str; 7] =
    ["bench", "compare", "--iterations", "8", "--sizes", "64,16KiB", "--json"];

#[test]
fn a_commit_is_compared_with_what_people_have() {
    let ring = Ring::start(2);
    ring.protected();
    let redis = FakeRedis::start(Manner::Replicas(1));
    // On whatever disk this is built on.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (dir, address) = (dir.path().to_str().unwrap(), redis.address.to_string());
    let args = [&COMPARE[..], &["--dir", dir, "--redis", &address]].concat();
    let report = json(&ring.ok(0, &args));
    let files = report["beside"]["files"].as_array().unwrap();
    let kinds: Vec<_> = files.iter().map(|file| file["file_system"].as_str().unwrap()).collect();
    assert_eq!(*kinds.last().unwrap(), "tmpfs");
    assert_eq!(report["beside"]["redis"]["version"], "9.8.7");
    assert_eq!(report["beside"]["redis"]["appends_to_disk"], false);

    let rows = report["rows"].as_array().unwrap();
    let mut wanted: Vec<String> =
        ["ringkeep mirrored commit", "Redis SET + WAIT 1", "handed over, round trip"]
            .map(str::to_owned)
            .to_vec();
    wanted.extend(kinds.iter().flat_map(|kind| {
        [format!("file, fsync, rename ({kind})"), format!("overwritten, synced ({kind})")]
    }));
    assert_eq!(names(rows), [&wanted[..], &wanted].concat(), "two sizes");
    for rows in rows.chunks(wanted.len()) {
        let [ours, redis, limit, files @ ..] = rows else { panic!("{rows:?}") };
        for row in rows {
            assert_eq!(row["iterations"], 8);
            is_ratio(&row["of_ringkeep"], row, ours);
        }
        assert_eq!(ours["of_ringkeep"], 1.0);
        is_ratio(&ours["of_limit"], ours, limit);
        is_ratio(&redis["of_limit"], redis, limit);
        assert_eq!(limit["of_limit"], 1.0);
        for pair in files.chunks(2) {
            is_ratio(&pair[0]["of_limit"], &pair[0], &pair[1]);
            assert_eq!((&pair[1]["of_limit"], &pair[1]["is_limit"]), (&1.0.into(), &true.into()));
        }
    }
    nothing_is_left(&ring);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    let heard = redis.heard();
    assert_eq!(heard[0].split(' ').next(), Some("SET"));
    assert!(heard.last().unwrap().starts_with("DEL "), "{heard:?}");
}

#[test]
fn a_redis_that_cannot_take_part_is_told_and_what_to_do() {
    let compare = |address: &str, password: Option<&str>| {
        let mut command = alone(&[&COMPARE[..], &["--redis", address]].concat());
        password.map(|password| command.env("REDISCLI_AUTH", password));
        refused(&command.output().unwrap(), 1)
    };
    let fake = |manner| FakeRedis::start(manner).address.to_string();
    let line = compare(&fake(Manner::Replicas(0)), None);
    assert!(line.contains("WAIT 1 answered 0") && line.contains("--replicaof"), "{line}");
    let line = compare(&fake(Manner::Closes), None);
    assert!(line.contains("closed the connection"), "{line}");
    let line = compare(&fake(Manner::Nonsense), None);
    assert!(line.contains("no answer of Redis"), "{line}");
    let locked = fake(Manner::Password("secret"));
    let line = compare(&locked, None);
    assert!(line.contains("NOAUTH") && line.contains("REDISCLI_AUTH"), "{line}");
    assert!(compare(&locked, Some("wrong")).contains("WRONGPASS"));

    let nobody = "unix:/dev/null/no.sock";
    let line = compare(nobody, None);
    assert!(line.contains(nobody) && line.contains("--redis start"), "{line}");
    for garbage in ["redis", "host:port", "unix:", ":1"] {
        let output = alone(&[&COMPARE[..], &["--redis", garbage]].concat()).output().unwrap();
        assert!(refused(&output, 2).contains("HOST:PORT"));
    }
    let nowhere = alone(&["bench", "compare", "--dir", "/proc/self/status"]).output().unwrap();
    assert!(refused(&nowhere, 1).contains("--dir"));
}

#[test]
fn a_replica_that_is_dropped_for_a_large_state_is_told() {
    let ring = Ring::start(2);
    ring.protected();
    let redis = FakeRedis::start(Manner::ReplicaUpTo(1000));
    let address = redis.address.to_string();
    let args = [&COMPARE[..], &["--redis", &address, "--dir", "/dev/shm", "-q"]].concat();
    let line = refused(&ring.run(0, &args), 1);
    assert!(line.contains("16384 bytes") && line.contains("client-output-buffer-limit"), "{line}");
    nothing_is_left(&ring);

    // One that comes back and is sent everything is no failure, but its row misleads.
    let address = FakeRedis::start(Manner::DropsReplica).address.to_string();
    let output = ring.run(0, &[&COMPARE[..], &["--redis", &address]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("everything anew") && said.contains("client-output-buffer-limit"),
        "{said}"
    );
}

/// Where there is one; else the refusal says what to install.
#[test]
fn a_real_redis_and_its_replica_are_started_and_stopped() {
    let args = [&COMPARE[..], &["--redis", "start", "--dir", "/dev/shm", "-q"]].concat();
    let mut command = alone(&args);
    if Command::new("redis-server").arg("--version").output().is_err() {
        let line = refused(&command.output().unwrap(), 1);
        assert!(line.contains("redis-server") && line.contains("install"), "{line}");
        eprintln!("NOT TESTED: no redis-server");
        return;
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    assert_eq!(report["beside"]["redis"]["started"], true);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(names(rows).iter().filter(|name| name.starts_with("Redis")).count(), 2);
    assert_eq!(report["beside"]["files"].as_array().unwrap().len(), 1, "memory is named once");
    let redis = &report["beside"]["redis"];
    let socket = redis["address"].as_str().unwrap().strip_prefix("unix:").unwrap();
    assert!(!Path::new(socket).exists(), "it ended with the measurement");
    // What could not be done for it is said.
    let network = redis["tuning"][0].as_str().unwrap();
    assert_eq!(network.ends_with("with cubic"), redis["untuned"].is_null(), "{redis}");
}

#[test]
fn a_failure_is_measured_on_a_ring_of_its_own() {
    let tmp = tempfile::tempdir().unwrap();
    let plot = tmp.path().join("failover.svg");
    let mut args = vec!["bench", "failover", "--iterations", "2", "--detection", "fast", "--json"];
    args.extend(["--sizes", "1,64KiB", "--checkpoints", "3", "--transport", "tcp", "--plot"]);
    let output = alone(&args).arg(&plot).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    assert_eq!(report["failure"]["silence_ns"], 40_000_000);
    let rows = report["rows"].as_array().unwrap();
    let wanted = [
        "server dead: new view",
        "server dead: state served",
        "server dead: two copies again",
        "service dead: state served",
        "process gone, checksum",
    ];
    assert_eq!(names(rows), wanted.repeat(2));
    for rows in rows.chunks(wanted.len()) {
        assert!(rows.iter().all(|row| row["iterations"] == 2));
        assert!(median(&rows[0]) <= median(&rows[1]) && median(&rows[1]) <= median(&rows[2]));
        let of_limit = rows[0]["of_limit"].as_f64().unwrap();
        assert!((of_limit - median(&rows[0]) / 40e6).abs() < 1e-6);
        is_ratio(&rows[1]["of_limit"], &rows[1], &rows[0]);
        is_ratio(&rows[2]["of_limit"], &rows[2], &rows[1]);
        is_ratio(&rows[3]["of_limit"], &rows[3], &rows[4]);
        assert_eq!(rows[4]["of_limit"], 1.0);
    }
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(wanted.iter().all(|name| svg.contains(name)), "{svg}");
}

#[test]
fn a_server_that_is_only_silent_is_missed_later() {
    let mut args = vec!["bench", "failover", "--iterations", "1", "--detection", "fast"];
    args.extend(["--silent", "--sizes", "1", "--transport", "tcp", "--json"]);
    let output = alone(&args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output.stdout);
    assert_eq!(report["failure"]["signal"], "SIGSTOP");
    // Two heartbeats are what a closed port needs; silence alone lasts longer before it counts.
    assert!(median(&report["rows"][0]) > 40e6, "{report}");
}

#[test]
fn servers_of_somebody_are_never_killed() {
    let ring = Ring::start(2);
    ring.protected();
    let line = refused(&ring.run(0, &["bench", "failover"]), 2);
    assert!(line.contains("a server runs at") && line.contains("kills servers"), "{line}");
    let pid = ring.node(0).pid();
    ring.protected();
    assert_eq!(ring.node(0).pid(), pid);
    let nobody = alone(&["bench", "failover", "--socket", "/dev/null/no.sock"]).output().unwrap();
    assert!(refused(&nobody, 2).contains("--socket"));
}

#[test]
fn a_plot_names_every_contender_and_appears_whole_or_not_at_all() {
    let ring = Ring::start(2);
    ring.protected();
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("out.svg");
    let file = path.to_str().unwrap();
    for what in ["commit", "restore", "compare", "transport"] {
        let args = ["bench", what, "--iterations", "8", "--sizes", "64,4KiB", "--json", "-q"];
        let report = json(&ring.ok(0, &[&args[..], &["--plot", file]].concat()));
        let svg = fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        let rows = report["rows"].as_array().unwrap();
        assert!(names(rows).iter().all(|name| svg.contains(name)), "{what}: {svg}");
        assert!(svg.contains("\n64 B\n") && svg.contains("\n4 KiB\n"), "{svg}");
    }
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing else is left behind");
    let missing = tmp.path().join("missing/out.svg");
    let args = ["bench", "commit", "--plot", missing.to_str().unwrap(), "--duration", "1h"];
    let line = refused(&ring.run(0, &args), 1);
    assert!(line.contains("missing/out.svg"), "told before anything is measured: {line}");
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
    // What would change nothing.
    let ignored: [(&[&str], &str); 4] = [
        (&["--durability", "local", "--inflight", "2"], "--inflight"),
        (&["--durability", "local", "--transport", "tcp"], "--transport tcp"),
        (&["--all", "--sizes", "8"], "--sizes"),
        (&["--iterations", "8", "--duration", "1s"], "--duration"),
    ];
    for (wrong, told) in ignored {
        let line = refused(&ring.run(0, &[&["bench", "commit"], wrong].concat()), 2);
        assert!(line.contains(told), "{line}");
    }
}

#[test]
fn many_checkpoints_are_not_opened_for_somebody_who_does_not_want_them() {
    let ring = Ring::start(1);
    let work = Work {
        len: 8,
        checkpoints: 100_000,
        durability: Durability::Local,
        inflight: 1,
        dirty_percent: 100.0,
        spin: Duration::ZERO,
    };
    let client = ring.client(0);
    let stopped = Commits::start(&client, "many", work, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(BenchError::Interrupted)));
    nothing_is_left(&ring);
}

#[test]
fn somebody_who_has_seen_enough_stops_it_and_nothing_is_left() {
    let ring = Ring::start(3);
    ring.protected();
    let args = ["bench", "commit", "--duration", "1h", "--sizes", "64"];
    let mut command = command(&ring.node(0).socket(), &args);
    let mut bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stdout.take().unwrap()).lines();
    let mut bench = Measuring(bench);
    assert!(lines.next().unwrap().unwrap().contains("3 servers, running"));
    common::poll("a commit", || {
        let listed = json(&ring.ok(0, &["ls", "--json"]));
        if listed.as_array().is_some_and(|all| !all.is_empty()) {
            Ok(())
        } else {
            Err(listed.to_string())
        }
    });
    assert_eq!(bench.end().code(), Some(1));
    nothing_is_left(&ring);
}
