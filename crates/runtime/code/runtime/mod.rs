//! What patches call. Everything is reached by raw pointers and wrapping arithmetic: nothing can panic, and nothing is
//! called that is not in here.
#![allow(unsafe_code)]
#![cfg_attr(test, allow(dead_code, reason = "patches call what the tests do not"))]

mod chunk;
pub mod decode;
pub mod elf;
pub mod entry;
pub mod format;
mod heap;
mod loader;
mod lock;
mod log;
pub mod redirect;
pub mod refusal;
mod shadow;
mod state;
pub mod symbols;
pub mod syscall;
#[cfg(test)]
mod tests;
