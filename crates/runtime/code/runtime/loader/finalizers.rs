//! Hearing of the end of a library while it is still there.
//!
//! At dlclose the loader first runs the destructors of all libraries that are to go, then calls the hook, while all of them are
//! still mapped and listed, then unmaps them. Which they are it tells nobody. But the last that it calls of each is the function that its
//! dynamic section names as DT_FINI (System V gABI, chapter 5), whose address it reads there at that moment. So that word is made to
//! lead here. What is called notes the thread and the place of its own return address, and goes on to the library's function.
//!
//! A library is about to go if its function was called from within the very dlclose that calls the hook: by this thread,
//! with a return address no further out on the stack than the hook's own. At the end of the process the loader calls these functions,
//! too; whatever calls the hook then, from another destructor, does it further in. Where this would err nonetheless, callbacks run
//! that need not; memory is given back only when a library has left the list.
//!
//! Functions and words of a library that stays stay valid after the tool has put the word right again: a thread may have read it
//! just before.

use super::list::{Debug, each};
use crate::expected::{FINALIZER_CODE_LEN, FINALIZERS_MAX, Finalizer};
use crate::runtime::log::Shared;
use crate::runtime::redirect::Text;
use crate::runtime::syscall;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

const NONE: Finalizer =
    Finalizer { link_map: 0, bias: 0, word: 0, original: 0, thread: 0, frame: 0, order: 0 };

#[cfg_attr(not(test), unsafe(export_name = "ugraft_finalizers"))]
pub static FINALIZERS: Shared<[Finalizer; FINALIZERS_MAX]> = Shared(UnsafeCell::new([NONE; FINALIZERS_MAX]));

/// Calls of finalizers until now.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// DT_FINI
const TAG: u64 = 13;
/// Most entries read of a dynamic section.
const MAX_DYNAMIC: usize = 4096;

// For each finalizer a piece of code that says where it is itself, in rax; the first common piece makes a number of that. They are called
// without arguments, and nothing of the caller's is in the registers that are used here.
global_asm!(
    ".balign {len}",
    ".globl ugraft_finalizer_code",
    ".type ugraft_finalizer_code, @function",
    "ugraft_finalizer_code:",
    ".cfi_startproc",
    ".rept {count}",
    "endbr64",
    "lea rax, [rip]",
    "jmp 2f",
    ".balign {len}, 0xcc",
    ".endr",
    "2:",
    "lea rdi, [rip + ugraft_finalizer_code]",
    "sub rax, rdi",
    "shr rax, 4",
    "mov rdi, rax",
    "mov rsi, rsp",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "call {called}",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "jmp rax",
    ".cfi_endproc",
    ".size ugraft_finalizer_code, . - ugraft_finalizer_code",
    len = const FINALIZER_CODE_LEN,
    count = const FINALIZERS_MAX,
    called = sym called,
);
const _: () = assert!(FINALIZER_CODE_LEN == 1 << 4);

unsafe extern "C" {
    fn ugraft_finalizer_code();
}

fn finalizer(index: usize) -> *mut Finalizer {
    FINALIZERS.0.get().cast::<Finalizer>().wrapping_add(index)
}

/// The finalizer at `index` has been called, with its return address at `frame`. The result is what the library has there.
extern "C" fn called(index: u64, frame: u64) -> u64 {
    // SAFETY: the code above has no other numbers; the thread's notes are read by the same thread alone.
    unsafe {
        let one = finalizer(index as usize);
        (*one).frame = frame;
        (*one).order = CALLS.fetch_add(1, Ordering::Relaxed);
        (*one).thread = syscall::thread_pointer();
        (*one).bias.wrapping_add((*one).original)
    }
}

/// Whether the finalizer of a library was called by the call of the loader whose return address lies at `frame`, or from within
/// that call; then which one of all such calls it was.
pub unsafe fn called_within(link_map: u64, bias: u64, frame: u64) -> Option<u64> {
    let me = syscall::thread_pointer();
    (0..FINALIZERS_MAX).find_map(|i| {
        // SAFETY: within the array; who writes there is under the loader's lock, as this thread is, or ends the process.
        let one = unsafe { *finalizer(i) };
        let fits = one.link_map == link_map && one.bias == bias && one.thread == me && one.frame <= frame;
        fits.then_some(one.order)
    })
}

/// Leads the finalizer of a library here. A library that has none goes without notice.
pub unsafe fn lead(debug: *const Debug, link_map: u64, bias: u64, dynamic: u64) {
    // SAFETY: the library is mapped, and its dynamic section ends with a zero tag.
    unsafe {
        let Some(word) = word_of(dynamic) else { return };
        let original = core::ptr::with_exposed_provenance::<u64>(word as usize).read();
        let code = ugraft_finalizer_code as *const () as u64;
        let own = |i: &usize| (*finalizer(*i)).link_map == link_map && (*finalizer(*i)).bias == bias;
        let free = |i: &usize| !is_listed(debug, finalizer(*i));
        let Some(index) = (0..FINALIZERS_MAX).find(own).or_else(|| (0..FINALIZERS_MAX).find(free)) else {
            return;
        };
        finalizer(index).write(Finalizer { link_map, bias, word, original, ..NONE });
        let at = code.wrapping_add(FINALIZER_CODE_LEN.wrapping_mul(index as u64));
        if let Ok(text) = Text::open() {
            // Without it, the library goes without notice.
            let _ = text.write(word, &at.wrapping_sub(bias).to_le_bytes());
        }
    }
}

unsafe fn is_listed(debug: *const Debug, one: *const Finalizer) -> bool {
    let mut listed = false;
    // SAFETY: as for `lead`.
    unsafe {
        if (*one).link_map == 0 {
            return false;
        }
        each(debug, |map| {
            listed |= map as u64 == (*one).link_map && (*map).bias == (*one).bias;
            !listed
        });
    }
    listed
}

/// The address of the word of DT_FINI.
unsafe fn word_of(dynamic: u64) -> Option<u64> {
    let entries = core::ptr::with_exposed_provenance::<[u64; 2]>(dynamic as usize);
    for i in 0..MAX_DYNAMIC {
        // SAFETY: as for `lead`.
        let entry = unsafe { entries.add(i) };
        // SAFETY: as above.
        match unsafe { (*entry)[0] } {
            0 => break,
            TAG => return Some(entry as u64 + 8),
            _ => {}
        }
    }
    None
}
