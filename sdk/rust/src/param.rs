//! Parameters: variables of the patch that are set when it is loaded, and read and written while it is.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::mem::transmute_copy;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

mod sealed {
    pub trait Sealed {}
}

/// What a parameter can be.
pub trait ParamType: Copy + sealed::Sealed + 'static {
    /// The name of the type in `module_param`.
    #[doc(hidden)]
    const NAME: &'static CStr;
}

macro_rules! types {
    ($($name:ty => $c:literal,)*) => {
        $(
            impl sealed::Sealed for $name {}
            impl ParamType for $name {
                const NAME: &'static CStr = $c;
            }
        )*
    };
}

types! {
    bool => c"bool",
    u8 => c"byte",
    i16 => c"short",
    u16 => c"ushort",
    i32 => c"int",
    u32 => c"uint",
    i64 => c"long",
    u64 => c"ulong",
    Text => c"charp",
}

/// The value of a parameter that is a text.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// A text.
    #[must_use]
    pub const fn new(text: &'static CStr) -> Self {
        Self(text.as_ptr())
    }

    /// The text. It stays for as long as the patch does, whatever the parameter is set to meanwhile.
    #[must_use]
    pub fn as_c_str(self) -> &'static CStr {
        // SAFETY: made above, or written by ugraft, whose texts go with the patch.
        unsafe { CStr::from_ptr(self.0) }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_c_str().fmt(f)
    }
}

/// A parameter: `static LIMIT: Param<i32> = Param::new(10);`, and `params: { "limit" => LIMIT }` in the declaration of the patch.
///
/// Its types are `bool`, `u8`, `i16`, `u16`, `i32`, `u32`, `i64`, `u64` and [`Text`].
#[repr(transparent)]
pub struct Param<T: ParamType>(UnsafeCell<T>);

// SAFETY: it is accessed atomically only, by the patch and by ugraft, and holds values that are good in every thread.
unsafe impl<T: ParamType> Sync for Param<T> {}

impl<T: ParamType> fmt::Debug for Param<T>
where
    T: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Param").field(&self.get()).finish()
    }
}

impl<T: ParamType> Param<T> {
    /// A parameter with the value that it has unless another is asked for.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> T {
        let at = self.0.get();
        // SAFETY: the atomic has the size and, on this machine, the alignment of the value, which was one before, too: ugraft
        // writes values of the type only.
        unsafe {
            match size_of::<T>() {
                1 => transmute_copy(&AtomicU8::from_ptr(at.cast()).load(Ordering::Acquire)),
                2 => transmute_copy(&AtomicU16::from_ptr(at.cast()).load(Ordering::Acquire)),
                4 => transmute_copy(&AtomicU32::from_ptr(at.cast()).load(Ordering::Acquire)),
                _ => transmute_copy(&AtomicU64::from_ptr(at.cast()).load(Ordering::Acquire)),
            }
        }
    }

    /// Sets it.
    pub fn set(&self, value: T) {
        let at = self.0.get();
        // SAFETY: as above.
        unsafe {
            match size_of::<T>() {
                1 => AtomicU8::from_ptr(at.cast()).store(transmute_copy(&value), Ordering::Release),
                2 => AtomicU16::from_ptr(at.cast()).store(transmute_copy(&value), Ordering::Release),
                4 => AtomicU32::from_ptr(at.cast()).store(transmute_copy(&value), Ordering::Release),
                _ => AtomicU64::from_ptr(at.cast()).store(transmute_copy(&value), Ordering::Release),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_keeps_its_values() {
        let flag = Param::new(false);
        flag.set(true);
        assert!(flag.get());
        let (byte, short, int) = (Param::new(0u8), Param::new(0i16), Param::new(0i32));
        byte.set(255);
        short.set(-2);
        int.set(i32::MIN);
        assert_eq!((byte.get(), short.get(), int.get()), (255, -2, i32::MIN));
        let long = Param::new(u64::MAX);
        assert_eq!(long.get(), u64::MAX);
        let text = Param::new(Text::new(c"one"));
        text.set(Text::new(c"two"));
        assert_eq!(text.get().as_c_str(), c"two");
    }
}
