//! What every transport promises, as `src/transport/mod.rs` says it: one suite, run over each.

#[path = "transport_harness/mod.rs"]
mod harness;
#[path = "transport_harness/many.rs"]
mod many;

#[cfg(feature = "rdma")]
use harness::VerbsNetwork;
use harness::{Cluster, FakeNetwork, LEN, Link, Network, TERMS, TcpNetwork, pattern, seg};
use many::{ManyOverFake, ManyOverTcp};
use proptest::prelude::*;
use ringkeep::transport::{
    Access, ConnectError, Event, MemoryError, PostError, RemoteKey, SEGMENTS_MAX, Segment, Stamp,
    WORK_OUTSTANDING_MAX, WorkError, WorkId,
};

const FLUSHED: Result<(), WorkError> = Err(WorkError::Flushed);

fn a_completed_writes_bytes_are_exactly_there_and_nothing_else_changed<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let (source, mut expected) = (ring.fill(0, 1), ring.fill(1, 2));
    ring.write(&link, 7, &[seg(100, 3001, 5000)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 7, Ok(()))]);
    expected[3001..8001].copy_from_slice(&source[100..5100]);
    assert!(ring.bytes(1) == expected);
    assert!(ring.bytes(0) == source);
}

fn a_write_of_many_segments_places_each_one<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let (source, mut expected) = (ring.fill(0, 1), ring.fill(1, 2));
    let segments: Vec<_> = (0..SEGMENTS_MAX as u64)
        .map(|i| seg(i * 1000 + 3, (SEGMENTS_MAX as u64 - i) * 900 + 1, 1 + i % 290 * 3))
        .collect();
    copy(&source, &mut expected, &segments);
    ring.write(&link, 1, &segments).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 1, Ok(()))]);
    assert!(ring.bytes(1) == expected);
}

fn requests_take_effect_in_the_order_of_posting<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let (source, mut expected) = (ring.fill(0, 1), ring.fill(1, 2));
    // Each one overwrites half of the one before.
    for i in 0..40 {
        let segments = [seg(i * 5000, i * 1000, 2000)];
        ring.write(&link, i, &segments).unwrap();
        copy(&source, &mut expected, &segments);
    }
    let done = ring.complete(0, 40);
    assert!(done.iter().map(|done| done.1).eq(0..40), "completions out of order");
    assert!(ring.bytes(1) == expected);
}

fn the_queue_takes_64_requests_and_then_says_so<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    for i in 0..WORK_OUTSTANDING_MAX as u64 {
        ring.write(&link, i, &[seg(0, 0, 8)]).unwrap();
    }
    assert!(matches!(ring.write(&link, 99, &[seg(0, 0, 8)]), Err(PostError::QueueFull)));
    ring.complete(0, WORK_OUTSTANDING_MAX);
    ring.write(&link, 100, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 100, Ok(()))]);
    ring.nothing_more();
}

fn a_segment_list_that_makes_no_sense_is_not_posted<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let (len, many) = (LEN as u64, [seg(0, 0, 1); SEGMENTS_MAX + 1]);
    for bad in [
        &[][..],
        &many,
        &[seg(0, 0, 0)],
        &[seg(0, 0, 8), seg(8, 8, 0)],
        &[seg(len, 0, 1)],
        &[seg(len - 7, 0, 8)],
        &[seg(u64::MAX, 0, 2)],
        &[seg(0, u64::MAX, 2)],
        &[seg(0, 0, u64::MAX)],
    ] {
        assert!(matches!(ring.write(&link, 1, bad), Err(PostError::BadSegments)), "{bad:?}");
        assert!(matches!(ring.read(&link, 1, bad), Err(PostError::BadSegments)), "{bad:?}");
    }
    ring.write(&link, 2, &[seg(len - 8, len - 8, 8)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 2, Ok(()))]);
}

