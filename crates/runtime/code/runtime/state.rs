//! States: what patches say of the system states that they have changed, as the kernel's `klp_get_state`.

use super::loader;
use super::log::Shared;
use crate::layout::{PATCHES_MAX, Patches};
use core::cell::UnsafeCell;
use core::ptr;

/// The patches that are enabled, oldest first, without the one in transition. The tool writes it while no callback runs.
#[cfg_attr(not(test), unsafe(export_name = "ugraft_patches"))]
pub static PATCHES: Shared<Patches> =
    Shared(UnsafeCell::new(Patches { count: 0, patches: [0; PATCHES_MAX] }));

/// `struct klp_state` of the header.
#[repr(C)]
pub struct State {
    id: u64,
    version: u32,
    data: *mut u8,
}

/// `struct klp_patch` of the header, as far as it is read here.
#[repr(C)]
pub struct Patch {
    module: usize,
    objects: usize,
    states: *mut State,
}

/// `struct klp_state *klp_get_state(struct klp_patch *patch, unsigned long id)`
///
/// # Safety
/// `patch` must be one.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn klp_get_state(patch: *const Patch, id: u64) -> *mut State {
    // SAFETY: the caller's promise; an entry with id 0 ends the states.
    unsafe {
        let mut state = (*patch).states;
        while !state.is_null() && (*state).id != 0 {
            if (*state).id == id {
                return state;
            }
            state = state.add(1);
        }
    }
    ptr::null_mut()
}

/// `struct klp_state *klp_get_prev_state(unsigned long id)`: of the newest patch that is enabled and has it. For callbacks.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn klp_get_prev_state(id: u64) -> *mut State {
    let patches = PATCHES.0.get();
    // SAFETY: the tool writes addresses of patches that are loaded, and not more than there is room for.
    unsafe {
        let patches = loader::older_patches().unwrap_or_else(|| {
            let count = (*patches).count.min(PATCHES_MAX as u64) as usize;
            core::slice::from_raw_parts((&raw const (*patches).patches).cast(), count)
        });
        for patch in patches.iter().rev() {
            let state = klp_get_state(*patch as usize as *const Patch, id);
            if !state.is_null() {
                return state;
            }
        }
    }
    ptr::null_mut()
}
