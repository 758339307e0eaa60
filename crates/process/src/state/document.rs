//! The document: what the state area says of a target.
//!
//! It holds the semantics' [`State`] and the facts that only the machine level knows: where images lie, which
//! functions are redirected and what was there before, where the running transition keeps its word, tables and stubs.
//! Every mapping of ours that it does not name is nobody's, and may be given back once no stack refers to it
//! (see [`crate::session::sweep`]); so a tool that dies between making a mapping and naming it loses nothing.

use crate::code::entry::Entry;
use crate::code::pending::Capacity;
use crate::objects::{Objects, demangle};
use crate::state::pieces::{CallArea, Libraries, Runtime, Tables, Unwinder};
use crate::{Error, Pid, RemoteAddr, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use ugraft_core::{FuncId, Implementation, PatchId, State};
use ugraft_image::ParamKind;
use ugraft_runtime::expected::{self, LATER};

/// Version of the document's written form. Who reads a greater one changes nothing ([`Document::check_version`]).
pub const FORMAT: u32 = 1;

/// Name and version of this program, as documents state them.
pub const TOOL: &str = match LATER {
    0 => concat!("ugraft ", env!("CARGO_PKG_VERSION")),
    _ => concat!("ugraft ", env!("CARGO_PKG_VERSION"), "+next"),
};

/// Bytes from one gate's count to the next.
pub const GATE_LEN: i64 = 4;

/// All that is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Version of the written form.
    pub format: u32,
    /// Name and version of the tool that wrote it.
    pub tool: String,
    /// What is patched and in transition.
    pub state: State,
    /// Images of the loaded patches.
    pub images: Vec<Image>,
    /// Functions that were redirected, are, or are about to be.
    pub sites: Vec<Site>,
    /// What the running transition keeps in the target.
    pub arena: Option<Arena>,
    /// Where callbacks run, while a patch that has any is loaded.
    pub call_area: Option<CallArea>,
    /// What patches call, while a patch is loaded that does.
    pub runtime: Option<Runtime>,
    /// What unwinders in the target know images by, while there is one.
    pub unwinder: Option<Unwinder>,
    /// The hook in the dynamic loader, while a patch is loaded that names libraries which can come or go.
    pub libraries: Option<Libraries>,
    /// Where the hook mapped memory near libraries, and how much, that nobody needs any more. It may be gone by now.
    pub strays: Vec<[u64; 2]>,
    /// The callback that a thread was set to run, and whose result has not been taken.
    pub call: Option<RunningCall>,
    /// The number of the last callback that a thread was set to run.
    pub calls: u32,
}

/// A callback that a thread was set to run. What came of it is told by the [call area](crate::session::callbacks::call_area).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningCall {
    /// Its number.
    pub number: u32,
    /// The thread.
    pub tid: i32,
}

/// A patch's code and data in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Whose.
    pub patch: PatchId,
    /// The mappings that hold it, its trampolines included.
    pub mappings: Vec<Range<RemoteAddr>>,
    /// Its new functions.
    pub funcs: Vec<NewFunc>,
    /// All its functions, for backtraces.
    pub symbols: Vec<Symbol>,
    /// Its `struct klp_patch`.
    #[serde(default)]
    pub structure: RemoteAddr,
    /// Its objects, with their callbacks.
    #[serde(default)]
    pub objects: Vec<ImageObject>,
    /// Its function for loading, and that for unloading.
    #[serde(default)]
    pub init: Option<RemoteAddr>,
    /// See `init`.
    #[serde(default)]
    pub exit: Option<RemoteAddr>,
    /// Its parameters.
    #[serde(default)]
    pub params: Vec<ImageParam>,
    /// Its unwind tables.
    #[serde(default)]
    pub tables: Option<Tables>,
    /// What it refers to in libraries that can come or go.
    #[serde(default)]
    pub references: Vec<Reference>,
}

/// A word of an image that holds the address of a symbol of a library while that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The library, as the patch's description has it.
    pub object: String,
    /// The symbol.
    pub symbol: String,
    /// Its position among those of that name; 0 for the only one.
    pub position: u32,
    /// Where the word lies.
    pub word: RemoteAddr,
    /// What it holds more than the symbol's address; without the library, this alone.
    pub addend: i64,
}

