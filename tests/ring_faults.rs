//! Real servers and services that are killed, stopped and robbed of their memory.
#![cfg(feature = "cli")]

mod common;

use std::{fs, path::PathBuf, time::Duration};

use common::{
    Ring, bytes_of, get, in_sync, members, name, owned, payload, poll,
    servers::Server,
    writer::{self, Writer},
};
use ringkeep::{
    Durability, Options,
    client::CommitError,
    protocol::{FailureKind, RingState},
};
use rustix::process::{Pid, Signal, kill_process};

const SEED: u64 = 0x5eed;

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

#[test]
fn a_killed_service_finds_its_last_version() {
    let ring = Ring::start(1);
    let client = ring.client(0);
    let mut state = client.open("state", Options::capacity(100)).unwrap();
    state.save(b"first", Durability::Local).unwrap();
    state.write_at(0, b"half written, never committed").unwrap();
    drop(state);
    let state = poll("the writer's end to be noticed", || {
        client.open("state", Options::capacity(100)).map_err(|e| e.to_string())
    });
    let saved = state.latest().unwrap().unwrap();
    assert_eq!((saved.version(), saved.bytes()), (1, &b"first"[..]));
}

#[test]
fn a_service_killed_while_it_commits_loses_nothing_acknowledged() {
    let ring = Ring::start(3);
    let socket = ring.node(0).socket();
    let mut acknowledged = 0;
    for _ in 0..3 {
        let mut writer = Writer::open(&socket, "state", SEED, acknowledged);
        assert!(writer.acknowledges(50));
        acknowledged = writer.kill_9();
        let (version, bytes) = get(&ring.client(1), "state");
        assert!(version >= acknowledged);
        assert!(bytes == payload::state(SEED, version));
    }
}

#[test]
fn a_killed_server_adopts_its_regions_and_the_client_goes_on_by_itself() {
    let mut ring = Ring::start(1);
    let mut state = ring.client(0).open("state", Options::capacity(100)).unwrap();
    state.save(b"before", Durability::Local).unwrap();
    ring.node_mut(0).kill_9();
    assert_eq!(state.save(b"without a server", Durability::Local).unwrap(), 2);
    ring.restart(0);
    poll("the attachment to the new server", || state.ping().map_err(|e| e.to_string()));
    assert_eq!(state.save(b"after", Durability::Local).unwrap(), 3);
    assert_eq!(get(&ring.client(0), "state"), (3, b"after".to_vec()));
    let status = ring.node(0).status().unwrap();
    assert!(owned(&status, "state").unwrap().attached);
}

/// The server is back before or after it is voted out: the service either goes on by itself or is
/// told that it is fenced, and finds everything when it opens again.
#[test]
fn mirrored_commits_go_on_after_their_server_was_killed() {
    let mut ring = Ring::start(3);
    let mut writer = Writer::open(&ring.node(0).socket(), "state", SEED, 0);
    assert!(writer.acknowledges(20));
    ring.node_mut(0).kill_9();
    ring.restart(0);
    let goes_on = writer.acknowledges(20);
    let acknowledged = writer.kill_9();
    ring.protected();
    if !goes_on {
        let mut again = Writer::open(&ring.node(0).socket(), "state", SEED, acknowledged);
        assert!(again.acknowledges(20));
    }
    let (version, bytes) = get(&ring.client(2), "state");
    assert!(version >= acknowledged);
    assert!(bytes == payload::state(SEED, version));
}

#[test]
fn a_dead_nodes_checkpoint_is_recovered_on_either_of_the_others() {
    for heir_is_mirror in [true, false] {
        let mut ring = Ring::start(3);
        let mut writer = Writer::open(&ring.node(0).socket(), "state", SEED, 0);
        assert!(writer.acknowledges(50));
        let mirror = ring.predecessor(0);
        ring.node_mut(0).kill_9();
        let acknowledged = writer.kill_9();
        ring.node(0).wipe_memory().unwrap();

        let heir = if heir_is_mirror { mirror } else { 3 - mirror };
        ring.wait(heir, "a view of two", |status| members(status, 2));
        let mut writer = Writer::open(&ring.node(heir).socket(), "state", SEED, acknowledged);
        assert!(writer.acknowledges(20), "mirrored again on the node that is left");
        let acknowledged = writer.kill_9();
        ring.protected();
        for node in [mirror, 3 - mirror] {
            let made = format!("made-on-{node}");
            let mut made = ring.client(node).open(&made, Options::capacity(100)).unwrap();
            made.save(b"new", Durability::Mirrored).unwrap();
        }

        // The dead node comes back with nothing and takes nothing over.
        ring.restart(0);
        ring.wait(heir, "the return", |status| members(status, 3));
        ring.protected();
        for node in 0..3 {
            let (version, bytes) = get(&ring.client(node), "state");
            assert!(version >= acknowledged, "LOST: {acknowledged}, {version} from {node}");
            assert!(bytes == payload::state(SEED, version));
        }
    }
}

