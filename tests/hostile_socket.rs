//! Bad input on the local socket: whoever sends it gets a clear answer or is hung up on, and nobody
//! else notices.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::fd::AsFd,
    time::Instant,
};

use common::{
    Ring, get,
    payload::Random,
    poll,
    raw::{self, Raw},
};
use ringkeep::{
    Checkpoint, Durability, Options,
    protocol::{FailureKind, Response},
};
use serde_json::json;

/// A server with a client that is attached all the while.
struct Stage {
    ring: Ring,
    other: Checkpoint,
}

impl Stage {
    fn new() -> Self {
        let ring = Ring::start(1);
        let mut other = ring.client(0).open("other", Options::capacity(100)).unwrap();
        other.save(b"mine", Durability::Local).unwrap();
        Self { ring, other }
    }

    fn connect(&self) -> Raw {
        Raw::connect(&self.ring.node(0).socket())
    }

    /// The other client goes on, and so does the server.
    #[track_caller]
    fn unaffected(&mut self) {
        let next = self.other.save(b"still mine", Durability::Local).unwrap();
        assert_eq!(get(&self.ring.client(0), "other"), (next, b"still mine".to_vec()));
        self.ring.node_mut(0).check().unwrap();
        let verified = self.ring.ok(0, &["verify"]);
        assert!(!verified.is_empty());
    }

    /// How many descriptors the server has open.
    fn descriptors(&self) -> usize {
        let pid = self.ring.node(0).pid().unwrap();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    #[track_caller]
    fn only_the_other_is_there(&self) {
        let status = self.ring.node(0).status().unwrap();
        let names: Vec<_> = status.checkpoints.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["other"]);
    }
}

#[test]
fn random_bytes_are_answered_or_hung_up_on() {
    let mut stage = Stage::new();
    let mut random = Random(11);
    for round in 0..200 {
        let raw = stage.connect();
        let bytes: Vec<u8> = (0..1 + random.below(3_000)).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            raw.send(&bytes);
        } else {
            raw.frame(&bytes);
        }
        raw.end();
        match raw.answer() {
            None => {}
            Some((Response::Failed(failure), _)) => assert_eq!(failure.kind, FailureKind::Invalid),
            Some((other, _)) => panic!("{other:?}"),
        }
    }
    stage.unaffected();
}

#[test]
fn a_frame_that_ends_early_is_hung_up_on() {
    let mut stage = Stage::new();
    let body = raw::open(&json!("half"), &json!(100), &json!(2));
    let mut whole = (body.len() as u32).to_le_bytes().to_vec();
    whole.extend_from_slice(&body);
    for cut in 0..whole.len() {
        let raw = stage.connect();
        raw.send(&whole[..cut]);
        raw.end();
        assert!(raw.answer().is_none(), "cut at {cut}");
    }
    stage.only_the_other_is_there();
    stage.unaffected();
}

#[test]
fn lengths_beyond_the_bound_are_refused_before_anything_is_read() {
    let mut stage = Stage::new();
    for length in [65_537, 16 << 20, u32::MAX] {
        let raw = stage.connect();
        raw.send(&length.to_le_bytes());
        let (kind, message) = raw.failed();
        assert_eq!(kind, FailureKind::Invalid);
        assert!(message.contains(&length.to_string()), "{message}");
        assert!(raw.answer().is_none(), "what follows cannot be read");
    }
    stage.unaffected();
}

