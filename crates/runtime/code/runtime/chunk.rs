//! Chunks of memory that the runtime maps by itself, such that the tool finds them in the maps of the process, whatever happens.
//!
//! A chunk is anonymous memory, of which the maps do not say whose it is. So it is laid into a mapping that has a name: a page of
//! the runtime's own file (the seed, which the tool maps shared and without any access) is mapped once more, in the length that is needed, and
//! the memory put over all of that but its first and its last page. These stay, under the runtime's name and with their places in its file, which tell that
//! they were one mapping, and that what lies between them is ours. The same is true before the memory is there, and in the child of a fork between
//! any two of the calls. There is no table that would have to be right, and no descriptor that a child could inherit.
//!
//! The two pages also keep the kernel from joining the memory with mappings of the program.

use super::syscall::{self, Errno, PAGE, PROT_READ, PROT_WRITE};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the seed lies: set by the tool. 0 where nothing is to be mapped.
#[cfg_attr(not(test), unsafe(export_name = "ugraft_chunk_seed"))]
pub static SEED: AtomicU64 = AtomicU64::new(0);

/// Zeroed memory, of whole pages.
pub struct Memory {
    pub start: *mut u8,
    pub len: usize,
}

/// Maps at least `len` bytes.
pub fn map(len: usize) -> Result<Memory, Errno> {
    const ENOMEM: Errno = Errno(12);
    const GUARD: usize = PAGE as usize;
    let seed = SEED.load(Ordering::Relaxed);
    if seed == 0 {
        return Err(ENOMEM);
    }
    let len = len.checked_next_multiple_of(PAGE as usize).ok_or(ENOMEM)?;
    let whole = len.checked_add(2 * GUARD).ok_or(ENOMEM)?;
    let guard = syscall::map_again(seed, whole)?;
    let start = guard.wrapping_add(GUARD as u64);
    // Without access first: where the kernel counts what it promises (vm.overcommit_memory), it may refuse writable memory when what it
    // is to take the place of is gone already, and somebody else be there by now. A change of the access leaves the mapping alone.
    // SAFETY: the mapping is ours, and nobody knows it.
    let done = unsafe {
        syscall::map_over(start, len).and_then(|()| syscall::protect(start, len, PROT_READ | PROT_WRITE))
    };
    if let Err(reason) = done {
        // SAFETY: as above.
        unsafe { syscall::unmap(guard, whole) };
        return Err(reason);
    }
    Ok(Memory { start: ptr::with_exposed_provenance_mut(start as usize), len })
}
