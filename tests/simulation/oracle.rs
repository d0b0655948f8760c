//! What must hold, whatever happens. It sees everything at once, as nobody in the world can.

use std::{collections::BTreeMap, sync::Arc};

use ringkeep::{
    commit::Version,
    membership::{Change, Durable, NodeId, View, quorum::majority},
    name::Name,
    region::Region,
};

use crate::world::{Machine, World};

pub(crate) const PAYLOAD_BYTES: usize = 512;

/// What a version says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Says {
    pub(crate) version: Version,
    /// Different for each version that anybody ever wrote.
    pub(crate) self_id: u64,
    /// The version that it was made from.
    pub(crate) parent: u64,
}

/// The bytes of a version.
pub(crate) fn payload(checkpoint: u64, version: u64, self_id: u64, parent: u64) -> Vec<u8> {
    let head = [checkpoint, version, self_id, parent];
    let words = (0..PAYLOAD_BYTES as u64 / 8).map(|at| match head.get(at as usize) {
        Some(word) => *word,
        None => self_id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at as u32) ^ at,
    });
    words.flat_map(u64::to_le_bytes).collect()
}

fn read(region: &Region, slot: usize) -> Vec<u8> {
    let mut bytes = vec![0; PAYLOAD_BYTES];
    region.read_payload(slot, 0, &mut bytes).expect("a payload");
    bytes
}

/// What a slot whose checksums are right says of itself.
pub(crate) fn says(region: &Region, slot: usize) -> Says {
    let bytes = read(region, slot);
    let word = |at: usize| u64::from_le_bytes(bytes[8 * at..][..8].try_into().expect("8 bytes"));
    Says { version: word(1), self_id: word(2), parent: word(3) }
}

/// What became of one checkpoint.
#[derive(Default)]
struct History {
    /// All that was ever written: its version and what it was made from.
    written: BTreeMap<u64, (Version, u64)>,
    /// The last acknowledged version, and what it says of itself.
    acknowledged: (Version, u64),
    /// The machines that had it when it was acknowledged or protected anew, and how often each had
    /// lost its memory by then.
    safe_at: Vec<(usize, u64)>,
    /// All of them have lost their memory since.
    lost: bool,
}

impl History {
    /// The version of that number from which `id` was made, or itself.
    fn ancestor(&self, mut id: u64, version: Version) -> Option<u64> {
        loop {
            let (its, parent) = *self.written.get(&id)?;
            if its <= version {
                return (its == version).then_some(id);
            }
            id = parent;
        }
    }

    /// Whether everything up to `older` went into `id`.
    fn includes(&self, id: u64, older: u64) -> bool {
        let Some((version, _)) = self.written.get(&older) else { return older == 0 };
        self.ancestor(id, *version) == Some(older)
    }

    /// Whether a region has the last acknowledged version, or one that was made from it.
    fn is_in(&self, region: &Region) -> bool {
        self.acknowledged.0 == 0
            || region.newest_valid().is_some_and(|found| {
                self.includes(says(region, found.slot).self_id, self.acknowledged.1)
            })
    }
}

#[derive(Default)]
pub(crate) struct Oracle {
    broken: Option<String>,
    pub(crate) commits_go_on: bool,
    views: BTreeMap<u64, Arc<View>>,
    votes: BTreeMap<(NodeId, u64), Durable>,
    histories: BTreeMap<Name, History>,
    pub(crate) lost: u64,
}

impl Oracle {
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    pub(crate) fn breaks(&mut self, what: impl FnOnce() -> String) {
        self.broken.get_or_insert_with(what);
    }

    /// The newest view, the one before, and what somebody voted for as the next one.
    pub(crate) fn last_views(&self) -> Vec<Arc<View>> {
        let mut views: Vec<_> = self.views.values().rev().take(2).cloned().collect();
        let newest = views.first().map(|view| view.number);
        let votes = self.votes.values().filter(|d| Some(d.view.number) == newest);
        let changes = votes.flat_map(|durable| {
            let cast = &durable.votes.cast;
            let vote = cast.vote.as_ref().map(|vote| &vote.value);
            vote.into_iter().chain(cast.accepted.as_ref().map(|(_, value)| value))
        });
        let next = |change: &Arc<Change>| views[0].next(change).ok().map(Arc::new);
        let next: Vec<_> = changes.filter_map(next).collect();
        views.extend(next);
        views
    }

    // Membership.

