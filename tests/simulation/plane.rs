//! The data plane: what a server does with the real [`Mirror`] and a real transport, the simulated
//! one.

use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use ringkeep::{
    commit::{Slots, Stale, Version, segments},
    membership::NodeId,
    mirror::{Action, Measures, Mirror, Post, Protection},
    name::Name,
    region::{
        Mark, Region,
        layout::{MARK_AT, MARK_BYTES},
    },
    transport::{
        ConnId, Event, MemoryId, Purpose, RemoteKey, Segment, Stamp, Transport, Work, WorkId,
    },
};

use crate::{
    oracle::Accepted,
    rpc::{Failure, Reply, Request},
    server::{CALL_TIMEOUT, Server, predecessors},
    tally::Fault,
    world::World,
};

/// How long versions that nobody waits for are collected.
const PACE: Duration = Duration::from_millis(2);

/// A served checkpoint.
pub(crate) struct Plane {
    pub(crate) mirror: Mirror<NodeId>,
    /// Which life serves it.
    owner: NodeId,
    /// The newest mark that was put on its way. The mirror keeps its own.
    floor: u64,
    /// What each holder granted, and which of its two places takes the next mark.
    pub(crate) keys: BTreeMap<NodeId, (RemoteKey, usize)>,
    memory: MemoryId,
    pub(crate) slots: Slots,
    /// Requests that read each local slot.
    pub(crate) pins: [usize; 3],
    pub(crate) outstanding: usize,
    pub(crate) leaving: bool,
    /// What the newest version says of itself.
    pub(crate) newest: u64,
    /// The service's own memory of its state.
    pub(crate) state: Vec<u8>,
}

/// What a request was for.
#[derive(Debug, Clone)]
struct Posted {
    name: Name,
    from: Option<usize>,
}

/// Connections by peer: at most one in each direction.
#[derive(Default)]
pub(crate) struct Links {
    outgoing: BTreeMap<NodeId, (ConnId, bool)>,
    incoming: BTreeMap<NodeId, ConnId>,
    works: BTreeMap<u64, Posted>,
    /// Reads under way, and those that are done.
    pub(crate) reads: BTreeMap<u64, Option<bool>>,
}

impl Links {
    fn up(&self, peer: &NodeId) -> Option<ConnId> {
        self.outgoing.get(peer).filter(|(_, up)| *up).map(|(conn, _)| *conn)
    }

    /// Whether nothing is connected or awaited: an event would be of nothing.
    fn is_idle(&self) -> bool {
        let connected = !self.outgoing.is_empty() || !self.incoming.is_empty();
        !connected && self.works.is_empty() && self.reads.is_empty()
    }

    pub(crate) fn incoming(&self, peer: &NodeId) -> Option<ConnId> {
        self.incoming.get(peer).copied()
    }
}

impl Server {
    fn now_ns(&self) -> u64 {
        self.world.now.get().0
    }

    // Serving.

