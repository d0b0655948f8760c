//! Mirrors, on both sides: as `src/server/mirrors.rs`.

use std::{fs::File, rc::Rc, sync::Arc, time::Duration};

use ringkeep::{
    membership::{Event, NodeId},
    name::Name,
    region::{Identity, Region, layout::Layout, mapping::Mapping},
    transport::{Access, Purpose, Terms, Transport},
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{
    Mutant,
    oracle::{payload_bytes, slots},
    rpc::{Copy, Failure, FencedCopy, Reply, Request, Standing},
    server::{Held, LONG_CALL_TIMEOUT, Server},
    world::{Kept, Meta},
};

const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_REFUSED_AFTER: Duration = Duration::from_millis(500);

/// New memory for a checkpoint.
pub(crate) fn new_region(name: &Name, checkpoint: u64) -> Region {
    let layout = Layout::new(payload_bytes(name) as u64, slots(name)).expect("sensible measures");
    let bytes = layout.region_bytes();
    let file = File::from(memfd_create("simulated", MemfdFlags::CLOEXEC).expect("a memory file"));
    ftruncate(&file, bytes).expect("room for it");
    let mapping = Arc::new(Mapping::new(&file, bytes as usize).expect("a mapping"));
    Region::new(mapping, layout, Identity { checkpoint, generation: 1 }).expect("it fits")
}

impl Server {
    // The owner's side.

    /// Asks a holder for a mirror. One question at a time: the holder answers each with a new key
    /// that ends the one before.
    pub(crate) async fn need_mirror(self: Rc<Self>, name: Name, holder: NodeId) {
        let id = (name, holder);
        if let Some(again) = self.preparing.borrow_mut().get_mut(&id) {
            *again = true;
            return;
        }
        self.preparing.borrow_mut().insert(id.clone(), false);
        let prepared = loop {
            let prepared = self.prepare_at(&id.0, &id.1).await;
            let outdated = self.preparing.borrow_mut().insert(id.clone(), false) == Some(true);
            match prepared {
                Ok(prepared) if !outdated => break Some(prepared),
                Ok(_) => {}
                Err(failure) => {
                    self.sleep(match failure {
                        Failure::Unavailable => RETRY_AFTER,
                        Failure::Fenced => RETRY_REFUSED_AFTER,
                    })
                    .await;
                    break None;
                }
            }
        };
        self.preparing.borrow_mut().remove(&id);
        {
            let mut owned = self.owned.borrow_mut();
            let Some(plane) = owned.get_mut(&id.0).and_then(|o| o.plane.as_mut()) else { return };
            match prepared {
                Some(Reply::Prepared { key, region, versions, mark_to }) => {
                    plane.keys.insert(id.1.clone(), (key, mark_to));
                    plane.mirror.prepared(&id.1, region, &versions);
                }
                _ => plane.mirror.lost(&id.1),
            }
        }
        self.drive(&id.0);
    }

    async fn prepare_at(self: &Rc<Self>, name: &Name, holder: &NodeId) -> Result<Reply, Failure> {
        let view = self.view().ok_or(Failure::Unavailable)?;
        let member = view.member(holder).ok_or(Failure::Unavailable)?.clone();
        self.link(&member).await?;
        let meta = self.meta_of(name).ok_or(Failure::Unavailable)?;
        let view = self.view().map_or(0, |view| view.number);
        let Meta { checkpoint, epoch, .. } = meta;
        let request = Request::Prepare { name: name.clone(), checkpoint, epoch, view };
        let reply = self.call(&member, request, LONG_CALL_TIMEOUT).await;
        if reply.as_ref().is_err_and(|failure| *failure == Failure::Unavailable) {
            // The connection may be the reason: make a new one next time.
            self.forget_link(holder);
        }
        reply
    }

    /// This node's checkpoint has all its mirrors: copies that they replace can go (rule H4).
    pub(crate) fn synced(self: &Rc<Self>, name: &Name, holders: &[NodeId], view: u64) {
        let Some(Meta { checkpoint, epoch, .. }) = self.meta_of(name) else { return };
        self.world.log(|| format!("{} has {name} at {holders:?} for {view}", self.id()));
        self.world.oracle.borrow_mut().has_copies(&self.world, self.at, holders, name);
        let (name, holders) = (name.clone(), holders.to_vec());
        let confirm = Request::Confirm { name: name.clone(), checkpoint, epoch, holders, view };
        for member in self.others() {
            self.cast(&member, confirm.clone());
        }
        let (server, me) = (self.clone(), self.id());
        if let Request::Confirm { name, holders, .. } = confirm {
            self.spawn(async move {
                server.confirmed(&me, name, checkpoint, epoch, holders, view).await;
            });
        }
        self.synced_views.borrow_mut().insert(name, view);
        // The membership may be in the middle of telling something.
        let server = self.clone();
        self.spawn(async move { server.confirm_sync() });
    }

    pub(crate) fn confirm_sync(self: &Rc<Self>) {
        let Some(present) = self.view().map(|view| view.number) else { return };
        let view = {
            let (owned, synced) = (self.owned.borrow(), self.synced_views.borrow());
            // What this life gave up stays where it was mirrored until its taker has mirrors.
            let of_this_life = owned.iter().filter(|(_, o)| o.kept.meta.ended.is_none());
            let views = of_this_life.map(|(name, o)| match o.kept.meta.superseded {
                true => o.kept.region.mark().map_or(0, |mark| mark.view),
                false => synced.get(name).copied().unwrap_or(0),
            });
            views.min().unwrap_or(present)
        };
        if view > 0 {
            self.event(Event::SyncConfirmed { owner: self.id(), view });
        }
    }

    // The holder's side.

    /// Makes a mirror ready for its owner, or finds the one that is there.
    pub(crate) async fn prepare(
        self: &Rc<Self>,
        from: &NodeId,
        name: Name,
        checkpoint: u64,
        epoch: u64,
        view: u64,
    ) -> Result<Reply, Failure> {
        let _lock = self.lock(&name).await;
        self.view().filter(|v| v.contains(from)).ok_or(Failure::Fenced)?;
        if self.knows_newer(from, &name, checkpoint, epoch) {
            return Err(Failure::Fenced);
        }
        let id = (name, from.clone());
        let known = self.mirrors.borrow().get(&id).map(|m| m.kept.meta.checkpoint);
        if known == Some(checkpoint) {
            if let Some(mirror) = self.mirrors.borrow_mut().get_mut(&id) {
                mirror.fenced = false;
            }
        } else {
            if known.is_some() {
                self.drop_mirror(&id);
            }
            let (superseded, successor, ended) = (false, None, None);
            let nonce = self.world.count();
            let (taken_over, taken_from) = (false, Vec::new());
            let meta = Meta {
                checkpoint,
                epoch,
                taken_over,
                superseded,
                successor,
                ended,
                taken_from,
                nonce,
            };
            let kept = Kept { meta, region: new_region(&id.0, checkpoint) };
            self.keep_mirror(&id, &kept);
            let held = Held { kept, memory: None, key: None, fenced: false };
            self.mirrors.borrow_mut().insert(id.clone(), held);
        }
        self.grant_mirror(&id, epoch, view)
    }

    fn grant_mirror(&self, id: &(Name, NodeId), epoch: u64, view: u64) -> Result<Reply, Failure> {
        let mut mirrors = self.mirrors.borrow_mut();
        let mirror = mirrors.get_mut(id).filter(|m| !m.fenced).ok_or(Failure::Fenced)?;
        if mirror.kept.meta.epoch != epoch {
            (mirror.kept.meta.epoch, mirror.kept.meta.successor) = (epoch, None);
            self.keep_mirror(id, &mirror.kept);
        }
        let mut transport = self.transport.borrow_mut();
        // F2: nothing of an older connection lands from here on.
        if let Some(key) = mirror.key.take() {
            transport.revoke(key);
        }
        let region = &mirror.kept.region;
        let versions = (0..region.layout().slots())
            .map(|slot| region.verify(slot).map_or(0, |record| record.sequence))
            .collect();
        let memory = match mirror.memory {
            Some(memory) => memory,
            None => {
                let mapping = region.mapping().clone();
                let memory = transport.register(mapping, Purpose::Grant);
                memory.map_err(|_| Failure::Unavailable)?
            }
        };
        mirror.memory = Some(memory);
        let conn = self.links.borrow().incoming(&id.1).ok_or(Failure::Unavailable)?;
        let terms = Terms { epoch, view_min: view };
        let key = transport.grant(conn, memory, Access::Write, terms);
        let key = key.map_err(|_| Failure::Unavailable)?;
        mirror.key = Some(key);
        let (nonce, mark_to) = (mirror.kept.meta.nonce, region.free_mark());
        Ok(Reply::Prepared { key, region: nonce, versions, mark_to })
    }

    /// An owner gave away a checkpoint whose mirror is here.
    pub(crate) fn note_given(
        &self,
        from: &NodeId,
        name: &Name,
        checkpoint: u64,
        epoch: u64,
        to: &NodeId,
    ) {
        let id = (name.clone(), from.clone());
        if let Some(mirror) = self.mirrors.borrow_mut().get_mut(&id)
            && (mirror.kept.meta.checkpoint, mirror.kept.meta.epoch) == (checkpoint, epoch)
        {
            mirror.kept.meta.successor = Some(to.clone());
            self.keep_mirror(&id, &mirror.kept);
        }
    }

    /// True when this node knows of a later ownership of the same checkpoint.
    fn knows_newer(&self, from: &NodeId, name: &Name, checkpoint: u64, epoch: u64) -> bool {
        let owned = self.owned.borrow();
        let owns_newer = owned.get(name).is_some_and(|o| {
            let meta = &o.kept.meta;
            meta.checkpoint == checkpoint && !meta.superseded && meta.epoch >= epoch
        });
        let mirrors = self.mirrors.borrow();
        let holds_newer = mirrors.iter().any(|((n, owner), m)| {
            let (same, theirs) = (m.kept.meta.checkpoint == checkpoint, m.kept.meta.epoch);
            n == name && same && (theirs > epoch || (theirs == epoch && owner != from))
        });
        owns_newer || holds_newer
    }

    /// Newer mirrors are complete elsewhere: copies that they replace are let go.
    pub(crate) async fn confirmed(
        &self,
        from: &NodeId,
        name: Name,
        checkpoint: u64,
        epoch: u64,
        holders: Vec<NodeId>,
        view: u64,
    ) {
        let _lock = self.lock(&name).await;
        let replaced: Vec<_> = {
            let mirrors = self.mirrors.borrow();
            let elsewhere = !holders.contains(&self.id());
            let old = mirrors.iter().filter(|((n, owner), m)| {
                let meta = &m.kept.meta;
                n == &name
                    && meta.checkpoint == checkpoint
                    && (meta.epoch < epoch || (meta.epoch == epoch && owner == from && elsewhere))
            });
            old.map(|(id, m)| (id.clone(), m.kept.meta.epoch < epoch)).collect()
        };
        for (id, whatever_its_mark) in replaced {
            // This news may be older than the copy: then it is not what replaces it.
            let since = if whatever_its_mark { u64::MAX } else { view };
            self.drop_mirror_unless_synced(&id, since);
        }
        let superseded = self.meta_of(&name).is_some_and(|meta| {
            meta.superseded && meta.checkpoint == checkpoint && meta.epoch < epoch
        });
        if superseded && self.is_alive() {
            self.drop_owned(&name);
        }
    }

    /// Lets a mirror go, unless its owner synced it for view `since` or a later one. Whether it did
    /// is asked when nothing can land in it any more.
    pub(crate) fn drop_mirror_unless_synced(&self, id: &(Name, NodeId), since: u64) {
        let key = self.mirrors.borrow_mut().get_mut(id).and_then(|mirror| mirror.key.take());
        if let Some(key) = key {
            self.transport.borrow_mut().revoke(key);
        }
        let synced = |m: &Held| m.kept.region.mark().is_ok_and(|mark| mark.view >= since);
        if !self.mirrors.borrow().get(id).is_some_and(synced) {
            self.drop_mirror(id);
        }
    }

    pub(crate) fn drop_mirror(&self, id: &(Name, NodeId)) {
        let Some(mirror) = self.mirrors.borrow_mut().remove(id) else { return };
        self.world.log(|| format!("{} drops its mirror {id:?}", self.id()));
        if let Some(memory) = mirror.memory {
            let _ = self.transport.borrow_mut().deregister(memory);
        }
        self.erase_mirror(id);
        self.world.oracle.borrow_mut().look_for_copies(&self.world);
    }

    /// Stops accepting an owner's writes (rule F1).
    pub(crate) fn fence_quickly(&self, owner: &NodeId) {
        if self.world.params.mutant == Some(Mutant::NoFence) {
            return;
        }
        let mut mirrors = self.mirrors.borrow_mut();
        for (_, mirror) in mirrors.iter_mut().filter(|((_, o), _)| o == owner) {
            mirror.fenced = true;
            if let Some(key) = mirror.key.take() {
                self.transport.borrow_mut().revoke(key);
            }
        }
    }

    /// As [`Server::fence`], for a recovery: from here on nothing of that owner changes here (I6).
    pub(crate) fn answer_recovery(&self, owner: &NodeId) -> Vec<FencedCopy> {
        let copies = self.fence(owner);
        self.world.oracle.borrow_mut().answered(&self.world, self.at, owner);
        copies
    }

    /// Stops accepting a dead owner's writes, then says what there is (rule H5).
    pub(crate) fn fence(&self, owner: &NodeId) -> Vec<FencedCopy> {
        self.fence_quickly(owner);
        let mirrors = self.mirrors.borrow();
        let theirs = mirrors.iter().filter(|((_, o), _)| o == owner);
        let copies = theirs.map(|((name, _), mirror)| FencedCopy {
            name: name.clone(),
            mark: mirror.kept.region.mark().ok().map(|mark| mark.view),
            version: mirror.kept.region.newest_valid().map_or(0, |f| f.record.sequence),
            epoch: mirror.kept.meta.epoch,
            taken_up: false,
            given_to: mirror.kept.meta.successor.clone(),
        });
        copies.chain(self.taken_up_from(owner)).collect()
    }

    // Who has what.

    /// What this node has of a checkpoint.
    pub(crate) fn located(&self, name: &Name) -> Vec<Copy> {
        let mut copies = Vec::new();
        if let Some(meta) = self.meta_of(name) {
            let standing = if meta.superseded { Standing::Superseded } else { Standing::Owns };
            let synced = self.synced_views.borrow().get(name).copied();
            let Meta { checkpoint, epoch, .. } = meta;
            copies.push(Copy { standing, checkpoint, epoch, synced });
        }
        if self.creating.borrow().contains(name) {
            let standing = Standing::Creating;
            copies.push(Copy { standing, checkpoint: 0, epoch: 0, synced: None });
        }
        for ((n, owner), mirror) in self.mirrors.borrow().iter() {
            if n == name {
                copies.push(Copy {
                    standing: Standing::Holds(owner.clone()),
                    checkpoint: mirror.kept.meta.checkpoint,
                    epoch: mirror.kept.meta.epoch,
                    synced: mirror.kept.region.mark().ok().map(|mark| mark.view),
                });
            }
        }
        copies
    }

    /// What the other members have of a checkpoint. All of them must answer; a node that is in no
    /// ring does not know them.
    pub(crate) async fn locate(
        self: &Rc<Self>,
        name: &Name,
    ) -> Result<Vec<(ringkeep::membership::Member, Copy)>, Failure> {
        let asked_in = self.view().ok_or(Failure::Unavailable)?.number;
        let asked = self.others().into_iter().map(|member| {
            let (server, name) = (self.clone(), name.clone());
            async move {
                let request = Request::Locate { name };
                let answer = server.call(&member, request, crate::server::CALL_TIMEOUT).await;
                (member, answer)
            }
        });
        let mut found = Vec::new();
        for (member, answer) in futures::future::join_all(asked).await {
            match answer? {
                Reply::Located(copies) => {
                    found.extend(copies.into_iter().map(|copy| (member.clone(), copy)));
                }
                _ => return Err(Failure::Unavailable),
            }
        }
        // The ring may have changed meanwhile.
        self.view().filter(|view| view.number == asked_in).ok_or(Failure::Unavailable)?;
        Ok(found)
    }
}
