//! Seeded bugs, for the model checker to find: what is not found when it is there is not looked for.

use alloc::vec::Vec;

use crate::event::{Effect, Event};
use crate::refusal::Refusal;
use crate::state::State;
use crate::step::Machine;

/// Which bugs are in. None, outside of tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A replacing patch gets no nops for the functions of patches that are disabled when it is loaded.
    pub forget_nops_of_disabled: bool,
    /// A reversal leaves nobody pending, as if the threads that had switched were back already.
    pub forget_pending_on_reverse: bool,
    /// What the target itself has done for a library that has gone is done once more.
    pub do_again_what_was_done: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        forget_nops_of_disabled: false,
        forget_pending_on_reverse: false,
        do_again_what_was_done: false,
    };
}

/// [`crate::step`], with bugs.
///
/// # Errors
/// As [`crate::step`].
#[doc(hidden)]
pub fn step_with_faults(
    state: &State,
    event: Event,
    faults: Faults,
) -> Result<(State, Vec<Effect>), Refusal> {
    Machine::run(state.clone(), event, faults)
}
