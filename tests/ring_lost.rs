//! More nodes lose their memory than there are copies: nothing old comes back by itself, and what is
//! left can be had by whoever asks for it.
#![cfg(feature = "cli")]

mod common;

use std::{fs, path::Path};

use common::{in_sync, members, poll, servers::Server};

const UNAVAILABLE: i32 = 1;
const NOT_FOUND: i32 = 3;

fn ring(names: &[&str]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for name in names {
        let mut args = vec!["--listen", "127.0.0.1:0", "--transport", "tcp"];
        let founder = servers.first().map(Server::address);
        if let Some(founder) = &founder {
            args.extend(["--join", founder]);
        }
        let mut server = Server::new(name, &args);
        server.start();
        servers.push(server);
        // One after the other: the ring's order is that of joining.
        let so_far = servers.len();
        servers[so_far - 1].wait("its view", |status| members(status, so_far));
    }
    for server in &servers {
        server.wait("the whole ring", |status| members(status, names.len()));
    }
    servers
}

fn put(server: &Server, checkpoint: &str, file: &Path) {
    let file = file.to_str().unwrap();
    server.ok(&["put", checkpoint, file, "--durability", "mirrored", "--timeout", "20s"]);
}

#[test]
fn an_old_copy_is_kept_back_until_somebody_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for version in ["old", "new"] {
        fs::write(path(version), version).unwrap();
    }
    let mut servers = ring(&["a", "b", "c", "d", "e", "f"]);

    // The old version is on a and f. While f is away, a and e get the new one, and lose it.
    put(&servers[0], "state", &path("old"));
    servers[5].kill_9();
    servers[0].wait("five", |status| members(status, 5) && in_sync(status, "state"));
    put(&servers[0], "state", &path("new"));
    for lost in [0, 4] {
        servers[lost].kill_9();
        servers[lost].wipe_memory();
    }
    servers[1].wait("three", |status| members(status, 3));
    servers[5].start();
    for server in [1, 2, 3, 5] {
        servers[server].wait("four", |status| members(status, 4));
    }

    let out = path("out");
    let get = ["get", "state", "-o", out.to_str().unwrap()];
    let stale = [&get[..], &["--maybe-stale"]].concat();
    let old = path("old");
    let said = servers[1].refused(&get, UNAVAILABLE);
    assert!(said.contains("--maybe-stale"), "it says what can be done: {said}");
    assert!(!out.exists());
    for server in [1, 5] {
        let server = &servers[server];
        let said = server.ok(&stale);
        assert!(said.contains("a version newer than 1 may have been acknowledged"), "{said}");
        assert_eq!(fs::read(&out).unwrap(), b"old");
        fs::remove_file(&out).unwrap();
        server.refused(&["rm", "state"], UNAVAILABLE);
    }
    servers[1].refused(&["put", "state", old.to_str().unwrap()], UNAVAILABLE);
    // Whose name is another one is not kept from working.
    put(&servers[2], "other", &path("new"));
    assert!(!servers[1].ok(&["get", "other", "--maybe-stale"]).contains("newer than"));

    servers[2].ok(&["rm", "state", "--leftovers"]);
    servers[5].refused(&stale, UNAVAILABLE);
    servers[2].refused(&["rm", "state", "--leftovers"], NOT_FOUND);
    put(&servers[2], "state", &path("old"));
    assert_eq!(servers[5].ok(&["get", "state"]), "old");
}

#[test]
fn an_evicted_owner_whose_mirror_was_lost_goes_on_with_its_own_memory() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::write(&state, "the only one").unwrap();
    let mut servers = ring(&["a", "b", "c", "d", "e"]);
    put(&servers[0], "state", &state);

    // It does not run, and what has its mirror loses its memory: nobody else has anything.
    servers[0].pause();
    servers[4].kill_9();
    servers[4].wipe_memory();
    servers[1].wait("three", |status| members(status, 3));
    servers[1].refused(&["get", "state", "-o", "/dev/null"], UNAVAILABLE);

    servers[0].resume();
    servers[0].wait("a new life", |status| members(status, 4));
    assert!(servers[0].log().contains("this node was evicted"));
    for server in [0, 2] {
        assert_eq!(servers[server].ok(&["get", "state"]), "the only one");
    }
    servers[0].wait("its new mirror", |status| in_sync(status, "state"));
}

#[test]
fn what_was_made_anew_meanwhile_keeps_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for version in ["old", "new", "newer"] {
        fs::write(path(version), version).unwrap();
    }
    let mut servers = ring(&["a", "b", "c", "d", "e"]);

    // The owner and the holder of its mirrors die together, and both keep their memory.
    put(&servers[0], "state", &path("old"));
    for gone in [0, 4] {
        servers[gone].pause();
    }
    for gone in [0, 4] {
        servers[gone].kill_9();
    }
    servers[1].wait("three", |status| members(status, 3));
    put(&servers[2], "state", &path("new"));
    for back in [4, 0] {
        servers[back].start();
        // Until it hears that it was evicted, it says what it said before.
        poll("a new life", || {
            let log = servers[back].log();
            if log.contains("this node was evicted") { Ok(()) } else { Err(log) }
        });
        servers[back].wait("a view", |status| status.view.is_some());
        poll("what becomes of the old one", || {
            let logs: Vec<String> = servers.iter().map(Server::log).collect();
            let decided = |log: &String| log.contains("adopted") || log.contains("kept back");
            if logs.iter().any(decided) { Ok(()) } else { Err("undecided".to_owned()) }
        });
        for server in [1, 2, 4, back] {
            assert_eq!(servers[server].ok(&["get", "state"]), "new", "from {server}");
        }
    }
    put(&servers[2], "state", &path("newer"));
    assert_eq!(servers[4].ok(&["get", "state"]), "newer");

    // Kept back is not erased.
    servers[1].ok(&["rm", "state"]);
    poll("the old one", || match servers[1].ok(&["get", "state"]).as_str() {
        "old" => Ok(()),
        other => Err(other.to_owned()),
    });
}

#[test]
fn a_server_that_cannot_go_on_says_so_by_its_exit_status() {
    let mut servers = ring(&["a", "b", "c"]);
    let dir = servers[2].dir.clone();
    servers[2].pause();
    servers[0].wait("two", |status| members(status, 2));
    // It cannot note that it was evicted.
    fs::rename(&dir, dir.with_extension("away")).unwrap();
    servers[2].resume();
    assert_eq!(servers[2].ended().code(), Some(1));
    let log = servers[2].log();
    assert!(log.contains("ringkeep: this node was evicted, and that cannot be noted"), "{log}");
}
