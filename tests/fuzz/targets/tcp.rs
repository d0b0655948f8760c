//! A data connection whose other end sends what it likes: to the responder, which places writes and
//! answers reads, and to the initiator, which takes acknowledgements and read data.
//!
//! Responder: no byte changes outside of what a frame with the granted key names, none at all after
//! the key was revoked or through a key that only reads, and none of another memory is sent.
//! Initiator: no byte changes outside of the posted reads; each request completes once, in order.
#![no_main]

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::{
    region::mapping::Mapping,
    transport::{
        Access, Event, MemoryId, Purpose, RemoteKey, Segment, Stamp, Terms, Transport, Work,
        WorkError, WorkId,
        tcp::{
            TcpTransport, Timeouts,
            frame::{FrameKind, HEADER_LEN, Header, SEGMENT_LEN, WireSegment, encode_request},
            handshake::{Answer, encode_offer, encode_preamble},
        },
    },
};
use ringkeep_fuzz::{Number, memory, sum};
use rustix::net::sockopt::set_socket_linger;

const LEN: u64 = 64 << 10;
const TERMS: Terms = Terms { epoch: 5, view_min: 3 };
/// Turns in which nothing moves until nothing is expected to.
const QUIET: usize = 3;
const TURNS_MAX: usize = 1000;
/// Milliseconds that a connection on this machine may take.
const ACCEPT_TRIES: usize = 1000;
/// What memories hold, and what is sent.
const MINE: u8 = 0x11;
const SECRET: u8 = 0x5e;
const SENT: u8 = 0xa5;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// The key only reads.
    reader: bool,
    posts: Option<Vec<Post>>,
    steps: Vec<Step<'a>>,
}

