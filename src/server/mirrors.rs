//! Mirrors, on both sides: an owner's wish for one, and the holder that prepares, fences, reports
//! and lets go.

use std::{rc::Rc, time::Duration};

use super::{
    data_plane::{Command, Notice},
    failures::internal,
    node::{LONG_CALL_TIMEOUT, Mirror, MirrorId, Node, blocking},
    rpc::{FencedCopy, Prepare, Reply, Request},
    store::{Held, Meta},
};
use crate::{
    handover::{Condition, Violation},
    membership::{Event, NodeId},
    name::Name,
    protocol::{Failure, FailureKind},
    region::Region,
    transport::{Access, Purpose, Terms},
};

/// Before a holder that was not ready is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The same for one that has no room, or says that somebody else owns the checkpoint.
const RETRY_REFUSED_AFTER: Duration = Duration::from_millis(500);

impl Node {
    // The owner's side.

    /// The data plane wants something. What takes long is a task of its own; the end of a link is
    /// heard at once, so that whoever wants one next does not find the old one.
    pub(super) fn notice(self: &Rc<Self>, notice: Notice) {
        match notice {
            Notice::NeedMirror { name, holder } => {
                let node = self.clone();
                tokio::task::spawn_local(async move { node.need_mirror(name, holder).await });
            }
            Notice::Synced { name, epoch, holders, view } => {
                self.synced(name, epoch, holders, view);
            }
            Notice::Released { name, holder, confirmed } => {
                tracing::debug!(checkpoint = %name, %holder, confirmed, "a mirror was let go");
            }
            Notice::LinkDown { peer, conn, kind, end } => self.link_down(&peer, conn, kind, end),
            Notice::Fenced { name, holder } => {
                tracing::warn!(checkpoint = %name, %holder, "the holder refused a commit: fenced");
            }
            Notice::Violation { name, violation } => {
                tracing::warn!(checkpoint = %name, %violation, "a client was let go");
                if violation == Violation::Cut {
                    let node = self.clone();
                    tokio::task::spawn_local(async move {
                        let _lock = node.lock(&name).await;
                        // It may have got a new region while this waited.
                        let still = |o: &super::node::Owned| o.region.mapping().is_cut();
                        if node.owned.borrow().get(&name).is_some_and(still) {
                            node.region_cut(&name).await;
                        }
                    });
                }
            }
        }
    }

    /// A region whose file is not whole any more is not served, as one found damaged at the start:
    /// it comes back from its mirror, if there is one.
    pub(super) async fn region_cut(&self, name: &Name) {
        let gone = name.clone();
        let disown = |reply| Command::Disown { name: gone, condition: Condition::Violation, reply };
        if self.data_plane.ask(disown).await.is_err() {
            return; // a data plane that is gone ends the server elsewhere
        }
        if let Some(owned) = self.owned.borrow_mut().get_mut(name) {
            owned.memory = None;
            owned.damaged = Some("its writer cut its memory off".to_owned());
        }
        self.changed.notify_waiters();
    }

    /// Asks a holder for a mirror. One question at a time: the holder answers each with a new key
    /// that ends the one before, so an answer to an older question is worth nothing.
    async fn need_mirror(&self, name: Name, holder: NodeId) {
        let id = (name, holder);
        if let Some(again) = self.preparing.borrow_mut().get_mut(&id) {
            *again = true;
            return;
        }
        self.preparing.borrow_mut().insert(id.clone(), false);
        let command = loop {
            let prepared = self.prepare_at(&id.0, &id.1).await;
            let outdated = self.preparing.borrow_mut().insert(id.clone(), false) == Some(true);
            match prepared {
                Ok(command) if !outdated => break command,
                Ok(_) => {}
                Err(failure) => {
                    self.no_mirror_yet(&id, &failure);
                    let passing = failure.kind == FailureKind::Unavailable;
                    tokio::time::sleep(if passing { RETRY_AFTER } else { RETRY_REFUSED_AFTER })
                        .await;
                    let (name, holder) = id.clone();
                    break Command::MirrorLost { name, holder };
                }
            }
        };
        self.preparing.borrow_mut().remove(&id);
        // A data plane that is gone ends the server elsewhere.
        let _ = self.data_plane.send(command);
    }

