//! Functions and data of an object by name and position, as the kernel's livepatch names them.
//!
//! # Names
//! A name is looked up among all symbols known of an object: the fullest table there is (see
//! [`debug_file`](crate::debug_file)) together with the dynamic symbols. `foo` means the symbols called `foo`, and
//! where some of them have versions, the default one and not the hidden ones (as a link editor binds it) unless only
//! hidden ones are there; `foo@VERSION` means that one. A name that is nobody's is tried as a demangled C++ or Rust
//! name.
//!
//! # Positions
//! Several symbols of one name at one address are one. What is left is numbered from 1 in the order of addresses
//! within the object, as in the kernel's symbol table; position 0 asks for the only one, and is refused where there
//! are more.

use crate::debug_file::{SymbolSource, full_table};
use crate::demangle;
use crate::dynamic::Version;
use crate::elf_file::{ElfError, RawSymbol, SymbolTable};
use crate::objects::{FileProblem, Object, ObjectId, Objects, Role};
use crate::{Error, LinkAddr, RemoteAddr, Result};
use object::elf;
use std::collections::BTreeMap;
use std::ops::Range;

/// Most near names that a "not found" suggests.
const MAX_NEAR: usize = 3;
/// Most candidates that a message lists.
const MAX_LISTED: usize = 8;

/// Why there is no answer about a symbol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The target has no such object (ENODEV in spirit: a patch may wait for it).
    #[error("object {object} is not loaded in the target; `/proc/PID/maps` lists what is")]
    NotLoaded {
        /// The name asked for.
        object: String,
    },
    /// Two different objects bear the name.
    #[error("{object} names several loaded objects: {}", paths.join(", "))]
    AmbiguousObject {
        /// The name asked for.
        object: String,
        /// Their paths.
        paths: Vec<String>,
    },
    /// The target's own tables make no sense.
    #[error("the target's memory is not what an ELF program's must be: {what}")]
    BrokenTarget {
        /// What is wrong.
        what: String,
    },
    /// No symbol of this name (ENOENT).
    #[error("{object} has no symbol {name}{}{}", suggest(near, clones), because(notes))]
    NotFound {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
        /// Copies that the compiler made of it (`name.constprop.0`), where the function itself is gone.
        clones: Vec<String>,
        /// Why the tables may be incomplete.
        notes: Vec<String>,
    },
    /// Several symbols of this name, and no position was given.
    #[error("{object} has {} symbols called {name}; give a position: {}", candidates.len(), listed(candidates))]
    Ambiguous {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// All of them, by position.
        candidates: Vec<Candidate>,
    },
    /// The position is beyond the last.
    #[error("{object} has no symbol {name} at position {position}; there are: {}", listed(candidates))]
    NoSuchPosition {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// The position asked for.
        position: u32,
        /// All of them, by position.
        candidates: Vec<Candidate>,
    },
    /// The symbol is data, or something else that has no code.
    #[error("{name} of {object} is not a function but {kind}")]
    NotAFunction {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// A patch asks for another build of the object.
    #[error(
        "{object} has build-id {found}, the patch is for {wanted}; build the patch for the running version"
    )]
    BuildId {
        /// The object.
        object: String,
        /// Hexadecimal, or `none`.
        found: String,
        /// Hexadecimal.
        wanted: String,
    },
    /// The function is chosen when the program starts (STT_GNU_IFUNC), and no slot shows which one was.
    #[error(
        "{name} of {object} is chosen by the resolver at {resolver}, and nothing in the target shows its choice"
    )]
    IfuncUnknown {
        /// The object.
        object: String,
        /// The symbol.
        name: String,
        /// The function that makes the choice.
        resolver: RemoteAddr,
    },
    /// The loader itself changed the code at the place, so the file does not tell what should be there.
    #[error("{object} has a text relocation at {address}; its code in memory is not that of its file")]
    TextRelocation {
        /// The object.
        object: String,
        /// The place.
        address: RemoteAddr,
    },
    /// No object in scope defines it.
    #[error(
        "undefined symbol {}: no object in the target's scope defines it{}",
        versioned(name, version),
        hint(near)
    )]
    Undefined {
        /// The symbol.
        name: String,
        /// The version asked for.
        version: Option<String>,
        /// Where a symbol of that name is, out of scope.
        near: Vec<String>,
    },
    /// A thread-local symbol of a module whose place relative to the thread pointer is not known.
    #[error("thread-local {name} of {object} has no known distance from the thread pointer: {reason}")]
    Tls {
        /// The object.
        object: String,
        /// The symbol.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The object's file cannot be used.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// The object's file is not what an ELF file must be.
    #[error(transparent)]
    Elf(#[from] ElfError),
}

fn suggest(near: &[String], clones: &[String]) -> String {
    if !clones.is_empty() {
        return format!("; the compiler left only copies of it: {}", clones.join(", "));
    }
    hint(near)
}

fn hint(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

fn because(notes: &[String]) -> String {
    if notes.is_empty() {
        String::new()
    } else {
        format!(" (its symbols may be incomplete: {})", notes.join("; "))
    }
}

fn versioned(name: &str, version: &Option<String>) -> String {
    version.as_ref().map_or_else(|| name.to_owned(), |v| format!("{name}@{v}"))
}

fn listed(candidates: &[Candidate]) -> String {
    let one = |c: &Candidate| {
        let file = c.file.as_deref().map(|f| format!(" ({f})")).unwrap_or_default();
        format!("{} at {}{file}", c.position, c.address)
    };
    let mut out: Vec<_> = candidates.iter().take(MAX_LISTED).map(one).collect();
    if candidates.len() > MAX_LISTED {
        out.push("...".to_owned());
    }
    out.join(", ")
}

/// One of several symbols of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its position, from 1.
    pub position: u32,
    /// Its address.
    pub address: RemoteAddr,
    /// Its size in bytes; 0 where the table does not say.
    pub size: u64,
    /// The source file of a local symbol, as the compiler noted it (STT_FILE).
    pub file: Option<String>,
    /// The symbol's own name; differs from the one asked for where that was a demangled one.
    pub name: String,
}

/// Where the size of a function comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeFrom {
    /// The symbol states it.
    Symbol,
    /// The function's frame description does (`.eh_frame`).
    UnwindInfo,
    /// The next symbol, or the end of the segment, bounds it: it may be shorter.
    NextSymbol,
}

