//! The structures of `sdk/include/ugraft/livepatch.h`, and what callbacks may ask of them.
//!
//! Layouts are asserted here, and compared with what a C compiler makes of the header by `tests/layout.rs`. What ugraft
//! writes while the patch is loaded (`mod` of an object), and what the patch may (`replace`, a state's `data`), is atomic: it
//! keeps the structures in writable memory, and the compiler from knowing what is in them.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// `struct klp_func`: one function to replace.
#[repr(C)]
#[derive(Debug)]
pub struct Func {
    old_name: *const c_char,
    new_func: *const c_void,
    old_sympos: c_ulong,
    reserved: [c_ulong; 3],
}

/// `struct klp_callbacks`.
#[repr(C)]
#[derive(Debug)]
pub struct Callbacks {
    #[doc(hidden)]
    pub pre_patch: Option<unsafe extern "C" fn(*mut Object) -> c_int>,
    #[doc(hidden)]
    pub post_patch: Option<unsafe extern "C" fn(*mut Object)>,
    #[doc(hidden)]
    pub pre_unpatch: Option<unsafe extern "C" fn(*mut Object)>,
    #[doc(hidden)]
    pub post_unpatch: Option<unsafe extern "C" fn(*mut Object)>,
    post_unpatch_enabled: bool,
}

/// `struct klp_object`: an object of the target whose functions are replaced.
#[repr(C)]
#[derive(Debug)]
pub struct Object {
    name: *const c_char,
    funcs: *const Func,
    callbacks: Callbacks,
    module: AtomicPtr<Module>,
    reserved: [c_ulong; 2],
}

/// `struct module`: a library, as a callback sees it.
#[repr(C)]
#[derive(Debug)]
pub struct Module {
    state: c_uint,
    name: *const c_char,
}

/// What is happening to an object while a callback runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// Loaded and running.
    Live,
    /// Being loaded, constructors not yet run.
    Coming,
    /// Being unloaded, destructors already run.
    Going,
}

/// `struct klp_state`: a state of the system that a patch changes and a later one can take over.
#[repr(C)]
#[derive(Debug)]
pub struct State {
    id: c_ulong,
    version: c_uint,
    data: AtomicPtr<c_void>,
}

/// `struct klp_patch`: a patch, applied and removed as a whole.
#[repr(C)]
#[derive(Debug)]
pub struct Patch {
    module: *mut Module,
    objs: *const Object,
    states: *const State,
    replace: AtomicBool,
    reserved: [c_ulong; 2],
}

/// `struct klp_param`: a parameter.
#[repr(C)]
#[derive(Debug)]
#[doc(hidden)]
pub struct ParamEntry {
    name: *const c_char,
    kind: *const c_char,
    variable: *const c_void,
    width: c_ulong,
}

/// An init or exit function.
#[doc(hidden)]
pub type InitFn<R> = extern "C" fn() -> R;

// SAFETY: their pointers are set once, before the program runs, to what never goes; the rest is atomic.
unsafe impl Sync for Func {}
// SAFETY: as above.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Sync for Patch {}
// SAFETY: as above.
unsafe impl Sync for ParamEntry {}

unsafe extern "C" {
    fn klp_get_state(patch: *const Patch, id: c_ulong) -> *const State;
    safe fn klp_get_prev_state(id: c_ulong) -> *const State;
}

impl Func {
    /// The empty entry that ends an array of them.
    #[must_use]
    pub const fn end() -> Self {
        Self { old_name: ptr::null(), new_func: ptr::null(), old_sympos: 0, reserved: [0; 3] }
    }

    #[doc(hidden)]
    #[must_use]
    pub const fn new(old_name: &'static CStr, old_sympos: c_ulong, new_func: *const ()) -> Self {
        Self { old_name: old_name.as_ptr(), new_func: new_func.cast(), old_sympos, reserved: [0; 3] }
    }
}

impl Callbacks {
    /// None.
    pub const NONE: Self = Self {
        pre_patch: None,
        post_patch: None,
        pre_unpatch: None,
        post_unpatch: None,
        post_unpatch_enabled: false,
    };
}

impl Object {
    /// The empty entry that ends an array of them.
    #[must_use]
    pub const fn end() -> Self {
        Self {
            name: ptr::null(),
            funcs: ptr::null(),
            callbacks: Callbacks::NONE,
            module: AtomicPtr::new(ptr::null_mut()),
            reserved: [0; 2],
        }
    }

    #[doc(hidden)]
    #[must_use]
    pub const fn new(name: Option<&'static CStr>, funcs: &'static [Func], callbacks: Callbacks) -> Self {
        let name = match name {
            Some(name) => name.as_ptr(),
            None => ptr::null(),
        };
        Self {
            name,
            funcs: funcs.as_ptr(),
            callbacks,
            module: AtomicPtr::new(ptr::null_mut()),
            reserved: [0; 2],
        }
    }

    /// The library's name; `None` for the main executable.
    #[must_use]
    pub fn name(&self) -> Option<&CStr> {
        // SAFETY: null, or one of the declaration's texts.
        (!self.name.is_null()).then(|| unsafe { CStr::from_ptr(self.name) })
    }

    /// What is happening to it, for callbacks.
    #[must_use]
    pub fn state(&self) -> ObjectState {
        let module = self.module.load(Ordering::Acquire);
        // SAFETY: null, or what ugraft keeps there while a callback runs, which alone has an object at hand.
        match unsafe { module.as_ref() }.map(|module| module.state) {
            Some(1) => ObjectState::Coming,
            Some(2) => ObjectState::Going,
            _ => ObjectState::Live,
        }
    }

