//! The memories that are registered with the transport.

use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    memory_region::{MemoryRegion, Rights},
    protection_domain::ProtectionDomain,
};
use crate::{
    region::mapping::Mapping,
    transport::{MemoryError, MemoryId, PostError, Purpose, Segment, keys::check_segments},
};

struct Memory {
    mapping: Arc<Mapping>,
    /// For this side's requests.
    local: Option<MemoryRegion>,
    /// Posted requests that have not completed.
    posted: usize,
}

/// How the device finds a memory that is posted from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local {
    pub(super) base: u64,
    pub(super) lkey: u32,
}

#[derive(Default)]
pub(super) struct Memories {
    known: BTreeMap<MemoryId, Memory>,
    made: u64,
}

impl Memories {
    pub(super) fn register(
        &mut self,
        home: &Arc<ProtectionDomain>,
        mapping: Arc<Mapping>,
        purpose: Purpose,
    ) -> io::Result<MemoryId> {
        let local = match purpose.posts() {
            true => Some(MemoryRegion::register(home, &mapping, Rights::Local)?),
            false => None,
        };
        self.made += 1;
        let id = MemoryId(self.made);
        self.known.insert(id, Memory { mapping, local, posted: 0 });
        Ok(id)
    }

    /// Whether it may be let go.
    pub(super) fn check_idle(&self, id: MemoryId) -> Result<(), MemoryError> {
        match self.known.get(&id) {
            None => Err(MemoryError::Unknown),
            Some(memory) if memory.posted > 0 => Err(MemoryError::Busy),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, id: MemoryId) {
        self.known.remove(&id);
    }

    pub(super) fn mapping(&self, id: MemoryId) -> Result<&Arc<Mapping>, MemoryError> {
        self.known.get(&id).map(|memory| &memory.mapping).ok_or(MemoryError::Unknown)
    }

    /// Checks what is about to be posted, and says where the device finds it.
    pub(super) fn check(&self, id: MemoryId, segments: &[Segment]) -> Result<Local, PostError> {
        let memory = self.known.get(&id).ok_or(PostError::UnknownMemory)?;
        let region = memory.local.as_ref().ok_or(PostError::UnknownMemory)?;
        check_segments(&memory.mapping, segments)?;
        Ok(Local { base: region.base(), lkey: region.lkey() })
    }

    pub(super) fn posted(&mut self, id: MemoryId) {
        if let Some(memory) = self.known.get_mut(&id) {
            memory.posted += 1;
        }
    }

    /// A posted request completed and uses its memory no more.
    pub(super) fn done(&mut self, id: MemoryId) {
        if let Some(memory) = self.known.get_mut(&id) {
            debug_assert!(memory.posted > 0, "a request completed twice");
            memory.posted = memory.posted.saturating_sub(1);
        }
    }
}