/// A stretch of code with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The symbol's name.
    pub name: String,
    /// Its code.
    pub range: Range<RemoteAddr>,
}

/// A function of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The object it is in.
    pub object: ObjectId,
    /// Its symbol's name, mangled, without a version.
    pub name: String,
    /// The position of that name in the object, from 1.
    pub position: u32,
    /// Its version, where the symbol has one.
    pub version: Option<Version>,
    /// Where it begins.
    pub address: RemoteAddr,
    /// Its length in bytes, cold parts not counted.
    pub size: u64,
    /// How the length is known.
    pub size_from: SizeFrom,
    /// All names of that address, without versions, `name` among them; the first is the canonical one, the same
    /// whichever name was asked for.
    pub aliases: Vec<String>,
    /// Its code that was moved elsewhere (`name.cold`); part of the function.
    pub cold: Vec<Part>,
    /// Copies and pieces the compiler made (`name.part.N`, `.constprop.N`, `.isra.N`): functions of their own, with
    /// code of this one, which a patch of this one does not change.
    pub clones: Vec<Part>,
    /// The source file of a local symbol.
    pub file: Option<String>,
    /// For a function that the program chose at start (STT_GNU_IFUNC): who chose. `address` is the choice.
    pub resolver: Option<RemoteAddr>,
}

impl Function {
    /// The addresses of its body.
    #[must_use]
    pub fn range(&self) -> Range<RemoteAddr> {
        self.address..RemoteAddr(self.address.0.saturating_add(self.size))
    }

    /// The addresses of all its code: the body and the cold parts.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<RemoteAddr>> {
        std::iter::once(self.range()).chain(self.cold.iter().map(|p| p.range.clone())).collect()
    }
}

/// A symbol of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The object it is in.
    pub object: ObjectId,
    /// Its name, without a version.
    pub name: String,
    /// Its address; for a thread-local one its offset in its module's block.
    pub value: u64,
    /// Its size in bytes.
    pub size: u64,
    /// STT_FUNC, STT_OBJECT, STT_TLS ...
    pub kind: u8,
}

/// A name for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbolized {
    /// The object it is in.
    pub object: ObjectId,
    /// The function's symbol, mangled, without a version; `None` where none is known.
    pub function: Option<String>,
    /// Distance in bytes from the function's start, or from the object's lowest address where there is no function.
    pub offset: u64,
}

