//! Libraries that come and go while patches are in effect.
//!
//! While a loaded patch names a library that can come or go, the loader's function for debuggers (`r_debug.r_brk`) leads to the
//! hook of the runtime, which patches such libraries before their constructors run and lets go of them when their destructors
//! have run, with no tool around. This is the tool's part: it puts the hook in and takes it off, gives it its [table], and takes over what the hook
//! has done meanwhile.
//!
//! Invariants:
//! - The hook's table and the place that leads to it are changed only while all threads are stopped, none is in the hook, and
//!   the loader's list is whole and noted (`Session::in_loader`). All stops of a session wait for that, so that whatever they
//!   write goes to libraries that are there; those that went since the document was written are known (`Session::is_gone`).
//! - A table is whole before its address is stored, and the one that it follows stays until the next one.
//! - What the hook did becomes part of the document by steps of the semantics that take it over as done.
//! - While a transition runs the table is one of that transition: put there under the stop that begins it, taken away under the one that
//!   ends it, before what it refers to is given up.
//! - No thread is struck by a proof that does not know of all libraries: each that comes or goes changes a count, which is read
//!   when the thread is stopped (`Session::have_libraries_moved`).
//! - A callback that the hook would run, too, if the library went, is run by the tool only when it is claimed (`Session::claim`).
//! - What is written to a library's dynamic section is found by what the runtime notes of it, which is written before, and is as it was
//!   before the runtime goes.
//! - Memory that the hook maps near a library is its own; it begins with a head that tells what it is, so what is left of it
//!   after the hook is found.

mod called;
mod finalizers;
mod follow;
mod hook;
mod noted;
mod present;
mod publish;
pub(crate) mod references;
pub(crate) mod running;
mod settle;
pub mod table;

use crate::RemoteAddr;
use crate::objects::symbols::SymbolError;
use crate::objects::{Object, Objects};
use crate::state::pieces::Libraries;
use std::collections::BTreeSet;
use std::ops::Range;

pub use hook::TABLES_NAME;
pub(crate) use present::is_about_to_come;

impl Libraries {
    /// Memory that the hook has mapped near libraries.
    pub(crate) fn near(&self) -> impl Iterator<Item = Range<RemoteAddr>> {
        let near = self.present.iter().map(|present| present.near).filter(|near| near[1] != 0);
        near.map(|[start, len]| RemoteAddr(start)..RemoteAddr(start).offset(len as i64))
    }

    fn word(&self, offset: usize) -> RemoteAddr {
        self.words.offset(offset as i64)
    }
}

fn loaded<'o, 't>(objects: &'o Objects<'t>, name: &str) -> Option<&'o Object<'t>> {
    match objects.find(Some(name)) {
        Ok(object) => Some(object),
        Err(SymbolError::AmbiguousObject { .. }) => objects.iter().find(|object| object.is_called(name)),
        Err(_) => None,
    }
}

fn is_permanent(objects: &Objects<'_>, permanent: &BTreeSet<usize>, name: &str) -> bool {
    objects.find(Some(name)).is_ok_and(|object| permanent.contains(&object.id().0))
}
