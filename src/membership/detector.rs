//! Who seems to have failed: own observation of the two neighbours, and what others report.
//!
//! May be wrong at any time. Bounded by the ring: at most one entry per member, with at most its
//! two neighbours' and this node's accusation in the ordinary case.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Beat, Config, NodeId, Time, View};

#[derive(Debug)]
struct Watch {
    heard: Time,
    /// The transport says that it is gone.
    gone: bool,
}

#[derive(Debug)]
struct Suspicion {
    since: Time,
    /// Who says so, and until when that counts.
    accusers: BTreeMap<NodeId, Time>,
}

#[derive(Debug)]
pub(super) struct Detector {
    config: Config,
    me: NodeId,
    /// The neighbours.
    watched: BTreeMap<NodeId, Watch>,
    suspects: BTreeMap<NodeId, Suspicion>,
    /// The newest beat of each member that reported a suspicion.
    counters: BTreeMap<NodeId, u64>,
    polled: Time,
    /// When own suspicions are told again.
    report_at: Option<Time>,
    /// An own suspicion was wrong, and nobody was told yet.
    retracted: bool,
}

impl Detector {
    pub(super) fn new(config: Config, me: NodeId, now: Time) -> Self {
        let (watched, suspects, counters) = Default::default();
        Self {
            config,
            me,
            watched,
            suspects,
            counters,
            polled: now,
            report_at: None,
            retracted: false,
        }
    }

    /// Watches the neighbours in `view`. A new neighbour has the full time to be heard.
    pub(super) fn watch(&mut self, view: &View, now: Time) {
        let mut before = std::mem::take(&mut self.watched);
        for id in view.neighbours(&self.me).map(|m| m.id.clone()) {
            let watch = before.remove(&id).unwrap_or(Watch { heard: now, gone: false });
            self.watched.insert(id, watch);
        }
        let ring: BTreeSet<&NodeId> = view.ring.iter().map(|m| &m.id).collect();
        for (suspect, suspicion) in &mut self.suspects {
            let watched = self.watched.contains_key(suspect);
            suspicion
                .accusers
                .retain(|by, _| if *by == self.me { watched } else { ring.contains(by) });
        }
        self.suspects.retain(|id, suspicion| ring.contains(id) && !suspicion.accusers.is_empty());
        self.counters.retain(|id, _| ring.contains(id));
    }

    /// `node` said something.
    pub(super) fn heard(&mut self, node: &NodeId, now: Time) {
        let Some(watch) = self.watched.get_mut(node) else { return };
        *watch = Watch { heard: now, gone: false };
        self.retracted |= self.withdraw(node, &self.me.clone());
    }

    /// The transport lost `node` and could not reach it again: a shorter silence will do.
    pub(super) fn gone(&mut self, node: &NodeId) {
        if let Some(watch) = self.watched.get_mut(node) {
            watch.gone = true;
        }
    }

    /// What member `from` says of others. The word of a suspect does not count.
    pub(super) fn report(&mut self, view: &View, from: &NodeId, beat: &Beat, now: Time) {
        let newest = self.counters.get(from).copied().unwrap_or(0);
        if beat.counter < newest || !view.contains(from) || self.is_suspect(from) {
            return;
        }
        self.counters.insert(from.clone(), beat.counter);
        let accused: BTreeSet<&NodeId> = beat
            .suspects
            .iter()
            .filter(|id| **id != self.me && *id != from && view.contains(id))
            .take(2)
            .collect();
        let acquitted: Vec<NodeId> =
            self.suspects.keys().filter(|id| !accused.contains(id)).cloned().collect();
        for id in acquitted {
            self.withdraw(&id, from);
        }
        let until = now + self.config.suspicion_after * 2;
        for id in accused {
            self.accuse(id, from.clone(), now, until);
        }
    }

    /// Looks for silence. True when own suspicions are to be told to everybody.
    pub(super) fn poll(&mut self, now: Time) -> bool {
        // Who was not running himself cannot blame others for silence.
        let stalled = now.since(self.polled);
        if stalled > self.config.suspicion_after / 2 {
            for watch in self.watched.values_mut() {
                watch.heard = now.min(watch.heard + stalled);
            }
        }
        self.polled = now;
        for suspicion in self.suspects.values_mut() {
            suspicion.accusers.retain(|_, until| *until > now);
        }
        self.suspects.retain(|_, suspicion| !suspicion.accusers.is_empty());

        let silent = |w: &Watch| now.since(w.heard) >= self.patience(w);
        let silent: Vec<NodeId> =
            self.watched.iter().filter(|(_, w)| silent(w)).map(|(id, _)| id.clone()).collect();
        let mut news = std::mem::take(&mut self.retracted);
        for id in &silent {
            news |= self.accuse(id, self.me.clone(), now, Time(u64::MAX));
        }
        if silent.is_empty() {
            self.report_at = None;
            return news;
        }
        if news || self.report_at.is_none_or(|at| at <= now) {
            self.report_at = Some(now + self.config.suspicion_after / 2);
            return true;
        }
        false
    }