/// All that is known of one object's symbols.
#[derive(Debug)]
pub struct ObjectSymbols {
    full: SymbolTable,
    source: SymbolSource,
    dynamic: SymbolTable,
    versym: Vec<u16>,
    versions: Vec<(u16, String)>,
    /// What was wrong with the tables that were passed over.
    notes: Vec<String>,
    by_address: std::sync::OnceLock<Vec<Place>>,
}

/// A function symbol in the order of addresses.
#[derive(Clone, Copy, Debug)]
struct Place {
    value: u64,
    end: u64,
    table: Table,
    index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Full,
    Dynamic,
}

/// One entry of either table.
struct Entry<'a> {
    table: Table,
    index: usize,
    raw: RawSymbol<'a>,
    name: &'a [u8],
    version: Option<Version>,
}

/// All entries of one name at one address.
struct Group<'a> {
    entries: Vec<Entry<'a>>,
}

impl ObjectSymbols {
    pub(crate) fn read(object: &Object<'_>) -> Result<Self> {
        let dynamic = object.dynamic()?;
        let pages = &object.pages;
        let mut notes = Vec::new();
        let (full, source) = match object.role() {
            Role::Vdso => None,
            _ => full_table(object, &mut notes),
        }
        .unwrap_or((SymbolTable::default(), SymbolSource::DynsymOnly));
        let table = dynamic.symbol_table(pages)?;
        let versym = dynamic.versyms(pages, table.len())?;
        let versions = dynamic.defined_versions(pages)?.to_vec();
        Ok(Self { full, source, dynamic: table, versym, versions, notes, by_address: Default::default() })
    }

    /// Where the fullest table came from.
    #[must_use]
    pub fn source(&self) -> &SymbolSource {
        &self.source
    }

