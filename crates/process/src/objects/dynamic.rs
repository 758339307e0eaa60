//! An object's dynamic section and the tables it names, as they lie in the target's memory: what the loader itself
//! goes by. (System V gABI chapter 5; the GNU hash table and symbol versioning as glibc's `elf/dl-lookup.c` reads
//! them.)
//!
//! Addresses in a dynamic section are link addresses in the file; glibc's loader adds the bias to most of them in
//! place, musl's does not. Whether it was done is told by where the value points.

use crate::objects::elf_file::{SYM_LEN, SymbolTable};
use crate::target::pages::Pages;
use crate::{RemoteAddr, Result};
use object::elf;
use std::ops::Range;
use std::sync::OnceLock;

/// Most entries read of a dynamic section.
pub const MAX_DYNAMIC: usize = 4096;
/// Most symbols walked in one hash chain.
pub const MAX_CHAIN: usize = 1 << 16;
/// Most dynamic symbols of an object.
pub const MAX_DYNSYMS: u64 = 1 << 24;
/// Most version definitions or needs of an object.
pub const MAX_VERSIONS: usize = 1 << 12;
/// Longest symbol, version or library name, in bytes.
pub const MAX_NAME: usize = 1 << 16;
/// Most relocations of an object.
pub const MAX_RELOCATIONS: u64 = 1 << 24;

/// The version index of a symbol has this bit where the version is not the default one (`VERSYM_HIDDEN`).
const HIDDEN: u16 = 0x8000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Dynamic {
    pub(crate) symtab: Option<RemoteAddr>,
    pub(crate) strtab: Option<RemoteAddr>,
    pub(crate) strsz: u64,
    gnu_hash: Option<RemoteAddr>,
    hash: Option<RemoteAddr>,
    versym: Option<RemoteAddr>,
    verdef: Option<RemoteAddr>,
    verneed: Option<RemoteAddr>,
    soname: Option<u64>,
    needed: Vec<u64>,
    rela: Option<RemoteAddr>,
    relasz: u64,
    jmprel: Option<RemoteAddr>,
    pltrelsz: u64,
    pub(crate) pltgot: Option<RemoteAddr>,
    defined: OnceLock<Vec<(u16, String)>>,
    imports: OnceLock<Vec<Vec<u8>>>,
    flags: u64,
    textrel: bool,
    /// Value of DT_DEBUG: the address of `r_debug`, once the loader has filled it in.
    pub(crate) debug: Option<RemoteAddr>,
}

/// The version of a dynamic symbol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Its name, such as `GLIBC_2.2.5`.
    pub name: String,
    /// Not the default one: spelled `symbol@VERSION`, not `symbol@@VERSION`.
    pub hidden: bool,
}

/// One dynamic symbol, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DynSym {
    pub(crate) index: u32,
    pub(crate) value: u64,
    pub(crate) size: u64,
    pub(crate) kind: u8,
    pub(crate) bind: u8,
    pub(crate) visibility: u8,
    pub(crate) section: u16,
    name: u32,
}

/// One relocation with addend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rela {
    pub(crate) offset: u64,
    pub(crate) kind: u32,
    pub(crate) symbol: u32,
    pub(crate) addend: i64,
}

