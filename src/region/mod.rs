//! The shared memory that holds a checkpoint.
pub mod mapping;
