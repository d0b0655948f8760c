//! Real servers, nothing broken: what the front door promises.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    RINGKEEP, Ring, command, get, in_sync, members, name, owned, payload::Random, poll, refused,
    servers::Server,
};
use ringkeep::{
    Client, Durability, OpenError, Options,
    client::{CommitError, OwnershipError, RequestError, WriteError},
    protocol::FailureKind,
    transport::Kind,
};

/// nobody
const OTHER_UID: u32 = 65534;

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

fn temp_file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn a_ring_of_one_is_usable_at_once() {
    let ring = Ring::start(1);
    let file = temp_file(b"state of the scheduler");
    let put = ring.run(0, &["put", "sched", path(&file)]);
    assert_eq!((put.status.code(), &*put.stdout), (Some(0), &b"1\n"[..]));
    let warned = String::from_utf8(put.stderr).unwrap();
    assert!(warned.lines().any(|l| l.contains("sched is kept on this node only")), "{warned}");
    assert!(ring.run(0, &["put", "sched", path(&file), "-q"]).stderr.is_empty());
    assert_eq!(ring.ok(0, &["put", "sched", path(&file), "--durability", "local"]), b"3\n");
    assert_eq!(ring.ok(0, &["get", "sched"]), b"state of the scheduler");
    assert_eq!(ring.ok(0, &["get", "sched", "--version", "3"]), b"state of the scheduler");

    let listed = json(&ring.ok(0, &["ls", "--json"]));
    assert_eq!((&listed[0]["name"], &listed[0]["version"]), (&"sched".into(), &3.into()));
    assert!(String::from_utf8(ring.ok(0, &["ls"])).unwrap().contains("sched"));
    assert!(String::from_utf8(ring.ok(0, &["status"])).unwrap().contains("sched v3 owner"));
    let copies = json(&ring.ok(0, &["verify", "sched", "--json"]));
    assert_eq!((&copies[0]["version"], &copies[0]["damage"]), (&3.into(), &().into()));

    assert_eq!(json(&ring.ok(0, &["rm", "sched", "--json"]))["removed"][0], "sched");
    ring.refused(0, &["get", "sched"], 3);
    ring.refused(0, &["rm", "sched"], 3);
    ring.refused(0, &["verify", "sched"], 3);
    assert_eq!(json(&ring.ok(0, &["ls", "--json"])), serde_json::json!([]));
}

/// One may use what there is, the other TCP only: what they have in common is TCP, whether this
/// machine has RDMA or not.
#[test]
fn servers_that_have_one_transport_in_common_use_it() {
    let start = |name: &str, transport: &str, join: &[&str]| {
        let flags = ["--listen", "127.0.0.1:0", "--memory", "64m", "--transport", transport];
        let mut server = Server::new(name, &[&flags[..], join].concat());
        server.start();
        server
    };
    let a = start("a", "tcp", &[]);
    let b = start("b", "auto", &["--join", &a.address()]);
    let file = temp_file(b"state");
    for server in [&a, &b] {
        server.wait("the ring", |s| members(s, 2));
        let put = ["put", &server.name, path(&file), "--durability", "mirrored"];
        assert_eq!(server.ok(&put), "1\n");
        let status = server.wait("the mirror", |s| in_sync(s, &server.name));
        let mirror = owned(&status, &server.name).unwrap().mirror.as_ref().unwrap();
        assert_eq!(mirror.transport, Some(Kind::Tcp));
    }
    assert_eq!(a.status().unwrap().transport, Kind::Tcp);
}

#[test]
fn exit_statuses_are_those_of_the_front_door() {
    let ring = Ring::start(1);
    let file = temp_file(b"state");
    let mirrored = ["--durability", "mirrored", "--timeout", "50ms"];
    let line = ring.refused(0, &[&["put", "sched", path(&file)], &mirrored[..]].concat(), 5);
    assert!(line.contains("version 1 of sched is local only"), "{line}");
    assert_eq!(ring.ok(0, &["get", "sched"]), b"state", "the version stays local");
    ring.refused(0, &["get", "nothing"], 3);
    ring.refused(0, &["get", "sched", "--version", "99"], 3);
    let nowhere = ring.root().join("nowhere.sock");
    let line = refused(&command(&nowhere, &["ls"]).output().unwrap(), 8);
    assert!(line.contains("ringkeep serve"), "{line}");
}

