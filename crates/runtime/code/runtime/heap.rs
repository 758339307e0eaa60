//! Memory for shadow variables: of ours, not of the target's allocator, whose locks a patched function may be called under.
//!
//! Blocks have the sizes of powers of two, and are cut from a chunk; one that is freed goes to the list of its size. The first chunk
//! comes with the runtime. A further one is mapped when a block is asked for that neither the lists nor the current chunk
//! have, without the lock: the kernel may take its time, and who finds a block meanwhile does not wait. Threads that need
//! memory at the same moment map a chunk each, and all of it is used.
//!
//! Nothing is unmapped while the runtime is there, since who looks for a variable may read what is just being freed (see
//! [`super::shadow`]). Which chunks there are, nobody needs to know: see [`super::chunk`].
//!
//! A fork in the middle loses a block, or a chunk, which goes with the others.

use super::chunk;
use super::lock::Lock;
use super::log::Shared;
use crate::layout;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

/// The smallest block is of `1 << LEAST` bytes.
const LEAST: u32 = 6;
/// There is no block of `1 << (LEAST + CLASSES)` bytes, 128 TiB: that is all of user space.
const CLASSES: usize = 41;
/// A chunk is as long as all that was mapped before it, within these bounds, and longer for a longer block: so there are few of them,
/// and not much more is reserved than is needed.
const STEP_MIN: usize = 1 << 20;
const STEP_MAX: usize = 64 << 20;
/// What will do where there is no room for that.
const STEP_NARROW: usize = 64 << 10;

/// Memory that blocks are cut from. Those that are mapped begin with this.
#[repr(C, align(64))]
struct Chunk {
    /// Where the next block begins; from here on all is zero.
    next: *mut u8,
    end: *mut u8,
}

#[repr(C, align(64))]
struct Memory([u8; layout::FIRST_CHUNK]);

static MEMORY: Shared<Memory> = Shared(UnsafeCell::new(Memory([0; layout::FIRST_CHUNK])));
static FIRST_CHUNK: Shared<Chunk> = Shared(UnsafeCell::new(Chunk {
    next: MEMORY.0.get().cast(),
    end: MEMORY.0.get().cast::<u8>().wrapping_add(layout::FIRST_CHUNK),
}));
static HEAP: Shared<Heap> = Shared(UnsafeCell::new(Heap {
    current: FIRST_CHUNK.0.get(),
    mapped: 0,
    lists: [ptr::null_mut(); CLASSES],
}));
static LOCK: Lock = Lock::new();

struct Heap {
    current: *mut Chunk,
    /// Bytes of all chunks that were mapped.
    mapped: usize,
    /// Blocks that were freed, by size; the first word of each is the next one.
    lists: [*mut u8; CLASSES],
}

/// A block, and whether all of it is zero.
struct Block {
    at: *mut u8,
    zero: bool,
}

fn class(size: usize) -> usize {
    let bits = usize::BITS - size.saturating_sub(1).leading_zeros();
    bits.saturating_sub(LEAST) as usize
}

fn block_len(class: usize) -> usize {
    1usize.wrapping_shl(LEAST + class as u32)
}

/// `size` bytes, aligned to 16, all zero; null where there are no more.
pub fn allocate(size: usize) -> *mut u8 {
    let class = class(size);
    if class >= CLASSES {
        return ptr::null_mut();
    }
    // SAFETY: under the lock.
    let found = LOCK.with(|| unsafe { take(HEAP.0.get(), class) });
    let Some(block) = found.or_else(|mapped| grow(mapped, class).ok_or(())).ok() else {
        return ptr::null_mut();
    };
    if !block.zero {
        // SAFETY: it has these bytes, and is nobody else's.
        unsafe { ptr::write_bytes(block.at, 0, size) };
    }
    block.at
}

/// A block of what there is, or how much was mapped so far.
///
/// # Safety
/// Under the lock.
unsafe fn take(heap: *mut Heap, class: usize) -> Result<Block, usize> {
    // SAFETY: under the lock; lists and chunks hold memory of the heap's.
    unsafe {
        let list = (&raw mut (*heap).lists).cast::<*mut u8>().add(class);
        let found = *list;
        if !found.is_null() {
            *list = found.cast::<*mut u8>().read();
            return Ok(Block { at: found, zero: false });
        }
        cut((*heap).current, block_len(class)).ok_or((*heap).mapped)
    }
}

fn room(chunk: *mut Chunk) -> usize {
    // SAFETY: chunks stay; the callers have the lock, or the chunk alone.
    unsafe { (*chunk).end.addr().wrapping_sub((*chunk).next.addr()) }
}

/// The next block of a chunk.
///
/// # Safety
/// Under the lock, or of a chunk that nobody else knows.
unsafe fn cut(chunk: *mut Chunk, len: usize) -> Option<Block> {
    if room(chunk) < len {
        return None;
    }
    // SAFETY: the caller's promise, and there is room.
    unsafe {
        let at = (*chunk).next;
        (*chunk).next = at.wrapping_add(len);
        Some(Block { at, zero: true })
    }
}

/// Maps a chunk and takes a block of it.
fn grow(mapped: usize, class: usize) -> Option<Block> {
    let needed = block_len(class).wrapping_add(size_of::<Chunk>());
    let wanted = mapped.clamp(STEP_MIN, STEP_MAX).max(needed);
    let memory = chunk::map(wanted).or_else(|_| chunk::map(needed.max(STEP_NARROW))).ok()?;
    let new = memory.start.cast::<Chunk>();
    let end = memory.start.wrapping_add(memory.len);
    // SAFETY: fresh memory, which nobody knows; it begins a page.
    let block = unsafe {
        new.write(Chunk { next: new.wrapping_add(1).cast(), end });
        cut(new, block_len(class))
    };
    // SAFETY: under the lock.
    LOCK.with(|| unsafe { add(HEAP.0.get(), new, memory.len) });
    block
}

/// Goes on with the chunk that has more room. What the other has goes to the lists.
///
/// # Safety
/// Under the lock; `new` must be a chunk of `len` bytes that nobody else knows.
unsafe fn add(heap: *mut Heap, new: *mut Chunk, len: usize) {
    // SAFETY: under the lock; the caller's promise.
    unsafe {
        (*heap).mapped = (*heap).mapped.wrapping_add(len);
        let current = (*heap).current;
        let (next, rest) = if room(new) > room(current) { (new, current) } else { (current, new) };
        // A fork must not find the chunk before its head.
        compiler_fence(Ordering::Release);
        (*heap).current = next;
        let mut left = room(rest);
        while left >= block_len(0) {
            let class = left.ilog2().wrapping_sub(LEAST) as usize;
            let Some(block) = cut(rest, block_len(class)) else { break };
            put(heap, class, block.at);
            left = room(rest);
        }
    }
}

/// Adds a block to the list of its size.
///
/// # Safety
/// Under the lock; the block must be of that size, and nobody's.
unsafe fn put(heap: *mut Heap, class: usize, block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let list = (&raw mut (*heap).lists).cast::<*mut u8>().add(class);
        block.cast::<*mut u8>().write(*list);
        // A fork must not find the block in the list without its successor.
        compiler_fence(Ordering::Release);
        *list = block;
    }
}

/// Gives a block back.
///
/// # Safety
/// It must have been given for `size` bytes, and nobody may use it any more.
pub unsafe fn free(block: *mut u8, size: usize) {
    let class = class(size);
    if class < CLASSES {
        // SAFETY: under the lock, and the caller's promise.
        LOCK.with(|| unsafe { put(HEAP.0.get(), class, block) });
    }
}