    /// Hands an owned checkpoint to the data plane. `by_another` life than the one that committed to
    /// it.
    pub(crate) fn serve(self: &Rc<Self>, name: &Name, by_another: bool) {
        {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return };
            let region = &owned.kept.region;
            {
                let mut oracle = self.world.oracle.borrow_mut();
                oracle.recovered(&self.id(), name, region, by_another);
                oracle.served(name, &self.id(), region);
            }
            let mapping = region.mapping().clone();
            let memory = self.transport.borrow_mut().register(mapping, Purpose::Post);
            let measures = Measures {
                copies: usize::from(self.world.params.copies),
                slots: region.layout().slots(),
                capacity: region.layout().capacity(),
                pace_ns: PACE.as_nanos() as u64,
            };
            let newest = region.newest_valid();
            let len = newest.map_or(0, |found| found.record.len);
            let mut state = vec![0; len as usize];
            if let Some(found) = newest {
                region.read_payload(found.slot, 0, &mut state).expect("a payload");
            }
            let mut plane = Plane {
                mirror: Mirror::new(measures),
                owner: self.id(),
                floor: 0,
                keys: BTreeMap::new(),
                memory: memory.expect("the simulated transport takes all memory"),
                slots: Slots::new(region.layout().capacity(), &region.versions(), len),
                pins: [0; 3],
                outstanding: 0,
                leaving: false,
                newest: newest.map_or(0, |found| crate::oracle::says(region, found.slot).self_id),
                state,
            };
            if let Some(found) = newest {
                let (version, slot) = (found.record.sequence, found.slot);
                let everything = Stale::everything(region.layout().capacity());
                plane.mirror.submitted(self.now_ns(), version, slot, len, &everything, false);
            }
            owned.plane = Some(plane);
        }
        self.tell_view_of(name);
        self.drive(name);
        self.spawn(self.clone().run_service(name.clone(), self.life.get()));
    }

    /// Stops serving a checkpoint; done when its last request is.
    pub(crate) async fn disown(self: Rc<Self>, name: Name) {
        loop {
            {
                let mut owned = self.owned.borrow_mut();
                let Some(owned) = owned.get_mut(&name) else { return };
                let Some(plane) = owned.plane.as_mut() else { return };
                plane.leaving = true;
                if plane.outstanding == 0 {
                    let memory = plane.memory;
                    owned.plane = None;
                    let _ = self.transport.borrow_mut().deregister(memory);
                    return;
                }
            }
            self.sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn tell_view(self: &Rc<Self>) {
        let names: Vec<Name> = self.owned.borrow().keys().cloned().collect();
        for name in names {
            self.tell_view_of(&name);
            self.drive(&name);
        }
    }

    fn tell_view_of(&self, name: &Name) {
        let Some(view) = self.view() else { return };
        let (since, predecessors) = predecessors(&view, &self.id());
        let mut owned = self.owned.borrow_mut();
        if let Some(plane) = owned.get_mut(name).and_then(|o| o.plane.as_mut()) {
            plane.mirror.view_installed(view.number, since, &predecessors, |h| view.contains(h));
        }
    }

    /// Does what the mirror of this checkpoint wants done.
    pub(crate) fn drive(self: &Rc<Self>, name: &Name) {
        loop {
            let action = {
                let mut owned = self.owned.borrow_mut();
                let plane = owned.get_mut(name).and_then(|o| o.plane.as_mut());
                let Some(plane) = plane.filter(|plane| !plane.leaving) else { return };
                plane.mirror.next(self.now_ns())
            };
            match action {
                None => break,
                Some(Action::Prepare(holder)) => {
                    self.spawn(self.clone().need_mirror(name.clone(), holder));
                }
                Some(Action::Release { .. }) => {}
                Some(Action::Synced { holders, view }) => self.synced(name, &holders, view),
                Some(Action::Post(post)) => {
                    if !self.post_version(name, post) {
                        return self.look_again(name);
                    }
                }
                Some(Action::PostMark { at, view }) => {
                    if !self.post_mark(name, at, view) {
                        return self.look_again(name);
                    }
                }
            }
            if !self.is_alive() {
                return;
            }
        }
        let waits = {
            let owned = self.owned.borrow();
            let plane = owned.get(name).and_then(|o| o.plane.as_ref());
            plane.is_some_and(|plane| plane.mirror.deadline_ns().is_some())
        };
        if waits {
            self.look_again(name);
        }
    }

    fn look_again(self: &Rc<Self>, name: &Name) {
        let (server, name) = (self.clone(), name.clone());
        self.spawn(async move {
            server.sleep(PACE).await;
            if server.is_alive() {
                server.drive(&name);
            }
        });
    }

    /// Posts the newest version to a holder. False when it has to wait.
    fn post_version(&self, name: &Name, post: Post) -> bool {
        let view = self.view().map_or(0, |view| view.number);
        let mut owned = self.owned.borrow_mut();
        let Some(owned) = owned.get_mut(name) else { return false };
        let (region, epoch) = (&owned.kept.region, owned.kept.meta.epoch);
        let Some(plane) = owned.plane.as_mut() else { return false };
        let holder = plane.mirror.holder_at(post.at).clone();
        let mut links = self.links.borrow_mut();
        let (Some(conn), Some(&(key, _))) = (links.up(&holder), plane.keys.get(&holder)) else {
            plane.mirror.lost(&holder);
            return true;
        };
        if region.commit_word(post.from) != post.version {
            return false;
        }
        let mut list = Vec::new();
        let stale = plane.mirror.stale(&post);
        segments(region.layout(), post.from, post.to, post.len, stale, &mut list);
        self.with_mirror(&holder, name, &plane.owner, |mirror| {
            self.world.oracle.borrow_mut().becomes_target(name, Some(&holder), mirror, post.to);
        });
        let id = WorkId(self.world.count());
        let work = Work {
            id,
            conn,
            memory: plane.memory,
            key,
            stamp: Stamp { epoch, view },
            segments: &list,
        };
        match self.transport.borrow_mut().post_write(work) {
            Ok(()) => {
                plane.mirror.posted(&post, id.0);
                plane.outstanding += 1;
                plane.pins[post.from] += 1;
                let posted = Posted { name: name.clone(), from: Some(post.from) };
                links.works.insert(id.0, posted);
            }
            Err(_) => plane.mirror.lost(&holder),
        }
        true
    }

    /// Posts the sync mark, from this region's own header page. False when it has to wait.
    fn post_mark(self: &Rc<Self>, name: &Name, at: usize, view: u64) -> bool {
        let holder = {
            let incarnation = self.id().incarnation;
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(name) else { return false };
            let epoch = owned.kept.meta.epoch;
            let Some(plane) = owned.plane.as_mut() else { return false };
            let holder = plane.mirror.holder_at(at).clone();
            let mut links = self.links.borrow_mut();
            let granted = plane.keys.get_mut(&holder);
            let (Some(conn), Some((key, mark_to))) = (links.up(&holder), granted) else {
                plane.mirror.lost(&holder);
                return true;
            };
            owned.kept.region.set_mark(Mark { view, epoch, incarnation });
            let id = WorkId(self.world.count());
            let work = Work {
                id,
                conn,
                memory: plane.memory,
                key: *key,
                stamp: Stamp { epoch, view },
                segments: &[Segment {
                    local: MARK_AT[0],
                    remote: MARK_AT[*mark_to],
                    len: MARK_BYTES,
                }],
            };
            match self.transport.borrow_mut().post_write(work) {
                Ok(()) => {
                    *mark_to = 1 - *mark_to;
                    plane.mirror.mark_posted(at, view, id.0);
                    plane.floor = plane.floor.max(view);
                    self.world.oracle.borrow_mut().synced(name, view);
                    plane.outstanding += 1;
                    links.works.insert(id.0, Posted { name: name.clone(), from: None });
                }
                Err(_) => plane.mirror.lost(&holder),
            }
            holder
        };
        self.world.log(|| format!("{} marks {name} at {holder} for {view}", self.id()));
        if let Some((machine, dies)) = self.world.mark_trap.get()
            && machine == self.at
        {
            self.world.mark_trap.set(None);
            self.world.tally.borrow_mut().add(Fault::HalfLandedMark);
            let world: Rc<World> = self.world.clone();
            let to = world.machines.iter().position(|m| m.name == holder.name);
            match to {
                Some(to) if !dies => world.cut(machine, to),
                _ => world.kill(machine),
            }
        }
        true
    }

    // The transport.

    pub(crate) fn poll_data(self: &Rc<Self>) {
        if self.links.borrow().is_idle() {
            return;
        }
        let mut events = Vec::new();
        self.transport.borrow_mut().poll(&mut events);
        for event in events {
            match event {
                Event::Completed { work, result, .. } => self.completed(work, result.is_ok()),
                Event::Closed { conn } => self.link_ended(conn),
            }
            if !self.is_alive() {
                return;
            }
        }
    }

    fn completed(self: &Rc<Self>, work: WorkId, ok: bool) {
        let posted = {
            let mut links = self.links.borrow_mut();
            if let Some(read) = links.reads.get_mut(&work.0) {
                *read = Some(ok);
                return;
            }
            links.works.remove(&work.0)
        };
        let Some(Posted { name, from }) = posted else { return };
        let acknowledged = {
            let mut owned = self.owned.borrow_mut();
            let Some(owned) = owned.get_mut(&name) else { return };
            let region = &owned.kept.region;
            let Some(plane) = owned.plane.as_mut() else { return };
            plane.outstanding -= 1;
            if let Some(slot) = from {
                plane.pins[slot] -= 1;
            }
            let overwritten = from.is_some_and(|slot| {
                let version = plane.mirror.version_of(work.0);
                version.is_some_and(|v| v != region.commit_word(slot))
            });
            if ok && overwritten {
                plane.mirror.spoiled(self.world.now.get().0, work.0);
                None
            } else {
                let before = plane.mirror.mirrored();
                let news = plane.mirror.completed(work.0, ok);
                news.then(|| (before, plane.mirror.mirrored()))
            }
        };
        if let Some((_, version)) = acknowledged {
            self.acknowledge(&name, version);
        }
        self.drive(&name);
    }

    /// The service is told that all versions up to this one are mirrored.
    fn acknowledge(&self, name: &Name, version: Version) {
        let owned = self.owned.borrow();
        let Some(owned) = owned.get(name) else { return };
        let Some(plane) = &owned.plane else { return };
        let of_record = plane.mirror.copies().filter(|copy| copy.of_record);
        let holders: Vec<NodeId> = of_record.map(|copy| copy.holder.clone()).collect();
        let (world, region) = (&self.world, &owned.kept.region);
        let mut oracle = world.oracle.borrow_mut();
        oracle.acknowledged(world, self.at, &holders, name, version, region);
        oracle.accepted(
            world,
            &Accepted {
                name,
                version,
                owner: &plane.owner,
                epoch: owned.kept.meta.epoch,
                holders: &holders,
                floor: plane.floor,
            },
        );
        self.world.tally.borrow_mut().acknowledged += 1;
    }

    /// Looks at a holder's mirror, as nobody in the world can, if its memory is still that one.
    fn with_mirror(
        &self,
        holder: &NodeId,
        name: &Name,
        owner: &NodeId,
        look: impl FnOnce(&Region),
    ) {
        if let Some(kept) = self.world.mirror_of(holder, name, owner) {
            look(&kept.region);
        }
    }

    fn link_ended(self: &Rc<Self>, conn: ConnId) {
        let peer = {
            let mut links = self.links.borrow_mut();
            links.incoming.retain(|_, c| *c != conn);
            let peer = links.outgoing.iter().find(|(_, (c, _))| *c == conn);
            let Some(peer) = peer.map(|(peer, _)| peer.clone()) else { return };
            links.outgoing.remove(&peer);
            peer
        };
        self.holder_lost(&peer);
    }

    fn holder_lost(self: &Rc<Self>, peer: &NodeId) {
        let mut names = Vec::new();
        for (name, owned) in self.owned.borrow_mut().iter_mut() {
            if let Some(plane) = owned.plane.as_mut()
                && plane.keys.remove(peer).is_some()
            {
                plane.mirror.lost(peer);
                names.push(name.clone());
            }
        }
        for name in names {
            self.drive(&name);
        }
    }

    pub(crate) fn unlink(self: &Rc<Self>, peer: &NodeId) {
        {
            let mut links = self.links.borrow_mut();
            let mut transport = self.transport.borrow_mut();
            let outgoing = links.outgoing.remove(peer).map(|(conn, _)| conn);
            for conn in outgoing.into_iter().chain(links.incoming.remove(peer)) {
                transport.close(conn);
            }
        }
        self.holder_lost(peer);
    }

    /// Makes sure that work can be posted towards a peer.
    pub(crate) async fn link(
        self: &Rc<Self>,
        to: &ringkeep::membership::Member,
    ) -> Result<(), Failure> {
        if self.links.borrow().up(&to.id).is_some() {
            return Ok(());
        }
        let (conn, offer) = {
            let mut links = self.links.borrow_mut();
            let mut transport = self.transport.borrow_mut();
            if let Some((old, _)) = links.outgoing.remove(&to.id) {
                transport.close(old);
            }
            let (conn, offer) = transport.offer().map_err(|_| Failure::Unavailable)?;
            links.outgoing.insert(to.id.clone(), (conn, false));
            (conn, offer)
        };
        let reply = self.call(to, Request::Link { offer }, CALL_TIMEOUT).await?;
        let Reply::Link { answer } = reply else { return Err(Failure::Unavailable) };
        let mut links = self.links.borrow_mut();
        if links.outgoing.get(&to.id) != Some(&(conn, false)) {
            return if links.up(&to.id).is_some() { Ok(()) } else { Err(Failure::Unavailable) };
        }
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let finished = self.transport.borrow_mut().finish(conn, &answer, address);
        finished.map_err(|_| Failure::Unavailable)?;
        links.outgoing.insert(to.id.clone(), (conn, true));
        Ok(())
    }

    /// A peer opens a connection towards this node.
    pub(crate) fn accept_link(&self, from: &NodeId, offer: &[u8]) -> Result<Reply, Failure> {
        let mut links = self.links.borrow_mut();
        let mut transport = self.transport.borrow_mut();
        if let Some(old) = links.incoming.remove(from) {
            transport.close(old); // F2: the old one ends before the new one begins
        }
        let (conn, answer) = transport.accept(offer).map_err(|_| Failure::Unavailable)?;
        links.incoming.insert(from.clone(), conn);
        Ok(Reply::Link { answer })
    }

    /// The connection towards this peer must not be used any more.
    pub(crate) fn forget_link(&self, peer: &NodeId) {
        if let Some((_, up)) = self.links.borrow_mut().outgoing.get_mut(peer) {
            *up = false;
        }
    }

    /// Reads one slot of a peer's region into slot 0 of a new one.
    pub(crate) async fn read_slot(
        &self,
        from: &NodeId,
        key: RemoteKey,
        slot: usize,
        into: &Region,
    ) -> Result<(), Failure> {
        let layout = *into.layout();
        let memory = {
            let mapping = into.mapping().clone();
            let registered = self.transport.borrow_mut().register(mapping, Purpose::Post);
            registered.map_err(|_| Failure::Unavailable)?
        };
        let id = self.world.count();
        let posted = {
            let mut links = self.links.borrow_mut();
            let conn = links.up(from);
            let list = [Segment {
                local: layout.slot(0),
                remote: layout.slot(slot),
                len: layout.slot_bytes(),
            }];
            let stamp = Stamp { epoch: 0, view: u64::MAX };
            let posted = conn.is_some_and(|conn| {
                let work = Work { id: WorkId(id), conn, memory, key, stamp, segments: &list };
                self.transport.borrow_mut().post_read(work).is_ok()
            });
            if posted {
                links.reads.insert(id, None);
            }
            posted
        };
        let mut done = if posted { None } else { Some(false) };
        while done.is_none() {
            self.sleep(Duration::from_millis(1)).await;
            if !self.is_alive() {
                return Err(Failure::Unavailable);
            }
            done = self.links.borrow().reads.get(&id).copied().flatten();
        }
        self.links.borrow_mut().reads.remove(&id);
        let _ = self.transport.borrow_mut().deregister(memory);
        done.filter(|ok| *ok).map(drop).ok_or(Failure::Unavailable)
    }

    /// How well a checkpoint is protected, if it is served here.
    pub(crate) fn protection(&self, name: &Name) -> Option<Protection> {
        let owned = self.owned.borrow();
        owned.get(name).and_then(|o| o.plane.as_ref()).map(|plane| plane.mirror.protection())
    }

    /// Whether the newest version of a checkpoint is at this member, or there is none.
    pub(crate) fn is_mirrored_at(&self, name: &Name, heir: &NodeId) -> bool {
        let owned = self.owned.borrow();
        let plane = owned.get(name).and_then(|o| o.plane.as_ref());
        plane.is_some_and(|plane| {
            let newest = plane.slots.version();
            plane.mirror.copies().any(|c| c.of_record && c.holder == heir && c.version == newest)
        })
    }
}