    /// Why tables that might have been there were not used.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn table(&self, table: Table) -> &SymbolTable {
        match table {
            Table::Full => &self.full,
            Table::Dynamic => &self.dynamic,
        }
    }

    fn entry(&self, table: Table, index: usize) -> Option<Entry<'_>> {
        let raw = self.table(table).get(index)?;
        Some(self.decode(table, index, raw))
    }

    fn decode<'a>(&'a self, table: Table, index: usize, raw: RawSymbol<'a>) -> Entry<'a> {
        // GNU ld writes versions into the names of .symtab.
        let (name, version) = match raw.name.iter().position(|b| *b == b'@') {
            Some(at) if at > 0 => {
                let version = &raw.name[at + 1..];
                let default = version.strip_prefix(b"@");
                let name = String::from_utf8_lossy(default.unwrap_or(version)).into_owned();
                (&raw.name[..at], Some(Version { name, hidden: default.is_none() }))
            }
            _ => (raw.name, None),
        };
        let version = version.or_else(|| {
            let ndx = *self.versym.get(index).filter(|_| table == Table::Dynamic)?;
            let (_, name) = self.versions.iter().find(|(i, _)| *i == ndx & 0x7fff && *i > 1)?;
            Some(Version { name: name.clone(), hidden: ndx & 0x8000 != 0 })
        });
        Entry { table, index, raw, name, version }
    }

    /// Every defined, named symbol of both tables.
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        [Table::Full, Table::Dynamic].into_iter().flat_map(move |t| {
            self.table(t)
                .iter()
                .enumerate()
                .filter(|(_, raw)| defined(raw))
                .map(move |(i, raw)| self.decode(t, i, raw))
        })
    }

    /// The symbols called exactly `name`, of the kinds that `wanted` takes, one group an address, by address.
    fn named<'a>(&'a self, name: &'a str, wanted: impl Fn(&RawSymbol<'_>) -> bool) -> Vec<Group<'a>> {
        let (base, version) = match name.split_once('@') {
            Some((base, version)) if !base.is_empty() => (base, Some(version)),
            _ => (name, None),
        };
        let mut groups: BTreeMap<(u64, bool), Group<'_>> = BTreeMap::new();
        for table in [Table::Full, Table::Dynamic] {
            for index in self.table(table).named(base.as_bytes()) {
                let Some(entry) = self.entry(table, index) else { continue };
                if entry.name == base.as_bytes() && defined(&entry.raw) && wanted(&entry.raw) {
                    let key = (entry.raw.value, entry.raw.kind == elf::STT_TLS);
                    groups.entry(key).or_insert(Group { entries: Vec::new() }).entries.push(entry);
                }
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        match version {
            Some(version) => {
                let (version, default) =
                    version.strip_prefix('@').map_or((version, false), |version| (version, true));
                groups.retain(|g| {
                    let versions = g.entries.iter().filter_map(|e| e.version.as_ref());
                    versions.into_iter().any(|v| v.name == version && !(default && v.hidden))
                });
            }
            None if groups.iter().any(|g| !g.hidden()) => groups.retain(|g| !g.hidden()),
            None => {}
        }
        groups
    }

    /// The symbols that `query` spells out demangled, grouped and ordered likewise.
    fn demangled<'a>(&'a self, query: &str, wanted: impl Fn(&RawSymbol<'_>) -> bool) -> Vec<Group<'a>> {
        let literal = demangle::literal_part(query).as_bytes();
        let mut groups: BTreeMap<(u64, bool), Group<'_>> = BTreeMap::new();
        for entry in self.entries() {
            if !wanted(&entry.raw) || !demangle::is_mangled(entry.name) || !contains(entry.name, literal) {
                continue;
            }
            let Ok(name) = std::str::from_utf8(entry.name) else { continue };
            if split_clone(name).is_none() && demangle::spellings(name).iter().any(|s| s == query) {
                let key = (entry.raw.value, entry.raw.kind == elf::STT_TLS);
                groups.entry(key).or_insert(Group { entries: Vec::new() }).entries.push(entry);
            }
        }
        groups.into_values().collect()
    }

    /// The name of the source file that a local symbol of the full table belongs to.
    fn file_of(&self, entry: &Entry<'_>) -> Option<(usize, String)> {
        if entry.raw.bind != elf::STB_LOCAL || entry.table != Table::Full {
            return None;
        }
        let index =
            (0..entry.index).rev().find(|i| self.full.get(*i).is_some_and(|s| s.kind == elf::STT_FILE))?;
        let file = self.full.get(index)?;
        (!file.name.is_empty()).then(|| (index, String::from_utf8_lossy(file.name).into_owned()))
    }

    /// The names and versions of the dynamic symbols at `value`.
    pub(crate) fn exported_at(&self, value: u64) -> Vec<(String, Option<Version>)> {
        let at = self.dynamic.iter().enumerate().filter(|(_, raw)| raw.value == value && defined(raw));
        let entries = at.map(|(i, raw)| self.decode(Table::Dynamic, i, raw));
        entries.map(|e| (text(e.name), e.version)).collect()
    }

    /// All function symbols at `value`.
    fn code_at(&self, value: u64) -> Group<'_> {
        Group { entries: self.entries().filter(|e| e.raw.value == value && is_code(&e.raw)).collect() }
    }

    fn places(&self) -> &[Place] {
        self.by_address.get_or_init(|| {
            let mut out: Vec<(u8, Place)> = Vec::new();
            for table in [Table::Full, Table::Dynamic] {
                for (index, raw) in self.table(table).iter().enumerate() {
                    if defined(&raw) && is_code(&raw) {
                        let end = raw.value.saturating_add(raw.size);
                        out.push((preference(&raw), Place { value: raw.value, end, table, index }));
                    }
                }
            }
            out.sort_by_key(|(preference, p)| (p.value, *preference, p.table, p.index));
            out.dedup_by_key(|(_, p)| p.value);
            out.into_iter().map(|(_, p)| p).collect()
        })
    }
}

impl Group<'_> {
    fn hidden(&self) -> bool {
        let mut versions = self.entries.iter().filter_map(|e| e.version.as_ref()).peekable();
        versions.peek().is_some() && versions.all(|v| v.hidden)
    }

    fn is_ifunc(&self) -> bool {
        self.entries.iter().any(|e| e.raw.kind == elf::STT_GNU_IFUNC)
    }

    /// The names, the canonical one first: global before weak before local, then by the alphabet.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.entries.iter().map(|e| (preference(&e.raw), text(e.name))).collect();
        names.sort();
        let mut out: Vec<String> = Vec::new();
        for (_, name) in names {
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    fn value(&self) -> u64 {
        self.entries.first().map_or(0, |e| e.raw.value)
    }

    fn size(&self) -> u64 {
        self.entries.iter().map(|e| e.raw.size).max().unwrap_or(0)
    }
}

