//! What a cluster may expect of its membership, over the real machine in simulated time.
#![cfg(feature = "server")]

#[allow(dead_code)] // the benchmark uses the rest
mod membership_net;

use std::{collections::BTreeSet, time::Duration};

use membership_net::{Faults, Net};
use ringkeep::{
    Name,
    membership::{
        Body, Change, Config, Event, JoinRefusal, Member, Membership, Message, NodeId, Peer, Time,
    },
};

const SECOND: u64 = 1000;

fn count(net: &Net, kind: &str) -> usize {
    net.sent.get(kind).map_or(0, Vec::len)
}

#[test]
fn three_nodes_join_one_by_one_into_one_ring() {
    let net = Net::ring(1, &["a", "b", "c"]);
    assert!(net.is_whole());
    let view = net.view_of("b");
    assert_eq!(view.number, 3);
    assert_eq!(view.predecessor(&view.ring[0].id).unwrap().id.name.as_str(), "c");
    assert_eq!(count(&net, "prepare"), 0);
}

/// Since the counts were cleared there was one view change, in one round: one proposal to each of
/// these voters, and one vote from each, and nothing else.
fn asked_once(net: &mut Net, voters: usize, what: &str) {
    let sent = std::mem::take(&mut net.sent);
    let ends = |kind| -> (BTreeSet<&NodeId>, BTreeSet<&NodeId>) {
        sent[kind].iter().map(|(from, to)| (from, to)).unzip()
    };
    let (proposes, votes) = (ends("propose"), ends("ack"));
    for kind in ["propose", "ack"] {
        assert_eq!(sent[kind].len(), voters, "{what}: one {kind} per voter");
    }
    assert_eq!((proposes.0.len(), proposes.1.len()), (1, voters), "{what}");
    assert_eq!((votes.1, votes.0), proposes, "{what}: those who were asked answer");
    for kind in ["prepare", "promise", "accept", "nack"] {
        assert!(!sent.contains_key(kind), "{what}: {kind}");
    }
}

const THREE_AND_FIVE: [&[&str]; 2] = [&["a", "b", "c"], &["a", "b", "c", "d", "e"]];

#[test]
fn a_killed_node_is_removed_in_one_round() {
    for names in THREE_AND_FIVE {
        let mut net = Net::ring(2, names);
        net.kill("c");
        net.sent.clear();
        assert!(net.run_until(SECOND, Net::is_whole));
        net.run_ms(SECOND);
        asked_once(&mut net, names.len() - 2, "without the one that is taken out");
        assert_eq!(net.view_of("a").number, names.len() as u64 + 1);
    }
}

#[test]
fn a_node_is_taken_in_in_one_round() {
    for names in THREE_AND_FIVE {
        let mut net = Net::ring(2, names);
        net.sent.clear();
        net.join("x");
        net.run_ms(2 * SECOND);
        assert!(net.is_whole());
        asked_once(&mut net, names.len() - 1, "a join");
        assert_eq!(net.view_of("a").number, names.len() as u64 + 1);
    }
}

#[test]
fn a_node_leaves_in_one_round_for_each_of_two_views() {
    for names in THREE_AND_FIVE {
        let mut net = Net::ring(2, names);
        net.sent.clear();
        net.event("c", Event::Leave);
        net.run_ms(2 * SECOND);
        assert_eq!(net.view_of("a").leaving.len(), 1);
        asked_once(&mut net, names.len() - 1, "it is leaving");
        net.event("c", Event::HandedOver);
        net.run_ms(2 * SECOND);
        assert!(net.is_whole() && net.nodes["c"].left);
        asked_once(&mut net, names.len() - 1, "it is out");
        assert_eq!(net.view_of("a").number, names.len() as u64 + 2);
    }
}

#[test]
fn two_neighbours_that_die_together_are_both_removed() {
    let mut net = Net::ring(3, &["a", "b", "c", "d", "e", "f"]);
    net.kill("c");
    net.kill("d");
    assert!(net.run_until(3 * SECOND, Net::is_whole));
    assert_eq!(net.ring_of("a"), ["a", "b", "e", "f"]);
}