impl Dynamic {
    /// Reads the section at `at`, of at most `size` bytes. `bias` and `ranges` are the object's.
    pub(crate) fn read(
        pages: &Pages<'_>,
        at: RemoteAddr,
        size: u64,
        bias: u64,
        ranges: &[Range<RemoteAddr>],
    ) -> Result<Self> {
        let mut d = Self::default();
        // An address within the object was moved there already; a link address lies below the bias.
        let address = |value: u64| {
            let inside = ranges.iter().any(|r| r.contains(&RemoteAddr(value)));
            Some(RemoteAddr(if inside { value } else { value.wrapping_add(bias) }))
        };
        let limit = usize::try_from(size / 16).unwrap_or(usize::MAX).min(MAX_DYNAMIC);
        for i in 0..limit as u64 {
            let tag = pages.u64(RemoteAddr(at.0.wrapping_add(i * 16)))?;
            let value = pages.u64(RemoteAddr(at.0.wrapping_add(i * 16 + 8)))?;
            let Ok(tag) = u32::try_from(tag) else { continue };
            match tag {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => d.symtab = address(value),
                elf::DT_STRTAB => d.strtab = address(value),
                elf::DT_STRSZ => d.strsz = value,
                elf::DT_GNU_HASH => d.gnu_hash = address(value),
                elf::DT_HASH => d.hash = address(value),
                elf::DT_VERSYM => d.versym = address(value),
                elf::DT_VERDEF => d.verdef = address(value),
                elf::DT_VERNEED => d.verneed = address(value),
                elf::DT_SONAME => d.soname = Some(value),
                elf::DT_NEEDED => d.needed.push(value),
                elf::DT_RELA => d.rela = address(value),
                elf::DT_RELASZ => d.relasz = value,
                elf::DT_JMPREL => d.jmprel = address(value),
                elf::DT_PLTRELSZ => d.pltrelsz = value,
                elf::DT_PLTGOT => d.pltgot = address(value),
                elf::DT_FLAGS => d.flags = value,
                elf::DT_TEXTREL => d.textrel = true,
                elf::DT_DEBUG => d.debug = (value != 0).then_some(RemoteAddr(value)),
                _ => {}
            }
        }
        Ok(d)
    }

    /// Whether the object's text may hold relocated places (DT_TEXTREL).
    pub(crate) fn has_textrel(&self) -> bool {
        self.textrel || self.flags & u64::from(elf::DF_TEXTREL) != 0
    }

    fn string(&self, pages: &Pages<'_>, offset: u64) -> Result<Option<String>> {
        let Some(strtab) = self.strtab.filter(|_| offset < self.strsz) else { return Ok(None) };
        let bytes = pages.cstr(RemoteAddr(strtab.0.wrapping_add(offset)), MAX_NAME)?;
        Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }

    pub(crate) fn soname(&self, pages: &Pages<'_>) -> Result<Option<String>> {
        self.soname.map_or(Ok(None), |at| self.string(pages, at))
    }

    /// The names of DT_NEEDED, in order.
    pub(crate) fn needs_any(&self) -> bool {
        !self.needed.is_empty()
    }

    pub(crate) fn needed(&self, pages: &Pages<'_>) -> Result<Vec<String>> {
        let names: Result<Vec<_>> = self.needed.iter().map(|at| self.string(pages, *at)).collect();
        Ok(names?.into_iter().flatten().collect())
    }

    /// The symbol at `index` of the dynamic symbol table.
    pub(crate) fn symbol(&self, pages: &Pages<'_>, index: u32) -> Result<Option<DynSym>> {
        let Some(symtab) = self.symtab else { return Ok(None) };
        let mut raw = [0; SYM_LEN];
        pages.read(RemoteAddr(symtab.0.wrapping_add(u64::from(index) * SYM_LEN as u64)), &mut raw)?;
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(Some(DynSym {
            index,
            name: word(0),
            kind: raw[4] & 0xf,
            bind: raw[4] >> 4,
            visibility: raw[5] & 3,
            section: u16::from_le_bytes([raw[6], raw[7]]),
            value: long(8),
            size: long(16),
        }))
    }

    pub(crate) fn name_of(&self, pages: &Pages<'_>, symbol: &DynSym) -> Result<Option<String>> {
        self.string(pages, u64::from(symbol.name))
    }

    pub(crate) fn is_named(&self, pages: &Pages<'_>, symbol: &DynSym, name: &str) -> Result<bool> {
        match self.strtab {
            Some(strtab) if u64::from(symbol.name) < self.strsz => {
                pages.cstr_is(RemoteAddr(strtab.0.wrapping_add(u64::from(symbol.name))), name.as_bytes())
            }
            _ => Ok(false),
        }
    }