/// Posts a good write, the bad request and another good write: the first is done, the second
/// refused, the third flushed, the connection dead at both ends, and only the first had an effect.
fn is_refused<N: Network>(
    prepare: impl Fn(&mut Cluster<N>, &mut Link),
    access: Access,
    segments: &[Segment],
    why: WorkError,
) {
    let mut ring = Cluster::<N>::new(2);
    let good = ring.link(0, 1, Access::Write);
    let mut bad = good;
    prepare(&mut ring, &mut bad);
    let (source, mut expected) = (ring.fill(0, 1), ring.fill(1, 2));
    expected[64..128].copy_from_slice(&source[..64]);
    ring.write(&good, 1, &[seg(0, 64, 64)]).unwrap();
    match access {
        Access::Write => ring.write(&bad, 2, segments).unwrap(),
        Access::Read => ring.read(&bad, 2, segments).unwrap(),
    }
    ring.write(&good, 3, &[seg(0, 256, 64)]).unwrap();
    let near = good.near;
    let why = Err(N::told(why));
    assert_eq!(ring.complete(0, 3), [(near, 1, Ok(())), (near, 2, why), (near, 3, FLUSHED)]);
    ring.closed(0, near);
    ring.closed(1, good.far);
    assert!(ring.bytes(1) == expected, "a refused request had an effect");
    assert!(ring.bytes(0) == source);
    assert!(matches!(ring.write(&good, 4, &[seg(0, 0, 8)]), Err(PostError::NotConnected)));
    ring.nothing_more();
}

fn a_request_outside_the_remote_memory_changes_nothing_and_ends_the_connection<N: Network>() {
    let len = LEN as u64;
    for bad in [seg(0, len, 8), seg(0, len - 4, 8), seg(0, 1, len), seg(8, u64::MAX - 8, 8)] {
        let segments = [seg(0, 512, 8), bad];
        is_refused::<N>(|_, _| {}, Access::Write, &segments, WorkError::RemoteBounds);
        is_refused::<N>(|_, _| {}, Access::Read, &segments, WorkError::RemoteBounds);
    }
}

fn a_wrong_key_opens_nothing<N: Network>() {
    let wrong = |_: &mut Cluster<N>, link: &mut Link| link.key.key ^= 1;
    is_refused(wrong, Access::Write, &[seg(0, 0, 8)], WorkError::BadKey);
    is_refused(wrong, Access::Read, &[seg(0, 0, 8)], WorkError::BadKey);
}

fn a_key_of_another_connection_opens_nothing<N: Network>() {
    let other = |ring: &mut Cluster<N>, link: &mut Link| {
        link.key = ring.link(0, 1, Access::Write).key;
    };
    is_refused(other, Access::Write, &[seg(0, 0, 8)], WorkError::BadKey);
    is_refused(other, Access::Read, &[seg(0, 0, 8)], WorkError::BadKey);
}

fn a_key_for_reading_does_not_write<N: Network>() {
    let read_only = |ring: &mut Cluster<N>, link: &mut Link| {
        link.key = ring.grant(1, link.far, Access::Read);
    };
    is_refused(read_only, Access::Write, &[seg(0, 0, 8)], WorkError::BadKey);
}

fn another_epoch_or_an_old_view_is_fenced<N: Network>() {
    if !N::CHECKS_TERMS {
        return;
    }
    let Stamp { epoch, view } = harness::STAMP;
    for stamp in [(epoch + 1, view), (epoch - 1, 99), (epoch, view - 1)] {
        let set = move |_: &mut Cluster<N>, link: &mut Link| {
            link.stamp = Stamp { epoch: stamp.0, view: stamp.1 };
        };
        is_refused(set, Access::Write, &[seg(0, 0, 8)], WorkError::Fenced);
        is_refused(set, Access::Read, &[seg(0, 0, 8)], WorkError::Fenced);
    }
    let mut ring = Cluster::<N>::new(2);
    let mut link = ring.link(0, 1, Access::Write);
    link.stamp.view += 10;
    ring.write(&link, 1, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 1, Ok(()))], "a newer view is welcome");
}

fn a_revoked_key_answers_fenced<N: Network>() {
    let revoke = |ring: &mut Cluster<N>, link: &mut Link| {
        link.key = ring.grant(1, link.far, Access::Write);
        ring.nodes[1].revoke(link.key);
    };
    is_refused(revoke, Access::Write, &[seg(0, 0, 8)], WorkError::Fenced);
    is_refused(revoke, Access::Read, &[seg(0, 0, 8)], WorkError::Fenced);
}