#[test]
fn what_is_no_request_is_called_invalid() {
    let mut stage = Stage::new();
    let deep = "[".repeat(60_000);
    let zeros = "\0".repeat(65_536);
    for body in [
        "",
        "{",
        "null",
        "7",
        "[]",
        "{}",
        "\"open\"",
        "{\"request\":\"\"}",
        "{\"request\":7}",
        "{\"request\":\"format_disk\"}",
        "{\"request\":\"open\"}",
        "{\"response\":\"removed\"}",
        "{\"request\":\"remove\",\"name\":null}",
        "{\"request\":\"remove\",\"name\":[\"other\"]}",
        "{\"request\":\"get\",\"name\":\"other\",\"version\":-1}",
        "{\"request\":\"get\",\"name\":\"other\",\"version\":1e300}",
        "{\"request\":\"reattach\",\"name\":\"other\",\"epoch\":\"1\"}",
        &deep,
        &zeros,
    ] {
        let raw = stage.connect();
        raw.frame(body.as_bytes());
        assert_eq!(raw.failed().0, FailureKind::Invalid, "{:.80}", body);
    }
    for body in [&b"\xff\xfe\xfd"[..], b"{\"request\":\"remove\",\"name\":\"\xff\"}"] {
        let raw = stage.connect();
        raw.frame(body);
        assert_eq!(raw.failed().0, FailureKind::Invalid);
    }
    stage.unaffected();
}

#[test]
fn names_that_are_none_are_refused_in_every_request() {
    let mut stage = Stage::new();
    let long = "x".repeat(10_000);
    for bad in ["", "/", ".", "..", "../../etc/passwd", "a/b", "a\0b", "\0", "a b", "ä", &*long] {
        let name = json!(bad);
        let bodies = [
            raw::open(&name, &json!(100), &json!(2)),
            json!({"request": "reattach", "name": name, "epoch": 1}).to_string().into_bytes(),
            json!({"request": "get", "name": name, "version": null}).to_string().into_bytes(),
            json!({"request": "verify", "name": name}).to_string().into_bytes(),
            json!({"request": "remove", "name": name}).to_string().into_bytes(),
        ];
        for body in bodies {
            let raw = stage.connect();
            raw.frame(&body);
            assert_eq!(raw.failed().0, FailureKind::Invalid, "{bad:.80?}");
        }
    }
    stage.only_the_other_is_there();
    stage.unaffected();
}

#[test]
fn sizes_that_no_checkpoint_has_are_refused_and_leave_nothing() {
    let mut stage = Stage::new();
    let capacities = [json!(0), json!(1u64 << 63), json!(u64::MAX), json!((1u64 << 40) + 1)];
    let strange = [json!(-1), json!(1.5), json!(1e40), json!("100"), json!(null)];
    for capacity in capacities.iter().chain(&strange) {
        let raw = stage.connect();
        raw.frame(&raw::open(&json!("x"), capacity, &json!(2)));
        assert_eq!(raw.failed().0, FailureKind::Invalid, "capacity {capacity}");
    }
    for slots in [json!(0), json!(1), json!(9), json!(u32::MAX), json!(1u64 << 32), json!(-2)] {
        let raw = stage.connect();
        raw.frame(&raw::open(&json!("x"), &json!(100), &slots));
        assert_eq!(raw.failed().0, FailureKind::Invalid, "{slots} slots");
    }
    for (capacity, slots) in [(1u64 << 40, 2), (1 << 40, 8)] {
        let raw = stage.connect();
        raw.frame(&raw::open(&json!("x"), &json!(capacity), &json!(slots)));
        assert_eq!(raw.failed().0, FailureKind::NoSpace, "a size, but more than there is");
    }
    stage.only_the_other_is_there();
    stage.unaffected();
}

