//! Letting go of a library.
//!
//! The tool runs callbacks for a library, too, when a patch is enabled or disabled. Before it does so it says so in the patch's use, and
//! then looks whether anybody is in the hook or the library has gone; the hook says that somebody is in it, and then reads the
//! use. So one of the two sees the other. If it is the tool, it takes its word back and waits; if it is the hook, it waits for the callback.

use super::callbacks::{GOING, POST_UNPATCH, PRE_UNPATCH, call};
use super::message::{NOTICE, OBJECT, PATCH, log};
use super::table::Table;
use super::{LOADER, TURN, changed, finalizers, is_guarded, references};
use crate::expected::{AWAY, CALLED, HERE, LEFT, Loader, Object, Use};
use crate::runtime::syscall;
use core::sync::atomic::{AtomicU64, Ordering};

/// For how many turns a callback that the tool runs is waited for, a second in all: one that needs the loader, which this thread keeps, does not
/// end before that.
const WAITS: usize = 4000;

/// Lets go of the libraries that the loader is about to remove, in the order in which it has run their destructors. `frame` is where the
/// return address of its call of the hook lies.
pub unsafe fn go(table: Table, frame: u64) {
    // SAFETY: the table is the tool's, and the libraries are mapped.
    unsafe {
        let objects = table.objects();
        loop {
            let mut first: Option<(u64, *mut Object)> = None;
            for i in 0..objects.count {
                let object: *mut Object = table.entry(objects, i);
                let called = || finalizers::called_within((*object).link_map, (*object).bias, frame);
                if (*object).state == HERE
                    && let Some(order) = called()
                    && first.is_none_or(|(other, _)| order < other)
                {
                    first = Some((order, object));
                }
            }
            let Some((_, object)) = first else { return };
            release_all(table, object);
            // Its code leads to the patches until it is gone.
            (*object).state = LEFT;
        }
    }
}

/// Lets go of a library for all patches.
unsafe fn release_all(table: Table, object: *mut Object) {
    // SAFETY: as for `go`.
    unsafe {
        for i in 0..(*object).uses.count {
            release(table, object, table.entry((*object).uses, i), GOING);
        }
    }
}

/// Forgets a library that is gone, and lets go of it where that was not to be foreseen.
pub unsafe fn went(loader: *mut Loader, table: Table, object: *mut Object) {
    // SAFETY: the table is the tool's.
    unsafe {
        changed(loader);
        release_all(table, object);
        give_back(object);
        (*object).state = AWAY;
        (*object).link_map = 0;
    }
}

/// Lets go of a library for a patch; one that is in transition is between its `pre_` and `post_` callbacks. Nobody runs the library any more, so its code stays as it is.
pub unsafe fn release(table: Table, object: *mut Object, one: *mut Use, state: u64) {
    // SAFETY: as for `went`.
    unsafe {
        if (*one).applied == 0 {
            return;
        }
        if !is_between(one) && (*one).moving == 0 {
            call(table, object, one, PRE_UNPATCH, state);
        }
        log(table, object, one, NOTICE, &[b"reverting patch ", PATCH, b" on unloading module ", OBJECT]);
        (*one).applied = 0;
        (*one).between = 0;
        call(table, object, one, POST_UNPATCH, state);
        references::unbind(table, object, one);
    }
}

/// Whether a patch's last callback for a library was a `pre_` one. Waits for the end of one that the tool has run.
unsafe fn is_between(one: *mut Use) -> bool {
    // SAFETY: the use lies in the tool's table. The tool writes this word while the hook is at work, nobody else does.
    let (between, guarded) =
        unsafe { (AtomicU64::from_ptr(&raw mut (*one).between), is_guarded(LOADER.0.get())) };
    for _ in 0..WAITS {
        // Pairs with the tool's write, and with the hook's own of its owner before: one of the two sees the other's.
        match between.load(Ordering::SeqCst) {
            CALLED if !guarded => syscall::sleep(TURN),
            other => return other != 0,
        }
    }
    true
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