    fn no_mirror_yet(&self, (name, holder): &(Name, NodeId), failure: &Failure) {
        if failure.kind == FailureKind::NoSpace && !self.warned.replace(true) {
            tracing::warn!(%holder, %failure, "a predecessor has no room for a mirror");
        } else {
            tracing::debug!(checkpoint = %name, %holder, %failure, "no mirror yet");
        }
    }

    async fn prepare_at(&self, name: &Name, holder: &NodeId) -> Result<Command, Failure> {
        let gone = || Failure::new(FailureKind::Unavailable, "not in the ring any more");
        let view = self.view().ok_or_else(gone)?;
        let member = view.member(holder).ok_or_else(gone)?.clone();
        self.link(&member).await?;
        let prepare = {
            let owned = self.owned.borrow();
            let meta = &owned.get(name).ok_or_else(gone)?.meta;
            Prepare {
                name: name.clone(),
                identity: meta.identity,
                layout: meta.layout,
                epoch: meta.epoch,
                view: view.number,
                owner: meta.owner,
            }
        };
        let epoch = prepare.epoch;
        match self.call(&member, Request::Prepare(prepare), LONG_CALL_TIMEOUT).await {
            Ok(Reply::Prepared { key, region, versions, mark_to }) => {
                let (name, holder) = (name.clone(), holder.clone());
                Ok(Command::Prepared { name, epoch, holder, key, region, versions, mark_to })
            }
            Ok(_) => Err(Failure::new(FailureKind::Internal, "an answer to something else")),
            Err(failure) => {
                if failure.kind == FailureKind::Unavailable {
                    // The connection may be the reason: make a new one next time.
                    self.forget_link(holder);
                }
                Err(failure)
            }
        }
    }

    /// This node's checkpoint has all its mirrors: copies that they replace can go (rule H4). What
    /// was said of an ownership that ended meanwhile frees nothing.
    fn synced(self: &Rc<Self>, name: Name, epoch: u64, holders: Vec<NodeId>, view: u64) {
        let identity = {
            let owned = self.owned.borrow();
            match owned.get(&name).filter(|owned| owned.meta.epoch == epoch) {
                Some(owned) => owned.meta.identity,
                None => return,
            }
        };
        let confirm = Request::Confirm {
            name: name.clone(),
            identity,
            epoch,
            holders: holders.clone(),
            view,
        };
        for holder in &holders {
            tracing::info!(checkpoint = %name, %holder, view, "mirrored");
        }
        for member in self.others() {
            self.cast(&member, confirm.clone());
        }
        let (node, me) = (self.clone(), self.id());
        let of = name.clone();
        tokio::task::spawn_local(async move {
            node.confirmed(me, of, identity, epoch, holders, view).await;
        });
        self.synced_views.borrow_mut().insert(name, view);
        self.confirm_sync();
        self.changed.notify_waiters();
    }

    /// Tells the membership how far back a recovery of this node would have to ask: the oldest
    /// view among the marks of all its checkpoints. Of who owns nothing nobody needs to be asked
    /// about earlier views.
    pub(super) fn confirm_sync(self: &Rc<Self>) {
        let Some(present) = self.view().map(|view| view.number) else { return };
        let view = {
            let (owned, synced) = (self.owned.borrow(), self.synced_views.borrow());
            // What this life gave up stays where it was mirrored until its taker has mirrors.
            let of_this_life = owned.iter().filter(|(_, o)| o.meta.ended.is_none());
            let views = of_this_life.map(|(name, o)| match o.meta.held {
                Held::Superseded => o.region.mark().map_or(0, |mark| mark.view),
                _ => synced.get(name).copied().unwrap_or(0),
            });
            views.min().unwrap_or(present)
        };
        if view > 0 {
            self.membership_event(Event::SyncConfirmed { owner: self.id(), view });
        }
    }

