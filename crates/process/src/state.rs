//! The truth about the target, kept inside it.

pub mod document;
pub mod log_ring;
pub mod pieces;
pub mod state_area;
