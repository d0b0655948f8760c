//! What the detector tells people: why it suspects, and what became of it.

use std::{fmt, time::Duration};

use crate::membership::NodeId;

/// Something that a person who reads the log wants to know. Each is told once, not per heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// This node does not hear a neighbour any more.
    Suspected {
        /// Whom.
        node: NodeId,
        /// How it came to that.
        why: Reason,
    },
    /// The suspect was heard again.
    Withdrawn {
        /// Whom this node suspected.
        node: NodeId,
        /// How long it had been silent.
        silence: Duration,
    },
    /// Another member says that it does not hear somebody.
    Accused {
        /// Whom.
        node: NodeId,
        /// Who says so.
        by: NodeId,
    },
    /// The ring went on without a member.
    Removed {
        /// Whom.
        node: NodeId,
        /// Who did not hear it, as far as this node knows.
        accusers: Vec<NodeId>,
        /// Whose proposals of this view it voted for; empty if it was told the result only.
        proposers: Vec<NodeId>,
    },
    /// A neighbour that was removed for its silence is heard again: it lives.
    RemovedByMistake {
        /// Whom.
        node: NodeId,
        /// How long it had been silent.
        silence: Duration,
    },
}

/// Why a neighbour is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was silent for longer than this node waits.
    Silent {
        /// How long.
        silence: Duration,
        /// How long this node waits for this neighbour at present.
        patience: Duration,
    },
    /// Nobody listens at its address, and it was silent for a while.
    Refused {
        /// How long.
        silence: Duration,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: &Duration| d.as_millis();
        match self {
            Self::Silent { silence, patience } => {
                write!(f, "silent for {} ms, waited for {} ms", ms(silence), ms(patience))
            }
            Self::Refused { silence } => {
                write!(f, "its server's port is closed, silent for {} ms", ms(silence))
            }
        }
    }
}
