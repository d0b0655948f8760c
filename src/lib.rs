//! Checkpoints in shared memory that survive the node.
pub mod commit;
#[cfg(feature = "server")]
pub mod membership;
pub mod handover;
pub mod name;
pub mod region;
pub mod transport;
