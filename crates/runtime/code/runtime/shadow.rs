//! Shadow variables: data attached to an address and a number, as the kernel's `klp_shadow_*`.
//!
//! A table of lists, each with a lock. A list is changed by one store, so that a fork finds it whole, with the lock or without. Constructors and destructors run under the lock of their list, as the
//! kernel's run under its lock: they must not use shadow variables themselves.

use super::heap;
use super::lock::Lock;
use super::log::{self, Shared};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

const LISTS: usize = 4096;
/// How often a variable is looked for without the lock.
const UNLOCKED_TRIES: u32 = 256;

/// `int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data)`
type Constructor = Option<unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> i32>;
/// `void (*klp_shadow_dtor_t)(void *obj, void *shadow_data)`
type Destructor = Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>;

#[repr(C)]
struct Shadow {
    next: *mut Shadow,
    object: *mut c_void,
    id: u64,
    size: usize,
    // The data follow.
}

struct List {
    lock: Lock,
    first: UnsafeCell<*mut Shadow>,
}

// SAFETY: `first` and the list behind it are used under the lock only.
unsafe impl Sync for List {}

static TABLE: Shared<[List; LISTS]> = Shared(UnsafeCell::new(
    [const { List { lock: Lock::new(), first: UnsafeCell::new(ptr::null_mut()) } }; LISTS],
));

fn list(object: *mut c_void) -> &'static List {
    // Fibonacci hashing: addresses differ in their middle bits.
    let hash = (object as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    // SAFETY: 12 bits are an index of the table, which is never written as a whole.
    unsafe { &*TABLE.0.get().cast::<List>().add(hash as usize & (LISTS - 1)) }
}

/// # Safety
/// Under the list's lock.
unsafe fn find(list: &List, object: *mut c_void, id: u64) -> *mut Shadow {
    // SAFETY: under the lock all entries are whole.
    unsafe {
        let mut at = *list.first.get();
        while !at.is_null() && ((*at).object != object || (*at).id != id) {
            at = (*at).next;
        }
        at
    }
}

fn data(shadow: *mut Shadow) -> *mut c_void {
    if shadow.is_null() { ptr::null_mut() } else { shadow.wrapping_add(1).cast() }
}

/// The same without the lock, for as long as nobody takes it: `None` if somebody has.
fn find_unlocked(list: &List, object: *mut c_void, id: u64) -> Option<*mut Shadow> {
    let mark = list.lock.mark()?;
    // SAFETY: entries lie in memory that is there for as long as the runtime is. What is read of one counts, and the next is
    // looked at, only if the lock has not been taken meanwhile: then both are what they seem.
    unsafe {
        let mut at = list.first.get().read_volatile();
        loop {
            if !list.lock.is_unused_since(mark) {
                return None;
            }
            if at.is_null() {
                return Some(at);
            }
            let next = (&raw const (*at).next).read_volatile();
            let of = (&raw const (*at).object).read_volatile();
            let number = (&raw const (*at).id).read_volatile();
            if !list.lock.is_unused_since(mark) {
                return None;
            }
            if of == object && number == id {
                return Some(at);
            }
            at = next;
        }
    }
}

/// `void *klp_shadow_get(void *obj, unsigned long id)`
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn klp_shadow_get(object: *mut c_void, id: u64) -> *mut c_void {
    let list = list(object);
    for _ in 0..UNLOCKED_TRIES {
        if let Some(found) = find_unlocked(list, object, id) {
            return data(found);
        }
        spin_loop();
    }
    // SAFETY: under the lock.
    list.lock.with(|| data(unsafe { find(list, object, id) }))
}