#[test]
fn a_join_that_collides_with_a_failure_ends_in_one_agreed_view() {
    let failed = |seed| {
        let mut net = Net::ring(4, &["a", "b", "c", "d", "e"]);
        net.faults = Faults { delay_max: 5000, ..membership_net::QUIET };
        net.rng.0 = seed;
        net.sent.clear();
        net.kill("d");
        net
    };
    let (mut collided, mut united) = (0, 0);
    for offset in 0..40 {
        // When the removal is proposed if nobody joins.
        let mut alone = failed(offset);
        let killed = alone.now;
        assert!(alone.run_until(3 * SECOND, |net| count(net, "propose") > 0));
        let proposed_ms = alone.now.since(killed).as_millis() as u64;
        let mut net = failed(offset);
        net.run_ms(proposed_ms - offset % 8);
        net.join("x");
        assert!(net.run_until(3 * SECOND, Net::is_whole), "offset {offset}");
        let ring: BTreeSet<String> = net.ring_of("a").into_iter().collect();
        assert_eq!(ring, ["a", "b", "c", "e", "x"].map(String::from).into());
        if count(&net, "prepare") > 0 {
            collided += 1;
            let both = |change: &Change| !change.removed.is_empty() && !change.joined.is_empty();
            united += usize::from(net.agreed.values().any(|view| both(&view.change)));
        }
    }
    println!("{collided} collisions, {united} of them end in the union");
    assert!(collided > 0, "nothing collided");
    assert!(united > 0, "V4: a free choice is the union, and no collision ended in one");
}

#[test]
fn a_minority_installs_nothing_and_comes_back_as_new_members() {
    let mut net = Net::ring(5, &["a", "b", "c", "d", "e"]);
    let before = net.view_of("d").number;
    net.partition(&["a", "b", "c"], &["d", "e"]);
    net.run_ms(5 * SECOND);
    assert_eq!(net.ring_of("a"), ["a", "b", "c"]);
    for name in ["d", "e"] {
        assert_eq!(net.view_of(name).number, before, "{name} has no quorum");
    }
    net.heal();
    assert!(net.run_until(5 * SECOND, Net::is_whole));
    assert_eq!((net.nodes["d"].evictions, net.nodes["e"].evictions), (1, 1));
    assert_eq!(net.ring_of("a").len(), 5);
}

#[test]
fn a_live_node_that_was_evicted_learns_of_it_and_rejoins() {
    let mut net = Net::ring(6, &["a", "b", "c"]);
    net.partition(&["c"], &["a", "b"]);
    net.run_ms(SECOND);
    assert_eq!(net.ring_of("a"), ["a", "b"]);
    assert_eq!(net.nodes["c"].evictions, 0, "nobody could tell it");
    net.heal();
    assert!(net.run_until(2 * SECOND, Net::is_whole));
    assert_eq!(net.nodes["c"].evictions, 1);
    assert_eq!(net.view_of("c").voters.len(), 3);
}

#[test]
fn an_evicted_node_still_votes_so_that_one_more_failure_is_survived() {
    let mut net = Net::ring(7, &["a", "b", "c"]);
    net.partition(&["c"], &["a", "b"]);
    net.run_ms(SECOND);
    net.kill("b");
    net.heal();
    assert!(net.run_until(10 * SECOND, Net::is_whole));
    assert_eq!(net.ring_of("a"), ["a", "c"]);
}

/// The nodes of a ring do not get to run for up to two seconds, one after the other, again and
/// again. How many evictions there were in each minute.
fn starve(config: Config, names: &[&str], seed: u64, minutes: usize) -> Vec<usize> {
    let mut net = Net::ring_with(config, seed, names);
    let evictions = |net: &Net| net.nodes.values().map(|n| n.evictions).sum::<usize>();
    let mut minute = || {
        let before = evictions(&net);
        for _ in 0..20 {
            let name = names[net.rng.below(names.len() as u64) as usize];
            let ms = 500 + net.rng.below(1500);
            net.sleep(name, ms);
            net.run_ms(3 * SECOND);
        }
        evictions(&net) - before
    };
    (0..minutes).map(|_| minute()).collect()
}