fn after_a_fence_no_byte_changes_however_far_the_stream_had_come<N: Network>() {
    for steps in [0, 2, 3, 5, 8, 13, 21] {
        let mut ring = Cluster::<N>::new(2);
        let link = ring.link(0, 1, Access::Write);
        let whole = [seg(0, 0, LEN as u64)];
        ring.fill(0, 1);
        ring.fill(1, 2);
        for i in 0..8 {
            ring.write(&link, i, &whole).unwrap();
        }
        for _ in 0..steps {
            ring.step();
        }
        ring.nodes[1].revoke(link.key);
        let at_fence = ring.bytes(1);
        ring.fill(0, 3);
        let mut posted = 8;
        // The old owner goes on posting until it learns.
        while !ring.seen[0].contains(&Event::Closed { conn: link.near }) {
            posted += u64::from(ring.write(&link, posted, &whole).is_ok());
            ring.step();
        }
        let done = ring.complete(0, posted as usize);
        assert!(done.iter().map(|done| done.1).eq(0..posted));
        let fenced = done.iter().position(|done| done.2.is_err()).unwrap();
        assert_eq!(done[fenced].2, Err(WorkError::Fenced));
        assert!(done[fenced + 1..].iter().all(|done| done.2 == FLUSHED));
        ring.nothing_more();
        assert!(ring.bytes(1) == at_fence, "a byte changed after the fence");
    }
}

fn a_fence_in_the_middle_of_one_large_write_stops_it<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let source = ring.fill(0, 1);
    ring.fill(1, 2);
    let first = |ring: &Cluster<N>| {
        let mut word = [0; 8];
        ring.mappings[1].read_at(0, &mut word).unwrap();
        word
    };
    let before = first(&ring);
    ring.write(&link, 1, &[seg(0, 0, LEN as u64)]).unwrap();
    ring.until("a part is placed", |ring| first(ring) != before);
    ring.nodes[1].revoke(link.key);
    let at_fence = ring.bytes(1);
    assert!(at_fence != source, "the write was placed at once: make it larger");
    assert_eq!(ring.complete(0, 1), [(link.near, 1, Err(WorkError::Fenced))]);
    ring.nothing_more();
    assert!(ring.bytes(1) == at_fence);
}

fn a_fence_in_the_middle_of_a_read_refuses_what_is_left<N: Network>() {
    for steps in 0..6 {
        let mut ring = Cluster::<N>::new(2);
        let link = ring.link(0, 1, Access::Read);
        for i in 0..20 {
            ring.read(&link, i, &[seg(0, 0, LEN as u64)]).unwrap();
        }
        for _ in 0..steps {
            ring.step();
        }
        ring.nodes[1].revoke(link.key);
        let done = ring.complete(0, 20);
        let refused = done.iter().position(|done| done.2.is_err());
        // The fake network may have carried all of them already.
        if let Some(refused) = refused {
            let why = done[refused].2.unwrap_err();
            assert!(N::CUT_READ.contains(&why), "{why:?}");
            ring.closed(0, link.near);
        }
        ring.nodes[1].deregister(ring.memories[1]).unwrap();
        ring.nothing_more();
    }
}

fn closing_flushes_all_once_and_in_order_and_the_other_side_learns_of_it<N: Network>() {
    for steps in [0, 1, 4, 9] {
        let mut ring = Cluster::<N>::new(2);
        let link = ring.link(0, 1, Access::Write);
        for i in 0..20 {
            ring.write(&link, i, &[seg(0, 0, LEN as u64 / 2)]).unwrap();
        }
        for _ in 0..steps {
            ring.step();
        }
        ring.nodes[0].close(link.near);
        let post = ring.write(&link, 99, &[seg(0, 0, 8)]);
        assert!(matches!(post, Err(PostError::NotConnected)));
        let done = ring.complete(0, 20);
        assert!(done.iter().map(|done| done.1).eq(0..20));
        let flushed = done.iter().position(|done| done.2.is_err()).unwrap();
        assert!(done[flushed..].iter().all(|done| done.2 == FLUSHED));
        ring.closed(1, link.far);
        ring.nothing_more();
        assert!(ring.seen[0].is_empty(), "told of its own close");
    }
}

