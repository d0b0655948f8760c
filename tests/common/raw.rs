//! The local protocol spoken by hand: what a client that means no good can say and write.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use ringkeep::{
    handover::{self, Bell},
    protocol::{FailureKind, Opened, Response},
    region::mapping::Mapping,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};

use super::LIMIT;

/// One connection.
pub struct Raw(pub UnixStream);

impl Raw {
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    /// Bytes as they are. The server may hang up in the middle of them.
    pub fn send(&self, bytes: &[u8]) {
        let _ = (&self.0).write_all(bytes);
    }

    /// A frame with this body.
    pub fn frame(&self, body: &[u8]) {
        self.send(&framed(body));
    }

    /// A frame with this body; the descriptors travel with its first byte.
    #[track_caller]
    pub fn frame_with(&self, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let bytes = framed(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags).unwrap();
        self.send(&bytes[sent..]);
    }

    /// Nothing more will be said.
    pub fn end(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }

    /// What the server answers; `None` when it hung up instead.
    #[track_caller]
    pub fn answer(&self) -> Option<(Response, Vec<OwnedFd>)> {
        match self.try_answer() {
            Ok(answer) => Some(answer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no answer"),
            Err(_) => None,
        }
    }

    fn try_answer(&self) -> io::Result<(Response, Vec<OwnedFd>)> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut length)];
        let got = recvmsg(&self.0, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        (&self.0).read_exact(&mut length[got..])?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        (&self.0).read_exact(&mut body)?;
        Ok((serde_json::from_slice(&body)?, descriptors))
    }

    /// A failure of this kind, said in words; never anything else.
    #[track_caller]
    pub fn failed(&self) -> (FailureKind, String) {
        match self.answer() {
            Some((Response::Failed(failure), descriptors)) => {
                assert!(descriptors.is_empty() && !failure.message.is_empty());
                (failure.kind, failure.message)
            }
            Some((other, _)) => panic!("{other:?}"),
            None => panic!("hung up without a word"),
        }
    }

    /// Opens a checkpoint and maps everything that comes with it.
    #[track_caller]
    pub fn attach(self, name: &str, capacity: u64) -> Attached {
        self.frame(&open(&json!(name), &json!(capacity), &json!(2)));
        let Some((Response::Opened(opened), descriptors)) = self.answer() else {
            panic!("not opened");
        };
        let [region, handover, bell] = <[OwnedFd; 3]>::try_from(descriptors).unwrap();
        let (region, handover) = (File::from(region), File::from(handover));
        let memory = Mapping::new(&region, opened.bytes as usize).unwrap();
        let bytes = handover::bytes_for(&opened.layout);
        let ring = Mapping::new(&handover, bytes as usize).unwrap();
        Attached { raw: self, opened, region, handover, bell: bell.into(), memory, ring }
    }
}

/// Everything that a client has.
pub struct Attached {
    pub raw: Raw,
    pub opened: Opened,
    pub region: File,
    pub handover: File,
    pub bell: Bell,
    pub memory: Mapping,
    pub ring: Mapping,
}

impl Attached {
    /// Rings once. A server that let this client go may have closed its end.
    pub fn knock(&self) {
        self.bell.ring();
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// The body of an `open`, whatever its values are.
pub fn open(name: &Value, capacity: &Value, slots: &Value) -> Vec<u8> {
    let body = json!({
        "request": "open", "name": name, "capacity": capacity, "slots": slots,
        "mode": 0o600, "take_over": false, "existing": false,
    });
    serde_json::to_vec(&body).unwrap()
}
