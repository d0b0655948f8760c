//! The world around the owner: holders with their memory, the wires towards them, what can happen.

use crate::{
    Mutant,
    history::{Holder, NODES},
    model::MirrorModel,
    owner::{Effect, Input, OLDEST_SLOT, SLOTS},
};

/// No recovery yet.
pub(crate) const NONE: u8 = u8::MAX;

/// Rules that were seen broken, as bits of [`State::broken`].
pub(crate) mod broken {
    pub(crate) const I5_OVERWRITTEN: u8 = 1;
    pub(crate) const I7_BELOW_FLOOR: u8 = 2;
    pub(crate) const TWO_MIRRORS: u8 = 4;
    pub(crate) const I2_TORN: u8 = 8;
    pub(crate) const I6_LANDED_LATE: u8 = 16;
}

/// In a slot's version: the record claims it, and the bytes are others.
pub(crate) const TORN: u8 = 0x80;

/// What travels to a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    Version { version: u8, slot: u8 },
    Mark(u8),
}

/// A write on its way. It lands at any time or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct InFlight {
    /// To which life of the node.
    pub(crate) life: u8,
    /// Under which number the owner waits for it; 0: nobody waits any more.
    pub(crate) work: u8,
    pub(crate) write: Write,
    /// It is in the holder's memory; its completion is on the way back.
    pub(crate) landed: bool,
    /// With [`Mutant::LeaseAtPosting`]: the owner had a lease when it was posted.
    pub(crate) leased: bool,
}

/// A node that holds mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Node {
    /// 0: it was never a member.
    pub(crate) life: u8,
    /// The view that it installed last.
    pub(crate) view: u8,
    pub(crate) crashed: bool,
    /// It has the memory of all its lives from this one on.
    pub(crate) memory_since: u8,
    /// The version in each slot, with [`TORN`] if its checksums are wrong; 0: none.
    pub(crate) slots: [u8; SLOTS],
    pub(crate) mark: u8,
    /// Names the memory.
    pub(crate) region: u8,
    /// Writes of the present connection land.
    pub(crate) open: bool,
    /// The owner waits for this life to make a mirror ready.
    pub(crate) asked: u8,
    pub(crate) wire: Option<InFlight>,
}

impl Node {
    pub(crate) fn newest(&self) -> u8 {
        self.whole().into_iter().max().unwrap_or(0)
    }

    /// The newest version by the records alone, with [`TORN`].
    pub(crate) fn newest_by_record(&self) -> u8 {
        self.slots.iter().copied().max_by_key(|slot| slot & !TORN).unwrap_or(0)
    }

    fn whole(&self) -> [u8; SLOTS] {
        self.slots.map(|slot| if slot & TORN == 0 { slot } else { 0 })
    }

    fn forget(&mut self) {
        self.slots = [0; SLOTS];
        self.mark = 0;
        self.region = (self.region + 1) % 3;
    }

    /// Nothing lands any more; completions of what has landed may still arrive.
    fn close(&mut self) {
        self.open = false;
        if self.wire.is_some_and(|w| !w.landed && w.work == 0) {
            self.wire = None;
        }
    }

    /// The owner hears no more of what is on the wire.
    fn disconnect(&mut self) {
        match &mut self.wire {
            Some(w) if !w.landed && self.open => w.work = 0,
            wire => *wire = None,
        }
    }
}

/// A state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The owner's server, by its number; see [`crate::owner::Owners`].
    pub(crate) owner: u32,
    pub(crate) owner_crashed: bool,
    pub(crate) owner_view: u8,
    /// The newest version that the service committed.
    pub(crate) version: u8,
    /// The newest version that the service was told to be mirrored.
    pub(crate) acked: u8,
    /// The oldest mark among the holders that did it.
    pub(crate) acked_by: u8,
    /// Who they were, the life of each in two bits; 0: one has lost its memory since.
    pub(crate) acked_at: u8,
    /// Voters let the owner acknowledge: till it is over they remove nobody. Without
    /// [`MirrorModel::has_leases`] always.
    pub(crate) lease: bool,
    /// The newest mark that this life of the server posted.
    pub(crate) floor: u8,
    /// The newest view for which all copies were confirmed to be synced.
    pub(crate) confirmed: u8,
    /// The oldest version that any recovery so far may have handed out.
    pub(crate) recovered: u8,
    pub(crate) crashes: u8,
    /// What has happened of [`crate::Limits`].
    pub(crate) breaks: u8,
    pub(crate) restarts: u8,
    pub(crate) spoils: u8,
    pub(crate) broken: u8,
    pub(crate) nodes: [Node; NODES],
}

