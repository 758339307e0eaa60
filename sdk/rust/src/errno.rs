//! Errors as callbacks return them: the C library's numbers.

use core::ffi::c_int;
use core::num::NonZeroU16;

/// Why a callback refuses: one of the numbers of `<errno.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroU16);

/// The greatest number that the kernel takes for an error (`MAX_ERRNO`).
const MAX: u16 = 4095;

macro_rules! errors {
    ($($name:ident $number:literal $meaning:literal,)*) => {
        impl Errno {
            $(
                #[doc = $meaning]
                pub const $name: Self = Self(NonZeroU16::new($number).unwrap());
            )*
        }
    };
}

errors! {
    EPERM 1 "Operation not permitted.",
    ENOENT 2 "No such file or directory.",
    EIO 5 "Input/output error.",
    ENXIO 6 "No such device or address.",
    E2BIG 7 "Argument list too long.",
    EBADF 9 "Bad file descriptor.",
    EAGAIN 11 "Resource temporarily unavailable.",
    ENOMEM 12 "Cannot allocate memory.",
    EACCES 13 "Permission denied.",
    EFAULT 14 "Bad address.",
    EBUSY 16 "Device or resource busy.",
    EEXIST 17 "File exists.",
    ENODEV 19 "No such device.",
    EINVAL 22 "Invalid argument.",
    ENOSPC 28 "No space left on device.",
    ERANGE 34 "Numerical result out of range.",
    ENOSYS 38 "Function not implemented.",
    ENODATA 61 "No data available.",
    EOPNOTSUPP 95 "Operation not supported.",
    ETIMEDOUT 110 "Connection timed out.",
}

impl Errno {
    /// The error with that number, 1 to 4095.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) if number.get() <= MAX => Some(Self(number)),
            _ => None,
        }
    }

    /// Its number, positive.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// What a C function returns for a result.
    #[doc(hidden)]
    #[must_use]
    pub fn of(result: Result<(), Self>) -> c_int {
        result.map_or_else(|error| -c_int::from(error.number()), |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_the_kernel_s() {
        assert_eq!(Errno::of(Ok(())), 0);
        assert_eq!(Errno::of(Err(Errno::ENODEV)), -19);
        assert_eq!(Errno::new(0), None);
        assert_eq!(Errno::new(4096), None);
        assert_eq!(Errno::new(22), Some(Errno::EINVAL));
    }
}
