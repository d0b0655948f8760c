//! Taking a checkpoint over from another node, and giving one up: fence, then read.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use super::{
    data_plane::{Command, Pinned},
    failures::{internal, invalid, no_such, permission},
    fetch::Granted,
    node::{CALL_TIMEOUT, Node, Owned, blocking},
    open::Wish,
    rpc::{Copy, Grant, Reply, Request, Standing},
    store::{Held, Meta, Owner},
};
use crate::{
    commit::Record,
    handover::Condition,
    membership::{Member, NodeId},
    name::Name,
    protocol::{Failure, FailureKind, Role},
    region::{Identity, Region, mapping::Mapping},
    transport::{Access, MemoryId, Purpose, Segment, Stamp, Terms},
};

impl Node {
    /// Takes a checkpoint over from another node.
    pub(super) async fn take_over(
        self: &Rc<Self>,
        wish: &Wish,
        from: &Member,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let life = self.life.get();
        if copy.standing == Standing::Owns(Role::Owner) && !wish.take_over {
            return Err(Failure::new(
                FailureKind::OwnedElsewhere,
                format!(
                    "{} is owned by node {}, which is alive; work there, or take it over",
                    wish.name, from.id.name
                ),
            ));
        }
        self.link(from).await?;
        let (name, caller, force) = (wish.name.clone(), wish.caller, wish.take_over);
        let request = Request::TakeOver { name, force, caller };
        let grant = self.call_for_grant(from, request).await?;
        let generation = grant.identity.generation + 1;
        let identity = Identity { checkpoint: grant.identity.checkpoint, generation };
        let (epoch, held, region) = (self.epoch_after(grant.epoch), Held::Owned, Self::draw());
        let (name, layout, owner) = (wish.name.clone(), grant.layout, grant.owner);
        let meta = Meta::new(name, identity, layout, epoch, owner, held, region);
        let stored = self.make_region(meta).await?;
        let read = self.read_version(from, &grant, &stored.region, stored.meta.epoch).await;
        self.cast(from, Request::Fetched { key: grant.key });
        if let Err(failure) = read {
            self.remove_region(stored.meta, stored.path, stored.region).await;
            return Err(failure);
        }
        let stored = self.describe_region(stored).await?;
        let version = grant.version.map_or(0, |(_, record)| record.sequence);
        tracing::info!(checkpoint = %wish.name, from = %from.id, version, "taken over");
        self.drop_owned(&wish.name).await; // an older copy of this node's own
        self.serve(Owned::new(stored), life).await
    }

    /// Reads a granted version into slot 0 of a region with the same measures, verifies it there
    /// and commits it.
    async fn read_version(
        &self,
        from: &Member,
        grant: &Grant,
        into: &Region,
        epoch: u64,
    ) -> Result<(), Failure> {
        let Some((slot, record)) = grant.version else { return Ok(()) };
        let layout = *into.layout();
        if layout != grant.layout || slot as usize >= layout.slots() {
            return Err(invalid(&"the peer's answer does not fit"));
        }
        let (table, payload) = (8 * layout.chunks(record.len), record.len);
        let segments = [
            (layout.table(0), layout.table(slot as usize), table),
            (layout.payload(0), layout.payload(slot as usize), payload),
        ]
        .into_iter()
        .filter(|&(.., len)| len > 0)
        .map(|(local, remote, len)| Segment { local, remote, len })
        .collect();
        self.read(from, grant, into.mapping().clone(), segments).await?;
        let into = into.clone();
        let committed = blocking(move || {
            // SAFETY: the region is new; nobody else knows it yet.
            let written = unsafe { into.publish(0, epoch, record.sequence, record.len) };
            // SAFETY: as above.
            written.root == record.root && unsafe { into.verify_quiet(0) }.is_ok()
        })
        .await;
        if committed {
            Ok(())
        } else {
            let why = format!("what node {} sent does not match its checksums", from.id.name);
            Err(Failure::new(FailureKind::Corrupt, why))
        }
    }

    /// Reads a peer's memory into this node's.
    async fn read(
        &self,
        from: &Member,
        grant: &Grant,
        into: Arc<Mapping>,
        segments: Vec<Segment>,
    ) -> Result<(), Failure> {
        let memory = self.register_for_reading(into).await?;
        let read = self.post_read(from, grant, memory, segments).await;
        self.deregister(memory).await?;
        read
    }

    /// Makes memory known to the transport, so that a peer's can be read into it.
    pub(super) async fn register_for_reading(
        &self,
        mapping: Arc<Mapping>,
    ) -> Result<MemoryId, Failure> {
        let purpose = Purpose::Post;
        let register = |reply| Command::Register { mapping, purpose, reply };
        self.data_plane.ask(register).await?.map_err(|e| internal(&e))
    }

    /// Ends what [`Node::register_for_reading`] began. Nothing may be under way into it any more.
    pub(super) async fn deregister(&self, memory: MemoryId) -> Result<(), Failure> {
        self.data_plane.ask(|reply| Command::Deregister { memory, reply }).await?;
        Ok(())
    }

