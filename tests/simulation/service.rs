//! The services: they commit as long as they are let. An update is made as `Checkpoint` makes it.

use std::{rc::Rc, time::Duration};

use ringkeep::{
    commit::{Extent, Slots, Stale, Version, Working},
    name::Name,
    region::Region,
};

use crate::{
    oracle::{HEAD_BYTES, payload_bytes},
    plane::Plane,
    server::Server,
    tally::Fault,
};

/// Of a hundred updates, so many are given up when they are half written.
const GIVEN_UP_PERCENT: u64 = 5;

impl Server {
    /// A service that commits as long as it is let.
    pub(crate) async fn run_service(self: Rc<Self>, name: Name, life: u64) {
        loop {
            let pause = 2 + self.world.roll(30);
            self.sleep(Duration::from_millis(pause)).await;
            let gone = {
                let owned = self.owned.borrow();
                let plane = owned.get(&name).and_then(|o| o.plane.as_ref());
                plane.is_none_or(|plane| plane.leaving)
            };
            if gone || !self.is_alive() || self.life.get() != life {
                return;
            }
            if self.world.oracle.borrow().commits_go_on {
                self.commit(&name);
            }
        }
    }

    /// Commits one version, if the slot for it is free.
    fn commit(self: &Rc<Self>, name: &Name) {
        let urgent = self.world.roll(100) < 80;
        let dies = self.world.roll(10_000) < self.world.weather.get().crash_in_update;
        {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return };
            let (epoch, checkpoint) = (owned.kept.meta.epoch, owned.kept.meta.checkpoint);
            let region = owned.kept.region.clone();
            let Some(plane) = owned.plane.as_mut().filter(|plane| !plane.leaving) else { return };
            let waits = plane.mirror.mirrored() < plane.slots.version();
            if waits && self.world.roll(100) < 70 {
                return; // a service most often waits for its acknowledgement
            }
            let working = plane.slots.target();
            if plane.pins[working.slot] > 0 {
                return;
            }
            let version = plane.slots.version() + 1;
            let self_id = self.world.count();
            self.world.oracle.borrow_mut().becomes_target(name, None, &region, working.slot);
            let head = [checkpoint, version, self_id, plane.newest];
            let state = self.update(plane, &region, working, name, head);
            if dies || self.world.roll(100) < GIVEN_UP_PERCENT {
                plane.slots.abandoned();
                self.world.tally.borrow_mut().given_up += u64::from(!dies);
            } else {
                publish(&plane.slots, &region, working, epoch, version);
                let mut changed = Stale::nothing(region.layout().capacity());
                changed.union_ranges(plane.slots.changed());
                plane.slots.committed(working, version);
                let parent = std::mem::replace(&mut plane.newest, self_id);
                let mut oracle = self.world.oracle.borrow_mut();
                oracle.committed(name, version, self_id, parent, &state);
                plane.state = state;
                self.world.tally.borrow_mut().committed += 1;
                let (now_ns, len) = (self.world.now.get().0, plane.slots.newest_len());
                plane.mirror.submitted(now_ns, version, working.slot, len, &changed, urgent);
            }
        }
        if dies {
            self.world.dies_of(Fault::CrashInUpdate, self.at);
            return;
        }
        self.drive(name);
    }

    /// Writes what the next version changes into its slot, and answers the state as the service
    /// knows it. As `Checkpoint::write_at` and what it calls.
    fn update(
        &self,
        plane: &mut Plane,
        region: &Region,
        working: Working,
        name: &Name,
        head: [u64; 4],
    ) -> Vec<u8> {
        region.invalidate(working.slot);
        if let Some(source) = working.source {
            plane.slots.stale(working).for_each(plane.slots.len(), |extent| {
                region.bring_up_to_date(source, working.slot, extent);
            });
        }
        plane.slots.spoiled(working);
        let len = payload_bytes(name);
        let mut state = std::mem::take(&mut plane.state);
        plane.state.clone_from(&state);
        let whole = state.len() != len || self.world.roll(20) == 0;
        state.resize(len, 0);
        plane.slots.resize(len as u64);
        let mut write = |at: usize, bytes: &[u8]| {
            state[at..at + bytes.len()].copy_from_slice(bytes);
            region.write_payload(working.slot, at as u64, bytes).expect("it fits");
            plane.slots.changes(at as u64, (at + bytes.len()) as u64);
        };
        let some = |len: usize| {
            let word = self.world.count().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0..len).map(|at| (word.rotate_left(at as u32 % 61) >> 56) as u8).collect::<Vec<u8>>()
        };
        if whole {
            write(0, &some(len));
        } else {
            for _ in 0..self.world.roll(4) {
                let at = HEAD_BYTES + self.world.roll((len - HEAD_BYTES) as u64) as usize;
                write(at, &some((len - at).min(1 + self.world.roll(100) as usize)));
            }
        }
        write(0, &head.map(u64::to_le_bytes).concat());
        state
    }
}

/// Writes the record. As `Checkpoint::make_version`.
fn publish(slots: &Slots, region: &Region, working: Working, epoch: u64, version: Version) {
    let (slot, len) = (working.slot, slots.len());
    let root = working.source.and_then(|source| {
        // SAFETY: one thread, and no request that reads the slot is under way; nobody writes the
        // newest version's.
        unsafe { region.rehash_changed(source, slot, slots.changed(), len) }.ok()
    });
    match root {
        Some(root) => drop(region.publish_root(slot, epoch, version, len, root)),
        None => {
            // SAFETY: as above.
            unsafe { region.rehash(slot, Extent { start: 0, end: len }, len) };
            // SAFETY: as above.
            unsafe { region.publish(slot, epoch, version, len) };
        }
    }
}
