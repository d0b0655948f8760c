//! The device that a server uses: its listener, and what it can do.

use std::{
    ffi::CStr,
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::Arc,
};

use rdma_sys::{
    ___ibv_query_port, ibv_ack_async_event, ibv_async_event, ibv_context, ibv_device_attr,
    ibv_get_async_event, ibv_get_device_name, ibv_port_attr, ibv_query_device,
};

use super::{
    checked,
    discovery::{self, OpenError},
    event_channel::{CmId, EventChannel},
    handshake::Abilities,
};
use crate::transport::ConnId;

/// The listener's number among the connections: no connection has it.
pub(super) const LISTENER: ConnId = ConnId(0);
/// Pieces of work that one queue pair is asked to hold; a device with shorter queues gets fewer.
const PIECES_WANTED: u32 = 1024;
/// Reads under way at once.
const READS_WANTED: u8 = 16;
/// Larger pieces are cut, whatever the device takes, so that a fence need not wait for them.
const PIECE_BYTES_MAX: u32 = 1 << 30;

/// What the device can do, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Pieces of work that a queue pair holds.
    pub(super) pieces: u32,
    /// Bytes in one piece.
    pub(super) piece_bytes: u32,
    /// What it can do as the initiator of a connection.
    pub(super) initiator: Abilities,
    /// What it can do as the responder.
    pub(super) responder: Abilities,
}

/// An open device. librdmacm keeps its context as long as an identifier is bound to it, which the
/// listener is.
#[derive(Debug)]
pub(super) struct Device {
    listener: CmId,
    /// Where events of all its connections arrive.
    pub(super) channel: Arc<EventChannel>,
    context: NonNull<ibv_context>,
    pub(super) name: String,
    /// Where connections are taken.
    pub(super) address: SocketAddr,
    pub(super) limits: Limits,
}

// SAFETY: libibverbs contexts may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device `wanted`, or the best one for a server that listens at `listen`.
    pub(super) fn open(wanted: Option<&str>, listen: IpAddr) -> Result<Arc<Self>, OpenError> {
        // Looked for first: a kernel that knows no RDMA fails at something else, in other words.
        let (name, ip) = discovery::choose(&discovery::devices(), wanted, listen)?;
        let system = |source| OpenError::System { name: name.clone(), source };
        let channel = EventChannel::new().map_err(system)?;
        let listener = CmId::new(&channel, LISTENER).map_err(system)?;
        let address = listener.listen(ip).map_err(system)?;
        let context = listener.context().ok_or(io::ErrorKind::NotFound.into()).map_err(system)?;
        let found = name_of(context);
        if found != name {
            let problem = format!("its address {ip} leads to {found}; give each its own");
            return Err(OpenError::Unusable { name, problem });
        }
        let limits = limits(context, listener.device_port()).map_err(system)?;
        Ok(Arc::new(Self { listener, channel, context, name, address, limits }))
    }

    pub(super) fn context(&self) -> NonNull<ibv_context> {
        self.context
    }

    /// Readable when the device has something to say by itself.
    pub(super) fn async_events(&self) -> io::Result<BorrowedFd<'_>> {
        // SAFETY: the context is alive.
        let fd = unsafe { (*self.context.as_ptr()).async_fd };
        // SAFETY: open as long as the context.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::ioctl_fionbio(fd, true)?;
        Ok(fd)
    }

    /// What the device says by itself is for people: its effects come as failed work and ended
    /// connections.
    pub(super) fn log_async_events(&self) {
        let mut event = mem::MaybeUninit::<ibv_async_event>::uninit();
        // SAFETY: the context is alive, its descriptor does not block, the place is valid.
        while unsafe { ibv_get_async_event(self.context.as_ptr(), event.as_mut_ptr()) } == 0 {
            // SAFETY: inside the event.
            let kind = unsafe { &raw const (*event.as_ptr()).event_type };
            // SAFETY: the call filled the event. Its kind is read as a number, because a newer
            // kernel may know kinds that this enumeration does not.
            let number = unsafe { kind.cast::<u32>().read() };
            tracing::warn!(device = self.name, event = number, "the RDMA device reports an event");
            // SAFETY: taken just now, acknowledged once.
            unsafe { ibv_ack_async_event(event.as_mut_ptr()) };
        }
    }

    /// Whether an identifier was bound to this device.
    pub(super) fn carries(&self, id: &CmId) -> bool {
        id.context() == self.listener.context()
    }
}

fn name_of(context: NonNull<ibv_context>) -> String {
    // SAFETY: the context is alive.
    let device = unsafe { (*context.as_ptr()).device };
    // SAFETY: the device of an open context.
    let name = unsafe { ibv_get_device_name(device) };
    // SAFETY: a string that lives as long as the device.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

fn limits(context: NonNull<ibv_context>, port: u8) -> io::Result<Limits> {
    // SAFETY: plain numbers, for which zeros are valid.
    let mut device: ibv_device_attr = unsafe { mem::zeroed() };
    // SAFETY: the context is alive; the place is valid for writing.
    checked(unsafe { ibv_query_device(context.as_ptr(), &mut device) })?;
    // SAFETY: plain numbers, for which zeros are valid.
    let mut ports: ibv_port_attr = unsafe { mem::zeroed() };
    // SAFETY: as for the device.
    checked(unsafe { ___ibv_query_port(context.as_ptr(), port, &mut ports) })?;
    let at_most = |wanted: u32, can: i32| wanted.min(u32::try_from(can).unwrap_or(0));
    let reads = |can: i32| at_most(READS_WANTED.into(), can).max(1) as u8;
    let mtu = ports.active_mtu as u8;
    Ok(Limits {
        pieces: at_most(PIECES_WANTED, device.max_qp_wr).max(2),
        piece_bytes: PIECE_BYTES_MAX.min(ports.max_msg_sz).max(1),
        initiator: Abilities { mtu, reads: reads(device.max_qp_init_rd_atom) },
        responder: Abilities { mtu, reads: reads(device.max_qp_rd_atom) },
    })
}
