//! Who seems to have failed: own observation of the two neighbours, and what others report.
//!
//! May be wrong at any time. Apart from the decision: it says whom this node would rather go on
//! without, and the ballots see to it that all do the same.
//!
//! # How long a neighbour may be silent
//!
//! ```text
//! patience = floor + 20 × the longest delay lately, theirs or own,   at most cap
//! ```
//!
//! *Floor* and *cap* are configured; *lately* is the last two to four minutes ([`longest`]).
//!
//! * **Their delay** is by how much a gap between two messages of this neighbour was longer than
//!   the time between two heartbeats. It is kept by the neighbour's name, so that its next life is
//!   met with the same patience. A suspicion that turns out wrong ends as such a gap, too, also
//!   when the neighbour was removed for it: the next one takes up to the cap, so that starving
//!   nodes do not remove each other again and again.
//! * **Own delay** is how much later than it had to this node ran. Who was not running cannot
//!   blame others: that time is no silence of theirs. And who is late now and then trusts itself
//!   less in general: the *local health* of Dadgar, Phillips, Currey, *Lifeguard: local health
//!   awareness for more accurate failure detection*, 2018.
//! * **A maximum** is used and not a smoothed mean with its deviation, as for retransmissions (RFC
//!   6298: `SRTT + 4 × RTTVAR`), nor a normal distribution fitted to the gaps (Hayashibara and
//!   others, *The φ accrual failure detector*, 2004): long gaps of a machine that is short of time
//!   are rare and far from the mean. The one forgets them within a second, the other dilutes them in
//!   a thousand ordinary ones.
//! * **20** was measured: on two cores with four busy threads each and compilers beside them, servers
//!   whose timers ran 40 to 50 ms late for some seconds did not run for 930 and 1050 ms then. On
//!   a quiet machine delays are 1 to 5 ms.
//! * **A closed port** (the connection was reset and a new one refused) is strong: two heartbeats of
//!   silence are enough then. They leave a server that restarts at once the time to do so.
//!
//! # When a suspicion is enough
//!
//! At once when both neighbours of the suspect have it, or the only one that is not itself a
//! suspect, or when its port is closed; else after the floor has passed once more. So one node that
//! hears badly, or one bad link, costs the others time and not a member. (SWIM's suspicion and
//! Lifeguard's independent confirmations, with the two observers that a ring has.)

mod finding;
mod longest;
mod suspicions;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use self::finding::{Finding, Reason};
use self::{
    longest::{Longest, WINDOW},
    suspicions::Suspicions,
};
use super::{Beat, Config, NodeId, Time, View};
use crate::name::Name;

/// A delay that was seen lately adds this many times itself.
const MARGIN: u32 = 20;
/// Most accusations that one heartbeat can make: it has two neighbours to watch.
const ACCUSED_MAX: usize = 2;
/// Most names whose delays are remembered, and most removed neighbours that may prove to live.
const REMEMBERED_MAX: usize = 32;
/// Most findings that wait to be told.
const FINDINGS_MAX: usize = 64;

#[derive(Debug)]
struct Neighbour {
    heard: Time,
    /// The transport says that nobody listens there.
    refused: bool,
}

#[derive(Debug)]
pub(super) struct Detector {
    config: Config,
    me: NodeId,
    view: Option<Arc<View>>,
    neighbours: BTreeMap<NodeId, Neighbour>,
    suspicions: Suspicions,
    /// How much later than expected each was heard.
    delays: BTreeMap<Name, Longest>,
    own_delays: Longest,
    /// Neighbours that were removed, and when they were heard last.
    removed: BTreeMap<NodeId, Time>,
    /// The newest beat of each member that reported a suspicion.
    counters: BTreeMap<NodeId, u64>,
    /// When this node ran last.
    ran: Option<Time>,
    /// When own suspicions are told again.
    report_at: Option<Time>,
    /// An own suspicion was wrong, and nobody was told yet.
    retracted: bool,
    findings: Vec<Finding>,
}

impl Detector {
    pub(super) fn new(config: Config, me: NodeId) -> Self {
        Self {
            suspicions: Suspicions::new(config.suspicion_after),
            config,
            me,
            view: None,
            neighbours: BTreeMap::new(),
            delays: BTreeMap::new(),
            own_delays: Longest::default(),
            removed: BTreeMap::new(),
            counters: BTreeMap::new(),
            ran: None,
            report_at: None,
            retracted: false,
            findings: Vec::new(),
        }
    }

