//! Real servers on a network that is cut, slow or unplugged, and servers that stop and are killed
//! together: what a user may count on then.
//!
//! Needs root, or says loudly that nothing was tested; see `docs/testing.md`.
#![cfg(feature = "cli")]

mod common;

use std::{thread, time::Duration};

use common::{
    cluster::{Cluster, with_cluster},
    listed_owner,
    network::not_tested,
    poll, views,
    writer::{self, Writer},
};
use ringkeep::{
    Checkpoint, Client, Durability, Options,
    client::{CommitError, OwnershipError, RequestError, WriteError},
    protocol::FailureKind,
};

const SEED: u64 = 0xcab1e;
/// Three seconds of silence. Most tests say who must *not* be evicted, too: a machine that is short
/// of processor time for 600 ms must not decide them.
const PATIENT: &str = "patient";
const NORMAL: &str = "normal";
/// How long a commit waits that must not be acknowledged.
const SHORT: Duration = Duration::from_secs(1);
const FILE: &str = "/etc/hostname";

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

/// A checkpoint with one version, on two nodes.
#[track_caller]
fn begun(client: &Client, name: &str) -> Checkpoint {
    let mut state = client.open(name, Options::capacity(100).timeout(SHORT)).unwrap();
    poll("the first copy", || {
        state.save(b"before", Durability::Mirrored).map_err(|e| e.to_string())
    });
    state
}

/// The commit is not acknowledged: no mirror was reached, also not for the one before.
#[track_caller]
fn not_acknowledged(state: &mut Checkpoint, bytes: &[u8]) {
    let error = state.save(bytes, Durability::Mirrored).unwrap_err();
    assert!(is_not_durable(&error), "{error:?}");
}

/// What the command line ends with status 5 for.
fn is_not_durable(error: &CommitError) -> bool {
    use CommitError::{DurabilityNotReached, Write};
    matches!(error, DurabilityNotReached { .. } | Write(WriteError::Busy))
}

