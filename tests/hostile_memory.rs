//! A client that writes garbage into the memory it shares with its server, or takes that memory
//! away, spoils its own checkpoint. Beside it a service commits mirrored all the while.
#![cfg(feature = "cli")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Ring, bytes_of, name, owned,
    payload::{self, Random},
    poll,
    raw::{Attached, Raw},
    writer::{self, Writer},
};
use ringkeep::{Client, Durability, Options, handover::bytes_for, protocol::FailureKind};
use rustix::fs::{OFlags, fcntl_setfl};

const SEED: u64 = 0xbad;
const CAPACITY: u64 = 50_000;

// As in docs/layout.md.
const SUBMITTED_AT: u64 = 0;
const CONSUMED_AT: u64 = 256;
const WRITING_AT: u64 = 128;
const CLIENT_ASLEEP_AT: u64 = 132;
const CONDITION_AT: u64 = 276;
const ENTRIES_AT: u64 = 4096;
const VIOLATION: u32 = 3;

/// Not a test: the process of [`Writer`].
#[test]
fn writer_process() {
    assert_eq!(writer::ENTRY, "writer_process");
    writer::run_if_asked();
}

/// A ring of three, and a service that commits mirrored without a pause.
struct Stage {
    ring: Ring,
    writer: Writer,
}

impl Stage {
    fn new() -> Self {
        let ring = Ring::start(3);
        let mut writer = Writer::open(&ring.node(0).socket(), "good", SEED, 0);
        assert!(writer.acknowledges(5));
        Self { ring, writer }
    }

    fn attach(&self, name: &str) -> Attached {
        Raw::connect(&self.ring.node(0).socket()).attach(name, CAPACITY)
    }

    /// The service goes on.
    #[track_caller]
    fn goes_on(&mut self) {
        assert!(self.writer.acknowledges(20), "the other writer lost its checkpoint");
        for node in 0..3 {
            self.ring.node_mut(node).check().unwrap();
        }
    }