/// The holder stands still for so long that the ring goes on without it, and comes back as another
/// member. Its owner is lost before anybody else could hold the copy.
#[test]
fn a_holder_evicted_by_mistake_gives_back_what_it_had() {
    let mut a = Server::new("a", &["--listen", "127.0.0.1:0"]);
    a.start();
    let address = a.address();
    let join = ["--listen", "127.0.0.1:0", "--join", &address];
    let mut without_room = Server::new("b", &[&join[..], &["--memory", "2MiB"]].concat());
    without_room.start();
    a.wait("b", |status| members(status, 2));
    let mut holder = Server::new("c", &join);
    holder.start();
    let status = a.wait("c", |status| members(status, 3));
    assert_eq!(status.predecessor, Some(name("c")));
    let options = Options::capacity(4 << 20).timeout(common::LIMIT);
    let mut state = a.client().open("state", options.clone()).unwrap();
    state.save(b"only c has it", Durability::Mirrored).unwrap();

    signal(&holder, Signal::STOP);
    a.wait("the eviction", |status| members(status, 2));
    a.kill_9();
    fs::remove_dir_all(&a.dir).unwrap();
    signal(&holder, Signal::CONT);

    without_room.wait("c in another life", |status| {
        members(status, 2) && status.predecessor == Some(name("c"))
    });
    let state = poll("the recovery", || {
        holder.client().open("state", options.clone()).map_err(|e| e.to_string())
    });
    let saved = state.latest().unwrap().expect("a version");
    assert_eq!((saved.version(), saved.bytes()), (1, &b"only c has it"[..]));
}

fn signal(server: &Server, signal: Signal) {
    let pid = Pid::from_raw(server.pid().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn without_its_mirror_a_commit_waits_until_the_ring_has_another() {
    let mut ring = Ring::start(3);
    let options = Options::capacity(100).timeout(common::LIMIT);
    let mut state = ring.client(0).open("state", options).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    let mirror = ring.predecessor(0);
    ring.node_mut(mirror).kill_9();
    ring.node(mirror).wipe_memory().unwrap();
    assert_eq!(state.save(b"two", Durability::Mirrored).unwrap(), 2, "after the view changed");
    let status = ring.wait(0, "the new mirror", |s| members(s, 2) && in_sync(s, "state"));
    let other = owned(&status, "state").and_then(|c| c.mirror.clone()).unwrap().node;
    assert_ne!(other.as_str(), ring.node(mirror).name());
    ring.protected();
}

/// Looking without end saves the time to wake up. It ends all the same.
#[test]
fn a_service_that_never_sleeps_minds_its_time_limit_and_the_end_of_its_server() {
    let mut ring = Ring::start(3);
    let options = Options::capacity(100).spin(Duration::MAX);
    let short = options.clone().timeout(Duration::from_millis(200));
    let mut state = ring.client(0).open("state", short).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    [1, 2].into_iter().for_each(|node| ring.node_mut(node).kill_9());
    let late = state.save(b"two", Durability::Mirrored).unwrap_err();
    assert!(matches!(late, CommitError::DurabilityNotReached { version: 2, .. }), "{late:?}");
    drop(state);

    let mut state = ring.client(0).open("state", options.timeout(Duration::MAX)).unwrap();
    let saved = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| state.save(b"three", Durability::Mirrored));
        ring.node_mut(0).kill_9();
        (0..3).for_each(|node| ring.restart(node));
        waiting.join().unwrap()
    });
    assert_eq!(saved.unwrap(), 3, "it went on at the restarted server");
}

