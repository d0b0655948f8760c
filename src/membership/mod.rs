//! Who is in the ring: one view for all, agreed in one round.
//!
//! Everything here is pure. [`Membership`] is one node's part: it is told what happened and what
//! time it is, and says what to send, to store and to install. It owns no socket, clock or thread.
//!
//! # How a view follows another
//!
//! A [`View`] is numbered and names its *voters*. View `n + 1` is one value, decided by the voters
//! of view `n`:
//!
//! ```text
//!  proposer        voters of view n
//!     │── Propose ──▶│   vote for one value, store the vote, then:
//!     │◀──── Ack ────│
//!     │  a fast quorum of votes has decided
//!     │── Install ──▶│   and to everybody who shows up with an older view, for ever
//! ```
//!
//! If different values are proposed at the same time, or a proposer dies half-way, a second ballot
//! (`Prepare`, `Promise`, `Accept`, `Accepted`) settles the number: its coordinator asks a majority
//! what it voted for, and [`chooser`] tells which value may have been decided already.
//!
//! What is voted on is a [`Change`]; everybody who has the view before makes the next one of it.
//!
//! The rules carry the names V1 to V5 where they are implemented:
//!
//! | rule | where |
//! | --- | --- |
//! | V1 vote for your own value first, propose only what you may vote for | [`ballot`] |
//! | V2 when a voter acknowledges | [`ballot`] |
//! | V3 only an unbound proposer declares, on a fast quorum | [`instance`], [`quorum`] |
//! | V4 what a slow ballot may choose | [`chooser`] |
//! | V5 no vote is ever forgotten | [`Durable`] |
//!
//! The failure detector may be wrong at any time: that costs a rejoin, never agreement. So the code
//! is in two storeys: an [`Instance`](instance::Instance) decides one view number and knows no time;
//! the machine around it decides when to try.

pub mod ballot;
pub mod change;
pub mod chooser;
mod config;
mod detector;
pub mod holders;
pub mod instance;
mod machine;
mod message;
mod order;
pub mod quorum;
mod requests;
mod rounds;
mod view;

pub use ballot::Durable;
pub use change::{Change, ChangeError};
pub use config::{Config, Time};
pub use detector::{Finding, Reason};
pub use holders::{HoldingRun, OwnerHolders};
pub use machine::{Event, Membership, Output, ResumeError};
pub use message::{Beat, Body, Confirmation, Departure, JoinRefusal, Message, Peer, Refusal};
pub use view::{Member, NodeId, View};

/// Most members of a ring.
pub const MEMBERS_MAX: usize = 4096;
/// Most owners whose holders a view remembers, members and those that left unsettled.
pub const OWNERS_MAX: usize = 2 * MEMBERS_MAX;
/// Most nodes remembered that left for good.
pub const DEPARTED_MAX: usize = MEMBERS_MAX;
/// Most copies that a node may want of what it owns.
pub const MIRRORS_MAX: u8 = 8;
/// Voters never fall below this number while that many exist.
pub const VOTERS_MIN: usize = 3;
