//! The connection manager's events, and the identifiers that they speak of (`rdma_cm`).
//!
//! An identifier carries a connection's number as its context, so an event says whose it is without
//! a table, and no event of an identifier comes after it was destroyed.

use std::{
    ffi::c_void,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::Arc,
    time::Duration,
};

use rdma_sys::{
    ibv_context, ibv_qp_attr, rdma_accept, rdma_ack_cm_event, rdma_bind_addr, rdma_cm_event,
    rdma_cm_event_type as kind, rdma_cm_id, rdma_conn_param, rdma_connect,
    rdma_create_event_channel, rdma_create_id, rdma_destroy_event_channel, rdma_destroy_id,
    rdma_disconnect, rdma_establish, rdma_event_channel, rdma_get_cm_event, rdma_get_src_port,
    rdma_init_qp_attr, rdma_listen, rdma_port_space, rdma_reject, rdma_resolve_addr,
    rdma_resolve_route,
};

use super::{checked, handshake::Token};
use crate::transport::ConnId;

/// Requests for connections that may wait at the listener.
const BACKLOG: i32 = 16;

/// Where the connection manager's events arrive. Never blocks.
#[derive(Debug)]
pub(super) struct EventChannel(NonNull<rdma_event_channel>);

// SAFETY: librdmacm may be called from any thread, also for one channel at a time from several.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

/// What the connection manager told.
#[derive(Debug)]
pub(super) enum CmEvent {
    /// The peer's address belongs to a device of ours.
    AddressResolved(ConnId),
    /// There is a route.
    RouteResolved(ConnId),
    /// A stranger wants a connection and shows a token.
    Requested {
        /// The connection to accept or drop.
        id: CmId,
        /// What it showed, if it is long enough.
        token: Option<Token>,
    },
    /// The peer accepted; the queue pair is ours to make ready.
    Answered(ConnId),
    /// Both sides are ready.
    Established(ConnId),
    /// It did not come about.
    Failed(ConnId, CmFailure),
    /// The other side ended it, or died.
    Disconnected(ConnId),
    /// Its device is being removed.
    DeviceRemoved(ConnId),
}

/// Why a connection did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({status})")]
pub(super) struct CmFailure {
    what: &'static str,
    status: i32,
}