#[test]
fn starving_nodes_learn_not_to_evict_each_other() {
    let adaptive = Config::default();
    let fixed = Config { suspicion_max: adaptive.suspicion_after, ..adaptive };
    for names in [&["a", "b", "c"][..], &["a", "b", "c", "d", "e"]] {
        for seed in 1..=3 {
            let evictions = starve(adaptive, names, seed, 8);
            assert!(evictions[4..].iter().all(|&n| n == 0), "seed {seed}: {evictions:?}");
        }
        let evictions = starve(fixed, names, 1, 2);
        assert!(evictions.iter().all(|&n| n >= 10), "what there is to learn from: {evictions:?}");
    }
}

#[test]
fn two_nodes_without_a_witness_stay_as_they_are_when_they_lose_each_other() {
    let mut net = Net::ring(8, &["a", "b"]);
    net.partition(&["a"], &["b"]);
    net.run_ms(5 * SECOND);
    net.sent.clear();
    net.run_ms(10 * SECOND);
    assert_eq!(net.view_of("a").number, 2);
    assert_eq!(net.nodes["a"].current().suspects().count(), 1);
    let total: usize = net.sent.values().map(Vec::len).sum();
    assert!(total <= 2 * 150, "{total} messages in ten seconds");
    assert_eq!(count(&net, "propose") + count(&net, "prepare"), 0);
    net.heal();
    net.run_ms(SECOND);
    assert!(net.is_whole());
    assert_eq!(net.nodes["a"].current().suspects().count(), 0);
}

#[test]
fn two_nodes_and_a_witness_survive_the_loss_of_any_one() {
    for lost in ["a", "b", "w"] {
        let mut net = Net::ring(9, &["a", "b"]);
        net.join_witness("w");
        assert!(net.run_until(SECOND, Net::is_whole));
        assert_eq!((net.ring_of("w").len(), net.view_of("w").voters.len()), (2, 3));
        net.kill(lost);
        net.run_ms(2 * SECOND);
        let stays = if lost == "a" { "b" } else { "a" };
        assert_eq!(net.ring_of(stays).len(), if lost == "w" { 2 } else { 1 });
        net.join("x");
        assert!(net.run_until(3 * SECOND, |net| net.ring_of(stays).contains(&"x".to_owned())));
    }
}

#[test]
fn a_killed_process_that_resumes_in_time_is_no_node_failure() {
    let mut net = Net::ring(10, &["a", "b", "c"]);
    net.kill("b");
    net.run_ms(300);
    net.resume("b");
    net.run_ms(2 * SECOND);
    assert!(net.is_whole());
    assert_eq!((net.view_of("a").number, net.nodes["b"].evictions), (3, 0));
}

#[test]
fn a_node_that_lost_its_memory_takes_its_place_as_another_life() {
    let mut net = Net::ring(11, &["a", "b", "c"]);
    net.reboot("b");
    assert!(net.run_until(100, Net::is_whole), "without waiting for suspicion");
    let view = net.view_of("a");
    assert_eq!(net.ring_of("a"), ["a", "b", "c"]);
    assert_eq!((view.number, view.ring[1].id.incarnation), (4, 2));
}

#[test]
fn a_majority_with_amnesia_cannot_decide_anything() {
    let mut net = Net::ring(12, &["a", "b", "c"]);
    net.reboot("b");
    net.kill("c");
    net.reboot("c");
    net.run_ms(10 * SECOND);
    assert_eq!(net.view_of("a").number, 3);
}

#[test]
fn a_node_that_leaves_is_let_go_once_it_has_handed_over() {
    for leaver in ["a", "b", "c"] {
        let mut net = Net::ring(13, &["a", "b", "c"]);
        net.event(leaver, Event::Leave);
        net.run_ms(SECOND);
        let view = net.view_of("a");
        assert_eq!((view.number, view.ring.len(), view.leaving.len()), (4, 3, 1), "not yet");
        assert!(view.ring.iter().all(|m| view.predecessor(&m.id).unwrap().id != view.leaving[0]));
        net.event(leaver, Event::HandedOver);
        assert!(net.run_until(500, |net| net.nodes[leaver].left), "the ring knows it");
        assert!(net.run_until(100, Net::is_whole));
        assert_eq!(count(&net, "prepare"), 0);
    }
    let mut net = Net::ring(13, &["a", "b"]);
    net.leave("b");
    assert!(net.run_until(500, |net| net.nodes["b"].left && net.is_whole()));
    net.join("c");
    assert!(net.run_until(100, Net::is_whole), "one node decides alone");
}