    /// Calls `accept` for each symbol called `name`, in the order of the hash chain, until it returns something.
    pub(crate) fn lookup<T>(
        &self,
        pages: &Pages<'_>,
        name: &str,
        mut accept: impl FnMut(DynSym) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut visit = |index: u32| -> Result<Option<T>> {
            match self.symbol(pages, index)? {
                Some(s) if self.is_named(pages, &s, name)? => accept(s),
                _ => Ok(None),
            }
        };
        if let Some(table) = self.gnu_hash {
            let Some(gnu) = GnuHash::read(pages, table)? else { return Ok(None) };
            let h = gnu_hash(name.as_bytes());
            let bloom = pages.u64(gnu.bloom(h))?;
            if bloom >> (h % 64) & bloom >> ((h >> (gnu.shift & 31)) % 64) & 1 == 0 {
                return Ok(None);
            }
            let first = pages.u32(gnu.bucket(h % gnu.buckets))?;
            if first < gnu.symoffset || first == 0 {
                return Ok(None);
            }
            for index in (first..).take(MAX_CHAIN) {
                let c = pages.u32(gnu.chain(index))?;
                if c | 1 == h | 1
                    && let Some(found) = visit(index)?
                {
                    return Ok(Some(found));
                }
                if c & 1 != 0 {
                    break;
                }
            }
        } else if let Some(table) = self.hash {
            let buckets = pages.u32(table)?;
            let chains = pages.u32(table.offset(4))?;
            if buckets == 0 {
                return Ok(None);
            }
            let slot = |i: u64| RemoteAddr(table.0.wrapping_add(8 + 4 * i));
            let mut index = pages.u32(slot(u64::from(sysv_hash(name.as_bytes()) % buckets)))?;
            for _ in 0..MAX_CHAIN {
                if index == 0 || index >= chains {
                    break;
                }
                if let Some(found) = visit(index)? {
                    return Ok(Some(found));
                }
                index = pages.u32(slot(u64::from(buckets) + u64::from(index)))?;
            }
        }
        Ok(None)
    }

    /// Whether the object refers to `name` of another object, or has it itself. It may be taken for a longer name that ends so.
    pub(crate) fn mentions(&self, pages: &Pages<'_>, name: &str) -> Result<bool> {
        // The names of all symbols of a library are a hundred times as much to read as those of its imports.
        let hashed = self.lookup(pages, name, |_| Ok(Some(())))?.is_some();
        Ok(hashed || self.imports(pages)?.iter().any(|import| import.ends_with(name.as_bytes())))
    }

    /// Names that a GNU hash table leaves out: of what others are to define. The other kind has these, too.
    fn imports(&self, pages: &Pages<'_>) -> Result<&[Vec<u8>]> {
        if let Some(known) = self.imports.get() {
            return Ok(known);
        }
        let read = self.read_imports(pages)?;
        Ok(self.imports.get_or_init(|| read))
    }

    fn read_imports(&self, pages: &Pages<'_>) -> Result<Vec<Vec<u8>>> {
        let (Some(table), Some(strings)) = (self.gnu_hash, self.strtab) else { return Ok(Vec::new()) };
        let Some(gnu) = GnuHash::read(pages, table)? else { return Ok(Vec::new()) };
        if gnu.is_empty(pages)? {
            // GNU ld says nothing of the other symbols then. The strings are few, and one may be the end of a longer one.
            let strings = pages.memory().read_vec(strings, self.strsz as usize)?;
            return Ok(strings.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect());
        }
        let mut names = Vec::new();
        for index in 1..gnu.symoffset {
            let Some(symbol) = self.symbol(pages, index)? else { break };
            if symbol.name != 0 && u64::from(symbol.name) < self.strsz {
                let at = RemoteAddr(strings.0.wrapping_add(u64::from(symbol.name)));
                names.extend(pages.cstr(at, MAX_NAME)?);
            }
        }
        Ok(names)
    }

    /// How many symbols the table has: neither hash table says so directly.
    pub(crate) fn symbol_count(&self, pages: &Pages<'_>) -> Result<u64> {
        if let Some(table) = self.hash {
            return Ok(u64::from(pages.u32(table.offset(4))?).min(MAX_DYNSYMS));
        }
        let Some(table) = self.gnu_hash else { return Ok(0) };
        let Some(gnu) = GnuHash::read(pages, table)? else { return Ok(0) };
        let mut last = 0;
        for b in 0..gnu.buckets {
            last = last.max(pages.u32(gnu.bucket(b))?);
        }
        if last < gnu.symoffset || last == 0 {
            return Ok(u64::from(gnu.symoffset));
        }
        while pages.u32(gnu.chain(last))? & 1 == 0 {
            last = last.wrapping_add(1);
            if u64::from(last) > MAX_DYNSYMS {
                break;
            }
        }
        Ok(u64::from(last) + 1)
    }

