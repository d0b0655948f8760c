//! What only one-sided verbs have. Needs an RDMA device: `soft-roce/vm.sh` has one.
#![cfg(feature = "rdma")]

#[path = "transport_harness/mod.rs"]
mod harness;

use std::{fs::File, net::SocketAddr, sync::Arc};

use harness::{Cluster, LEN, STAMP, TERMS, VerbsNetwork, mapping, seg};
use ringkeep::{
    commit::{Stale, segments},
    region::{layout::Layout, mapping::Mapping},
    transport::{
        Access, ConnId, Event, Purpose, Segment, Transport, Work, WorkError, WorkId,
        verbs::{Counts, VerbsTransport},
    },
};
use rustix::fs::{MemfdFlags, memfd_create};

/// Runs a test where there is a device. Where one must be there, its absence is a failure.
fn with_device(test: impl FnOnce()) {
    match VerbsNetwork::is_there() {
        true => test(),
        false => eprintln!("not run: no RDMA device; soft-roce/vm.sh has one"),
    }
}

fn open() -> VerbsTransport {
    VerbsTransport::open(None, [127, 0, 0, 1].into()).unwrap()
}

/// An owner and a holder in one thread, with their types kept.
struct Pair {
    owner: VerbsTransport,
    holder: VerbsTransport,
    events: Vec<Event>,
}

impl Pair {
    fn new() -> Self {
        Self { owner: open(), holder: open(), events: Vec::new() }
    }

    /// Waits for one completion. The holder gets the processor to connect and for nothing else.
    fn complete(&mut self, id: WorkId, conn: ConnId) {
        let began = std::time::Instant::now();
        while self.events.is_empty() {
            assert!(began.elapsed().as_secs() < 60, "{id:?} never completed");
            self.owner.poll(&mut self.events);
            if self.owner.counts().completions == 0 {
                self.holder.poll(&mut Vec::new());
            }
        }
        let done = std::mem::take(&mut self.events);
        assert_eq!(done, [Event::Completed { conn, work: id, result: Ok(()) }]);
    }
}

fn counted(before: Counts, after: Counts) -> Counts {
    Counts {
        requests: after.requests - before.requests,
        pieces: after.pieces - before.pieces,
        doorbells: after.doorbells - before.doorbells,
        completions: after.completions - before.completions,
        bytes: after.bytes - before.bytes,
    }
}

