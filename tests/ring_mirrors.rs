//! More than one mirror: as many nodes in a row may be lost.
#![cfg(feature = "cli")]

mod common;

use common::{bytes_of, in_sync, members, name, owned, poll, servers::Server};
use ringkeep::protocol::{CopyState, RingState};

const CONTENT: &str = "/etc/passwd";

/// So many servers in a ring, each of which wants two mirrors.
fn ring(count: usize) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for name in ["a", "b", "c", "d", "e"].into_iter().take(count) {
        let mut args = vec!["--listen", "127.0.0.1:0", "--transport", "tcp", "--mirrors", "2"];
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
        server.wait("the whole ring", |status| members(status, count));
    }
    servers
}

fn put(server: &Server, checkpoint: &str) {
    server.ok(&["put", checkpoint, CONTENT, "--durability", "mirrored", "--timeout", "20s"]);
}

#[test]
fn two_nodes_in_a_row_are_lost_with_their_memory_and_no_checkpoint_with_them() {
    let mut servers = ring(5);
    for server in &servers {
        put(server, &format!("of-{}", server.name));
    }
    let status = servers[3].wait("both copies", |status| in_sync(status, "of-d"));
    let copies = &owned(&status, "of-d").unwrap().mirrors;
    let holders: Vec<&str> = copies.iter().map(|copy| copy.node.as_str()).collect();
    assert_eq!(holders, ["c", "b"], "the nearest first");
    assert!(copies.iter().all(|c| (c.state, c.version) == (CopyState::InSync, 1)), "{copies:?}");

    // The owner and its nearest mirror: with one copy that was all.
    for lost in [3, 2] {
        servers[lost].kill_9();
    }
    let names: Vec<String> = servers.iter().map(|server| format!("of-{}", server.name)).collect();
    for survivor in [0, 1, 4] {
        servers[survivor].wait("a ring of three", |status| members(status, 3));
        for wanted in &names {
            let bytes = poll(wanted, || {
                let fetched = servers[survivor].client().get(&name(wanted), None);
                fetched.map(bytes_of).map_err(|error| error.to_string())
            });
            assert!(bytes == std::fs::read(CONTENT).unwrap(), "{wanted}");
        }
    }
    for survivor in [0, 1, 4] {
        let protected = |status: &ringkeep::protocol::Status| status.state == RingState::Protected;
        servers[survivor].wait("three copies of everything again", protected);
    }
}

#[test]
fn a_ring_that_is_too_small_for_two_mirrors_does_not_claim_them() {
    let servers = ring(2);
    let args = ["put", "state", CONTENT, "--durability", "mirrored", "--timeout", "1s"];
    servers[0].refused(&args, 5);
    let status = servers[0].wait("the one copy that can be", |status| {
        owned(status, "state").is_some_and(|o| o.mirrors.iter().any(|m| m.version == 1))
    });
    assert_eq!(status.state, RingState::Degraded);
}
