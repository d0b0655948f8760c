//! A reliable connected queue pair, and the chains of work that are posted on it.

use std::{io, mem, ptr, ptr::NonNull, sync::Arc};

use rdma_sys::{
    ibv_access_flags, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_send, ibv_qp,
    ibv_qp_attr, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state as state, ibv_qp_type, ibv_send_flags,
    ibv_send_wr, ibv_sge, ibv_wr_opcode as opcode, rdma_t,
};

use super::{
    checked, completion_queue::CompletionQueue, event_channel::CmId, handshake::Abilities,
    protection_domain::ProtectionDomain,
};

/// An unacknowledged packet is sent again after 4.096 us * 2^14 = 67 ms. The connection manager's
/// own choice of 19 would be 2.1 s.
const ACK_TIMEOUT: u8 = 14;
/// How often it is sent again, before the peer counts as unreachable.
pub(super) const RETRIES: u8 = 5;
/// Short writes travel inside the request, where the device can.
const INLINE_WANTED: u32 = 256;
/// Set by the kernel for its own use on Ethernet, and not understood back.
const KERNEL_ONLY_BITS: i32 = 0xe0_0000;

/// What a queue pair is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// It posts, and nothing may be done to its memory.
    Initiator,
    /// It is posted to.
    Responder,
}

/// Which way a piece's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Write,
    Read,
}

/// What one work request of the device does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) direction: Direction,
    pub(super) local: u64,
    pub(super) lkey: u32,
    pub(super) len: u32,
    pub(super) remote: u64,
    pub(super) rkey: u32,
    /// A completion is wanted.
    pub(super) signalled: bool,
    /// Reads that were posted before must be done first.
    pub(super) fenced: bool,
}

#[derive(Debug)]
pub(super) struct QueuePair {
    raw: NonNull<ibv_qp>,
    inline_max: u32,
    completions: Arc<CompletionQueue>,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs objects may be used from any thread.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair for so many pieces at a time, not connected to anything.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        pieces: u32,
    ) -> io::Result<Self> {
        let make = |inline| {
            let cap = ibv_qp_cap {
                max_send_wr: pieces,
                max_recv_wr: 1, // some devices do not take 0
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline,
            };
            let mut attributes = ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: completions.as_ptr(),
                recv_cq: completions.as_ptr(),
                srq: ptr::null_mut(),
                cap,
                qp_type: ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and completion queue are alive and held as long as the queue pair.
            let raw = unsafe { ibv_create_qp(domain.as_ptr(), &mut attributes) };
            let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
            let (completions, domain) = (completions.clone(), domain.clone());
            let inline_max = attributes.cap.max_inline_data;
            Ok(Self { raw, inline_max, completions, _domain: domain })
        };
        // What a device cannot do inline it refuses as a whole.
        make(INLINE_WANTED).or_else(|_: io::Error| make(0))
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: alive, and never changed.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    pub(super) fn completions(&self) -> &CompletionQueue {
        &self.completions
    }

    /// From the peer's words to ready: INIT, RTR and RTS, with what both devices can do.
    pub(super) fn connect(&self, id: &CmId, side: Side, common: Abilities) -> io::Result<()> {
        self.to_state(id, state::IBV_QPS_INIT, |attributes| {
            let flags = match side {
                Side::Initiator => ibv_access_flags(0),
                Side::Responder => {
                    ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                        | ibv_access_flags::IBV_ACCESS_REMOTE_READ
                }
            };
            attributes.qp_access_flags = flags.0;
        })?;
        self.to_state(id, state::IBV_QPS_RTR, |attributes| {
            attributes.path_mtu = attributes.path_mtu.min(common.mtu.into());
            attributes.max_dest_rd_atomic = if side == Side::Responder { common.reads } else { 1 };
        })?;
        self.to_state(id, state::IBV_QPS_RTS, |attributes| {
            attributes.max_rd_atomic = if side == Side::Initiator { common.reads } else { 1 };
            attributes.timeout = ACK_TIMEOUT;
            attributes.retry_cnt = RETRIES;
        })
    }

    fn to_state(
        &self,
        id: &CmId,
        next: state::Type,
        adjust: impl FnOnce(&mut ibv_qp_attr),
    ) -> io::Result<()> {
        // SAFETY: plain numbers, for which zeros are valid.
        let mut attributes: ibv_qp_attr = unsafe { mem::zeroed() };
        attributes.qp_state = next;
        let mask = id.attributes(&mut attributes)? & !KERNEL_ONLY_BITS;
        adjust(&mut attributes);
        // SAFETY: alive; the attributes are read during the call only.
        checked(unsafe { ibv_modify_qp(self.raw.as_ptr(), &mut attributes, mask) })
    }
}