    /// Reads pieces of a peer's memory, as far as they are not empty.
    pub(super) async fn post_read(
        &self,
        from: &Member,
        grant: &Grant,
        memory: MemoryId,
        mut segments: Vec<Segment>,
    ) -> Result<(), Failure> {
        segments.retain(|segment| segment.len > 0);
        if segments.is_empty() {
            return Ok(());
        }
        let stamp = Stamp { epoch: grant.epoch, view: self.view().map_or(0, |v| v.number) };
        let (peer, key) = (from.id.clone(), grant.key);
        let read = |reply| Command::Read { peer, memory, key, stamp, segments, reply };
        self.data_plane.ask(read).await?.map_err(|e| {
            let why = format!("reading from node {}: {e}", from.id.name);
            Failure::new(FailureKind::Unavailable, why)
        })
    }

    /// A peer takes a checkpoint over: this node stops serving it and lets the peer read.
    pub(super) async fn give_up(
        self: &Rc<Self>,
        to: NodeId,
        name: Name,
        force: bool,
        caller: Owner,
    ) -> Result<Reply, Failure> {
        let _lock = self.lock(&name).await;
        let (meta, region, path, before) = {
            let owned = self.owned.borrow();
            let owned = owned.get(&name).ok_or_else(|| no_such(&name))?;
            if let Some(damage) = &owned.damaged {
                let why = format!("{name} is damaged and waits for its mirror: {damage}");
                return Err(Failure::new(FailureKind::Corrupt, why));
            }
            let before = owned.meta.successor.clone();
            (owned.meta.clone(), owned.region.clone(), owned.path.clone(), before)
        };
        if !meta.owner.may_write(&caller) {
            return Err(permission(&name));
        }
        let repeated = meta.held == Held::Superseded && before.as_ref() == Some(&to);
        if meta.held == Held::Superseded && !repeated {
            return Err(no_such(&name));
        }
        if meta.held == Held::Owned && !force {
            let node = self.me.borrow().id.name.clone();
            let why = format!("{name} is owned by node {node}, which is alive");
            return Err(Failure::new(FailureKind::OwnedElsewhere, why));
        }
        if !repeated {
            // On disk before anything else: a restart must not take this copy for the present one.
            self.set_held(&name, Held::Superseded, Some(to.clone()))?;
            self.disown(name.clone(), Condition::Fenced).await?;
            self.tell_holders(&name, &to).await;
        }
        tracing::info!(checkpoint = %name, %to, path = %path.display(), "given up");
        // By its record: the peer verifies it, and fails rather than fall back to an older one.
        let newest = region.newest_by_record();
        let version = newest.map(|found| (found.slot as u32, found.record));
        self.grant_read(to, &meta, &region, version, None).await
    }

    /// Tells whoever may hold mirrors of a checkpoint who has it next, as far as they can be asked now.
    /// It matters only if both that one and this node are lost.
    pub(super) async fn tell_holders(self: &Rc<Self>, name: &Name, to: &NodeId) {
        let meta = self.owned.borrow().get(name).map(|owned| owned.meta.clone());
        let (Some(view), Some(meta)) = (self.view(), meta) else { return };
        let me = self.id();
        let holders = view.holders_of(&me).iter().flat_map(|run| &run.holders);
        let holders: BTreeSet<&NodeId> = holders.collect();
        let mut told = Vec::new();
        for holder in holders.into_iter().filter_map(|holder| view.member(holder)).cloned() {
            let request = Request::Given {
                name: meta.name.clone(),
                checkpoint: meta.identity.checkpoint,
                epoch: meta.epoch,
                to: to.clone(),
            };
            let node = self.clone();
            told.push(tokio::task::spawn_local(async move {
                if let Err(failure) = node.call(&holder, request, CALL_TIMEOUT).await {
                    tracing::debug!(holder = %holder.id, %failure, "not told who has it next");
                }
            }));
        }
        for told in told {
            let _ = told.await;
        }
    }

    /// Lets a peer read a region.
    pub(super) async fn grant_read(
        &self,
        to: NodeId,
        meta: &Meta,
        region: &Region,
        version: Option<(u32, Record)>,
        pinned: Option<Pinned>,
    ) -> Result<Reply, Failure> {
        let (mapping, purpose) = (region.mapping().clone(), Purpose::Grant);
        let register = |reply| Command::Register { mapping, purpose, reply };
        let memory = self.data_plane.ask(register).await?.map_err(|e| internal(&e))?;
        let terms = Terms { epoch: meta.epoch, view_min: 0 };
        let key = match self.grant(&to, memory, Access::Read, terms).await {
            Ok(key) => key,
            Err(failure) => {
                self.data_plane.ask(|reply| Command::Deregister { memory, reply }).await?;
                return Err(failure);
            }
        };
        let granted = Granted { memory, name: meta.name.clone(), pinned };
        let len = version.map_or(0, |(_, record)| record.len);
        self.remember_grant(key, granted, len);
        Ok(Reply::Granted(Grant {
            key,
            layout: meta.layout,
            identity: meta.identity,
            epoch: meta.epoch,
            version,
            owner: meta.owner,
        }))
    }
}
