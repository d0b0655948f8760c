//! What the thread sleeps on: its alarm, the transports, and the bells of idle clients.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

const ALARM: u64 = u64::MAX;
const TRANSPORT: u64 = u64::MAX - 1;

/// So many events are heard of in one wait.
const EVENTS: usize = 64;

/// What woke the thread, or is waiting to be looked at.
#[derive(Debug)]
pub(super) struct Rung {
    /// There are commands. The alarm stays readable until they are taken: silenced any earlier, a
    /// thread that then went to sleep would sleep over them.
    pub(super) alarm: bool,
    /// Checkpoints whose bell was rung. Never grows: a wait tells of [`EVENTS`] at most.
    pub(super) bells: Vec<usize>,
}

impl Default for Rung {
    fn default() -> Self {
        Self { alarm: false, bells: Vec::with_capacity(EVENTS) }
    }
}

pub(super) struct Sleeper {
    epoll: rustix::fd::OwnedFd,
}

impl Sleeper {
    pub(super) fn new<'a>(
        alarm: BorrowedFd<'_>,
        transports: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd, data| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)
        };
        add(alarm, ALARM)?;
        for fd in transports {
            add(fd, TRANSPORT)?;
        }
        Ok(Self { epoll })
    }

    pub(super) fn watch(&self, bell: impl AsFd, index: usize) -> io::Result<()> {
        let data = epoll::EventData::new_u64(index as u64);
        Ok(epoll::add(&self.epoll, bell, data, epoll::EventFlags::IN)?)
    }

    pub(super) fn unwatch(&self, bell: impl AsFd) {
        // A descriptor that is not there any more is not watched either.
        let _ = epoll::delete(&self.epoll, bell);
    }

    /// Waits until something is rung, at most `timeout` (`None`: without end).
    pub(super) fn wait(&mut self, timeout: Option<Duration>, rung: &mut Rung) {
        rung.bells.clear();
        let mut buffer = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let events = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((events, _)) => &*events,
            Err(Errno::INTR) => &[],
            Err(error) => {
                tracing::error!(%error, "waiting for events");
                &[]
            }
        };
        for event in events {
            match event.data.u64() {
                ALARM => rung.alarm = true,
                TRANSPORT => {} // each transport looks for itself
                index => rung.bells.push(index as usize),
            }
        }
    }
}

/// Sets an eventfd back to zero.
pub(super) fn drain(eventfd: impl AsFd) {
    let mut count = [0; 8];
    let _ = rustix::io::read(eventfd, &mut count);
}
