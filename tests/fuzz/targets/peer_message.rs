//! Control messages of a peer that has the cluster key.
//!
//! What decodes encodes to bytes that decode to the same. Its names are names, its layouts lie below
//! the limits, whichever bytes they came from.
#![no_main]

use std::{net::SocketAddr, sync::Arc};

use libfuzzer_sys::fuzz_target;
use ringkeep::{
    Name,
    commit::Record,
    membership::{Body, Change, Message, Peer, View},
    protocol::{Failure, FailureKind, Role},
    region::{Identity, layout::Layout},
    server::{
        rpc::{Copy, FencedCopy, Grant, NoLink, PeerMessage, Prepare, Reply, Request, Standing},
        store::Owner,
    },
    transport::{Kind, RemoteKey},
};
use ringkeep_fuzz::{member, seeds};

fuzz_target!(init: seeds(messages), |bytes: &[u8]| {
    let Ok(message) = postcard::from_bytes::<PeerMessage>(bytes) else { return };
    check(&message);
    let encoded = postcard::to_stdvec(&message).expect("what was decoded can be encoded");
    let again: PeerMessage = postcard::from_bytes(&encoded).expect("and decoded again");
    assert_eq!(format!("{message:?}"), format!("{again:?}"));
    assert_eq!(postcard::to_stdvec(&again).expect("as before"), encoded);
});

fn check(message: &PeerMessage) {
    match message {
        PeerMessage::Membership { from, message } => {
            is_name(&from.id.name);
            if let Body::Install(view) = &message.body {
                view.lives_are_names();
            }
        }
        PeerMessage::Request { body: Request::Prepare(prepare), .. } => {
            is_name(&prepare.name);
            is_layout(&prepare.layout);
        }
        PeerMessage::Reply { body: Ok(Reply::Granted(grant)), .. } => is_layout(&grant.layout),
        PeerMessage::Reply { body: Ok(Reply::Fenced(copies)), .. } => {
            copies.iter().for_each(|copy| is_name(&copy.name));
        }
        _ => {}
    }
}

trait Names {
    fn lives_are_names(&self);
}

impl Names for View {
    fn lives_are_names(&self) {
        self.everybody().for_each(|m| is_name(&m.id.name));
        self.departed.iter().for_each(|id| is_name(&id.name));
    }
}

fn is_name(name: &Name) {
    assert_eq!(Name::new(name.as_str()).as_ref(), Ok(name));
}

fn is_layout(layout: &Layout) {
    assert_eq!(Layout::new(layout.capacity(), layout.slots() as u32), Ok(*layout));
}

fn messages() -> Vec<Vec<u8>> {
    let name = || Name::new("checkpoint").expect("a name");
    let id = |which| member(which, 1).id;
    let identity = Identity { checkpoint: 7, generation: 1 };
    let layout = Layout::new(100_000, 2).expect("a layout");
    let owner = Owner { uid: 1000, gid: 1000, mode: 0o600 };
    let key = RemoteKey { key: 9, base: 0, len: 4096 };
    let record = Record { checkpoint: 7, epoch: 1, generation: 1, sequence: 3, len: 9, root: 5 };
    let copy =
        Copy { standing: Standing::Holds(id(1)), identity, epoch: 1, version: 3, synced: Some(2) };
    let fenced = FencedCopy {
        name: name(),
        mark: Some(2),
        version: 3,
        epoch: 1,
        taken_up: false,
        given_to: Some(id(2)),
    };
    let requests = [
        Request::Link { kind: Kind::Tcp, offer: vec![1; 16] },
        Request::Prepare(Prepare { name: name(), identity, layout, epoch: 1, view: 2, owner }),
        Request::Confirm { name: name(), identity, epoch: 1, holders: vec![id(1)], view: 2 },
        Request::Locate { name: name() },
        Request::Fence { owner: id(1), holder: id(2), view: 3 },
        Request::Adopt { owner: id(1), name: name(), view: 3 },
        Request::Inherit { name: name(), epoch: 1, version: 3 },
        Request::TakeOver { name: name(), force: true, caller: owner },
        Request::Given { name: name(), checkpoint: 7, epoch: 1, to: id(2) },
        Request::Fetch { name: name(), version: Some(3), caller: owner },
        Request::Fetched { key },
        Request::Remove { name: name(), caller: owner },
        Request::Drop { name: name(), checkpoint: 7, caller: owner },
        Request::Verify { name: name() },
        Request::List,
    ];
    let replies = [
        Ok(Reply::Done),
        Ok(Reply::Link { answer: vec![2; 40] }),
        Ok(Reply::NoLink(NoLink::NoTransport { usable: vec![Kind::Rdma, Kind::Tcp] })),
        Ok(Reply::Prepared { key, region: 4, versions: vec![3, 2], mark_to: 1 }),
        Ok(Reply::Located(vec![
            copy.clone(),
            Copy { standing: Standing::Owns(Role::Orphan), ..copy },
        ])),
        Ok(Reply::Adopted { protected: true }),
        Ok(Reply::Fenced(vec![fenced.clone()])),
        Ok(Reply::Kept { copies: vec![fenced], complete: true }),
        Ok(Reply::Granted(Grant {
            key,
            layout,
            identity,
            epoch: 1,
            version: Some((1, record)),
            owner,
        })),
        Ok(Reply::Verified(None)),
        Ok(Reply::Listing(Vec::new())),
        Err(Failure::new(FailureKind::Fenced, "why")),
    ];
    let view = View::first(1, member(0, 1));
    let change = Change { joined: vec![member(1, 1), member(2, 1)], ..Change::default() };
    let view = Arc::new(view.next(&change).expect("a ring of three"));
    let bodies =
        [Body::Install(view), Body::Decided(Arc::new(change)), Body::Heartbeat(Default::default())];
    let address: SocketAddr = ([127, 0, 0, 1], 7001).into();
    let from = Peer { id: id(1), address };
    let memberships = bodies.into_iter().map(|body| {
        let message = Message { cluster: 1, view: 2, to: Some(id(0)), body };
        PeerMessage::Membership { from: from.clone(), message }
    });
    let requests = requests.into_iter().map(|body| PeerMessage::Request { id: 1, body });
    let replies = replies.into_iter().map(|body| PeerMessage::Reply { id: 1, body });
    let all = memberships.chain(requests).chain(replies);
    all.map(|message| postcard::to_stdvec(&message).expect("a message")).collect()
}
