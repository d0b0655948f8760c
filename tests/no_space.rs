//! Memory that is full, of every kind that there is: said in words, with exit status 6; nothing is
//! left behind, nobody else notices, and no signal ends anybody.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    },
};

use common::{
    get, members, name, owned,
    servers::{Mounts, Server},
};
use ringkeep::{
    Client, Durability, Options,
    protocol::{FailureKind, RingState},
};

const MIB: u64 = 1 << 20;

/// False, with a word, when this user cannot mount.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: nothing can be mounted and no group made; that part is not tried");
    }
    root
}

/// A server whose `--dir` is a small tmpfs.
fn on_small_tmpfs(name: &str, mib: u64, args: &[&str]) -> (Server, Mounts) {
    let mut server = Server::new(name, args);
    fs::create_dir(&server.dir).unwrap();
    let dir = server.dir.display();
    let mounts = Mounts::make(&format!("mount -t tmpfs -o size={mib}m,mode=700 none {dir}"));
    let mounts = mounts.unwrap();
    server.inside = mounts.inside();
    (server, mounts)
}

fn files(dir: PathBuf) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| n.contains(".region") || n.contains("meta")).collect();
    names.sort();
    names
}

fn file_of(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![5; bytes as usize]).unwrap();
    file
}

fn keep(client: &Client, name: &str, bytes: u64) -> ringkeep::Checkpoint {
    let mut checkpoint = client.open(name, Options::capacity(bytes)).unwrap();
    checkpoint.save(&vec![9; bytes as usize], Durability::Local).unwrap();
    checkpoint
}

#[test]
fn a_full_tmpfs_refuses_by_name_and_keeps_what_is_there() {
    if !root() {
        return;
    }
    let (mut server, mounts) = on_small_tmpfs("a", 8, &["--listen", "127.0.0.1:0"]);
    server.start();
    let mut small = keep(&server.client(), "small", MIB);
    let before = files(mounts.path(&server.dir));
    let used = server.status().unwrap().memory_bytes;
    let large = file_of(4 * MIB);
    for _ in 0..3 {
        let line = server.refused(&["put", "large", large.path().to_str().unwrap()], 6);
        assert!(line.contains("no space") && line.contains(server.dir.to_str().unwrap()), "{line}");
        assert!(line.contains("remove") && line.contains("ringkeep doctor"), "{line}");
    }
    assert_eq!(files(mounts.path(&server.dir)), before, "nothing is left behind");
    assert_eq!(server.status().unwrap().memory_bytes, used);
    // Many small ones, until none fits any more.
    let client = server.client();
    let more: Vec<_> = (0..1_000)
        .map_while(|i| client.open(&format!("more-{i}"), Options::capacity(100)).ok())
        .collect();
    assert!(!more.is_empty() && more.len() < 1_000);
    let last = client.open("last", Options::capacity(100)).map(drop).unwrap_err();
    assert_eq!(last.kind(), Some(FailureKind::NoSpace), "{last}");
    // Regions leave room for what the server has to note: an eviction, what it takes up.
    let note = mounts.path(&server.dir).join("note");
    fs::write(&note, vec![0; MIB as usize / 2]).unwrap();
    fs::remove_file(note).unwrap();
    assert_eq!(small.save(&vec![8; MIB as usize], Durability::Local).unwrap(), 2);
    assert_eq!(get(&client, "small"), (2, vec![8; MIB as usize]));
    // Room that is made is room that is had.
    drop(more);
    server.ok(&["rm", "more-0"]);
    server.ok(&["verify", "small"]);
}

