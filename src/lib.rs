//! Checkpoints in shared memory that survive the node.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "server")]
pub mod cluster_key;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod demo;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod doctor;
pub mod membership;
pub mod name;
pub mod paths;
pub mod region;
pub mod transport;