/// The writer learns that it is none any more, and is acknowledged nothing until then.
#[track_caller]
fn is_fenced(state: &mut Checkpoint) {
    poll("the old writer's end", || match state.save(b"too late", Durability::Mirrored) {
        Err(CommitError::Lost(OwnershipError::Fenced { .. })) => Ok(()),
        Err(error) if is_not_durable(&error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    });
}

/// Goes on with a dead or unreachable node's checkpoint on another one, and commits.
#[track_caller]
fn taken_over(client: &Client, name: &str, found: &[u8], then: &[u8]) -> Checkpoint {
    let mut heir = poll("the take-over", || {
        client.open(name, Options::capacity(100)).map_err(|error| match error.kind() {
            Some(FailureKind::Unavailable | FailureKind::OwnedElsewhere) => error.to_string(),
            _ => panic!("{error}"),
        })
    });
    assert_eq!(heir.latest().unwrap().expect("a version").bytes(), found);
    heir.save(then, Durability::Mirrored).unwrap();
    heir
}

/// A writer that may have been fenced meanwhile is ended; another one goes on where the ring says
/// that the checkpoint is now, and finds everything that was acknowledged.
fn goes_on_anywhere(cluster: &Cluster, mut writer: Writer, name: &str, versions: u64) -> u64 {
    let acknowledged = writer.kill_9();
    let owner = cluster.index_of(&listed_owner(&cluster.client(0), name));
    let mut again = Writer::open(&cluster.node(owner).socket(), name, SEED, acknowledged);
    assert!(again.acknowledges(versions), "nobody else has it");
    again.kill_9()
}

fn incarnation(cluster: &Cluster, node: usize) -> u64 {
    cluster.node(node).status().unwrap().incarnation
}

#[test]
fn a_minority_acknowledges_nothing_that_the_majority_cannot_find_again() {
    with_cluster(5, PATIENT, |cluster| {
        let order = cluster.order();
        let (minority, majority) = order.split_at(2);
        let (edge, inner) = (minority[0], minority[1]);
        let lives = [incarnation(cluster, edge), incarnation(cluster, inner)];
        // Named by where the owner and the holder of its mirror will be.
        let mut alone = begun(&cluster.client(edge), "minority-majority");
        cluster.node(edge).ok(&["put", "told", FILE, "--durability", "mirrored"]);
        let writer = |node: usize, name| {
            let mut writer = Writer::open(&cluster.node(node).socket(), name, SEED, 0);
            assert!(writer.acknowledges(20));
            writer
        };
        let inside = writer(inner, "minority-minority");
        let mut across = writer(majority[0], "majority-minority");
        let mut safe = writer(majority[1], "majority-majority");
        cluster.protected_ring_of(&order);
        let before = [cluster.views_installed(edge), cluster.views_installed(inner)];

        cluster.network.split(minority, majority);
        not_acknowledged(&mut alone, b"nobody has this");
        let put = ["put", "told", FILE, "--durability", "mirrored", "--timeout", "500ms"];
        let line = cluster.node(edge).refused(&put, 5);
        assert!(line.contains("durability not reached"), "{line}");

        cluster.protected_ring_of(majority);
        assert!(across.acknowledges(20), "mirrored anew");
        assert!(safe.acknowledges(20));
        let heir = &cluster.client(majority[2]);
        let heir = taken_over(heir, "minority-majority", b"before", b"by the heir");
        let version = heir.mirrored();
        nothing_old_is_handed_out(cluster, majority, "minority-minority");
        not_acknowledged(&mut alone, b"nor this");
        let now = [cluster.views_installed(edge), cluster.views_installed(inner)];
        assert_eq!(now, before, "a minority decided a view");

        cluster.network.heal();
        cluster.one_ring_of(&order);
        is_fenced(&mut alone);
        let now = [incarnation(cluster, edge), incarnation(cluster, inner)];
        assert!(lives[0] != now[0] && lives[1] != now[1], "they come back as new members");
        let acknowledged = goes_on_anywhere(cluster, inside, "minority-minority", 20);
        cluster.kept(&order, "minority-minority", SEED, acknowledged);
        for (mut writer, name) in [(across, "majority-minority"), (safe, "majority-majority")] {
            assert!(writer.acknowledges(20), "its node was in the ring all the time");
            cluster.kept(&order, name, SEED, writer.kill_9());
        }
        cluster.protected_ring_of(&order);
        for &node in &order {
            let got = cluster.get_soon(node, "minority-majority");
            assert_eq!(got, (version, b"by the heir".to_vec()), "from {node}");
            assert_eq!(cluster.get_soon(node, "told").1, std::fs::read(FILE).unwrap());
        }
    });
}

/// Its owner and the holder of its mirror cannot be reached: whoever asks one of these nodes is told
/// so, and gets nothing old.
#[track_caller]
fn nothing_old_is_handed_out(cluster: &Cluster, nodes: &[usize], name: &str) {
    // At once: a server waits for a while that they may be back soon.
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = |&node| scope.spawn(move || cluster.get(node, name).map(|(version, _)| version));
        let asked: Vec<_> = nodes.iter().map(ask).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Err(RequestError::Refused(f)) if f.kind == FailureKind::Unavailable => {}
            other => panic!("{other:?} from {node}"),
        }
    }
}

/// The holder from before comes back when the owner and the present holder are out of reach: what
/// it has is whole and verified, and still too old to be handed out.
#[test]
fn a_mirror_from_before_is_not_taken_for_the_newest() {
    with_cluster(6, PATIENT, |cluster| {
        let order = cluster.order();
        let (now, before, owner, others) = (order[0], order[1], order[2], &order[3..]);
        let mut writer = Writer::open(&cluster.node(owner).socket(), "state", SEED, 0);
        assert!(writer.acknowledges(20), "mirrored on the one before it");
        cluster.network.unplug(before);
        assert!(writer.acknowledges(20), "mirrored on the next one");
        let rest = [&[now, owner], others].concat();
        cluster.protected_ring_of(&rest);

        let reachable = [&[before], others].concat();
        cluster.network.split(&[now, owner], &reachable);
        cluster.network.plug(before);
        cluster.one_ring_of(&reachable);
        nothing_old_is_handed_out(cluster, &reachable, "state");

        cluster.network.heal();
        cluster.one_ring_of(&order);
        let acknowledged = goes_on_anywhere(cluster, writer, "state", 20);
        cluster.kept(&order, "state", SEED, acknowledged);
        cluster.protected_ring_of(&order);
    });
}

