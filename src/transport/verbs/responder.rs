//! The granting end of a connection. Once it is connected, the device does everything: no thread
//! of this node runs for the peer's writes and reads.

use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    completion_queue::CompletionQueue,
    event_channel::{CmId, CmParameters},
    handshake::{Abilities, Token},
    memory_region::MemoryRegion,
    protection_domain::ProtectionDomain,
    queue_pair::{QueuePair, RETRIES, Side},
};
use crate::transport::MemoryId;

pub(super) struct Responder {
    /// The queue pair goes before the identifier, and both before the regions: a region that a
    /// peer is in the middle of writing to is not let go.
    pair: Option<QueuePair>,
    id: Option<CmId>,
    grants: BTreeMap<u64, (MemoryId, MemoryRegion)>,
    /// This connection's own: its keys open nothing over another one.
    pub(super) domain: Arc<ProtectionDomain>,
    pub(super) token: Token,
    common: Abilities,
}

impl Responder {
    pub(super) fn new(domain: Arc<ProtectionDomain>, token: Token, common: Abilities) -> Self {
        Self { pair: None, id: None, grants: BTreeMap::new(), domain, token, common }
    }

    /// The peer showed the token.
    pub(super) fn connect(&mut self, id: CmId, idle: &Arc<CompletionQueue>) -> io::Result<()> {
        let pair = QueuePair::new(&self.domain, idle, 1)?;
        pair.connect(&id, Side::Responder, self.common)?;
        id.accept(&CmParameters {
            qp_num: pair.number(),
            token: self.token,
            initiator_depth: 1, // nothing is read from here
            responder_resources: self.common.reads,
            retries: RETRIES,
        })?;
        (self.pair, self.id) = (Some(pair), Some(id));
        Ok(())
    }

    pub(super) fn grant(&mut self, key: u64, memory: MemoryId, region: MemoryRegion) {
        self.grants.insert(key, (memory, region));
    }

    /// The fence. False when the device did not let the region go and the queue pair had to: then
    /// the connection is at its end.
    pub(super) fn revoke(&mut self, key: u64) -> bool {
        let Some((_, region)) = self.grants.remove(&key) else { return true };
        let Err((region, error)) = region.deregister() else { return true };
        tracing::warn!(%error, "a memory region is held by its device: ending the connection");
        drop(self.pair.take());
        drop(region);
        false
    }

    pub(super) fn keys_to(&self, memory: MemoryId) -> Vec<u64> {
        let theirs = self.grants.iter().filter(|(_, (m, _))| *m == memory);
        theirs.map(|(key, _)| *key).collect()
    }

    pub(super) fn has(&self, key: u64) -> bool {
        self.grants.contains_key(&key)
    }

    /// Tells the peer. What fences is that this is dropped.
    pub(super) fn disconnect(&self) {
        if let Some(id) = &self.id {
            id.disconnect();
        }
    }
}
