//! Checkpoints in shared memory that survive the node.
//!
//! A service's state lies twice in memory: in a region of shared memory on the service's own node,
//! and, by one-sided write, on the node before it in a ring of checkpoint servers. The modules
//! stand in the order in which a checkpoint's bytes travel:
//!
//! | module | what it does | pure |
//! | --- | --- | --- |
//! | [`client`] | what services use: open, write, commit, read back | |
//! | [`handover`] | two words and a ring of memory between a service and its server | |
//! | [`region`] | the shared memory of one checkpoint: layout, mapping, files, versions in slots | |
//! | [`commit`] | which slot, what is stale in it, the record that makes a version exist | yes |
//! | [`transport`] | one-sided writes and reads into another node's memory: one trait | |
//! | [`mirror`] | which version goes where, and when it counts as `mirrored` | yes |
//! | [`membership`] | who is in the ring, decided in one round | yes |
//! | [`recovery`] | which copy of a dead owner's checkpoint is the newest valid one | yes |
//! | [`server`] | puts them together: a data plane thread and a control plane | |
//!
//! Pure modules take what happened and say what to do; they contain no socket, clock, thread,
//! environment or `unsafe`. `docs/architecture.md` is the longer story.

pub mod client;
pub mod handover;
pub mod region;

pub mod commit;
pub mod transport;

pub mod mirror;

#[cfg(feature = "server")]
pub mod membership;

pub mod recovery;

#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "server")]
pub mod cluster_key;
pub mod name;
pub mod paths;
mod pause;
pub mod protocol;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod demo;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod doctor;

pub use client::{Checkpoint, Client, Durability, OpenError, Options};
pub use name::Name;
