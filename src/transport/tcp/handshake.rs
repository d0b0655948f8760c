//! How two ends find each other: the offer, the answer, and the preamble that opens a data
//! connection. Pure.
//!
//! ```text
//!  offer     magic 4 │ version 1 │ zero 3 │                                checksum 8   over the control connection
//!  answer    magic 4 │ version 1 │ zero 3 │ generation 8 │ token 16 │      checksum 8   over the control connection
//!  preamble  magic 4 │ version 1 │ zero 3 │                token 16 │      checksum 8   first bytes of the data connection
//! ```
//!
//! The token travels in the clear once, on the data connection, and is worth nothing afterwards:
//! it only tells which promised connection this socket is.

use twox_hash::XxHash3_64;

/// First bytes of a data connection, by which the listener tells it from a control connection.
pub const DATA_MAGIC: [u8; 4] = *b"rkd\x01";
/// Length of the preamble behind [`DATA_MAGIC`].
pub const PREAMBLE_LEN: usize = 28;
/// Length of an offer.
pub const OFFER_LEN: usize = 16;
/// Length of an answer.
pub const ANSWER_LEN: usize = 40;

const OFFER_MAGIC: [u8; 4] = *b"rko\x01";
const ANSWER_MAGIC: [u8; 4] = *b"rka\x01";
const VERSION: u8 = 1;

/// Which promised connection a socket is.
pub type Token = [u8; 16];

/// The responder's answer to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Stands in every frame of the connection.
    pub generation: u64,
    /// To be shown once.
    pub token: Token,
}

/// The offer says no more than which version speaks.
pub fn encode_offer() -> [u8; OFFER_LEN] {
    let mut bytes = [0; OFFER_LEN];
    seal(&mut bytes, OFFER_MAGIC);
    bytes
}

/// Whether `bytes` are an offer of this version.
pub fn is_offer(bytes: &[u8]) -> bool {
    bytes.len() == OFFER_LEN && is_sealed(bytes, OFFER_MAGIC)
}

impl Answer {
    /// Writes the answer down.
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token);
        seal(&mut bytes, ANSWER_MAGIC);
        bytes
    }

    /// Reads an answer; `None` when it is none of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != ANSWER_LEN || !is_sealed(bytes, ANSWER_MAGIC) {
            return None;
        }
        Some(Self {
            generation: u64::from_le_bytes(*bytes[8..].first_chunk()?),
            token: *bytes[16..].first_chunk()?,
        })
    }
}

/// [`DATA_MAGIC`] and the preamble, as the initiator sends them.
pub fn encode_preamble(token: &Token) -> [u8; 4 + PREAMBLE_LEN] {
    let mut bytes = [0; 4 + PREAMBLE_LEN];
    bytes[8..24].copy_from_slice(token);
    seal(&mut bytes, DATA_MAGIC);
    bytes
}

/// Reads what follows [`DATA_MAGIC`]; `None` when it is no preamble of this version.
pub fn decode_preamble(bytes: &[u8; PREAMBLE_LEN]) -> Option<Token> {
    let mut whole = [0; 4 + PREAMBLE_LEN];
    whole[..4].copy_from_slice(&DATA_MAGIC);
    whole[4..].copy_from_slice(bytes);
    if is_sealed(&whole, DATA_MAGIC) { whole[8..].first_chunk().copied() } else { None }
}

fn seal(bytes: &mut [u8], magic: [u8; 4]) {
    bytes[..4].copy_from_slice(&magic);
    bytes[4..8].copy_from_slice(&[VERSION, 0, 0, 0]);
    let end = bytes.len() - 8;
    let sum = XxHash3_64::oneshot(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

fn is_sealed(bytes: &[u8], magic: [u8; 4]) -> bool {
    let end = bytes.len() - 8;
    bytes[..4] == magic
        && bytes[4..8] == [VERSION, 0, 0, 0]
        && bytes[end..] == XxHash3_64::oneshot(&bytes[..end]).to_le_bytes()
}
