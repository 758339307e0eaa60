//! A live target process: what it is made of, and how it is changed.
#![deny(unsafe_code)]

pub mod answers;
pub mod code;
pub mod heap;
pub mod limits;
pub mod objects;
pub mod remote;
pub mod report;
pub mod session;
pub mod stacks;
pub mod state;
pub mod target;
pub mod threads;

mod canary;
mod clock;
mod error;
mod ids;

pub use error::Error;
pub use ids::{Pid, Tid};
pub use stacks::way_in::resolvers;
pub use target::Target;
pub use ugraft_image::{FileOffset, LinkAddr, RemoteAddr};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = core::result::Result<T, E>;