fn defined(raw: &RawSymbol<'_>) -> bool {
    raw.section != elf::SHN_UNDEF
        && raw.section != elf::SHN_COMMON
        && !matches!(raw.kind, elf::STT_FILE | elf::STT_SECTION)
        && !raw.name.is_empty()
}

fn is_code(raw: &RawSymbol<'_>) -> bool {
    matches!(raw.kind, elf::STT_FUNC | elf::STT_GNU_IFUNC) && raw.section != elf::SHN_ABS
}

/// Among the names of one address the one with the lowest value is shown.
fn preference(raw: &RawSymbol<'_>) -> u8 {
    match raw.bind {
        elf::STB_GLOBAL | elf::STB_GNU_UNIQUE => 0,
        elf::STB_WEAK => 1,
        _ => 2,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|w| w == needle)
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        elf::STT_OBJECT | elf::STT_COMMON => "data",
        elf::STT_TLS => "thread-local data",
        elf::STT_NOTYPE => "a symbol without a type",
        _ => "something else",
    }
}

/// What a compiler's suffix says of a function's name: `foo.cold` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloneKind {
    /// Code of the function itself, elsewhere.
    Cold,
    /// A function of its own.
    Copy,
}

/// Splits `foo.constprop.0` into `foo` and what the suffix means.
fn split_clone(name: &str) -> Option<(&str, CloneKind)> {
    const SUFFIXES: [(&str, CloneKind); 4] = [
        (".cold", CloneKind::Cold),
        (".part", CloneKind::Copy),
        (".constprop", CloneKind::Copy),
        (".isra", CloneKind::Copy),
    ];
    let mut first: Option<(usize, CloneKind)> = None;
    for (suffix, kind) in SUFFIXES {
        for (at, _) in name.match_indices(suffix) {
            let after = name[at + suffix.len()..].chars().next();
            if at > 0 && matches!(after, None | Some('.')) {
                // `foo.part.0.cold` is a cold part, but of `foo.part.0`: seen from `foo` it belongs to a copy.
                first = match first {
                    Some((other, kind)) if other < at => Some((other, kind)),
                    _ => Some((at, kind)),
                };
                break;
            }
        }
    }
    first.map(|(at, kind)| (&name[..at], kind))
}

impl<'t> Object<'t> {
    /// Its symbols, read at first use.
    ///
    /// # Errors
    /// Where the target's memory cannot be read. A file that cannot be used leaves the dynamic symbols, and a note.
    pub fn symbols(&self) -> Result<&ObjectSymbols> {
        if let Some(symbols) = self.symbols.get() {
            return Ok(symbols);
        }
        let read = ObjectSymbols::read(self)?;
        Ok(self.symbols.get_or_init(|| read))
    }

    fn choose<'s>(
        &self,
        symbols: &'s ObjectSymbols,
        name: &'s str,
        position: u32,
        wanted: impl Fn(&RawSymbol<'_>) -> bool,
    ) -> Result<(u32, Group<'s>), SymbolError> {
        let mut groups = symbols.named(name, &wanted);
        if groups.is_empty() {
            groups = symbols.demangled(name, &wanted);
        }
        let object = self.name().to_owned();
        let query = name;
        let name = name.to_owned();
        if groups.is_empty() {
            let others = symbols.named(query, |_| true);
            if let Some(other) = others.first().and_then(|g| g.entries.first()) {
                return Err(SymbolError::NotAFunction { object, name, kind: kind_name(other.raw.kind) });
            }
            let mut clones: Vec<_> = symbols
                .entries()
                .filter_map(|e| std::str::from_utf8(e.name).ok())
                .filter(|n| {
                    split_clone(n).is_some_and(|(base, kind)| base == name && kind == CloneKind::Copy)
                })
                .map(str::to_owned)
                .collect();
            clones.sort();
            clones.dedup();
            let near = symbols.near(&name);
            return Err(SymbolError::NotFound { object, name, near, clones, notes: symbols.notes.clone() });
        }
        let index = match position {
            0 if groups.len() == 1 => 0,
            0 => {
                let candidates = self.candidates(symbols, &groups);
                return Err(SymbolError::Ambiguous { object, name, candidates });
            }
            p if p as usize <= groups.len() => p as usize - 1,
            position => {
                let candidates = self.candidates(symbols, &groups);
                return Err(SymbolError::NoSuchPosition { object, name, position, candidates });
            }
        };
        Ok((index as u32 + 1, groups.swap_remove(index)))
    }

