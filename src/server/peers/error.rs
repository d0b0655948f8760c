//! Why a connection between servers ended or never began.

use std::io;

use super::PROTOCOL_VERSION;
use crate::membership::NodeId;

/// Why a connection between servers ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No key here, and the other end is not on this machine.
    #[error("no cluster key is configured, so only loopback addresses are allowed")]
    LoopbackOnly,
    /// No key there, and this end is not on that machine.
    #[error("the peer has no cluster key and accepts loopback addresses only")]
    PeerLoopbackOnly,
    /// Not the same key at both ends; one may have none.
    #[error("the cluster key differs")]
    KeyDiffers,
    /// Another protocol version.
    #[error("the peer speaks version {peer} of the protocol, this server {PROTOCOL_VERSION}")]
    Version {
        /// What the other end speaks.
        peer: u16,
    },
    /// The first bytes belong to no protocol of this port.
    #[error("it speaks neither of this port's protocols")]
    UnknownProtocol,
    /// Another life or another node answers at this address.
    #[error("{found} answers there")]
    OtherLife {
        /// Who answers.
        found: NodeId,
    },
    /// This very server answers at this address.
    #[error("this is the server's own address")]
    Itself,
    /// Something that no correct peer sends.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The handshake's library refuses, or a frame does not open.
    #[error("not authentic: {0}")]
    Noise(snow::Error),
    /// The other end took too long.
    #[error("it took too long")]
    TimedOut,
    /// The other end closed.
    #[error("closed by the peer")]
    Closed,
    /// The system refused.
    #[error(transparent)]
    System(io::Error),
}

impl LinkError {
    /// Whether trying again is of no use until somebody changes a configuration.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::LoopbackOnly | Self::PeerLoopbackOnly | Self::KeyDiffers | Self::Version { .. }
        )
    }

    /// Whether nobody listens at the address.
    pub fn is_connection_refused(&self) -> bool {
        matches!(self, Self::System(e) if e.kind() == io::ErrorKind::ConnectionRefused)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::System(error),
        }
    }
}

impl From<tokio::time::error::Elapsed> for LinkError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::TimedOut
    }
}