    /// The service's checkpoint is whole on both nodes, with the right bytes, and the ring never
    /// changed.
    #[track_caller]
    fn ends_well(mut self) {
        self.goes_on();
        let acknowledged = self.writer.kill_9();
        for node in 0..3 {
            let fetched = self.ring.client(node).get(&name("good"), None).unwrap();
            let version = fetched.version;
            assert!(version >= acknowledged, "LOST: {acknowledged}, {version} found");
            assert!(bytes_of(fetched) == payload::state(SEED, version));
        }
        self.ring.ok(0, &["verify", "good"]);
        for node in 0..3 {
            let log = std::fs::read_to_string(self.ring.node(node).log()).unwrap();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// The client is told that it was let go.
#[track_caller]
fn violated(client: &Attached) {
    poll("the violation to be found", || {
        client.knock();
        let condition = client.ring.atomic_u32(CONDITION_AT);
        match condition.load(Ordering::SeqCst) {
            VIOLATION => Ok(()),
            other => Err(format!("condition {other}")),
        }
    });
}

fn set_u64(client: &Attached, at: u64, value: u64) {
    client.ring.atomic_u64(at).store(value, Ordering::SeqCst);
}

fn set_u32(client: &Attached, at: u64, value: u32) {
    client.ring.atomic_u32(at).store(value, Ordering::SeqCst);
}

/// An entry as a client writes it, honest or not.
#[derive(Clone)]
struct Entry {
    version: u64,
    len: u64,
    slot: u32,
    ranges: u32,
    first: (u64, u64),
    /// The first word of the map of blocks.
    map: u64,
}

const HONEST: Entry = Entry { version: 1, len: 10, slot: 0, ranges: 1, first: (0, 10), map: 0 };

fn entry_bytes(client: &Attached) -> u64 {
    (client.ring.len() - ENTRIES_AT) / 16
}

fn submit(client: &Attached, index: u64, entry: &Entry) {
    let at = ENTRIES_AT + index % 16 * entry_bytes(client);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&entry.version.to_le_bytes());
    bytes.extend_from_slice(&entry.len.to_le_bytes());
    bytes.extend_from_slice(&entry.slot.to_le_bytes());
    bytes.extend_from_slice(&entry.ranges.to_le_bytes());
    bytes.resize(64, 0xff);
    bytes.extend_from_slice(&entry.first.0.to_le_bytes());
    bytes.extend_from_slice(&entry.first.1.to_le_bytes());
    bytes.resize(1024, 0);
    bytes.extend_from_slice(&entry.map.to_le_bytes());
    client.ring.write_at(at, &bytes).unwrap();
    set_u64(client, SUBMITTED_AT, index + 1);
    client.knock();
}

#[test]
fn wild_entries_end_the_attachment_of_their_writer_alone() {
    let mut stage = Stage::new();
    let wild = [
        Entry { version: 0, ..HONEST },
        Entry { version: u64::MAX, ..HONEST },
        Entry { len: CAPACITY + 1, ..HONEST },
        Entry { len: u64::MAX, ..HONEST },
        Entry { slot: 2, ..HONEST },
        Entry { slot: u32::MAX, ..HONEST },
        Entry { ranges: 61, ..HONEST },
        Entry { ranges: u32::MAX - 2, ..HONEST },
        Entry { ranges: u32::MAX - 1, map: u64::MAX, ..HONEST },
        Entry { first: (10, 10), ..HONEST },
        Entry { first: (11, 10), ..HONEST },
        Entry { first: (0, CAPACITY + 1), ..HONEST },
        Entry { first: (u64::MAX - 1, u64::MAX), ..HONEST },
    ];
    for (i, entry) in wild.iter().enumerate() {
        let client = stage.attach(&format!("wild-{i}"));
        submit(&client, 0, entry);
        violated(&client);
    }
    // A version that goes back.
    let client = stage.attach("backwards");
    submit(&client, 0, &Entry { version: 9, ..HONEST });
    submit(&client, 1, &Entry { version: 8, ..HONEST });
    violated(&client);
    stage.goes_on();
    stage.ends_well();
}

#[test]
fn wild_indices_end_the_attachment_of_their_writer_alone() {
    let mut stage = Stage::new();
    for (i, submitted) in [17, 1 << 40, u64::MAX, u64::MAX / 2].into_iter().enumerate() {
        let client = stage.attach(&format!("index-{i}"));
        set_u64(&client, SUBMITTED_AT, submitted);
        violated(&client);
    }
    // Backwards: an honest one first, which the server takes.
    let client = stage.attach("back");
    submit(&client, 0, &HONEST);
    poll("the first to be taken", || {
        let taken = client.ring.atomic_u64(CONSUMED_AT);
        match taken.load(Ordering::SeqCst) {
            1 => Ok(()),
            other => Err(format!("{other}")),
        }
    });
    set_u64(&client, SUBMITTED_AT, 0);
    violated(&client);
    stage.goes_on();
    stage.ends_well();
}

#[test]
fn a_version_that_was_never_written_spoils_its_own_checkpoint() {
    let mut stage = Stage::new();
    let client = stage.attach("liar");
    // The largest version that can be: submitted, but in no slot.
    for entry in [HONEST, Entry { version: (1 << 62) - 1, ranges: u32::MAX, slot: 1, ..HONEST }] {
        submit(&client, entry.version.min(2) - 1, &entry);
    }
    stage.goes_on();
    drop(client);
    stage.ring.wait(0, "the end of the liar", |s| !owned(s, "liar").unwrap().attached);
    let client = stage.ring.client(0);
    let got = client.get(&name("liar"), None).map(|f| f.version);
    assert!(got.is_err(), "{got:?}");
    stage.ends_well();
}

#[test]
fn garbage_over_the_whole_region_is_never_taken_for_a_version() {
    let mut stage = Stage::new();
    let mut random = Random(3);
    let client = stage.attach("garbage");
    let layout = client.opened.layout;
    let places = [
        (0, 4096),             // header page
        (layout.slot(0), 128), // record and commit word
        (layout.slot(1), 128),
        (layout.table(0), layout.payload(0) - layout.table(0)),
        (0, layout.region_bytes()),
    ];
    for (round, (at, len)) in places.into_iter().cycle().take(40).enumerate() {
        let garbage: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        client.memory.write_at(at, &garbage).unwrap();
        // A good entry speaks of the garbage, so that it is mirrored.
        let version = round as u64 + 1;
        submit(&client, round as u64, &Entry { version, slot: round as u32 % 2, ..HONEST });
        poll("the entry to be taken", || {
            let taken = client.ring.atomic_u64(CONSUMED_AT);
            let taken = taken.load(Ordering::SeqCst);
            if taken == version { Ok(()) } else { Err(format!("{taken}")) }
        });
    }
    stage.goes_on();
    for node in 0..3 {
        assert!(stage.ring.client(node).get(&name("garbage"), None).is_err(), "from node {node}");
    }
    drop(client);
    stage.ends_well();
}

#[test]
fn the_servers_own_words_are_not_believed() {
    let mut stage = Stage::new();
    let mut random = Random(5);
    let client = stage.attach("words");
    for _ in 0..2_000 {
        // Everything before the entries, but for the index: that is another test.
        let at = 64 + random.next() % (4096 - 64) / 8 * 8;
        set_u64(&client, at, random.next());
        client.knock();
    }
    // A slot that is being written for ever, and one that does not exist.
    for writing in [1, 2, 3, u32::MAX] {
        set_u32(&client, WRITING_AT, writing);
        client.knock();
    }
    stage.goes_on();
    // Everything at once, again and again.
    for _ in 0..50 {
        let garbage: Vec<u8> = (0..client.ring.len()).map(|_| random.next() as u8).collect();
        client.ring.write_at(0, &garbage).unwrap();
        client.knock();
    }
    // What the server says in that memory may be overwritten by now: its status says it, too.
    let let_go = |s: &ringkeep::protocol::Status| !owned(s, "words").unwrap().attached;
    stage.ring.wait(0, "the client to be let go", let_go);
    stage.goes_on();
    stage.ends_well();
}

#[test]
fn a_bell_that_never_stops_keeps_nobody_else_waiting() {
    let mut stage = Stage::new();
    let client = stage.attach("loud");
    std::thread::scope(|scope| {
        let loud = scope.spawn(|| (0..300_000).for_each(|_| client.knock()));
        while !loud.is_finished() {
            stage.goes_on();
        }
    });
    submit(&client, 0, &Entry { version: 0, ..HONEST });
    violated(&client);
    stage.ends_well();
}

/// It says that it sleeps, never hears its bell, and lets calls on it wait.
#[test]
fn a_client_that_hears_nothing_keeps_nobody_else_waiting() {
    let mut stage = Stage::new();
    let client = stage.attach("deaf");
    fcntl_setfl(&client.bell, OFlags::empty()).unwrap();
    for index in 0..1_000 {
        set_u32(&client, CLIENT_ASLEEP_AT, 1);
        submit_when_there_is_room(&client, index);
    }
    stage.goes_on();
    stage.ends_well();
}

#[test]
fn a_client_that_submits_without_a_pause_keeps_nobody_else_waiting() {
    let mut stage = Stage::new();
    let client = Raw::connect(&stage.ring.node(0).socket()).attach("greedy", 64 << 20);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let index = (0..).take_while(|_| !stop.load(Ordering::Relaxed));
            index.for_each(|index| submit_when_there_is_room(&client, index));
        });
        stage.goes_on();
        stop.store(true, Ordering::Relaxed);
    });
    drop(client);
    stage.ends_well();
}

