//! What a patch of a running Linux process is written with, in Rust.
//!
//! A patch is a `no_std` program that cargo makes into one relocatable object (see `docs/patches-in-rust.md` of the project for the few
//! lines of the build script). [`livepatch!`] declares it: which functions of which object it replaces, its callbacks, states,
//! parameters.
//!
//! ```
//! # #![allow(dead_code)]
//! use ugraft_patch::{Errno, Object, Param, pr_info};
//!
//! static FACTOR: Param<i32> = Param::new(3);
//!
//! // The new function has the old one's calling convention and types.
//! extern "C" fn price(amount: i32) -> i32 {
//!     amount.wrapping_mul(FACTOR.get())
//! }
//!
//! fn pre_patch(_object: &Object) -> Result<(), Errno> {
//!     pr_info!("the factor is {}", FACTOR.get());
//!     if FACTOR.get() == 0 { Err(Errno::EINVAL) } else { Ok(()) }
//! }
//!
//! # macro_rules! livepatch { ($($all:tt)*) => {} }
//! livepatch! {
//!     name: "fix-price",
//!     params: { "factor" => FACTOR },
//!     objects: {
//!         exe => {
//!             pre_patch: pre_patch,
//!             // SAFETY: `price` is `int price(int)` in the program, too.
//!             unsafe funcs: { "price" => price },
//!         },
//!     },
//! }
//! ```
//!
//! All structures are those of `sdk/include/ugraft/livepatch.h`, member for member. There is no dependency, no allocator, no
//! `std`: what a patch calls is found in the target when it is loaded.
#![no_std]

mod declare;
mod errno;
mod layout;
mod log;
mod panic;
mod param;
mod shadow;

pub use errno::Errno;
pub use layout::{Callbacks, Func, Module, Object, ObjectState, Patch, State};
pub use log::{Level, log};
pub use panic::panic;
pub use param::{Param, ParamType, Text};
pub use shadow::Shadow;

#[doc(hidden)]
pub mod internal {
    //! What the macros need.

    pub use crate::layout::{InitFn, LAYOUT, ParamEntry, bytes};
    pub use core::ffi::c_int;
}