    /// The state of that number of the newest enabled patch below (`klp_get_prev_state`). Of a callback's object, since it may be
    /// asked for in callbacks only.
    #[must_use]
    pub fn previous_state(&self, id: u64) -> Option<&State> {
        // SAFETY: null, or a state of a patch that stays loaded while a callback runs.
        unsafe { klp_get_prev_state(id).as_ref() }
    }
}

impl State {
    /// The empty entry that ends an array of them.
    #[must_use]
    pub const fn end() -> Self {
        Self::new(0, 0)
    }

    #[doc(hidden)]
    #[must_use]
    pub const fn new(id: c_ulong, version: c_uint) -> Self {
        Self { id, version, data: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What the patch that it belongs to keeps with it; null at first.
    #[must_use]
    pub fn data(&self) -> *mut c_void {
        self.data.load(Ordering::Acquire)
    }

    /// Keeps something with it.
    pub fn set_data(&self, data: *mut c_void) {
        self.data.store(data, Ordering::Release);
    }
}

impl Patch {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(objs: &'static [Object], states: Option<&'static [State]>, replace: bool) -> Self {
        let states = match states {
            Some(states) => states.as_ptr(),
            None => ptr::null(),
        };
        Self {
            module: ptr::null_mut(),
            objs: objs.as_ptr(),
            states,
            replace: AtomicBool::new(replace),
            reserved: [0; 2],
        }
    }

    /// Says whether the patch takes the place of every other, for its init function.
    pub fn set_replace(&self, replace: bool) {
        self.replace.store(replace, Ordering::Release);
    }

    /// The patch's own state of that number (`klp_get_state`).
    #[must_use]
    pub fn state(&'static self, id: u64) -> Option<&'static State> {
        // SAFETY: `self` is a patch; its states are statics.
        unsafe { klp_get_state(self, id).as_ref() }
    }
}

impl ParamEntry {
    #[doc(hidden)]
    #[must_use]
    pub const fn new<T: crate::ParamType>(name: &'static CStr, variable: &'static crate::Param<T>) -> Self {
        Self {
            name: name.as_ptr(),
            kind: T::NAME.as_ptr(),
            variable: (&raw const *variable).cast(),
            width: size_of::<T>() as c_ulong,
        }
    }
}

/// A text as an array.
#[doc(hidden)]
#[must_use]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let (mut bytes, mut at) = ([0; N], 0);
    while at < N {
        bytes[at] = text.as_bytes()[at];
        at += 1;
    }
    bytes
}

/// Where everything lies, under the header's names.
#[doc(hidden)]
pub const LAYOUT: &[(&str, usize)] = &[
    ("sizeof klp_func", size_of::<Func>()),
    ("klp_func.old_name", offset_of!(Func, old_name)),
    ("klp_func.new_func", offset_of!(Func, new_func)),
    ("klp_func.old_sympos", offset_of!(Func, old_sympos)),
    ("klp_func.klp_reserved", offset_of!(Func, reserved)),
    ("sizeof klp_callbacks", size_of::<Callbacks>()),
    ("klp_callbacks.pre_patch", offset_of!(Callbacks, pre_patch)),
    ("klp_callbacks.post_patch", offset_of!(Callbacks, post_patch)),
    ("klp_callbacks.pre_unpatch", offset_of!(Callbacks, pre_unpatch)),
    ("klp_callbacks.post_unpatch", offset_of!(Callbacks, post_unpatch)),
    ("klp_callbacks.post_unpatch_enabled", offset_of!(Callbacks, post_unpatch_enabled)),
    ("sizeof klp_object", size_of::<Object>()),
    ("klp_object.name", offset_of!(Object, name)),
    ("klp_object.funcs", offset_of!(Object, funcs)),
    ("klp_object.callbacks", offset_of!(Object, callbacks)),
    ("klp_object.mod", offset_of!(Object, module)),
    ("klp_object.klp_reserved", offset_of!(Object, reserved)),
    ("sizeof klp_state", size_of::<State>()),
    ("klp_state.id", offset_of!(State, id)),
    ("klp_state.version", offset_of!(State, version)),
    ("klp_state.data", offset_of!(State, data)),
    ("sizeof klp_patch", size_of::<Patch>()),
    ("klp_patch.mod", offset_of!(Patch, module)),
    ("klp_patch.objs", offset_of!(Patch, objs)),
    ("klp_patch.states", offset_of!(Patch, states)),
    ("klp_patch.replace", offset_of!(Patch, replace)),
    ("klp_patch.klp_reserved", offset_of!(Patch, reserved)),
    ("sizeof klp_param", size_of::<ParamEntry>()),
    ("klp_param.name", offset_of!(ParamEntry, name)),
    ("klp_param.type", offset_of!(ParamEntry, kind)),
    ("klp_param.variable", offset_of!(ParamEntry, variable)),
    ("klp_param.width", offset_of!(ParamEntry, width)),
    ("sizeof module", size_of::<Module>()),
    ("module.state", offset_of!(Module, state)),
    ("module.name", offset_of!(Module, name)),
];

// As crates/image reads them.
const _: () = assert!(size_of::<Func>() == 48 && size_of::<Callbacks>() == 40 && size_of::<Object>() == 80);
const _: () = assert!(size_of::<State>() == 24 && size_of::<Patch>() == 48 && size_of::<ParamEntry>() == 32);
