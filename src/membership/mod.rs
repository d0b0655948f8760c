//! Who is in the ring.
