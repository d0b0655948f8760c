//! A protection domain: which memory regions work with which queue pairs.
//!
//! Every accepted connection has one of its own, so a key that was granted on it opens nothing over
//! another connection. All connections that this node posts on share one: a region is registered in
//! it once, for all its mirrors to come.

use std::{io, ptr::NonNull, sync::Arc};

use rdma_sys::{ibv_alloc_pd, ibv_dealloc_pd, ibv_pd};

use super::device::Device;

#[derive(Debug)]
pub(super) struct ProtectionDomain {
    raw: NonNull<ibv_pd>,
    _device: Arc<Device>,
}

// SAFETY: libibverbs objects may be used from any thread.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(super) fn new(device: &Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the device is open and stays so as long as it is held here.
        let raw = unsafe { ibv_alloc_pd(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, _device: device.clone() }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: memory regions and queue pairs hold their domain, so none of them is left.
        let status = unsafe { ibv_dealloc_pd(self.raw.as_ptr()) };
        if status != 0 {
            let error = io::Error::from_raw_os_error(status);
            tracing::error!(%error, "letting a protection domain go");
        }
    }
}
