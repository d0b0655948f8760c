//! Heads and segment tables of TCP frames, offers, answers and preambles.
//!
//! What decodes encodes to the same bytes; counts and lengths keep their limits; the segments' sum
//! is the frame's length and none wraps around.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringkeep::transport::{
    SEGMENTS_MAX,
    tcp::{
        frame::{
            HEAD_LEN_MAX, HEADER_LEN, Header, MAGIC, READ_CHUNK, SEGMENT_LEN, VERSION,
            decode_table, encode_request,
        },
        handshake::{
            ANSWER_LEN, Answer, PREAMBLE_LEN, decode_preamble, encode_offer, encode_preamble,
            is_offer,
        },
    },
};
use ringkeep_fuzz::sum;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// Magic, version and checksums are made right.
    seal: bool,
    /// Count and length are made those of the table.
    fit: bool,
    head: [u8; HEADER_LEN],
    rest: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    frame(&input);
    handshake(&input);
});

fn frame(input: &Input<'_>) {
    let Input { seal, fit, mut head, rest: table } = *input;
    let entries = table.chunks_exact(SEGMENT_LEN);
    let lens = entries.map(|e| u64::from_le_bytes(*e[8..].first_chunk().expect("8 bytes")));
    if fit {
        head[6..8].copy_from_slice(&((table.len() / SEGMENT_LEN) as u16).to_le_bytes());
        let total = lens.clone().fold(0, u64::wrapping_add);
        head[56..64].copy_from_slice(&total.to_le_bytes());
    }
    if seal {
        head[..4].copy_from_slice(&MAGIC);
        head[4] = VERSION;
        head[64..72].copy_from_slice(&sum(table));
        let head_sum = sum(&head[..72]);
        head[72..].copy_from_slice(&head_sum);
    }
    let Ok(header) = Header::decode(&head) else { return };
    let mut again = [0; HEADER_LEN];
    header.encode(&mut again);
    assert_eq!(again, head);
    assert!(usize::from(header.segments) <= SEGMENTS_MAX);
    assert!(HEADER_LEN + header.table_len() <= HEAD_LEN_MAX);
    if header.segments == 0 {
        assert!(header.length <= READ_CHUNK);
    }
    let mut segments = Vec::new();
    if decode_table(&header, table, &mut segments).is_err() || segments.is_empty() {
        return;
    }
    assert_eq!(segments.len(), usize::from(header.segments));
    let mut total = 0u64;
    for segment in &segments {
        assert!(segment.len > 0 && segment.offset.checked_add(segment.len).is_some());
        total = total.checked_add(segment.len).expect("the sum fits");
    }
    assert_eq!(total, header.length);
    let mut again = vec![0; HEADER_LEN + table.len()];
    let end = encode_request(&header, segments.iter().copied(), &mut again);
    assert_eq!(end, again.len());
    assert!(again[..HEADER_LEN] == head && again[HEADER_LEN..] == *table);
}

fn handshake(input: &Input<'_>) {
    let mut bytes = input.rest.to_vec();
    if input.seal && bytes.len() >= 16 {
        let (body, end) = bytes.split_at_mut(input.rest.len() - 8);
        end.copy_from_slice(&sum(body));
    }
    if let Some(answer) = Answer::decode(&bytes) {
        assert!(bytes.len() == ANSWER_LEN && answer.encode() == *bytes);
    }
    assert_eq!(is_offer(&bytes), bytes == encode_offer());
    if let Some(bytes) = bytes.first_chunk::<PREAMBLE_LEN>()
        && let Some(token) = decode_preamble(bytes)
    {
        assert_eq!(encode_preamble(&token)[4..], bytes[..]);
    }
    let token = *input.head.first_chunk().expect("16 bytes");
    let preamble = encode_preamble(&token);
    assert_eq!(decode_preamble(preamble[4..].first_chunk().expect("as long")), Some(token));
}
