//! Shadow variables: data that a patch attaches to data of the program, whose layout it must not change.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_uint, c_ulong, c_void};
use core::fmt;
use core::marker::PhantomData;
use core::ptr;

/// Alignment of the memory that the runtime gives.
const ALIGN: usize = 16;

type Constructor = Option<unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int>;
type Destructor = Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>;

unsafe extern "C" {
    safe fn klp_shadow_get(object: *const c_void, id: c_ulong) -> *mut c_void;
    fn klp_shadow_alloc(
        object: *const c_void,
        id: c_ulong,
        size: usize,
        flags: c_uint,
        constructor: Constructor,
        constructor_data: *mut c_void,
    ) -> *mut c_void;
    fn klp_shadow_get_or_alloc(
        object: *const c_void,
        id: c_ulong,
        size: usize,
        flags: c_uint,
        constructor: Constructor,
        constructor_data: *mut c_void,
    ) -> *mut c_void;
    fn klp_shadow_free(object: *const c_void, id: c_ulong, destructor: Destructor);
    fn klp_shadow_free_all(id: c_ulong, destructor: Destructor);
}

/// The shadow variables of one number, each a `T` that belongs to an address.
///
/// They are there until they are freed, whichever patches come and go, or the last patch is unloaded. Not for signal handlers. `T`
/// must not use shadow variables when it is dropped: that would wait for itself.
pub struct Shadow<T> {
    id: c_ulong,
    of: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Shadow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow").field("id", &self.id).finish()
    }
}

impl<T: Send + Sync + 'static> Shadow<T> {
    /// The variables with the number `id`.
    ///
    /// # Safety
    /// Whatever has that number in the program, by this patch and by every other, must be a `T` with this very layout.
    #[must_use]
    pub const unsafe fn new(id: u64) -> Self {
        const { assert!(align_of::<T>() <= ALIGN, "shadow variables are aligned to 16 bytes") };
        Self { id, of: PhantomData }
    }

    /// The variable of `object`, if there is one.
    #[must_use]
    pub fn get<O: ?Sized>(&self, object: *const O) -> Option<&'static T> {
        // SAFETY: a `T` by the promise of `new`, initialized by a constructor, and in use by nobody once it is freed.
        unsafe { klp_shadow_get(object.cast(), self.id).cast::<T>().as_ref() }
    }

    /// A new variable. `None`, and `value` is dropped, where there is one already or no memory.
    pub fn alloc<O: ?Sized>(&self, object: *const O, value: T) -> Option<&'static T> {
        let mut value = Some(value);
        let (size, data) = (size_of::<T>(), (&raw mut value).cast());
        // SAFETY: the constructor is for a `T` and takes an `Option` of it; as above.
        unsafe {
            klp_shadow_alloc(object.cast(), self.id, size, 0, Some(construct::<T>), data).cast::<T>().as_ref()
        }
    }

    /// The variable of `object`, which is made where there is none; of several threads that make one, one succeeds. `None` where there
    /// is no memory.
    pub fn get_or_alloc<O: ?Sized>(&self, object: *const O, make: impl FnOnce() -> T) -> Option<&'static T> {
        if let Some(there) = self.get(object) {
            return Some(there);
        }
        // Made here, not in the constructor, which runs under a lock.
        let mut value = Some(make());
        let (size, data) = (size_of::<T>(), (&raw mut value).cast());
        // SAFETY: as above.
        unsafe {
            let construct: Constructor = Some(construct::<T>);
            klp_shadow_get_or_alloc(object.cast(), self.id, size, 0, construct, data).cast::<T>().as_ref()
        }
    }

    /// Drops and frees the variable of `object`, if there is one.
    ///
    /// # Safety
    /// Nobody may use it any more.
    pub unsafe fn free<O: ?Sized>(&self, object: *const O) {
        // SAFETY: the destructor is for a `T`; the caller's promise.
        unsafe { klp_shadow_free(object.cast(), self.id, Some(destroy::<T>)) }
    }

    /// Drops and frees all variables of this number.
    ///
    /// # Safety
    /// Nobody may use any of them any more.
    pub unsafe fn free_all(&self) {
        // SAFETY: as above.
        unsafe { klp_shadow_free_all(self.id, Some(destroy::<T>)) }
    }
}

/// Moves the value into a new variable.
unsafe extern "C" fn construct<T>(_object: *mut c_void, data: *mut c_void, value: *mut c_void) -> c_int {
    // SAFETY: called by the functions above only, with room for a `T` and the `Option` that they pass.
    unsafe {
        match (*value.cast::<Option<T>>()).take() {
            Some(value) => {
                data.cast::<T>().write(value);
                0
            }
            None => -1,
        }
    }
}

unsafe extern "C" fn destroy<T>(_object: *mut c_void, data: *mut c_void) {
    // SAFETY: a variable that nobody uses any more.
    unsafe { ptr::drop_in_place(data.cast::<T>()) }
}
