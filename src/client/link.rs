//! The attachment of one checkpoint to its local server: hand-over memory, wake-ups, and attaching
//! again by itself when the server restarted.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{OwnershipError, RequestError, wire};
use crate::{
    handover::{Bell, Condition, Producer},
    name::Name,
    pause::Pause,
    protocol::{FailureKind, Opened, Request, Response},
};

/// Whoever looks without end looks this long before it asks whether the server is still there.
const LOOK_MAX: Duration = Duration::from_millis(50);
/// Between two tries to attach again.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// One attachment.
#[derive(Debug)]
pub(super) struct Link {
    name: Name,
    socket: PathBuf,
    stream: UnixStream,
    bell: Bell,
    spin: Duration,
    tried: Option<Instant>,
    pub(super) producer: Producer,
}

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woke {
    /// Something may have happened.
    Look,
    /// The server is gone.
    ServerGone,
    /// The time is over.
    TimedOut,
}

/// The descriptors of an attachment, in the order in which they travel.
pub(super) struct Descriptors {
    pub(super) region: OwnedFd,
    handover: OwnedFd,
    bell: Bell,
}

impl Descriptors {
    fn new(list: Vec<OwnedFd>) -> Option<Self> {
        let [region, handover, bell] = <[OwnedFd; 3]>::try_from(list).ok()?;
        Some(Self { region, handover, bell: bell.into() })
    }
}

impl Link {
    /// Sends `request` on a fresh connection that stays open as long as the attachment.
    pub(super) fn attach(
        name: Name,
        socket: PathBuf,
        stream: UnixStream,
        request: &Request,
        region: Option<&OwnedFd>,
        spin: Duration,
    ) -> Result<(Self, Opened, OwnedFd), RequestError> {
        wire::send(&stream, request, region.map(AsFd::as_fd))?;
        // An open takes a few changes of thread, a commit one.
        wire::look_for_answer(&stream, spin.saturating_mul(3));
        let (response, descriptors) = wire::receive(&stream)?;
        let opened = match response {
            Response::Opened(opened) => opened,
            Response::Failed(failure) => return Err(failure.into()),
            _ => return Err(RequestError::Unexpected),
        };
        let Descriptors { region, handover, bell } =
            Descriptors::new(descriptors).ok_or(RequestError::Unexpected)?;
        let producer = Producer::new(handover, opened.layout)?;
        let link = Self { name, socket, stream, bell, spin, tried: None, producer };
        Ok((link, opened, region))
    }

    /// Wakes the server if it sleeps.
    pub(super) fn ring(&self) {
        if self.producer.server_asleep() {
            self.bell.ring();
        }
    }

    /// Fails when this process is not the writer any more.
    pub(super) fn check(&self) -> Result<(), OwnershipError> {
        let name = || self.name.clone();
        match self.producer.condition() {
            Condition::Owner | Condition::Stopping => Ok(()),
            Condition::Fenced => Err(OwnershipError::Fenced { name: name() }),
            Condition::Removed => Err(OwnershipError::Removed { name: name() }),
            Condition::Violation => Err(OwnershipError::Violation { name: name() }),
        }
    }

    /// Waits until `done` says so: looks for a while, then sleeps until the server wakes it. May come
    /// back before that, to be called again.
    pub(super) fn wait(&self, deadline: Instant, mut done: impl FnMut(&Producer) -> bool) -> Woke {
        if self.producer.condition() == Condition::Stopping {
            return Woke::ServerGone;
        }
        let (began, pause) = (Instant::now(), Pause::default());
        let look = self.spin.min(LOOK_MAX).min(deadline.saturating_duration_since(began));
        while began.elapsed() < look {
            if done(&self.producer) {
                return Woke::Look;
            }
            pause.pause();
        }
        if self.spin > LOOK_MAX {
            return self.sleep(Instant::now());
        }
        self.producer.fall_asleep();
        let woke = if done(&self.producer) { Woke::Look } else { self.sleep(deadline) };
        self.producer.wake_up();
        woke
    }

    fn sleep(&self, deadline: Instant) -> Woke {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds =
            [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Woke::TimedOut,
            Ok(_) => {}
            Err(_) => return Woke::Look, // interrupted: look again
        }
        // The server says nothing on the connection: whatever is there to read is its end.
        let mut gone = !fds[1].revents().is_empty();
        if !fds[0].revents().is_empty() {
            gone |= !self.bell.silence();
        }
        if gone { Woke::ServerGone } else { Woke::Look }
    }

    /// True when the server has not taken what was submitted and its connection is closed. Asked
    /// by commits that wait for nothing, so it looks at most once in [`RETRY_EVERY`].
    pub(super) fn seems_dead(&mut self) -> bool {
        if self.producer.all_consumed() {
            return false;
        }
        let now = Instant::now();
        if self.tried.is_some_and(|at| now - at < RETRY_EVERY) {
            return false;
        }
        self.tried = Some(now);
        self.hung_up()
    }

    /// True when the server has closed the connection, or says that it is about to.
    pub(super) fn hung_up(&self) -> bool {
        self.producer.condition() == Condition::Stopping
            || self.sleep(Instant::now()) == Woke::ServerGone
    }

    /// Attaches again to the restarted server; tries until the deadline, at least once.
    pub(super) fn reattach(
        &mut self,
        region: &OwnedFd,
        epoch: u64,
        deadline: Instant,
    ) -> Result<(), ReattachError> {
        loop {
            match self.try_reattach(region, epoch) {
                Ok(()) => return Ok(()),
                Err(ReattachError::NotYet) if Instant::now() < deadline => {
                    // Nothing tells when a server will be there: ask again.
                    let pause = deadline.saturating_duration_since(Instant::now());
                    std::thread::sleep(pause.min(RETRY_EVERY));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn try_reattach(&mut self, region: &OwnedFd, epoch: u64) -> Result<(), ReattachError> {
        let stream = UnixStream::connect(&self.socket).map_err(|_| ReattachError::NotYet)?;
        let request = Request::Reattach { name: self.name.clone(), epoch };
        let (name, socket) = (self.name.clone(), self.socket.clone());
        match Self::attach(name, socket, stream, &request, Some(region), self.spin) {
            Ok((link, ..)) => {
                *self = link;
                Ok(())
            }
            Err(RequestError::Refused(failure)) => match failure.kind {
                FailureKind::Unavailable => Err(ReattachError::NotYet),
                FailureKind::NoSuchCheckpoint => {
                    Err(OwnershipError::Removed { name: self.name.clone() }.into())
                }
                _ => Err(OwnershipError::Fenced { name: self.name.clone() }.into()),
            },
            Err(_) => Err(ReattachError::NotYet),
        }
    }

    /// An error of the system that means nothing but "no server".
    pub(super) fn no_server(&self) -> RequestError {
        let source = io::ErrorKind::ConnectionRefused.into();
        RequestError::NoServer { socket: self.socket.clone(), source }
    }
}

/// Why attaching again did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReattachError {
    /// No server answers yet.
    #[error("no server answers yet")]
    NotYet,
    /// This process is not the writer any more.
    #[error(transparent)]
    Lost(#[from] OwnershipError),
}