#[test]
fn a_node_whose_cable_is_pulled_out_is_fenced_and_comes_back_by_itself() {
    with_cluster(3, PATIENT, |cluster| {
        let mut state = begun(&cluster.client(0), "state");
        cluster.node(0).ok(&["put", "told", FILE, "--durability", "mirrored"]);
        cluster.protected_ring_of(&[0, 1, 2]);
        let life = incarnation(cluster, 0);

        cluster.network.unplug(0);
        not_acknowledged(&mut state, b"nobody has this");
        let put = ["put", "told", FILE, "--durability", "mirrored", "--timeout", "500ms"];
        cluster.node(0).refused(&put, 5);
        cluster.one_ring_of(&[1, 2]);
        let heir = taken_over(&cluster.client(1), "state", b"before", b"by the heir");
        not_acknowledged(&mut state, b"nor this");

        cluster.network.plug(0);
        is_fenced(&mut state);
        cluster.protected_ring_of(&[0, 1, 2]);
        assert_ne!(incarnation(cluster, 0), life, "it comes back as a new member");
        drop(state);
        let line = cluster.node(0).refused(&["put", "state", FILE], 4);
        assert!(line.contains("node b"), "it names the owner: {line}");
        for node in 0..3 {
            let got = cluster.get_soon(node, "state");
            assert_eq!(got, (heir.mirrored(), b"by the heir".to_vec()), "from {node}");
        }
        drop(heir);
    });
}

/// Both lose their memory, too.
#[test]
fn two_nodes_that_die_together_lose_what_only_they_had_and_say_so() {
    with_cluster(5, PATIENT, |cluster| {
        let order = cluster.order();
        let (victims, left) = order.split_at(2);
        let writers = order.iter().map(|&node| {
            let name = format!("of-{node}");
            let mut writer = Writer::open(&cluster.node(node).socket(), &name, SEED, 0);
            assert!(writer.acknowledges(20));
            (node, name, writer)
        });
        let writers: Vec<_> = writers.collect();
        cluster.protected_ring_of(&order);
        cluster.kill_9(victims);
        cluster.one_ring_of(left);
        for (node, name, mut writer) in writers {
            if node == victims[1] {
                let acknowledged = writer.kill_9();
                lost_is_said(cluster, left, &name, acknowledged);
            } else if node == victims[0] {
                let acknowledged = writer.kill_9();
                let heir = cluster.node(left[0]).socket();
                let mut heir = Writer::open(&heir, &name, SEED, acknowledged);
                assert!(heir.acknowledges(20));
                cluster.kept(left, &name, SEED, heir.kill_9());
            } else {
                assert!(writer.acknowledges(20), "its node is alive");
                cluster.kept(left, &name, SEED, writer.kill_9());
            }
        }
        cluster.protected_ring_of(left);
        for &node in victims {
            cluster.restart(node, true);
        }
        cluster.protected_ring_of(&order);
    });
}

/// Owner and mirror are gone. Nobody hands out anything, and who begins anew is warned.
fn lost_is_said(cluster: &Cluster, left: &[usize], name: &str, acknowledged: u64) {
    assert!(acknowledged > 0);
    nothing_old_is_handed_out(cluster, left, name);
    let anew = cluster.client(left[0]).open(name, Options::capacity(100)).unwrap();
    assert_eq!(anew.version(), 0);
    let warning = anew.warning().expect("a warning");
    assert!(warning.contains("went away together"), "{warning}");
}