impl Drop for QueuePair {
    /// A fence: when it returns, the device does nothing in this queue pair's name any more.
    fn drop(&mut self) {
        // SAFETY: created once and destroyed here only.
        let status = unsafe { ibv_destroy_qp(self.raw.as_ptr()) };
        if status != 0 {
            let error = io::Error::from_raw_os_error(status);
            tracing::error!(%error, "letting a queue pair go");
        }
    }
}

/// Work requests on their way to the device, in memory that is used again for each post.
pub(super) struct Chain {
    requests: Vec<ibv_send_wr>,
    places: Vec<ibv_sge>,
}

// SAFETY: the pointers inside are made anew by each post and followed during it only.
unsafe impl Send for Chain {}

impl Chain {
    /// Most pieces of one chain.
    pub(super) const MAX: usize = 256;

    pub(super) fn new() -> Self {
        Self { requests: Vec::with_capacity(Self::MAX), places: Vec::with_capacity(Self::MAX) }
    }

    /// Posts pieces, numbered from `first`, with one ring of the doorbell. On error says how many
    /// were taken over all the same.
    pub(super) fn post(
        &mut self,
        pair: &QueuePair,
        first: u64,
        pieces: impl Iterator<Item = Piece>,
    ) -> Result<(), (usize, io::Error)> {
        self.requests.clear();
        self.places.clear();
        for (number, piece) in (first..).zip(pieces.take(Self::MAX)) {
            self.places.push(ibv_sge { addr: piece.local, length: piece.len, lkey: piece.lkey });
            self.requests.push(request(number, &piece, pair.inline_max));
        }
        // Linked once all are there, since the vectors do not move any more, and through the very
        // pointers that the device's driver follows.
        let count = self.requests.len();
        let (places, requests) = (self.places.as_mut_ptr(), self.requests.as_mut_ptr());
        for at in 0..count {
            // SAFETY: `at` is below the length, and no reference to an element is alive.
            let request = unsafe { &mut *requests.wrapping_add(at) };
            request.sg_list = places.wrapping_add(at);
            if at + 1 < count {
                request.next = requests.wrapping_add(at + 1);
            }
        }
        let mut refused: *mut ibv_send_wr = ptr::null_mut();
        // SAFETY: a chain that ends with null, whose requests and places are alive during the call.
        // The memory that they name is registered, and stays so until their completion: whoever
        // posts counts what is outstanding.
        match unsafe { ibv_post_send(pair.raw.as_ptr(), requests, &mut refused) } {
            0 => Ok(()),
            errno => {
                let bytes = (refused as usize).saturating_sub(requests as usize);
                let taken = bytes / size_of::<ibv_send_wr>();
                Err((taken.min(count), io::Error::from_raw_os_error(errno)))
            }
        }
    }
}

fn request(number: u64, piece: &Piece, inline_max: u32) -> ibv_send_wr {
    let mut flags = ibv_send_flags(0);
    if piece.signalled {
        flags |= ibv_send_flags::IBV_SEND_SIGNALED;
    }
    if piece.fenced {
        flags |= ibv_send_flags::IBV_SEND_FENCE;
    }
    if piece.direction == Direction::Write && piece.len <= inline_max {
        flags |= ibv_send_flags::IBV_SEND_INLINE;
    }
    // SAFETY: numbers and pointers, for which zeros are valid.
    let mut request: ibv_send_wr = unsafe { mem::zeroed() };
    request.wr_id = number;
    request.num_sge = 1;
    request.opcode = match piece.direction {
        Direction::Write => opcode::IBV_WR_RDMA_WRITE,
        Direction::Read => opcode::IBV_WR_RDMA_READ,
    };
    request.send_flags = flags.0;
    request.wr.rdma = rdma_t { remote_addr: piece.remote, rkey: piece.rkey };
    request
}