    /// When [`Detector::poll`] may find something.
    pub(super) fn deadline(&self) -> Option<Time> {
        let quiet = self.watched.iter().filter(|(id, _)| !self.accused_by_me(id));
        let silence = quiet.map(|(_, watch)| watch.heard + self.patience(watch));
        let ends = self.suspects.values().flat_map(|s| s.accusers.values().copied());
        silence.chain(ends.filter(|t| t.0 != u64::MAX)).chain(self.report_at).min()
    }

    /// Whom this node itself does not hear.
    pub(super) fn own(&self) -> Vec<NodeId> {
        self.watched.keys().filter(|id| self.accused_by_me(id)).cloned().collect()
    }

    pub(super) fn is_suspect(&self, node: &NodeId) -> bool {
        self.suspects.contains_key(node)
    }

    /// All suspects and since when.
    pub(super) fn suspects(&self) -> impl Iterator<Item = (&NodeId, Time)> {
        self.suspects.iter().map(|(id, suspicion)| (id, suspicion.since))
    }

    fn patience(&self, watch: &Watch) -> Duration {
        let full = self.config.suspicion_after;
        if watch.gone { full.min(self.config.heartbeat_interval * 2) } else { full }
    }

    fn accused_by_me(&self, node: &NodeId) -> bool {
        self.suspects.get(node).is_some_and(|s| s.accusers.contains_key(&self.me))
    }

    /// True when this accuser is new.
    fn accuse(&mut self, node: &NodeId, by: NodeId, now: Time, until: Time) -> bool {
        let new = || Suspicion { since: now, accusers: BTreeMap::new() };
        let suspicion = self.suspects.entry(node.clone()).or_insert_with(new);
        suspicion.accusers.insert(by, until).is_none()
    }

    fn withdraw(&mut self, node: &NodeId, by: &NodeId) -> bool {
        let Some(suspicion) = self.suspects.get_mut(node) else { return false };
        let withdrawn = suspicion.accusers.remove(by).is_some();
        if suspicion.accusers.is_empty() {
            self.suspects.remove(node);
        }
        withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::change::tests::{founded, member};

    fn at(ms: u64) -> Time {
        Time(0) + Duration::from_millis(ms)
    }

    fn id(name: &str) -> NodeId {
        member(name, 1).id
    }

    /// Node b of the ring a b c d, having heard both neighbours at 0.
    fn detector() -> (Detector, View) {
        let view = founded(&["a", "b", "c", "d"]);
        let mut detector = Detector::new(Config::default(), id("b"), at(0));
        detector.watch(&view, at(0));
        (detector, view)
    }

    fn suspects(detector: &Detector) -> Vec<NodeId> {
        detector.suspects().map(|(id, _)| id.clone()).collect()
    }

    #[test]
    fn a_silent_neighbour_is_suspected_until_it_is_heard_again() {
        let (mut detector, _) = detector();
        for ms in (100..600).step_by(100) {
            detector.heard(&id("a"), at(ms));
            assert!(!detector.poll(at(ms)));
        }
        assert!(detector.poll(at(600)));
        assert_eq!(suspects(&detector), [id("c")]);
        detector.heard(&id("c"), at(610));
        assert_eq!(suspects(&detector), []);
        assert!(detector.poll(at(620)), "everybody is told that it was an error");
    }

    #[test]
    fn a_node_that_slept_itself_suspects_nobody_at_once() {
        let (mut detector, _) = detector();
        assert!(!detector.poll(at(60_000)));
        assert_eq!(suspects(&detector), []);
    }

    #[test]
    fn a_lost_connection_shortens_the_wait_but_is_no_proof() {
        let (mut detector, _) = detector();
        detector.gone(&id("c"));
        assert!(!detector.poll(at(150)));
        assert!(detector.poll(at(200)));
        assert_eq!(suspects(&detector), [id("c")]);
    }

    #[test]
    fn a_report_counts_for_a_while_and_a_suspects_report_does_not() {
        let (mut detector, view) = detector();
        let beat =
            |counter, name: &str| Beat { counter, suspects: vec![id(name)], ..Beat::default() };
        detector.report(&view, &id("c"), &beat(5, "d"), at(10));
        detector.report(&view, &id("d"), &beat(5, "c"), at(20));
        detector.report(&view, &id("x"), &beat(5, "a"), at(20));
        assert_eq!(suspects(&detector), [id("d")]);
        detector.report(&view, &id("c"), &Beat { counter: 4, ..Beat::default() }, at(30));
        assert_eq!(suspects(&detector), [id("d")], "an old beat that comes late withdraws nothing");
        detector.report(&view, &id("c"), &Beat { counter: 6, ..Beat::default() }, at(40));
        assert_eq!(suspects(&detector), []);
    }
}
