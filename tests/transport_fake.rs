//! What the simulated network injects, beyond the promises that all transports share.

#[path = "transport_harness/mod.rs"]
mod harness;

use harness::{Cluster, FakeNetwork, Link, Network, seg};
use ringkeep::transport::{
    Access, Event, WorkError,
    fake::{Counts, FakeNet, Weather},
};

fn storm(seed: u64) -> (FakeNet, Cluster<FakeNetwork>, Link) {
    let weather = Weather { delay_ticks_max: 4, torn: true, ..Weather::default() };
    let net = FakeNet::with_weather(seed, weather);
    let mut network = FakeNetwork::over(net.clone());
    let nodes = [network.endpoint(), network.endpoint()];
    let mut ring = Cluster::over(network);
    for (transport, address) in nodes {
        ring.join(transport, address);
    }
    let link = ring.link(0, 1, Access::Write);
    ring.fill(0, 1);
    for i in 0..8 {
        ring.write(&link, i, &[seg(0, i * 4096, 4096)]).unwrap();
    }
    (net, ring, link)
}

/// How many of the eight writes are there in full, in part and not at all.
fn placed(ring: &Cluster<FakeNetwork>) -> [usize; 3] {
    let (source, target) = (ring.bytes(0), ring.bytes(1));
    let mut kinds = [0; 3];
    for part in target[..8 * 4096].chunks(4096) {
        let kind = if *part == source[..4096] { 0 } else { 1 + usize::from(*part == [0; 4096]) };
        kinds[kind] += 1;
    }
    kinds
}

#[test]
fn the_same_seed_does_the_same() {
    let run = |seed| -> (Counts, Vec<u8>) {
        let (net, mut ring, link) = storm(seed);
        net.advance(5);
        net.cut_both("node-1", "node-2");
        ring.closed(0, link.near);
        (net.counts(), ring.bytes(1)[..8 * 4096].to_vec())
    };
    assert!(run(3) == run(3));
    assert!((4..40).any(|seed| run(seed) != run(3)));
}

#[test]
fn a_cut_leaves_writes_placed_in_full_in_part_and_not_at_all() {
    let mut kinds = [0; 3];
    for seed in 0..60 {
        let (net, mut ring, link) = storm(seed);
        net.advance(seed % 9);
        net.cut("node-1", "node-2");
        assert_eq!(ring.complete(0, 8)[7].2, Err(WorkError::Flushed), "seed {seed}");
        ring.closed(0, link.near);
        ring.closed(1, link.far);
        let now = placed(&ring);
        assert!(now[1] <= 1, "only the request that was under way is torn: seed {seed}");
        kinds.iter_mut().zip(now).for_each(|(sum, more)| *sum += more);
    }
    assert!(kinds.iter().all(|&kind| kind > 0), "{kinds:?}");
}

#[test]
fn a_cut_of_the_way_back_does_the_writes_and_does_not_tell() {
    let (net, mut ring, _) = storm(1);
    net.set_weather(Weather { retry_ticks: 500, torn: true, ..Weather::default() });
    net.cut("node-2", "node-1");
    let done = ring.complete(0, 8);
    assert!(done.iter().all(|done| done.2 == Err(WorkError::Flushed)));
    net.advance(100);
    assert_eq!(placed(&ring), [8, 0, 0]);
    assert_eq!(net.counts().unacknowledged, 8);
}

#[test]
fn a_cut_that_is_healed_in_time_costs_only_time() {
    let (net, mut ring, _) = storm(2);
    net.cut_both("node-1", "node-2");
    net.advance(20);
    net.heal();
    assert!(ring.complete(0, 8).iter().all(|done| done.2.is_ok()));
    assert_eq!(placed(&ring), [8, 0, 0]);
}

#[test]
fn a_crashed_nodes_writes_land_late_unless_its_key_was_revoked() {
    let (mut late, mut fenced) = (0, 0);
    for seed in 0..40 {
        for fence in [false, true] {
            let (net, mut ring, link) = storm(seed);
            net.crash("node-1");
            if fence {
                ring.nodes[1].revoke(link.key);
            }
            let at_crash = ring.bytes(1);
            ring.closed(1, link.far);
            assert!(!ring.seen[0].iter().any(|it| matches!(it, Event::Completed { .. })));
            let changed = usize::from(ring.bytes(1) != at_crash);
            if fence { fenced += changed } else { late += changed }
        }
    }
    assert!(late > 0, "no write ever landed late");
    assert_eq!(fenced, 0, "a write landed past a fence");
}