fn a_close_by_the_responder_is_a_fence_and_flushes_the_initiator<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    ring.fill(0, 1);
    for i in 0..9 {
        ring.write(&link, i, &[seg(0, 0, LEN as u64)]).unwrap();
    }
    ring.step();
    ring.nodes[1].close(link.far);
    let at_close = ring.bytes(1);
    assert_eq!(ring.complete(0, 9)[8].2, FLUSHED);
    ring.closed(0, link.near);
    ring.nothing_more();
    assert!(ring.bytes(1) == at_close);
    assert!(ring.seen[1].is_empty(), "told of its own close");
    ring.nodes[1].close(link.far);
}

fn nothing_resumes_and_old_keys_are_refused_on_a_new_connection<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let old = ring.link(0, 1, Access::Write);
    ring.write(&old, 1, &[seg(0, 0, 8)]).unwrap();
    ring.complete(0, 1);
    ring.nodes[0].close(old.near);
    ring.closed(1, old.far);
    let before = ring.fill(1, 2);
    let mut new = ring.link(0, 1, Access::Write);
    assert_ne!(new.near, old.near);
    new.key = old.key;
    ring.write(&new, 2, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(new.near, 2, Err(N::told(WorkError::BadKey)))]);
    assert!(ring.bytes(1) == before);
}

fn a_read_brings_exactly_the_bytes<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Read);
    let (mut expected, remote) = (ring.fill(0, 1), ring.fill(1, 2));
    let segments = [seg(5, 77, 100), seg(10_000, 0, 3 << 20), seg(200, 1 << 20, 1)];
    for s in &segments {
        copy(&remote, &mut expected, &[seg(s.remote, s.local, s.len)]);
    }
    ring.read(&link, 1, &segments).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 1, Ok(()))]);
    assert!(ring.bytes(0) == expected);
    assert!(ring.bytes(1) == remote);
}

fn reads_and_writes_interleave_in_order<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let (source, remote) = (ring.fill(0, 1), ring.fill(1, 2));
    let (part, away) = (1_500_000, 4 << 20);
    // What is read must be the old bytes the first time and the written ones the second time.
    ring.read(&link, 1, &[seg(away, 0, part)]).unwrap();
    ring.write(&link, 2, &[seg(0, 0, part)]).unwrap();
    ring.read(&link, 3, &[seg(away + part, 0, part)]).unwrap();
    ring.write(&link, 4, &[seg(part, 0, part)]).unwrap();
    let done = ring.complete(0, 4);
    assert!(done.iter().map(|done| (done.1, done.2)).eq((1..5).map(|i| (i, Ok(())))));
    let (part, away) = (part as usize, away as usize);
    let near = ring.bytes(0);
    assert!(near[away..][..part] == remote[..part], "a later write overtook a read");
    assert!(near[away + part..][..part] == source[..part], "a read overtook an earlier write");
    assert!(ring.bytes(1)[..part] == source[part..][..part]);
}