#[test]
fn a_ring_that_cannot_change_its_view_acknowledges_nothing_as_mirrored() {
    let mut ring = Ring::start(3);
    let options = Options::capacity(100).timeout(Duration::from_secs(2));
    let mut state = ring.client(0).open("state", options).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    // Both others at once: one of three voters decides nothing.
    ring.node_mut(1).kill_9();
    ring.node_mut(2).kill_9();
    let late = state.save(b"two", Durability::Mirrored).unwrap_err();
    assert!(matches!(late, CommitError::DurabilityNotReached { version: 2, .. }), "{late:?}");
    ring.wait(0, "degraded", |status| status.state == RingState::Degraded);
    let saved = state.latest().unwrap().unwrap();
    assert_eq!((saved.version(), saved.bytes()), (2, &b"two"[..]), "it is local");

    // They come back with their memory; what was only local is mirrored without being asked.
    ring.restart(1);
    ring.restart(2);
    ring.wait(0, "the version to be mirrored", |status| in_sync(status, "state"));
    poll("the service to know it", || match state.mirrored() {
        2 => Ok(()),
        version => {
            let _ = state.ping();
            Err(format!("mirrored {version}"))
        }
    });
}

#[test]
fn put_says_5_when_no_mirror_is_there_in_time() {
    let ring = Ring::start(1);
    let args = ["put", "state", "/etc/hostname", "--durability", "mirrored", "--timeout", "10ms"];
    let line = ring.refused(0, &args, 5);
    assert!(line.contains("durability not reached"), "{line}");
}

/// A region's file that holds these bytes, with where they are.
fn region_with(dir: PathBuf, bytes: &[u8]) -> (PathBuf, Vec<usize>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let content = fs::read(&path).unwrap();
        let windows = content.windows(bytes.len()).enumerate();
        let found: Vec<usize> = windows.filter(|(_, w)| *w == bytes).map(|(at, _)| at).collect();
        if !found.is_empty() {
            return (path, found);
        }
    }
    panic!("no region holds it");
}

/// Turns a bit of the content over, wherever a slot of this node has it.
fn corrupt(ring: &Ring, node: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let (path, places) = region_with(ring.node(node).dir(), bytes);
    let file = fs::File::options().write(true).open(path).unwrap();
    for at in places {
        file.write_all_at(&[bytes[0] ^ 1], at as u64).unwrap();
    }
}

#[test]
fn a_slot_that_was_damaged_while_the_server_was_down_is_told_and_spoils_nothing_else() {
    let mut ring = Ring::start(1);
    let client = ring.client(0);
    for text in ["sound", "spoiled"] {
        let mut state = client.open(text, Options::capacity(100)).unwrap();
        state.save(format!("the content of {text}").as_bytes(), Durability::Local).unwrap();
    }
    ring.node_mut(0).kill_9();
    corrupt(&ring, 0, b"the content of spoiled");
    ring.restart(0);
    let line = ring.refused(0, &["get", "spoiled"], 7);
    assert!(line.contains("spoiled"), "{line}");
    let verify = ring.run(0, &["verify"]);
    assert_eq!(verify.status.code(), Some(7));
    assert!(String::from_utf8(verify.stdout).unwrap().contains("DAMAGED"));
    assert_eq!(ring.ok(0, &["get", "sound"]), b"the content of sound");
    ring.ok(0, &["verify", "sound"]);
    ring.ok(0, &["rm", "spoiled"]);
    ring.ok(0, &["verify"]);
}

#[test]
fn a_damaged_owners_copy_is_read_from_the_mirror() {
    let mut ring = Ring::start(3);
    // Damage in what is read at once, and in the last of many pieces.
    let marked = b"what both nodes have";
    let states = [marked.to_vec(), [vec![7; 9_000_001], marked.to_vec()].concat()];
    for (n, content) in states.iter().enumerate() {
        let options = Options::capacity(10_000_000);
        let mut state = ring.client(0).open(&format!("state-{n}"), options).unwrap();
        state.save(content, Durability::Mirrored).unwrap();
        drop(state);
        ring.node_mut(0).kill_9();
        corrupt(&ring, 0, marked);
        ring.restart(0);
        ring.protected();
        for node in 0..3 {
            let (version, bytes) = get(&ring.client(node), &format!("state-{n}"));
            assert!(version == 1 && bytes == *content, "state {n} from {node}");
        }
        ring.ok(0, &["rm", &format!("state-{n}")]);
    }
}

#[test]
fn what_is_damaged_on_every_node_is_not_handed_out() {
    let ring = Ring::start(3);
    let marked = b"in the middle";
    let content = [vec![7; 5_000_000], marked.to_vec(), vec![8; 3_000_000]].concat();
    let mut state = ring.client(0).open("state", Options::capacity(8_100_000)).unwrap();
    state.save(&content, Durability::Mirrored).unwrap();
    let mirror = ring.predecessor(0);
    corrupt(&ring, 0, marked);
    corrupt(&ring, mirror, marked);
    for node in 0..3 {
        let line = ring.refused(node, &["get", "state"], 7);
        assert!(line.contains("damaged"), "{line}");
    }
    state.save(&content, Durability::Mirrored).unwrap();
    for node in 0..3 {
        assert!(get(&ring.client(node), "state").1 == content, "the next version is whole");
    }
}

