//! A memory region: a mapping that the device may reach, with the rights of one use.

use std::{ffi::c_void, io, ptr::NonNull, sync::Arc};

use rdma_sys::{ibv_access_flags, ibv_dereg_mr, ibv_mr, ibv_reg_mr};

use rustix::io::Errno;

use super::{checked, protection_domain::ProtectionDomain};
use crate::{region::mapping::Mapping, transport::Access};

/// What the device may do with a memory region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// This side's requests read from it and write into it.
    Local,
    /// The peer's requests.
    Remote(Access),
}

impl Rights {
    pub(super) fn flags(self) -> i32 {
        // Neither relaxed ordering (a commit word must not overtake its payload) nor the flag for
        // huge pages, which newer kernels refuse.
        let flags = match self {
            Self::Local => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Self::Remote(Access::Read) => ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            Self::Remote(Access::Write) => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE // the device demands it with the next
                    | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                    | ibv_access_flags::IBV_ACCESS_REMOTE_READ
            }
        };
        flags.0 as i32
    }
}

/// Holds the mapping: it outlives whatever the device does with it.
#[derive(Debug)]
pub(super) struct MemoryRegion {
    /// Nothing once it was let go.
    raw: Option<NonNull<ibv_mr>>,
    lkey: u32,
    rkey: u32,
    mapping: Arc<Mapping>,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs objects may be used from any thread.
unsafe impl Send for MemoryRegion {}

impl MemoryRegion {
    /// Pins the whole mapping and tells the device its pages. Takes time in proportion to the
    /// number of pages.
    ///
    /// # Errors
    /// `OutOfMemory` where the limit of locked memory does not allow it.
    pub(super) fn register(
        domain: &Arc<ProtectionDomain>,
        mapping: &Arc<Mapping>,
        rights: Rights,
    ) -> io::Result<Self> {
        let (start, len) = (mapping.as_ptr().cast::<c_void>(), mapping.len() as usize);
        // SAFETY: the range is mapped, and stays so as long as the mapping is held here.
        let raw = unsafe { ibv_reg_mr(domain.as_ptr(), start, len, rights.flags()) };
        let raw = NonNull::new(raw).ok_or_else(|| refused(io::Error::last_os_error(), len))?;
        // SAFETY: just registered.
        let keys = unsafe { raw.as_ref() };
        let (lkey, rkey) = (keys.lkey, keys.rkey);
        let (mapping, domain) = (mapping.clone(), domain.clone());
        Ok(Self { raw: Some(raw), lkey, rkey, mapping, _domain: domain })
    }

    /// The key for this side's requests.
    pub(super) fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The key for the peer's requests.
    pub(super) fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Where the device finds the mapping's first byte.
    pub(super) fn base(&self) -> u64 {
        self.mapping.as_ptr() as u64
    }

    pub(super) fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// When this succeeds, the device reaches the memory through this region no more. A region that
    /// the device does not let go comes back.
    pub(super) fn deregister(mut self) -> Result<(), (Self, io::Error)> {
        self.let_go().map_err(|error| (self, error))
    }

    fn let_go(&mut self) -> io::Result<()> {
        let Some(raw) = self.raw else { return Ok(()) };
        // SAFETY: registered, and not let go before: that takes it out. Posted work that uses it ends
        // with an error.
        checked(unsafe { ibv_dereg_mr(raw.as_ptr()) })?;
        self.raw = None;
        Ok(())
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::error!(%error, "letting a memory region go");
        }
    }
}

/// Whether registering failed for the limit of locked memory: the system says "cannot allocate
/// memory" for it, and "not permitted" for a limit of zero.
pub(crate) fn is_memlock(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOMEM | Errno::PERM))
}

/// Says so, where the system's own words send people the wrong way.
pub(super) fn refused(error: io::Error, len: usize) -> io::Error {
    if !is_memlock(&error) {
        return error;
    }
    let why = format!(
        "the limit of locked memory leaves no room for {len} bytes: raise it (`ulimit -l \
         unlimited`, or LimitMEMLOCK=infinity in the service's unit); `ringkeep doctor` shows it"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, why)
}
