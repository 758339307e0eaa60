//! Letting go of a library.

use super::callbacks::{GOING, POST_UNPATCH, PRE_UNPATCH, call};
use super::message::{NOTICE, OBJECT, PATCH, log};
use super::table::Table;
use crate::expected::{AWAY, Loader, Object, Use};
use crate::runtime::syscall;
use core::sync::atomic::{AtomicU64, Ordering};

/// Lets go of a library that is gone.
pub unsafe fn went(loader: *mut Loader, table: Table, object: *mut Object) {
    // SAFETY: the table is the tool's.
    unsafe {
        let changes = (*loader).changes.wrapping_add(1);
        AtomicU64::from_ptr(&raw mut (*loader).changes).store(changes, Ordering::Relaxed);
        for i in 0..(*object).uses.count {
            release(table, object, table.entry((*object).uses, i), GOING);
        }
        give_back(object);
        (*object).state = AWAY;
        (*object).link_map = 0;
    }
}

/// Lets go of a library for a patch. Nobody runs the library any more, so its code stays as it is.
pub unsafe fn release(table: Table, object: *mut Object, one: *mut Use, state: u64) {
    // SAFETY: as for `went`.
    unsafe {
        if (*one).applied == 0 {
            return;
        }
        call(table, object, one, PRE_UNPATCH, state);
        log(table, object, one, NOTICE, &[b"reverting patch ", PATCH, b" on unloading module ", OBJECT]);
        (*one).applied = 0;
        call(table, object, one, POST_UNPATCH, state);
    }
}

/// Unmaps what was mapped near a library.
pub unsafe fn give_back(object: *mut Object) {
    // SAFETY: nothing leads there but the library's code, which nobody runs any more.
    unsafe {
        let [start, len] = (*object).near;
        if len != 0 {
            (*object).near = [0; 2];
            syscall::unmap(start, len as usize);
        }
    }
}
