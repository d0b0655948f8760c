//! The demo's parts that need no server: the small real service whose state is checkpointed, and
//! the drawing of the ring.

pub mod drawing;
pub mod index;