/// An honest entry whose map has every block, as soon as the server took enough others.
fn submit_when_there_is_room(client: &Attached, index: u64) {
    let room = || index < client.ring.atomic_u64(CONSUMED_AT).load(Ordering::SeqCst) + 16;
    while !room() {
        std::thread::yield_now();
    }
    let (version, slot) = (index + 1, index as u32 % 2);
    submit(client, index, &Entry { version, slot, ranges: u32::MAX - 1, map: 1, ..HONEST });
}

#[test]
fn the_hand_over_memory_keeps_its_size() {
    let mut stage = Stage::new();
    let client = stage.attach("sealed");
    let bytes = bytes_for(&client.opened.layout);
    for size in [0, 1, 4096, bytes - 1, bytes + 1, 1 << 40] {
        assert!(client.handover.set_len(size).is_err(), "{size}");
    }
    stage.goes_on();
    stage.ends_well();
}

/// A service's good versions come first, then its file is cut off while the server has every reason
/// to read it.
#[test]
fn a_region_cut_off_by_its_client_does_not_end_the_server() {
    for size in [0, 1, 4096, 8192] {
        let mut stage = Stage::new();
        let client: Client = stage.ring.client(0);
        let mut before = client.open("cut", Options::capacity(CAPACITY)).unwrap();
        before.save(&[7; CAPACITY as usize], Durability::Mirrored).unwrap();
        drop(before);
        stage.ring.wait(0, "its end", |s| !owned(s, "cut").unwrap().attached);
        let attached = stage.attach("cut");
        attached.region.set_len(size).unwrap();
        // Mirrored, listed, verified, fetched: each reads the region.
        submit(&attached, 0, &Entry { version: 2, ranges: u32::MAX, ..HONEST });
        stage.goes_on();
        for node in 0..3 {
            let _ = stage.ring.run(node, &["verify", "cut"]);
            let _ = stage.ring.run(node, &["get", "cut", "-o", "/dev/null"]);
            let _ = stage.ring.run(node, &["status"]);
        }
        stage.goes_on();
        let Attached { raw, memory, region, .. } = attached;
        drop((raw, memory, region));
        stage.goes_on();
        // Whatever came of it, the name can be used again.
        poll("the name to be free", || {
            let done = stage.ring.run(0, &["rm", "cut"]);
            match done.status.code() {
                Some(0 | 3) => Ok(()),
                _ => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
            }
        });
        let mut fresh = poll("a fresh one", || {
            client.open("cut", Options::capacity(CAPACITY)).map_err(|e| e.to_string())
        });
        fresh.save(b"again", Durability::Mirrored).unwrap();
        stage.ends_well();
    }
}

