//! Rings of real servers whose mirrors travel over RDMA. Needs a device: `soft-roce/vm.sh` has one.
#![cfg(all(feature = "cli", feature = "rdma"))]

mod common;

use std::{fs, time::Duration};

use common::{Ring, get, in_sync, members, owned, servers::Server};
use ringkeep::{Durability, Options, demo::ring, transport::Kind, transport::verbs::discovery};

/// Runs a test where there is a device. Where one must be there, its absence is a failure.
fn with_device(test: impl FnOnce()) {
    let there = discovery::devices().iter().any(|device| device.problem.is_none());
    let wanted = std::env::var_os("RINGKEEP_REQUIRE_RDMA").is_some();
    assert!(there || !wanted, "no usable RDMA device: {:?}", discovery::devices());
    match there {
        true => test(),
        false => eprintln!("not run: no RDMA device; soft-roce/vm.sh has one"),
    }
}

/// How often a server's data plane was woken so far.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let named = |task: &std::path::PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "data-plane")
    };
    let task = tasks.into_iter().find(named).expect("a data plane");
    let status = fs::read_to_string(task.join("status")).unwrap();
    let count = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

fn start(count: usize) -> Ring {
    Ring::start_over(Kind::Rdma, count)
}

/// Not started yet.
fn server(name: &str, transport: &str, join: &[&str]) -> Server {
    let flags = ["--listen", "127.0.0.1:0", "--memory", "64m", "--transport", transport];
    Server::new(name, &[&flags[..], join].concat())
}

fn started(name: &str, transport: &str, join: &[&str]) -> Server {
    let mut server = server(name, transport, join);
    server.start();
    server
}

/// Commits go into the mirror's memory, and the thread that could have a part in it sleeps.
#[test]
fn the_holder_sleeps_while_commits_arrive() {
    with_device(|| {
        let ring = start(3);
        let holder = ring.node(ring.predecessor(0)).pid().unwrap();
        let mut checkpoint = ring.client(0).open("state", Options::capacity(4096)).unwrap();
        let mut commit = |fill: u8| {
            checkpoint.whole_mut(4096).unwrap().fill(fill);
            checkpoint.commit(Durability::Mirrored).unwrap()
        };
        commit(0);
        ring.protected();
        let before = wake_ups(holder);
        let last = (1..=200).map(&mut commit).last().unwrap();
        assert_eq!(wake_ups(holder), before, "the holder's data plane was woken");
        assert_eq!(get(&ring.client(2), "state"), (last, vec![200; 4096]));
    });
}

/// Recovery from the mirror reads it over RDMA into the new region, which lies in huge pages where
/// there are any.
#[test]
fn a_lost_node_is_recovered_by_reading_the_mirror() {
    with_device(|| {
        let mut ring = start(3);
        let state: Vec<u8> =
            (0..3u32 << 18).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        let mut checkpoint =
            ring.client(0).open("state", Options::capacity(state.len() as u64)).unwrap();
        let version = checkpoint.save(&state, Durability::Mirrored).unwrap();
        ring.protected();
        let holder = ring.predecessor(0);
        ring.node_mut(0).kill_9();
        ring.node(0).wipe_memory().unwrap();
        drop(checkpoint);
        let elsewhere = 3 - holder; // neither the dead one nor the one that has the mirror
        ring.wait(elsewhere, "the view without it", |status| members(status, 2));
        assert_eq!(get(&ring.client(elsewhere), "state"), (version, state.clone()));
        let options = Options::capacity(state.len() as u64);
        let mut again = ring::poll("the take-over", ring::LIMIT, &Default::default(), || {
            ring.client(elsewhere).open("state", options.clone()).map_err(|e| e.to_string())
        })
        .unwrap();
        {
            let found = again.latest().unwrap().expect("a version");
            assert_eq!((found.version(), found.bytes()), (version, &*state));
        }
        again.commit(Durability::Mirrored).unwrap();
        ring.protected();
        let status = ring.node(elsewhere).status().unwrap();
        let mirror = owned(&status, "state").unwrap().mirror.as_ref().unwrap();
        assert_eq!(mirror.transport, Some(Kind::Rdma));
    });
}

