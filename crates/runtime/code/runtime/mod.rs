//! What patches call. Everything is reached by raw pointers and wrapping arithmetic: nothing can panic, and nothing is
//! called that is not in here.
#![allow(unsafe_code)]
#![cfg_attr(test, allow(dead_code, reason = "patches call what the tests do not"))]

mod format;
mod heap;
mod log;
mod shadow;
mod state;
#[cfg(test)]
mod tests;
