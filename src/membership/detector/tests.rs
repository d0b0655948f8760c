//! Over simulated time: how long the detector waits, and for whom.

use super::*;
use crate::membership::change::tests::{founded, join, member, remove};

const MINUTE: u64 = 60_000;

fn at(ms: u64) -> Time {
    Time(1) + Duration::from_millis(ms)
}

fn id(name: &str) -> NodeId {
    member(name, 1).id
}

/// Node b of the ring of these, having heard its neighbours at 0.
fn of_ring(names: &[&str]) -> (Detector, Arc<View>) {
    let view = Arc::new(founded(names));
    let mut detector = Detector::new(Config::default(), id("b"));
    detector.watch(&view, &[], at(0));
    detector.poll(at(0));
    (detector, view)
}

fn detector() -> (Detector, Arc<View>) {
    of_ring(&["a", "b", "c", "d"])
}

/// Both neighbours talk every `gap`, and this node runs when it should.
fn talk(detector: &mut Detector, from: u64, to: u64, gap: u64) {
    for ms in (from..=to).step_by(50) {
        if ms % gap == 0 {
            detector.heard(&id("a"), at(ms));
            detector.heard(&id("c"), at(ms));
        }
        detector.poll(at(ms));
        assert_eq!(suspects(detector), [], "at {ms}");
    }
}

/// Only a talks from now on. How long it takes until c is suspected.
fn until_suspected(detector: &mut Detector, heard: u64) -> u64 {
    for ms in (heard + 50..heard + 10_000).step_by(50) {
        detector.heard(&id("a"), at(ms));
        detector.poll(at(ms));
        if detector.is_suspect(&id("c")) {
            return ms - heard;
        }
    }
    panic!("c is never suspected");
}

fn suspects(detector: &Detector) -> Vec<NodeId> {
    detector.suspects().cloned().collect()
}

fn removable(detector: &Detector) -> Vec<NodeId> {
    detector.removable().map(|(id, _)| id.clone()).collect()
}

fn accuses(counter: u64, names: &[&str]) -> Beat {
    Beat { counter, suspects: names.iter().map(|name| id(name)).collect(), ..Beat::default() }
}

#[test]
fn a_silent_neighbour_is_suspected_until_it_is_heard_again() {
    let (mut detector, _) = detector();
    assert_eq!(until_suspected(&mut detector, 0), 600);
    assert_eq!(suspects(&detector), [id("c")]);
    detector.heard(&id("c"), at(610));
    assert_eq!(suspects(&detector), []);
    assert!(detector.poll(at(620)), "everybody is told that it was an error");
    let (silence, patience) = (Duration::from_millis(600), Duration::from_millis(600));
    let why = Reason::Silent { silence, patience };
    let suspected = Finding::Suspected { node: id("c"), why };
    let withdrawn = Finding::Withdrawn { node: id("c"), silence: Duration::from_millis(610) };
    assert_eq!(detector.findings(), [suspected, withdrawn], "each is told once");
    assert_eq!(detector.findings(), []);
}

#[test]
fn the_deadline_comes_when_the_patience_ends() {
    let (mut detector, _) = detector();
    detector.heard(&id("a"), at(50));
    detector.heard(&id("c"), at(70));
    assert_eq!(detector.deadline(), Some(at(650)));
    detector.gone(&id("c"));
    assert_eq!(detector.deadline(), Some(at(270)));
}

#[test]
fn patience_grows_with_the_gaps_and_comes_down_again() {
    let (mut detector, _) = detector();
    talk(&mut detector, 50, 1000, 100);
    talk(&mut detector, 1050, 3000, 150);
    // A few delays of 50 ms among many heartbeats in time.
    talk(&mut detector, 3050, MINUTE, 100);
    assert_eq!(until_suspected(&mut detector, MINUTE), 600 + 20 * 50);
    let quiet = MINUTE + 1650;
    talk_again(&mut detector, quiet);
    talk(&mut detector, quiet + 50, 6 * MINUTE, 100);
    assert_eq!(until_suspected(&mut detector, 6 * MINUTE), 600);
}

