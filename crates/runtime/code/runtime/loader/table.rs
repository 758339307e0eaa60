//! The table that the tool has written, read in its place.

use super::LOADER;
use crate::expected::{Head, Part, TABLE_MAGIC};
use core::sync::atomic::{AtomicU64, Ordering};

/// A table, by its address.
#[derive(Clone, Copy)]
pub struct Table(pub *mut u8);

impl Table {
    /// The table that counts, if there is one.
    pub unsafe fn that_counts() -> Option<Self> {
        // SAFETY: the tool stores the address of a whole table, or 0.
        unsafe {
            let at = AtomicU64::from_ptr(&raw mut (*LOADER.0.get()).table).load(Ordering::Acquire);
            let table = Self(at as usize as *mut u8);
            (at != 0 && (*table.0.cast::<Head>()).magic == TABLE_MAGIC).then_some(table)
        }
    }

    /// An entry of an array, which may be longer than is known here.
    pub unsafe fn entry<T>(self, part: Part, index: u32) -> *mut T {
        // SAFETY: the tool writes offsets of what the table holds.
        unsafe { self.0.add(part.at as usize).add(index as usize * part.each as usize).cast::<T>() }
    }

    pub unsafe fn text<'t>(self, part: Part) -> &'t [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts(self.0.add(part.at as usize), part.count as usize) }
    }

    pub unsafe fn objects(self) -> Part {
        // SAFETY: as above.
        unsafe { (*self.0.cast::<Head>()).objects }
    }
}
