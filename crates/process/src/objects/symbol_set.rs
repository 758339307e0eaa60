//! All symbols that are known of one object, and the lookups in them.
//!
//! Two tables are looked at as one: the fullest that could be found, and the dynamic symbols that the loader uses.

use crate::objects::debug_file::{SymbolSource, full_table};
use crate::objects::demangle;
use crate::objects::dynamic::Version;
use crate::objects::elf_file::{RawSymbol, SymbolTable};
use crate::objects::parts::{CloneKind, split_clone};
use crate::objects::{Object, Role};
use crate::{LinkAddr, Result};
use object::elf;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Most near names that a "not found" suggests.
const MAX_NEAR: usize = 3;

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
    by_address: OnceLock<Vec<Place>>,
}

/// A function symbol in the order of addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) value: u64,
    pub(crate) end: u64,
    pub(crate) table: Table,
    pub(crate) index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Full,
    Dynamic,
}

/// One entry of either table.
pub(crate) struct Entry<'a> {
    pub(crate) table: Table,
    pub(crate) index: usize,
    pub(crate) raw: RawSymbol<'a>,
    pub(crate) name: &'a [u8],
    pub(crate) version: Option<Version>,
}

/// All entries of one name at one address.
#[derive(Default)]
pub(crate) struct Group<'a> {
    pub(crate) entries: Vec<Entry<'a>>,
    /// For code that no symbol names: where it is, and what it goes by.
    pub(crate) unnamed_at: Option<(u64, String)>,
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

    pub(crate) fn entry(&self, table: Table, index: usize) -> Option<Entry<'_>> {
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
    pub(crate) fn named<'a>(
        &'a self,
        name: &'a str,
        wanted: impl Fn(&RawSymbol<'_>) -> bool,
    ) -> Vec<Group<'a>> {
        let (base, version) = match name.split_once('@') {
            Some((base, version)) if !base.is_empty() => (base, Some(version)),
            _ => (name, None),
        };
        let mut groups: BTreeMap<(u64, bool), Group<'_>> = BTreeMap::new();
        for table in [Table::Full, Table::Dynamic] {
            for index in self.table(table).named(base.as_bytes(), b'@') {
                let Some(entry) = self.entry(table, index) else { continue };
                if entry.name == base.as_bytes() && defined(&entry.raw) && wanted(&entry.raw) {
                    let key = (entry.raw.value, entry.raw.kind == elf::STT_TLS);
                    groups.entry(key).or_default().entries.push(entry);
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
    pub(crate) fn demangled<'a>(
        &'a self,
        query: &str,
        wanted: impl Fn(&RawSymbol<'_>) -> bool,
    ) -> Vec<Group<'a>> {
        let literal = demangle::literal_part(query).as_bytes();
        let mut groups: BTreeMap<(u64, bool), Group<'_>> = BTreeMap::new();
        for entry in self.entries() {
            if !wanted(&entry.raw) || !demangle::is_mangled(entry.name) || !contains(entry.name, literal) {
                continue;
            }
            let Ok(name) = std::str::from_utf8(entry.name) else { continue };
            if split_clone(name).is_none() && demangle::spellings(name).iter().any(|s| s == query) {
                let key = (entry.raw.value, entry.raw.kind == elf::STT_TLS);
                groups.entry(key).or_default().entries.push(entry);
            }
        }
        groups.into_values().collect()
    }

    /// The name of the source file that a local symbol of the full table belongs to.
    pub(crate) fn file_of(&self, entry: &Entry<'_>) -> Option<(usize, String)> {
        if entry.raw.bind != elf::STB_LOCAL || entry.table != Table::Full {
            return None;
        }
        let index = self.full.file_before(entry.index)?;
        let file = self.full.get(index)?;
        (!file.name.is_empty()).then(|| (index, String::from_utf8_lossy(file.name).into_owned()))
    }

    /// The names of all function symbols, each with its address, in no order.
    pub fn functions(&self) -> impl Iterator<Item = (String, LinkAddr)> {
        self.entries().filter(|e| is_code(&e.raw)).map(|e| (e.spelled(), LinkAddr(e.raw.value)))
    }

    /// The position of the function at `value` among those that `name` names.
    pub(crate) fn position(&self, name: &str, value: u64) -> u32 {
        let at = self.named(name, is_code).iter().position(|g| g.value() == value);
        at.map_or(1, |i| i as u32 + 1)
    }

    /// Whether the full table has local functions: it was not stripped of them.
    pub(crate) fn has_local_code(&self) -> bool {
        self.full.has_local_functions()
    }

    /// The symbols of the full table that a compiler named after `base`, with what they are.
    pub(crate) fn compiler_parts<'a>(
        &'a self,
        base: &'a str,
    ) -> impl Iterator<Item = (Entry<'a>, CloneKind)> {
        self.full.named(base.as_bytes(), b'.').filter_map(move |i| {
            let raw = self.full.get(i).filter(|raw| is_code(raw) && defined(raw))?;
            let (stem, kind) = split_clone(std::str::from_utf8(raw.name).ok()?)?;
            (stem == base).then(|| (self.decode(Table::Full, i, raw), kind))
        })
    }

    /// The names of the copies that a compiler made of `name`.
    pub(crate) fn copies_of(&self, name: &str) -> Vec<String> {
        let copies = self.compiler_parts(name).filter(|(_, kind)| *kind == CloneKind::Copy);
        let mut names: Vec<_> = copies.map(|(e, _)| text(e.name)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// All function symbols at `value`, but for those that mean another function chosen by this one (STT_GNU_IFUNC).
    pub(crate) fn code_at(&self, value: u64) -> Group<'_> {
        let entries = [Table::Full, Table::Dynamic].into_iter().flat_map(|table| {
            let indices = self.table(table).functions_at(value);
            indices.filter_map(move |i| self.entry(table, i)).filter(|e| defined(&e.raw))
        });
        Group { entries: entries.collect(), unnamed_at: None }
    }

    pub(crate) fn places(&self) -> &[Place] {
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

impl Entry<'_> {
    fn hidden(&self) -> bool {
        self.version.as_ref().is_some_and(|v| v.hidden)
    }

    fn is_default(&self) -> bool {
        self.version.as_ref().is_some_and(|v| !v.hidden)
    }

    /// `name`, or `name@VERSION` where that is not the default version.
    fn spelled(&self) -> String {
        match &self.version {
            Some(v) if v.hidden => format!("{}@{}", text(self.name), v.name),
            _ => text(self.name),
        }
    }
}

impl Group<'_> {
    pub(crate) fn hidden(&self) -> bool {
        let mut versions = self.entries.iter().filter_map(|e| e.version.as_ref()).peekable();
        versions.peek().is_some() && versions.all(|v| v.hidden)
    }

    pub(crate) fn is_ifunc(&self) -> bool {
        self.entries.iter().any(|e| e.raw.kind == elf::STT_GNU_IFUNC)
    }

    /// The names, the canonical one first: global before weak before local, then by the alphabet.
    pub(crate) fn names(&self) -> Vec<String> {
        // A symbol with a version may be known without it from the other table.
        let bare = |e: &&Entry<'_>| {
            let mut twins = self.entries.iter().filter(|t| t.name == e.name);
            e.version.is_none() && twins.clone().any(Entry::hidden) && !twins.any(Entry::is_default)
        };
        let entries = self.entries.iter().filter(|e| !bare(e));
        let mut names: Vec<_> = entries.map(|e| (preference(&e.raw), e.spelled())).collect();
        names.sort();
        let mut out: Vec<String> = Vec::new();
        for (_, name) in names {
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// The name that leads to it and not to a namesake of another version.
    pub(crate) fn name(&self) -> String {
        let versioned = self.hidden().then(|| self.entries.iter().find(|e| e.hidden())).flatten();
        match (versioned.or(self.entries.first()), &self.unnamed_at) {
            (Some(e), _) => e.spelled(),
            (None, Some((_, name))) => name.clone(),
            (None, None) => String::new(),
        }
    }

    pub(crate) fn value(&self) -> u64 {
        let unnamed = || self.unnamed_at.as_ref().map(|(value, _)| *value);
        self.entries.first().map(|e| e.raw.value).or_else(unnamed).unwrap_or(0)
    }

    pub(crate) fn size(&self) -> u64 {
        self.entries.iter().map(|e| e.raw.size).max().unwrap_or(0)
    }
}

fn defined(raw: &RawSymbol<'_>) -> bool {
    raw.section != elf::SHN_UNDEF
        && raw.section != elf::SHN_COMMON
        && !matches!(raw.kind, elf::STT_FILE | elf::STT_SECTION)
        && !raw.name.is_empty()
}

pub(crate) fn is_code(raw: &RawSymbol<'_>) -> bool {
    matches!(raw.kind, elf::STT_FUNC | elf::STT_GNU_IFUNC) && raw.section != elf::SHN_ABS
}

/// Among the names of one address the one with the lowest value is shown.
pub(crate) fn preference(raw: &RawSymbol<'_>) -> u8 {
    match raw.bind {
        elf::STB_GLOBAL | elf::STB_GNU_UNIQUE => 0,
        elf::STB_WEAK => 1,
        _ => 2,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|w| w == needle)
}

pub(crate) fn kind_name(kind: u8) -> &'static str {
    match kind {
        elf::STT_OBJECT | elf::STT_COMMON => "data",
        elf::STT_TLS => "thread-local data",
        elf::STT_NOTYPE => "a symbol without a type",
        _ => "something else",
    }
}

impl ObjectSymbols {
    /// Function names that look like `name`, best first.
    pub(crate) fn near(&self, name: &str) -> Vec<String> {
        let limit = (name.len() / 3 + 1).min(4);
        let mut found: Vec<(usize, String)> = Vec::new();
        // Somebody who writes a qualified name or a parameter list means C++ or Rust.
        if name.contains("::") || name.contains('(') {
            let literal = demangle::literal_part(name).as_bytes();
            let like = |e: &Entry<'_>| {
                is_code(&e.raw)
                    && demangle::is_mangled(e.name)
                    && !literal.is_empty()
                    && contains(e.name, literal)
            };
            let mut names: Vec<_> =
                self.entries().filter(like).filter_map(|e| demangle::demangle(&text(e.name))).collect();
            names.sort();
            names.dedup();
            names.truncate(MAX_NEAR);
            return names;
        }
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

pub(crate) fn text(name: &[u8]) -> String {
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
    fn edit_distance() {
        assert_eq!(distance(b"kitten", b"sitting", 9), 3);
        assert_eq!(distance(b"abc", b"abc", 2), 0);
        assert_eq!(distance(b"abcdef", b"ghijkl", 2), 3);
    }
}