    /// The whole dynamic symbol table, copied out of the target.
    pub(crate) fn symbol_table(&self, pages: &Pages<'_>) -> Result<SymbolTable> {
        let (Some(symtab), Some(strtab)) = (self.symtab, self.strtab) else {
            return Ok(SymbolTable::default());
        };
        let count = self.symbol_count(pages)? as usize;
        let symbols = pages.memory().read_vec(symtab, count * SYM_LEN)?;
        let len = usize::try_from(self.strsz.min(crate::objects::elf_file::MAX_TABLE)).unwrap_or(0);
        Ok(SymbolTable::new(symbols, pages.memory().read_vec(strtab, len)?))
    }

    /// The raw version index of a symbol; `None` where the object has no versions.
    pub(crate) fn versym(&self, pages: &Pages<'_>, index: u32) -> Result<Option<u16>> {
        self.versym.map(|t| pages.u16(RemoteAddr(t.0.wrapping_add(u64::from(index) * 2)))).transpose()
    }

    /// The raw version indices of the first `count` symbols; empty where the object has no versions.
    pub(crate) fn versyms(&self, pages: &Pages<'_>, count: usize) -> Result<Vec<u16>> {
        let Some(table) = self.versym else { return Ok(Vec::new()) };
        let bytes = pages.memory().read_vec(table, count * 2)?;
        Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
    }

    /// The version that the symbol at `index` is defined with; `None` for unversioned ones.
    pub(crate) fn version_of(&self, pages: &Pages<'_>, index: u32) -> Result<Option<Version>> {
        let Some(raw) = self.versym(pages, index)? else { return Ok(None) };
        let wanted = raw & !HIDDEN;
        // 0 is local, 1 is global and unversioned (the file's own name stands there).
        if wanted < 2 {
            return Ok(None);
        }
        let found = self.defined_versions(pages)?.iter().find(|(index, _)| *index == wanted);
        Ok(found.map(|(_, name)| Version { name: name.clone(), hidden: raw & HIDDEN != 0 }))
    }

    /// The versions this object defines, with their indices.
    pub(crate) fn defined_versions(&self, pages: &Pages<'_>) -> Result<&[(u16, String)]> {
        if let Some(known) = self.defined.get() {
            return Ok(known);
        }
        let read = self.read_defined_versions(pages)?;
        Ok(self.defined.get_or_init(|| read))
    }

    fn read_defined_versions(&self, pages: &Pages<'_>) -> Result<Vec<(u16, String)>> {
        let mut out = Vec::new();
        let Some(mut at) = self.verdef else { return Ok(out) };
        for _ in 0..MAX_VERSIONS {
            // Elfxx_Verdef: version, flags, ndx, cnt, hash, aux, next.
            let index = pages.u16(at.offset(4))?;
            let aux = pages.u32(at.offset(12))?;
            let next = pages.u32(at.offset(16))?;
            let name = pages.u32(RemoteAddr(at.0.wrapping_add(u64::from(aux))))?;
            if let Some(name) = self.string(pages, u64::from(name))? {
                out.push((index & !HIDDEN, name));
            }
            if next == 0 {
                break;
            }
            at = RemoteAddr(at.0.wrapping_add(u64::from(next)));
        }
        Ok(out)
    }

    /// The version that an undefined symbol at `index` asks for, from the version needs.
    pub(crate) fn needed_version_of(&self, pages: &Pages<'_>, index: u32) -> Result<Option<String>> {
        let (Some(raw), Some(mut at)) = (self.versym(pages, index)?, self.verneed) else { return Ok(None) };
        let wanted = raw & !HIDDEN;
        if wanted < 2 {
            return Ok(None);
        }
        // Both chains together are bounded: either may be a ring.
        let mut left = MAX_VERSIONS;
        loop {
            // Elfxx_Verneed: version, cnt, file, aux, next; Elfxx_Vernaux: hash, flags, other, name, next.
            let mut aux = RemoteAddr(at.0.wrapping_add(u64::from(pages.u32(at.offset(8))?)));
            for _ in 0..pages.u16(at.offset(2))? {
                if left == 0 {
                    return Ok(None);
                }
                left -= 1;
                if pages.u16(aux.offset(6))? & !HIDDEN == wanted {
                    let name = pages.u32(aux.offset(8))?;
                    return self.string(pages, u64::from(name));
                }
                let next = pages.u32(aux.offset(12))?;
                if next == 0 {
                    break;
                }
                aux = RemoteAddr(aux.0.wrapping_add(u64::from(next)));
            }
            let next = pages.u32(at.offset(12))?;
            if next == 0 || left == 0 {
                return Ok(None);
            }
            left -= 1;
            at = RemoteAddr(at.0.wrapping_add(u64::from(next)));
        }
    }

