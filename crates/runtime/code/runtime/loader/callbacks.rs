//! Callbacks of patches for a library that comes or goes, on the thread that loads or unloads it.

use super::table::Table;
use crate::expected::{Head, Object, Running, Use};
use crate::runtime::log::{self, Shared};
use crate::runtime::syscall;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

#[cfg_attr(not(test), unsafe(export_name = "ugraft_running"))]
pub static RUNNING: Shared<Running> =
    Shared(UnsafeCell::new(Running { thread: 0, object: 0, one: 0, callback: 0, since: 0 }));

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
        let running = RUNNING.0.get();
        let thread = AtomicU64::from_ptr(&raw mut (*running).thread);
        (*running).object = object as u64;
        (*running).one = one as u64;
        (*running).callback = which as u64;
        (*running).since = log::time();
        // Pairs with whoever reads it: what it is before that it is.
        thread.store(syscall::thread_pointer(), Ordering::Release);
        let function: unsafe extern "C" fn(*mut u8) -> i32 = core::mem::transmute(function as usize);
        let value = function(at);
        thread.store(0, Ordering::Release);
        at.add(OBJECT_MOD).cast::<*mut Module>().write(core::ptr::null_mut());
        if which == PRE_PATCH { value } else { 0 }
    }
}

/// The patches that are older than the one whose callback the calling thread is running in the hook, oldest first: addresses of
/// their `struct klp_patch`. `None` where it is running none.
pub fn older_patches<'t>() -> Option<&'t [u64]> {
    let running = RUNNING.0.get();
    // SAFETY: the other words are this thread's while the first is.
    unsafe {
        let thread = AtomicU64::from_ptr(&raw mut (*running).thread);
        if thread.load(Ordering::Relaxed) != syscall::thread_pointer() {
            return None;
        }
        // The table stays as it is while a thread is in the hook.
        let table = Table::that_counts()?;
        let head: *const Head = table.0.cast();
        let below = (*((*running).one as *const Use)).below.min(u64::from((*head).patches.count));
        Some(core::slice::from_raw_parts(table.entry((*head).patches, 0), below as usize))
    }
}