fn talk_again(detector: &mut Detector, ms: u64) {
    detector.heard(&id("a"), at(ms));
    detector.heard(&id("c"), at(ms));
    detector.poll(at(ms));
}

#[test]
fn a_wrong_suspicion_takes_the_patience_to_its_limit() {
    let (mut detector, _) = detector();
    let mut heard = 0;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let wait = until_suspected(&mut detector, heard);
        waits.push(wait);
        heard += wait;
        talk_again(&mut detector, heard);
    }
    assert_eq!(waits, [600, 5000, 5000]);
}

#[test]
fn who_did_not_run_suspects_nobody_at_once_and_is_more_patient_afterwards() {
    let (mut detector, _) = detector();
    // 100 ms are the time between two heartbeats; the rest is lateness.
    assert!(!detector.poll(at(150)));
    talk_again(&mut detector, 150);
    assert_eq!(until_suspected(&mut detector, 150), 600 + 20 * 50);

    let (mut detector, _) = self::detector();
    assert!(!detector.poll(at(60_000)));
    assert_eq!(suspects(&detector), []);
}

#[test]
fn a_closed_port_shortens_the_wait_but_is_no_proof() {
    let (mut detector, _) = detector();
    talk(&mut detector, 50, 3000, 500);
    detector.gone(&id("c"));
    assert!(!detector.poll(at(3090)));
    detector.poll(at(3190));
    assert_eq!(suspects(&detector), []);
    assert!(detector.poll(at(3200)), "two heartbeats, whatever the gaps were");
    assert_eq!(removable(&detector), [id("c")], "and nobody else is asked");
    detector.heard(&id("c"), at(3210));
    assert_eq!(removable(&detector), []);
}

#[test]
fn one_accuser_waits_longer_than_two() {
    let (mut detector, view) = detector();
    let wait = until_suspected(&mut detector, 0);
    assert_eq!(removable(&detector), [], "d, its other neighbour, may hear it");
    for ms in (wait..2 * wait).step_by(50) {
        detector.heard(&id("a"), at(ms));
        detector.report(&view, &id("d"), &accuses(ms, &[]), at(ms));
        detector.poll(at(ms));
        assert_eq!(removable(&detector), [], "at {ms}");
    }
    detector.poll(at(2 * wait));
    assert_eq!(removable(&detector), [id("c")], "as long again");

    let (mut detector, view) = self::detector();
    let wait = until_suspected(&mut detector, 0);
    detector.report(&view, &id("d"), &accuses(1, &["c"]), at(wait + 10));
    detector.poll(at(wait + 10));
    assert_eq!(removable(&detector), [id("c")]);
    detector.report(&view, &id("d"), &accuses(2, &[]), at(wait + 20));
    detector.poll(at(wait + 20));
    assert_eq!(removable(&detector), [], "d hears it again");
}

#[test]
fn the_only_neighbour_that_can_tell_is_enough() {
    let (mut detector, _) = of_ring(&["b", "c"]);
    detector.poll(at(100));
    for ms in (150..=600).step_by(50) {
        detector.poll(at(ms));
    }
    assert_eq!(removable(&detector), [id("c")], "a ring of two");

    let (mut detector, view) = of_ring(&["a", "b", "c", "d", "e"]);
    let wait = until_suspected(&mut detector, 0);
    detector.report(&view, &id("e"), &accuses(1, &["d"]), at(wait));
    detector.poll(at(wait));
    assert_eq!(removable(&detector), [id("c"), id("d")], "c and d died together");
}

