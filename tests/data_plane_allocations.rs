//! A mirrored commit allocates nothing once the data plane has warmed up: watched over the whole
//! process, in which an owner's and a holder's data plane and a client commit over TCP, beside a
//! transport that is preferred and not used.
#![cfg(feature = "server")]

use std::{
    alloc::{GlobalAlloc, Layout as AllocLayout, System},
    backtrace::Backtrace,
    io::Read,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ringkeep::{
    commit::{Extent, Stale},
    handover::{self, Bell, Consumer, Producer},
    membership::{Member, NodeId, View},
    name::Name,
    region::{Identity, Region, layout::Layout, mapping::Mapping},
    server::data_plane::{Attachment, Command, DataPlane, Notice, Waiting},
    transport::{
        Access, Kind, Purpose, Terms,
        fake::FakeNet,
        many::Many,
        tcp::{Adopter, TcpTransport},
    },
};

struct Watched;

/// Set while nothing may be allocated; the first allocation says where it is and ends that.
static FORBIDDEN: AtomicBool = AtomicBool::new(false);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: AllocLayout) -> *mut u8 {
        if FORBIDDEN.swap(false, Ordering::Relaxed) {
            eprintln!("allocated here: {}", Backtrace::force_capture());
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: AllocLayout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn member(name: &str, address: SocketAddr) -> Member {
    let id = NodeId { name: Name::new(name).unwrap(), incarnation: 1 };
    Member { id, address, witness: false, zone: None, mirrors: 1 }
}

fn region(identity: Identity, layout: Layout) -> Region {
    let file = tempfile::tempfile().unwrap();
    let bytes = layout.region_bytes().next_multiple_of(4096);
    file.set_len(bytes).unwrap();
    let mapping = Arc::new(Mapping::new(&file, bytes as usize).unwrap());
    Region::new(mapping, layout, identity).unwrap()
}

fn beside_another(tcp: TcpTransport) -> Many {
    Many::new(vec![Box::new(FakeNet::new(1).endpoint("idle")), Box::new(tcp)])
}

/// Accepts what the owner's transport dials, as the control plane does.
fn adopt_one(listener: TcpListener, adopter: Adopter) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; 4]).unwrap();
        socket.set_nonblocking(true).unwrap();
        assert!(adopter.adopt(socket));
    })
}

#[tokio::test]
async fn a_mirrored_commit_allocates_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (owner, holder) = (member("a", address), member("b", address));
    let (a, b) = (owner.id.clone(), holder.id.clone());
    let mut view = View::first(1, holder.clone());
    view.ring = vec![holder, owner];

    let far = TcpTransport::new(Default::default()).unwrap();
    let accepting = adopt_one(listener, far.adopter());
    let waiting = Waiting::default();
    let (far, _far_notices) = DataPlane::start(b.clone(), beside_another(far), waiting).unwrap();
    let near = TcpTransport::new(Default::default()).unwrap();
    let (near, mut notices) = DataPlane::start(a.clone(), beside_another(near), waiting).unwrap();
    near.send(Command::View { me: a.clone(), view: Some(Arc::new(view)) }).unwrap();

    // The connection, and the mirror that it leads to.
    let (peer, kind) = (b.clone(), Kind::Tcp);
    let offer = near.ask(|reply| Command::Offer { peer, kind, reply }).await.unwrap().unwrap();
    let peer = a.clone();
    let accept = |reply| Command::Accept { peer, kind, offer, reply };
    let answer = far.ask(accept).await.unwrap().unwrap();
    let peer = b.clone();
    let finish = |reply| Command::Finish { peer, answer, address, reply };
    near.ask(finish).await.unwrap().unwrap();
    accepting.join().unwrap();
    let identity = Identity { checkpoint: 7, generation: 1 };
    let layout = Layout::new(64 << 10, 2).unwrap();
    let (mine, mirror) = (region(identity, layout), region(identity, layout));
    let mapping = mirror.mapping().clone();
    let purpose = Purpose::Grant;
    let memory =
        far.ask(|reply| Command::Register { mapping, purpose, reply }).await.unwrap().unwrap();
    let (peer, terms) = (a, Terms { epoch: 1, view_min: 0 });
    let access = Access::Write;
    let grant = |reply| Command::Grant { peer, memory, access, terms, reply };
    let key = far.ask(grant).await.unwrap().unwrap();

    // The checkpoint and its client.
    let name = Name::new("state").unwrap();
    let (owned, region) = (name.clone(), mine.clone());
    let own =
        |reply| Command::Own { name: owned, region, epoch: 1, copies: 1, newest: None, reply };
    near.ask(own).await.unwrap().unwrap();
    assert!(matches!(notices.recv().await, Some(Notice::NeedMirror { .. })));
    let versions = vec![0, 0];
    near.send(Command::Prepared {
        name: name.clone(),
        epoch: 1,
        holder: b,
        key,
        region: 1,
        versions,
        mark_to: 0,
    })
    .unwrap();
    assert!(matches!(notices.recv().await, Some(Notice::Synced { .. })));
    let layout = *mine.layout();
    let file = handover::create(&layout).unwrap();
    let consumer = Consumer::new(file.try_clone().unwrap(), layout, 0).unwrap();
    let (bell, clients) = Bell::pair().unwrap();
    let attachment = Attachment { consumer, bell };
    near.send(Command::Attach { name, attachment }).unwrap();
    let mut producer = Producer::new(file, layout).unwrap();

    let mut changed = Stale::nothing(layout.capacity());
    let mut commit = |version: u64| {
        // What follows a pause goes another way than what follows the commit before it: the data
        // plane sleeps until the bell is rung.
        while version.is_multiple_of(97) && !producer.server_asleep() {
            std::thread::yield_now();
        }
        let slot = (version % 2) as usize;
        let extent = Extent { start: (version % 15) * 4096, end: (version % 15) * 4096 + 100 };
        while !producer.begin_writing(slot) {
            std::thread::yield_now();
        }
        mine.invalidate(slot);
        mine.write_payload(slot, extent.start, &[version as u8; 100]).unwrap();
        // SAFETY: the slot is claimed.
        unsafe { mine.rehash(slot, extent, 64 << 10) };
        // SAFETY: the slot is claimed.
        unsafe { mine.publish(slot, 1, version, 64 << 10) };
        producer.end_writing();
        changed.clear();
        changed.insert(extent.start, extent.end);
        assert!(producer.submit(version, slot, 64 << 10, &changed, true));
        if producer.server_asleep() {
            clients.ring();
        }
        while producer.mirrored() < version {
            std::thread::yield_now();
        }
    };
    (1..=90).for_each(&mut commit);
    FORBIDDEN.store(true, Ordering::Relaxed);
    (91..=2500).for_each(&mut commit);
    assert!(FORBIDDEN.swap(false, Ordering::Relaxed), "a commit allocated; where is told above");
    assert_eq!(mirror.newest_by_record().unwrap().record.sequence, 2500);
    near.stop();
    far.stop();
}