    // The holder's side.

    /// Makes a mirror ready for its owner, or finds the one that is there.
    pub(super) async fn prepare(&self, from: NodeId, wanted: Prepare) -> Result<Reply, Failure> {
        let Prepare { name, identity, layout, epoch, view, owner } = wanted;
        let _lock = self.lock(&name).await;
        self.view().filter(|v| v.contains(&from)).ok_or_else(|| {
            Failure::new(FailureKind::Fenced, "you are not in my view of the ring")
        })?;
        if self.knows_newer(&from, &name, identity.checkpoint, epoch) {
            return Err(Failure::new(FailureKind::Fenced, "somebody else owns it by now"));
        }
        let id: MirrorId = (name.clone(), from.clone(), identity.generation);
        let known = self.mirrors.borrow().get(&id).map(|m| m.meta.clone());
        match known {
            Some(meta) if meta.identity == identity && meta.layout == layout => {
                // Fenced when this node restarted without knowing who its owner is: it is the one
                // that asks, and is in the ring.
                if let Some(mirror) = self.mirrors.borrow_mut().get_mut(&id) {
                    mirror.fenced = false;
                }
            }
            other => {
                if other.is_some() {
                    self.drop_mirror(&id).await;
                }
                let (held, region) = (Held::Mirror(from.clone()), Self::draw());
                let meta = Meta::new(name, identity, layout, epoch, owner, held, region);
                let stored = self.make_region(meta).await?;
                // The data plane, on which others wait, shall not be the first to touch it. The first
                // copy goes into the first slot; the others have time until that is there.
                let mapping = stored.region.mapping().clone();
                blocking(move || mapping.populate(0..layout.slot(1))).await;
                let stored = self.describe_region(stored).await?;
                let mirror = Mirror {
                    meta: stored.meta,
                    region: stored.region,
                    path: stored.path,
                    memory: None,
                    key: None,
                    fenced: false,
                };
                self.mirrors.borrow_mut().insert(id.clone(), mirror);
            }
        }
        self.grant_mirror(&id, epoch, view).await
    }

    pub(super) async fn grant_mirror(
        &self,
        id: &MirrorId,
        epoch: u64,
        view: u64,
    ) -> Result<Reply, Failure> {
        let gone = || Failure::new(FailureKind::Fenced, "the mirror is fenced");
        let (region, old_key, memory, nonce) = {
            let mut mirrors = self.mirrors.borrow_mut();
            let mirror = mirrors.get_mut(id).filter(|m| !m.fenced).ok_or_else(gone)?;
            if mirror.meta.epoch != epoch {
                let meta = Meta { epoch, successor: None, ..mirror.meta.clone() };
                self.describe_mirror(mirror, meta)?;
            }
            (mirror.region.clone(), mirror.key.take(), mirror.memory, mirror.meta.region)
        };
        // F2: nothing of an older connection lands from here on.
        if let Some(key) = old_key {
            self.data_plane.ask(|reply| Command::Revoke { key, reply }).await?;
        }
        let checked = region.clone();
        let versions = blocking(move || verified_versions(&checked)).await;
        let memory = match memory {
            Some(memory) => memory,
            None => {
                let (mapping, purpose) = (region.mapping().clone(), Purpose::Grant);
                let register = |reply| Command::Register { mapping, purpose, reply };
                let memory = self.data_plane.ask(register).await?.map_err(|e| internal(&e))?;
                // Before anything can fail: it is let go with the mirror.
                match self.mirrors.borrow_mut().get_mut(id) {
                    Some(mirror) => mirror.memory = Some(memory),
                    None => return Err(gone()),
                }
                memory
            }
        };
        let terms = Terms { epoch, view_min: view };
        let key = self.grant(&id.1, memory, Access::Write, terms).await?;
        let fenced = {
            let mut mirrors = self.mirrors.borrow_mut();
            let in_ring = self.view().is_some_and(|view| view.contains(&id.1));
            match mirrors.get_mut(id) {
                Some(mirror) if !mirror.fenced && in_ring => {
                    mirror.key = Some(key);
                    false
                }
                _ => true,
            }
        };
        if fenced {
            // The owner left the ring while this was under way (F1: fence before anything else).
            self.data_plane.ask(|reply| Command::Revoke { key, reply }).await?;
            return Err(gone());
        }
        Ok(Reply::Prepared { key, region: nonce, versions, mark_to: region.free_mark() })
    }

