//! The checkpoint server: a data plane thread and a control plane.
pub mod data_plane;
pub mod metrics;
pub mod peers;
pub mod state_file;
