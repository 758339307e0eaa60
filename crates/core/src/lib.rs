//! The semantics of live patching as a pure state machine.
//!
//! [`step`] takes what is known of a target ([`State`]) and one thing that happened or is asked for ([`Event`]), and
//! returns the state after it and what has to be done in the target ([`Effect`]), or the reason why not ([`Refusal`]).
//! There is no clock, no I/O and no unsafe code here, so that the very same function is run by the tool on live
//! processes and explored exhaustively by the model checker in `tests/model.rs`.
//!
//! The words are those of the Linux kernel's livepatch: patches are made of objects and funcs, a transition moves one
//! thread at a time, `replace` lets one patch take the place of all earlier ones. `docs/semantics.md` tells the rules on
//! one page, and where they differ from the kernel's.
//!
//! Two invariants hold between any two steps:
//! - at most one patch is in transition, in one direction ([`State::transition`]);
//! - nothing is left to do but what [`State::due`] names: a callback to run, a transition to start, threads to look at.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod event;
mod faults;
mod funcs;
mod log;
mod objects;
mod order;
mod patch;
mod refusal;
mod replace;
mod request;
mod state;
mod status;
mod step;
mod transition;
mod work;

pub use event::{Call, CallbackKind, Effect, Event, Finish, Level, Misfit, MisfitStage, ObjectPhase};
#[doc(hidden)]
pub use faults::{Faults, step_with_faults};
pub use funcs::{Change, Implementation};
pub use log::MAIN_OBJECT;
pub use patch::{Callbacks, DescError, FuncDesc, FuncId, MAX_PATCH_NAME, ObjectDesc, PatchDesc, StateDesc};
pub use refusal::{AlreadySo, Errno, Refusal};
pub use state::{
    Corrupt, Direction, Due, FORMAT, Life, Patch, PatchId, PatchObject, Phase, State, ThreadId, Transition,
};
pub use status::{FuncStatus, ObjectStatus, PatchStatus};
pub use step::step;