#[test]
fn a_report_counts_for_a_while_and_a_suspects_report_does_not() {
    let (mut detector, view) = detector();
    detector.report(&view, &id("c"), &accuses(5, &["d"]), at(10));
    detector.report(&view, &id("d"), &accuses(5, &["c"]), at(20));
    detector.report(&view, &id("x"), &accuses(5, &["a"]), at(20));
    assert_eq!(suspects(&detector), [id("d")]);
    assert_eq!(detector.findings(), [Finding::Accused { node: id("d"), by: id("c") }]);
    detector.report(&view, &id("c"), &accuses(4, &[]), at(30));
    assert_eq!(suspects(&detector), [id("d")], "an old beat that comes late withdraws nothing");
    detector.report(&view, &id("c"), &accuses(6, &[]), at(40));
    assert_eq!(suspects(&detector), []);
    detector.report(&view, &id("c"), &accuses(7, &["d"]), at(50));
    for ms in (100..1250).step_by(50) {
        talk_again(&mut detector, ms);
        assert_eq!(suspects(&detector), [id("d")], "at {ms}");
    }
    talk_again(&mut detector, 1250);
    assert_eq!(suspects(&detector), [], "twice the time after which c would have said it again");
}

/// The ring goes on without c, which comes back as its next life.
fn next_life(detector: &mut Detector, view: &View, now: u64) -> Arc<View> {
    let without = Arc::new(view.next(&remove(&["c"])).unwrap());
    detector.watch(&without, &[id("d")], at(now));
    detector.heard(&id("c"), at(now + 100));
    detector.poll(at(now + 100));
    let back = Arc::new(without.next(&join(&[member("c", 2)])).unwrap());
    detector.watch(&back, &[], at(now + 200));
    detector.poll(at(now + 200));
    back
}

fn patience(detector: &mut Detector, node: &NodeId, heard: u64) -> u64 {
    for ms in (heard + 50..heard + 10_000).step_by(50) {
        let others = [id("a"), id("b"), id("d")];
        others.iter().filter(|other| *other != node).for_each(|n| detector.heard(n, at(ms)));
        detector.poll(at(ms));
        if detector.is_suspect(node) {
            return ms - heard;
        }
    }
    panic!("{node} is never suspected");
}

#[test]
fn who_was_removed_by_mistake_is_met_with_more_patience_in_its_next_life() {
    let (mut detector, view) = of_ring(&["a", "b", "c"]);
    let wait = until_suspected(&mut detector, 0);
    detector.findings();
    next_life(&mut detector, &view, wait);
    let by_d =
        Finding::Removed { node: id("c"), accusers: vec![id("b")], proposers: vec![id("d")] };
    let silence = Duration::from_millis(wait + 100);
    let mistake = Finding::RemovedByMistake { node: id("c"), silence };
    assert_eq!(detector.findings(), [by_d, mistake]);
    let again = patience(&mut detector, &member("c", 2).id, wait + 200);
    assert_eq!(again, 5000, "the limit");
}

#[test]
fn the_next_life_of_a_process_that_died_is_met_as_any_other() {
    let (mut detector, view) = of_ring(&["a", "b", "c"]);
    detector.gone(&id("c"));
    assert_eq!(until_suspected(&mut detector, 0), 200);
    next_life(&mut detector, &view, 200);
    assert_eq!(patience(&mut detector, &member("c", 2).id, 400), 600);
}

#[test]
fn a_thousand_neighbours_one_after_the_other_leave_bounded_memory() {
    let (mut detector, mut view) = of_ring(&["a", "b"]);
    for number in 0..1000 {
        let now = 200 * number;
        let name = format!("n{number}");
        view = Arc::new(view.next(&join(&[member(&name, 1)])).unwrap());
        detector.watch(&view, &[], at(now));
        detector.poll(at(now + 60));
        detector.heard(&id(&name), at(now + 120));
        detector.heard(&id("a"), at(now + 120));
        detector.report(&view, &id(&name), &accuses(1, &["a"]), at(now + 120));
        detector.poll(at(now + 120));
        view = Arc::new(view.next(&remove(&[&name])).unwrap());
        let mut short = (*view).clone();
        short.holders.retain(|h| !h.is_gone());
        view = Arc::new(short);
        detector.watch(&view, &[], at(now + 150));
    }
    let remembered = [detector.delays.len(), detector.removed.len()];
    assert!(remembered.iter().all(|&len| (1..=REMEMBERED_MAX).contains(&len)), "{remembered:?}");
    assert!(detector.findings.len() <= FINDINGS_MAX);
    assert_eq!((detector.counters.len(), suspects(&detector).len()), (0, 0));
}