    /// All relocations with addend, those of the PLT last.
    pub(crate) fn relocations(&self, pages: &Pages<'_>) -> Result<Vec<Rela>> {
        let mut out = Vec::new();
        for (table, size) in [(self.rela, self.relasz), (self.jmprel, self.pltrelsz)] {
            let Some(table) = table else { continue };
            let count = (size / 24).min(MAX_RELOCATIONS) as usize;
            out.extend(Rela::parse_all(&pages.memory().read_vec(table, count * 24)?));
        }
        Ok(out)
    }
}

impl Rela {
    /// Reads a whole table.
    pub(crate) fn parse_all(bytes: &[u8]) -> impl Iterator<Item = Self> {
        bytes.chunks_exact(24).map(|r| {
            let long = |at: usize| {
                let mut b = [0; 8];
                b.copy_from_slice(&r[at..at + 8]);
                u64::from_le_bytes(b)
            };
            Self {
                offset: long(0),
                kind: long(8) as u32,
                symbol: (long(8) >> 32) as u32,
                addend: long(16) as i64,
            }
        })
    }
}

struct GnuHash {
    table: RemoteAddr,
    buckets: u32,
    symoffset: u32,
    bloom_words: u32,
    shift: u32,
}

impl GnuHash {
    fn read(pages: &Pages<'_>, table: RemoteAddr) -> Result<Option<Self>> {
        let gnu = Self {
            table,
            buckets: pages.u32(table)?,
            symoffset: pages.u32(table.offset(4))?,
            bloom_words: pages.u32(table.offset(8))?,
            shift: pages.u32(table.offset(12))?,
        };
        let sane = gnu.buckets > 0
            && u64::from(gnu.buckets.max(gnu.symoffset)) <= MAX_DYNSYMS
            && gnu.bloom_words > 0;
        Ok(sane.then_some(gnu))
    }

    fn at(&self, offset: u64) -> RemoteAddr {
        RemoteAddr(self.table.0.wrapping_add(offset))
    }

    fn bloom(&self, hash: u32) -> RemoteAddr {
        self.at(16 + 8 * u64::from((hash / 64) % self.bloom_words))
    }

    fn bucket(&self, bucket: u32) -> RemoteAddr {
        self.at(16 + 8 * u64::from(self.bloom_words) + 4 * u64::from(bucket))
    }

    /// Whether it covers no symbol.
    fn is_empty(&self, pages: &Pages<'_>) -> Result<bool> {
        for bucket in 0..self.buckets {
            if pages.u32(self.bucket(bucket))? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `index` is at least `symoffset`.
    fn chain(&self, index: u32) -> RemoteAddr {
        let chains = 16 + 8 * u64::from(self.bloom_words) + 4 * u64::from(self.buckets);
        self.at(chains + 4 * u64::from(index.saturating_sub(self.symoffset)))
    }
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |h: u32, b| h.wrapping_mul(33).wrapping_add(u32::from(*b)))
}

fn sysv_hash(name: &[u8]) -> u32 {
    name.iter().fold(0, |h: u32, b| {
        let h = (h << 4).wrapping_add(u32::from(*b));
        let high = h & 0xf000_0000;
        (h ^ (high >> 24)) & !high
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_documents() {
        assert_eq!(gnu_hash(b""), 0x1505);
        assert_eq!(gnu_hash(b"printf"), 0x156b_2bb8);
        assert_eq!(sysv_hash(b"printf"), 0x077_905a6);
        assert_eq!(sysv_hash(b"exit"), 0x0006_cf04);
    }
}
