//! What wakes a sleeper: the connection manager, completions, the device, and a timer.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};

use crate::transport::timer::Timer;

const CONNECTIONS: u64 = 0;
const COMPLETIONS: u64 = 1;
const DEVICE: u64 = 2;
const TIMER: u64 = 3;

/// What there is to look at.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Fired {
    pub(super) connections: bool,
    pub(super) completions: bool,
    pub(super) device: bool,
    pub(super) timer: bool,
}

pub(super) struct Readiness {
    epoll: OwnedFd,
    pub(super) timer: Timer,
    connections: RawFd,
    completions: RawFd,
    device: RawFd,
}

impl Readiness {
    pub(super) fn new(
        connections: BorrowedFd<'_>,
        completions: BorrowedFd<'_>,
        device: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = Timer::new()?;
        let watched = [
            (connections, CONNECTIONS),
            (completions, COMPLETIONS),
            (device, DEVICE),
            (timer.as_fd(), TIMER),
        ];
        for (fd, number) in watched {
            epoll::add(&epoll, fd, EventData::new_u64(number), EventFlags::IN)?;
        }
        let (connections, completions) = (connections.as_raw_fd(), completions.as_raw_fd());
        Ok(Self { epoll, timer, connections, completions, device: device.as_raw_fd() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The descriptors of a device that was removed say so for ever: nobody would sleep again.
    fn forget(&self, number: u64) {
        let fd = match number {
            CONNECTIONS => self.connections,
            COMPLETIONS => self.completions,
            DEVICE => self.device,
            _ => return,
        };
        // SAFETY: open as long as its owner, which outlives this in the transport.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::error!(%error, "forgetting a descriptor of the RDMA device");
        }
    }

    /// One system call.
    pub(super) fn look(&self) -> Fired {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut buffer = [const { MaybeUninit::<epoll::Event>::uninit() }; 4];
        let mut fired = Fired::default();
        match epoll::wait(&self.epoll, &mut buffer, Some(&now)) {
            Ok((events, _)) => {
                for event in events {
                    let flags = event.flags; // of a packed structure
                    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                        self.forget(event.data.u64());
                    }
                    match event.data.u64() {
                        CONNECTIONS => fired.connections = true,
                        COMPLETIONS => fired.completions = true,
                        DEVICE => fired.device = true,
                        _ => fired.timer = true,
                    }
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "waiting for the RDMA device"),
        }
        if fired.timer {
            self.timer.quiet();
        }
        fired
    }
}
