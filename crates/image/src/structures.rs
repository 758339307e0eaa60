//! Reads `struct klp_patch` and what it points to out of an unlinked file, where every pointer is a relocation.
//!
//! The sizes and offsets are those of <ugraft/livepatch.h> on x86-64; a test compiles the header and compares.

use crate::error::{Error, Result};
use crate::info::{Info, check_object_name};
use crate::klp_symbol::EXE;
use crate::limits;
use crate::metadata::{Callbacks, Func, Metadata, Object, Param, PatchState};
use crate::param::ParamKind;
use crate::reloc::{Kind, Reloc};
use crate::sections::{Part, Section};
use crate::symbols::{Place, Symbol, SymbolKind};

/// A structure's size, and the offsets of its members.
mod klp {
    pub mod func {
        pub const SIZE: u64 = 48;
        pub const OLD_NAME: u64 = 0;
        pub const NEW_FUNC: u64 = 8;
        pub const OLD_SYMPOS: u64 = 16;
        pub const RESERVED: core::ops::Range<u64> = 24..48;
    }
    pub mod object {
        pub const SIZE: u64 = 80;
        pub const NAME: u64 = 0;
        pub const FUNCS: u64 = 8;
        /// Four pointers.
        pub const CALLBACKS: u64 = 16;
        /// post_unpatch_enabled, mod and klp_reserved.
        pub const RESERVED: core::ops::Range<u64> = 48..80;
    }
    pub mod state {
        pub const SIZE: u64 = 24;
        pub const ID: u64 = 0;
        pub const VERSION: u64 = 8;
        pub const RESERVED: core::ops::Range<u64> = 16..24;
    }
    pub mod param {
        pub const SIZE: u64 = 32;
        pub const NAME: u64 = 0;
        pub const KIND: u64 = 8;
        pub const VARIABLE: u64 = 16;
        pub const WIDTH: u64 = 24;
    }
    pub mod patch {
        pub const SIZE: u64 = 48;
        pub const MOD: core::ops::Range<u64> = 0..8;
        pub const OBJS: u64 = 8;
        pub const STATES: u64 = 16;
        pub const REPLACE: u64 = 24;
        pub const RESERVED: core::ops::Range<u64> = 25..48;
    }
}

/// Where the header's macros put parameters and the functions for loading and unloading.
const PARAM_SECTION: &str = ".klp.param";
const INIT_SECTION: &str = ".klp.init";
const EXIT_SECTION: &str = ".klp.exit";

/// A place in the image: an index of a section and an offset into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spot {
    pub section: u32,
    pub offset: u64,
}

/// Where the structures lie, in the metadata's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structures {
    pub patch: Spot,
    pub objects: Vec<ObjectSpots>,
    /// The parameters' variables.
    pub params: Vec<Spot>,
    /// Symbols of the functions for loading and unloading.
    pub init: Option<u32>,
    pub exit: Option<u32>,
}

/// Of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSpots {
    pub object: Spot,
    /// Symbols of the new functions.
    pub new_funcs: Vec<u32>,
    /// Symbols of pre_patch, post_patch, pre_unpatch, post_unpatch.
    pub callbacks: [Option<u32>; 4],
}

/// What the structures are read from.
pub struct Reader<'a> {
    pub sections: &'a [Section],
    pub symbols: &'a [Symbol],
    pub name: &'a dyn Fn(u32) -> String,
    /// The function at a spot, by symbol.
    pub functions: &'a std::collections::HashMap<Spot, u32>,
    /// Ends of data objects: (spot of the beginning, size), sorted by section and offset.
    pub objects: &'a [(u32, u64, u64)],
}

/// What a pointer member holds.
enum Pointer {
    Null,
    To(Spot),
}

fn wrong<T>(path: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::Structure { path: path.to_string(), reason: reason.into() })
}

