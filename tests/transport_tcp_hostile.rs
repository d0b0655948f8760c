//! Peers that send what they like to the TCP transport: it costs them their connection, and nobody
//! else anything.

#[path = "transport_harness/mod.rs"]
mod harness;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use harness::{Cluster, Link, Network, STAMP, TERMS, TcpNetwork, impatient, seg};
use proptest::prelude::*;
use ringkeep::transport::{
    Access, ConnId, Event, RemoteKey, SEGMENTS_MAX, Stamp, WorkError,
    tcp::{
        TcpTransport,
        frame::{
            FrameKind, HEADER_LEN, Header, READ_CHUNK, SEGMENT_LEN, WireSegment, decode_table,
            encode_request,
        },
        handshake::{Answer, Token, encode_offer, encode_preamble},
    },
};

/// A responder at node 0 with an honest peer at node 1 and memory that must not change.
struct Victim {
    ring: Cluster<TcpNetwork>,
    honest: Link,
    before: Vec<u8>,
}

/// A data connection made by hand.
struct Attack {
    socket: TcpStream,
    conn: ConnId,
    generation: u64,
    key: RemoteKey,
}

impl Victim {
    fn new() -> Self {
        let mut net = TcpNetwork::new();
        let transport = TcpTransport::new(impatient()).unwrap();
        let address = net.listen(transport.adopter());
        let mut ring = Cluster::over(net);
        ring.join(Box::new(transport), address);
        let (transport, address) = ring.net.endpoint();
        ring.join(transport, address);
        let honest = ring.link(1, 0, Access::Write);
        ring.write(&honest, 0, &[seg(0, 0, 8)]).unwrap();
        ring.complete(1, 1);
        let before = ring.fill(0, 1);
        Self { ring, honest, before }
    }

    fn promise(&mut self) -> (ConnId, Answer) {
        let (conn, answer) = self.ring.nodes[0].accept(&encode_offer()).unwrap();
        (conn, Answer::decode(&answer).unwrap())
    }

    fn dial(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.ring.addresses[0]).unwrap();
        socket.write_all(bytes).unwrap();
        socket
    }

    fn attack(&mut self) -> Attack {
        let (conn, Answer { generation, token }) = self.promise();
        let memory = self.ring.memories[0];
        let key = self.ring.nodes[0].grant(conn, memory, Access::Write, TERMS).unwrap();
        let socket = self.dial(&encode_preamble(&token));
        Attack { socket, conn, generation, key }
    }

    /// The socket is closed by the victim; answers what it had sent.
    fn is_hung_up(&mut self, socket: &mut TcpStream) -> Vec<u8> {
        socket.set_nonblocking(true).unwrap();
        let (mut heard, until) = (Vec::new(), Instant::now() + Duration::from_secs(10));
        loop {
            self.ring.step();
            assert!(Instant::now() < until, "the connection was left open");
            let mut some = [0; 4096];
            match socket.read(&mut some) {
                Ok(0) => return heard,
                Ok(got) => heard.extend_from_slice(&some[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return heard,
            }
        }
    }

    /// Memory is as it was, and the honest peer works.
    fn prove_unharmed(mut self) {
        assert!(self.ring.bytes(0) == self.before, "memory changed");
        self.ring.write(&self.honest, 1, &[seg(0, 0, 5000)]).unwrap();
        assert_eq!(self.ring.complete(1, 1), [(self.honest.near, 1, Ok(()))]);
    }

    /// Bytes on an open data connection cost that connection.
    fn refuses(bytes: impl FnOnce(&Attack) -> Vec<u8>) {
        let mut victim = Self::new();
        let mut attack = victim.attack();
        let bytes = bytes(&attack);
        let _ = attack.socket.write_all(&bytes);
        victim.is_hung_up(&mut attack.socket);
        victim.ring.closed(0, attack.conn);
        victim.prove_unharmed();
    }
}

impl Attack {
    fn header(&self, kind: FrameKind) -> Header {
        Header { key: self.key.key, stamp: STAMP, ..Header::answer(kind, self.generation, 1) }
    }

    fn write(&self, change: impl FnOnce(&mut Header), len: u64) -> Vec<u8> {
        let mut header = self.header(FrameKind::Write);
        change(&mut header);
        request(&header, &[WireSegment { offset: 0, len }])
    }
}

fn request(header: &Header, segments: &[WireSegment]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN + segments.len() * SEGMENT_LEN];
    encode_request(header, segments.iter().copied(), &mut bytes);
    bytes
}

fn encoded(header: &Header) -> Vec<u8> {
    let mut bytes = [0; HEADER_LEN];
    header.encode(&mut bytes);
    bytes.into()
}

#[test]
fn a_frame_whose_checksums_do_not_fit_ends_the_connection() {
    for at in [0, 4, 5, 6, 20, 40, 70, 79, 80, 95] {
        Victim::refuses(|attack| {
            let mut bytes = attack.write(|_| {}, 8);
            bytes[at] ^= 1;
            bytes.extend([0; 8]);
            bytes
        });
    }
}

