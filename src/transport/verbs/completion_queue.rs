//! Completion queues, and the channel that tells a sleeper of them.

use std::{io, mem, os::fd::BorrowedFd, ptr, ptr::NonNull, sync::Arc};

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq,
    ibv_wc, ibv_wc_status as status,
};

use super::device::Device;

/// Completions taken from a queue at once.
pub(super) const BATCH: usize = 16;

/// Readable when an armed completion queue got something.
#[derive(Debug)]
pub(super) struct CompletionChannel {
    raw: NonNull<ibv_comp_channel>,
    device: Arc<Device>,
}

// SAFETY: libibverbs objects may be used from any thread.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    pub(super) fn new(device: &Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the device is open and held.
        let raw = unsafe { ibv_create_comp_channel(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, device: device.clone() };
        rustix::io::ioctl_fionbio(channel.fd(), true)?;
        Ok(Arc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: alive.
        let fd = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: open as long as the channel lives.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes what woke the sleeper. Which queue it was does not matter: all are polled.
    pub(super) fn quiet(&self) {
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is alive and does not block; both places are valid for writing.
        while unsafe { ibv_get_cq_event(self.raw.as_ptr(), &mut cq, &mut context) } == 0 {
            // SAFETY: the event that was just taken, of a queue that cannot be gone: destroying
            // one waits until its events are acknowledged.
            unsafe { ibv_ack_cq_events(cq, 1) };
        }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: completion queues hold their channel, so none is left.
        unsafe { ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The responder has it.
    Done,
    /// The queue pair was in the error state.
    Flushed,
    /// The responder's device refused the access.
    Refused,
    /// The responder did not acknowledge, however often it was sent.
    Unanswered,
    /// Anything else, by the number in `ibv_wc_status`.
    Broken(u32),
}

impl From<status::Type> for Outcome {
    fn from(value: status::Type) -> Self {
        match value {
            status::IBV_WC_SUCCESS => Self::Done,
            status::IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            status::IBV_WC_REM_ACCESS_ERR | status::IBV_WC_REM_INV_REQ_ERR => Self::Refused,
            status::IBV_WC_RETRY_EXC_ERR => Self::Unanswered,
            other => Self::Broken(other),
        }
    }
}

/// One completion: which piece of work, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) piece: u64,
    pub(super) outcome: Outcome,
}

/// One connection's completions. Made large enough that it cannot overflow.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    raw: NonNull<ibv_cq>,
    _channel: Arc<CompletionChannel>,
}

// SAFETY: libibverbs objects may be used from any thread.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    pub(super) fn new(channel: &Arc<CompletionChannel>, entries: u32) -> io::Result<Arc<Self>> {
        let context = channel.device.context().as_ptr();
        let (entries, none) = (entries as i32, ptr::null_mut());
        // SAFETY: device and channel are alive and held.
        let raw = unsafe { ibv_create_cq(context, entries, none, channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, _channel: channel.clone() }))
    }

    pub(super) fn as_ptr(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }

    /// The next completion makes the channel readable, once.
    pub(super) fn arm(&self) -> io::Result<()> {
        // SAFETY: alive.
        match unsafe { ibv_req_notify_cq(self.raw.as_ptr(), 0) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Takes up to [`BATCH`] completions and hands each one on; answers how many. No system call
    /// with devices whose queues lie in user memory.
    pub(super) fn poll(&self, mut each: impl FnMut(Completion)) -> io::Result<usize> {
        let mut batch = [const { mem::MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        // SAFETY: there is room for as many entries as are asked for.
        let count =
            unsafe { ibv_poll_cq(self.raw.as_ptr(), BATCH as i32, batch.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| io::Error::other("polling completions"))?;
        for entry in &batch[..count] {
            // SAFETY: the call filled that many entries.
            let entry = unsafe { entry.assume_init_ref() };
            each(Completion { piece: entry.wr_id, outcome: entry.status.into() });
        }
        Ok(count)
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold their completion queue, so none is left; every event that was
        // taken is acknowledged, so the call does not wait.
        let status = unsafe { ibv_destroy_cq(self.raw.as_ptr()) };
        if status != 0 {
            let error = io::Error::from_raw_os_error(status);
            tracing::error!(%error, "letting a completion queue go");
        }
    }
}
