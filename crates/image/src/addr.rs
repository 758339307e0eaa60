//! Address spaces as types, so that an address of the target is never taken for one of a file or of ours.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further up, wrapping at 2^64 as the CPU's address arithmetic does.
            #[must_use]
            pub const fn offset(self, bytes: i64) -> Self {
                Self(self.0.wrapping_add_signed(bytes))
            }

            /// The signed distance in bytes from `base` to `self`.
            #[must_use]
            pub const fn distance_from(self, base: Self) -> i64 {
                self.0.wrapping_sub(base.0) as i64
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A virtual address in the target process.
    RemoteAddr
}
address! {
    /// An address as an ELF file states it (`p_vaddr`, `st_value`), before the load bias is added.
    LinkAddr
}
address! {
    /// A byte position in a file.
    FileOffset
}
