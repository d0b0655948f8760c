//! What two nodes tell each other over the control connection before their devices talk.
//!
//! ```text
//!   offer    "RKVERB" version ┃ path MTU ┃ reads
//!   answer   "RKVERB" version ┃ path MTU ┃ reads ┃ token (16) ┃ port (2, LE) ┃ address (16)
//! ```
//!
//! The token travels as private data of the connection request, so a stranger who finds the
//! listener gets nothing from it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Shown by whoever was told over the control connection.
pub(super) type Token = [u8; 16];

const MAGIC: &[u8; 6] = b"RKVERB";
const VERSION: u8 = 1;
const OFFER_LEN: usize = 9;
const ANSWER_LEN: usize = OFFER_LEN + 16 + 2 + 16;

/// What one side's device can do, of which both then do the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Largest packet that its port takes, as `ibv_mtu` numbers them.
    pub(super) mtu: u8,
    /// Reads under way at once: of the initiator those it asks, of the responder those it answers.
    pub(super) reads: u8,
}

impl Abilities {
    /// What both can do.
    pub(super) fn common(self, other: Self) -> Self {
        Self { mtu: self.mtu.min(other.mtu), reads: self.reads.min(other.reads) }
    }
}

/// The initiator's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer(pub(super) Abilities);

/// The responder's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// As in the offer.
    pub(super) abilities: Abilities,
    /// To be shown in the connection request.
    pub(super) token: Token,
    /// Where its device takes connections.
    pub(super) address: SocketAddr,
}

impl Offer {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, self.0.mtu, self.0.reads]);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        head(bytes, OFFER_LEN).map(Self)
    }
}

impl Answer {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Offer(self.abilities).encode();
        bytes.extend(self.token);
        bytes.extend(self.address.port().to_le_bytes());
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.extend(ip.octets());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let abilities = head(bytes, ANSWER_LEN)?;
        let (token, rest) = bytes[OFFER_LEN..].split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let ip = Ipv6Addr::from(*rest.first_chunk::<16>()?);
        let address = SocketAddr::new(ip.to_canonical(), u16::from_le_bytes(*port));
        Some(Self { abilities, token: *token, address })
    }
}

/// What stands behind a right head.
fn head(bytes: &[u8], len: usize) -> Option<Abilities> {
    let right = bytes.len() == len && bytes.starts_with(MAGIC) && bytes[6] == VERSION;
    let abilities = right.then(|| Abilities { mtu: bytes[7], reads: bytes[8] });
    abilities.filter(|a| (1..=5).contains(&a.mtu) && a.reads > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_come_back_as_they_were() {
        let offer = Offer(Abilities { mtu: 3, reads: 16 });
        assert_eq!(Offer::decode(&offer.encode()), Some(offer));
        for address in ["10.9.0.1:4711", "[fd00::7]:1"] {
            let abilities = Abilities { mtu: 5, reads: 1 };
            let answer = Answer { abilities, token: [7; 16], address: address.parse().unwrap() };
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let address = "10.9.0.1:4711".parse().unwrap();
        let abilities = Abilities { mtu: 3, reads: 16 };
        let good = Answer { abilities, token: [7; 16], address }.encode();
        for len in 0..good.len() {
            assert_eq!(Answer::decode(&good[..len]), None);
        }
        for (at, value) in [(0, b'X'), (6, 2), (7, 0), (7, 6), (8, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Answer::decode(&bad), None, "byte {at} = {value}");
        }
        assert_eq!(Offer::decode(&good), None);
    }
}
