//! How far a copy is can be told while it is being made: its holder takes nothing for a while.
#![cfg(feature = "server")]

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use ringkeep::{
    membership::{Member, NodeId, View},
    name::Name,
    region::{Identity, Region, layout::Layout, mapping::Mapping},
    server::data_plane::{Command, Committed, DataPlane, Notice, Progress, Waiting},
    transport::{Access, Kind, Purpose, Terms, Transport, tcp::TcpTransport},
};

/// More than the sockets of both ends hold.
const LEN: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(30);

fn member(name: &str, address: SocketAddr) -> Member {
    let id = NodeId { name: Name::new(name).unwrap(), incarnation: 1 };
    Member { id, address, witness: false, zone: None, mirrors: 1 }
}

fn region(layout: Layout) -> Region {
    let file = tempfile::tempfile().unwrap();
    let bytes = layout.region_bytes().next_multiple_of(4096);
    file.set_len(bytes).unwrap();
    let mapping = Arc::new(Mapping::new(&file, bytes as usize).unwrap());
    Region::new(mapping, layout, Identity { checkpoint: 7, generation: 1 }).unwrap()
}

async fn copies(data_plane: &DataPlane) -> Vec<Progress> {
    let reports = data_plane.ask(|reply| Command::Report { reply }).await.unwrap();
    reports.into_iter().flat_map(|report| report.under_way).collect()
}

#[tokio::test]
async fn a_copy_that_is_held_up_says_how_far_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (owner, holder) = (member("a", address), member("b", address));
    let (a, b) = (owner.id.clone(), holder.id.clone());
    let mut view = View::first(1, holder.clone());
    view.ring = vec![holder, owner];
    let near = TcpTransport::new(Default::default()).unwrap();
    let (near, mut notices) = DataPlane::start(a.clone(), near, Waiting::default()).unwrap();
    near.send(Command::View { me: a, view: Some(Arc::new(view)) }).unwrap();

    // The holder has no thread: it moves when this test lets it.
    let mut far = TcpTransport::new(Default::default()).unwrap();
    let (peer, kind) = (b.clone(), Kind::Tcp);
    let offer = near.ask(|reply| Command::Offer { peer, kind, reply }).await.unwrap().unwrap();
    let (conn, answer) = far.accept(&offer).unwrap();
    let peer = b.clone();
    let finish = |reply| Command::Finish { peer, answer, address, reply };
    near.ask(finish).await.unwrap().unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    socket.read_exact(&mut [0; 4]).unwrap();
    socket.set_nonblocking(true).unwrap();
    assert!(far.adopter().adopt(socket));
    let layout = Layout::new(LEN, 2).unwrap();
    let (mine, mirror) = (region(layout), region(layout));
    let memory = far.register(mirror.mapping().clone(), Purpose::Grant).unwrap();
    let terms = Terms { epoch: 1, view_min: 0 };
    let key = far.grant(conn, memory, Access::Write, terms).unwrap();

    // SAFETY: nobody else has this region.
    unsafe { mine.rehash(0, ringkeep::commit::Extent { start: 0, end: LEN }, LEN) };
    // SAFETY: as above.
    unsafe { mine.publish(0, 1, 1, LEN) };
    let (name, newest) = (Name::new("state").unwrap(), Committed { version: 1, slot: 0, len: LEN });
    let (owned, region) = (name.clone(), mine.clone());
    let own = |reply| Command::Own {
        name: owned,
        region,
        epoch: 1,
        copies: 1,
        newest: Some(newest),
        reply,
    };
    near.ask(own).await.unwrap().unwrap();
    assert!(matches!(notices.recv().await, Some(Notice::NeedMirror { .. })));
    assert_eq!(copies(&near).await, [], "nothing is on its way yet");
    let versions = vec![0, 0];
    near.send(Command::Prepared {
        name,
        epoch: 1,
        holder: b.clone(),
        key,
        region: 1,
        versions,
        mark_to: 0,
    })
    .unwrap();

    let deadline = Instant::now() + LIMIT;
    let held_up = loop {
        assert!(Instant::now() < deadline, "nothing was sent");
        match copies(&near).await.pop() {
            Some(copy) if copy.sent_bytes > 0 => break copy,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(held_up.holder, b);
    assert!(held_up.sent_bytes < held_up.bytes && held_up.bytes >= LEN, "{held_up:?}");

    let mut events = Vec::new();
    let synced = loop {
        assert!(Instant::now() < deadline, "it never came: {:?}", copies(&near).await);
        far.poll(&mut events);
        if let Ok(notice) = notices.try_recv() {
            break notice;
        }
    };
    assert!(matches!(synced, Notice::Synced { .. }), "{synced:?}");
    assert_eq!(copies(&near).await, [], "a complete copy is none that is being made");
    assert_eq!(mirror.newest_valid().unwrap().record.sequence, 1);
    near.stop();
}