    /// A view is somebody's. True when it is nobody else's yet.
    pub(crate) fn installed(&mut self, view: &Arc<View>) -> bool {
        if let Some(known) = self.views.get(&view.number) {
            if known != view {
                let number = view.number;
                self.breaks(|| format!("I4 one value per view number: {number} has two"));
            }
            return false;
        }
        if let Some(before) = self.views.get(&(view.number - 1)) {
            let voted = before.voters.iter().filter(|voter| {
                let durable = self.votes.get(&(voter.id.clone(), before.number));
                durable.is_some_and(|durable| {
                    let cast = &durable.votes.cast;
                    let vote = cast.vote.as_ref().is_some_and(|vote| *vote.value == view.change);
                    vote || cast.accepted.as_ref().is_some_and(|(_, value)| **value == view.change)
                })
            });
            let (voted, needed) = (voted.count(), majority(before.voters.len()));
            if voted < needed {
                let number = view.number;
                self.breaks(|| {
                    format!("a minority installs nothing: {number} has {voted} of {needed} votes")
                });
            }
        }
        self.views.insert(view.number, view.clone());
        true
    }

    /// A voter stored what it must not forget.
    pub(crate) fn stored(&mut self, new: &Durable) {
        let key = (new.me.id.clone(), new.view.number);
        // One copy of each view for all: a thousand voters would keep a thousand of each.
        let view = self.views.get(&new.view.number).unwrap_or(&new.view).clone();
        let Some(old) = self.votes.insert(key, Durable { view, ..new.clone() }) else { return };
        let vote = |d: &Durable| d.votes.cast.vote.as_ref().map(|vote| vote.value.clone());
        let accepted = |d: &Durable| d.votes.cast.accepted.as_ref().map(|(ballot, _)| *ballot);
        if (vote(&old).is_some() && vote(&old) != vote(new))
            || old.votes.promised > new.votes.promised
            || accepted(&old) > accepted(new)
        {
            self.breaks(|| format!("I8 nobody votes after amnesia: {}", new.me.id));
        }
    }

    // Checkpoints.

    pub(crate) fn is_born(&self, name: &Name) -> bool {
        self.histories.contains_key(name)
    }

    pub(crate) fn born(&mut self, name: &Name) {
        self.histories.entry(name.clone()).or_default();
    }

    pub(crate) fn names(&self) -> Vec<Name> {
        self.histories.keys().cloned().collect()
    }

    /// Whether a checkpoint has ever been acknowledged, and was not lost with all its memories.
    pub(crate) fn counts(&self, name: &Name) -> bool {
        self.histories.get(name).is_some_and(|h| h.acknowledged.0 > 0 && !h.lost)
    }

    pub(crate) fn acknowledged_version(&self, name: &Name) -> Version {
        self.histories.get(name).map_or(0, |h| h.acknowledged.0)
    }

    /// Whether it may be right to keep a checkpoint back: an owner lost its memory, and so did all
    /// that were its predecessors at some time since. They may have had something newer.
    pub(crate) fn is_in_doubt(&self, world: &World) -> bool {
        let Some(view) = self.views.values().next_back() else { return false };
        let lost = |id: &NodeId| {
            world.machines[world.machine_named(&id.name)].memory_since.get() > id.incarnation
        };
        let gone = view.holders.iter().filter(|h| h.is_gone() && lost(&h.owner));
        let mut runs = gone.flat_map(|h| &h.runs);
        runs.any(|run| run.holders.iter().all(lost))
    }

    pub(crate) fn committed(&mut self, name: &Name, version: Version, self_id: u64, parent: u64) {
        let history = self.histories.entry(name.clone()).or_default();
        history.written.insert(self_id, (version, parent));
    }

    /// A service was told that a version is on all its copies.
    pub(crate) fn acknowledged(
        &mut self,
        world: &World,
        at: usize,
        holders: &[NodeId],
        name: &Name,
        version: Version,
        region: &Region,
    ) {
        let Some(history) = self.histories.get_mut(name) else { return };
        let newest = region.newest_by_record().map(|found| says(region, found.slot).self_id);
        let Some(id) = newest.and_then(|newest| history.ancestor(newest, version)) else {
            self.breaks(|| format!("version {version} of {name} is acknowledged and unknown"));
            return;
        };
        let related =
            |other| history.includes(id, other) || history.includes(other, id) || other == 0;
        if !related(history.acknowledged.1) {
            let was = history.acknowledged;
            self.breaks(|| {
                format!(
                    "I3 a recovered version is at least every acknowledged one, and no two writers \
                     are acknowledged: {name} {version} ({id}) by machine {at}, after {was:?}"
                )
            });
            return;
        }
        if version >= history.acknowledged.0 {
            history.acknowledged = (version, id);
            self.has_copies(world, at, holders, name);
        }
    }

