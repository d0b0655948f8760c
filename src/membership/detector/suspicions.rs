//! Who is suspected by whom, and when that is enough to go on without the suspect.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::membership::{NodeId, Time, View};

#[derive(Debug)]
struct Suspicion {
    since: Time,
    /// Who says so, and until when that counts.
    accusers: BTreeMap<NodeId, Time>,
    /// Who stands next to the suspect.
    neighbours: Vec<NodeId>,
    /// This node knows that nobody listens at the suspect's address.
    refused: bool,
    /// Since when it is enough for a removal.
    ripe: Option<Time>,
}

/// At most one entry per member, each with at most one accusation per member; in the ordinary case
/// those of the suspect's two neighbours. When half of a large ring is cut off, there are hundreds,
/// and as many members that say so again and again: only what changed is looked at.
#[derive(Debug)]
pub(super) struct Suspicions {
    all: BTreeMap<NodeId, Suspicion>,
    /// Whom each accuses.
    accused: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// When an accusation ends, and when a suspicion (of nobody's in particular) has lasted.
    timers: BTreeSet<(Time, NodeId, Option<NodeId>)>,
    /// Of whom it is to be seen anew whether it is enough.
    changed: BTreeSet<NodeId>,
    /// How much longer than two accusers one waits.
    lone_wait: Duration,
}

impl Suspicions {
    pub(super) fn new(lone_wait: Duration) -> Self {
        let (all, accused) = (BTreeMap::new(), BTreeMap::new());
        let (timers, changed) = (BTreeSet::new(), BTreeSet::new());
        Self { all, accused, timers, changed, lone_wait }
    }

    pub(super) fn contains(&self, node: &NodeId) -> bool {
        self.all.contains_key(node)
    }

    pub(super) fn suspects(&self) -> impl Iterator<Item = &NodeId> {
        self.all.keys()
    }

    /// Who may be removed, and since when.
    pub(super) fn ripe(&self) -> impl Iterator<Item = (&NodeId, Time)> {
        self.all.iter().filter_map(|(id, suspicion)| Some((id, suspicion.ripe?)))
    }

    pub(super) fn is_accused(&self, node: &NodeId, by: &NodeId) -> bool {
        self.all.get(node).is_some_and(|s| s.accusers.contains_key(by))
    }

    pub(super) fn accusers(&self, node: &NodeId) -> Vec<NodeId> {
        self.all.get(node).into_iter().flat_map(|s| s.accusers.keys().cloned()).collect()
    }

    /// `by` accuses a member of `view`. True when this accuser is new.
    pub(super) fn accuse(
        &mut self,
        view: &View,
        node: &NodeId,
        by: &NodeId,
        now: Time,
        until: Option<Time>,
    ) -> bool {
        if !self.all.contains_key(node) {
            let neighbours: Vec<_> = view.neighbours(node).map(|m| m.id.clone()).collect();
            self.changed.extend(neighbours.iter().cloned());
            self.timers.insert((now + self.lone_wait, node.clone(), None));
            let accusers = BTreeMap::new();
            let new = Suspicion { since: now, accusers, neighbours, refused: false, ripe: None };
            self.all.insert(node.clone(), new);
        }
        let ends = until.unwrap_or(FOREVER);
        let suspicion = self.all.get_mut(node);
        let before = suspicion.and_then(|s| s.accusers.insert(by.clone(), ends));
        if let Some(before) = before {
            self.timers.remove(&(before, node.clone(), Some(by.clone())));
        } else {
            self.accused.entry(by.clone()).or_default().insert(node.clone());
            self.changed.insert(node.clone());
        }
        if let Some(until) = until {
            self.timers.insert((until, node.clone(), Some(by.clone())));
        }
        before.is_none()
    }

    /// Whether this node knows more than silence.
    pub(super) fn set_refused(&mut self, node: &NodeId, refused: bool) {
        if let Some(suspicion) = self.all.get_mut(node).filter(|s| s.refused != refused) {
            suspicion.refused = refused;
            self.changed.insert(node.clone());
        }
    }

