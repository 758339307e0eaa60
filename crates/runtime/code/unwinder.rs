//! What unwinders in the target are told of the images of patches.
//!
//! An unwinder (of exceptions, of thread cancellation, of a profiler; there may be several, and one may be loaded at any time) asks
//! the loader which object an address belongs to, by `_dl_find_object` (glibc 2.35 and later), and which objects there are, by
//! `dl_iterate_phdr`. Both are redirected to the functions here, which know the images, and ask the originals for all else.
//!
//! They run in any thread at any time, in signal handlers too, while the tool may be writing the table:
//! - A slot is filled before its first byte says that it is used. That byte is cleared only while all threads are stopped and none of
//!   them has an activation of these functions, so nobody has read half of what is gone, and a slot can be filled anew at once.
//! - The generation changes after a slot is added. Who keeps what it was told as long as the loader's counts of
//!   objects are the same (libgcc does) has seen the new image, or sees other counts the next time.
//!
//! A callback of `dl_iterate_phdr` may be left by an exception or by the end of its thread. There is nothing to do in the frames
//! here then, and they have frame descriptions, so unwinders pass them. That is why they are plain `extern "C"`: what Rust has for this
//! calls its own runtime.
#![no_std]
#![allow(unsafe_code)]

#[path = "unwinder_layout.rs"]
mod layout;
mod mark;
mod memory;

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::mem::{offset_of, size_of, transmute};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use layout::{SLOTS, Slot, Table};

/// Memory that the tool writes and all threads read.
#[repr(transparent)]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: read by single loads; see the head of the file for the order of what is written.
unsafe impl<T> Sync for Shared<T> {}

const NO_SLOT: Slot = Slot {
    used: 0,
    start: 0,
    end: 0,
    index: 0,
    link_map: [0; 5],
    headers: [[0; 7]; 2],
    name: [0; layout::NAME_LEN],
};

#[unsafe(export_name = "ugraft_unwinder_table")]
static TABLE: Shared<Table> = Shared(UnsafeCell::new(Table {
    generation: 0,
    limit: 0,
    find_object: 0,
    iterate_phdr: 0,
    slots: [NO_SLOT; SLOTS],
}));

/// `struct dl_find_object` of <dlfcn.h>, without what is reserved in it.
#[repr(C)]
pub struct Found {
    flags: u64,
    start: u64,
    end: u64,
    link_map: *const c_void,
    eh_frame: u64,
}

/// `struct dl_phdr_info` of <link.h>, in glibc and musl.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Info {
    addr: u64,
    name: *const c_char,
    headers: *const c_void,
    count: u16,
    adds: u64,
    subs: u64,
    tls_modid: usize,
    tls_data: *mut c_void,
}

type FindObject = unsafe extern "C" fn(u64, *mut Found) -> c_int;
type Callback = unsafe extern "C" fn(*mut Info, usize, *mut c_void) -> c_int;
type IteratePhdr = unsafe extern "C" fn(Callback, *mut c_void) -> c_int;

fn table() -> *mut Table {
    TABLE.0.get()
}

/// Reads a number that the tool may be writing.
unsafe fn load(word: *mut u64) -> u64 {
    // SAFETY: the callers give words of the table.
    unsafe { AtomicU64::from_ptr(word).load(Ordering::Acquire) }
}

/// The slots in use, one by one, from `next` on.
unsafe fn used_slot(next: &mut usize) -> Option<*mut Slot> {
    // SAFETY: within the table.
    unsafe {
        let limit = load(&raw mut (*table()).limit);
        while *next < SLOTS && (*next as u64) < limit {
            let slot = (&raw mut (*table()).slots).cast::<Slot>().add(*next);
            *next = next.wrapping_add(1);
            if AtomicU8::from_ptr((&raw mut (*slot).used).cast()).load(Ordering::Acquire) != 0 {
                return Some(slot);
            }
        }
        None
    }
}

/// `int _dl_find_object(void *address, struct dl_find_object *result)`
///
/// # Safety
/// As the original.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ugraft_dl_find_object(address: u64, result: *mut Found) -> c_int {
    // SAFETY: the table's slots are whole where they are used; the result is the caller's.
    unsafe {
        let mut next = 0;
        while let Some(slot) = used_slot(&mut next) {
            let (start, end) = (load(&raw mut (*slot).start), load(&raw mut (*slot).end));
            if start <= address && address < end {
                let link_map = (&raw const (*slot).link_map).cast();
                *result = Found { flags: 0, start, end, link_map, eh_frame: load(&raw mut (*slot).index) };
                return 0;
            }
        }
        let original: FindObject = transmute(load(&raw mut (*table()).find_object));
        original(address, result)
    }
}

/// What `visit` is told for one round.
struct Round {
    callback: Callback,
    data: *mut c_void,
    generation: u64,
    /// Whether the images have been told.
    told: bool,
}

/// `int dl_iterate_phdr(int (*callback)(struct dl_phdr_info *, size_t, void *), void *data)`
///
/// # Safety
/// As the original.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ugraft_dl_iterate_phdr(callback: Callback, data: *mut c_void) -> c_int {
    // SAFETY: the round lives until the original returns, which calls `visit` with it.
    unsafe {
        let generation = load(&raw mut (*table()).generation);
        let mut round = Round { callback, data, generation, told: false };
        let original: IteratePhdr = transmute(load(&raw mut (*table()).iterate_phdr));
        original(visit, (&raw mut round).cast())
    }
}

/// Called by the original for each object, under its lock, which callbacks may count on. The images come behind the first one,
/// which is the main executable and is expected to be first.
unsafe extern "C" fn visit(info: *mut Info, size: usize, round: *mut c_void) -> c_int {
    // SAFETY: the round of the call under way; `info` has `size` bytes.
    unsafe {
        let round = &mut *round.cast::<Round>();
        if size != size_of::<Info>() {
            // A C library that tells more than is known here.
            return (round.callback)(info, size, round.data);
        }
        let mut counted = *info;
        counted.adds = counted.adds.wrapping_add(round.generation);
        let result = (round.callback)(&mut counted, size, round.data);
        if result != 0 || round.told {
            return result;
        }
        round.told = true;
        let mut next = 0;
        while let Some(slot) = used_slot(&mut next) {
            let mut image = Info {
                addr: load(&raw mut (*slot).start),
                name: slot.cast::<c_char>().add(offset_of!(Slot, name)),
                headers: (&raw const (*slot).headers).cast(),
                count: 2,
                adds: (*info).adds.wrapping_add(round.generation),
                subs: (*info).subs,
                tls_modid: 0,
                tls_data: core::ptr::null_mut(),
            };
            let result = (round.callback)(&mut image, size, round.data);
            if result != 0 {
                return result;
            }
        }
        0
    }
}
