//! The head of a TCP frame: written by the one who posts, read by the one who places.

use std::hint::black_box;

use ringkeep::transport::{
    Stamp,
    tcp::frame::{
        FrameKind, HEAD_LEN_MAX, HEADER_LEN, Header, WireSegment, decode_table, encode_request,
    },
};

use super::Path;

/// A request there, and the acknowledgement back. No payload, no socket.
pub(crate) struct Exchange {
    segments: Vec<WireSegment>,
    head: Vec<u8>,
    found: Vec<WireSegment>,
    sequence: u64,
}

impl Exchange {
    /// Of a request with so many segments.
    pub(crate) fn new(segments: usize) -> Self {
        let segments = (0..segments as u64).map(|at| WireSegment { offset: at << 12, len: 64 });
        let segments: Vec<_> = segments.collect();
        let found = Vec::with_capacity(segments.len());
        Self { segments, head: vec![0; HEAD_LEN_MAX], found, sequence: 0 }
    }
}

impl Path for Exchange {
    fn step(&mut self) {
        self.sequence += 1;
        let stamp = Stamp { epoch: 3, view: 7 };
        let request =
            Header { key: 11, stamp, ..Header::answer(FrameKind::Write, 5, self.sequence) };
        let end = encode_request(&request, self.segments.iter().copied(), &mut self.head);
        let head = black_box(&self.head[..end]);
        let header = Header::decode(head.first_chunk().unwrap()).unwrap();
        decode_table(&header, &head[HEADER_LEN..], &mut self.found).unwrap();

        let mut answer = [0; HEADER_LEN];
        Header::answer(FrameKind::Ack, header.generation, header.sequence).encode(&mut answer);
        black_box(Header::decode(black_box(&answer)).unwrap());
    }

    fn settle(&mut self) {
        assert_eq!(self.found, self.segments);
    }
}