    fn candidates(&self, symbols: &ObjectSymbols, groups: &[Group<'_>]) -> Vec<Candidate> {
        let candidate = |(i, g): (usize, &Group<'_>)| Candidate {
            position: i as u32 + 1,
            address: self.to_remote(LinkAddr(g.value())),
            size: g.size(),
            file: g.entries.iter().find_map(|e| symbols.file_of(e)).map(|(_, file)| file),
            name: g.entries.first().map(|e| String::from_utf8_lossy(e.name).into_owned()).unwrap_or_default(),
        };
        groups.iter().enumerate().map(candidate).collect()
    }

    /// The function called `name` at `position` (0: the only one).
    ///
    /// # Errors
    /// [`SymbolError`]: not found, ambiguous, not a function. A function that the program chooses at start is
    /// [`SymbolError::IfuncUnknown`] here; [`Objects::function`] looks for the choice.
    pub fn function(&self, name: &str, position: u32) -> Result<Function> {
        let symbols = self.symbols()?;
        let (position, group) = self.choose(symbols, name, position, is_code)?;
        let function = self.describe(symbols, &group, position);
        if group.is_ifunc() {
            let object = self.name().to_owned();
            return Err(SymbolError::IfuncUnknown {
                object,
                name: function.name,
                resolver: function.address,
            }
            .into());
        }
        Ok(function)
    }

    fn describe(&self, symbols: &ObjectSymbols, group: &Group<'_>, position: u32) -> Function {
        let value = group.value();
        let name = group.entries.first().map(|e| text(e.name)).unwrap_or_default();
        let local = group.entries.iter().find_map(|e| symbols.file_of(e));
        let (cold, clones) = self.parts(symbols, &name, local.as_ref().map(|(i, _)| *i));
        let (size, size_from) = self.size_of(symbols, value, group.size());
        Function {
            object: self.id(),
            name,
            position,
            version: group.entries.iter().find_map(|e| e.version.clone()),
            address: self.to_remote(LinkAddr(value)),
            size,
            size_from,
            aliases: symbols.code_at(value).names(),
            cold,
            clones,
            file: local.map(|(_, file)| file),
            resolver: None,
        }
    }

    /// What the compiler split off `name` of the source file noted at index `file`.
    fn parts(&self, symbols: &ObjectSymbols, name: &str, file: Option<usize>) -> (Vec<Part>, Vec<Part>) {
        let mut claimed: Option<Vec<usize>> = None;
        let (mut cold, mut clones) = (Vec::new(), Vec::new());
        for e in symbols.entries().filter(|e| is_code(&e.raw) && e.table == Table::Full) {
            let Some((base, kind)) = e
                .name
                .contains(&b'.')
                .then(|| std::str::from_utf8(e.name).ok())
                .flatten()
                .and_then(split_clone)
            else {
                continue;
            };
            if base != name {
                continue;
            }
            // Parts are local symbols of the file that their function is in. A global function has those that no
            // local namesake claims.
            let part_file = symbols.file_of(&e).map(|(i, _)| i);
            let ours = match file {
                Some(_) => part_file == file,
                None => {
                    let claimed = claimed.get_or_insert_with(|| {
                        let groups = symbols.named(name, is_code);
                        let entries = groups.iter().flat_map(|g| &g.entries);
                        entries.filter_map(|e| symbols.file_of(e)).map(|(i, _)| i).collect()
                    });
                    part_file.is_none_or(|i| !claimed.contains(&i))
                }
            };
            if ours {
                let start = self.to_remote(LinkAddr(e.raw.value));
                let range = start..RemoteAddr(start.0.saturating_add(e.raw.size));
                let part = Part { name: text(e.name), range };
                match kind {
                    CloneKind::Cold => cold.push(part),
                    CloneKind::Copy => clones.push(part),
                }
            }
        }
        (cold, clones)
    }

    /// The function that was chosen for the ifunc that `query` and `position` name.
    fn chosen(
        &self,
        query: &str,
        position: u32,
        resolver: RemoteAddr,
        address: RemoteAddr,
    ) -> Result<Function> {
        let symbols = self.symbols()?;
        let (position, asked) = self.choose(symbols, query, position, is_code)?;
        let mut group = symbols.code_at(self.to_link(address).0);
        group.entries.sort_by_key(|e| preference(&e.raw));
        let name = asked.entries.first().map(|e| text(e.name)).unwrap_or_default();
        let mut function = if group.entries.is_empty() {
            let (size, size_from) = self.size_of(symbols, self.to_link(address).0, 0);
            Function {
                size,
                size_from,
                aliases: vec![name.clone()],
                ..self.describe(symbols, &asked, position)
            }
        } else {
            self.describe(symbols, &group, position)
        };
        (function.name, function.address, function.resolver) = (name, address, Some(resolver));
        function.version = asked.entries.iter().find_map(|e| e.version.clone());
        Ok(function)
    }

    fn size_of(&self, symbols: &ObjectSymbols, value: u64, stated: u64) -> (u64, SizeFrom) {
        if stated > 0 {
            return (stated, SizeFrom::Symbol);
        }
        let places = symbols.places();
        let next = places.get(places.partition_point(|p| p.value <= value)).map(|p| p.value);
        let segment = self.segments().iter().find(|s| s.is_text() && s.covers(LinkAddr(value)));
        let end = segment.map_or(value, |s| s.vaddr.0.saturating_add(s.memsz));
        (next.unwrap_or(end).min(end).saturating_sub(value), SizeFrom::NextSymbol)
    }

    /// The symbol called `name` at `position` (0: the only one), of any kind.
    ///
    /// # Errors
    /// [`SymbolError`]: not found, ambiguous.
    pub fn symbol(&self, name: &str, position: u32) -> Result<Symbol> {
        let symbols = self.symbols()?;
        let (_, group) = self.choose(symbols, name, position, |_| true)?;
        let first = group.entries.first();
        let (kind, section) = first.map_or((0, 0), |e| (e.raw.kind, e.raw.section));
        let value = match kind {
            elf::STT_TLS => group.value(),
            _ if section == elf::SHN_ABS => group.value(),
            _ => self.to_remote(LinkAddr(group.value())).0,
        };
        let name = first.map(|e| text(e.name)).unwrap_or_default();
        Ok(Symbol { object: self.id(), name, value, size: group.size(), kind })
    }

    /// The global or weak symbol `name` of the full table, with its value made an address of the process but for a
    /// thread-local one: what a reference in a static program would have been linked to.
    pub(crate) fn global_symbol(&self, name: &str) -> Result<Option<Symbol>> {
        let symbols = self.symbols()?;
        let groups = symbols.named(name, |raw| raw.bind != elf::STB_LOCAL);
        let entry = groups.iter().flat_map(|g| &g.entries).min_by_key(|e| preference(&e.raw));
        Ok(entry.map(|e| {
            let value = match e.raw.kind {
                elf::STT_TLS => e.raw.value,
                _ if e.raw.section == elf::SHN_ABS => e.raw.value,
                _ => self.to_remote(LinkAddr(e.raw.value)).0,
            };
            Symbol { object: self.id(), name: text(e.name), value, size: e.raw.size, kind: e.raw.kind }
        }))
    }

    /// The name of the function that `addr` lies in, and how far in.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn symbolize(&self, addr: RemoteAddr) -> Result<Symbolized> {
        let symbols = self.symbols()?;
        let at = self.to_link(addr).0;
        let places = symbols.places();
        let end = places.partition_point(|p| p.value <= at);
        let place = places[..end].last().filter(|p| at < p.end || (p.end == p.value && self.is_text(addr)));
        if let Some(p) = place
            && let Some(entry) = symbols.entry(p.table, p.index)
        {
            return Ok(Symbolized {
                object: self.id(),
                function: Some(text(entry.name)),
                offset: at - p.value,
            });
        }
        let lowest = self.ranges().iter().map(|r| r.start).min().unwrap_or_default();
        Ok(Symbolized { object: self.id(), function: None, offset: addr.0.wrapping_sub(lowest.0) })
    }

