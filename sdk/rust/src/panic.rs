//! What becomes of a panic: it is what BUG() is to the kernel.
//!
//! The message goes to the log and to standard error, and the thread executes `ud2`. In a callback ugraft catches that, as
//! it does any crash: the callback has failed, its thread goes on where it was. In a patched function SIGILL ends the program, unless
//! it has a handler for it.
#![allow(unsafe_code)]

use crate::log::{Buffer, Level, log_bytes};
use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The thread that says why it panics: it must not do so again, should its message panic, too.
static SPEAKING: AtomicUsize = AtomicUsize::new(0);

/// Says what has happened, and stops the thread. The panic handler of a patch, which [`livepatch!`](crate::livepatch) installs.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    let thread = thread_pointer();
    if SPEAKING.swap(thread, Ordering::Relaxed) != thread {
        let mut text = Buffer::new();
        // What cannot be formatted is cut there.
        let _ = write!(text, "BUG: {info}");
        log_bytes(Level::Emerg, text.as_bytes());
        to_standard_error(text.as_bytes());
        to_standard_error(b"\n");
        SPEAKING.store(0, Ordering::Relaxed);
    }
    // SAFETY: an instruction that faults, which is what is wanted; nothing comes after it.
    unsafe { asm!("ud2", options(noreturn, nomem, nostack)) }
}

/// What tells threads apart: every thread's control block begins with its own address (ELF Handling For Thread-Local
/// Storage, 3.4.6).
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads a word that is there in every thread of a program with a C library.
    unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

/// write(2) to descriptor 2, whatever comes of it.
fn to_standard_error(bytes: &[u8]) {
    const WRITE: usize = 1;
    const STANDARD_ERROR: usize = 2;
    // SAFETY: the bytes are there; the kernel changes rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") WRITE => _,
            in("rdi") STANDARD_ERROR,
            in("rsi") bytes.as_ptr(),
            in("rdx") bytes.len(),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, readonly),
        );
    }
}