#[test]
fn a_node_that_restarts_while_it_leaves_stays() {
    let mut net = Net::ring(16, &["a", "b", "c"]);
    net.event("b", Event::Leave);
    assert!(net.run_until(100, |net| !net.view_of("a").leaving.is_empty()));
    net.kill("b");
    net.resume("b");
    assert!(net.run_until(SECOND, |net| net.view_of("a").leaving.is_empty()));
    net.run_ms(SECOND);
    assert!(net.is_whole());
    assert_eq!((net.ring_of("a").len(), net.nodes["b"].evictions), (3, 0));
}

#[test]
fn if_all_want_to_leave_at_once_one_stays() {
    let mut net = Net::ring(17, &["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        net.leave(name);
    }
    net.run_ms(5 * SECOND);
    let left = net.nodes.values().filter(|node| node.left).count();
    assert!(left >= 1 && net.nodes.values().filter(|node| node.up).count() == 3 - left);
    assert!(left < 3 || net.agreed.last_key_value().unwrap().1.ring.len() == 1);
}

#[test]
fn a_leaving_node_that_dies_is_removed() {
    let mut net = Net::ring(18, &["a", "b", "c", "d"]);
    net.event("b", Event::Leave);
    assert!(net.run_until(100, |net| !net.view_of("a").leaving.is_empty()));
    net.kill("b");
    assert!(net.run_until(2 * SECOND, Net::is_whole));
    assert_eq!(net.ring_of("a"), ["a", "c", "d"]);
}

#[test]
fn the_name_of_a_live_member_is_refused_to_another_node() {
    let mut net = Net::ring(14, &["a", "b", "c"]);
    net.join_as("impostor", "b");
    net.run_ms(3 * SECOND);
    let refusals = &net.nodes["impostor"].refusals;
    assert!(matches!(refusals[..], [JoinRefusal::NameInUse { .. }]), "{refusals:?}");
    assert_eq!(net.view_of("a").number, 3);
}

#[test]
fn a_joiner_that_no_ring_can_have_does_not_keep_others_out() {
    let member = |name, mirrors| Member {
        id: NodeId { name: Name::new(name).unwrap(), incarnation: 1 },
        address: ([127, 0, 0, 1], 7000).into(),
        witness: false,
        zone: None,
        mirrors,
    };
    let mut machine = Membership::found(Config::default(), member("a", 1), 1, Time(1));
    for joiner in [member("b", 0), member("c", 255), member("d", 1)] {
        let (from, body) = (Peer::from(&joiner), Body::Join { member: joiner, forwarded: false });
        let message = Message { cluster: 1, view: 0, to: None, body };
        machine.handle(Time(1), Event::Received { from, message }, &mut Vec::new());
    }
    machine.handle(Time(1), Event::Tick, &mut Vec::new());
    let view = machine.view().unwrap();
    assert!(view.is_coherent(), "{view:?}");
    assert!(view.ring.iter().map(|m| m.id.name.as_str()).eq(["a", "d"]), "{view:?}");
}

#[test]
fn a_confirmed_sync_reaches_whoever_proposes_next() {
    let mut net = Net::ring(15, &["a", "b", "c", "d"]);
    net.kill("c");
    net.run_ms(SECOND);
    let view = net.view_of("d");
    let d = view.ring[2].id.clone();
    assert_eq!(view.holders_of(&d).len(), 2, "c until now, and b");
    net.event("d", Event::SyncConfirmed { owner: d.clone(), view: view.number });
    let c = view.change.removed[0].clone();
    net.event("b", Event::OwnerSettled { owner: c.clone() });
    net.run_ms(SECOND);
    net.join("x");
    net.run_ms(SECOND);
    assert_eq!(net.view_of("a").holders_of(&d).len(), 1);
    assert_eq!(net.view_of("a").holders_of(&c), []);
}

/// One random life of a cluster, then a healed network that must become whole. False if so many
/// forgot that nobody may decide any more; then agreement is all that was checked.
fn storm(seed: u64) -> bool {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let mut net = Net::new(seed);
    let size = 3 + net.rng.below(4) as usize;
    net = Net::ring(seed, &names[..size]);
    net.rng.0 = seed.wrapping_mul(0x1234_5677);
    net.faults = Faults {
        loss: net.rng.below(20),
        double: net.rng.below(20),
        delay_min: 50,
        delay_max: 100 + net.rng.below(150_000),
        crash_after_persist: net.rng.below(100),
    };
    let mut forgetful = 1;
    for _ in 0..10 {
        let pause = 50 + net.rng.below(900);
        net.run_ms(pause);
        let name = names[net.rng.below(names.len() as u64) as usize];
        let known = net.nodes.get(name).map(|node| node.up);
        match (net.rng.below(6), known) {
            (_, None) => net.join(name),
            (0 | 1, Some(true)) => net.kill(name),
            (2, Some(true)) if forgetful > 0 => {
                forgetful -= 1;
                net.reboot(name);
            }
            (3 | 4, Some(true)) => {
                let mask = net.rng.below(128);
                let side = |bit: bool| -> Vec<&str> {
                    let of = |i: &usize| (mask >> i & 1 == 1) == bit;
                    (0..names.len()).filter(of).map(|i| names[i]).collect()
                };
                net.partition(&side(true), &side(false));
            }
            (5, _) => net.heal(),
            (_, Some(false)) => net.resume(name),
            _ => {}
        }
    }
    net.heal();
    net.faults = membership_net::QUIET;
    let down: Vec<String> =
        net.nodes.iter().filter(|(_, n)| !n.up).map(|(name, _)| name.clone()).collect();
    for name in down {
        net.resume(&name);
    }
    let mut whole = false;
    for _ in 0..30 {
        whole = net.run_until(2 * SECOND, Net::is_whole);
        if whole || !net.can_decide() {
            break;
        }
    }
    if !net.can_decide() {
        return false;
    }
    assert!(whole, "seed {seed}: not whole after healing{}", net.describe());
    // What was suspected before may still be acted on; after that there is rest.
    net.run_ms(3 * SECOND);
    let view = net.view_of("a");
    net.run_ms(SECOND);
    assert!(net.is_whole() && net.view_of("a") == view, "seed {seed}: a healed ring is at rest");
    true
}

fn storms(seeds: std::ops::Range<u64>) {
    let all = seeds.clone().count();
    let decidable = seeds.filter(|&seed| storm(seed)).count();
    assert!(decidable * 10 > all * 8, "only {decidable} of {all} storms left a majority");
}

#[test]
fn every_view_number_has_one_value_and_a_healed_ring_becomes_whole() {
    storms(0..150);
}

#[test]
fn every_view_number_has_one_value_and_a_healed_ring_becomes_whole_again() {
    storms(150..300);
}

/// Messages slower than the timeouts and links that come and go: everybody suspects somebody else,
/// and ballots of all kinds overlap. Nobody learns patience.
fn quarrel(seed: u64) -> usize {
    let names = ["a", "b", "c", "d", "e"];
    let patience = Duration::from_millis(300);
    let config = Config { suspicion_after: patience, suspicion_max: patience, ..Config::default() };
    let mut net = Net::ring_with(config, seed, &names);
    net.rng.0 = seed.wrapping_mul(0x0abc_def1);
    net.faults =
        Faults { loss: 25, delay_max: 400_000, crash_after_persist: 30, ..membership_net::QUIET };
    for _ in 0..100 {
        net.run_ms(40);
        let mut pick = || names[net.rng.below(5) as usize];
        let (name, other) = (pick(), pick());
        match net.rng.below(8) {
            _ if !net.nodes[name].up => net.resume(name),
            0 if name != other => net.partition(&[name], &[other]),
            1 => net.heal(),
            2 => net.kill(name),
            _ => {}
        }
    }
    net.sent.get("accept").map_or(0, Vec::len)
}

#[test]
fn overlapping_ballots_never_decide_two_values() {
    let slow: usize = (0..60).map(quarrel).sum();
    assert!(slow > 200, "only {slow} messages of slow ballots: too peaceful to tell");
}
