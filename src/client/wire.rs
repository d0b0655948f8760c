//! Messages and descriptors over the local socket, blocking.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
    },
};

use crate::{
    pause::Pause,
    protocol::{MESSAGE_BYTES_MAX, Request, Response},
};

/// Most descriptors that travel with one message.
pub(crate) const DESCRIPTORS_MAX: usize = 3;

/// Sends a request, with the descriptor that goes with it.
pub(crate) fn send(
    socket: &UnixStream,
    request: &Request,
    with: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(request)?;
    let mut message = (body.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(&body);
    let sent = send_with(socket, &message, with.as_slice())?;
    (&*socket).write_all(&message[sent..])
}

/// Looks whether something has come, for so long at most. Whoever sleeps in `receive` instead is told
/// later, by as much as its core takes to wake up.
pub(crate) fn look_for_answer(socket: &UnixStream, time: Duration) {
    let (began, pause) = (Instant::now(), Pause::default());
    while began.elapsed() < time {
        match recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => pause.pause(),
            // An error is found again by whoever receives.
            _ => return,
        }
    }
}

/// Receives a response and the descriptors that came with it.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<(Response, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let (got, descriptors) = receive_with(socket, &mut length)?;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    (&*socket).read_exact(&mut length[got..])?;
    let length = u32::from_le_bytes(length);
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
    }
    let mut body = vec![0; length as usize];
    (&*socket).read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, descriptors))
}

/// One `sendmsg`; the descriptors go with its first byte. Bytes sent.
pub(crate) fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// One `recvmsg`. Bytes received, and the descriptors that came with them.
pub(crate) fn receive_with(
    socket: impl AsFd,
    into: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((got.bytes, descriptors))
}
