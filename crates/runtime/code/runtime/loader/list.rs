//! The loader's list of libraries (`<link.h>`), which it does not change while its thread is in the hook.

use crate::expected::Object;

/// `r_debug.r_state`: the list is whole.
const CONSISTENT: u32 = 0;
/// Libraries are about to be removed from it.
const DELETE: u32 = 2;
/// Most namespaces and libraries that are looked at: a list that is longer is broken.
const NAMESPACES: usize = 64;
const LIBRARIES: usize = 16384;

/// `struct r_debug` of `<link.h>`.
#[repr(C)]
pub struct Debug {
    pub version: u32,
    pub map: *const LinkMap,
    pub brk: u64,
    pub state: u32,
    pub base: u64,
    /// From version 2 on.
    pub next: *const Debug,
}

/// `struct link_map`.
#[repr(C)]
pub struct LinkMap {
    pub bias: u64,
    pub name: *const u8,
    pub dynamic: u64,
    pub next: *const LinkMap,
}

/// Calls `visit` for each library but the program itself, as long as it says so.
pub unsafe fn each(mut debug: *const Debug, mut visit: impl FnMut(*const LinkMap) -> bool) {
    // SAFETY: as for `look`.
    unsafe {
        for space in 0..NAMESPACES {
            if debug.is_null() || (*debug).version == 0 {
                return;
            }
            let mut map = (*debug).map;
            for i in 0..LIBRARIES {
                if map.is_null() {
                    break;
                }
                if (space != 0 || i != 0) && !visit(map) {
                    return;
                }
                map = (*map).next;
            }
            if (*debug).version < 2 {
                return;
            }
            debug = (*debug).next;
        }
    }
}

/// What the loader is doing with its lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Nothing: all are whole.
    Nothing,
    /// It is about to remove libraries from one, and has run their destructors.
    Removing,
    /// It is adding libraries to one.
    Adding,
}

pub unsafe fn doing(mut debug: *const Debug) -> Doing {
    // SAFETY: as for `look`.
    unsafe {
        for _ in 0..NAMESPACES {
            if debug.is_null() {
                break;
            }
            match (*debug).state {
                CONSISTENT => {}
                DELETE => return Doing::Removing,
                _ => return Doing::Adding,
            }
            if (*debug).version < 2 {
                break;
            }
            debug = (*debug).next;
        }
    }
    Doing::Nothing
}

pub unsafe fn is_listed(debug: *const Debug, object: &Object) -> bool {
    let mut found = false;
    // SAFETY: as for `look`.
    unsafe {
        each(debug, |map| {
            found |= map as u64 == object.link_map && (*map).bias == object.bias;
            !found
        });
    }
    found
}
