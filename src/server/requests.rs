//! Questions about what there is, and removal.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    data_plane::Command,
    failures::{no_such, permission},
    holders,
    node::{CALL_TIMEOUT, LONG_CALL_TIMEOUT, MirrorId, Node, blocking},
    rpc::{Copy, PeerMessage, Reply, Request, Standing},
    store::{Held, Owner},
};
use crate::{
    handover::Condition,
    membership::{Event, Peer},
    mirror::Protection,
    name::Name,
    protocol::{CopyState, Failure, FailureKind, Listed, Role, VerifiedCopy},
    region::Region,
};

impl Node {
    /// Something came over an authenticated peer connection.
    pub(super) fn received(self: &Rc<Self>, from: Peer, bytes: &[u8]) {
        match postcard::from_bytes(bytes) {
            Ok(PeerMessage::Membership { from, message }) => {
                self.membership_event(Event::Received { from, message });
            }
            Ok(PeerMessage::Reply { id, body }) => self.answered(id, body),
            Ok(PeerMessage::Request { id, body }) => {
                tokio::task::spawn_local(self.clone().answer(from, id, body));
            }
            Err(error) => tracing::warn!(from = %from.id, %error, "a message that says nothing"),
        }
    }

    /// Does what a peer asks.
    pub(super) async fn request(
        self: &Rc<Self>,
        from: &Peer,
        body: Request,
    ) -> Result<Reply, Failure> {
        let peer = from.id.clone();
        match body {
            Request::Link { kind, offer } => self.accept_link(peer, kind, offer).await,
            Request::Prepare(wanted) => self.prepare(peer, wanted).await,
            Request::Confirm { name, identity, epoch, holders, view } => {
                self.confirmed(peer, name, identity, epoch, holders, view).await;
                Ok(Reply::Done)
            }
            Request::Locate { name } => Ok(Reply::Located(self.located(&name))),
            Request::Fence { owner, holder, view } => {
                if !self.has_memory_of(&holder) {
                    let why = format!("this node has not what {holder} had");
                    return Err(Failure::new(FailureKind::Unavailable, why));
                }
                if self.view().is_none_or(|v| v.number < view || v.contains(&owner)) {
                    let why = "this node has not installed the view without that owner yet";
                    return Err(Failure::new(FailureKind::Unavailable, why));
                }
                if holder == owner {
                    let (copies, complete) = self.copies_of_ended(&owner);
                    return Ok(Reply::Kept { copies, complete });
                }
                self.fence(&owner).await.map(Reply::Fenced)
            }
            Request::Adopt { owner, name, view } => {
                self.fence(&owner).await?;
                self.adopt(&owner, &name, Some(view))
                    .await
                    .map(|protected| Reply::Adopted { protected })
            }
            Request::Inherit { name, epoch, version } => {
                self.inherit(&peer, &name, epoch, version).await.map(|()| Reply::Done)
            }
            Request::TakeOver { name, force, caller } => {
                self.give_up(peer, name, force, caller).await
            }
            Request::Given { name, checkpoint, epoch, to } => {
                self.note_given(&peer, &name, checkpoint, epoch, &to).map(|()| Reply::Done)
            }
            Request::Fetch { name, version, caller } => {
                self.fetch(peer, name, version, caller).await
            }
            Request::Fetched { key } => {
                self.end_grant(key).await;
                Ok(Reply::Done)
            }
            Request::Remove { name, caller } => {
                self.remove_here(&name, caller).await.map(|()| Reply::Done)
            }
            Request::Drop { name, checkpoint, caller } => {
                self.drop_copies(&name, checkpoint, caller).await.map(|()| Reply::Done)
            }
            Request::Verify { name } => Ok(Reply::Verified(self.verify_mirror(&name).await)),
            Request::List => self.list_here().await.map(Reply::Listing),
        }
    }

    // Removal.

    /// Removes a checkpoint, wherever its owner is.
    pub(super) async fn remove(
        self: &Rc<Self>,
        name: &Name,
        caller: Owner,
        leftovers: bool,
    ) -> Result<(), Failure> {
        match self.remove_here(name, caller).await {
            Err(failure) if failure.kind == FailureKind::NoSuchCheckpoint => {}
            other => return other,
        }
        let copies = self.locate(name).await?;
        let owner = copies.iter().filter(|(_, c)| matches!(c.standing, Standing::Owns(_)));
        let Some((member, _)) = owner.max_by_key(|(_, c)| c.epoch) else {
            let elsewhere = copies.into_iter().map(|(_, copy)| copy);
            let copies = elsewhere.chain(self.located(name)).collect();
            return match leftovers {
                true => self.remove_leftovers(name, caller, copies).await,
                false => Err(self.unowned(name, copies)),
            };
        };
        let request = Request::Remove { name: name.clone(), caller };
        self.call(member, request, LONG_CALL_TIMEOUT).await.map(|_| ())
    }