    /// The bytes that the object's file has for `range` of its text.
    ///
    /// # Errors
    /// [`SymbolError::File`] where the file cannot be used, [`SymbolError::TextRelocation`] where the loader has
    /// changed the range, [`SymbolError::Elf`] where the file does not hold it.
    pub fn file_bytes(&self, range: Range<RemoteAddr>) -> Result<Vec<u8>> {
        let file = self.file().map_err(SymbolError::File)?;
        let dynamic = self.dynamic()?;
        if dynamic.has_textrel() {
            let (start, end) = (self.to_link(range.start).0, self.to_link(range.end).0);
            let hit = |r: &&crate::dynamic::Rela| r.offset < end && r.offset.saturating_add(8) > start;
            if let Some(r) = dynamic.relocations(&self.pages)?.iter().find(hit) {
                let address = self.to_remote(LinkAddr(r.offset));
                return Err(SymbolError::TextRelocation { object: self.name().to_owned(), address }.into());
            }
        }
        let len = range.end.0.saturating_sub(range.start.0);
        Ok(file.read_at(self.to_link(range.start), len).map_err(SymbolError::Elf)?)
    }

    /// Checks the build-id that a patch asks for.
    ///
    /// # Errors
    /// [`SymbolError::BuildId`] where it is another one.
    pub fn check_build_id(&self, wanted: &[u8]) -> Result<(), SymbolError> {
        let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self.build_id() {
            Some(id) if id == wanted => Ok(()),
            found => Err(SymbolError::BuildId {
                object: self.name().to_owned(),
                found: found.map_or_else(|| "none".to_owned(), hex),
                wanted: hex(wanted),
            }),
        }
    }
}