    /// Watches the neighbours in `view`, which these nodes are known to have proposed. A new
    /// neighbour has the full time to be heard.
    pub(super) fn watch(&mut self, view: &Arc<View>, proposers: &[NodeId], now: Time) {
        self.tell_removals(view, proposers);
        let mut before = std::mem::take(&mut self.neighbours);
        for id in view.neighbours(&self.me).map(|m| m.id.clone()) {
            let known = before.remove(&id);
            self.neighbours.insert(id, known.unwrap_or(Neighbour { heard: now, refused: false }));
        }
        // Whose port was closed is dead; one that fell silent may turn out to live.
        let suspect = |id: &NodeId| view.change.removed.contains(id);
        let silent = before.into_iter().filter(|(id, n)| suspect(id) && !n.refused);
        self.removed.extend(silent.map(|(id, neighbour)| (id, neighbour.heard)));
        self.removed.retain(|_, heard| now.since(*heard) < WINDOW);
        while self.removed.len() > REMEMBERED_MAX {
            self.removed.pop_first();
        }
        self.delays.retain(|_, longest| !longest.get(now).is_zero());

        self.suspicions.watch(view, |suspect, by| {
            let can_tell = match *by == self.me {
                true => self.neighbours.contains_key(suspect),
                false => view.contains(by),
            };
            view.contains(suspect) && can_tell
        });
        for gone in self.view.iter().flat_map(|before| view.gone_since(before)) {
            self.counters.remove(&gone);
        }
        self.view = Some(view.clone());
    }

    fn tell_removals(&mut self, view: &View, proposers: &[NodeId]) {
        let Some(before) = &self.view else { return };
        for node in view.change.removed.iter().filter(|id| before.contains(id)) {
            let (accusers, proposers) = (self.suspicions.accusers(node), proposers.to_vec());
            let node = node.clone();
            note(&mut self.findings, Finding::Removed { node, accusers, proposers });
        }
    }

    /// `node` said something.
    pub(super) fn heard(&mut self, node: &NodeId, now: Time) {
        self.notice_own_delay(now);
        if let Some(heard) = self.removed.remove(node) {
            let (node, silence) = (node.clone(), now.since(heard));
            self.learn_gap(&node.name, silence, now);
            return note(&mut self.findings, Finding::RemovedByMistake { node, silence });
        }
        let Some(neighbour) = self.neighbours.get_mut(node) else { return };
        let silence = now.since(neighbour.heard);
        let restarted = neighbour.refused;
        *neighbour = Neighbour { heard: now, refused: false };
        if !restarted {
            self.learn_gap(&node.name, silence, now);
        }
        self.suspicions.set_refused(node, false);
        if self.suspicions.withdraw(node, &self.me) {
            self.retracted = true;
            let node = node.clone();
            note(&mut self.findings, Finding::Withdrawn { node, silence });
        }
    }

    fn learn_gap(&mut self, name: &Name, gap: Duration, now: Time) {
        if !self.delays.contains_key(name) && self.delays.len() >= REMEMBERED_MAX {
            let near = |name: &Name| self.neighbours.keys().any(|id| id.name == *name);
            self.delays.retain(|name, _| near(name));
        }
        let delay = gap.saturating_sub(self.config.heartbeat_interval);
        let delay = delay.min(self.config.suspicion_max);
        self.delays.entry(name.clone()).or_default().observe(delay, now);
    }

    /// Nobody listens at `node`'s address: a shorter silence will do.
    pub(super) fn gone(&mut self, node: &NodeId) {
        if let Some(neighbour) = self.neighbours.get_mut(node) {
            neighbour.refused = true;
        }
    }

    /// What member `from` says of others. The word of a suspect does not count.
    pub(super) fn report(&mut self, view: &View, from: &NodeId, beat: &Beat, now: Time) {
        let newest = self.counters.get_mut(from);
        let is_old = newest.as_ref().is_some_and(|newest| beat.counter < **newest);
        if is_old || self.suspicions.contains(from) {
            return;
        }
        match newest {
            Some(newest) => *newest = beat.counter,
            None if view.contains(from) => {
                self.counters.insert(from.clone(), beat.counter);
            }
            None => return,
        }
        let accused: BTreeSet<&NodeId> = beat
            .suspects
            .iter()
            .filter(|id| **id != self.me && *id != from && view.contains(id))
            .take(ACCUSED_MAX)
            .collect();
        self.suspicions.withdraw_all_but(from, &accused);
        let until = now + self.config.suspicion_after * 2;
        for node in accused {
            if self.suspicions.accuse(view, node, from, now, Some(until)) {
                let (node, by) = (node.clone(), from.clone());
                note(&mut self.findings, Finding::Accused { node, by });
            }
        }
    }

