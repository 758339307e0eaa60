//! What of ours lies in the target besides the images of patches, as the document states it: where it is, and what reaches it. What is done
//! with each is told where it is done.

use crate::RemoteAddr;
use crate::code::entry::Entry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use ugraft_core::{FuncId, PatchId};

/// A call area in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallArea {
    /// The mapping that holds it.
    pub mapping: Range<RemoteAddr>,
    /// The trampoline.
    pub code: Range<RemoteAddr>,
    /// Where in it a thread begins that is taken out of its call.
    pub leave: RemoteAddr,
    /// The control block.
    pub control: RemoteAddr,
    /// The callback's stack.
    pub stack: Range<RemoteAddr>,
}

/// The runtime as it lies in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Its version: [`VERSION`](ugraft_runtime::expected::VERSION) of who linked it; 0 where that did not say.
    #[serde(default)]
    pub version: u32,
    /// The mapping that holds it.
    pub mapping: Range<RemoteAddr>,
    /// Its functions, by name.
    pub functions: BTreeMap<String, RemoteAddr>,
    /// Its log.
    pub log: RemoteAddr,
    /// Its table of patches.
    pub patches: RemoteAddr,
    /// Its unwind tables.
    #[serde(default)]
    pub tables: Option<Tables>,
    /// Its hook for the dynamic loader; `None` in what earlier versions linked.
    #[serde(default)]
    pub hook: Option<LoaderHook>,
}

/// The runtime's hook for the dynamic loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderHook {
    /// The function.
    pub function: RemoteAddr,
    /// Its words.
    pub words: RemoteAddr,
    /// The callback that it runs.
    pub running: RemoteAddr,
    /// What it notes of libraries' finalizers.
    pub finalizers: RemoteAddr,
    /// Where these lead.
    pub finalizer_code: RemoteAddr,
}

/// Unwind tables as they lie in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// The code they are for.
    pub code: Range<RemoteAddr>,
    /// The tables (`.eh_frame`).
    pub tables: Range<RemoteAddr>,
    /// Their index (`.eh_frame_hdr`).
    pub index: Range<RemoteAddr>,
}

/// Our code that unwinders ask, as it lies in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwinder {
    /// The mapping that holds it.
    pub mapping: Range<RemoteAddr>,
    /// Its own unwind tables.
    pub tables: Tables,
    /// Its table of images.
    pub table: RemoteAddr,
    /// The functions that lead to it.
    pub hooks: Vec<UnwinderHook>,
}

/// A function of the C library or the loader that leads to ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwinderHook {
    /// Which.
    pub func: FuncId,
    /// Its entry.
    pub entry: Entry,
    /// What it leads to.
    pub landing: RemoteAddr,
}

/// The hook in the loader, and what it is known to have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// The mapping with two tables.
    pub mapping: Range<RemoteAddr>,
    /// The hook's words.
    pub words: RemoteAddr,
    /// The hook.
    pub hook: RemoteAddr,
    /// The loader's function that is to lead to it.
    pub entry: Entry,
    /// The loader's `struct r_debug`.
    pub debug: RemoteAddr,
    /// The libraries of the table that are loaded, and others that the document has sites in: as far as the rest of the
    /// document knows of them.
    pub present: Vec<Present>,
    /// The table that `present` names places of.
    #[serde(default)]
    pub table: RemoteAddr,
    /// Whether that table is one of a transition.
    #[serde(default)]
    pub moving: bool,
    /// The patches in effect for which the table was written; `None` where it is to be written again.
    pub fits: Option<Vec<PatchId>>,
}

/// A library that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// What patches call it.
    pub name: String,
    /// Its place in the table; `None` for one that the table does not name.
    pub index: Option<usize>,
    /// Its `struct link_map`.
    pub link_map: RemoteAddr,
    /// What is added to its file's addresses.
    pub bias: u64,
    /// Where memory begins that the hook mapped near it, and how much it is.
    pub near: [u64; 2],
    /// Tells this time that it is loaded from others.
    pub came: u64,
}