impl Objects<'_> {
    /// The function called `name` at `position` (0: the only one) of `object` (`None`: the main executable).
    ///
    /// # Errors
    /// [`SymbolError`]: object not loaded, not found, ambiguous, not a function, choice not known.
    pub fn function(&self, object: Option<&str>, name: &str, position: u32) -> Result<Function> {
        let object = self.find(object)?;
        let found = object.function(name, position);
        if let Err(Error::Symbol(SymbolError::IfuncUnknown { resolver, .. })) = found
            && let Some(address) = self.ifunc_choice(object, resolver)?
        {
            return object.chosen(name, position, resolver, address);
        }
        found
    }

    /// The symbol called `name` at `position` of `object`, of any kind: what `.klp.sym.OBJECT.NAME,POSITION` means.
    ///
    /// # Errors
    /// [`SymbolError`]: object not loaded, not found, ambiguous.
    pub fn klp_symbol(&self, object: Option<&str>, name: &str, position: u32) -> Result<Symbol> {
        self.find(object)?.symbol(name, position)
    }

    /// A name for `addr`; `None` where no object covers it.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn symbolize(&self, addr: RemoteAddr) -> Result<Option<Symbolized>> {
        self.at(addr).map(|o| o.symbolize(addr)).transpose()
    }
}

impl ObjectSymbols {
    /// Function names that look like `name`, best first.
    fn near(&self, name: &str) -> Vec<String> {
        let limit = (name.len() / 3 + 1).min(4);
        let mut found: Vec<(usize, String)> = Vec::new();
        for e in self.entries().filter(|e| is_code(&e.raw)) {
            // Link-time optimization renames: foo.lto_priv.0, foo.llvm.123.
            if e.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'.')) {
                found.push((0, text(e.name)));
            }
            if e.name.len().abs_diff(name.len()) > limit {
                continue;
            }
            let d = distance(e.name, name.as_bytes(), limit);
            if d <= limit {
                found.push((d, text(e.name)));
            }
        }
        found.sort();
        found.dedup();
        found.into_iter().take(MAX_NEAR).map(|(_, name)| name).collect()
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Edit distance, given up beyond `limit`.
fn distance(a: &[u8], b: &[u8], limit: usize) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
        if row.iter().min().is_none_or(|m| *m > limit) {
            return limit + 1;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_compilers() {
        assert_eq!(split_clone("foo.cold"), Some(("foo", CloneKind::Cold)));
        assert_eq!(split_clone("foo.cold.3"), Some(("foo", CloneKind::Cold)));
        assert_eq!(split_clone("foo.part.0.cold"), Some(("foo", CloneKind::Copy)));
        assert_eq!(split_clone("foo.constprop.0.isra.0"), Some(("foo", CloneKind::Copy)));
        assert_eq!(split_clone("foo.colder"), None);
        assert_eq!(split_clone("foo"), None);
    }

    #[test]
    fn edit_distance() {
        assert_eq!(distance(b"kitten", b"sitting", 9), 3);
        assert_eq!(distance(b"abc", b"abc", 2), 0);
        assert_eq!(distance(b"abcdef", b"ghijkl", 2), 3);
    }
}
