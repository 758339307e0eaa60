//! The object file: the runtime, with what makes it a patch to the tool that links it.
#![no_std]

mod expected;
mod layout;
mod mark;
mod memory;
mod runtime;