/// A request of the honest initiator.
#[derive(Debug, Arbitrary)]
struct Post {
    write: bool,
    segments: Vec<(u16, u16)>,
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Frame { frame: Frame, payload: Number, flip: Option<(u8, u8)> },
    Bytes(&'a [u8]),
    Turn,
    Revoke,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    kind: u8,
    sequence: Number,
    other_connection: bool,
    key: WhichKey,
    epoch: Option<u64>,
    view: Option<u64>,
    status: u8,
    length: Option<Number>,
    segments: Vec<(Place, Number)>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum WhichKey {
    Granted,
    OfAnother,
    Any(u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Place {
    Inside(u16),
    AtEnd(Number),
}

struct Rig {
    transport: TcpTransport,
    listener: TcpListener,
    address: SocketAddr,
    mine: Arc<Mapping>,
    mine_id: MemoryId,
    other: Arc<Mapping>,
    other_id: MemoryId,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

fuzz_target!(|input: Input<'_>| {
    RIG.with_borrow_mut(|rig| {
        let rig = rig.get_or_insert_with(Rig::new);
        rig.fill();
        match &input.posts {
            None => rig.responder(&input),
            Some(posts) => rig.initiator(posts, &input.steps),
        }
        assert!(rig.other_is_as_it_was(), "memory changed that nobody granted");
    });
});

fn mapped() -> Arc<Mapping> {
    Arc::new(Mapping::new(&memory(LEN), LEN as usize).expect("mapped"))
}

fn bytes_of(mapping: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    mapping.read_at(0, &mut bytes).expect("inside");
    bytes
}

impl Rig {
    fn new() -> Self {
        let mut transport = TcpTransport::new(Timeouts::default()).expect("a transport");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("an option");
        let address = listener.local_addr().expect("an address");
        let (mine, other) = (mapped(), mapped());
        let mut register = |m: &Arc<Mapping>| transport.register(m.clone(), Purpose::Both);
        let (mine_id, other_id) =
            (register(&mine).expect("registered"), register(&other).expect("registered"));
        Self { transport, listener, address, mine, mine_id, other, other_id }
    }

    fn fill(&self) {
        self.mine.write_at(0, &[MINE; LEN as usize]).expect("inside");
        self.other.write_at(0, &[SECRET; LEN as usize]).expect("inside");
    }

    fn other_is_as_it_was(&self) -> bool {
        bytes_of(&self.other).iter().all(|&byte| byte == SECRET)
    }

    /// The connection that was just asked for.
    fn accept(&self) -> Option<TcpStream> {
        for _ in 0..ACCEPT_TRIES {
            match self.listener.accept() {
                Ok((socket, _)) => return Some(socket),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    fn turn(&mut self, events: &mut Vec<Event>) {
        let mut quiet = 0;
        for _ in 0..TURNS_MAX {
            quiet = if self.transport.poll(events) { 0 } else { quiet + 1 };
            if quiet == QUIET {
                return;
            }
        }
    }

    fn responder(&mut self, input: &Input<'_>) {
        let access = if input.reader { Access::Read } else { Access::Write };
        let (conn, answer) = self.transport.accept(&encode_offer()).expect("an offer");
        let Answer { generation, token } = Answer::decode(&answer).expect("an answer");
        let key = self.transport.grant(conn, self.mine_id, access, TERMS).expect("a grant");
        // Granted to somebody else.
        let (second, _) = self.transport.accept(&encode_offer()).expect("an offer");
        let other = self.transport.grant(second, self.other_id, Access::Write, TERMS);
        let other = other.expect("a grant");

        let mut socket = TcpStream::connect(self.address).expect("connected");
        set_socket_linger(&socket, Some(Duration::ZERO)).expect("an option");
        socket.set_nonblocking(true).expect("an option");
        let mut accepted = self.accept().expect("accepted");
        socket.write_all(&encode_preamble(&token)).expect("room");
        accepted.read_exact(&mut [0; 4]).expect("the magic");
        accepted.set_nonblocking(true).expect("an option");
        assert!(self.transport.adopter().adopt(accepted));
        let mut events = Vec::new();
        self.turn(&mut events);

        let mut allowed = vec![false; LEN as usize];
        let (mut sequence, mut at_revoke, mut heard) = (1, None, Vec::new());
        for step in &input.steps {
            match step {
                Step::Turn => self.turn(&mut events),
                Step::Revoke => {
                    self.transport.revoke(key);
                    at_revoke.get_or_insert_with(|| bytes_of(&self.mine));
                }
                Step::Bytes(bytes) => send(&mut socket, bytes),
                Step::Frame { frame, payload, flip } => {
                    let keys = Keys { generation, key, other };
                    let (bytes, segments) = frame.request(&keys, sequence, *payload, *flip);
                    if !input.reader && frame.kind % 8 < 3 && matches!(frame.key, WhichKey::Granted)
                    {
                        segments.iter().for_each(|segment| allow(&mut allowed, segment));
                    }
                    sequence += 1;
                    send(&mut socket, &bytes);
                }
            }
            hear(&mut socket, &mut heard);
        }
        self.turn(&mut events);
        hear(&mut socket, &mut heard);
        self.transport.close(conn);
        self.transport.close(second);
        drop(socket);
        self.turn(&mut events);

        let now = bytes_of(&self.mine);
        if let Some(then) = at_revoke {
            assert!(now == then, "memory changed after its key was revoked");
        }
        let changed = |at: &usize| now[*at] != MINE;
        let mut changed = (0..now.len()).filter(changed);
        assert!(changed.all(|at| allowed[at]), "memory changed that no frame named");
        sends_no_secret(&heard);
    }

    fn initiator(&mut self, posts: &[Post], steps: &[Step<'_>]) {
        let (conn, _) = self.transport.offer().expect("an offer");
        let answer = Answer { generation: 77, token: [9; 16] };
        self.transport.finish(conn, &answer.encode(), self.address).expect("a connection");
        let Some(mut socket) = self.accept() else { return self.transport.close(conn) };
        set_socket_linger(&socket, Some(Duration::ZERO)).expect("an option");
        socket.set_nonblocking(true).expect("an option");
        let (mut events, mut allowed) = (Vec::new(), vec![false; LEN as usize]);
        let (key, stamp) = (RemoteKey { key: 1, base: 0, len: LEN }, Stamp { epoch: 5, view: 3 });
        self.turn(&mut events);
        let mut posted = 0;
        for post in posts.iter().take(20) {
            let segment = |&(at, len): &(u16, u16)| {
                let at = u64::from(at);
                let len = u64::from(len).min(LEN - at).max(1);
                Segment { local: at, remote: at, len }
            };
            let segments: Vec<Segment> = post.segments.iter().take(50).map(segment).collect();
            let (id, memory) = (WorkId(posted), self.mine_id);
            let work = Work { id, conn, memory, key, stamp, segments: &segments };
            let done = match post.write {
                true => self.transport.post_write(work),
                false => self.transport.post_read(work),
            };
            if done.is_err() {
                assert!(segments.is_empty() || !events.is_empty());
                continue;
            }
            posted += 1;
            if !post.write {
                let wire = |s: &Segment| WireSegment { offset: s.local, len: s.len };
                segments.iter().map(wire).for_each(|segment| allow(&mut allowed, &segment));
            }
        }
        let mut heard = Vec::new();
        let mut answered = 0;
        for step in steps {
            match step {
                Step::Turn => self.turn(&mut events),
                Step::Revoke => answered += 1,
                Step::Bytes(bytes) => send(&mut socket, bytes),
                Step::Frame { frame, payload, flip } => {
                    send(&mut socket, &frame.answer(77, answered + 1, *payload, *flip));
                }
            }
            hear(&mut socket, &mut heard);
        }
        self.turn(&mut events);
        self.transport.close(conn);
        drop(socket);
        self.turn(&mut events);

        let now = bytes_of(&self.mine);
        let mut changed = (0..now.len()).filter(|&at| now[at] != MINE);
        assert!(changed.all(|at| allowed[at]), "memory changed that nobody read into");
        let mut failed = false;
        let completed = events.iter().filter_map(|event| match event {
            Event::Completed { conn: of, work, result } if *of == conn => Some((work.0, *result)),
            _ => None,
        });
        let mut next = 0;
        for (work, result) in completed {
            assert_eq!(work, next, "in posting order, once");
            assert!(!failed || result == Err(WorkError::Flushed), "behind a failure: {result:?}");
            failed |= result.is_err();
            next += 1;
        }
        assert_eq!(next, posted, "each request completes");
    }
}

struct Keys {
    generation: u64,
    key: RemoteKey,
    other: RemoteKey,
}

impl Frame {
    fn header(&self, generation: u64, sequence: u64) -> Header {
        let kind = match self.kind % 8 {
            0..3 => FrameKind::Write,
            3..6 => FrameKind::Read,
            6 => FrameKind::Ack,
            _ => FrameKind::ReadData,
        };
        let generation = generation ^ u64::from(self.other_connection);
        let stamp = Stamp { epoch: self.epoch.unwrap_or(5), view: self.view.unwrap_or(3) };
        let sequence = self.sequence.beside(sequence);
        Header { stamp, ..Header::answer(kind, generation, sequence) }
    }

    fn segments(&self) -> Vec<WireSegment> {
        let segment = |&(place, len): &(Place, Number)| {
            let offset = match place {
                Place::Inside(at) => at.into(),
                Place::AtEnd(number) => number.beside(LEN),
            };
            WireSegment { offset, len: len.beside(100) }
        };
        self.segments.iter().take(64).map(segment).collect()
    }

    /// A frame of a peer that posts, and the places that it names.
    fn request(
        &self,
        keys: &Keys,
        sequence: u64,
        payload: Number,
        flip: Option<(u8, u8)>,
    ) -> (Vec<u8>, Vec<WireSegment>) {
        let header = Header {
            key: match self.key {
                WhichKey::Granted => keys.key.key,
                WhichKey::OfAnother => keys.other.key,
                WhichKey::Any(key) => key,
            },
            ..self.header(keys.generation, sequence)
        };
        let segments = self.segments();
        let mut bytes = vec![0; HEADER_LEN + segments.len() * SEGMENT_LEN];
        // Lengths that do not add up are written by hand.
        let total = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len));
        let fits = if total.is_some() { &segments[..] } else { &[] };
        let end = encode_request(&header, fits.iter().copied(), &mut bytes);
        bytes.truncate(end);
        if let Some(length) = self.length {
            let right = total.unwrap_or(0);
            bytes[56..64].copy_from_slice(&length.beside(right).to_le_bytes());
            let head_sum = sum(&bytes[..72]);
            bytes[72..80].copy_from_slice(&head_sum);
        }
        spoil(&mut bytes, flip);
        if header.kind == FrameKind::Write {
            let len = payload.beside(total.unwrap_or(0)).min(LEN * 2);
            bytes.resize(bytes.len() + len as usize, SENT);
        }
        (bytes, segments)
    }

    /// A frame of a peer that was asked.
    fn answer(
        &self,
        generation: u64,
        sequence: u64,
        payload: Number,
        flip: Option<(u8, u8)>,
    ) -> Vec<u8> {
        let mut header = self.header(generation, sequence);
        header.status = match self.status % 8 {
            1 => Err(WorkError::Fenced),
            2 => Err(WorkError::BadKey),
            3 => Err(WorkError::RemoteBounds),
            _ => Ok(()),
        };
        // Mostly answers.
        header.kind = match self.kind % 8 {
            0..4 => FrameKind::Ack,
            4..7 => FrameKind::ReadData,
            _ => header.kind,
        };
        let length = self.length.map_or(100, |length| length.beside(100));
        if header.kind == FrameKind::ReadData {
            (header.length, header.status) = (length, Ok(()));
        }
        let mut bytes = [0; HEADER_LEN];
        header.encode(&mut bytes);
        let mut bytes = bytes.to_vec();
        spoil(&mut bytes, flip);
        if header.kind == FrameKind::ReadData {
            let len = payload.beside(length).min(LEN * 2);
            bytes.resize(bytes.len() + len as usize, SENT);
        }
        bytes
    }
}

fn spoil(bytes: &mut [u8], flip: Option<(u8, u8)>) {
    if let Some((at, bit)) = flip {
        let at = usize::from(at) % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
    }
}

fn allow(allowed: &mut [bool], segment: &WireSegment) {
    let start = segment.offset.min(LEN) as usize;
    let end = segment.offset.saturating_add(segment.len).min(LEN) as usize;
    allowed[start..end].fill(true);
}

/// What the socket does not take is left out.
fn send(socket: &mut TcpStream, bytes: &[u8]) {
    let _ = socket.write(bytes);
}

fn hear(socket: &mut TcpStream, heard: &mut Vec<u8>) {
    let mut some = [0; 4096];
    while let Ok(got @ 1..) = socket.read(&mut some) {
        heard.extend_from_slice(&some[..got]);
    }
}

/// What a responder sent, as far as it came.
fn sends_no_secret(mut heard: &[u8]) {
    while let Some((head, rest)) = heard.split_first_chunk::<HEADER_LEN>() {
        let header = Header::decode(head).expect("a responder sends frames");
        let payload = &rest[..rest.len().min(header.length as usize)];
        assert!(payload.iter().all(|byte| [MINE, SENT, 0].contains(byte)), "somebody else's bytes");
        heard = &rest[payload.len()..];
    }
}
