//! Two nodes and a witness, real servers: any one of the three may be killed.
#![cfg(feature = "cli")]

mod common;

use std::fs;

use common::{get, in_sync, members, owned, servers::Server};
use ringkeep::{
    Durability, Options,
    protocol::{RingState, Role, Status},
};

fn node(name: &str, join: &[&Server], more: &[&str]) -> Server {
    let join: Vec<String> = join.iter().map(|server| server.address()).collect();
    let join = join.join(",");
    let mut args = vec!["--listen", "127.0.0.1:0", "--transport", "tcp"];
    if !join.is_empty() {
        args.extend(["--join", &join]);
    }
    args.extend(more);
    let mut server = Server::new(name, &args);
    server.start();
    server
}

/// Servers a, b and the witness w, all of which have the view of all.
fn two_and_a_witness() -> [Server; 3] {
    let a = node("a", &[], &["--zone", "left"]);
    let b = node("b", &[&a], &["--zone", "right"]);
    let w = node("w", &[&a, &b], &["--witness"]);
    for server in [&a, &b, &w] {
        server.wait("the ring with its witness", whole);
    }
    [a, b, w]
}

fn whole(status: &Status) -> bool {
    members(status, 2) && status.view.as_ref().is_some_and(|view| view.witnesses.len() == 1)
}

fn view_number(status: &Status) -> u64 {
    status.view.as_ref().map_or(0, |view| view.number)
}

/// Commits as a service on this node does.
fn commit(server: &Server, name: &str, content: &[u8], durability: Durability) -> u64 {
    let mut checkpoint = server.client().open(name, Options::capacity(100)).unwrap();
    checkpoint.save(content, durability).unwrap()
}

#[test]
fn the_node_that_is_left_goes_on_with_everything_and_the_other_comes_back() {
    for (killed, wiped) in [(0, false), (1, false), (1, true)] {
        let mut servers = two_and_a_witness();
        let left = 1 - killed;
        commit(&servers[killed], "theirs", b"of the killed one", Durability::Mirrored);
        commit(&servers[left], "ours", b"of the other one", Durability::Mirrored);
        servers[killed].kill_9();
        if wiped {
            fs::remove_dir_all(&servers[killed].dir).unwrap();
        }

        let survivor = &servers[left];
        let alone = survivor.wait("a ring of one that has all", |status| {
            members(status, 1) && owned(status, "theirs").is_some()
        });
        assert_eq!(owned(&alone, "theirs").unwrap().role, Role::Orphan);
        assert_eq!((alone.state, alone.predecessor), (RingState::Degraded, None));
        assert!(survivor.ok(&["status"]).contains("DEGRADED"));
        assert_eq!(get(&survivor.client(), "theirs"), (1, b"of the killed one".to_vec()));
        assert_eq!(commit(survivor, "theirs", b"taken over", Durability::Local), 2);
        assert_eq!(commit(survivor, "ours", b"alone", Durability::Local), 2);
        assert_eq!(commit(survivor, "new", b"made alone", Durability::Local), 1);
        let file = survivor.root.join("file");
        fs::write(&file, b"content").unwrap();
        let file = file.to_str().unwrap();
        assert!(survivor.ok(&["put", "put", file]).contains("kept on this node only"));
        let mirrored = ["put", "put", file, "--durability", "mirrored", "--timeout", "100ms"];
        assert!(survivor.refused(&mirrored, 5).contains("durability not reached"));

        servers[killed].start();
        for server in &servers {
            server.wait("the return", whole);
        }
        let survivor = &servers[left];
        survivor.wait("two copies of all", |status| {
            status.state == RingState::Protected
                && ["theirs", "ours", "new", "put"].iter().all(|name| in_sync(status, name))
        });
        for server in &servers {
            assert_eq!(get(&server.client(), "theirs"), (2, b"taken over".to_vec()));
            assert_eq!(get(&server.client(), "ours"), (2, b"alone".to_vec()));
        }
    }
}

#[test]
fn a_killed_witness_is_not_missed_and_its_vote_counts_again_when_it_is_back() {
    for wiped in [false, true] {
        let [a, mut b, mut w] = two_and_a_witness();
        let before = a.status().unwrap();
        let address = w.address();
        w.kill_9();
        assert_eq!(commit(&a, "state", b"without a witness", Durability::Mirrored), 1);
        assert_eq!(view_number(&a.status().unwrap()), view_number(&before), "nothing to change");

        if wiped {
            // A new life, which takes the old one's place by its name and address.
            fs::remove_dir_all(&w.dir).unwrap();
            let listen = w.args.iter().position(|arg| arg == "--listen").unwrap();
            w.args[listen + 1] = address;
        }
        w.start();
        let back = w.wait("the witness's return", whole);
        assert_eq!(view_number(&back) > view_number(&before), wiped);
        b.kill_9();
        a.wait("a ring of one, by the witness's vote", |status| members(status, 1));
        assert_eq!(get(&a.client(), "state"), (1, b"without a witness".to_vec()));
    }
}

#[test]
fn a_witness_says_that_it_is_one_and_stores_nothing() {
    let [a, _b, mut w] = two_and_a_witness();
    commit(&a, "state", b"stored elsewhere", Durability::Mirrored);
    assert_eq!(get(&w.client(), "state"), (1, b"stored elsewhere".to_vec()), "it can be read");
    for name in ["state", "new"] {
        let line = w.refused(&["put", name, "/etc/hostname"], 2);
        assert!(line.contains("witness") && line.contains("a, b"), "{line}");
    }
    let status = w.status().unwrap();
    assert!(status.witness && status.checkpoints.is_empty() && status.mirrors.is_empty());
    assert_eq!((status.memory_bytes, status.memory_bytes_max), (0, 0));
    assert!(w.ok(&["status"]).contains("w is a witness"));
    assert!(w.ok(&["doctor", "--listen", "127.0.0.1:0"]).contains("a witness"));
    let status = a.status().unwrap();
    assert!(!status.witness);
    assert_eq!(status.zone, Some(common::name("left")));
    assert_eq!(status.view.unwrap().zones[&common::name("b")], common::name("right"));
    let text = a.ok(&["status"]);
    assert!(text.contains("Witness: w") && text.contains("Zones: a left, b right"), "{text}");

    // What the ring agreed on is not changed by a restart with other flags, and the log says so.
    w.kill_9();
    w.args.retain(|arg| arg != "--witness");
    w.start();
    assert!(w.wait("the same witness", whole).witness);
    assert!(w.log().contains("they hold until it joins anew"), "{}", w.log());
    w.refused(&["put", "new", "/etc/hostname"], 2);
}

#[test]
fn two_nodes_without_a_witness_stay_as_they_are() {
    let a = node("a", &[], &[]);
    let mut b = node("b", &[&a], &[]);
    a.wait("the ring", |status| members(status, 2));
    commit(&a, "state", b"one", Durability::Mirrored);
    let before = view_number(&a.status().unwrap());
    b.kill_9();
    a.wait("the suspicion", |status| !status.suspects.is_empty());
    let put = ["put", "state", "/etc/hostname", "--durability", "mirrored", "--timeout", "2s"];
    a.refused(&put, 5);
    let after = a.status().unwrap();
    assert_eq!((view_number(&after), after.view.unwrap().members.len()), (before, 2));
    b.start();
    a.wait("the mirror", |status| in_sync(status, "state"));
}
