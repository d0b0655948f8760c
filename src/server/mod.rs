//! The checkpoint server: a data plane thread and a control plane.
pub mod data_plane;