/// An object of a patch, as it lies in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageObject {
    /// The library's name; `None` is the main executable.
    pub name: Option<String>,
    /// Its `struct klp_object`, the argument of the callbacks.
    pub addr: RemoteAddr,
    /// The callbacks, where it has them.
    pub pre_patch: Option<RemoteAddr>,
    /// See `pre_patch`.
    pub post_patch: Option<RemoteAddr>,
    /// See `pre_patch`.
    pub pre_unpatch: Option<RemoteAddr>,
    /// See `pre_patch`.
    pub post_unpatch: Option<RemoteAddr>,
}

/// A parameter of a patch, as it lies in the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageParam {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ParamKind,
    /// Its variable.
    pub addr: RemoteAddr,
}

impl Image {
    /// Whether the patch has code that is run for it.
    #[must_use]
    pub fn has_callbacks(&self) -> bool {
        self.init.is_some() || self.exit.is_some() || self.objects.iter().any(ImageObject::has_callbacks)
    }
}

impl ImageObject {
    /// Whether it has any callback.
    #[must_use]
    pub fn has_callbacks(&self) -> bool {
        [self.pre_patch, self.post_patch, self.pre_unpatch, self.post_unpatch].iter().any(Option::is_some)
    }
}

/// A patch's own version of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFunc {
    /// The function it takes the place of.
    pub func: FuncId,
    /// Where it begins.
    pub addr: RemoteAddr,
    /// Where redirects to it lead: its beginning, or a trampoline within their reach.
    pub landing: RemoteAddr,
    /// Its code, with its cold parts.
    pub code: Vec<Range<RemoteAddr>>,
}

/// A function of a patch's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub range: Range<RemoteAddr>,
}

/// A function of the target that patches redirect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The function.
    pub func: FuncId,
    /// What is written at its entry, and what was there.
    pub entry: Entry,
    /// The original code, with its cold parts.
    pub code: Vec<Range<RemoteAddr>>,
    /// Device and inode of the file mapped there, to notice that the object is another one now.
    pub file: ((u32, u32), u64),
}

/// What a transition keeps in the target while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arena {
    /// The transition word: 0 before the begin, then the address of the table that is valid.
    pub word: RemoteAddr,
    /// The two pending tables: the second one is valid while the transition is turned round.
    pub tables: [RemoteAddr; 2],
    /// The counts of the gates, of 32 bits each, in the order of `stubs`; `None` in what earlier versions wrote, whose stubs
    /// have none.
    #[serde(default)]
    pub gates: Option<RemoteAddr>,
    /// Slots of each table.
    pub slots: u64,
    /// The mappings that hold all of it.
    pub mappings: Vec<Range<RemoteAddr>>,
    /// The part of them that is code: stubs and thunks.
    pub code: Vec<Range<RemoteAddr>>,
    /// The stub of each changing function.
    pub stubs: Vec<(FuncId, RemoteAddr)>,
    /// When the transition was prepared, in nanoseconds since 1970-01-01 UTC.
    pub began_ns: u64,
    /// Whether suspended stacks are looked for in all writable memory, too.
    #[serde(default)]
    pub scan_memory: bool,
    /// The loader's code that binds calls at their first use.
    #[serde(default)]
    pub resolvers: Vec<Range<RemoteAddr>>,
}

impl Arena {
    /// The tables' capacity.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the document states an impossible one.
    pub fn capacity(&self) -> Result<Capacity> {
        Capacity::from_slots(self.slots as usize)
            .ok_or_else(|| Error::Damaged(format!("a pending table cannot have {} slots", self.slots)))
    }

    /// Which of the tables is valid by this transition word; `None` where the transition has not begun.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the word is the address of neither.
    pub fn valid_table(&self, word: u64) -> Result<Option<usize>> {
        match self.tables.iter().position(|table| table.0 == word) {
            _ if word == 0 => Ok(None),
            None => {
                Err(Error::Damaged(format!("the transition word is {word:#x}, which is no pending table")))
            }
            valid => Ok(valid),
        }
    }

    /// Where the count of the gate of `func` lies.
    #[must_use]
    pub fn gate(&self, func: &FuncId) -> Option<RemoteAddr> {
        let i = self.stubs.iter().position(|(f, _)| f == func)?;
        Some(self.gates?.offset(i as i64 * GATE_LEN))
    }