/// # Safety
/// As the two functions below.
unsafe fn allocate(
    object: *mut c_void,
    id: u64,
    size: usize,
    constructor: Constructor,
    constructor_data: *mut c_void,
    existing_too: bool,
) -> *mut c_void {
    let existing = |found: *mut c_void| {
        if existing_too {
            return found;
        }
        report(object, id, 0);
        ptr::null_mut()
    };
    let found = klp_shadow_get(object, id);
    if !found.is_null() {
        return existing(found);
    }
    let whole = size.wrapping_add(size_of::<Shadow>());
    // As in the kernel, memory is found before the lock is taken: that may take a while.
    let new = if whole < size { ptr::null_mut() } else { heap::allocate(whole).cast::<Shadow>() };
    if new.is_null() {
        return ptr::null_mut();
    }
    let list = list(object);
    let made = list.lock.with(|| {
        // SAFETY: under the lock; a new entry is ours until it is in the list.
        unsafe {
            let found = find(list, object, id);
            if !found.is_null() {
                return Err(Unmade::Exists(data(found)));
            }
            new.write(Shadow { next: *list.first.get(), object, id, size });
            if let Some(constructor) = constructor {
                let value = constructor(object, data(new), constructor_data);
                if value != 0 {
                    return Err(Unmade::Refused(value));
                }
            }
            // A fork, or somebody who reads without the lock, must not find the entry before its content.
            compiler_fence(Ordering::Release);
            list.first.get().write_volatile(new);
            Ok(data(new))
        }
    });
    if made.is_err() {
        // SAFETY: nobody has seen it but the constructor.
        unsafe { heap::free(new.cast(), whole) };
    }
    match made {
        Ok(made) => made,
        Err(Unmade::Exists(found)) => existing(found),
        Err(Unmade::Refused(value)) => {
            report(object, id, value);
            ptr::null_mut()
        }
    }
}

/// Why a variable was not made.
enum Unmade {
    /// There is one.
    Exists(*mut c_void),
    /// The constructor returned this.
    Refused(i32),
}

/// Says what the kernel says: `value` is the constructor's, or 0 of a duplicate.
fn report(object: *mut c_void, id: u64, value: i32) {
    const ERROR: u32 = 3;
    const WARNING: u32 = 4;
    let mut text = super::format::Text::<128>::new();
    let level = if value == 0 { WARNING } else { ERROR };
    let start: &[u8] = if value == 0 {
        b"Duplicate shadow variable <"
    } else {
        b"livepatch: Failed to construct shadow variable <"
    };
    text.add(start);
    text.add_number(object as u64, 16);
    text.add(b", ");
    text.add_number(id, 16);
    text.add(b">");
    if value != 0 {
        text.add(if value < 0 { b" (-" } else { b" (" });
        text.add_number(u64::from(value.unsigned_abs()), 10);
        text.add(b")");
    }
    log::append(level, text.as_bytes());
}

/// `void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, gfp_t flags, klp_shadow_ctor_t ctor, void *ctor_data)`:
/// a new variable, or NULL where there is one already.
///
/// # Safety
/// `constructor` must be what its type says.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn klp_shadow_alloc(
    object: *mut c_void,
    id: u64,
    size: usize,
    _flags: u32,
    constructor: Constructor,
    constructor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { allocate(object, id, size, constructor, constructor_data, false) }
}

/// `void *klp_shadow_get_or_alloc(...)`, as `klp_shadow_alloc`: the variable that there is, or a new one.
///
/// # Safety
/// As [`klp_shadow_alloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn klp_shadow_get_or_alloc(
    object: *mut c_void,
    id: u64,
    size: usize,
    _flags: u32,
    constructor: Constructor,
    constructor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { allocate(object, id, size, constructor, constructor_data, true) }
}

/// Frees the entries of a list that `wanted` picks.
///
/// # Safety
/// `destructor` must be what its type says, and nobody use the variables any more.
unsafe fn free_where(list: &List, destructor: Destructor, wanted: impl Fn(*mut c_void, u64) -> bool) {
    list.lock.with(|| {
        // SAFETY: under the lock; the caller's promise.
        unsafe {
            let mut link = list.first.get();
            while !(*link).is_null() {
                let shadow = *link;
                if !wanted((*shadow).object, (*shadow).id) {
                    link = &raw mut (*shadow).next;
                    continue;
                }
                link.write_volatile((*shadow).next);
                compiler_fence(Ordering::Release);
                if let Some(destructor) = destructor {
                    destructor((*shadow).object, data(shadow));
                }
                heap::free(shadow.cast(), (*shadow).size.wrapping_add(size_of::<Shadow>()));
            }
        }
    });
}

/// `void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor)`
///
/// # Safety
/// `destructor` must be what its type says, and nobody use the variable any more.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn klp_shadow_free(object: *mut c_void, id: u64, destructor: Destructor) {
    // SAFETY: the caller's promise.
    unsafe { free_where(list(object), destructor, |o, i| o == object && i == id) }
}

/// `void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor)`
///
/// # Safety
/// As [`klp_shadow_free`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn klp_shadow_free_all(id: u64, destructor: Destructor) {
    for index in 0..LISTS {
        // SAFETY: an index of the table; the caller's promise.
        unsafe {
            let list = &*TABLE.0.get().cast::<List>().add(index);
            free_where(list, destructor, |_, i| i == id);
        }
    }
}