    /// The copies that count from now on: each must have what was acknowledged.
    pub(crate) fn has_copies(&mut self, world: &World, at: usize, holders: &[NodeId], name: &Name) {
        let Some(history) = self.histories.get_mut(name) else { return };
        if history.lost {
            return;
        }
        let mut safe_at = Vec::new();
        let mut missing = None;
        for holder in holders {
            let machine = world.machine_named(&holder.name);
            if world.machines[machine].memory_since.get() > holder.incarnation {
                continue; // it had it, and lost its memory since
            }
            let memory = world.machines[machine].memory.borrow();
            if memory.copies_of(name).any(|kept| history.is_in(&kept.region)) {
                safe_at.push((machine, world.machines[machine].memory_losses.get()));
            } else {
                missing = Some(holder.clone());
            }
        }
        safe_at.push((at, world.machines[at].memory_losses.get()));
        // An owner that hears late of its last completions may have been followed already: then as
        // many others have it.
        if missing.is_some() {
            let machines = world.machines.iter().enumerate();
            let has_it = |machine: &Machine| {
                machine.memory.borrow().copies_of(name).any(|kept| history.is_in(&kept.region))
            };
            let all = machines.filter(|(_, machine)| has_it(machine));
            let all: Vec<_> = all.map(|(at, machine)| (at, machine.memory_losses.get())).collect();
            if all.len() > usize::from(world.params.copies) {
                (safe_at, missing) = (all, None);
            }
        }
        history.safe_at = safe_at;
        if let Some(holder) = missing {
            let version = history.acknowledged.0;
            self.breaks(|| {
                format!(
                    "I7 acknowledgements only at or above the floor: {name} {version} is \
                     acknowledged and not at {holder}"
                )
            });
        }
    }

    /// A copy becomes the checkpoint at `by`, or is found again by the life that owned it.
    pub(crate) fn recovered(
        &mut self,
        by: &NodeId,
        name: &Name,
        region: &Region,
        by_another: bool,
    ) {
        let Some(history) = self.histories.get_mut(name) else { return };
        let mut id = 0;
        if let Some(found) = region.newest_valid() {
            let Says { version, self_id, parent } = says(region, found.slot);
            id = self_id;
            let checkpoint = region.identity().checkpoint;
            let whole = read(region, found.slot) == payload(checkpoint, version, self_id, parent);
            if !whole || version != found.record.sequence {
                self.breaks(|| format!("I2 no torn read: {name} {version}"));
                return;
            }
        }
        // Who was evicted and has not heard of it may find any version: it is fenced.
        let evicted = self.views.values().next_back().is_none_or(|view| !view.contains(by));
        if !by_another || evicted {
            return;
        }
        let acknowledged = history.acknowledged;
        if acknowledged.0 > 0 && !history.includes(id, acknowledged.1) {
            self.breaks(|| {
                format!(
                    "I3 a recovered version is at least every acknowledged one: {name} ({id}) \
                     without {acknowledged:?}"
                )
            });
        }
    }

    /// Every acknowledged version is somewhere, as long as one of the memories is left in which it
    /// was (I1, I5).
    pub(crate) fn look_for_copies(&mut self, world: &World) {
        let mut missing = None;
        for (name, history) in &mut self.histories {
            if history.acknowledged.0 == 0 || history.lost {
                continue;
            }
            let there = world.machines.iter().any(|machine| {
                let memory = machine.memory.borrow();
                memory.copies_of(name).any(|kept| history.is_in(&kept.region))
            });
            if there {
                continue;
            }
            let left =
                |(at, losses): &(usize, u64)| world.machines[*at].memory_losses.get() == *losses;
            match history.safe_at.iter().find(|safe| left(safe)) {
                Some((at, _)) => missing = Some((name.clone(), history.acknowledged, *at)),
                None => {
                    history.lost = true;
                    self.lost += 1;
                    world.log(|| format!("{name} is lost with all its memories"));
                }
            }
        }
        if let Some((name, acknowledged, at)) = missing {
            self.breaks(|| {
                format!(
                    "I1 an acknowledged version survives: {name} {acknowledged:?} is nowhere, and \
                     machine {at}, which had it, never lost its memory"
                )
            });
        }
    }
}