    async fn remove_here(self: &Rc<Self>, name: &Name, caller: Owner) -> Result<(), Failure> {
        let _lock = self.lock(name).await;
        let meta = {
            let owned = self.owned.borrow();
            let owned = owned.get(name).filter(|o| o.meta.held != Held::Superseded);
            owned.ok_or_else(|| no_such(name))?.meta.clone()
        };
        if !meta.owner.may_write(&caller) {
            return Err(permission(name));
        }
        let (condition, gone) = (Condition::Removed, name.clone());
        self.disown(gone, condition).await?;
        self.drop_owned(name).await;
        let checkpoint = meta.identity.checkpoint;
        for member in self.others() {
            let request = Request::Drop { name: name.clone(), checkpoint, caller };
            // A holder that does not hear it now holds a copy of nothing; see docs/limits.md.
            if let Err(failure) = self.call(&member, request, CALL_TIMEOUT).await {
                tracing::warn!(checkpoint = %name, node = %member.id, %failure, "its mirror may stay");
            }
        }
        tracing::info!(checkpoint = %name, "removed");
        Ok(())
    }

    /// Of a checkpoint that nobody owns, everything; it needs everybody's answer.
    async fn remove_leftovers(
        self: &Rc<Self>,
        name: &Name,
        caller: Owner,
        copies: Vec<Copy>,
    ) -> Result<(), Failure> {
        if copies.iter().any(|copy| copy.standing == Standing::Creating) {
            return Err(self.unowned(name, copies));
        }
        let ids: BTreeSet<u64> = copies.iter().map(|copy| copy.identity.checkpoint).collect();
        if ids.is_empty() {
            return Err(no_such(name));
        }
        for checkpoint in ids {
            self.drop_copies(name, checkpoint, caller).await?;
            for member in self.others() {
                let request = Request::Drop { name: name.clone(), checkpoint, caller };
                self.call(&member, request, LONG_CALL_TIMEOUT).await?;
            }
        }
        tracing::info!(checkpoint = %name, "what was left of it is removed");
        Ok(())
    }

    async fn drop_copies(
        self: &Rc<Self>,
        name: &Name,
        checkpoint: u64,
        caller: Owner,
    ) -> Result<(), Failure> {
        let _lock = self.lock(name).await;
        let regions = self.regions(name);
        let mut theirs = regions.iter().filter(|(m, _)| m.identity.checkpoint == checkpoint);
        if theirs.any(|(meta, _)| !meta.owner.may_write(&caller)) {
            return Err(permission(name));
        }
        let ids: Vec<MirrorId> = {
            let mirrors = self.mirrors.borrow();
            let copies = mirrors
                .iter()
                .filter(|((n, ..), m)| n == name && m.meta.identity.checkpoint == checkpoint);
            copies.map(|(id, _)| id.clone()).collect()
        };
        for id in ids {
            self.drop_mirror(&id).await;
        }
        let old = self.owned.borrow().get(name).is_some_and(|o| {
            o.meta.held == Held::Superseded && o.meta.identity.checkpoint == checkpoint
        });
        if old {
            self.drop_owned(name).await;
        }
        Ok(())
    }

    // Listing.

    /// All checkpoints of the ring; members that do not answer are left out.
    pub(super) async fn list(self: &Rc<Self>) -> Result<Vec<Listed>, Failure> {
        let mut all: BTreeMap<Name, Listed> = BTreeMap::new();
        for listed in self.list_here().await? {
            all.insert(listed.name.clone(), listed);
        }
        for member in self.others() {
            match self.call(&member, Request::List, CALL_TIMEOUT).await {
                Ok(Reply::Listing(list)) => {
                    for listed in list {
                        let known = all.get(&listed.name);
                        if known.is_none_or(|k| k.state == CopyState::Orphan) {
                            all.insert(listed.name.clone(), listed);
                        }
                    }
                }
                Ok(_) => {}
                Err(failure) => tracing::warn!(node = %member.id, %failure, "listing"),
            }
        }
        Ok(all.into_values().collect())
    }

    /// What this node owns, and mirrors whose owner is gone.
    async fn list_here(&self) -> Result<Vec<Listed>, Failure> {
        let reports = self.data_plane.ask(|reply| Command::Report { reply }).await?;
        let node = self.me.borrow().id.name.clone();
        let mut list: Vec<Listed> = reports
            .into_iter()
            .map(|report| Listed {
                owner: node.clone(),
                version: report.version,
                bytes: report.len,
                mirror: report.slowest().map(|copy| copy.holder.name.clone()),
                state: copy_state(report.protection),
                name: report.name,
            })
            .collect();
        let view = self.view();
        for ((name, owner, _), mirror) in self.mirrors.borrow().iter() {
            if view.as_ref().is_some_and(|v| v.contains(owner)) {
                continue;
            }
            let newest = mirror.region.newest_by_record();
            list.push(Listed {
                name: name.clone(),
                owner: owner.name.clone(),
                version: newest.map_or(0, |f| f.record.sequence),
                bytes: newest.map_or(0, |f| f.record.len),
                mirror: Some(node.clone()),
                state: CopyState::Orphan,
            });
        }
        Ok(list)
    }

