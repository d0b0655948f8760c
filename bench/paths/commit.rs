//! Local commits by a client alone. It is attached to something that only hands memory out, as a
//! server does, and takes the versions out of the hand-over memory.

use std::{
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    thread,
};

use ringkeep::{
    Checkpoint, Client, Durability, Options,
    handover::{self, Bell, Consumer, Submission},
    protocol::{Opened, Response},
    region::{Identity, layout::Layout},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Path, memory};

/// Bytes that a partial update changes.
const CHANGED_BYTES: usize = 64;

/// What becomes of the state in one step.
#[derive(Clone, Copy)]
pub(crate) enum Update {
    /// All of it is replaced, by `save`.
    Whole,
    /// A few bytes, in another chunk each time.
    Piece,
}

/// One commit that waits for nobody.
pub(crate) struct LocalCommit {
    checkpoint: Checkpoint,
    server: Server,
    state: Vec<u8>,
    update: Update,
    at: usize,
}

impl LocalCommit {
    /// Of a checkpoint of so many bytes, after its first version.
    pub(crate) fn new(len: usize, update: Update) -> Self {
        let (checkpoint, server) = Server::attach(len as u64);
        let state = vec![7; len];
        let mut commit = Self { checkpoint, server, state, update: Update::Whole, at: 0 };
        commit.step();
        commit.settle();
        Self { update, ..commit }
    }
}

impl Path for LocalCommit {
    fn step(&mut self) {
        match self.update {
            Update::Whole => self.checkpoint.save(&self.state, Durability::Local).unwrap(),
            Update::Piece => {
                let piece = &self.state[self.at..self.at + CHANGED_BYTES];
                self.checkpoint.write_at(self.at as u64, piece).unwrap();
                self.checkpoint.commit(Durability::Local).unwrap()
            }
        };
    }

    fn settle(&mut self) {
        self.at = (self.at + 4096) % self.state.len();
        self.server.take(self.checkpoint.version());
    }
}

/// What a server keeps of an attachment.
struct Server {
    consumer: Consumer,
    submission: Submission,
    /// As long as it is open the client believes that somebody is there.
    _ends: (UnixStream, Bell),
}

impl Server {
    fn attach(capacity: u64) -> (Checkpoint, Self) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let layout = Layout::new(capacity, 2).unwrap();
        let handover = handover::create(&layout).unwrap();
        let consumer = Consumer::new(handover.try_clone().unwrap(), layout, 0).unwrap();
        let server = thread::spawn(move || hand_out(&listener, layout, handover).unwrap());
        let client = Client::connect_to(socket).unwrap();
        let checkpoint = client.open("state", Options::capacity(capacity)).unwrap();
        let (submission, ends) = (Submission::new(capacity), server.join().unwrap());
        (checkpoint, Self { consumer, submission, _ends: ends })
    }

    /// Takes what was submitted, up to this version.
    fn take(&mut self, version: u64) {
        while self.consumer.next(&mut self.submission).unwrap() {}
        assert_eq!(self.submission.version, version, "a commit that was not handed over");
    }
}

/// Waits for somebody who opens a checkpoint, and gives him a new region.
fn hand_out(
    listener: &UnixListener,
    layout: Layout,
    handover: OwnedFd,
) -> io::Result<(UnixStream, Bell)> {
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            continue; // only looked whether somebody is there
        }
        stream.read_exact(&mut vec![0; u32::from_le_bytes(length) as usize])?;
        let region = memory(layout.region_bytes());
        let opened = Response::Opened(Opened {
            layout,
            identity: Identity { checkpoint: 7, generation: 1 },
            epoch: 1,
            bytes: region.metadata()?.len(),
            mirrored: false,
            warning: None,
        });
        let body = serde_json::to_vec(&opened)?;
        let message = [&(body.len() as u32).to_le_bytes()[..], &body].concat();
        let (bell, clients) = Bell::pair()?;
        let descriptors = [region.as_fd(), handover.as_fd(), clients.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let slices = [IoSlice::new(&message)];
        let sent = sendmsg(&stream, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
        stream.write_all(&message[sent..])?;
        return Ok((stream, bell));
    }
}
