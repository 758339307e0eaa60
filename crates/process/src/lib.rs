//! A live target process: what it is made of, and how it is changed.
#![deny(unsafe_code)]

pub mod arena;
pub mod batch;
pub mod call_area;
pub mod callbacks;
pub mod cave;
pub mod cfi;
pub mod check;
pub mod debug_file;
pub mod demangle;
pub mod document;
pub mod eh_frame;
pub mod elf_file;
pub mod entry;
pub mod function;
pub mod interrupted;
pub mod limits;
pub mod lock;
pub mod log_ring;
pub mod mapping;
pub mod maps;
pub mod memory;
pub mod objects;
pub mod pending;
pub mod place;
pub mod plan;
pub mod priority;
pub mod remote;
pub mod report;
pub mod requests;
pub mod resolve;
pub mod rules;
pub mod safe_point;
pub mod scan;
pub mod scope;
pub mod session;
pub mod sharing;
pub mod site;
pub mod stacks;
pub mod stat;
pub mod state_area;
pub mod status;
pub mod stop;
pub mod stub;
pub mod suspended;
pub mod sweep;
pub mod switch;
pub mod symbols;
pub mod target;
pub mod threads;
pub mod thunk;
pub mod trampoline;
pub mod unwind;
pub mod watch;

mod census;
mod contexts;
mod describe;
mod dynamic;
mod exit_path;
mod ifunc;
mod loader_list;
mod look;
mod object_file;
mod padding;
mod pages;
mod parts;
mod ptrace;
mod rescue;
mod seccomp;
mod symbol_error;
mod symbol_set;
mod tls;
mod way_in;
mod xstate;

mod error;
mod ids;

pub use error::Error;
pub use ids::{Pid, Tid};
pub use target::Target;
pub use ugraft_image::{FileOffset, LinkAddr, RemoteAddr};
pub use way_in::resolvers;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = core::result::Result<T, E>;
