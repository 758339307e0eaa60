//! Patch files: raw view of any bytes -> verified patch -> image linked for its place in a process.
#![forbid(unsafe_code)]

mod addr;

pub use addr::{FileOffset, LinkAddr, RemoteAddr};