    /// True when there was that accusation.
    pub(super) fn withdraw(&mut self, node: &NodeId, by: &NodeId) -> bool {
        let Some(suspicion) = self.all.get_mut(node) else { return false };
        let Some(until) = suspicion.accusers.remove(by) else { return false };
        self.timers.remove(&(until, node.clone(), Some(by.clone())));
        if let Some(theirs) = self.accused.get_mut(by) {
            theirs.remove(node);
            if theirs.is_empty() {
                self.accused.remove(by);
            }
        }
        self.changed.insert(node.clone());
        if suspicion.accusers.is_empty() {
            self.timers.remove(&(suspicion.since + self.lone_wait, node.clone(), None));
            self.changed.extend(suspicion.neighbours.iter().cloned());
            self.all.remove(node);
        }
        true
    }

    /// `by` accuses these and nobody else any more.
    pub(super) fn withdraw_all_but(&mut self, by: &NodeId, accused: &BTreeSet<&NodeId>) {
        let theirs = self.accused.get(by).into_iter().flatten();
        let others: Vec<NodeId> = theirs.filter(|id| !accused.contains(id)).cloned().collect();
        for node in others {
            self.withdraw(&node, by);
        }
    }

    /// The ring has changed: keeps the accusations that `keep` wants, of suspect and accuser.
    pub(super) fn watch(&mut self, view: &View, keep: impl Fn(&NodeId, &NodeId) -> bool) {
        let all = self.all.iter().flat_map(|(node, s)| s.accusers.keys().map(move |by| (node, by)));
        let others = all.filter(|(node, by)| !keep(node, by));
        let others: Vec<_> = others.map(|(node, by)| (node.clone(), by.clone())).collect();
        for (node, by) in others {
            self.withdraw(&node, &by);
        }
        if self.all.is_empty() {
            return;
        }
        for (at, member) in view.ring.iter().enumerate() {
            if let Some(suspicion) = self.all.get_mut(&member.id) {
                let neighbours = view.neighbours_of(at).map(|m| m.id.clone());
                suspicion.neighbours = neighbours.collect();
                self.changed.insert(member.id.clone());
            }
        }
    }

    /// Sees which suspicions are enough now: those of both neighbours, or of the only one that can
    /// tell; a closed port; else one neighbour's that lasted.
    pub(super) fn ripen(&mut self, now: Time) {
        for node in std::mem::take(&mut self.changed) {
            let enough = self.is_enough(&node, now);
            let Some(suspicion) = self.all.get_mut(&node) else { continue };
            let lasts = (suspicion.since + self.lone_wait, node, None);
            match enough {
                true => self.timers.remove(&lasts),
                false => self.timers.insert(lasts),
            };
            suspicion.ripe = enough.then(|| suspicion.ripe.unwrap_or(now));
        }
    }

    fn is_enough(&self, node: &NodeId, now: Time) -> bool {
        let Some(suspicion) = self.all.get(node) else { return false };
        let mut able = suspicion.neighbours.iter().filter(|id| !self.contains(id));
        suspicion.refused
            || now.since(suspicion.since) >= self.lone_wait
            || able.all(|id| suspicion.accusers.contains_key(id))
    }

    /// Forgets the accusations that count no more, and finds the suspicions that have lasted.
    pub(super) fn time_passes(&mut self, now: Time) {
        let due = self.timers.iter().take_while(|(at, ..)| *at <= now);
        let due: Vec<_> = due.map(|(_, node, by)| (node.clone(), by.clone())).collect();
        for (node, by) in due {
            match by {
                Some(by) => drop(self.withdraw(&node, &by)),
                None => drop(self.changed.insert(node)),
            }
        }
    }

    /// When something changes although nobody says anything.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, ..)| *at)
    }
}

/// The end of an accusation that has none.
const FOREVER: Time = Time(u64::MAX);
