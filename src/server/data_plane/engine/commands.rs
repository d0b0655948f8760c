//! What the control plane wants done.

use std::sync::Arc;

use super::Engine;
use crate::{
    handover::Condition,
    membership::{NodeId, View},
    name::Name,
    region::Region,
    server::{
        data_plane::{
            Attachment, Command, Committed, LinkReport, Pinned, ReadError, Reply,
            owned::{Granted, MirrorWork, Owned},
            sleep::drain,
        },
        holders,
    },
    transport::{
        MemoryError, MemoryId, PostError, Purpose, RemoteKey, Segment, Stamp, Work, WorkId,
    },
};

/// Reads are numbered above all mirrors' work.
const READ_WORK: u64 = 1 << 63;

impl Engine {
    pub(super) fn take_commands(&mut self) -> bool {
        if std::mem::take(&mut self.rung.alarm) {
            drain(&*self.channels.alarm);
        }
        let mut any = false;
        while let Ok(command) = self.channels.inbox.try_recv() {
            self.command(command);
            any = true;
        }
        any
    }

    fn command(&mut self, command: Command) {
        let now_ns = self.now_ns();
        match command {
            Command::View { me, view } => {
                self.me = me;
                self.install(view, now_ns);
            }
            Command::Offer { peer, kind, reply } => {
                let had = self.links.up(&peer).is_some();
                let offer = self.links.offer(&mut self.transport, peer.clone(), kind);
                let _ = reply.send(offer);
                if had {
                    self.holder_lost(&peer, now_ns);
                }
            }
            Command::Accept { peer, kind, offer, reply } => {
                let answer = self.links.accept(&mut self.transport, peer, kind, &offer);
                let _ = reply.send(answer);
            }
            Command::Finish { peer, answer, address, reply } => {
                let done = self.links.finish(&mut self.transport, peer, &answer, address);
                let _ = reply.send(done);
            }
            Command::Unlink { peer } => {
                self.links.unlink(&mut self.transport, &peer);
                self.holder_lost(&peer, now_ns);
            }
            Command::Register { mapping, purpose, reply } => {
                let _ = reply.send(self.transport.register(mapping, purpose));
            }
            Command::Deregister { memory, reply } => {
                self.deregister(memory);
                let _ = reply.send(());
            }
            Command::Grant { peer, memory, access, terms, reply } => {
                let granted = match self.links.incoming(&peer) {
                    Some(conn) => self.transport.grant(conn, memory, access, terms),
                    None => Err(MemoryError::NoConnection),
                };
                let _ = reply.send(granted);
            }
            Command::Revoke { key, reply } => {
                self.transport.revoke(key);
                let _ = reply.send(());
            }
            Command::Read { peer, memory, key, stamp, segments, reply } => {
                self.read(peer, memory, key, stamp, &segments, reply);
            }
            Command::Own { name, region, epoch, copies, newest, reply } => {
                let _ = reply.send(self.own(name, region, epoch, copies, newest, now_ns));
            }
            Command::Attach { name, attachment } => self.attach(&name, attachment),
            Command::Detach { name, condition } => {
                if let Some(&index) = self.by_name.get(&name) {
                    self.detach(index, condition);
                    self.drive(index, now_ns);
                }
            }
            Command::Disown { name, condition, reply } => self.disown(&name, condition, reply),
            Command::Prepared { name, epoch, holder, key, region, versions, mark_to } => {
                if let Some((index, owned)) = self.find(&name) {
                    if owned.epoch == epoch {
                        owned.keys.insert(holder.clone(), Granted { key, mark_to: mark_to % 2 });
                        owned.mirror.prepared(&holder, region, &versions);
                    } else {
                        // What was granted for a former ownership is not for this region.
                        owned.mirror.lost(&holder);
                    }
                    self.drive(index, now_ns);
                }
            }
            Command::MirrorLost { name, holder } => {
                if let Some((index, owned)) = self.find(&name) {
                    owned.mirror.lost(&holder);
                    self.drive(index, now_ns);
                }
            }
            Command::Pin { name, reply } => {
                let pinned = self.find(&name).and_then(|(_, owned)| {
                    let slot = owned.newest()?.slot;
                    owned.pin(slot).then_some(Pinned { slot, memory: owned.memory })
                });
                let _ = reply.send(pinned);
            }
            Command::Unpin { name, pinned } => {
                // Not of a region that has since been replaced.
                if let Some((_, owned)) = self.find(&name)
                    && owned.memory == pinned.memory
                {
                    owned.unpin(pinned.slot);
                }
            }
            Command::Report { reply } => {
                let reached_by = |holder: &NodeId| {
                    self.links.up(holder).and_then(|conn| self.transport.kind_of(conn))
                };
                let taken = |conn, work| self.transport.taken_bytes(conn, work);
                let owned = self.owned.iter().flatten();
                let _ = reply.send(owned.map(|o| o.report(reached_by, taken)).collect());
            }
            Command::Links { reply } => {
                let report = |(peer, conn, incoming, up): (&NodeId, _, _, _)| LinkReport {
                    peer: peer.clone(),
                    incoming,
                    kind: self.transport.kind_of(conn),
                    up,
                };
                let _ = reply.send(self.links.all().map(report).collect());
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn find(&mut self, name: &Name) -> Option<(usize, &mut Owned)> {
        let index = *self.by_name.get(name)?;
        Some((index, self.owned[index].as_mut()?))
    }

    fn install(&mut self, view: Option<Arc<View>>, now_ns: u64) {
        self.view = view;
        for index in 0..self.owned.len() {
            self.tell_view(index);
            self.drive(index, now_ns);
        }
    }

    fn tell_view(&mut self, index: usize) {
        if let (Some(owned), Some(view)) = (&mut self.owned[index], &self.view) {
            let (since, predecessors) = holders::predecessors(view, &self.me);
            owned.mirror.view_installed(view.number, since, &predecessors, |h| view.contains(h));
        }
    }

    fn own(
        &mut self,
        name: Name,
        region: Region,
        epoch: u64,
        copies: usize,
        newest: Option<Committed>,
        now_ns: u64,
    ) -> Result<MemoryId, MemoryError> {
        let index = match self.owned.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.owned.len() > MirrorWork::INDEX_MAX => return Err(MemoryError::Busy),
            None => {
                self.owned.push(None);
                self.owned.len() - 1
            }
        };
        let memory = self.transport.register(region.mapping().clone(), Purpose::Post)?;
        let pace_ns = self.waiting.pace.as_nanos() as u64;
        let mut owned = Owned::new(name.clone(), region, memory, epoch, copies, pace_ns);
        if let Some(newest) = newest {
            owned.found(now_ns, newest);
        }
        self.owned[index] = Some(owned);
        self.by_name.insert(name, index);
        self.tell_view(index);
        self.drive(index, now_ns);
        Ok(memory)
    }

    fn attach(&mut self, name: &Name, attachment: Attachment) {
        let Some(&index) = self.by_name.get(name) else {
            return attachment.tell(Condition::Fenced);
        };
        self.detach(index, Some(Condition::Fenced));
        if let Err(error) = self.sleeper.watch(&attachment.bell, index) {
            tracing::error!(%error, checkpoint = %name, "watching a client's bell");
            return attachment.tell(Condition::Stopping);
        }
        if let Some(owned) = &mut self.owned[index] {
            owned.attach(attachment);
        }
        self.activate(index);
    }

    pub(super) fn detach(&mut self, index: usize, condition: Option<Condition>) {
        let now_ns = self.now_ns();
        if let Some(owned) = &mut self.owned[index] {
            if let Some(attachment) = &owned.attachment {
                self.sleeper.unwatch(&attachment.bell);
            }
            owned.detach(now_ns, condition);
        }
        self.active.retain(|&(i, _)| i != index);
    }

    fn disown(&mut self, name: &Name, condition: Condition, reply: Reply<()>) {
        let Some(index) = self.by_name.remove(name) else {
            let _ = reply.send(());
            return;
        };
        self.detach(index, Some(condition));
        if let Some(owned) = &mut self.owned[index] {
            owned.leaving = Some(reply);
        }
        self.leave_if_done(index);
    }

    /// A checkpoint that is being let go goes when its last work request is done.
    pub(super) fn leave_if_done(&mut self, index: usize) {
        if self.owned[index].as_ref().is_some_and(|o| o.leaving.is_some() && o.outstanding == 0)
            && let Some(owned) = self.owned[index].take()
        {
            self.timers.clear(index);
            self.deregister(owned.memory);
            if let Some(reply) = owned.leaving {
                let _ = reply.send(());
            }
        }
    }

    fn deregister(&mut self, memory: MemoryId) {
        if let Err(error) = self.transport.deregister(memory) {
            tracing::error!(%error, "letting memory go");
        }
    }

    fn read(
        &mut self,
        peer: NodeId,
        memory: MemoryId,
        key: RemoteKey,
        stamp: Stamp,
        segments: &[Segment],
        reply: Reply<Result<(), ReadError>>,
    ) {
        let Some(conn) = self.links.up(&peer) else {
            let _ = reply.send(Err(ReadError::NotConnected));
            return;
        };
        self.count += 1;
        let id = WorkId(READ_WORK | self.count);
        match self.transport.post_read(Work { id, conn, memory, key, stamp, segments }) {
            Ok(()) => {
                self.reads.insert(id, (conn, reply));
            }
            Err(error) => {
                tracing::warn!(%error, %peer, "posting a read");
                if matches!(error, PostError::UnknownMemory) {
                    self.link_unfit(&peer, &error);
                }
                let _ = reply.send(Err(ReadError::NotConnected));
            }
        }
    }
}