/// One server that has no RDMA: its links are TCP, the others' are not.
#[test]
fn a_ring_may_mix_its_transports() {
    with_device(|| {
        let a = started("a", "auto", &[]);
        let b = started("b", "tcp", &["--join", &a.address()]);
        let c = started("c", "auto", &["--join", &a.address()]);
        for node in [&a, &b, &c] {
            node.wait("the ring", |status| members(status, 3));
        }
        for node in [&a, &b, &c] {
            let mut checkpoint = node.client().open(&node.name, Options::capacity(64)).unwrap();
            checkpoint.save(b"state", Durability::Mirrored).unwrap();
            let status = node.wait("the mirror", |status| in_sync(status, &node.name));
            let mirror = owned(&status, &node.name).unwrap().mirror.as_ref().unwrap();
            let one_has_none = node.name == "b" || mirror.node.as_str() == "b";
            let wanted = if one_has_none { Kind::Tcp } else { Kind::Rdma };
            assert_eq!(mirror.transport, Some(wanted), "{status:?}");
            let holder_is_poor = mirror.node.as_str() == "b";
            assert_eq!(node.log().contains("WARN"), holder_is_poor, "{}", node.log());
        }
    });
}

/// A limit of locked memory that is too low for a region: under `auto` its mirror travels over TCP,
/// at either end of the link, and the log says why.
#[test]
fn memory_that_the_device_may_not_have_travels_over_tcp() {
    with_device(|| {
        for limited in [0, 1] {
            let limited_or_not = |at: usize, name: &str, join: &[&str]| {
                let mut server = server(name, "auto", join);
                if at == limited {
                    // Root is exempt from the limit, as long as it has this capability.
                    let words = "prlimit --memlock=65536:65536 -- \
                                 setpriv --bounding-set -ipc_lock --inh-caps=-ipc_lock --";
                    server.inside = words.split_whitespace().map(str::to_owned).collect();
                }
                server.start();
                server
            };
            let a = limited_or_not(0, "a", &[]);
            let b = limited_or_not(1, "b", &["--join", &a.address()]);
            for node in [&a, &b] {
                node.wait("the ring", |status| members(status, 2));
            }
            let mut checkpoint = a.client().open("state", Options::capacity(1 << 20)).unwrap();
            checkpoint.save(&[7; 1 << 20], Durability::Mirrored).unwrap();
            let status = a.wait("the mirror", |status| in_sync(status, "state"));
            let mirror = owned(&status, "state").unwrap().mirror.as_ref().unwrap();
            assert_eq!(mirror.transport, Some(Kind::Tcp), "the limited one is {limited}");
            let told = [&a, &b][limited].log();
            assert!(told.contains("limit of locked memory"), "{told}");
        }
    });
}

/// Who asks for RDMA gets nothing else: no second copy rather than one over TCP.
#[test]
fn rdma_refuses_to_fall_back() {
    with_device(|| {
        let a = started("a", "rdma", &[]);
        let b = started("b", "tcp", &["--join", &a.address()]);
        for node in [&a, &b] {
            node.wait("the ring", |status| members(status, 2));
        }
        let options = Options::capacity(64).timeout(Duration::from_secs(2));
        let mut checkpoint = a.client().open("state", options).unwrap();
        let refused = checkpoint.save(b"state", Durability::Mirrored);
        assert!(refused.is_err(), "a second copy, over what is forbidden");
        assert!(!in_sync(&a.status().unwrap(), "state"));
        a.wait("the refusal in the log", |_| a.log().contains("WARN"));
        assert!(a.log().contains("rdma") && a.log().contains("node b"), "{}", a.log());
    });
}