/// What can happen. Nodes are given by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The service commits.
    Submit,
    OwnerInstalls(u8),
    OwnerCrashes,
    /// The owner's server restarts: it knows its region and its view.
    OwnerRestarts,
    LeaseEnds,
    LeaseBegins,
    /// The holder makes a mirror ready and ends the older connection.
    Prepare(u8),
    /// A write lands in part.
    Tear(u8),
    Land(u8),
    Complete(u8),
    /// A completion of a write whose source was overwritten meanwhile.
    CompleteSpoiled(u8),
    /// The connection breaks. What is on the wire may still land.
    Break(u8),
    Installs(u8, u8),
    /// The node comes back as another life, in a view that has it, with its memory or without.
    Returns {
        node: u8,
        view: u8,
        with_memory: bool,
    },
    Crash(u8),
    /// The holder hears that newer copies are complete and lets its own go.
    Drop(u8),
}

impl MirrorModel {
    pub(crate) fn initial(&self) -> State {
        let mut state = State {
            owner: self.owners.started(),
            owner_crashed: false,
            owner_view: 0,
            version: 0,
            acked: 0,
            acked_by: 0,
            acked_at: 0,
            lease: true,
            floor: 0,
            confirmed: 0,
            recovered: NONE,
            crashes: 0,
            breaks: 0,
            restarts: 0,
            spoils: 0,
            broken: 0,
            nodes: Default::default(),
        };
        let view = self.history.view(1).clone();
        for (node, life) in state.nodes.iter_mut().zip(view.lives) {
            *node = Node { life, view: life, memory_since: 1, ..Node::default() };
        }
        self.owner_installs(&mut state, 1);
        state
    }