#[test]
fn what_cannot_be_a_checkpoint_is_refused() {
    let ring = Ring::start(1);
    let empty = temp_file(b"");
    let put =
        |capacity: &str| ring.refused(0, &["put", "x", path(&empty), "--capacity", capacity], 2);
    put("0");
    put(&(1u64 << 63).to_string());
    // More than this server may have, but a size that a checkpoint can have.
    ring.refused(0, &["put", "x", path(&empty), "--capacity", "1023g"], 6);
    assert_eq!(json(&ring.ok(0, &["ls", "--json"])), serde_json::json!([]), "nothing is left");

    let client = ring.client(0);
    let long = "x".repeat(10_000);
    for bad in ["", "..", "a/b", "a\0b", &*long] {
        let refused = client.open(bad, Options::capacity(1));
        assert!(matches!(refused, Err(OpenError::Name(_))), "{bad:?}");
    }
    for (capacity, slots) in [(0, 2), (1 << 63, 2), (u64::MAX, 2), (1, 1), (1, 9)] {
        let refused = client.open("x", Options::capacity(capacity).slots(slots)).map(drop);
        assert_eq!(refused.unwrap_err().kind(), Some(FailureKind::Invalid), "{capacity} {slots}");
    }
    let none = client.open("x", Options::capacity(1).existing()).map(drop);
    assert_eq!(none.unwrap_err().kind(), Some(FailureKind::NoSuchCheckpoint));
    ring.ok(0, &["put", "x", path(&empty), "--durability", "local"]);
    assert_eq!(ring.ok(0, &["get", "x"]), b"", "an empty state is a state");
}

#[test]
fn three_nodes_have_the_same_checkpoints() {
    let ring = Ring::start(3);
    let mut random = Random(7);
    let content: Vec<u8> = (0..300_000).map(|_| random.next() as u8).collect();
    let file = temp_file(&content);
    assert_eq!(ring.ok(0, &["put", "sched", path(&file), "--durability", "mirrored"]), b"1\n");
    for node in 0..3 {
        assert_eq!(ring.ok(node, &["get", "sched"]), content, "from node {node}");
        let listed = json(&ring.ok(node, &["ls", "--json"]));
        assert_eq!((&listed[0]["name"], &listed[0]["owner"]), (&"sched".into(), &"a".into()));
    }
    ring.protected();
    let mirror = ring.predecessor(0);
    let status = json(&ring.ok(0, &["status", "--json"]));
    for (key, wanted) in [
        ("/node", "a".into()),
        ("/transport", "tcp".into()),
        ("/state", "protected".into()),
        ("/predecessor", ring.node(mirror).name().into()),
        ("/checkpoints/0/name", "sched".into()),
        ("/checkpoints/0/role", "owner".into()),
        ("/checkpoints/0/version", 1.into()),
        ("/checkpoints/0/bytes", content.len().into()),
        ("/checkpoints/0/mirror/node", ring.node(mirror).name().into()),
        ("/checkpoints/0/mirror/version", 1.into()),
        ("/checkpoints/0/mirror/state", "in-sync".into()),
        ("/checkpoints/0/mirror/transport", "tcp".into()),
    ] {
        let wanted: serde_json::Value = wanted;
        assert_eq!(status.pointer(key), Some(&wanted), "{key} in {status}");
    }
    assert!(status["incarnation"].is_u64() && status["hugepages"].is_boolean());
    assert!(status["view"]["number"].is_u64() && status["successor"].is_string());
    assert_eq!(status["view"]["members"].as_array().unwrap().len(), 3);
    let held = json(&ring.ok(mirror, &["status", "--json"]));
    let wanted =
        serde_json::json!({"name": "sched", "owner": "a", "version": 1, "state": "in-sync"});
    assert_eq!(held["mirrors"][0], wanted);

    ring.ok(0, &["rm", "sched"]);
    for node in 0..3 {
        ring.refused(node, &["get", "sched"], 3);
    }
    ring.wait(mirror, "the mirror's end", |status| status.mirrors.is_empty());
}