    /// An owner gave away a checkpoint whose mirror is here. If both of them are lost, too, this copy is
    /// not the last one.
    pub(super) fn note_given(
        &self,
        from: &NodeId,
        name: &Name,
        checkpoint: u64,
        epoch: u64,
        to: &NodeId,
    ) -> Result<(), Failure> {
        let mut mirrors = self.mirrors.borrow_mut();
        let same = |meta: &Meta| (meta.identity.checkpoint, meta.epoch) == (checkpoint, epoch);
        let theirs = mirrors.iter_mut().filter(|((n, owner, _), _)| n == name && owner == from);
        for (_, mirror) in theirs.filter(|(_, m)| same(&m.meta)) {
            let meta = Meta { successor: Some(to.clone()), ..mirror.meta.clone() };
            self.describe_mirror(mirror, meta)?;
        }
        Ok(())
    }

    /// On disk first. Nothing changed on error.
    fn describe_mirror(&self, mirror: &mut Mirror, meta: Meta) -> Result<(), Failure> {
        self.store.write_meta(&meta).map_err(|e| internal(&e))?;
        mirror.meta = meta;
        Ok(())
    }

    /// True when this node knows of a later ownership of the same checkpoint.
    fn knows_newer(&self, from: &NodeId, name: &Name, checkpoint: u64, epoch: u64) -> bool {
        let owned = self.owned.borrow();
        let owns_newer = owned.get(name).is_some_and(|o| {
            o.meta.identity.checkpoint == checkpoint
                && o.meta.held != Held::Superseded
                && o.meta.epoch >= epoch
        });
        let mirrors = self.mirrors.borrow();
        let holds_newer = mirrors.iter().any(|((n, owner, _), m)| {
            let (same, theirs) = (m.meta.identity.checkpoint == checkpoint, m.meta.epoch);
            n == name && same && (theirs > epoch || (theirs == epoch && owner != from))
        });
        owns_newer || holds_newer
    }

    /// Newer mirrors are complete elsewhere: copies that they replace are let go.
    pub(super) async fn confirmed(
        &self,
        from: NodeId,
        name: Name,
        identity: crate::region::Identity,
        epoch: u64,
        holders: Vec<NodeId>,
        view: u64,
    ) {
        let _lock = self.lock(&name).await;
        if let Some(mirror) =
            self.mirrors.borrow().get(&(name.clone(), from.clone(), identity.generation))
        {
            let (mapping, next) = (mirror.region.mapping().clone(), mirror.meta.layout.slot(1));
            tokio::task::spawn_blocking(move || mapping.populate(next..mapping.len()));
        }
        let replaced: Vec<(MirrorId, bool)> = {
            let mirrors = self.mirrors.borrow();
            let elsewhere = !holders.contains(&self.id());
            let old = mirrors.iter().filter(|((n, owner, _), m)| {
                n == &name
                    && m.meta.identity.checkpoint == identity.checkpoint
                    && (m.meta.epoch < epoch
                        || (m.meta.epoch == epoch
                            && *owner == from
                            && (elsewhere || m.meta.identity != identity)))
            });
            let whatever_its_mark =
                |m: &Mirror| m.meta.epoch < epoch || m.meta.identity != identity;
            old.map(|(id, m)| (id.clone(), whatever_its_mark(m))).collect()
        };
        for (id, whatever_its_mark) in replaced {
            // This news may be older than the copy: then it is not what replaces it.
            let since = if whatever_its_mark { u64::MAX } else { view };
            self.drop_mirror_unless_synced(&id, since).await;
        }
        let superseded = {
            let owned = self.owned.borrow();
            owned.get(&name).is_some_and(|o| {
                o.meta.held == Held::Superseded
                    && o.meta.identity.checkpoint == identity.checkpoint
                    && o.meta.epoch < epoch
            })
        };
        if superseded {
            self.drop_owned(&name).await;
        }
    }