    /// Everything that can happen.
    pub(crate) fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let may_crash = state.crashes < self.limits.crashes;
        if !state.owner_crashed {
            if state.version < self.limits.versions {
                actions.push(Action::Submit);
            }
            let later = state.owner_view + 1..=self.history.last();
            let member = later.filter(|&view| self.history.view(view).owner);
            actions.extend(member.map(Action::OwnerInstalls));
            if may_crash {
                actions.push(Action::OwnerCrashes);
            }
            if state.restarts < self.limits.restarts {
                actions.push(Action::OwnerRestarts);
            }
        }
        if self.has_leases() && state.lease {
            actions.push(Action::LeaseEnds);
        }
        // Who knows of a removal voted for it, or others did.
        let removed = |node: &Node| node.view > 0 && !self.history.view(node.view).owner;
        if !state.lease && !state.nodes.iter().any(removed) {
            actions.push(Action::LeaseBegins);
        }
        for n in 0..NODES as u8 {
            self.possible_at(state, n, actions);
        }
    }

    fn possible_at(&self, state: &State, n: u8, actions: &mut Vec<Action>) {
        let node = &state.nodes[usize::from(n)];
        let may_crash = state.crashes < self.limits.crashes;
        let mut views = node.view + 1..=self.history.last();
        if self.has_leases() && state.lease {
            views = node.view + 1..=self.history.last_with_owner();
        }
        for view in views {
            let life = self.history.view(view).lives[usize::from(n)];
            if life > node.life {
                if !node.crashed && node.life > 0 {
                    actions.push(Action::Returns { node: n, view, with_memory: true });
                }
                if node.crashed || node.life == 0 || may_crash {
                    actions.push(Action::Returns { node: n, view, with_memory: false });
                }
            } else if !node.crashed && node.life > 0 {
                actions.push(Action::Installs(n, view));
            }
        }
        if let Some(flight) = node.wire {
            if flight.landed {
                actions.push(Action::Complete(n));
                if state.spoils < self.limits.spoils
                    && matches!(flight.write, Write::Version { .. })
                {
                    actions.push(Action::CompleteSpoiled(n));
                }
            } else if node.open {
                actions.push(Action::Land(n));
                if let Write::Version { slot, .. } = flight.write
                    && node.whole()[usize::from(slot)] != 0
                {
                    actions.push(Action::Tear(n));
                }
            }
            // One that was closed at the other end breaks in the end.
            let may_break = !node.open || state.breaks < self.limits.breaks;
            if flight.work != 0 && may_break {
                actions.push(Action::Break(n));
            }
        }
        if node.crashed || node.life == 0 {
            return;
        }
        if node.asked == node.life && self.accepts(state, n) && !state.owner_crashed {
            actions.push(Action::Prepare(n));
        }
        if may_crash {
            actions.push(Action::Crash(n));
        }
        if self.is_replaced(state, n) {
            actions.push(Action::Drop(n));
        }
    }

    /// Whether a node is a member of the view that it installed last, and the owner is, too.
    fn accepts(&self, state: &State, n: u8) -> bool {
        self.is_member(state, n) && self.history.view(state.nodes[usize::from(n)].view).owner
    }

    pub(crate) fn is_member(&self, state: &State, n: u8) -> bool {
        let node = &state.nodes[usize::from(n)];
        !node.crashed
            && node.life > 0
            && self.history.view(node.view).lives[usize::from(n)] == node.life
    }

    /// Rule H4: all copies of a newer view are complete, and this is none of them.
    fn is_replaced(&self, state: &State, n: u8) -> bool {
        let node = &state.nodes[usize::from(n)];
        let holder = Holder::new(usize::from(n), node.life);
        let has_any = node.mark > 0 || node.newest() > 0;
        has_any
            && node.mark < state.confirmed
            && !self.history.view(state.confirmed).predecessors.contains(&holder)
    }

    /// Does it.
    pub(crate) fn happen(&self, state: &mut State, action: Action) {
        match action {
            Action::Submit => {
                state.version += 1;
                self.tell(state, Input::Submitted(state.version));
            }
            Action::OwnerInstalls(view) => self.owner_installs(state, view),
            Action::OwnerCrashes => {
                state.owner_crashed = true;
                state.crashes += 1;
                self.server_ends(state);
            }
            Action::OwnerRestarts => {
                state.restarts += 1;
                self.server_ends(state);
                state.owner = self.owners.started();
                self.owner_installs(state, state.owner_view);
                if state.version > 0 {
                    self.tell(state, Input::Submitted(state.version));
                }
            }
            Action::Prepare(n) => self.prepare(state, n),
            Action::Tear(n) => self.land(state, n, true),
            Action::Land(n) => self.land(state, n, false),
            Action::LeaseEnds => state.lease = false,
            Action::LeaseBegins => state.lease = true,
            Action::Complete(n) => {
                if let Some(flight) = state.nodes[usize::from(n)].wire.take() {
                    let may_acknowledge = match self.mutant {
                        Some(Mutant::LeaseAtPosting) => flight.leased,
                        _ => state.lease,
                    };
                    self.tell_and(state, Input::Completed(flight.work), may_acknowledge);
                }
            }
            Action::CompleteSpoiled(n) => {
                state.spoils += 1;
                let node = &mut state.nodes[usize::from(n)];
                if let Some(InFlight { work, write: Write::Version { slot, .. }, .. }) =
                    node.wire.take()
                {
                    node.slots[usize::from(slot)] = 0;
                    self.tell(state, Input::Spoiled(work));
                }
            }
            Action::Break(n) => {
                let node = &mut state.nodes[usize::from(n)];
                let life = node.wire.map_or(node.life, |flight| flight.life);
                state.breaks = (state.breaks + u8::from(node.open)).min(self.limits.breaks);
                node.disconnect();
                self.tell(state, Input::Broken(Holder::new(usize::from(n), life)));
            }
            Action::Installs(n, view) => self.installs(state, n, view),
            Action::Returns { node, view, with_memory } => {
                self.returns(state, node, view, with_memory);
            }
            Action::Crash(n) => {
                state.crashes += 1;
                self.crash(state, n);
            }
            Action::Drop(n) => {
                let node = &mut state.nodes[usize::from(n)];
                node.close();
                node.forget();
            }
        }
        self.note_recoveries(state);
    }

    fn owner_installs(&self, state: &mut State, view: u8) {
        state.owner_view = view;
        self.tell(state, Input::View(view));
    }

    /// The process that knew of the work requests is gone.
    fn server_ends(&self, state: &mut State) {
        state.floor = 0;
        for node in &mut state.nodes {
            node.disconnect();
            node.asked = 0;
        }
    }

    fn prepare(&self, state: &mut State, n: u8) {
        // F2: nothing of an older connection lands from here on.
        if let Some(flight) = state.nodes[usize::from(n)].wire.take().filter(|f| f.work != 0) {
            self.tell(state, Input::Broken(Holder::new(usize::from(n), flight.life)));
        }
        let node = &mut state.nodes[usize::from(n)];
        node.open = true;
        node.asked = 0;
        let holder = Holder::new(usize::from(n), node.life);
        let (region, versions) = (node.region, node.whole());
        self.tell(state, Input::Prepared { holder, region, versions });
    }

    fn land(&self, state: &mut State, n: u8, torn: bool) {
        let (acked, acked_by) = (state.acked, state.acked_by);
        if self.answers(state, n) {
            state.broken |= broken::I6_LANDED_LATE;
        }
        let node = &mut state.nodes[usize::from(n)];
        let before = node.whole();
        let Some(flight) = node.wire.as_mut() else { return };
        let write = flight.write;
        if !torn {
            flight.landed = true;
            if flight.work == 0 {
                node.wire = None;
            }
        }
        match write {
            Write::Mark(view) => node.mark = view,
            Write::Version { version, slot } => {
                // In between it is neither the old version nor the new one.
                node.slots[usize::from(slot)] = version | TORN;
                // One of those who acknowledged it, that is.
                let had_it = before.contains(&acked) && node.mark >= acked_by;
                if acked > 0 && had_it && node.newest() < acked {
                    state.broken |= broken::I5_OVERWRITTEN;
                }
                if !torn {
                    node.slots[usize::from(slot)] = version;
                }
            }
        }
    }

    fn installs(&self, state: &mut State, n: u8, number: u8) {
        let view = self.history.view(number).clone();
        let node = &mut state.nodes[usize::from(n)];
        node.view = number;
        let evicted = view.lives[usize::from(n)] != node.life;
        let fences = !view.owner && self.mutant != Some(Mutant::NoFence) && !self.has_leases();
        if evicted || fences {
            node.close(); // F1
        }
        if evicted && self.mutant == Some(Mutant::WipedAtEviction) {
            node.forget();
        }
    }

    fn returns(&self, state: &mut State, n: u8, number: u8, with_memory: bool) {
        let life = self.history.view(number).lives[usize::from(n)];
        let lost = &state.nodes[usize::from(n)];
        if !with_memory && !lost.crashed && lost.life > 0 {
            state.crashes += 1;
        }
        if !with_memory && !lost.crashed {
            self.crash(state, n);
        }
        let node = &mut state.nodes[usize::from(n)];
        node.close();
        if self.mutant == Some(Mutant::WipedAtEviction) {
            node.forget();
        }
        (node.crashed, node.life, node.view) = (false, life, number);
        if !with_memory {
            node.memory_since = life;
        }
    }

    fn crash(&self, state: &mut State, n: u8) {
        let node = &mut state.nodes[usize::from(n)];
        node.close();
        node.forget();
        node.crashed = true;
    }

    /// Tells the owner, and does what it does then.
    fn tell(&self, state: &mut State, input: Input) {
        self.tell_and(state, input, true);
    }

    fn tell_and(&self, state: &mut State, input: Input, may_acknowledge: bool) {
        let step = self.owners.step(state.owner, input);
        state.owner = step.next;
        if let Some((version, holders)) = step.acknowledged.as_ref().filter(|_| may_acknowledge) {
            self.acknowledged(state, *version, holders);
        }
        let leased = state.lease && self.mutant == Some(Mutant::LeaseAtPosting);
        for effect in &step.effects {
            match *effect {
                Effect::Ask(holder) => state.nodes[holder.node()].asked = holder.life(),
                Effect::Post { holder, work, version, mut slot } => {
                    let node = &mut state.nodes[holder.node()];
                    if slot == OLDEST_SLOT {
                        let whole = node.whole();
                        slot = (0..SLOTS as u8).min_by_key(|&i| whole[usize::from(i)]).unwrap();
                    }
                    let write = Write::Version { version, slot };
                    let life = holder.life();
                    node.wire = Some(InFlight { life, work, write, landed: false, leased });
                }
                Effect::Mark { holder, work, view } => {
                    state.floor = state.floor.max(view);
                    let (life, write) = (holder.life(), Write::Mark(view));
                    let flight = InFlight { life, work, write, landed: false, leased };
                    state.nodes[holder.node()].wire = Some(flight);
                }
                Effect::Synced(view) => state.confirmed = state.confirmed.max(view),
            }
        }
    }

    /// The service is told that a version is mirrored. I7: every holder of record is in the owner's
    /// ring and has the version under a mark at or above the floor, unless it has crashed since.
    fn acknowledged(&self, state: &mut State, version: u8, holders: &[Holder]) {
        let view = self.history.view(state.owner_view);
        let (mut oldest_mark, mut at, mut all_left) = (state.owner_view, 0, true);
        let mut sound = holders.len() == self.copies && holders.iter().all(|h| view.contains(*h));
        for holder in holders {
            let node = &state.nodes[holder.node()];
            at |= holder.life() << (2 * holder.node());
            let left = !node.crashed && node.memory_since <= holder.life();
            all_left &= left;
            if left {
                sound &= node.mark >= state.floor && node.newest() >= version;
                oldest_mark = oldest_mark.min(node.mark);
            }
        }
        if !sound {
            state.broken |= broken::I7_BELOW_FLOOR;
        }
        // Those marked for one view acknowledge until others are for a later one, and then no more.
        let known = all_left && state.acked_at != 0;
        let others = known && oldest_mark == state.acked_by && at != state.acked_at;
        if oldest_mark < state.acked_by || others {
            state.broken |= broken::TWO_MIRRORS;
        }
        state.acked_by = oldest_mark;
        // The mark of one that lost its memory is not known.
        state.acked_at = if all_left { at } else { 0 };
        state.acked = state.acked.max(version);
    }
}
