//! The hook in the dynamic loader: patches libraries as they come, before their constructors run, and lets go of them as they go.
//!
//! The loader calls an empty function of its own (`r_debug.r_brk`) around each change of its list of libraries, for debuggers. The
//! tool redirects that function to [`hook`] while a patch that is in effect names a library which can come or go. The hook
//! looks at the list when it is consistent, which is: after libraries were mapped and before they are relocated and their
//! constructors run; and after libraries were unmapped.
//!
//! It runs on the thread that is in dlopen or dlclose, which holds the loader's lock: so there is one thread in it at a time,
//! and it calls nothing that could take a lock, but for the callbacks of patches. What it knows and notes is in the
//! [table](crate::expected). The tool takes a target whose hook is busy for one that cannot be changed at the moment.
#![allow(clippy::result_large_err, reason = "there is no allocator, and a refusal is the end of a dlopen")]

mod callbacks;
mod coming;
mod finalizers;
mod going;
mod list;
mod message;
mod references;
mod seen;
mod sides;
mod table;

use super::log::Shared;
use super::syscall;
use crate::expected::{AWAY, Head, Loader, Object};
pub use callbacks::older_patches;
use coming::{Refused, came};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use going::{go, went};
use list::{Debug, Doing, doing, each, is_listed};
use seen::Seen;
use table::Table;

#[cfg_attr(not(test), unsafe(export_name = "ugraft_loader"))]
pub static LOADER: Shared<Loader> = Shared(UnsafeCell::new(Loader {
    table: 0,
    debug: 0,
    signal_error: 0,
    owner: 0,
    again: 0,
    changes: 0,
    hold: 0,
}));

/// Set in the owner's number where it must make no system calls of ours.
const GUARDED: u64 = 1 << 63;

/// How long a thread waits in one turn while it is held, in nanoseconds.
const TURN: u64 = 250_000;

// Called by the loader in place of its own function, which takes no arguments: the hook is told where its return address lies.
global_asm!(
    ".globl ugraft_loader_hook",
    ".type ugraft_loader_hook, @function",
    "ugraft_loader_hook:",
    ".cfi_startproc",
    "mov rdi, rsp",
    "jmp {hook}",
    ".cfi_endproc",
    ".size ugraft_loader_hook, . - ugraft_loader_hook",
    hook = sym hook,
);

/// The hook; `frame` is where the return address of the loader's call lies.
extern "C" fn hook(frame: u64) {
    let loader = LOADER.0.get();
    // SAFETY: the tool writes the words before it leads anybody here; the others are this thread's while it owns them.
    unsafe {
        let owner = AtomicU64::from_ptr(&raw mut (*loader).owner);
        let again = AtomicU64::from_ptr(&raw mut (*loader).again);
        // The tool leads nobody here in a process under seccomp. A filter that was set since may kill for a call: then none is
        // made but those that every dlopen makes.
        let me = if syscall::is_filtered() { syscall::thread_pointer() | GUARDED } else { syscall::gettid() };
        if owner.load(Ordering::Relaxed) == me {
            // From a callback or a signal handler: the outer one notes what there is then.
            again.store(1, Ordering::Relaxed);
            return;
        }
        // Another owner is the parent's thread of a fork: the loader's lock keeps out those that there are.
        owner.store(me, Ordering::SeqCst);
        again.store(0, Ordering::Relaxed);
        let refused = look(loader, frame, true);
        while refused.is_none() && again.swap(0, Ordering::Relaxed) != 0 {
            // What a callback or a handler has loaded is initialized by now, and in use.
            let _ = look(loader, frame, false);
        }
        // Pairs with the tool's look: what was noted before it.
        owner.store(0, Ordering::SeqCst);
        if me & GUARDED == 0
            && refused.is_none()
            && matches!(doing((*loader).debug as *const Debug), Doing::Nothing)
        {
            wait_while_held(loader);
        }
        if let Some(mut refused) = refused {
            refused.why.add(b"\0");
            let signal_error: unsafe extern "C" fn(i32, *const u8, *const u8, *const u8) -> ! =
                core::mem::transmute((*loader).signal_error as usize);
            // Leaves by a jump to where the loader began; its cleaning up calls the hook again.
            signal_error(0, refused.name, core::ptr::null(), refused.why.as_bytes().as_ptr());
        }
    }
}

/// Waits while the tool is finding out what there is, or until the count runs out that it has set for that. The list is whole, what there is to
/// be noted is noted, and this thread, which does not own the hook any more, holds the loader's lock: so nothing comes or goes meanwhile.
unsafe fn wait_while_held(loader: *mut Loader) {
    // SAFETY: a word of the loader's; the tool writes it at any time.
    let hold = unsafe { AtomicU64::from_ptr(&raw mut (*loader).hold) };
    loop {
        let turns = hold.load(Ordering::Relaxed);
        if turns == 0 {
            return;
        }
        // If the tool has written it since, what it wrote stays.
        if hold.compare_exchange(turns, turns.wrapping_sub(1), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            syscall::sleep(TURN);
        }
    }
}

/// Notes that something came or went.
unsafe fn changed(loader: *mut Loader) -> u64 {
    // SAFETY: the word is this thread's to write while it owns the hook; the tool reads it.
    unsafe {
        let changes = (*loader).changes.wrapping_add(1);
        AtomicU64::from_ptr(&raw mut (*loader).changes).store(changes, Ordering::Relaxed);
        changes
    }
}

/// Looks at the list of libraries. If it is whole, forgets those that are gone, and patches those that are new, if they are `welcome`. If
/// some are about to be removed, lets go of them.
unsafe fn look(loader: *mut Loader, frame: u64, welcome: bool) -> Option<Refused> {
    // SAFETY: `struct r_debug` and the maps are the loader's, which does not change them while this thread is here.
    unsafe {
        let debug = (*loader).debug as *const Debug;
        let Some(table) = Table::that_counts() else {
            // The tool has come between the hook and its first table: it is to look again.
            changed(loader);
            return None;
        };
        match doing(debug) {
            Doing::Nothing => {}
            Doing::Removing => {
                go(table, frame);
                return None;
            }
            Doing::Adding => return None,
        }
        let objects = table.objects();
        for i in 0..objects.count {
            let object: *mut Object = table.entry(objects, i);
            if (*object).state != AWAY && !is_listed(debug, &*object) {
                went(loader, table, object);
            }
        }
        let seen = Seen(table, (*table.0.cast::<Head>()).seen);
        if seen.forget(debug) {
            changed(loader);
        }
        let mut refused = None;
        each(debug, |map| {
            if seen.is_new(map as u64) {
                changed(loader);
                if welcome {
                    refused = came(loader, table, map);
                }
            }
            refused.is_none()
        });
        refused
    }
}

/// Whether the hook's thread is under a seccomp filter.
unsafe fn is_guarded(loader: *mut Loader) -> bool {
    // SAFETY: this thread's own word.
    unsafe { (*loader).owner & GUARDED != 0 }
}