#[test]
fn attaching_again_needs_the_descriptor_of_this_very_region() {
    let mut stage = Stage::new();
    let theirs = stage.connect().attach("theirs", 100);
    let body = |name: &str| json!({"request": "reattach", "name": name, "epoch": 1}).to_string();
    let ask = |name: &str, descriptors: &[&dyn AsFd]| {
        let raw = stage.connect();
        let borrowed: Vec<_> = descriptors.iter().map(|d| d.as_fd()).collect();
        if borrowed.is_empty() {
            raw.frame(body(name).as_bytes());
        } else {
            raw.frame_with(body(name).as_bytes(), &borrowed);
        }
        raw.failed().0
    };
    assert_eq!(ask("other", &[]), FailureKind::Invalid);
    let file = tempfile::tempfile().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    let dir = fs::File::open("/").unwrap();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    for wrong in [&file as &dyn AsFd, &null, &dir, &pipe] {
        assert_eq!(ask("other", &[wrong]), FailureKind::Fenced);
    }
    assert_eq!(ask("other", &[&theirs.region]), FailureKind::Fenced, "another checkpoint's region");
    assert_eq!(ask("no-such", &[&theirs.region]), FailureKind::Fenced);
    // The right file, but opened anew: the lock is the writer's.
    let dir = fs::read_dir(stage.ring.node(0).dir()).unwrap();
    let region = dir.map(|entry| entry.unwrap().path()).find(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("other.") && name.ends_with(".region")
    });
    let again = fs::File::options().read(true).write(true).open(region.unwrap()).unwrap();
    assert_eq!(ask("other", &[&again]), FailureKind::Fenced);
    stage.unaffected();
    assert!(common::owned(&stage.ring.node(0).status().unwrap(), "theirs").unwrap().attached);
}

#[test]
fn descriptors_that_nobody_asked_for_do_not_stay_open() {
    let mut stage = Stage::new();
    let before = stage.descriptors();
    let null = fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); 200];
    let kept: Vec<Raw> = (0..20)
        .map(|round| {
            let raw = stage.connect();
            let body: &[u8] = if round % 2 == 0 { b"{\"request\":\"list\"}" } else { b"nonsense" };
            raw.frame_with(body, &many);
            assert!(raw.answer().is_some());
            raw
        })
        .collect();
    assert!(stage.descriptors() <= before + kept.len(), "one a connection");
    drop(kept);
    poll("the connections' end", || match stage.descriptors() {
        now if now <= before => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    stage.unaffected();
}

#[test]
fn three_hundred_silent_connections_keep_nobody_out() {
    let mut stage = Stage::new();
    let before = stage.descriptors();
    let silent: Vec<Raw> = (0..300).map(|_| stage.connect()).collect();
    silent[0].0.set_nonblocking(true).unwrap();
    poll("the silent ones", || match stage.descriptors() {
        now if now >= before + 300 => Ok(()),
        // On a slow machine the first are let go for their silence before the last are accepted.
        _ if matches!((&silent[0].0).read(&mut [0]), Ok(0)) => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    let began = Instant::now();
    stage.unaffected();
    let mut new = stage.ring.client(0).open("new", Options::capacity(100)).unwrap();
    new.save(b"x", Durability::Local).unwrap();
    assert!(began.elapsed() < common::LIMIT / 3, "they were not waited for");
    drop(silent);
}

#[test]
fn hundreds_of_attachments_are_served_where_the_soft_limit_is_low() {
    let stage = Stage::new();
    // The connection is the attachment; this process may not have that many descriptors open.
    let attached: Vec<_> =
        (0..600).map(|i| stage.connect().attach(&format!("many-{i}"), 10).raw).collect();
    assert!(stage.descriptors() > 1_024, "more than the usual soft limit");
    let mut stage = stage;
    stage.unaffected();
    drop(attached);
}

#[test]
fn a_client_that_asks_and_never_reads_is_let_go() {
    let mut stage = Stage::new();
    let raw = stage.connect();
    // As many requests as the two socket buffers take, and no look at the answers.
    raw.0.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let body = b"{\"request\":\"status\"}";
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    let mut sent = 0u32;
    while sent < 200_000 && (&raw.0).write_all(&frame).is_ok() {
        sent += 1;
    }
    assert!(sent < 200_000, "the server reads on without an end");
    stage.unaffected();
    let before = stage.descriptors();
    poll("its end", || match stage.descriptors() {
        now if now < before => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    stage.unaffected();
}