impl EventChannel {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        // SAFETY: takes nothing; null is an error.
        let raw = unsafe { rdma_create_event_channel() };
        let channel = Self(NonNull::new(raw).ok_or_else(no_connection_manager)?);
        rustix::io::ioctl_fionbio(channel.fd(), true)?;
        Ok(Arc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as `self`.
        let fd = unsafe { (*self.0.as_ptr()).fd };
        // SAFETY: librdmacm keeps the descriptor open as long as the channel lives.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// The next event, or none at the moment. Events that say nothing here are passed over.
    pub(super) fn next(self: &Arc<Self>) -> io::Result<Option<CmEvent>> {
        loop {
            let mut event = ptr::null_mut();
            // SAFETY: the channel is alive; the event is acknowledged below, once.
            if unsafe { rdma_get_cm_event(self.0.as_ptr(), &mut event) } != 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                };
            }
            // SAFETY: a successful call gave an event that stays valid until it is acknowledged.
            let understood = self.understand(unsafe { &*event });
            // SAFETY: not acknowledged yet, and not used any more: what was understood is a copy.
            unsafe { rdma_ack_cm_event(event) };
            if understood.is_some() {
                return Ok(understood);
            }
        }
    }

    fn understand(self: &Arc<Self>, event: &rdma_cm_event) -> Option<CmEvent> {
        // SAFETY: the identifier is alive until its events are acknowledged.
        let conn = ConnId(unsafe { (*event.id).context } as u64);
        let failed = |what| CmEvent::Failed(conn, CmFailure { what, status: event.status });
        Some(match event.event {
            kind::RDMA_CM_EVENT_ADDR_RESOLVED => CmEvent::AddressResolved(conn),
            kind::RDMA_CM_EVENT_ADDR_ERROR => failed("no RDMA device reaches the peer's address"),
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED => CmEvent::RouteResolved(conn),
            kind::RDMA_CM_EVENT_ROUTE_ERROR => failed("no route to the peer's RDMA device"),
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => {
                let id = NonNull::new(event.id)?;
                // SAFETY: a request carries connection parameters.
                let param = unsafe { &event.param.conn };
                let token =
                    (param.private_data_len as usize >= mem::size_of::<Token>()).then(|| {
                        // SAFETY: the private data has at least the token's length; it has no
                        // alignment, which an array of bytes does not need.
                        unsafe { param.private_data.cast::<Token>().read() }
                    });
                let id = CmId { raw: id, _channel: self.clone() };
                CmEvent::Requested { id, token }
            }
            kind::RDMA_CM_EVENT_CONNECT_RESPONSE => CmEvent::Answered(conn),
            kind::RDMA_CM_EVENT_ESTABLISHED => CmEvent::Established(conn),
            kind::RDMA_CM_EVENT_CONNECT_ERROR => failed("the connection could not be made"),
            kind::RDMA_CM_EVENT_UNREACHABLE => failed("the peer's RDMA device does not answer"),
            kind::RDMA_CM_EVENT_REJECTED => failed("the peer refused the connection"),
            kind::RDMA_CM_EVENT_DISCONNECTED => CmEvent::Disconnected(conn),
            kind::RDMA_CM_EVENT_DEVICE_REMOVAL => CmEvent::DeviceRemoved(conn),
            _ => return None,
        })
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: every identifier holds the channel, so none of them is left.
        unsafe { rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

fn no_connection_manager() -> io::Error {
    let error = io::Error::last_os_error();
    let why = format!("no connection manager ({error}): run `modprobe rdma_ucm`");
    io::Error::new(error.kind(), why)
}

/// What both sides of a connection are made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct CmParameters {
    pub(super) qp_num: u32,
    pub(super) token: Token,
    /// Reads that this side may have outstanding.
    pub(super) initiator_depth: u8,
    /// Reads that this side answers at a time.
    pub(super) responder_resources: u8,
    pub(super) retries: u8,
}

/// An identifier of the connection manager: a listener or one end of a connection.
#[derive(Debug)]
pub(super) struct CmId {
    raw: NonNull<rdma_cm_id>,
    _channel: Arc<EventChannel>,
}

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for CmId {}
// SAFETY: as above.
unsafe impl Sync for CmId {}

impl CmId {
    pub(super) fn new(channel: &Arc<EventChannel>, conn: ConnId) -> io::Result<Self> {
        let mut raw = ptr::null_mut();
        let context = conn.0 as *mut c_void;
        // SAFETY: the channel is alive and stays so as long as the identifier; the context is a
        // number that is never followed.
        checked(unsafe {
            let space = rdma_port_space::RDMA_PS_TCP;
            rdma_create_id(channel.0.as_ptr(), &mut raw, context, space)
        })?;
        let raw = NonNull::new(raw).ok_or(io::ErrorKind::Other)?;
        Ok(Self { raw, _channel: channel.clone() })
    }

    /// From now on events of this identifier speak of this connection.
    pub(super) fn set_conn(&mut self, conn: ConnId) {
        // SAFETY: alive; librdmacm only hands the context back.
        unsafe { (*self.raw.as_ptr()).context = conn.0 as *mut c_void };
    }

    /// The device, once the identifier is bound to one.
    pub(super) fn context(&self) -> Option<NonNull<ibv_context>> {
        // SAFETY: alive; the field is null or the device's context.
        NonNull::new(unsafe { (*self.raw.as_ptr()).verbs })
    }

    /// The port of the device, once bound.
    pub(super) fn device_port(&self) -> u8 {
        // SAFETY: alive.
        unsafe { (*self.raw.as_ptr()).port_num }
    }

    /// Takes connections at a free port of this address; answers which.
    pub(super) fn listen(&self, ip: IpAddr) -> io::Result<SocketAddr> {
        let mut address = RawAddress::from(SocketAddr::new(ip, 0));
        // SAFETY: the address is read during the call only.
        checked(unsafe { rdma_bind_addr(self.raw.as_ptr(), address.as_mut_ptr()) })?;
        // SAFETY: alive and bound.
        checked(unsafe { rdma_listen(self.raw.as_ptr(), BACKLOG) })?;
        // SAFETY: alive and bound.
        let port = u16::from_be(unsafe { rdma_get_src_port(self.raw.as_ptr()) });
        Ok(SocketAddr::new(ip, port))
    }

    pub(super) fn resolve_address(
        &self,
        from: IpAddr,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<()> {
        let mut from = RawAddress::from(SocketAddr::new(from, 0));
        let mut to = RawAddress::from(to);
        let (from, to) = (from.as_mut_ptr(), to.as_mut_ptr());
        let patience = patience.as_millis() as i32;
        // SAFETY: the addresses are read during the call only.
        checked(unsafe { rdma_resolve_addr(self.raw.as_ptr(), from, to, patience) })
    }

    pub(super) fn resolve_route(&self, patience: Duration) -> io::Result<()> {
        // SAFETY: alive.
        checked(unsafe { rdma_resolve_route(self.raw.as_ptr(), patience.as_millis() as i32) })
    }

    pub(super) fn connect(&self, parameters: &CmParameters) -> io::Result<()> {
        let mut param = raw_parameters(parameters);
        // SAFETY: the parameters and the token in them are read during the call only.
        checked(unsafe { rdma_connect(self.raw.as_ptr(), &mut param) })
    }

    pub(super) fn accept(&self, parameters: &CmParameters) -> io::Result<()> {
        let mut param = raw_parameters(parameters);
        // SAFETY: as in `connect`.
        checked(unsafe { rdma_accept(self.raw.as_ptr(), &mut param) })
    }

    pub(super) fn reject(&self) {
        // SAFETY: alive; without private data the pointer is not followed. A peer that does not
        // hear it gives up by itself.
        unsafe { rdma_reject(self.raw.as_ptr(), ptr::null(), 0) };
    }

    /// Tells the peer that its answer was understood and the queue pair is ready.
    pub(super) fn establish(&self) -> io::Result<()> {
        // SAFETY: alive.
        checked(unsafe { rdma_establish(self.raw.as_ptr()) })
    }

    /// Tells the peer that the connection ends. A peer that does not hear it finds out when it
    /// posts.
    pub(super) fn disconnect(&self) {
        // SAFETY: alive.
        unsafe { rdma_disconnect(self.raw.as_ptr()) };
    }

    /// What a queue pair needs for its next state, in `attributes.qp_state`; answers the mask.
    pub(super) fn attributes(&self, attributes: &mut ibv_qp_attr) -> io::Result<i32> {
        let mut mask = 0;
        // SAFETY: both are valid for writing.
        checked(unsafe { rdma_init_qp_attr(self.raw.as_ptr(), attributes, &mut mask) })?;
        Ok(mask)
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: created or received once and destroyed here only; all its events that were read
        // are acknowledged, so the call does not wait. It tells the peer, if there is one.
        unsafe { rdma_destroy_id(self.raw.as_ptr()) };
    }
}

fn raw_parameters(parameters: &CmParameters) -> rdma_conn_param {
    rdma_conn_param {
        private_data: parameters.token.as_ptr().cast(),
        private_data_len: parameters.token.len() as u8,
        responder_resources: parameters.responder_resources,
        initiator_depth: parameters.initiator_depth,
        flow_control: 0,
        retry_count: parameters.retries,
        rnr_retry_count: 0, // nothing here needs a receive request
        srq: 0,
        qp_num: parameters.qp_num,
    }
}

/// A socket address as C has it.
enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        match self {
            Self::V4(address) => ptr::from_mut(address).cast(),
            Self::V6(address) => ptr::from_mut(address).cast(),
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }
}

/// The address that a RoCE GID stands for: GIDs of IPv4 addresses are mapped into IPv6.
pub(super) fn address_of_gid(gid: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from(gid);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
}