fn two_initiators_to_one_responder_do_not_mix<N: Network>() {
    let mut ring = Cluster::<N>::new(3);
    let (one, two) = (ring.link(0, 2, Access::Write), ring.link(1, 2, Access::Write));
    let (first, second, mut expected) = (ring.fill(0, 1), ring.fill(1, 2), ring.fill(2, 3));
    for i in 0..30 {
        let segments = ([seg(i * 999, i * 2000, 1000)], [seg(i * 777, i * 2000 + 1000, 1000)]);
        ring.write(&one, i, &segments.0).unwrap();
        ring.write(&two, i, &segments.1).unwrap();
        copy(&first, &mut expected, &segments.0);
        copy(&second, &mut expected, &segments.1);
    }
    assert!(ring.complete(0, 30).iter().all(|done| (done.0, done.2) == (one.near, Ok(()))));
    assert!(ring.complete(1, 30).iter().all(|done| (done.0, done.2) == (two.near, Ok(()))));
    assert!(ring.bytes(2) == expected);
    // The end of one is none of the other's business.
    ring.nodes[0].close(one.near);
    ring.closed(2, one.far);
    ring.write(&two, 99, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(ring.complete(1, 1), [(two.near, 99, Ok(()))]);
}

fn memory_is_busy_while_posted_work_uses_it<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let memory = ring.memories[0];
    ring.write(&link, 1, &[seg(0, 0, 8)]).unwrap();
    assert!(matches!(ring.nodes[0].deregister(memory), Err(MemoryError::Busy)));
    ring.complete(0, 1);
    ring.write(&link, 2, &[seg(0, 0, 8)]).unwrap();
    ring.nodes[0].close(link.near);
    ring.complete(0, 1);
    ring.nodes[0].deregister(memory).unwrap();
    assert!(matches!(ring.nodes[0].deregister(memory), Err(MemoryError::Unknown)));
    let next = ring.link(0, 1, Access::Write);
    let post = ring.write(&next, 3, &[seg(0, 0, 8)]);
    assert!(matches!(post, Err(PostError::UnknownMemory)), "{post:?}");
}

fn memory_that_was_let_go_is_fenced<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let before = ring.fill(1, 2);
    ring.nodes[1].deregister(ring.memories[1]).unwrap();
    ring.write(&link, 1, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(ring.complete(0, 1), [(link.near, 1, Err(WorkError::Fenced))]);
    assert!(ring.bytes(1) == before);
}

fn connections_are_made_step_by_step_or_not_at_all<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    assert!(matches!(ring.nodes[1].accept(b"what?"), Err(ConnectError::Malformed)));
    assert!(matches!(ring.nodes[1].accept(&[]), Err(ConnectError::Malformed)));
    let (near, offer) = ring.nodes[0].offer().unwrap();
    let (far, answer) = ring.nodes[1].accept(&offer).unwrap();
    assert!(offer.len() <= 256 && answer.len() <= 256);
    let peer = ring.addresses[1];
    let finish = ring.nodes[0].finish(near, &answer[1..], peer);
    assert!(matches!(finish, Err(ConnectError::Malformed)));
    let finish = ring.nodes[0].finish(near, &answer, peer);
    assert!(matches!(finish, Err(ConnectError::WrongState)), "no connection is left behind");
    let finish = ring.nodes[1].finish(far, &answer, peer);
    assert!(matches!(finish, Err(ConnectError::WrongState)));
    ring.nodes[1].revoke(RemoteKey { key: 1, base: 0, len: 1 });
}

fn the_offering_side_posts_and_the_accepting_side_grants<N: Network>() {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let wrong_side = ring.nodes[0].grant(link.near, ring.memories[0], Access::Write, TERMS);
    assert!(matches!(wrong_side, Err(MemoryError::NoConnection)));
    let back = Link { from: 1, near: link.far, ..link };
    let post = ring.write(&back, 1, &[seg(0, 0, 8)]);
    assert!(matches!(post, Err(PostError::NotConnected)));
}

/// What was taken of a long write, looked at before each step until its completion.
fn taken_of_a_long_write<N: Network>() -> Vec<u64> {
    let mut ring = Cluster::<N>::new(2);
    let link = ring.link(0, 1, Access::Write);
    let taken = |ring: &Cluster<N>| ring.nodes[0].taken_bytes(link.near, WorkId(1));
    assert_eq!(taken(&ring), 0);
    ring.write(&link, 1, &[seg(0, 0, LEN as u64)]).unwrap();
    let mut seen = Vec::new();
    ring.until("the completion", |ring| {
        let done = !ring.seen[0].is_empty();
        seen.extend((!done).then(|| taken(ring)));
        done
    });
    assert_eq!(taken(&ring), 0, "of a request that is done nothing is known");
    seen
}

fn what_was_taken_of_a_request_grows_and_is_never_more_than_there_is<N: Network>() {
    let seen = taken_of_a_long_write::<N>();
    assert!(seen.is_sorted() && seen.iter().all(|&taken| taken <= LEN as u64), "{seen:?}");
}

