//! What must hold, whatever happens. It sees everything at once, as nobody in the world can.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ringkeep::{
    commit::Version,
    membership::{Change, Durable, NodeId, View, quorum::majority},
    name::Name,
    region::Region,
};
use twox_hash::XxHash3_64;

use crate::{
    invariants::{I1, I2, I3, I4, I5, I6, I7, I8, MAJORITY, ONE_MIRROR},
    world::{Machine, World},
};

/// What a version says of itself stands here, and changes with each.
pub(crate) const HEAD_BYTES: usize = 32;

/// One checkpoint of each ring is too large for a single write: of that one only what changed
/// travels.
pub(crate) fn payload_bytes(name: &Name) -> usize {
    if name.as_str().ends_with('1') { 20_000 } else { 512 }
}

/// Of three slots one is two versions behind when it is written next.
pub(crate) fn slots(name: &Name) -> u32 {
    if name.as_str().ends_with(['1', '2']) { 3 } else { 2 }
}

/// What a version says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Says {
    /// Different for each version that anybody ever wrote.
    pub(crate) self_id: u64,
}

fn digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// A digest of all that lies in a region.
fn all_of(region: &Region) -> u64 {
    let mut bytes = vec![0; region.layout().region_bytes() as usize];
    region.mapping().read_at(0, &mut bytes).expect("all of it");
    digest(&bytes)
}

/// What a slot whose checksums are right says of itself.
pub(crate) fn says(region: &Region, slot: usize) -> Says {
    let mut bytes = [0; HEAD_BYTES];
    region.read_payload(slot, 0, &mut bytes).expect("a payload");
    let word = |at: usize| u64::from_le_bytes(bytes[8 * at..][..8].try_into().expect("8 bytes"));
    Says { self_id: word(2) }
}

/// What became of one checkpoint.
#[derive(Default)]
struct History {
    /// All that was ever written.
    written: BTreeMap<u64, Written>,
    /// The last acknowledged version, and what it says of itself.
    acknowledged: (Version, u64),
    /// The oldest mark among the holders that did it.
    acknowledged_by: u64,
    /// The machines that had it when it was acknowledged or protected anew, and how often each had
    /// lost its memory by then.
    safe_at: Vec<(usize, u64)>,
    /// All of them have lost their memory since.
    lost: bool,
    /// Who has served it, and for which view its last owner synced it last.
    owners: BTreeSet<NodeId>,
    synced_for: u64,
    /// How each epoch's versions were acknowledged last.
    accepted: BTreeMap<u64, Acknowledging>,
}

/// The oldest mark, the owner and the holders of an acknowledgement.
type Acknowledging = (u64, NodeId, BTreeSet<NodeId>);

struct Written {
    version: Version,
    /// What it was made from.
    parent: u64,
    /// Of the state as its service knew it.
    digest: u64,
}

/// An acknowledgement, and what it stands on.
pub(crate) struct Accepted<'a> {
    pub(crate) name: &'a Name,
    pub(crate) version: Version,
    pub(crate) owner: &'a NodeId,
    pub(crate) epoch: u64,
    pub(crate) holders: &'a [NodeId],
    /// The newest mark that this owner put on its way.
    pub(crate) floor: u64,
}

impl History {
    /// The version of that number from which `id` was made, or itself.
    fn ancestor(&self, mut id: u64, version: Version) -> Option<u64> {
        loop {
            let written = self.written.get(&id)?;
            if written.version <= version {
                return (written.version == version).then_some(id);
            }
            id = written.parent;
        }
    }

    /// Whether everything up to `older` went into `id`.
    fn includes(&self, id: u64, older: u64) -> bool {
        let Some(written) = self.written.get(&older) else { return older == 0 };
        self.ancestor(id, written.version) == Some(older)
    }

    /// Whether a slot whose checksums are right has what was written there.
    fn is_whole(&self, region: &Region, slot: usize, version: Version, len: u64) -> bool {
        let mut bytes = vec![0; len as usize];
        region.read_payload(slot, 0, &mut bytes).expect("a payload");
        let written = self.written.get(&says(region, slot).self_id);
        written.is_some_and(|w| w.version == version && w.digest == digest(&bytes))
    }

    /// Whether a slot has the last acknowledged version, or one that was made from it.
    fn is_in_slot(&self, region: &Region, slot: usize) -> bool {
        region.verify(slot).is_ok()
            && self.includes(says(region, slot).self_id, self.acknowledged.1)
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
    /// By the number of the view, then by voter.
    votes: BTreeMap<u64, BTreeMap<NodeId, Durable>>,
    histories: BTreeMap<Name, History>,
    /// What a machine said in a recovery, by the machine, the memory that it had then, and whose
    /// mirror: what lay there.
    answered: BTreeMap<(usize, u64, Name, NodeId), u64>,
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
        let votes = views.first().and_then(|newest| self.votes.get(&newest.number));
        let changes = votes.into_iter().flatten().flat_map(|(_, durable)| {
            let cast = &durable.votes.cast;
            let vote = cast.vote.as_ref().map(|vote| &vote.value);
            vote.into_iter().chain(cast.accepted.as_ref().map(|(_, value)| value))
        });
        // Hundreds vote for the same.
        let changes: BTreeSet<&Arc<Change>> = changes.collect();
        let next = |change: &Arc<Change>| views[0].next(change).ok().map(Arc::new);
        let next: Vec<_> = changes.into_iter().filter_map(next).collect();
        views.extend(next);
        views
    }