/// What a whole commit costs the device, however slow the machine; and the holder's processor has
/// no part in it: its transport is not polled, neither for commits nor while they are read back.
#[test]
fn a_commit_is_one_doorbell_and_one_completion() {
    with_device(|| {
        let mut pair = Pair::new();
        let memory = pair.owner.register(mapping(LEN), Purpose::Post).unwrap();
        let mirror = pair.holder.register(mapping(LEN), Purpose::Grant).unwrap();
        let (conn, offer) = pair.owner.offer().unwrap();
        let (far, answer) = pair.holder.accept(&offer).unwrap();
        pair.owner.finish(conn, &answer, SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        let key = pair.holder.grant(far, mirror, Access::Write, TERMS).unwrap();
        for (capacity, pieces) in [(64, 1), (4096, 1), (1 << 20, 3), (4 << 20, 3)] {
            let layout = Layout::new(capacity, 2).unwrap();
            let mut out = Vec::new();
            segments(&layout, 0, 1, capacity, &Stale::everything(capacity), &mut out);
            let bytes = out.iter().map(|s| s.len).sum();
            for round in 0..3 {
                let before = pair.owner.counts();
                let id = WorkId(round);
                let work = Work { id, conn, memory, key, stamp: STAMP, segments: &out };
                pair.owner.post_write(work).unwrap();
                pair.complete(id, conn);
                let cost = counted(before, pair.owner.counts());
                let wanted = Counts { requests: 1, pieces, doorbells: 1, completions: 1, bytes };
                assert_eq!(cost, wanted, "a commit of {capacity} bytes");
            }
        }
        let all = [Segment { local: 0, remote: 0, len: LEN as u64 }];
        let work = Work { id: WorkId(9), conn, memory, key, stamp: STAMP, segments: &all };
        pair.owner.post_read(work).unwrap();
        pair.complete(WorkId(9), conn);
    });
}

/// The owner of a process that dies learns of it without posting anything.
#[test]
fn the_end_of_the_holder_is_told_to_an_owner_that_posts_nothing() {
    with_device(|| {
        let mut ring = Cluster::<VerbsNetwork>::new(2);
        let link = ring.link(0, 1, Access::Write);
        ring.write(&link, 1, &[seg(0, 0, 64)]).unwrap();
        ring.complete(0, 1);
        drop(ring.nodes.pop());
        ring.closed(0, link.near);
    });
}

#[test]
fn a_stranger_without_the_token_is_refused_and_nobody_else_suffers() {
    with_device(|| {
        let mut ring = Cluster::<VerbsNetwork>::new(2);
        let good = ring.link(0, 1, Access::Write);
        let (near, offer) = ring.nodes[0].offer().unwrap();
        let (_, mut answer) = ring.nodes[1].accept(&offer).unwrap();
        let token = answer.len() - 34; // behind it: two bytes of port, sixteen of address
        answer[token] ^= 1;
        ring.nodes[0].finish(near, &answer, ring.addresses[1]).unwrap();
        ring.closed(0, near);
        ring.write(&good, 7, &[seg(0, 0, 64)]).unwrap();
        assert_eq!(ring.complete(0, 1), [(good.near, 7, Ok(()))]);
    });
}

/// Every region is fenced by itself: what an owner may write elsewhere over the same connection
/// arrives before and after, as long as it does not touch what was taken from it.
#[test]
fn a_fence_takes_one_memory_and_leaves_the_others() {
    with_device(|| {
        let mut ring = Cluster::<VerbsNetwork>::new(2);
        let link = ring.link(0, 1, Access::Write);
        let other = mapping(LEN);
        let memory = ring.nodes[1].register(other.clone(), Purpose::Grant).unwrap();
        let key = ring.nodes[1].grant(link.far, memory, Access::Write, TERMS).unwrap();
        let source = ring.fill(0, 1);
        let taken = ring.fill(1, 2);
        ring.nodes[1].revoke(link.key);
        let kept = harness::Link { key, ..link };
        ring.write(&kept, 1, &[seg(0, 0, 4096)]).unwrap();
        assert_eq!(ring.complete(0, 1), [(link.near, 1, Ok(()))]);
        ring.write(&link, 2, &[seg(0, 0, 4096)]).unwrap();
        assert_eq!(ring.complete(0, 1), [(link.near, 2, Err(WorkError::Fenced))]);
        assert!(ring.bytes(1) == taken);
        let mut arrived = vec![0; 4096];
        other.read_at(0, &mut arrived).unwrap();
        assert!(arrived == source[..4096]);
    });
}

/// More than one queue pair holds: what does not fit waits its turn.
#[test]
fn more_pieces_than_a_queue_pair_holds_arrive_in_order() {
    with_device(|| {
        let mut ring = Cluster::<VerbsNetwork>::new(2);
        let link = ring.link(0, 1, Access::Write);
        let (source, mut expected) = (ring.fill(0, 1), ring.fill(1, 2));
        for request in 0..20u64 {
            let at = |i: u64| (request * 100 + i) * 16;
            let all: Vec<_> = (0..256).map(|i| seg(at(i), at(i), 24)).collect();
            ring.write(&link, request, &all).unwrap();
        }
        let (from, to) = (0, (19 * 100 + 255) * 16 + 24);
        expected[from..to].copy_from_slice(&source[from..to]);
        assert!(ring.complete(0, 20).iter().all(|done| done.2.is_ok()));
        assert!(ring.bytes(1) == expected);
    });
}

/// What cannot be pinned is refused when it is registered, not when it is posted.
#[test]
fn memory_with_nothing_behind_it_is_refused() {
    with_device(|| {
        let mut transport = open();
        let page = rustix::param::page_size();
        let file = File::from(memfd_create("cut", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(page as u64).unwrap();
        let cut = Arc::new(Mapping::new(&file, page).unwrap());
        file.set_len(0).unwrap();
        assert!(transport.register(cut.clone(), Purpose::Post).is_err());
        file.set_len(page as u64).unwrap();
        let whole = transport.register(cut, Purpose::Post).unwrap();
        transport.deregister(whole).unwrap();
    });
}
