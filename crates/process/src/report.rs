//! What is told of a target to whoever asked.

pub mod check;
pub mod status;
pub mod symbol_file;
pub(crate) mod view;
