//! Checkpoints in shared memory that survive the node.
pub mod commit;
pub mod handover;
#[cfg(feature = "server")]
pub mod membership;
pub mod mirror;
pub mod name;
pub mod recovery;
pub mod region;
pub mod transport;