#[test]
fn two_nodes_that_die_together_and_are_no_neighbours_lose_nothing() {
    with_cluster(5, PATIENT, |cluster| {
        let order = cluster.order();
        let (victims, left) = ([order[1], order[3]], [order[0], order[2], order[4]]);
        let mut writers = victims.map(|node| {
            let name = format!("of-{node}");
            let mut writer = Writer::open(&cluster.node(node).socket(), &name, SEED, 0);
            assert!(writer.acknowledges(20));
            (name, writer)
        });
        cluster.kill_9(&victims);
        cluster.one_ring_of(&left);
        for (name, writer) in &mut writers {
            let acknowledged = writer.kill_9();
            let heir = cluster.node(left[0]).socket();
            *writer = Writer::open(&heir, name, SEED, acknowledged);
            assert!(writer.acknowledges(20));
        }
        for node in victims {
            cluster.restart(node, true);
        }
        cluster.protected_ring_of(&order);
        for (name, writer) in &mut writers {
            cluster.kept(&order, name, SEED, writer.kill_9());
        }
    });
}

#[test]
fn a_stopped_server_finds_itself_evicted_and_acknowledges_nothing_late() {
    with_cluster(3, PATIENT, |cluster| {
        let mut state = begun(&cluster.client(0), "state");
        let mut writer = Writer::open(&cluster.node(0).socket(), "stream", SEED, 0);
        assert!(writer.acknowledges(50));
        let life = incarnation(cluster, 0);

        cluster.node(0).pause();
        // On its way from here on: the server takes it when it runs again.
        let late = thread::spawn(move || {
            poll("the end of the late commit", || {
                match state.save(b"too late", Durability::Mirrored) {
                    Err(error) if is_not_durable(&error) => Err(error.to_string()),
                    ended => Ok(ended),
                }
            })
        });
        cluster.one_ring_of(&[1, 2]);
        let heir = taken_over(&cluster.client(1), "state", b"before", b"by the heir");
        let stream = cluster.node(2).socket();
        let mut stream = Writer::open(&stream, "stream", SEED, writer.acknowledged);
        let began = stream.found;
        assert!(stream.acknowledges(20));
        cluster.node(0).resume();

        let late = late.join().unwrap();
        let fenced = matches!(late, Err(CommitError::Lost(OwnershipError::Fenced { .. })));
        assert!(fenced, "{late:?}");
        assert!(!writer.acknowledges(u64::MAX / 2), "the stream's first writer is fenced, too");
        assert!(
            writer.acknowledged <= began,
            "{} acknowledged, after another writer began with {began}",
            writer.acknowledged
        );
        cluster.protected_ring_of(&[0, 1, 2]);
        assert_ne!(incarnation(cluster, 0), life, "it comes back as a new member");
        let acknowledged = stream.kill_9();
        cluster.kept(&[0, 1, 2], "stream", SEED, acknowledged);
        for node in 0..3 {
            let got = cluster.get_soon(node, "state");
            assert_eq!(got, (heir.mirrored(), b"by the heir".to_vec()), "from {node}");
        }
    });
}

#[test]
fn a_node_that_hears_but_is_not_heard_is_replaced() {
    with_cluster(4, PATIENT, |cluster| {
        let order = cluster.order();
        let (mute, others) = (order[0], &order[1..]);
        let mut state = begun(&cluster.client(mute), "state");
        let mut writer = Writer::open(&cluster.node(others[0]).socket(), "stream", SEED, 0);
        assert!(writer.acknowledges(20), "its mirror is on the mute one");
        cluster.network.cut_one_way(&[mute], others);
        not_acknowledged(&mut state, b"nobody has this");
        cluster.one_ring_of(others);
        let heir = taken_over(&cluster.client(others[1]), "state", b"before", b"by the heir");
        assert!(writer.acknowledges(20), "mirrored anew");

        cluster.network.heal();
        is_fenced(&mut state);
        cluster.protected_ring_of(&order);
        cluster.kept(&order, "stream", SEED, writer.kill_9());
        for &node in &order {
            let got = cluster.get_soon(node, "state");
            assert_eq!(got, (heir.mirrored(), b"by the heir".to_vec()), "from {node}");
        }
    });
}

