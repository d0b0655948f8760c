//! How long the TCP transport waits for what.

use std::time::Duration;

/// How long the transport is patient.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From [`crate::transport::Transport::finish`] to a socket that is connected.
    pub connect: Duration,
    /// From [`crate::transport::Transport::accept`] until the peer's data connection shows its token.
    pub accept: Duration,
    /// From a socket's hand-over until its preamble is complete.
    pub preamble: Duration,
    /// A peer whose kernel acknowledges nothing for so long is gone; also how long a refused
    /// sender may take to hang up.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            accept: Duration::from_secs(10),
            preamble: Duration::from_secs(2),
            silence: Duration::from_secs(4),
        }
    }
}