    /// The stub that serves `func`.
    ///
    /// # Errors
    /// [`Error::Damaged`] where there is none.
    pub fn stub(&self, func: &FuncId) -> Result<RemoteAddr> {
        let found = self.stubs.iter().find(|(f, _)| f == func);
        found.map(|(_, at)| *at).ok_or_else(|| Error::Damaged(format!("the function {func} has no stub")))
    }
}

impl Document {
    /// Reads the written form, as far as this version knows it.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::Damaged(e.to_string()))
    }

    /// Fails if a later version has written this, or put code into the target `pid`, of which this one may not know enough to change
    /// anything.
    ///
    /// # Errors
    /// [`Error::LaterVersion`].
    pub fn check_version(&self, pid: Pid) -> Result<()> {
        let runtime = self.runtime.as_ref().map_or(0, |runtime| runtime.version);
        let is_later =
            self.format > FORMAT || self.state.format() > ugraft_core::FORMAT || runtime > expected::VERSION;
        if is_later { Err(Error::LaterVersion { pid, tool: self.tool.clone() }) } else { Ok(()) }
    }

    /// The written form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serialization of plain data with string keys cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether nothing is left to know.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.patches().is_empty()
            && self.images.is_empty()
            && self.arena.is_none()
            && self.libraries.is_none()
    }

    /// Every mapping that is in use.
    pub fn mappings(&self) -> impl Iterator<Item = &Range<RemoteAddr>> {
        let images = self.images.iter().flat_map(|image| &image.mappings);
        let arenas = self.arena.iter().flat_map(|arena| &arena.mappings);
        images
            .chain(arenas)
            .chain(self.call_area.iter().map(|area| &area.mapping))
            .chain(self.runtime.iter().map(|runtime| &runtime.mapping))
            .chain(self.unwinder.iter().map(|unwinder| &unwinder.mapping))
            .chain(self.libraries.iter().map(|libraries| &libraries.mapping))
    }

    /// The name of what lies at an address, `object: function+offset`, or `patch: function+offset`; `objects` as far as they are known.
    pub(crate) fn symbol(&self, addr: RemoteAddr, objects: Option<&Objects<'_>>) -> Option<String> {
        for image in &self.images {
            if let Some(symbol) = image.symbols.iter().find(|s| s.range.contains(&addr)) {
                let patch = self.state.patch(image.patch).map_or("?", |p| p.name());
                return Some(format!(
                    "{patch}: {}+{:#x}",
                    symbol.name,
                    addr.distance_from(symbol.range.start)
                ));
            }
        }
        let objects = objects?;
        let found = objects.symbolize(addr).ok()??;
        let object = objects.get(found.object).name();
        let function = found.function?;
        let function = demangle::demangle(&function).unwrap_or(function);
        Some(format!("{object}: {function}+{:#x}", found.offset))
    }

    /// The image of a patch.
    ///
    /// # Errors
    /// [`Error::Damaged`] where there is none.
    pub fn image(&self, patch: PatchId) -> Result<&Image> {
        let found = self.images.iter().find(|image| image.patch == patch);
        found.ok_or_else(|| Error::Damaged(format!("patch {} has no image", patch.0)))
    }

    /// The site of a function; `None` where its object is not loaded.
    #[must_use]
    pub fn site(&self, func: &FuncId) -> Option<&Site> {
        self.sites.iter().find(|site| site.func == *func)
    }

    /// Where a redirect to an implementation leads; `None` for the original.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the patch has no such function.
    pub fn landing(&self, func: &FuncId, implementation: Implementation) -> Result<Option<RemoteAddr>> {
        Ok(self.new_func(func, implementation)?.map(|new| new.landing))
    }

    /// The code of an implementation.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not known.
    pub fn code(&self, func: &FuncId, implementation: Implementation) -> Result<&[Range<RemoteAddr>]> {
        match self.new_func(func, implementation)? {
            Some(new) => Ok(&new.code),
            None => {
                let site = self.site(func);
                site.map(|s| s.code.as_slice())
                    .ok_or_else(|| Error::Damaged(format!("the function {func} has no site")))
            }
        }
    }

    fn new_func(&self, func: &FuncId, implementation: Implementation) -> Result<Option<&NewFunc>> {
        let Implementation::Patch(patch) = implementation else { return Ok(None) };
        let new = self.image(patch)?.funcs.iter().find(|new| new.func == *func);
        new.map(Some).ok_or_else(|| Error::Damaged(format!("patch {} has no function {func}", patch.0)))
    }
}
