//! Who is suspected by whom, and when that is enough to go on without the suspect.

use std::{collections::BTreeMap, time::Duration};

use crate::membership::{NodeId, Time, View};

#[derive(Debug)]
struct Suspicion {
    since: Time,
    /// Who says so, and until when that counts.
    accusers: BTreeMap<NodeId, Time>,
    /// This node knows that nobody listens at the suspect's address.
    refused: bool,
    /// Since when it is enough for a removal.
    ripe: Option<Time>,
}

/// At most one entry per member, each with at most one accusation per member; in the ordinary case
/// those of the suspect's two neighbours.
#[derive(Debug)]
pub(super) struct Suspicions {
    all: BTreeMap<NodeId, Suspicion>,
    /// How much longer than two accusers one waits.
    lone_wait: Duration,
}

impl Suspicions {
    pub(super) fn new(lone_wait: Duration) -> Self {
        Self { all: BTreeMap::new(), lone_wait }
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

    /// True when this accuser is new.
    pub(super) fn accuse(&mut self, node: &NodeId, by: NodeId, now: Time, until: Time) -> bool {
        let new = || {
            let accusers = BTreeMap::new();
            Suspicion { since: now, accusers, refused: false, ripe: None }
        };
        let suspicion = self.all.entry(node.clone()).or_insert_with(new);
        suspicion.accusers.insert(by, until).is_none()
    }

    /// Whether this node knows more than silence.
    pub(super) fn set_refused(&mut self, node: &NodeId, refused: bool) {
        if let Some(suspicion) = self.all.get_mut(node) {
            suspicion.refused = refused;
        }
    }

    /// True when there was that accusation.
    pub(super) fn withdraw(&mut self, node: &NodeId, by: &NodeId) -> bool {
        let Some(suspicion) = self.all.get_mut(node) else { return false };
        let withdrawn = suspicion.accusers.remove(by).is_some();
        if suspicion.accusers.is_empty() {
            self.all.remove(node);
        }
        withdrawn
    }

    /// Keeps the accusations that `keep` wants, of suspect and accuser.
    pub(super) fn retain(&mut self, keep: impl Fn(&NodeId, &NodeId, Time) -> bool) {
        for (suspect, suspicion) in &mut self.all {
            suspicion.accusers.retain(|by, until| keep(suspect, by, *until));
        }
        self.all.retain(|_, suspicion| !suspicion.accusers.is_empty());
    }

    /// Sees which suspicions are enough now: those of both neighbours, or of the only one that can
    /// tell; a closed port; else one neighbour's that lasted.
    pub(super) fn ripen(&mut self, view: &View, now: Time) {
        let enough: Vec<bool> =
            self.all.keys().map(|node| self.is_enough(view, node, now)).collect();
        for (suspicion, enough) in self.all.values_mut().zip(enough) {
            suspicion.ripe = enough.then(|| suspicion.ripe.unwrap_or(now));
        }
    }

    fn is_enough(&self, view: &View, node: &NodeId, now: Time) -> bool {
        let Some(suspicion) = self.all.get(node) else { return false };
        let mut able = view.neighbours(node).filter(|m| !self.contains(&m.id));
        suspicion.refused
            || now.since(suspicion.since) >= self.lone_wait
            || able.all(|m| suspicion.accusers.contains_key(&m.id))
    }

    /// When something changes although nobody says anything.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Time> {
        self.all.values().flat_map(|suspicion| {
            let ripe = suspicion.ripe.is_none().then_some(suspicion.since + self.lone_wait);
            let ends = suspicion.accusers.values().copied().filter(|until| until.0 != u64::MAX);
            ends.chain(ripe)
        })
    }
}