#[test]
fn a_request_of_another_generation_or_out_of_sequence_ends_the_connection() {
    Victim::refuses(|attack| attack.write(|header| header.generation ^= 1, 8));
    Victim::refuses(|attack| attack.write(|header| header.sequence = 2, 8));
    Victim::refuses(|attack| attack.write(|header| header.sequence = 0, 8));
}

#[test]
fn answers_to_nothing_end_the_connection() {
    Victim::refuses(|attack| encoded(&attack.header(FrameKind::Ack)));
    Victim::refuses(|attack| {
        let mut header = attack.header(FrameKind::ReadData);
        header.length = READ_CHUNK;
        encoded(&header)
    });
}

#[test]
fn huge_and_impossible_lengths_end_the_connection() {
    Victim::refuses(|attack| attack.write(|_| {}, u64::MAX));
    Victim::refuses(|attack| attack.write(|_| {}, 1 << 60));
    Victim::refuses(|attack| attack.write(|_| {}, 0));
    Victim::refuses(|attack| {
        let mut header = attack.header(FrameKind::Write);
        header.segments = (SEGMENTS_MAX + 1) as u16;
        header.length = u64::MAX;
        encoded(&header)
    });
}

#[test]
fn a_truncated_frame_ends_with_its_connection_and_places_nothing_that_was_not_sent() {
    let mut victim = Victim::new();
    let mut attack = victim.attack();
    let bytes = attack.write(|_| {}, 4096);
    attack.socket.write_all(&bytes[..50]).unwrap();
    attack.socket.shutdown(std::net::Shutdown::Write).unwrap();
    victim.is_hung_up(&mut attack.socket);
    victim.ring.closed(0, attack.conn);
    victim.prove_unharmed();
}

#[test]
fn a_refused_sender_that_does_not_hang_up_is_told_and_then_closed() {
    let mut victim = Victim::new();
    let mut attack = victim.attack();
    let stale = Stamp { epoch: STAMP.epoch + 1, ..STAMP };
    let bytes = attack.write(|header| header.stamp = stale, 1 << 16);
    attack.socket.write_all(&bytes).unwrap();
    let heard = victim.is_hung_up(&mut attack.socket);
    let ack = Header::decode(heard[..].first_chunk().unwrap()).unwrap();
    assert_eq!((ack.sequence, ack.status), (1, Err(WorkError::Fenced)));
    victim.ring.closed(0, attack.conn);
    victim.prove_unharmed();
}

#[test]
fn a_preamble_that_is_wrong_late_or_unknown_ends_the_socket() {
    let mut victim = Victim::new();
    let mut wrong = encode_preamble(&[7; 16]);
    wrong[10] ^= 1;
    let mut unknown = victim.dial(&encode_preamble(&[7; 16]));
    let mut wrong = victim.dial(&wrong);
    let mut slow = victim.dial(&encode_preamble(&[7; 16])[..20]);
    let mut silent = victim.dial(&encode_preamble(&[7; 16])[..4]);
    for socket in [&mut unknown, &mut wrong, &mut slow, &mut silent] {
        victim.is_hung_up(socket);
    }
    victim.prove_unharmed();
}

#[test]
fn many_slow_sockets_do_not_keep_an_honest_one_out() {
    let mut victim = Victim::new();
    let slow: Vec<_> = (0..100).map(|_| victim.dial(&encode_preamble(&[7; 16])[..10])).collect();
    for _ in 0..200 {
        victim.ring.step();
    }
    victim.ring.link(1, 0, Access::Write);
    drop(slow);
    victim.prove_unharmed();
}

#[test]
fn a_token_is_good_once() {
    let mut victim = Victim::new();
    let (conn, Answer { token, .. }) = victim.promise();
    let first = victim.dial(&encode_preamble(&token));
    for _ in 0..200 {
        victim.ring.step();
    }
    let mut second = victim.dial(&encode_preamble(&token));
    victim.is_hung_up(&mut second);
    assert!(!victim.ring.seen[0].contains(&Event::Closed { conn }), "the first one suffered");
    drop(first);
    victim.ring.closed(0, conn);
    victim.prove_unharmed();
}

#[test]
fn a_promised_connection_that_never_comes_is_given_up() {
    let mut victim = Victim::new();
    let (conn, _) = victim.promise();
    victim.ring.closed(0, conn);
    victim.prove_unharmed();
}

#[test]
fn a_peer_that_cannot_be_reached_flushes_the_work() {
    let mut victim = Victim::new();
    let (near, _) = victim.ring.nodes[1].offer().unwrap();
    let answer = Answer { generation: 1, token: [1; 16] }.encode();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    victim.ring.nodes[1].finish(near, &answer, nobody).unwrap();
    let link = Link { near, ..victim.honest };
    victim.ring.write(&link, 5, &[seg(0, 0, 8)]).unwrap();
    assert_eq!(victim.ring.complete(1, 1), [(near, 5, Err(WorkError::Flushed))]);
    victim.ring.closed(1, near);
    victim.prove_unharmed();
}