#[test]
fn the_memory_flag_is_a_limit_of_its_own() {
    let mut server = Server::new("a", &["--listen", "127.0.0.1:0", "--memory", "16m"]);
    server.start();
    let mut small = keep(&server.client(), "small", MIB);
    let before = files(server.dir.clone());
    let large = file_of(10 * MIB);
    let line = server.refused(&["put", "large", large.path().to_str().unwrap()], 6);
    assert!(line.contains("no space") && line.contains("--memory"), "{line}");
    assert_eq!(files(server.dir.clone()), before);
    assert_eq!(small.save(b"goes on", Durability::Local).unwrap(), 2);
    // Growing beyond it is refused too, and what was there stays.
    drop(small);
    common::poll("the refusal", || {
        match server.client().open("small", Options::capacity(10 * MIB)).map(drop) {
            Err(e) if e.kind() == Some(ringkeep::protocol::FailureKind::NoSpace) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(get(&server.client(), "small"), (2, b"goes on".to_vec()));
    server.ok(&["rm", "small"]);
    let put = ["put", "next", large.path().to_str().unwrap(), "--durability", "local"];
    server.refused(&put, 6);
    let fits = file_of(3 * MIB);
    server.ok(&["put", "next", fits.path().to_str().unwrap(), "--durability", "local"]);
}

#[test]
fn a_mirror_that_finds_no_room_degrades_and_recovers_when_room_is_made() {
    if !root() {
        return;
    }
    let (mut tight, _mounts) = on_small_tmpfs("b", 8, &["--listen", "127.0.0.1:0"]);
    tight.start();
    let filler = keep(&tight.client(), "filler", 2 * MIB);
    drop(filler);
    let mut roomy = Server::new("a", &["--listen", "127.0.0.1:0", "--join", &tight.address()]);
    roomy.start();
    roomy.wait("a ring of two", |s| members(s, 2));
    let first = file_of(100);
    let put = |name, file: &str, durability| {
        let args = ["put", name, file, "--durability", durability, "--timeout", "2s"];
        common::command(&roomy.socket(), &args).output().unwrap().status.code()
    };
    let first = first.path().to_str().unwrap();
    assert_eq!(put("fits", first, "mirrored"), Some(0));
    let large = file_of(3 * MIB);
    let large = large.path().to_str().unwrap();
    assert_eq!(put("large", large, "mirrored"), Some(5), "committed, but here only");
    let status = roomy.wait("degraded", |s| s.state == RingState::Degraded);
    assert_eq!(owned(&status, "large").unwrap().version, 1);
    assert_eq!(put("large", large, "local"), Some(0));
    assert_eq!(put("fits", first, "mirrored"), Some(0), "others have their mirror");
    assert_eq!(get(&roomy.client(), "large").1.len() as u64, 3 * MIB);
    let log = roomy.log();
    assert_eq!(log.matches("no room for a mirror").count(), 1, "{log}");
    tight.ok(&["rm", "filler"]);
    roomy.wait("protected", |s| s.state == RingState::Protected);
    assert_eq!(put("large", large, "mirrored"), Some(0));
    tight.status().unwrap();
}

/// Puts the number of huge pages back.
struct Pool(String);

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl Pool {
    fn set(pages: u64) -> Option<Self> {
        let before = fs::read_to_string(POOL).ok()?;
        let pool = Self(before);
        fs::write(POOL, pages.to_string()).ok()?;
        let now: u64 = fs::read_to_string(POOL).ok()?.trim().parse().ok()?;
        (now >= pages).then_some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(POOL, &self.0);
    }
}

#[test]
fn large_regions_lie_in_huge_pages_until_those_are_used_up() {
    if !root() {
        return;
    }
    // 24 MiB in the pool: one region of 2 × 8 MiB, and not a second one.
    let Some(_pool) = Pool::set(12) else {
        eprintln!("this machine gives no huge pages; not tried");
        return;
    };
    let mut server = Server::new("a", &["--listen", "127.0.0.1:0"]);
    let huge = server.root.join("huge");
    fs::create_dir(&huge).unwrap();
    // Mounts of hugetlbfs that are there already are not this test's.
    let script = format!(
        "grep ' hugetlbfs ' /proc/mounts | cut -d' ' -f2 | while read at; do umount -l $at; done; \
         mount -t hugetlbfs -o pagesize=2M none {}",
        huge.display()
    );
    let mounts = match Mounts::make(&script) {
        Ok(mounts) => mounts,
        Err(why) => return eprintln!("{why}; not tried"),
    };
    server.inside = mounts.inside();
    server.start();
    assert!(server.status().unwrap().hugepages);
    let in_huge = || {
        let dirs = fs::read_dir(mounts.path(&huge)).unwrap();
        dirs.flat_map(|dir| files(dir.unwrap().path())).collect::<Vec<_>>()
    };
    let large = file_of(8 * MIB);
    let large = large.path().to_str().unwrap();
    let local = ["--durability", "local"];
    let put = |name, file| server.ok(&[&["put", name, file][..], &local].concat());
    let said = put("first", large);
    assert!(!said.contains("warning"), "{said}");
    let tiny = file_of(1000);
    put("tiny", tiny.path().to_str().unwrap());
    assert_eq!(in_huge().len(), 1, "small ones never lie there: {:?}", in_huge());
    assert!(in_huge()[0].starts_with("first."));
    let said = put("second", large);
    // Where the system joins ordinary pages nothing is lost by it.
    let told = said.contains("warning") && said.contains("ringkeep doctor");
    assert!(told || ringkeep::region::transparent::is_offered(), "{said}");
    assert_eq!(in_huge().len(), 1);
    server.kill_9();
    server.start();
    for name in ["first", "second"] {
        assert_eq!(get(&server.client(), name), (1, vec![5; 8 * MIB as usize]), "{name}");
    }
    // A client that cuts a file on huge pages off is as harmless as on tmpfs.
    let cut = common::raw::Raw::connect(&server.socket()).attach("first", 8 * MIB);
    cut.region.set_len(0).unwrap();
    let _ = common::command(&server.socket(), &["verify", "first"]).output().unwrap();
    drop(cut);
    assert_eq!(get(&server.client(), "second"), (1, vec![5; 8 * MIB as usize]));
    server.ok(&["rm", "second"]);
    assert_eq!(get(&server.client(), "tiny").1, [5; 1000]);
}

/// A group of version 1 or 2 with a limit of memory, gone with its members.
struct Group(PathBuf);

impl Group {
    fn make(bytes: u64) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringkeep-test-{}-{number}", std::process::id());
        for (base, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let group = Self(PathBuf::from(base).join(&name));
            if fs::create_dir(&group.0).is_ok()
                && fs::write(group.0.join(limit), bytes.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is charged to it goes with the files; the kernel needs a moment after the last exit.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// A server in a group of its own with so many MiB, which goes after it.
fn in_group(mib: u64) -> Option<(Group, Server)> {
    let Some(group) = Group::make(mib * MIB) else {
        eprintln!("no control group for memory can be made here; not tried");
        return None;
    };
    let memory = format!("{}m", mib - 1);
    let mut server = Server::new("a", &["--listen", "127.0.0.1:0", "--memory", &memory]);
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
    server.inside = ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec();
    server.start();
    Some((group, server))
}

#[test]
fn the_containers_limit_refuses_instead_of_killing() {
    if !root() {
        return;
    }
    let Some((_group, mut server)) = in_group(128) else { return };
    let mut small = keep(&server.client(), "small", MIB);
    let before = files(server.dir.clone());
    let failure = server.client().open("large", Options::capacity(48 * MIB)).map(drop);
    let failure = failure.unwrap_err();
    assert_eq!(failure.kind(), Some(ringkeep::protocol::FailureKind::NoSpace), "{failure}");
    assert!(failure.to_string().contains("container"), "{failure}");
    // As many as fit, and no more: the group is never filled to the brim.
    let client = server.client();
    let more: Vec<_> = (0..100)
        .map_while(|i| client.open(&format!("more-{i}"), Options::capacity(8 * MIB)).ok())
        .collect();
    assert!(!more.is_empty() && more.len() < 8, "{}", more.len());
    assert_eq!(small.save(b"goes on", Durability::Local).unwrap(), 2);
    assert_eq!(get(&client, "small"), (2, b"goes on".to_vec()));
    assert!(server.child.as_mut().unwrap().try_wait().unwrap().is_none(), "it lives");
    assert!(before.iter().all(|f| server.dir.join(f).exists()));
}

#[test]
fn copies_that_fit_one_by_one_and_not_together_are_not_made_together() {
    if !root() {
        return;
    }
    // Two slots of 16 MiB, and what is left to others: room for two more copies or three.
    let Some((_group, mut server)) = in_group(128) else { return };
    drop(keep(&server.client(), "large", 16 * MIB));
    let (client, large, begin) = (server.client(), name("large"), Barrier::new(8));
    let copies: Vec<_> = std::thread::scope(|scope| {
        let get = || {
            begin.wait();
            client.get(&large, None)
        };
        let gets: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
        gets.into_iter().map(|get| get.join().unwrap()).collect()
    });
    assert!(server.child.as_mut().unwrap().try_wait().unwrap().is_none(), "it lives");
    let refused: Vec<_> = copies.iter().filter_map(|copy| copy.as_ref().err()).collect();
    for failure in &refused {
        assert!(failure.to_string().contains("no space"), "{failure}");
    }
    assert!((5..8).contains(&refused.len()), "{refused:?}");
    // Nothing stays promised.
    drop(copies);
    assert_eq!(get(&client, "large").1.len() as u64, 16 * MIB);
}
