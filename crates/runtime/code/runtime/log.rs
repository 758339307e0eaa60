//! The log: a ring of slots that many threads write and the tool reads.
//!
//! A writer takes a number, then the slot that it falls to by one exchange, writes the message and gives the slot back with
//! its number. A slot that is still being written by somebody a round earlier is left to them and the message lost; so is the
//! slot of a thread that was killed while it wrote.

use super::format::{Text, VaList, format};
use crate::layout::{LOG_MAGIC, LOG_SLOTS, LogHead, LogSlot, TEXT_MAX};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

#[repr(C)]
pub struct Log {
    head: LogHead,
    slots: [LogSlot; LOG_SLOTS],
}

/// Memory that the tool and all threads share.
#[repr(transparent)]
pub struct Shared<T>(pub UnsafeCell<T>);

// SAFETY: the users of each one say how its parts are accessed.
unsafe impl<T> Sync for Shared<T> {}

const EMPTY: LogSlot = LogSlot { state: 0, time: 0, len: 0, level: 0, text: [0; TEXT_MAX] };

#[cfg_attr(not(test), unsafe(export_name = "ugraft_log"))]
pub static LOG: Shared<Log> = Shared(UnsafeCell::new(Log {
    head: LogHead { magic: LOG_MAGIC, clock: 0, next: 0, lost: 0 },
    slots: [EMPTY; LOG_SLOTS],
}));

/// What the kernel takes for a message without a level.
const DEFAULT_LEVEL: u32 = 4;
const INFO: u32 = 6;
/// What begins a level in front of a format (`KERN_SOH`).
const START_OF_HEADER: u8 = 1;
const CLOCK_REALTIME: i32 = 0;

/// `int ugraft_vprintk(const char *format, va_list args, const char *name)`: appends a message to the log. Returns its
/// length. The byte 2 in the format stands for `name`, a file's, without directory and ending.
///
/// # Safety
/// As printf(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ugraft_vprintk(mut text: *const u8, args: *mut VaList, name: *const u8) -> i32 {
    let mut level = DEFAULT_LEVEL;
    let mut message: Text<TEXT_MAX> = Text::new();
    // SAFETY: the caller's promise; a level has two bytes.
    unsafe {
        if *text == START_OF_HEADER && *text.add(1) != 0 {
            level = match *text.add(1) {
                digit @ b'0'..=b'7' => u32::from(digit - b'0'),
                _ => INFO,
            };
            text = text.add(2);
        }
        format(&mut message, text, &mut *args, stem(name));
    }
    message.trim_line_end();
    let bytes = message.as_bytes();
    append(level, bytes);
    bytes.len() as i32
}

/// Appends a message.
pub fn append(level: u32, bytes: &[u8]) {
    let log = LOG.0.get();
    // SAFETY: the head's counters and the slots' states are accessed atomically; a slot's other parts only by whoever has
    // made its state odd.
    unsafe {
        let number = AtomicU64::from_ptr(&raw mut (*log).head.next).fetch_add(1, Ordering::Relaxed);
        let slot = (&raw mut (*log).slots).cast::<LogSlot>().add((number % LOG_SLOTS as u64) as usize);
        let state = AtomicU64::from_ptr(&raw mut (*slot).state);
        let before = state.load(Ordering::Relaxed);
        let mine = number.wrapping_mul(2).wrapping_add(1);
        let free = before & 1 == 0
            && state.compare_exchange(before, mine, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !free {
            AtomicU64::from_ptr(&raw mut (*log).head.lost).fetch_add(1, Ordering::Relaxed);
            return;
        }
        let len = bytes.len().min(TEXT_MAX);
        (*slot).time = now((*log).head.clock);
        (*slot).level = level;
        (*slot).len = len as u32;
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut (*slot).text).cast::<u8>(), len);
        // Pairs with whoever reads the slot: the message before its number.
        state.store(mine.wrapping_add(1), Ordering::Release);
    }
}

/// The time in nanoseconds since 1970-01-01 UTC, or 0.
pub fn time() -> u64 {
    // SAFETY: the tool has written the address of such a function.
    unsafe { now((*LOG.0.get()).head.clock) }
}

/// The time in nanoseconds since 1970-01-01 UTC.
///
/// # Safety
/// `clock` must be 0 or the address of a `clock_gettime`.
unsafe fn now(clock: u64) -> u64 {
    if clock == 0 {
        return 0;
    }
    let mut time = [0i64; 2];
    // SAFETY: the caller's promise.
    let failed = unsafe {
        let clock: extern "C" fn(i32, *mut [i64; 2]) -> i32 = core::mem::transmute(clock as usize);
        clock(CLOCK_REALTIME, &mut time)
    };
    let [seconds, nanoseconds] = time;
    if failed != 0 {
        return 0;
    }
    seconds.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(nanoseconds.cast_unsigned())
}

/// A file's name without directory and ending.
///
/// # Safety
/// `name` must be null or end with a zero.
unsafe fn stem<'n>(name: *const u8) -> &'n [u8] {
    if name.is_null() {
        return b"";
    }
    let (mut start, mut dot, mut at) = (0, None, 0);
    // SAFETY: the caller's promise; what is taken lies in front of the zero.
    unsafe {
        loop {
            match *name.add(at) {
                0 => break,
                b'/' => (start, dot) = (at + 1, None),
                b'.' if at > start => dot = Some(at),
                _ => {}
            }
            at += 1;
        }
        core::slice::from_raw_parts(name.add(start), dot.unwrap_or(at).wrapping_sub(start))
    }
}