/// Two neighbours of which one does not hear the other, while all others hear both: one of them is
/// evicted and comes back elsewhere in the ring, where it does not matter.
#[test]
fn two_neighbours_with_half_a_connection_lose_nothing() {
    with_cluster(5, PATIENT, |cluster| {
        let order = cluster.order();
        let (holder, owner) = (order[1], order[2]);
        let writers = [order[0], owner, order[4]].map(|node| {
            let name = format!("of-{node}");
            let mut writer = Writer::open(&cluster.node(node).socket(), &name, SEED, 0);
            assert!(writer.acknowledges(20));
            (name, writer)
        });
        let before = cluster.views_installed(order[0]);
        cluster.network.cut_one_way(&[owner], &[holder]);
        poll("a view that takes note of it", || {
            let now = cluster.views_installed(order[0]);
            if now > before { Ok(()) } else { Err(format!("{now} views")) }
        });
        cluster.one_ring_of(&order);
        cluster.network.heal();
        for (name, writer) in writers {
            let acknowledged = goes_on_anywhere(cluster, writer, &name, 20);
            cluster.kept(&order, &name, SEED, acknowledged);
        }
        cluster.protected_ring_of(&order);
    });
}

/// Faster than anybody can notice, and around the time after which a neighbour is suspected: that
/// one is the default here, since nothing is said about who is evicted.
#[test]
fn a_link_that_flaps_loses_nothing() {
    with_cluster(3, NORMAL, |cluster| {
        let writers = [0, 1].map(|node| {
            let name = format!("of-{node}");
            let mut writer = Writer::open(&cluster.node(node).socket(), &name, SEED, 0);
            assert!(writer.acknowledges(20));
            (name, writer)
        });
        let fast = [60; 10];
        let around = [450, 550, 600, 650, 750, 1_000];
        for (index, milliseconds) in fast.into_iter().chain(around).enumerate() {
            let node = index % 2;
            // Not to wait for anything: how long it lasts is what is tried out.
            let time = Duration::from_millis(milliseconds);
            cluster.network.unplug(node);
            thread::sleep(time);
            cluster.network.plug(node);
            thread::sleep(time);
        }
        cluster.one_ring_of(&[0, 1, 2]);
        for (name, writer) in writers {
            let acknowledged = goes_on_anywhere(cluster, writer, &name, 20);
            cluster.kept(&[0, 1, 2], &name, SEED, acknowledged);
        }
        cluster.protected_ring_of(&[0, 1, 2]);
    });
}

#[test]
fn delay_and_loss_evict_nobody() {
    with_cluster(3, PATIENT, |cluster| {
        if let Err(why) = cluster.network.disturb("delay 5ms 5ms loss 1%") {
            return not_tested(&format!("delay and loss, this kernel has no sch_netem: {why}"));
        }
        let before = cluster.views_installed(0);
        let mut writer = Writer::open(&cluster.node(0).socket(), "state", SEED, 0);
        assert!(writer.acknowledges(200));
        cluster.protected_ring_of(&[0, 1, 2]);
        assert_eq!(cluster.views_installed(0), before, "nobody was evicted");
        cluster.kept(&[0, 1, 2], "state", SEED, writer.kill_9());
    });
}

#[test]
fn views_that_do_not_fit_together_are_found() {
    let line = |view: u64, ring: &str| {
        format!("2026-01-01T00:00:00Z  INFO ringkeep: view installed view={view} ring=\"{ring}\"\n")
    };
    let one = line(1, "a → b") + "something else\n" + &line(2, "a → b → c");
    assert_eq!(views::installed(&one).len(), 2);
    let found = |other: &str| views::contradiction([("a", &*one), ("b", other)]);
    assert_eq!(found(&line(2, "a → b → c")), None);
    assert_eq!(found(&(one.clone() + &line(2, "a → b → c"))), None, "said again at a restart");
    assert!(found(&line(2, "a → c → b")).unwrap().contains("view 2"));
    assert!(found(&line(1, "b")).unwrap().contains("view 1"), "a second ring that began anew");
    assert!(found(&(line(3, "b → c") + &line(2, "a → b → c"))).unwrap().contains("after view 3"));
}
