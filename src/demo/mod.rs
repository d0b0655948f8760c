//! A ring of real servers on this machine, a small real service, and the story of both.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`ring`] | starts, kills and watches server processes; also used by tests and the bench |
//! | [`index`] | what the service does: an index of a directory tree |
//! | [`service`] | the service's process: indexes, commits, says so |
//! | [`story`] | kills the service's node in the middle and compares the ends |
//! | [`drawing`] | the ring as a picture |

pub mod drawing;
pub mod index;
pub mod ring;
pub mod service;
pub mod story;
