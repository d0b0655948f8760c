//! Whether a device takes memory at all: the limit of locked memory, seen from the device's side.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use rdma_sys::{ibv_dereg_mr, ibv_reg_mr};

use super::{
    OpenError, checked,
    device::Device,
    memory_region::{Rights, refused},
    protection_domain::ProtectionDomain,
};
use crate::transport::Access;

/// Why memory could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The device cannot be opened as a server opens it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device or the system refused.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// It was registered, and then not let go.
    #[error("letting it go: {0}")]
    NotLetGo(#[source] io::Error),
}

impl ProbeError {
    /// Whether the limit of locked memory is the reason.
    pub fn is_memlock(&self) -> bool {
        matches!(self, Self::Refused(error) if error.kind() == io::ErrorKind::OutOfMemory)
    }
}

/// Registers `memory` as a mirror would be, lets it go again, and says how long registering took.
///
/// No region or key leaves this function, and its protection domain has no queue pair: nothing can
/// reach `memory` through the device, not even one that does not let it go. That is why this needs
/// no mapping that outlives it, as [`MemoryRegion`](super::MemoryRegion) does, and is safe.
///
/// # Errors
/// The device cannot be opened, or refuses.
pub fn register(device: Option<&str>, memory: &mut [u8]) -> Result<Duration, ProbeError> {
    let device = Device::open(device, IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
    let domain = ProtectionDomain::new(&device).map_err(ProbeError::Refused)?;
    let flags = Rights::Remote(Access::Write).flags();
    let (start, len) = (memory.as_mut_ptr().cast(), memory.len());
    let begin = Instant::now();
    // SAFETY: the range is mapped and nobody else's during this call, and the domain is alive. The
    // device does not use it: no queue pair belongs to the domain.
    let region = unsafe { ibv_reg_mr(domain.as_ptr(), start, len, flags) };
    let took = begin.elapsed();
    if region.is_null() {
        return Err(ProbeError::Refused(refused(io::Error::last_os_error(), len)));
    }
    // SAFETY: registered just now, let go once.
    checked(unsafe { ibv_dereg_mr(region) }).map_err(ProbeError::NotLetGo)?;
    Ok(took)
}
