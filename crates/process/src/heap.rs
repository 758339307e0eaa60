//! Room on the heap, made present at once.
//!
//! A request lasts some milliseconds, of which a part would go into faults for pages of fresh memory, one by one, and into
//! growing a second thread's heap page by page. One call does for all of them.
#![allow(unsafe_code)]

/// Blocks of this size and more get mappings of their own.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: i32 = 4 << 20;
/// Free memory beyond this is given back.
#[cfg(target_env = "gnu")]
const KEEP: i32 = 16 << 20;
const PAGE: usize = 4096;

/// Has the allocator keep what [`make_room`] gives it. For programs: a library has no say in how a program allocates.
pub fn keep_room() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers of the allocator (mallopt(3)); no memory is passed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP);
    }
}

/// Makes the next `bytes` that the calling thread allocates present in memory. Where that cannot be done, or without
/// [`keep_room`], it does nothing that lasts.
pub fn make_room(bytes: usize) {
    let mut room: Vec<u8> = Vec::new();
    if room.try_reserve_exact(bytes).is_err() {
        return;
    }
    let base = room.as_mut_ptr().addr();
    let start = base.next_multiple_of(PAGE);
    let end = (base + room.capacity()) / PAGE * PAGE;
    if start < end {
        let place = room.as_mut_ptr().with_addr(start);
        // SAFETY: whole pages of a block that is ours and holds nothing yet; what they hold stays as it is (madvise(2)).
        // Kernels before 5.14 refuse.
        unsafe { libc::madvise(place.cast(), end - start, libc::MADV_POPULATE_WRITE) };
    }
}