/// What is left when an owner dies while a small version is on its way to its mirror: the record has
/// arrived, the payload behind it has not.
#[test]
fn a_version_that_arrived_torn_gives_way_to_the_one_before() {
    let mut ring = Ring::start(3);
    let mut state = ring.client(0).open("state", Options::capacity(100)).unwrap();
    state.save(b"what was there before", Durability::Mirrored).unwrap();
    state.save(b"what is on its way", Durability::Mirrored).unwrap();
    let mirror = ring.predecessor(0);
    // Nothing is recovered before the mirror looks torn.
    ring.node(mirror).pause();
    ring.node_mut(0).kill_9();
    ring.node(0).wipe_memory().unwrap();
    corrupt(&ring, mirror, b"what is on its way");
    ring.node(mirror).resume();
    let other = 3 - mirror;
    ring.wait(mirror, "the checkpoint's recovery", |status| owned(status, "state").is_some());
    let before = (1, b"what was there before".to_vec());
    assert_eq!(get(&ring.client(other), "state"), before);
    let mut state = poll("the checkpoint on another node", || {
        ring.client(other).open("state", Options::capacity(100)).map_err(|e| e.to_string())
    });
    assert_eq!(state.latest().unwrap().unwrap().bytes(), before.1);
    assert_eq!(state.save(b"and it goes on", Durability::Mirrored).unwrap(), 2);
    assert_eq!(get(&ring.client(mirror), "state"), (2, b"and it goes on".to_vec()));
}

#[test]
fn a_server_that_is_asked_to_end_ends_well_and_keeps_everything() {
    let mut ring = Ring::start(1);
    ring.ok(0, &["put", "state", "/etc/passwd", "--durability", "local"]);
    let status = ring.node_mut(0).terminate().expect("it ends by itself");
    assert_eq!(status.code(), Some(0));
    assert!(!ring.node(0).socket().exists(), "its socket is removed");
    ring.restart(0);
    assert_eq!(ring.ok(0, &["get", "state"]), fs::read("/etc/passwd").unwrap());
}

#[test]
fn a_member_that_leaves_is_not_waited_for() {
    let mut ring = Ring::start(4);
    let mut state = ring.client(0).open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    let mirror = ring.predecessor(0);
    assert_eq!(ring.node_mut(mirror).terminate().and_then(|status| status.code()), Some(0));
    assert_eq!(state.save(b"two", Durability::Mirrored).unwrap(), 2);
    ring.wait(0, "a view of three", |status| members(status, 3));
    ring.protected();
}

/// Suspicion may be wrong: the evicted node's writer is fenced, and nothing acknowledged is lost.
#[test]
fn a_node_that_was_only_slow_is_fenced_and_comes_back() {
    let ring = Ring::start(3);
    let mut state = ring.client(0).open("state", Options::capacity(100)).unwrap();
    state.save(b"one", Durability::Mirrored).unwrap();
    ring.node(0).pause();
    ring.wait(1, "a view of two", |status| members(status, 2));
    let client = ring.client(1);
    let mut heir = poll("the take-over", || {
        client.open("state", Options::capacity(100)).map_err(|error| match error.kind() {
            Some(FailureKind::Unavailable) => error.to_string(),
            _ => panic!("{error}"),
        })
    });
    assert_eq!(heir.latest().unwrap().unwrap().bytes(), b"one");
    assert_eq!(heir.save(b"two", Durability::Mirrored).unwrap(), 2);
    ring.node(0).resume();
    ring.wait(1, "the return", |status| members(status, 3));
    let late = poll("the old writer's end", || match state.save(b"late", Durability::Mirrored) {
        Err(error @ (CommitError::Lost(_) | CommitError::Write(_))) => Ok(error),
        Err(error) => Err(error.to_string()),
        Ok(version) => panic!("the fenced writer was given version {version}"),
    });
    assert!(late.to_string().contains("fenced"), "{late}");
    ring.protected();
    for node in 0..3 {
        let fetched = ring.client(node).get(&name("state"), None).unwrap();
        assert_eq!((fetched.version, bytes_of(fetched)), (2, b"two".to_vec()), "from {node}");
    }
}
