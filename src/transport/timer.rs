//! A timer that a sleeper can watch.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

pub(super) struct Timer(OwnedFd);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires once after this time; `None`: not at all.
    pub(super) fn set(&self, after: Option<Duration>) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = after.map_or(zero, |after| Timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(i64::MAX),
            // Zero would switch the timer off.
            tv_nsec: i64::from(after.subsec_nanos().max(1)),
        });
        let spec = Itimerspec { it_interval: zero, it_value };
        if let Err(error) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec) {
            tracing::error!(%error, "the data plane's timer cannot be set");
        }
    }

    /// Not readable any more, until it fires again.
    pub(super) fn quiet(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
