//! What this node lets peers reach: memories, the keys granted to them, and the check that every
//! request passes before a byte moves.
//!
//! Shared by the transports that see each request themselves; with verbs the NIC does this.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Access, ConnId, MemoryError, MemoryId, PostError, Purpose, SEGMENTS_MAX, Segment, Stamp, Terms,
    WorkError,
};
use crate::region::mapping::Mapping;

struct Memory {
    mapping: Arc<Mapping>,
    purpose: Purpose,
    /// Posted requests that have not completed.
    posted: usize,
}

struct Grant {
    conn: ConnId,
    memory: MemoryId,
    access: Access,
    terms: Terms,
    /// A revoked key stays known until its connection ends, so that a late request on it learns
    /// that it was fenced.
    revoked: bool,
}

/// A request as the responder received it.
pub(super) struct Asked<'a, Segments> {
    pub(super) conn: ConnId,
    pub(super) key: u64,
    pub(super) access: Access,
    pub(super) stamp: &'a Stamp,
    /// Offset and length of each piece, checked for overflow by nobody yet.
    pub(super) segments: Segments,
}

/// Checks the local half of a request that is about to be posted.
pub(super) fn check_segments(mapping: &Mapping, segments: &[Segment]) -> Result<(), PostError> {
    if segments.is_empty() || segments.len() > SEGMENTS_MAX {
        return Err(PostError::BadSegments);
    }
    let mut total = 0u64;
    for segment in segments {
        // A remote range that wraps around cannot be written down in a frame at all; one that is
        // merely outside is the responder's to refuse.
        if segment.len == 0
            || mapping.check(segment.local, segment.len).is_err()
            || segment.remote.checked_add(segment.len).is_none()
        {
            return Err(PostError::BadSegments);
        }
        total = total.checked_add(segment.len).ok_or(PostError::BadSegments)?;
    }
    Ok(())
}

/// The memories of one transport and the keys to them.
#[derive(Default)]
pub(super) struct Keys {
    memories: BTreeMap<MemoryId, Memory>,
    memories_made: u64,
    grants: HashMap<u64, Grant>,
}

impl Keys {
    pub(super) fn register(&mut self, mapping: Arc<Mapping>, purpose: Purpose) -> MemoryId {
        self.memories_made += 1;
        let id = MemoryId(self.memories_made);
        self.memories.insert(id, Memory { mapping, purpose, posted: 0 });
        id
    }

    /// Lets memory go; answers the keys that this revoked, with their connections.
    pub(super) fn deregister(&mut self, id: MemoryId) -> Result<Vec<(ConnId, u64)>, MemoryError> {
        let memory = self.memories.get(&id).ok_or(MemoryError::Unknown)?;
        if memory.posted > 0 {
            return Err(MemoryError::Busy);
        }
        let mut revoked = Vec::new();
        for (key, grant) in &mut self.grants {
            if grant.memory == id && !grant.revoked {
                grant.revoked = true;
                revoked.push((grant.conn, *key));
            }
        }
        // A reader has no need to be told why a key opens nothing any more, and there may be many.
        self.grants.retain(|_, grant| grant.memory != id || grant.access == Access::Write);
        self.memories.remove(&id);
        Ok(revoked)
    }

    /// Makes `key`, which the caller drew at random, good for `conn`. Answers the memory's length.
    pub(super) fn grant(
        &mut self,
        key: u64,
        conn: ConnId,
        memory: MemoryId,
        access: Access,
        terms: Terms,
    ) -> Result<u64, MemoryError> {
        let len = self.memories.get(&memory).ok_or(MemoryError::Unknown)?.mapping.len();
        self.grants.insert(key, Grant { conn, memory, access, terms, revoked: false });
        Ok(len)
    }

    pub(super) fn is_taken(&self, key: u64) -> bool {
        self.grants.contains_key(&key)
    }

    /// Answers the connection whose request in progress may have to be stopped.
    pub(super) fn revoke(&mut self, key: u64) -> Option<ConnId> {
        let grant = self.grants.get_mut(&key)?;
        grant.revoked = true;
        Some(grant.conn)
    }

    /// The connection ended: its keys open nothing and are forgotten.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.grants.retain(|_, grant| grant.conn != conn);
    }

    /// Whether a peer may do what it asks, and where. Nothing was touched when this refuses.
    pub(super) fn admit(
        &self,
        asked: Asked<'_, impl Iterator<Item = (u64, u64)>>,
    ) -> Result<&Arc<Mapping>, WorkError> {
        let grant = self
            .grants
            .get(&asked.key)
            .filter(|grant| grant.conn == asked.conn)
            .ok_or(WorkError::BadKey)?;
        if grant.revoked {
            return Err(WorkError::Fenced);
        }
        if asked.access == Access::Write && grant.access != Access::Write {
            return Err(WorkError::BadKey);
        }
        if asked.stamp.epoch != grant.terms.epoch || asked.stamp.view < grant.terms.view_min {
            return Err(WorkError::Fenced);
        }
        let mapping = &self.memories.get(&grant.memory).ok_or(WorkError::Fenced)?.mapping;
        for (offset, len) in asked.segments {
            mapping.check(offset, len).map_err(|_| WorkError::RemoteBounds)?;
        }
        Ok(mapping)
    }

    /// Checks the local half of a request that is about to be posted, and counts it as posted.
    pub(super) fn post(
        &mut self,
        id: MemoryId,
        segments: &[Segment],
    ) -> Result<Arc<Mapping>, PostError> {
        let memory = self.memories.get_mut(&id).filter(|memory| memory.purpose.posts());
        let memory = memory.ok_or(PostError::UnknownMemory)?;
        check_segments(&memory.mapping, segments)?;
        memory.posted += 1;
        Ok(memory.mapping.clone())
    }

    /// A posted request completed and uses its memory no more.
    pub(super) fn done(&mut self, id: MemoryId) {
        if let Some(memory) = self.memories.get_mut(&id) {
            debug_assert!(memory.posted > 0, "a request completed twice");
            memory.posted = memory.posted.saturating_sub(1);
        }
    }
}