/// An initiator whose responder is the attacker: it posts a read and gets `answer` back.
fn answered_with(answer: impl FnOnce(u64) -> Vec<u8>) {
    let mut victim = Victim::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let token: Token = [3; 16];
    let (near, _) = victim.ring.nodes[0].offer().unwrap();
    let promise = Answer { generation: 9, token }.encode();
    victim.ring.nodes[0].finish(near, &promise, listener.local_addr().unwrap()).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let link = Link { from: 0, near, ..victim.honest };
    victim.ring.write(&link, 1, &[seg(0, 0, 64)]).unwrap();
    victim.ring.read(&link, 2, &[seg(0, 0, 64)]).unwrap();
    for _ in 0..200 {
        victim.ring.step();
    }
    socket.write_all(&answer(9)).unwrap();
    let done = victim.ring.complete(0, 2);
    assert_eq!(done[1].2, Err(WorkError::Flushed));
    victim.ring.closed(0, near);
    victim.prove_unharmed();
}

#[test]
fn a_responder_that_answers_what_was_not_asked_is_left() {
    let answer = |kind, generation, sequence, length| {
        encoded(&Header { length, ..Header::answer(kind, generation, sequence) })
    };
    answered_with(|generation| answer(FrameKind::Ack, generation, 3, 0));
    answered_with(|generation| answer(FrameKind::Ack, generation, 0, 0));
    answered_with(|generation| answer(FrameKind::Ack, generation, u64::MAX, 0));
    answered_with(|generation| answer(FrameKind::Ack, generation + 1, 1, 0));
    answered_with(|generation| answer(FrameKind::Ack, generation, 2, 0));
    answered_with(|generation| answer(FrameKind::ReadData, generation, 1, 64));
    answered_with(|generation| answer(FrameKind::ReadData, generation, 2, 65));
    answered_with(|generation| answer(FrameKind::Write, generation, 1, 1));
    answered_with(|_| vec![0x5a; 500]);
}

fn headers() -> impl Strategy<Value = Header> {
    let status = prop_oneof![
        Just(Ok(())),
        Just(Err(WorkError::Fenced)),
        Just(Err(WorkError::BadKey)),
        Just(Err(WorkError::RemoteBounds))
    ];
    (0..4u8, status, any::<[u64; 5]>(), 1..=SEGMENTS_MAX as u16, 1..=READ_CHUNK, any::<u64>())
        .prop_map(|(kind, status, words, segments, length, table_sum)| {
            let [sequence, generation, key, epoch, view] = words;
            let stamp = Stamp { epoch, view };
            let (kind, segments, status, length) = match kind {
                0 => (FrameKind::Write, segments, Ok(()), length),
                1 => (FrameKind::Read, segments, Ok(()), length),
                2 => (FrameKind::Ack, 0, status, 0),
                _ => (FrameKind::ReadData, 0, Ok(()), length),
            };
            Header { kind, segments, status, sequence, generation, key, stamp, length, table_sum }
        })
}

proptest! {
    #[test]
    fn a_header_comes_back_as_it_was_written(header in headers()) {
        prop_assert_eq!(Header::decode(encoded(&header)[..].first_chunk().unwrap()), Ok(header));
    }

    #[test]
    fn a_header_with_any_bit_changed_is_none(header in headers(), bit in 0..HEADER_LEN * 8) {
        let mut bytes = encoded(&header);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Header::decode(bytes[..].first_chunk().unwrap()).is_err());
    }

    #[test]
    fn decoding_any_bytes_does_not_panic(
        bytes in any::<[u8; HEADER_LEN]>(),
        header in headers(),
        table in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(Header::decode(&bytes).is_err());
        prop_assert!(decode_table(&header, &table, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_table_comes_back_as_it_was_written(
        pairs in prop::collection::vec((0..1u64 << 40, 1..1u64 << 40), 1..=SEGMENTS_MAX)
    ) {
        let segments: Vec<_> =
            pairs.iter().map(|&(offset, len)| WireSegment { offset, len }).collect();
        let bytes = request(&Header::answer(FrameKind::Read, 1, 1), &segments);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        let mut table = Vec::new();
        prop_assert_eq!(decode_table(&header, &bytes[HEADER_LEN..], &mut table), Ok(()));
        prop_assert_eq!(table, segments);
    }
}

#[test]
fn any_bytes_at_all_cost_no_more_than_their_connection() {
    let bytes = prop::collection::vec(any::<u8>(), 80..3000);
    proptest!(ProptestConfig::with_cases(12), |(bytes in bytes, keep in 0..80usize)| {
        Victim::refuses(|attack| {
            // Some begin like a real frame.
            let mut all = attack.write(|_| {}, 64)[..keep].to_vec();
            all.extend(bytes);
            all
        });
    });
}
