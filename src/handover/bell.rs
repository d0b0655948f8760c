//! What wakes the other side of a hand-over.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

/// One end of a pair of sockets: what one rings, the other hears.
///
/// Not an eventfd: both sides would share one open file and its flags, so that one of them could make
/// the other's next call block. Here each call says that it does not wait.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self(near), Self(far)))
    }

    /// Wakes the other side. One that has not heard the last rings is woken by these, and one that is
    /// gone by its end.
    pub fn ring(&self) {
        let _ = send(&self.0, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Forgets what was rung so far, or most of it. False when the other end is closed: it is never
    /// silent again.
    pub fn silence(&self) -> bool {
        let heard = recv(&self.0, &mut [0; 256], RecvFlags::DONTWAIT);
        !matches!(heard, Ok((0, _)) | Err(Errno::CONNRESET))
    }
}

impl From<OwnedFd> for Bell {
    fn from(end: OwnedFd) -> Self {
        Self(end)
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> Self {
        bell.0
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        fs::{OFlags, fcntl_setfl},
    };

    use super::*;

    fn rings(bell: &Bell) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn each_end_hears_the_other_until_it_is_silenced() {
        let (near, far) = Bell::pair().unwrap();
        for (one, other) in [(&near, &far), (&far, &near)] {
            assert!(!rings(other));
            one.ring();
            one.ring();
            assert!(rings(other) && !rings(one));
            assert!(other.silence() && !rings(other));
            assert!(other.silence(), "nothing to forget");
        }
    }

    #[test]
    fn whatever_the_other_side_does_nothing_waits_for_it() {
        let (near, far) = Bell::pair().unwrap();
        // As a client that means no good: its calls may wait, and it hears nothing.
        fcntl_setfl(&far, OFlags::empty()).unwrap();
        (0..100_000).for_each(|_| near.ring());
        assert!(rings(&far));
        assert!(near.silence(), "nothing to forget");
    }

    #[test]
    fn an_end_that_is_closed_is_known() {
        let (near, far) = Bell::pair().unwrap();
        near.ring();
        drop(far);
        near.ring();
        assert!(!near.silence());
    }
}