#[test]
fn tcp_says_how_far_a_long_write_is() {
    let seen = taken_of_a_long_write::<TcpNetwork>();
    assert!(seen.iter().any(|&taken| taken > 0 && taken < LEN as u64), "{seen:?}");
}

fn any_sequence_of_writes_leaves_what_a_byte_array_would_hold<N: Network>() {
    let request = prop::collection::vec((0..90_000u64, 0..90_000u64, 1..9_000u64), 1..12);
    let requests = prop::collection::vec(request, 1..40);
    proptest!(ProptestConfig::with_cases(12), |(requests in requests)| {
        let mut ring = Cluster::<N>::new(2);
        let link = ring.link(0, 1, Access::Write);
        let (source, mut expected) = (ring.fill(0, 1), pattern(2));
        ring.fill(1, 2);
        for (i, request) in requests.iter().enumerate() {
            // Pieces of one request must not overlap: inside a request order is not promised.
            let mut segments: Vec<Segment> = Vec::new();
            for &(local, remote, len) in request {
                let apart = |s: &Segment| s.remote + s.len <= remote || remote + len <= s.remote;
                if segments.iter().all(apart) {
                    segments.push(seg(local, remote, len));
                }
            }
            copy(&source, &mut expected, &segments);
            ring.write(&link, i as u64, &segments).unwrap();
        }
        let done = ring.complete(0, requests.len());
        prop_assert!(done.iter().all(|done| done.2.is_ok()));
        prop_assert!(ring.bytes(1) == expected);
        ring.nothing_more();
    });
}

fn copy(source: &[u8], target: &mut [u8], segments: &[Segment]) {
    for s in segments {
        target[s.remote as usize..][..s.len as usize]
            .copy_from_slice(&source[s.local as usize..][..s.len as usize]);
    }
}

macro_rules! conformance {
    ($($test:ident)*) => {
        #[cfg(feature = "rdma")]
        mod verbs {
            $(#[test] fn $test() {
                match super::VerbsNetwork::is_there() {
                    true => super::$test::<super::VerbsNetwork>(),
                    false => eprintln!("not run: no RDMA device; soft-roce/vm.sh has one"),
                }
            })*
        }
        mod tcp { $(#[test] fn $test() { super::$test::<super::TcpNetwork>(); })* }
        mod fake { $(#[test] fn $test() { super::$test::<super::FakeNetwork>(); })* }
        // Two transports as one, with connections over the second and over the first of them.
        mod many_tcp { $(#[test] fn $test() { super::$test::<super::ManyOverTcp>(); })* }
        mod many_fake { $(#[test] fn $test() { super::$test::<super::ManyOverFake>(); })* }
    };
}

conformance! {
    a_completed_writes_bytes_are_exactly_there_and_nothing_else_changed
    a_write_of_many_segments_places_each_one
    requests_take_effect_in_the_order_of_posting
    the_queue_takes_64_requests_and_then_says_so
    a_segment_list_that_makes_no_sense_is_not_posted
    a_request_outside_the_remote_memory_changes_nothing_and_ends_the_connection
    a_wrong_key_opens_nothing
    a_key_of_another_connection_opens_nothing
    a_key_for_reading_does_not_write
    another_epoch_or_an_old_view_is_fenced
    a_revoked_key_answers_fenced
    after_a_fence_no_byte_changes_however_far_the_stream_had_come
    a_fence_in_the_middle_of_one_large_write_stops_it
    a_fence_in_the_middle_of_a_read_refuses_what_is_left
    closing_flushes_all_once_and_in_order_and_the_other_side_learns_of_it
    a_close_by_the_responder_is_a_fence_and_flushes_the_initiator
    nothing_resumes_and_old_keys_are_refused_on_a_new_connection
    a_read_brings_exactly_the_bytes
    reads_and_writes_interleave_in_order
    two_initiators_to_one_responder_do_not_mix
    memory_is_busy_while_posted_work_uses_it
    memory_that_was_let_go_is_fenced
    connections_are_made_step_by_step_or_not_at_all
    the_offering_side_posts_and_the_accepting_side_grants
    what_was_taken_of_a_request_grows_and_is_never_more_than_there_is
    any_sequence_of_writes_leaves_what_a_byte_array_would_hold
}
