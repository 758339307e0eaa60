//! What a function's first bytes allow, and the machine code that is written to redirect it.

pub mod entry;
pub mod function;
pub(crate) mod padding;
pub mod pending;
pub mod stub;
pub mod thunk;
pub mod trampoline;