#[test]
fn a_checkpoint_grows() {
    let ring = Ring::start(3);
    let client = ring.client(0);
    let mut small = client.open("state", Options::capacity(1000)).unwrap();
    assert!(small.ring_mirrors());
    small.save(&[1; 1000], Durability::Mirrored).unwrap();
    let full = small.write_at(1000, &[2]);
    assert!(matches!(full, Err(WriteError::TooLarge(_))), "{full:?}");
    drop(small);

    let mut large = common::poll("the old writer's end to be noticed", || {
        client.open("state", Options::capacity(5 << 20)).map_err(|e| e.to_string())
    });
    assert!(large.capacity() >= 5 << 20);
    assert_eq!(large.latest().unwrap().unwrap().bytes(), [1; 1000]);
    large.write_at((5 << 20) - 1, &[3]).unwrap();
    let version = large.commit(Durability::Mirrored).unwrap();
    assert_eq!(version, 2, "versions go on");
    drop(large);
    let mut wanted = vec![0; 5 << 20];
    wanted[..1000].fill(1);
    wanted[(5 << 20) - 1] = 3;
    assert_eq!(get(&ring.client(1), "state"), (2, wanted));
}

#[test]
fn a_hundred_megabytes_travel_to_the_other_nodes() {
    let ring = Ring::start(3);
    let mut random = Random(1);
    let content: Vec<u8> = (0..100_000_000 / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let (file, out) = (temp_file(&content), temp_file(b"old"));
    let put = ["put", "large", path(&file), "--durability", "mirrored", "--timeout", "30s"];
    assert_eq!(ring.ok(0, &put), b"1\n");
    for node in 0..3 {
        ring.ok(node, &["get", "large", "-o", path(&out)]);
        assert!(fs::read(out.path()).unwrap() == content, "from node {node}");
    }
}

#[test]
fn a_second_writer_is_refused_until_it_takes_over() {
    let ring = Ring::start(3);
    let mut writer = ring.client(0).open("state", Options::capacity(100)).unwrap();
    writer.save(b"one", Durability::Mirrored).unwrap();
    let file = temp_file(b"two");
    for node in [0, 1] {
        let line = ring.refused(node, &["put", "state", path(&file)], 4);
        assert!(line.contains('a') && line.contains("state"), "{line}");
    }
    let refused = ring.client(1).open("state", Options::capacity(100)).map(drop).unwrap_err();
    assert_eq!(refused.kind(), Some(FailureKind::OwnedElsewhere));
    assert_eq!(writer.save(b"still the writer", Durability::Mirrored).unwrap(), 2);

    assert_eq!(ring.ok(0, &["put", "state", path(&file), "--take-over"]), b"3\n");
    let fenced = writer.save(b"late", Durability::Mirrored).unwrap_err();
    let is_fenced = |error: &CommitError| {
        matches!(
            error,
            CommitError::Lost(OwnershipError::Fenced { .. })
                | CommitError::Write(WriteError::Lost(OwnershipError::Fenced { .. }))
        )
    };
    assert!(is_fenced(&fenced), "{fenced:?}");
    assert_eq!(get(&ring.client(2), "state"), (3, b"two".to_vec()));

    // From another node, too.
    let client = ring.client(0);
    let mut writer = common::poll("the end of `put` to be noticed", || {
        client.open("state", Options::capacity(100)).map_err(|e| e.to_string())
    });
    let taken = ["put", "state", path(&file), "--take-over", "--durability", "mirrored"];
    assert_eq!(ring.ok(1, &taken), b"4\n");
    let fenced = writer.save(b"late", Durability::Mirrored).unwrap_err();
    assert!(is_fenced(&fenced), "{fenced:?}");
    assert_eq!(get(&ring.client(2), "state"), (4, b"two".to_vec()));
}

#[test]
fn asynchronous_commits_arrive_in_order() {
    let ring = Ring::start(3);
    let mut writer = ring.client(0).open("queue", Options::capacity(4096).slots(4)).unwrap();
    let mut pending = Vec::new();
    for number in 0..200u64 {
        writer.write_at(number % 512 * 8, &number.to_le_bytes()).unwrap();
        pending.push(writer.commit_async().unwrap());
    }
    let last = pending[pending.len() - 1];
    assert_eq!(writer.wait(last).unwrap(), 200);
    assert_eq!(writer.mirrored(), 200);
    let (version, bytes) = get(&ring.client(1), "queue");
    let wanted: Vec<u8> = (0..200u64).flat_map(u64::to_le_bytes).collect();
    assert_eq!((version, bytes), (200, wanted));
}

#[test]
fn an_evicted_member_is_not_part_of_the_status() {
    let mut ring = Ring::start(3);
    ring.node_mut(2).kill_9();
    let status = ring.wait(0, "a view of two", |status| members(status, 2));
    assert!(!status.view.unwrap().members.contains(&name("c")));
    ring.restart(2);
    ring.wait(0, "the return", |status| members(status, 3));
}

/// A copy of the binary that any user may run: the build directory may be closed to others.
fn public_binary(dir: &Path) -> PathBuf {
    let binary = dir.join("ringkeep");
    fs::copy(RINGKEEP, &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    binary
}

/// Owner and mode decide, as for a file. The test's own directory is closed to others (it is a
/// temporary one); it is opened here, so that what refuses is the server and nothing else.
#[test]
fn another_user_may_what_the_mode_bits_say() {
    let ring = Ring::start(1);
    let client = ring.client(0);
    let keep = |name, mode| {
        let mut state = client.open(name, Options::capacity(10).mode(mode)).unwrap();
        state.save(b"state", Durability::Local).unwrap();
    };
    keep("closed", 0o600);
    keep("readable", 0o644);
    keep("writable", 0o666);
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no second user can be played; only the owner's side is tried");
        for name in ["closed", "readable", "writable"] {
            assert_eq!(ring.ok(0, &["get", name]), b"state");
        }
        return;
    }
    fs::set_permissions(ring.root(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(ring.node(0).socket(), fs::Permissions::from_mode(0o777)).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let binary = public_binary(tmp.path());
    let other = |args: &[&str], input: Option<&Path>| {
        let mut command = Command::new(&binary);
        command.args(args).arg("--socket").arg(ring.node(0).socket());
        command.uid(OTHER_UID).gid(OTHER_UID).current_dir("/");
        match input {
            Some(path) => command.stdin(fs::File::open(path).unwrap()),
            None => command.stdin(Stdio::null()),
        };
        command.output().unwrap()
    };
    let permission = |output| {
        let line = refused(&output, 1);
        assert!(line.to_lowercase().contains("permission") || line.contains("may not"), "{line}");
    };
    permission(other(&["get", "closed"], None));
    permission(other(&["rm", "closed"], None));
    permission(other(&["rm", "readable"], None));
    let file = temp_file(b"other");
    let input = Some(file.path());
    permission(other(&["put", "closed", "--durability", "local"], input));
    permission(other(&["put", "readable", "--durability", "local"], input));
    permission(other(&["put", "readable", "--durability", "local", "--take-over"], input));
    assert_eq!(other(&["get", "readable"], None).stdout, b"state");
    let put = other(&["put", "writable", "--durability", "local"], input);
    assert_eq!(put.status.code(), Some(0), "{}", String::from_utf8_lossy(&put.stderr));
    assert_eq!(ring.ok(0, &["get", "writable"]), b"other");
    let put = other(&["put", "theirs", "--durability", "local"], input);
    assert_eq!(put.status.code(), Some(0), "{}", String::from_utf8_lossy(&put.stderr));
    assert_eq!(other(&["get", "theirs"], None).stdout, b"other");
    assert_eq!(ring.ok(0, &["get", "closed"]), b"state", "nothing of the first user changed");
    assert_eq!(ring.ok(0, &["get", "readable"]), b"state");
}

#[test]
fn a_client_that_leaves_is_noticed_and_one_that_waits_is_not_forgotten() {
    let ring = Ring::start(3);
    let client: Client = ring.client(0);
    let mut writer = client.open("state", Options::capacity(100)).unwrap();
    writer.save(b"x", Durability::Mirrored).unwrap();
    let status = ring.wait(0, "the copy", |status| in_sync(status, "state"));
    assert!(common::owned(&status, "state").unwrap().attached);
    drop(writer);
    ring.wait(0, "the writer's end", |s| !common::owned(s, "state").unwrap().attached);
    let started = Instant::now();
    let late = client.open("state", Options::capacity(100).timeout(Duration::from_millis(1)));
    assert_eq!(late.unwrap().version(), 1);
    assert!(started.elapsed() < common::LIMIT);
}

/// Small and scattered writes, other lengths, updates that are given up: every version is the state,
/// with every checksum right, here and at the mirror.
#[test]
fn whatever_is_written_where_every_version_is_whole_on_both_nodes() {
    const CAPACITY: u64 = 3 << 20;
    let ring = Ring::start(2);
    ring.protected();
    let client = ring.client(0);
    let mut checkpoint = client.open("scattered", Options::capacity(CAPACITY)).unwrap();
    let mut random = Random(5);
    let mut state = vec![0; 1 << 20];
    checkpoint.save(&state, Durability::Mirrored).unwrap();
    for round in 0..60 {
        let before = state.clone();
        // Mostly few, sometimes more than are kept to the byte, sometimes nearly everywhere.
        let writes = [3, 20, 200, 2_000][random.below(4)];
        for _ in 0..writes {
            let (at, len) = (random.below(state.len()), 1 + random.below(700));
            let bytes = vec![random.next() as u8; len.min(state.len() - at)];
            checkpoint.write_at(at as u64, &bytes).unwrap();
            state[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        if random.below(4) == 0 {
            let len = 1 + random.below(CAPACITY as usize);
            checkpoint.set_len(len as u64).unwrap();
            state.resize(len, 0);
        }
        if random.below(5) == 0 {
            checkpoint.discard();
            state = before;
            continue;
        }
        checkpoint.commit(Durability::Mirrored).unwrap();
        assert!(checkpoint.latest().unwrap().unwrap().bytes() == state, "round {round}");
        let copies = json(&ring.ok(0, &["verify", "scattered", "--json"]));
        for copy in copies.as_array().unwrap() {
            assert_eq!(copy["damage"], serde_json::Value::Null, "round {round}: {copies}");
            assert_eq!(copy["version"], checkpoint.version(), "round {round}: {copies}");
        }
        assert_eq!(copies.as_array().unwrap().len(), 2);
        if round % 10 == 0 {
            let fetched = ring.client(1).get(&name("scattered"), None).unwrap();
            assert!(common::bytes_of(fetched) == state, "round {round}");
        }
    }
}

#[test]
fn a_version_that_is_overwritten_while_another_node_reads_it_is_none_any_more() {
    let ring = Ring::start(3);
    let bytes = 4 << 20;
    let mut checkpoint = ring.client(0).open("state", Options::capacity(bytes)).unwrap();
    let newest = Arc::new(AtomicU64::new(0));
    let committed = newest.clone();
    // It ends with this test.
    std::thread::spawn(move || {
        checkpoint.save(&vec![7; bytes as usize], Durability::Local).unwrap();
        // More often than a mirror gets one, and so long apart that the version before is found.
        while let Ok(version) = checkpoint.commit(Durability::Local) {
            committed.store(version, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(300));
            checkpoint.write_at(bytes - 8, &version.to_le_bytes()).unwrap();
        }
    });
    poll("some versions", || match newest.load(Ordering::Relaxed) {
        version if version > 2 => Ok(()),
        version => Err(version.to_string()),
    });
    let (reader, state, mut gone) = (ring.client(1), name("state"), 0);
    for _ in 0..60 {
        // The second newest is the next to be overwritten.
        match reader.get(&state, Some(newest.load(Ordering::Relaxed) - 1)) {
            Err(RequestError::Refused(failure)) => {
                assert_eq!(failure.kind, FailureKind::NoSuchCheckpoint, "{failure}");
                gone += 1;
            }
            other => drop(other.unwrap()),
        }
    }
    assert!(gone > 0);
}
