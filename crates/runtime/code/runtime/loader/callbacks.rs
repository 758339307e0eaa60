//! Callbacks of patches for a library that comes or goes, on the thread that loads or unloads it.

use super::table::Table;
use crate::expected::{Object, Use};
use crate::runtime::log::Shared;
use core::cell::UnsafeCell;

/// `struct module` of the header: the argument of a callback leads here.
#[repr(C)]
struct Module {
    state: u64,
    name: *const u8,
}

static MODULE: Shared<Module> = Shared(UnsafeCell::new(Module { state: 0, name: core::ptr::null() }));

/// `enum module_state` of the header.
pub const COMING: u64 = 1;
pub const GOING: u64 = 2;
/// Where `mod` lies in a `struct klp_object`.
const OBJECT_MOD: usize = 56;

/// The callbacks' places in [`Use::callbacks`].
pub const PRE_PATCH: usize = 0;
pub const POST_PATCH: usize = 1;
pub const PRE_UNPATCH: usize = 2;
pub const POST_UNPATCH: usize = 3;

/// Runs a callback, if there is one.
pub unsafe fn call(table: Table, object: *mut Object, one: *mut Use, which: usize, state: u64) -> i32 {
    // SAFETY: the tool writes addresses of the patch's functions and of its object, which is writable.
    unsafe {
        let function = (&raw const (*one).callbacks).cast::<u64>().add(which).read();
        if function == 0 {
            return 0;
        }
        let module = MODULE.0.get();
        (*module).state = state;
        // The tool ends texts with a zero.
        (*module).name = table.text((*object).name).as_ptr();
        let at = (*one).object as usize as *mut u8;
        at.add(OBJECT_MOD).cast::<*mut Module>().write(module);
        let function: unsafe extern "C" fn(*mut u8) -> i32 = core::mem::transmute(function as usize);
        let value = function(at);
        at.add(OBJECT_MOD).cast::<*mut Module>().write(core::ptr::null_mut());
        if which == PRE_PATCH { value } else { 0 }
    }
}
