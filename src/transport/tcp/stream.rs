//! One non-blocking socket: its options, its readiness, and its private receive buffer.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::epoll::EventFlags,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send,
        socket_with, sockopt,
    },
};

use super::{
    frame::HEAD_LEN_MAX,
    iov::{Gather, Scatter},
};
use crate::region::mapping::Mapping;

/// Small frames and the heads of large ones are received here first; what of a large payload comes
/// along is copied, so that one call receives little against the payloads that matter.
const INBOX_CALL_MAX: usize = 16 << 10;
const INBOX_LEN: usize = HEAD_LEN_MAX + INBOX_CALL_MAX;

/// Most bytes that one `poll` moves on one connection in one direction.
pub(super) const POLL_BYTES_MAX: u64 = 4 << 20;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the peer closed it")]
    Eof,
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("the peer broke the protocol: {0}")]
    Broken(&'static str),
    #[error("the peer sent no frame: {0}")]
    BadFrame(#[from] super::frame::BadFrame),
    #[error("a request was refused")]
    Refused,
    #[error("the peer kept silent for too long")]
    TimedOut,
}

/// A socket and what is known of it since the last edge that epoll told.
pub(super) struct Stream {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// The peer is gone: read until the end shows, however short the reads are.
    hung_up: bool,
    /// Something was received since [`Stream::heard`] was asked.
    heard: bool,
    inbox: Inbox,
}

impl Stream {
    /// Takes a connected socket.
    pub(super) fn adopt(socket: OwnedFd, silence: Duration) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        tune(socket.as_fd(), silence)?;
        Ok(Self::new(socket))
    }

    /// Begins to connect. A refusal shows later, as an error of the socket.
    pub(super) fn connect(peer: SocketAddr, silence: Duration) -> io::Result<(Self, Option<End>)> {
        let family = if peer.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        tune(socket.as_fd(), silence)?;
        let refused = match connect(&socket, &peer) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => None,
            Err(errno) => Some(End::System(errno.into())),
        };
        Ok((Self::new(socket), refused))
    }

    fn new(socket: OwnedFd) -> Self {
        let inbox = Inbox { bytes: vec![0; INBOX_LEN].into(), start: 0, end: 0 };
        Self { socket, readable: false, writable: false, hung_up: false, heard: false, inbox }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn note(&mut self, flags: EventFlags) {
        let gone = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        self.hung_up |= flags.intersects(gone);
        self.readable |= flags.intersects(EventFlags::IN | gone);
        self.writable |= flags.intersects(EventFlags::OUT | gone);
    }

    /// The next turn looks whether there is something to receive.
    pub(super) fn look(&mut self) {
        self.readable = true;
    }

    pub(super) fn heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// The outcome of a connect that [`Stream::note`] heard of.
    pub(super) fn connected(&self) -> Result<bool, End> {
        if self.writable {
            sockopt::socket_error(&self.socket)
                .map_err(io::Error::from)?
                .map_err(io::Error::from)?;
        }
        Ok(self.writable)
    }

    pub(super) fn readable(&self) -> bool {
        self.readable
    }

    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// What was received and not consumed.
    pub(super) fn inbox(&self) -> &[u8] {
        &self.inbox.bytes[self.inbox.start..self.inbox.end]
    }

    pub(super) fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.inbox().len());
        self.inbox.start += len;
    }

    /// Receives into the inbox. False when nothing was there.
    pub(super) fn fill(&mut self) -> Result<bool, End> {
        let spare = self.inbox.spare();
        let asked = spare.len();
        let result = recv(&self.socket, spare, RecvFlags::DONTWAIT).map(|(got, _)| got);
        let got = self.received(asked, result.map_err(io::Error::from))?;
        self.inbox.end += got;
        Ok(got > 0)
    }

    /// Moves payload to `pieces` of `mapping`: first what the inbox has, else
    /// straight from the socket. When the pieces are the payload's `last` ones, the same system
    /// call picks up what follows. Answers how much was placed; zero when nothing was there.
    pub(super) fn land(
        &mut self,
        mapping: &Mapping,
        pieces: impl Iterator<Item = (u64, u64)>,
        last: bool,
    ) -> Result<u64, End> {
        if !self.inbox().is_empty() {
            return self.land_inbox(mapping, pieces);
        }
        if !self.readable {
            return Ok(0);
        }
        let mut scatter = Scatter::new();
        let mut all = true;
        for (offset, len) in pieces {
            all = scatter.mapping(mapping, offset, len);
            if !all {
                break;
            }
        }
        let direct = scatter.len();
        if all && last {
            scatter.bytes(self.inbox.spare());
        }
        let (asked, result) = (scatter.len(), scatter.receive(&self.socket));
        let got = self.received(asked, result)?;
        self.inbox.end += got.saturating_sub(direct);
        Ok(got.min(direct) as u64)
    }

    fn land_inbox(
        &mut self,
        mapping: &Mapping,
        pieces: impl Iterator<Item = (u64, u64)>,
    ) -> Result<u64, End> {
        let mut placed = 0;
        for (offset, len) in pieces {
            let held = self.inbox();
            let part = held.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            if part == 0 {
                break;
            }
            let copied = mapping.write_at(offset, &held[..part]);
            copied.map_err(|_| End::Broken("bytes outside an admitted range"))?;
            self.consume(part);
            placed += part as u64;
        }
        Ok(placed)
    }

    fn received(&mut self, asked: usize, result: io::Result<usize>) -> Result<usize, End> {
        match result {
            Ok(0) => Err(End::Eof),
            Ok(got) => {
                // A short read emptied the socket: the next bytes will be a new edge. The end of
                // the stream is no further edge, once it was told.
                self.readable = got == asked || self.hung_up;
                self.heard = true;
                Ok(got)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends the list's front. Zero when the socket takes nothing now.
    pub(super) fn send(&mut self, gather: &mut Gather<'_>) -> Result<usize, End> {
        let result = gather.send(&self.socket);
        self.sent(result)
    }

    /// As [`Stream::send`] for one run of bytes.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) -> Result<usize, End> {
        let result = send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        self.sent(result.map_err(io::Error::from))
    }

    fn sent(&mut self, result: io::Result<usize>) -> Result<usize, End> {
        match result {
            Ok(sent) => Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Room behind what is held; never empty while a whole head is not yet there.
    fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let end = self.bytes.len().min(self.end + INBOX_CALL_MAX);
        &mut self.bytes[self.end..end]
    }
}

/// The part of `extents` that begins `skip` bytes in and is at most `want` bytes long.
pub(super) fn window(
    extents: impl Iterator<Item = (u64, u64)>,
    mut skip: u64,
    mut want: u64,
) -> impl Iterator<Item = (u64, u64)> {
    extents.filter_map(move |(offset, len)| {
        let passed = skip.min(len);
        skip -= passed;
        let part = (len - passed).min(want);
        want -= part;
        (part > 0).then_some((offset + passed, part))
    })
}

fn tune(socket: BorrowedFd<'_>, silence: Duration) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    let third = (silence / 3).max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(socket, third)?;
    sockopt::set_tcp_keepintvl(socket, third)?;
    sockopt::set_tcp_keepcnt(socket, 2)?;
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, millis)?;
    // A pacing congestion control halves what loopback and short links carry. Not every system
    // lets everyone choose, so a refusal is fine. Buffer sizes are left to the kernel's own tuning,
    // which setting them would switch off.
    let _ = sockopt::set_tcp_congestion(socket, "cubic");
    Ok(())
}