impl Reader<'_> {
    /// Reads everything from the structure at `patch`.
    pub fn read(&self, patch: Spot, info: Info, stem: &str) -> Result<(Metadata, Structures)> {
        let name = match info.name {
            Some(name) => name,
            None => {
                crate::info::check_patch_name("the file's name", stem, "write KLP_NAME(\"...\")")?;
                stem.to_string()
            }
        };
        let path = "patch";
        self.bounds(patch, klp::patch::SIZE, path)?;
        if !self.is_zero(patch, klp::patch::MOD) {
            return wrong("patch.mod", "is neither THIS_MODULE nor NULL: leave it out");
        }
        let replace = self.byte(patch, klp::patch::REPLACE);
        if replace > 1 || !self.is_zero(patch, klp::patch::RESERVED) {
            return wrong(path, "has a value in an internal member: leave those out of the initializer");
        }
        let replace = replace == 1;
        let Pointer::To(objs) = self.pointer(patch, klp::patch::OBJS, "patch.objs")? else {
            return wrong("patch.objs", "is NULL: point it to an array of klp_object");
        };
        let (mut objects, spots) = self.objects(objs)?;
        let states = match self.pointer(patch, klp::patch::STATES, "patch.states")? {
            Pointer::Null => Vec::new(),
            Pointer::To(at) => self.states(at)?,
        };
        for (object, id) in info.build_ids {
            let Some(of) = objects.iter_mut().find(|o| o.name == object) else {
                return Err(Error::Info {
                    what: "build_id".into(),
                    reason: format!(
                        "is for {}, which patch.objs does not list: correct the name",
                        object.as_deref().unwrap_or(EXE)
                    ),
                });
            };
            of.build_id = Some(id);
        }
        if info.depends.contains(&name) {
            return Err(Error::Info {
                what: "depends".into(),
                reason: "names the patch itself: leave it out".into(),
            });
        }
        let (params, variables) = self.params()?;
        let init = self.hook(INIT_SECTION, "module_init")?;
        let exit = self.hook(EXIT_SECTION, "module_exit")?;
        let silent = objects.iter().all(|o| o.funcs.is_empty() && o.callbacks.is_empty());
        if !replace && silent && init.is_none() && exit.is_none() {
            return Err(Error::Empty);
        }
        let metadata = Metadata {
            name,
            version: info.version,
            description: info.description,
            license: info.license,
            replace,
            depends: info.depends,
            objects,
            states,
            params,
            init: init.map(|symbol| (self.name)(symbol)),
            exit: exit.map(|symbol| (self.name)(symbol)),
        };
        Ok((metadata, Structures { patch, objects: spots, params: variables, init, exit }))
    }

    /// The parameters, sorted by name, and their variables.
    fn params(&self) -> Result<(Vec<Param>, Vec<Spot>)> {
        let mut found: Vec<(Param, Spot)> = Vec::new();
        for (section, of) in (0u32..).zip(self.sections).filter(|(_, s)| s.name == PARAM_SECTION) {
            for index in 0..of.size / klp::param::SIZE {
                let path = format!("module_param {}", found.len() + 1);
                if found.len() == limits::MAX_PARAMS {
                    let (count, limit) = (found.len() as u64 + 1, limits::MAX_PARAMS as u64);
                    return Err(Error::TooMany { what: "parameters", count, limit });
                }
                let at = Spot { section, offset: index * klp::param::SIZE };
                let Pointer::To(name) = self.pointer(at, klp::param::NAME, &path)? else {
                    return wrong(&path, "has no name: use the macro of <ugraft/module.h>");
                };
                let name = self.string(name, limits::MAX_PATCH_NAME, &path)?;
                let Pointer::To(kind) = self.pointer(at, klp::param::KIND, &path)? else {
                    return wrong(&path, "has no type: use the macro of <ugraft/module.h>");
                };
                let kind = self.string(kind, limits::MAX_PATCH_NAME, &path)?;
                let Some(kind) = ParamKind::named(&kind) else {
                    return wrong(&path, format!("has type {kind:?}, which is none of module_param's"));
                };
                let variable_path = format!("{path} ({name})");
                let Pointer::To(variable) = self.pointer(at, klp::param::VARIABLE, &variable_path)? else {
                    return wrong(&variable_path, "has no variable");
                };
                self.bounds(variable, kind.size(), &variable_path)?;
                let writable =
                    self.sections.get(variable.section as usize).is_some_and(|s| s.part == Part::Data);
                if self.word(at, klp::param::WIDTH) != kind.size() || !writable {
                    return wrong(&variable_path, "is not a variable of the type that it states");
                }
                if found.iter().any(|(param, _)| param.name == name) {
                    return wrong(&variable_path, "is declared twice");
                }
                found.push((Param { name, kind }, variable));
            }
        }
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        Ok(found.into_iter().unzip())
    }

    /// The function that a pointer in the section named so leads to.
    fn hook(&self, section: &str, macro_name: &str) -> Result<Option<u32>> {
        let mut found = (0u32..).zip(self.sections).filter(|(_, s)| s.name == section && s.size > 0);
        let Some((index, of)) = found.next() else { return Ok(None) };
        if of.size != 8 || found.next().is_some() {
            return wrong(macro_name, "is there twice: keep one");
        }
        match self.pointer(Spot { section: index, offset: 0 }, 0, macro_name)? {
            Pointer::To(to) => self.function(to, macro_name).map(Some),
            Pointer::Null => wrong(macro_name, "names no function"),
        }
    }

    fn objects(&self, start: Spot) -> Result<(Vec<Object>, Vec<ObjectSpots>)> {
        let (mut objects, mut spots) = (Vec::<Object>::new(), Vec::new());
        let mut funcs_in_all = 0;
        for index in 0.. {
            let path = format!("objs[{index}]");
            let at = self.entry(start, index, klp::object::SIZE, &path)?;
            let name = self.pointer(at, klp::object::NAME, &format!("{path}.name"))?;
            let funcs = self.pointer(at, klp::object::FUNCS, &format!("{path}.funcs"))?;
            if matches!((&name, &funcs), (Pointer::Null, Pointer::Null)) {
                if !self.is_zero(at, 0..klp::object::SIZE) {
                    return wrong(
                        &format!("{path}.funcs"),
                        "is NULL: point it to an array of klp_func, which may be empty",
                    );
                }
                break;
            }
            if objects.len() == limits::MAX_OBJECTS {
                return Err(Error::TooMany {
                    what: "objects",
                    count: index + 1,
                    limit: limits::MAX_OBJECTS as u64,
                });
            }
            let Pointer::To(funcs) = funcs else {
                return wrong(
                    &format!("{path}.funcs"),
                    "is NULL: point it to an array of klp_func, which may be empty",
                );
            };
            let name = match name {
                Pointer::Null => None,
                Pointer::To(at) => {
                    let path = format!("{path}.name");
                    let name = self.string(at, limits::MAX_OBJECT_NAME, &path)?;
                    check_object_name(&name).or_else(|reason| wrong(&path, reason))?;
                    Some(name)
                }
            };
            if !self.is_zero(at, klp::object::RESERVED) {
                return wrong(&path, "has a value in an internal member: leave those out of the initializer");
            }
            if objects.iter().any(|o| o.name == name) {
                return Err(Error::DuplicateObject { object: shown(name.as_deref()) });
            }
            let (funcs, new_funcs) = self.funcs(funcs, &path, name.as_deref(), &mut funcs_in_all)?;
            let mut symbols = [None; 4];
            for (symbol, (n, member)) in
                symbols.iter_mut().zip((0..).zip(["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"]))
            {
                let path = format!("{path}.callbacks.{member}");
                if let Pointer::To(to) = self.pointer(at, klp::object::CALLBACKS + 8 * n, &path)? {
                    *symbol = Some(self.function(to, &path)?);
                }
            }
            let named = |n: usize| symbols[n].map(|s| (self.name)(s));
            let callbacks = Callbacks {
                pre_patch: named(0),
                post_patch: named(1),
                pre_unpatch: named(2),
                post_unpatch: named(3),
            };
            objects.push(Object { name, build_id: None, funcs, callbacks });
            spots.push(ObjectSpots { object: at, new_funcs, callbacks: symbols });
        }
        Ok((objects, spots))
    }

    fn funcs(
        &self,
        start: Spot,
        of: &str,
        object: Option<&str>,
        in_all: &mut usize,
    ) -> Result<(Vec<Func>, Vec<u32>)> {
        let (mut funcs, mut symbols) = (Vec::<Func>::new(), Vec::new());
        let mut seen = std::collections::HashSet::new();
        for index in 0.. {
            let path = format!("{of}.funcs[{index}]");
            let at = self.entry(start, index, klp::func::SIZE, &path)?;
            if self.is_zero(at, 0..klp::func::SIZE) {
                break;
            }
            *in_all += 1;
            if *in_all > limits::MAX_FUNCS {
                return Err(Error::TooMany {
                    what: "functions",
                    count: *in_all as u64,
                    limit: limits::MAX_FUNCS as u64,
                });
            }
            let name_path = format!("{path}.old_name");
            let Pointer::To(name) = self.pointer(at, klp::func::OLD_NAME, &name_path)? else {
                return wrong(&name_path, "is NULL: name the function to replace");
            };
            let old_name = self.string(name, limits::MAX_SYMBOL_NAME, &name_path)?;
            if old_name.is_empty() {
                return wrong(&name_path, "is empty: name the function to replace");
            }
            if old_name.chars().any(char::is_control) || old_name.starts_with(' ') || old_name.ends_with(' ')
            {
                return wrong(
                    &name_path,
                    format!("{old_name:?} is no symbol: a control character, or a blank at an end"),
                );
            }
            let new_path = format!("{path}.new_func");
            let Pointer::To(new) = self.pointer(at, klp::func::NEW_FUNC, &new_path)? else {
                return wrong(
                    &new_path,
                    format!("is NULL: point it to the function that takes the place of {old_name}"),
                );
            };
            let symbol = self.function(new, &new_path)?;
            let pos = self.word(at, klp::func::OLD_SYMPOS);
            if self.relocated(at, klp::func::OLD_SYMPOS) {
                return wrong(&format!("{path}.old_sympos"), "holds an address: it is a number");
            }
            if pos > limits::MAX_SYMPOS {
                return wrong(
                    &format!("{path}.old_sympos"),
                    format!("is {pos}, at most {} is allowed", limits::MAX_SYMPOS),
                );
            }
            if !self.is_zero(at, klp::func::RESERVED) {
                return wrong(&path, "has a value in an internal member: leave those out of the initializer");
            }
            // The kernel takes 0 and 1 for the same function.
            if !seen.insert((old_name.clone(), pos.max(1))) {
                let function = if pos > 1 { format!("{old_name},{pos}") } else { old_name };
                return Err(Error::DuplicateFunction { function, object: shown(object) });
            }
            funcs.push(Func { old_name, old_sympos: pos as u32, new_func: (self.name)(symbol) });
            symbols.push(symbol);
        }
        Ok((funcs, symbols))
    }

    fn states(&self, start: Spot) -> Result<Vec<PatchState>> {
        let mut states = Vec::<PatchState>::new();
        for index in 0.. {
            let path = format!("states[{index}]");
            let at = self.entry(start, index, klp::state::SIZE, &path)?;
            let id = self.word(at, klp::state::ID);
            if self.relocated(at, klp::state::ID) || !self.is_zero(at, klp::state::RESERVED) {
                return wrong(&path, "holds a pointer: only id and version are given");
            }
            if id == 0 {
                break;
            }
            if states.len() == limits::MAX_STATES {
                return Err(Error::TooMany {
                    what: "states",
                    count: index + 1,
                    limit: limits::MAX_STATES as u64,
                });
            }
            if states.iter().any(|s| s.id == id) {
                return wrong(&path, format!("has id {id} a second time: an id is listed once"));
            }
            states.push(PatchState { id, version: self.word(at, klp::state::VERSION) as u32 });
        }
        Ok(states)
    }

    /// The spot of entry `index` of the array at `start`, whole within its variable and its section.
    fn entry(&self, start: Spot, index: u64, size: u64, path: &str) -> Result<Spot> {
        self.bounds(start, 0, path)?;
        let unended = || wrong(path, "is beyond the end of the array: end it with an empty entry, `{ }`");
        let Some(offset) = index.checked_mul(size).and_then(|o| start.offset.checked_add(o)) else {
            return unended();
        };
        let spot = Spot { section: start.section, offset };
        let end = self.end_of_variable(start);
        if offset.checked_add(size).is_none_or(|e| e > end) {
            return unended();
        }
        Ok(spot)
    }

    /// Where the variable that holds `spot` ends, or its section if no symbol tells.
    fn end_of_variable(&self, spot: Spot) -> u64 {
        let section_end = self.sections.get(spot.section as usize).map_or(0, |s| s.size);
        let after = self
            .objects
            .partition_point(|(section, start, _)| (*section, *start) <= (spot.section, spot.offset));
        match after.checked_sub(1).map(|i| self.objects[i]) {
            Some((section, start, size)) if section == spot.section && spot.offset < start + size => {
                start + size
            }
            _ => section_end,
        }
    }

    fn bounds(&self, spot: Spot, size: u64, path: &str) -> Result<()> {
        match self.sections.get(spot.section as usize) {
            Some(s) if s.part == Part::Text => wrong(path, "lies in code: point to a variable"),
            Some(s) if spot.offset.checked_add(size).is_some_and(|e| e <= s.size) => Ok(()),
            _ => wrong(path, "reaches beyond the end of its section"),
        }
    }

    fn bytes(&self, spot: Spot, range: core::ops::Range<u64>) -> &[u8] {
        let Some(section) = self.sections.get(spot.section as usize) else { return &[] };
        let start = spot.offset.saturating_add(range.start).min(section.bytes.len() as u64) as usize;
        let end = spot.offset.saturating_add(range.end).min(section.bytes.len() as u64) as usize;
        &section.bytes[start..end]
    }

    /// Whether a range of a structure is zero in the file and no relocation touches it.
    fn is_zero(&self, spot: Spot, range: core::ops::Range<u64>) -> bool {
        self.bytes(spot, range.clone()).iter().all(|b| *b == 0) && self.relocs_in(spot, range).is_empty()
    }

    /// The relocations that write into a range of a structure.
    fn relocs_in(&self, spot: Spot, range: core::ops::Range<u64>) -> &[Reloc] {
        let Some(section) = self.sections.get(spot.section as usize) else { return &[] };
        let (start, end) = (spot.offset.saturating_add(range.start), spot.offset.saturating_add(range.end));
        let first = section.relocs.partition_point(|r| r.offset + r.kind.width() <= start);
        let last = section.relocs.partition_point(|r| r.offset < end);
        section.relocs.get(first..last).unwrap_or(&[])
    }

    fn relocated(&self, spot: Spot, member: u64) -> bool {
        !self.relocs_in(spot, member..member + 8).is_empty()
    }

    fn byte(&self, spot: Spot, member: u64) -> u8 {
        self.bytes(spot, member..member + 1).first().copied().unwrap_or(0)
    }

    /// Eight bytes as the file has them; zeros in a zero-filled section.
    fn word(&self, spot: Spot, member: u64) -> u64 {
        self.bytes(spot, member..member + 8).try_into().map_or(0, u64::from_le_bytes)
    }

    fn pointer(&self, spot: Spot, member: u64, path: &str) -> Result<Pointer> {
        let reloc = match self.relocs_in(spot, member..member + 8) {
            [] if self.word(spot, member) == 0 => return Ok(Pointer::Null),
            [] => return wrong(path, "is a number, not the address of something in this file"),
            [reloc] => reloc,
            _ => return wrong(path, "is not one pointer"),
        };
        if reloc.kind != Kind::Abs64 || reloc.offset != spot.offset + member {
            return wrong(path, "is not a pointer to something in this file");
        }
        let symbol = &self.symbols[reloc.symbol as usize];
        match symbol.place {
            Place::Section { section, offset } => {
                let Some(offset) = offset.checked_add_signed(reloc.addend) else {
                    return wrong(path, "points before its section");
                };
                Ok(Pointer::To(Spot { section, offset }))
            }
            _ => wrong(
                path,
                format!(
                    "points to `{}`, which is not defined in this file: define it, or join the objects with `ld -r`",
                    (self.name)(reloc.symbol)
                ),
            ),
        }
    }

    fn string(&self, spot: Spot, limit: usize, path: &str) -> Result<String> {
        self.bounds(spot, 1, path)?;
        let bytes = self.bytes(spot, 0..limit as u64 + 1);
        let Some(len) = bytes.iter().position(|b| *b == 0) else {
            // A zero-filled section has no bytes of its own: all its strings are empty.
            let zero_filled = bytes.is_empty() && self.sections[spot.section as usize].bytes.is_empty();
            return if zero_filled {
                Ok(String::new())
            } else {
                wrong(path, format!("is a string that does not end, or of more than {limit} bytes"))
            };
        };
        if !self.relocs_in(spot, 0..len as u64 + 1).is_empty() {
            return wrong(path, "is not a string but holds an address");
        }
        match core::str::from_utf8(&bytes[..len]) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => wrong(path, "is not UTF-8: save the source as UTF-8"),
        }
    }

    /// The symbol of the function that begins at `spot`.
    fn function(&self, spot: Spot, path: &str) -> Result<u32> {
        if self.sections.get(spot.section as usize).is_none_or(|s| s.part != Part::Text) {
            return wrong(path, "points to data, not to a function of this file");
        }
        let Some(symbol) = self.functions.get(&spot) else {
            return wrong(
                path,
                "does not point to the beginning of a function (in assembly, mark it: .type NAME, @function)",
            );
        };
        let of = &self.symbols[*symbol as usize];
        debug_assert_eq!(of.kind, SymbolKind::Func);
        if of.size == 0 {
            return wrong(
                path,
                format!(
                    "points to `{}`, whose size is not known (in assembly: .size NAME, . - NAME)",
                    (self.name)(*symbol)
                ),
            );
        }
        Ok(*symbol)
    }
}

fn shown(object: Option<&str>) -> String {
    object.unwrap_or("the main executable").to_string()
}
