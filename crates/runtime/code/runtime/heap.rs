//! Memory for shadow variables: of ours, not of the target's allocator, whose locks a patched function may be called under.
//!
//! One piece of a fixed size, of which pages are used as they are needed. Blocks have the sizes of powers of two; one
//! that is freed goes to the list of its size. A fork in the middle of either loses one block.

use super::lock::Lock;
use super::log::Shared;
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, compiler_fence};

/// Bytes for all shadow variables together, with 32 more for each.
const SIZE: usize = 16 << 20;
/// The smallest block is of `1 << LEAST` bytes.
const LEAST: u32 = 6;
/// The largest is of `1 << (LEAST + CLASSES - 1)` bytes.
const CLASSES: usize = 18;

#[repr(C, align(64))]
struct Heap {
    memory: [u8; SIZE],
}

static HEAP: Shared<Heap> = Shared(UnsafeCell::new(Heap { memory: [0; SIZE] }));
static FREE: Shared<Free> =
    Shared(UnsafeCell::new(Free { used: 0, lists: [core::ptr::null_mut(); CLASSES] }));
static LOCK: Lock = Lock::new();

struct Free {
    /// Bytes of the memory that were ever given.
    used: usize,
    /// Blocks that were freed, by size; the first word of each is the next one.
    lists: [*mut u8; CLASSES],
}

fn class(size: usize) -> usize {
    let bits = usize::BITS - size.saturating_sub(1).leading_zeros();
    bits.saturating_sub(LEAST) as usize
}

/// `size` bytes, aligned to 16, of any content; null where there are no more.
pub fn allocate(size: usize) -> *mut u8 {
    let class = class(size);
    let block = 1usize.wrapping_shl(LEAST + class as u32);
    LOCK.with(|| {
        // SAFETY: under the lock; `used` and the lists stay within the memory.
        unsafe {
            let free = FREE.0.get();
            if class >= CLASSES {
                return core::ptr::null_mut();
            }
            let list = (&raw mut (*free).lists).cast::<*mut u8>().add(class);
            if !(*list).is_null() {
                let found = *list;
                *list = found.cast::<*mut u8>().read();
                return found;
            }
            if SIZE - (*free).used < block {
                return core::ptr::null_mut();
            }
            let found = (&raw mut (*HEAP.0.get()).memory).cast::<u8>().add((*free).used);
            (*free).used += block;
            found
        }
    })
}

/// Gives a block back.
///
/// # Safety
/// It must have been given for `size` bytes, and nobody may use it any more.
pub unsafe fn free(block: *mut u8, size: usize) {
    let class = class(size);
    LOCK.with(|| {
        // SAFETY: under the lock, and the caller's promise.
        unsafe {
            if class < CLASSES {
                let list = (&raw mut (*FREE.0.get()).lists).cast::<*mut u8>().add(class);
                block.cast::<*mut u8>().write(*list);
                // A fork must not find the block in the list without its successor.
                compiler_fence(Ordering::Release);
                *list = block;
            }
        }
    })
}
