//! The cluster key decides who forms a ring, and what arrives at the port between servers from
//! anybody else changes nothing.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use common::{
    LIMIT, Ring, bytes_of, members, name,
    payload::{self, Random},
    poll,
    servers::Server,
    writer::{self, Writer},
};
use ringkeep::{Durability, Options};

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

fn key_file(dir: &std::path::Path, file: &str) -> PathBuf {
    let path = dir.join(file);
    let keygen = std::process::Command::new(common::RINGKEEP)
        .args(["keygen", "-o", path.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(keygen.status.success(), "{}", String::from_utf8_lossy(&keygen.stderr));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    path
}

#[track_caller]
fn server(name: &str, key: Option<&PathBuf>, join: Option<&str>) -> Server {
    let mut args = vec!["--listen", "127.0.0.1:0"];
    if let Some(key) = key {
        args.extend(["--cluster-key", key.to_str().unwrap()]);
    }
    if let Some(join) = join {
        args.extend(["--join", join]);
    }
    let mut server = Server::new(name, &args);
    server.start();
    server
}

#[test]
fn servers_with_the_same_key_form_a_ring() {
    let dir = tempfile::tempdir().unwrap();
    let key = key_file(dir.path(), "key");
    let a = server("a", Some(&key), None);
    let b = server("b", Some(&key), Some(&a.address()));
    a.wait("two members", |s| members(s, 2));
    b.wait("two members", |s| members(s, 2));
    let mut state = a.client().open("state", Options::capacity(100)).unwrap();
    state.save(b"over an authenticated link", Durability::Mirrored).unwrap();
}

/// What servers say about each other in their logs.
fn complaints(server: &Server) -> usize {
    server.log().lines().filter(|line| line.contains("cannot talk") || line.contains("key")).count()
}

#[test]
fn servers_with_different_keys_never_do_and_say_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (key_file(dir.path(), "one"), key_file(dir.path(), "two"));
    for (mine, theirs) in [(Some(&one), Some(&two)), (Some(&one), None), (None, Some(&two))] {
        let mut a = server("a", mine, None);
        let mut b = server("b", theirs, Some(&a.address()));
        poll("the joiner's complaint", || match complaints(&b) {
            0 => Err(b.log()),
            _ => Ok(()),
        });
        // As many tries as a joiner makes while the other one works on.
        let mut state = a.client().open("state", Options::capacity(100)).unwrap();
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(2) {
            state.save(b"alone", Durability::Local).unwrap();
            assert!(members(&a.status().unwrap(), 1));
            assert!(b.status().unwrap().view.is_none_or(|view| view.members.len() == 1));
        }
        assert_eq!(complaints(&b), 1, "{}", b.log());
        assert!(complaints(&a) <= 1, "{}", a.log());
        for server in [&mut a, &mut b] {
            assert!(server.child.as_mut().unwrap().try_wait().unwrap().is_none());
        }
    }
}

#[test]
fn without_a_key_only_this_machine_is_listened_to() {
    for listen in ["192.0.2.1:7117", "10.0.0.1:0", "[2001:db8::1]:7117"] {
        let mut server = Server::new("a", &["--listen", listen]);
        server.spawn();
        assert_eq!(server.ended().code(), Some(2), "{}", server.log());
        assert!(server.log().contains("key"), "{}", server.log());
        assert!(!server.socket().exists() && !server.dir.exists(), "nothing was made");
    }
}

#[test]
fn nonsense_on_the_port_between_servers_has_no_effect() {
    let mut ring = Ring::start(3);
    let mut writer = Writer::open(&ring.node(0).socket(), "state", 0xace, 0);
    let before = ring.node(0).status().unwrap().view.unwrap();
    let mut random = Random(17);
    let openings: [&[u8]; 5] = [b"", b"data", b"RKct", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64]];
    let mut open = Vec::new();
    for round in 0..120 {
        let address = ring.node(round % 3).address().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let rest: Vec<u8> = (0..random.below(4_000)).map(|_| random.next() as u8).collect();
        // The other end may hang up in the middle.
        let _ = stream.write_all(openings[round % openings.len()]);
        let _ = stream.write_all(&rest);
        match round % 3 {
            0 => drop(stream),
            1 => {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
            _ => open.push(stream), // says nothing more
        }
        if round % 20 == 0 {
            assert!(writer.acknowledges(10));
        }
    }
    assert!(writer.acknowledges(50), "with all of them open");
    drop(open);
    let acknowledged = writer.kill_9();
    for node in 0..3 {
        ring.node_mut(node).check().unwrap();
        let status = ring.node(node).status().unwrap();
        assert_eq!(status.view.unwrap(), before, "no view was lost over it");
        let fetched = ring.client(node).get(&name("state"), None).unwrap();
        let version = fetched.version;
        assert!(version >= acknowledged);
        assert!(bytes_of(fetched) == payload::state(0xace, version));
    }
}