    /// Lets a mirror go, unless its owner synced it for view `since` or a later one. Whether it did
    /// is asked when nothing can land in it any more.
    pub(super) async fn drop_mirror_unless_synced(&self, id: &MirrorId, since: u64) {
        let key = self.mirrors.borrow_mut().get_mut(id).and_then(|mirror| mirror.key.take());
        if let Some(key) = key
            && self.data_plane.ask(|reply| Command::Revoke { key, reply }).await.is_err()
        {
            return; // a data plane that is gone ends the server elsewhere
        }
        let synced = |m: &Mirror| m.region.mark().is_ok_and(|mark| mark.view >= since);
        if !self.mirrors.borrow().get(id).is_some_and(synced) {
            self.drop_mirror(id).await;
        }
    }

    pub(super) async fn drop_mirror(&self, id: &MirrorId) {
        let Some(mirror) = self.mirrors.borrow_mut().remove(id) else { return };
        if let Some(memory) = mirror.memory {
            let deregister = |reply| Command::Deregister { memory, reply };
            if self.data_plane.ask(deregister).await.is_err() {
                return;
            }
        }
        self.remove_region(mirror.meta, mirror.path, mirror.region).await;
    }

    /// Forgets an owned checkpoint that the data plane does not serve any more, and its memory.
    pub(super) async fn drop_owned(&self, name: &Name) {
        let Some(owned) = self.owned.borrow_mut().remove(name) else { return };
        self.synced_views.borrow_mut().remove(name);
        self.remove_region(owned.meta, owned.path, owned.region).await;
    }

    /// Stops accepting a dead owner's writes, then says what there is (rule H5: first fence, then
    /// read).
    pub(super) async fn fence(&self, owner: &NodeId) -> Result<Vec<FencedCopy>, Failure> {
        self.fence_quickly(owner).await?;
        let mut names: Vec<Name> = {
            let mirrors = self.mirrors.borrow();
            let theirs = mirrors.keys().filter(|(_, o, _)| o == owner);
            theirs.map(|(name, ..)| name.clone()).collect()
        };
        names.dedup(); // in the map's order, the same names stand together
        let copies: Vec<(Meta, Region)> = names
            .into_iter()
            .filter_map(|name| {
                let id = self.best_mirror(owner, &name)?;
                let mirrors = self.mirrors.borrow();
                mirrors.get(&id).map(|m| (m.meta.clone(), m.region.clone()))
            })
            .collect();
        let report = |(meta, region): (Meta, Region)| FencedCopy {
            name: meta.name,
            mark: region.mark().ok().map(|m| m.view),
            version: region.newest_valid().map_or(0, |f| f.record.sequence),
            epoch: meta.epoch,
            taken_up: false,
            given_to: meta.successor,
        };
        let taken_up = self.taken_up_from(owner);
        Ok(blocking(move || copies.into_iter().map(report).chain(taken_up).collect()).await)
    }
}

/// The version in each slot whose every checksum is right, 0 where there is none: an owner that
/// restarted protects by this the slot that may hold the last acknowledged version.
fn verified_versions(region: &Region) -> Vec<u64> {
    let slots = 0..region.layout().slots();
    slots.map(|slot| region.verify(slot).map_or(0, |record| record.sequence)).collect()
}
