//! What a function of a library is by the patches that are applied to it, while one of them may be in transition.

use super::table::Table;
use crate::expected::{Func, Head, Object, Use};

/// One version of a function.
#[derive(Clone, Copy, Default)]
pub struct Version {
    /// The new function, or 0 for the original one.
    pub new: u64,
    /// Where a jump from the place leads to come there, or 0.
    pub landing: u64,
}

/// What threads come from in the transition that runs, and what they go to: the same where it does not change the function.
#[derive(Clone, Copy, Default)]
pub struct Sides {
    pub source: Version,
    pub goal: Version,
}

impl Sides {
    /// Those of the function at a place of the object. The newest patch wins, as in the tool.
    pub unsafe fn of(table: Table, object: *mut Object, place: u64) -> Self {
        let (mut without, mut with) = (Version::default(), Version::default());
        // SAFETY: the table is the tool's, which lists patches with the oldest first.
        unsafe {
            for i in 0..(*object).uses.count {
                let one: *const Use = table.entry((*object).uses, i);
                for j in 0..(*one).funcs.count {
                    let func: *const Func = table.entry((*one).funcs, j);
                    if (*one).applied != 0 && (*func).place == place {
                        with = Version { new: (*func).new, landing: (*func).landing };
                        if (*one).moving == 0 {
                            without = with;
                        }
                    }
                }
            }
            match (*table.0.cast::<Head>()).disabling {
                0 => Self { source: without, goal: with },
                _ => Self { source: with, goal: without },
            }
        }
    }
}