    // Membership.

    /// A view is somebody's. True when it is nobody else's yet.
    pub(crate) fn installed(&mut self, view: &Arc<View>) -> bool {
        if let Some(known) = self.views.get(&view.number) {
            if known != view {
                let number = view.number;
                self.breaks(|| format!("{I4}: {number} has two"));
            }
            return false;
        }
        if let Some(before) = self.views.get(&(view.number - 1)) {
            let votes = self.votes.get(&before.number);
            let voted = before.voters.iter().filter(|voter| {
                let durable = votes.and_then(|votes| votes.get(&voter.id));
                durable.is_some_and(|durable| {
                    let cast = &durable.votes.cast;
                    let vote = cast.vote.as_ref().is_some_and(|vote| *vote.value == view.change);
                    vote || cast.accepted.as_ref().is_some_and(|(_, value)| **value == view.change)
                })
            });
            let (voted, needed) = (voted.count(), majority(before.voters.len()));
            if voted < needed {
                let number = view.number;
                self.breaks(|| format!("{MAJORITY}: {number} has {voted} of {needed} votes"));
            }
        }
        self.views.insert(view.number, view.clone());
        true
    }

    /// A voter stored what it must not forget.
    pub(crate) fn stored(&mut self, new: &Durable) {
        // One copy of each view for all: a thousand voters would keep a thousand of each.
        let view = self.views.get(&new.view.number).unwrap_or(&new.view).clone();
        let votes = self.votes.entry(new.view.number).or_default();
        let durable = Durable { view, ..new.clone() };
        let Some(old) = votes.insert(new.me.id.clone(), durable) else { return };
        let vote = |d: &Durable| d.votes.cast.vote.as_ref().map(|vote| vote.value.clone());
        let accepted = |d: &Durable| d.votes.cast.accepted.as_ref().map(|(ballot, _)| *ballot);
        if (vote(&old).is_some() && vote(&old) != vote(new))
            || old.votes.promised > new.votes.promised
            || accepted(&old) > accepted(new)
        {
            self.breaks(|| format!("{I8}: {}", new.me.id));
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

    /// Whether it may be right to keep this checkpoint back: somebody who had it, or was a member after
    /// it was synced last, lost its memory, and so did all that were its predecessors at some time.
    /// They may have had something newer, as far as anybody in the world can tell.
    pub(crate) fn is_in_doubt(&self, world: &World, name: &Name) -> bool {
        let Some(view) = self.views.values().next_back() else { return false };
        let Some(history) = self.histories.get(name) else { return false };
        let lost = |id: &NodeId| {
            world.machines[world.machine_named(&id.name)].memory_since.get() > id.incarnation
        };
        let had_it =
            |owner: &NodeId, left| history.owners.contains(owner) || left >= history.synced_for;
        let gone = view.holders.iter().filter(|h| h.is_gone() && lost(&h.owner));
        let gone = gone.filter(|h| had_it(&h.owner, h.left));
        let mut runs = gone.flat_map(|h| h.runs.iter());
        runs.any(|run| run.holders.iter().all(lost))
    }

    pub(crate) fn committed(
        &mut self,
        name: &Name,
        version: Version,
        self_id: u64,
        parent: u64,
        state: &[u8],
    ) {
        let history = self.histories.entry(name.clone()).or_default();
        history.written.insert(self_id, Written { version, parent, digest: digest(state) });
    }

    /// Somebody serves it, from this region.
    pub(crate) fn served(&mut self, name: &Name, by: &NodeId, region: &Region) {
        if let Some(history) = self.histories.get_mut(name) {
            history.owners.insert(by.clone());
            history.synced_for = region.mark().map_or(0, |mark| mark.view);
        }
    }

    /// A mark of this view is on its way.
    pub(crate) fn synced(&mut self, name: &Name, view: u64) {
        if let Some(history) = self.histories.get_mut(name) {
            history.synced_for = history.synced_for.max(view);
        }
    }

    /// A slot of the owner's own region, or of a holder's mirror, is about to be overwritten: not the
    /// only one there that has what was acknowledged last. One that was not among the holders that
    /// acknowledged it may have it by chance.
    pub(crate) fn becomes_target(
        &mut self,
        name: &Name,
        holder: Option<&NodeId>,
        region: &Region,
        slot: usize,
    ) {
        let Some(history) = self.histories.get(name) else { return };
        let acknowledged = history.acknowledged;
        let mark = region.mark().map_or(0, |mark| mark.view);
        let counts = holder.is_none() || mark > 0 && mark >= history.acknowledged_by;
        let others = (0..region.layout().slots()).filter(|other| *other != slot);
        if acknowledged.0 > 0
            && counts
            && history.is_in_slot(region, slot)
            && !others.into_iter().any(|other| history.is_in_slot(region, other))
        {
            self.breaks(|| format!("{I5}: slot {slot} of {name} at {holder:?}: {acknowledged:?}"));
        }
    }

    /// An acknowledgement counts: each mark is at or above the floor, and one set of mirrors is
    /// accepted at a time.
    pub(crate) fn accepted(&mut self, world: &World, it: &Accepted<'_>) {
        let Accepted { name, version, owner, epoch, floor, .. } = *it;
        let mut marks = Vec::new();
        for holder in it.holders {
            // A holder that recovered it meanwhile has no mirror of that owner any more.
            let Some(kept) = world.mirror_of(holder, name, owner) else { continue };
            let mark = kept.region.mark().map_or(0, |mark| mark.view);
            if mark < floor {
                self.breaks(|| {
                    format!("{I7}: {name} {version} at {holder}, marked for {mark}, floor {floor}")
                });
            }
            marks.push(mark);
        }
        let Some(history) =
            self.histories.get_mut(name).filter(|_| marks.len() == it.holders.len())
        else {
            return;
        };
        let mark = marks.into_iter().min().unwrap_or(0);
        history.acknowledged_by = mark;
        let new = (mark, owner.clone(), it.holders.iter().cloned().collect());
        let old = history.accepted.insert(epoch, new.clone());
        let others = |old: &Acknowledging| new.1 != old.1 || new.0 == old.0 && new.2 != old.2;
        if let Some(old) = old.filter(|old| new.0 < old.0 || others(old)) {
            self.breaks(|| format!("{ONE_MIRROR}: {name}, epoch {epoch}: {new:?} after {old:?}"));
        }
    }

    /// A machine said in a recovery what it has of this owner's.
    pub(crate) fn answered(&mut self, world: &World, at: usize, owner: &NodeId) {
        let machine = &world.machines[at];
        let memory = machine.memory.borrow();
        for ((name, of), kept) in memory.mirrors.iter().filter(|((_, of), _)| of == owner) {
            let key = (at, machine.memory_losses.get(), name.clone(), of.clone());
            self.answered.entry(key).or_insert_with(|| all_of(&kept.region));
        }
    }

    /// Whatever passes its checksums is whole, and what was said in a recovery is still so.
    pub(crate) fn look_at_copies(&mut self, world: &World) {
        let mut torn = None;
        for machine in &world.machines {
            let memory = machine.memory.borrow();
            let mirrors = memory.mirrors.iter().map(|((name, _), kept)| (name, kept));
            for (name, kept) in memory.owned.iter().chain(mirrors) {
                let Some(history) = self.histories.get(name) else { continue };
                let Some(found) = kept.region.newest_valid() else { continue };
                let (version, len) = (found.record.sequence, found.record.len);
                if !history.is_whole(&kept.region, found.slot, version, len) {
                    torn = Some((name.clone(), version, machine.name.clone()));
                }
            }
        }
        if let Some((name, version, at)) = torn {
            self.breaks(|| format!("{I2}: {name} {version} at {at}"));
        }
        let mut changed = None;
        self.answered.retain(|(at, losses, name, owner), before| {
            let machine = &world.machines[*at];
            let memory = machine.memory.borrow();
            let mirror = memory.mirrors.get(&(name.clone(), owner.clone()));
            let mirror = mirror.filter(|_| machine.memory_losses.get() == *losses);
            if mirror.is_some_and(|kept| all_of(&kept.region) != *before) {
                changed = Some((name.clone(), owner.clone(), *at));
            }
            mirror.is_some()
        });
        if let Some((name, owner, at)) = changed {
            self.breaks(|| {
                format!("{I6}: {name} of {owner} changed at machine {at} after it was told")
            });
        }
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
                    "{I3}, and no two writers are acknowledged: {name} {version} ({id}) by machine \
                     {at}, after {was:?}"
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
            self.breaks(|| format!("{I7}: {name} {version} is acknowledged and not at {holder}"));
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
            id = says(region, found.slot).self_id;
            let (version, len) = (found.record.sequence, found.record.len);
            if !history.is_whole(region, found.slot, version, len) {
                self.breaks(|| format!("{I2}: {name} {version} is recovered by {by}"));
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
            self.breaks(|| format!("{I3}: {name} ({id}) without {acknowledged:?}"));
        }
    }

    /// Every acknowledged version is somewhere, as long as one of the memories is left in which it
    /// was (I1).
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
                    "{I1}: {name} {acknowledged:?} is nowhere, and machine {at}, which had it, \
                     never lost its memory"
                )
            });
        }
    }
}