    // Verification.

    /// Checks every checksum of what this node has, and of its checkpoints' mirrors.
    pub(super) async fn verify(
        self: &Rc<Self>,
        name: Option<Name>,
        caller: Owner,
    ) -> Result<Vec<VerifiedCopy>, Failure> {
        let mine: Vec<(Name, Region, Role, Owner)> = {
            let owned = self.owned.borrow();
            let live = owned.iter().filter(|(_, o)| o.meta.held != Held::Superseded);
            let wanted = live.filter(|(n, _)| name.as_ref().is_none_or(|name| name == *n));
            let role = |held: &Held| match held {
                Held::Orphan => Role::Orphan,
                _ => Role::Owner,
            };
            wanted
                .map(|(n, o)| (n.clone(), o.region.clone(), role(&o.meta.held), o.meta.owner))
                .collect()
        };
        let mut copies = Vec::new();
        for (n, region, role, owner) in mine {
            if !owner.may_read(&caller) {
                if name.is_some() {
                    return Err(permission(&n));
                }
                continue;
            }
            let pin = |reply| Command::Pin { name: n.clone(), reply };
            let pinned = self.data_plane.ask(pin).await?;
            let node = self.me.borrow().id.name.clone();
            copies.push(verified(n.clone(), node, role, region).await);
            if let Some(pinned) = pinned {
                self.data_plane.send(Command::Unpin { name: n.clone(), pinned })?;
            }
            self.verify_elsewhere(&n, &mut copies).await;
        }
        let held: Vec<Name> = {
            let mirrors = self.mirrors.borrow();
            let names = mirrors.keys().map(|(n, ..)| n.clone());
            names.filter(|n| name.as_ref().is_none_or(|name| name == n)).collect()
        };
        for n in held {
            copies.extend(self.verify_mirror(&n).await);
        }
        match name {
            Some(name) if copies.is_empty() => {
                let here = self.locate(&name).await?;
                let node = here.first().map(|(member, _)| member.id.name.clone());
                Err(node.map_or_else(
                    || no_such(&name),
                    |node| {
                        let why = format!("{name} is on node {node}: verify it there");
                        Failure::new(FailureKind::OwnedElsewhere, why)
                    },
                ))
            }
            _ => Ok(copies),
        }
    }

    async fn verify_elsewhere(&self, name: &Name, copies: &mut Vec<VerifiedCopy>) {
        let Some(view) = self.view() else { return };
        let (_, predecessors) = holders::predecessors(&view, &self.id());
        for holder in predecessors.iter().filter_map(|id| view.member(id)) {
            let request = Request::Verify { name: name.clone() };
            if let Ok(Reply::Verified(copy)) = self.call(holder, request, LONG_CALL_TIMEOUT).await {
                copies.extend(copy);
            }
        }
    }

    async fn verify_mirror(&self, name: &Name) -> Option<VerifiedCopy> {
        let region = {
            let mirrors = self.mirrors.borrow();
            let mine = mirrors.iter().filter(|((n, ..), _)| n == name);
            mine.max_by_key(|(_, m)| m.meta.epoch)?.1.region.clone()
        };
        let node = self.me.borrow().id.name.clone();
        Some(verified(name.clone(), node, Role::Mirror, region).await)
    }
}

async fn verified(name: Name, node: Name, role: Role, region: Region) -> VerifiedCopy {
    blocking(move || {
        let claimed = region.newest_by_record();
        let valid = region.newest_valid();
        // A mirror that is being written has a slot that is not whole, which is no damage.
        let damage = match (claimed, role) {
            (Some(found), Role::Owner | Role::Orphan) => {
                region.verify(found.slot).err().map(|damage| damage.to_string())
            }
            (Some(_), Role::Mirror) if valid.is_none() => {
                Some("no version in it is whole".to_owned())
            }
            _ => None,
        };
        VerifiedCopy {
            name,
            node,
            role,
            version: valid.map_or(0, |found| found.record.sequence),
            bytes: valid.map_or(0, |found| found.record.len),
            damage,
        }
    })
    .await
}

pub(super) fn copy_state(protection: Protection) -> CopyState {
    match protection {
        Protection::InSync => CopyState::InSync,
        Protection::Lagging => CopyState::Lagging,
        Protection::Syncing => CopyState::Syncing,
        Protection::None => CopyState::None,
    }
}