#[test]
fn a_region_cut_off_comes_back_from_its_mirror() {
    let mut stage = Stage::new();
    let client: Client = stage.ring.client(0);
    let mut before = client.open("cut", Options::capacity(CAPACITY)).unwrap();
    before.save(&[7; CAPACITY as usize], Durability::Mirrored).unwrap();
    drop(before);
    stage.ring.protected();
    stage.ring.wait(0, "its end", |s| !owned(s, "cut").unwrap().attached);
    let attached = stage.attach("cut");
    attached.region.set_len(0).unwrap();
    let Attached { raw, memory, region, .. } = attached;
    drop((raw, memory, region));
    let restored = poll("the checkpoint's return", || {
        client.open("cut", Options::capacity(CAPACITY)).map_err(|e| {
            let kind = e.kind();
            assert!(
                matches!(kind, Some(FailureKind::Corrupt | FailureKind::OwnedElsewhere)),
                "{e:?}"
            );
            e.to_string()
        })
    });
    assert_eq!(restored.latest().unwrap().unwrap().bytes(), [7; CAPACITY as usize]);
    stage.goes_on();
    stage.ends_well();
}

/// Without a mirror there is nothing to come back; it is said, and nobody else is touched.
#[test]
fn alone_a_region_cut_off_is_called_damaged() {
    let mut ring = Ring::start(1);
    let client = ring.client(0);
    let mut good = client.open("good", Options::capacity(100)).unwrap();
    good.save(b"good", Durability::Local).unwrap();
    let attached = Raw::connect(&ring.node(0).socket()).attach("cut", CAPACITY);
    attached.region.set_len(0).unwrap();
    let _ = ring.run(0, &["verify", "cut"]);
    violated(&attached);
    let line = ring.refused(0, &["get", "cut"], 7);
    assert!(line.contains("cut"), "{line}");
    ring.node_mut(0).check().unwrap();
    assert_eq!(good.save(b"better", Durability::Local).unwrap(), 2);
    assert_eq!(ring.ok(0, &["get", "good"]), b"better");
    ring.node_mut(0).kill_9();
    ring.restart(0);
    assert_eq!(ring.ok(0, &["get", "good"]), b"better", "also after a restart");
}
