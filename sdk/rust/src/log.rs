//! Messages in the log that `ugraft log` prints, by the kernel's names.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::{self, Arguments, Write};
use core::ptr;

/// Bytes of one message; what is longer is cut, as by the log itself.
const LENGTH: usize = 480;

/// How grave a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `pr_emerg!`
    Emerg,
    /// `pr_alert!`
    Alert,
    /// `pr_crit!`
    Crit,
    /// `pr_err!`
    Err,
    /// `pr_warn!`
    Warn,
    /// `pr_notice!`
    Notice,
    /// `pr_info!`
    Info,
    /// `pr_debug!`
    Debug,
}

impl Level {
    /// The format of a message of that level, which takes a length and a text.
    const fn format(self) -> &'static CStr {
        match self {
            Self::Emerg => c"\x010%.*s",
            Self::Alert => c"\x011%.*s",
            Self::Crit => c"\x012%.*s",
            Self::Err => c"\x013%.*s",
            Self::Warn => c"\x014%.*s",
            Self::Notice => c"\x015%.*s",
            Self::Info => c"\x016%.*s",
            Self::Debug => c"\x017%.*s",
        }
    }
}

/// `va_list` of the System V ABI for x86-64 (3.5.7).
#[repr(C)]
struct VaList {
    gp_offset: u32,
    fp_offset: u32,
    overflow: *const c_void,
    saved: *const c_void,
}

/// An offset behind the register save area: all arguments are on the stack.
const NO_REGISTERS: u32 = 304;

unsafe extern "C" {
    fn ugraft_vprintk(format: *const c_char, args: *mut VaList, name: *const c_char) -> c_int;
}

/// The beginning of a text.
pub(crate) struct Buffer {
    bytes: [u8; LENGTH],
    len: usize,
}

impl Buffer {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LENGTH], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text.bytes()) {
            *place = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// Appends a message to the log. May be called from everywhere: it takes no lock and allocates nothing.
pub fn log(level: Level, message: Arguments<'_>) {
    let mut text = Buffer::new();
    // What cannot be formatted is cut there.
    let _ = text.write_fmt(message);
    log_bytes(level, text.as_bytes());
}

pub(crate) fn log_bytes(level: Level, text: &[u8]) {
    let words = [text.len(), text.as_ptr().expose_provenance()];
    let mut args = VaList {
        gp_offset: NO_REGISTERS,
        fp_offset: NO_REGISTERS,
        overflow: words.as_ptr().cast(),
        saved: ptr::null(),
    };
    // SAFETY: the format takes an `int`, which is the lower half of the first word, and so many bytes of a text.
    unsafe { ugraft_vprintk(level.format().as_ptr(), &raw mut args, ptr::null()) };
}

/// Makes the macros of all levels.
macro_rules! macros {
    ($d:tt $($name:ident $level:ident,)*) => {
        $(
            #[doc = concat!("Appends a message of the level ", stringify!($level), " to the log, formatted as by `format!`.")]
            #[macro_export]
            macro_rules! $name {
                ($d($d argument:tt)*) => {
                    $crate::log($crate::Level::$level, ::core::format_args!($d($d argument)*))
                };
            }
        )*
    };
}

macros! { $
    pr_emerg Emerg,
    pr_alert Alert,
    pr_crit Crit,
    pr_err Err,
    pr_warn Warn,
    pr_notice Notice,
    pr_info Info,
    pr_debug Debug,
}
