//! Which libraries the hook has seen.

use super::list::{Debug, each};
use super::table::Table;
use crate::expected::Part;

/// The libraries that have been seen. One that was there before anybody looked, or that is another copy of one that is patched, is in
/// use, and not for the hook to change, also when it alone is left.
pub struct Seen(pub Table, pub Part);

impl Seen {
    unsafe fn slot(&self, index: u32) -> *mut u64 {
        // SAFETY: as for `look`.
        unsafe { self.0.entry(self.1, index) }
    }

    /// Forgets those that are gone: their addresses may come again. Whether there were any.
    pub unsafe fn forget(&self, debug: *const Debug) -> bool {
        let mut any = false;
        // SAFETY: as for `look`.
        unsafe {
            for i in 0..self.1.count {
                let slot = self.slot(i);
                if *slot != 0 {
                    let mut listed = false;
                    each(debug, |map| {
                        listed |= map as u64 == *slot;
                        !listed
                    });
                    if !listed {
                        *slot = 0;
                        any = true;
                    }
                }
            }
        }
        any
    }

    /// Whether it was not seen yet, which it is from now on. Without room for it nobody can tell: then it is not new.
    pub unsafe fn is_new(&self, map: u64) -> bool {
        // SAFETY: as for `look`.
        unsafe {
            let mut free = None;
            for i in 0..self.1.count {
                let slot = self.slot(i);
                if *slot == map {
                    return false;
                }
                if *slot == 0 {
                    free.get_or_insert(slot);
                }
            }
            free.is_some_and(|slot| {
                *slot = map;
                true
            })
        }
    }
}
