//! Sockets whose connection is not known yet: handed over by the listener, waiting for a preamble.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    net::{RecvFlags, recv},
};

use super::handshake::{PREAMBLE_LEN, Token, decode_preamble};

/// Most sockets that wait for their preamble. An honest peer's preamble comes right behind the
/// magic bytes, so when there are more it is the oldest that goes.
pub(super) const WAITING_MAX: usize = 64;
/// Most sockets on their way from the listener to the transport's thread.
const HANDED_OVER_MAX: usize = 128;

/// Hands sockets from the thread that listens to the transport's thread, and wakes that.
#[derive(Debug, Clone)]
pub struct Adopter {
    sockets: SyncSender<TcpStream>,
    waker: Arc<OwnedFd>,
    /// Says without a system call what the waker says.
    arrived: Arc<AtomicBool>,
}

impl Adopter {
    /// Hands over a socket of which exactly the four bytes of [`super::DATA_MAGIC`] were read. When
    /// the transport is gone, or lags behind by too many, the socket is closed instead and this
    /// answers false.
    pub fn adopt(&self, socket: TcpStream) -> bool {
        let handed_over = self.sockets.try_send(socket).is_ok();
        // Behind the socket, so that whoever sees the flag finds it, and before the waker.
        self.arrived.store(true, Ordering::Release);
        // Cannot block or fail in a way that matters: a full counter is readable already.
        let _ = rustix::io::write(&*self.waker, &1u64.to_ne_bytes());
        handed_over
    }
}

pub(super) struct Waiting {
    pub(super) id: u64,
    pub(super) socket: OwnedFd,
    pub(super) until: Instant,
    preamble: [u8; PREAMBLE_LEN],
    got: usize,
}

/// What became of a waiting socket.
pub(super) enum Admission {
    /// It showed a token.
    Shown(Token, OwnedFd),
    /// It still has to say something.
    Waits,
    /// It was closed.
    Turned,
}

pub(super) struct Lobby {
    pub(super) adopter: Adopter,
    arrivals: Receiver<TcpStream>,
    waiting: VecDeque<Waiting>,
}

impl Lobby {
    pub(super) fn new() -> io::Result<Self> {
        let (sockets, arrivals) = sync_channel(HANDED_OVER_MAX);
        let waker = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let adopter = Adopter { sockets, waker, arrived: Arc::default() };
        Ok(Self { adopter, arrivals, waiting: VecDeque::new() })
    }

    pub(super) fn waker(&self) -> impl AsFd + '_ {
        &*self.adopter.waker
    }

    /// The next socket that was handed over, after the waker was heard.
    pub(super) fn arrival(&mut self) -> Option<OwnedFd> {
        self.arrivals.try_recv().ok().map(OwnedFd::from)
    }

    /// Nobody waits, and nobody was handed over since the waker was heard.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.adopter.arrived.load(Ordering::Acquire)
    }

    /// The waker's counter and the flag are emptied before the queue is, so no arrival is missed.
    pub(super) fn quiet_waker(&self) {
        // Read and cleared in one step: a socket whose flag this clears is in the queue by now.
        self.adopter.arrived.swap(false, Ordering::AcqRel);
        let _ = rustix::io::read(&*self.adopter.waker, &mut [0u8; 8]);
    }

    pub(super) fn wait(&mut self, id: u64, socket: OwnedFd, until: Instant) {
        if self.waiting.len() == WAITING_MAX {
            tracing::warn!("too many data connections without a preamble; closing the oldest");
            self.waiting.pop_front();
        }
        let preamble = [0; PREAMBLE_LEN];
        self.waiting.push_back(Waiting { id, socket, until, preamble, got: 0 });
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.waiting.iter().any(|waiting| waiting.id == id)
    }

    /// Reads what a waiting socket has to say, and nothing behind it.
    pub(super) fn hear(&mut self, id: u64) -> Admission {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) else {
            return Admission::Turned;
        };
        let waiting = &mut self.waiting[at];
        let rest = &mut waiting.preamble[waiting.got..];
        let result = recv(&waiting.socket, rest, RecvFlags::DONTWAIT);
        match result.map(|(got, _)| got).map_err(io::Error::from) {
            Ok(0) => {}
            Ok(got) => {
                waiting.got += got;
                // What is still missing will be a new edge: the read was a short one.
                if waiting.got < PREAMBLE_LEN {
                    return Admission::Waits;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Admission::Waits,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.hear(id),
            Err(_) => {}
        }
        let Some(heard) = self.waiting.remove(at) else { return Admission::Turned };
        match decode_preamble(&heard.preamble) {
            Some(token) if heard.got == PREAMBLE_LEN => Admission::Shown(token, heard.socket),
            _ => Admission::Turned,
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.waiting.retain(|waiting| waiting.until > now);
    }
}