    /// Looks for silence. True when own suspicions are to be told to everybody.
    pub(super) fn poll(&mut self, now: Time) -> bool {
        self.notice_own_delay(now);
        let Some(view) = &self.view else { return false };
        self.suspicions.time_passes(now);
        let mut news = std::mem::take(&mut self.retracted);
        for (node, why) in self.silent(now) {
            if self.suspicions.accuse(view, &node, &self.me, now, None) {
                news = true;
                note(&mut self.findings, Finding::Suspected { node, why });
            }
        }
        for (node, neighbour) in &self.neighbours {
            if neighbour.refused && self.suspicions.is_accused(node, &self.me) {
                self.suspicions.set_refused(node, true);
            }
        }
        self.suspicions.ripen(now);
        if self.own().is_empty() {
            self.report_at = None;
            return news;
        }
        let due = news || self.report_at.is_none_or(|at| at <= now);
        if due {
            self.report_at = Some(now + self.config.suspicion_after / 2);
        }
        due
    }

    fn silent(&self, now: Time) -> Vec<(NodeId, Reason)> {
        let reason = |(node, neighbour): (&NodeId, &Neighbour)| {
            let (silence, patience) = (now.since(neighbour.heard), self.patience(node, neighbour));
            let why = match neighbour.refused {
                true => Reason::Refused { silence },
                false => Reason::Silent { silence, patience },
            };
            (silence >= patience).then(|| (node.clone(), why))
        };
        self.neighbours.iter().filter_map(reason).collect()
    }

    /// A node that has neighbours runs at every heartbeat, or it is late.
    fn notice_own_delay(&mut self, now: Time) {
        let Some(ran) = self.ran.replace(now) else { return };
        let late = now.since(ran).saturating_sub(self.config.heartbeat_interval);
        if late.is_zero() || self.neighbours.is_empty() {
            return;
        }
        self.own_delays.observe(late.min(self.config.suspicion_max), now);
        for neighbour in self.neighbours.values_mut() {
            neighbour.heard = now.min(neighbour.heard + late);
        }
    }

    fn patience(&self, node: &NodeId, neighbour: &Neighbour) -> Duration {
        let Config { suspicion_after: floor, suspicion_max, .. } = self.config;
        let now = self.ran.unwrap_or_default();
        let theirs = self.delays.get(&node.name).map_or(Duration::ZERO, |longest| longest.get(now));
        let delay = theirs.max(self.own_delays.get(now));
        let full = (floor + delay * MARGIN).min(suspicion_max.max(floor));
        if neighbour.refused { full.min(self.config.silence_when_refused()) } else { full }
    }

    /// When [`Detector::poll`] may find something.
    pub(super) fn deadline(&self) -> Option<Time> {
        let accused = |id: &NodeId| self.suspicions.is_accused(id, &self.me);
        let quiet = self.neighbours.iter().filter(|(id, _)| !accused(id));
        let silence = quiet.map(|(id, neighbour)| neighbour.heard + self.patience(id, neighbour));
        silence.chain(self.suspicions.deadline()).chain(self.report_at).min()
    }

    /// Whom this node itself does not hear.
    pub(super) fn own(&self) -> Vec<NodeId> {
        let accused = |id: &&NodeId| self.suspicions.is_accused(id, &self.me);
        self.neighbours.keys().filter(accused).cloned().collect()
    }

    pub(super) fn is_suspect(&self, node: &NodeId) -> bool {
        self.suspicions.contains(node)
    }

    /// Whom somebody does not hear.
    pub(super) fn suspects(&self) -> impl Iterator<Item = &NodeId> {
        self.suspicions.suspects()
    }

    /// Whom the ring had better go on without, and since when.
    pub(super) fn removable(&self) -> impl Iterator<Item = (&NodeId, Time)> {
        self.suspicions.ripe()
    }

    /// What there is to tell since the last time.
    pub(super) fn findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }
}

/// What nobody asks for is not kept for ever.
fn note(findings: &mut Vec<Finding>, finding: Finding) {
    if findings.len() < FINDINGS_MAX {
        findings.push(finding);
    }
}
