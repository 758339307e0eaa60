//! The symbols of an object that has just been mapped, by the rules of the tool (docs/symbols.md): the full table of its file
//! together with the dynamic symbols in memory; several symbols of one name at one address are one; positions count addresses.
//!
//! The file is input and may be anything. It is read, not mapped, into memory of our own: a mapping of a file that somebody
//! cuts short kills who reads it. It is believed only if its headers and notes are those in memory.

use super::elf::{HEADER_LEN, Object, SEGMENTS_LEN, SYMBOL_LEN, Segment, number};
use super::refusal::Refusal;
use super::syscall::{self, Fd, O_NOCTTY, O_NONBLOCK, O_RDONLY, Pages};

/// Longest table that is read of a file.
const MAX_TABLE: u64 = 1 << 30;
/// Most sections.
const MAX_SECTIONS: u64 = 1 << 16;
/// Most addresses of one name.
const MAX_GROUPS: usize = 1024;

const SECTION_LEN: usize = 64;
const SHT_SYMTAB: u64 = 2;
const SHT_STRTAB: u64 = 3;
const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;
const SHN_COMMON: u16 = 0xfff2;
/// `STT_FUNC` of elf.h, and so on.
pub const STT_FUNC: u8 = 2;
const STT_SECTION: u8 = 3;
const STT_FILE: u8 = 4;
pub const STT_TLS: u8 = 6;
pub const STT_GNU_IFUNC: u8 = 10;

/// A symbol, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it lies; of a thread-local one the offset in its module's block.
    pub address: u64,
    /// Its length as its symbol says, in bytes.
    pub size: u64,
    /// `STT_FUNC` and so on.
    pub kind: u8,
}

/// Bytes of the object's text as its file has them.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Address of the first one in the process.
    pub addr: u64,
    pub bytes: &'a [u8],
}

/// The file of an object.
pub struct File<'o> {
    object: &'o Object,
    fd: Fd,
    symbols: Table,
    strings: Table,
    text: Table,
    text_at: u64,
}

/// A part of the file, copied.
struct Table {
    pages: Option<Pages>,
    len: usize,
}

impl Table {
    const NONE: Self = Self { pages: None, len: 0 };

    fn read(fd: &Fd, size: u64, offset: u64, len: u64) -> Result<Self, Refusal> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        if !inside || len > MAX_TABLE {
            return Err(Refusal::Damaged("a table lies outside of it"));
        }
        let mut pages = Pages::new(len as usize).map_err(Refusal::NoMemory)?;
        if let Some(to) = pages.get_mut(..len as usize) {
            fd.read_at(to, offset).map_err(Refusal::File)?;
        }
        Ok(Self { pages: Some(pages), len: len as usize })
    }

    fn bytes(&self) -> &[u8] {
        self.pages.as_ref().and_then(|pages| pages.get(..self.len)).unwrap_or(&[])
    }
}

/// A symbol of either table.
struct Entry<'a> {
    value: u64,
    size: u64,
    kind: u8,
    bind: u8,
    visibility: u8,
    section: u16,
    /// Its version's name, and whether it is a hidden one.
    version: Option<(&'a [u8], bool)>,
}

impl Entry<'_> {
    fn is_code(&self) -> bool {
        matches!(self.kind, STT_FUNC | STT_GNU_IFUNC) && self.section != SHN_ABS
    }
}

/// All symbols of one name at one address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Group {
    value: u64,
    size: u64,
    section: u16,
    kind: u8,
    ifunc: bool,
    /// Some of them have a version, and one of those is not hidden.
    versioned: bool,
    shown: bool,
    /// One of them has the version that was asked for.
    asked: bool,
}

/// The groups of a name, by address.
struct Groups {
    pages: Pages,
    count: usize,
}

impl Groups {
    fn new() -> Result<Self, Refusal> {
        let pages = Pages::new(MAX_GROUPS * size_of::<Group>()).map_err(Refusal::NoMemory)?;
        Ok(Self { pages, count: 0 })
    }

    fn all(&mut self) -> &mut [Group] {
        // SAFETY: pages are aligned and long enough for all groups, and those up to the count were written; a `bool` is
        // never written but by its own value.
        unsafe { core::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.count) }
    }

    fn add(&mut self, entry: &Entry<'_>, asked: bool) -> Result<(), Refusal> {
        let key = (entry.value, entry.kind == STT_TLS);
        let at = self.all().partition_point(|group| (group.value, group.kind == STT_TLS) < key);
        let found = self.all().get(at).is_some_and(|group| (group.value, group.kind == STT_TLS) == key);
        if !found {
            if self.count >= MAX_GROUPS {
                return Err(Refusal::TooMany);
            }
            let new = Group {
                value: entry.value,
                size: 0,
                section: entry.section,
                kind: entry.kind,
                ifunc: false,
                versioned: false,
                shown: false,
                asked: false,
            };
            let first = self.pages.as_mut_ptr().cast::<Group>();
            // SAFETY: there is room for one more, and `at` is at most the count.
            unsafe {
                core::ptr::copy(first.add(at), first.add(at + 1), self.count.wrapping_sub(at));
                first.add(at).write(new);
            }
            self.count += 1;
        }
        if let Some(group) = self.all().get_mut(at) {
            group.size = group.size.max(entry.size);
            group.ifunc |= entry.kind == STT_GNU_IFUNC;
            group.versioned |= entry.version.is_some();
            group.shown |= entry.version.is_some_and(|(_, hidden)| !hidden);
            group.asked |= asked;
        }
        Ok(())
    }

    /// Keeps those that `name` means: of its version, or of the default one where there is one.
    fn choose(&mut self, by_version: bool) {
        let hidden = |group: &Group| group.versioned && !group.shown;
        let some_shown = self.all().iter().any(|group| !hidden(group));
        let mut kept = 0;
        for i in 0..self.count {
            let Some(group) = self.all().get(i).copied() else { break };
            if if by_version { group.asked } else { !some_shown || !hidden(&group) } {
                if let Some(place) = self.all().get_mut(kept) {
                    *place = group;
                }
                kept += 1;
            }
        }
        self.count = kept;
    }
}

impl<'o> File<'o> {
    /// Opens the file that the loader has opened, and reads its symbols.
    ///
    /// # Errors
    /// Where it cannot be read, or is not the one that is mapped.
    pub fn open(object: &'o Object) -> Result<Self, Refusal> {
        let (header, segments) = object.headers()?;
        // The name may lead to a FIFO or a terminal by now.
        // SAFETY: the loader's string ends with a zero.
        let fd = unsafe { syscall::open(object.name(), O_RDONLY | O_NONBLOCK | O_NOCTTY) };
        let fd = fd.map_err(Refusal::File)?;
        let stat = fd.stat().map_err(Refusal::File)?;
        if !stat.regular {
            return Err(Refusal::Differs("no regular file"));
        }
        let mut now = [0; HEADER_LEN];
        fd.read_at(&mut now, 0).map_err(Refusal::File)?;
        if now != *header {
            return Err(Refusal::Differs("another ELF header"));
        }
        let mut now = [0; SEGMENTS_LEN];
        let table = now.get_mut(..segments.len()).ok_or(Refusal::NoHeader)?;
        fd.read_at(table, number::<8>(header, 32).unwrap_or(0)).map_err(Refusal::File)?;
        if table != segments {
            return Err(Refusal::Differs("other program headers"));
        }
        for note in object.segments().filter(Segment::is_note) {
            let memory = object.bytes(object.bias().wrapping_add(note.vaddr), note.filesz).unwrap_or(&[]);
            let mut offset = note.offset;
            for piece in memory.chunks(256) {
                let mut now = [0; 256];
                let now = now.get_mut(..piece.len()).unwrap_or(&mut []);
                fd.read_at(now, offset).map_err(Refusal::File)?;
                if now != piece {
                    return Err(Refusal::Differs("other notes, among them the build-id"));
                }
                offset = offset.wrapping_add(piece.len() as u64);
            }
        }
        let mut file =
            Self { object, fd, symbols: Table::NONE, strings: Table::NONE, text: Table::NONE, text_at: 0 };
        file.read_symbols(header, stat.size)?;
        Ok(file)
    }

    fn read_symbols(&mut self, header: &[u8], size: u64) -> Result<(), Refusal> {
        let at = number::<8>(header, 40).unwrap_or(0);
        if at == 0 {
            return Ok(());
        }
        let mut count = number::<2>(header, 60).unwrap_or(0);
        if count == 0 {
            // Does not fit the header: see gABI, "e_shnum".
            let first = Table::read(&self.fd, size, at, SECTION_LEN as u64)?;
            count = number::<8>(first.bytes(), 32).unwrap_or(0);
        }
        if count > MAX_SECTIONS {
            return Err(Refusal::Damaged("too many sections"));
        }
        let table = Table::read(&self.fd, size, at, count.wrapping_mul(SECTION_LEN as u64))?;
        let section = |index: usize| table.bytes().get(index.checked_mul(SECTION_LEN)?..)?.get(..SECTION_LEN);
        let is_table = |s: &&[u8]| number::<4>(s, 4) == Some(SHT_SYMTAB) && number::<8>(s, 32) != Some(0);
        let Some(found) = (0..count as usize).filter_map(section).find(is_table) else { return Ok(()) };
        let strings = section(number::<4>(found, 40).unwrap_or(0) as usize);
        let strings = strings.filter(|s| number::<4>(s, 4) == Some(SHT_STRTAB));
        let strings = strings.ok_or(Refusal::Damaged("its symbols have no names"))?;
        let part = |s: &[u8]| {
            let (offset, len) = (number::<8>(s, 24).unwrap_or(0), number::<8>(s, 32).unwrap_or(0));
            Table::read(&self.fd, size, offset, len)
        };
        let (symbols, strings) = (part(found)?, part(strings)?);
        (self.symbols, self.strings) = (symbols, strings);
        Ok(())
    }

    /// Device and inode of the file.
    pub fn inode(&self) -> (u64, u64) {
        let stat = self.fd.stat().unwrap_or_default();
        (stat.device, stat.inode)
    }

    /// The text segment that `at` lies in, as the file has it.
    ///
    /// # Errors
    /// [`Refusal::OutsideText`] where there is none.
    pub fn text(&mut self, at: u64) -> Result<Text<'_>, Refusal> {
        let link = at.wrapping_sub(self.object.bias());
        let holds = |s: &Segment| s.is_text() && link >= s.vaddr && link.wrapping_sub(s.vaddr) < s.filesz;
        let segment = self.object.segments().find(holds).ok_or(Refusal::OutsideText { start: at })?;
        let start = self.object.bias().wrapping_add(segment.vaddr);
        if self.text.len == 0 || self.text_at != start {
            self.text = Table::NONE;
            let size = self.fd.stat().map_err(Refusal::File)?.size;
            self.text = Table::read(&self.fd, size, segment.offset, segment.filesz)?;
            self.text_at = start;
        }
        Ok(Text { addr: start, bytes: self.text.bytes() })
    }

    /// Calls `take` for every defined symbol called `name`, in the full table first.
    fn named<'s>(
        &'s self,
        name: &[u8],
        mut take: impl FnMut(bool, &Entry<'s>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let full = (self.symbols.bytes(), self.strings.bytes());
        for (is_full, (symbols, strings)) in [(true, full), (false, self.object.dynamic_symbols())] {
            for (index, raw) in symbols.chunks_exact(SYMBOL_LEN).enumerate() {
                let at = number::<4>(raw, 0).unwrap_or(0) as usize;
                let Some(rest) = strings.get(at..).and_then(|s| s.strip_prefix(name)) else { continue };
                if !matches!(rest.first(), Some(0 | b'@')) {
                    continue;
                }
                let Some(mut entry) = decode(raw) else { continue };
                let defined = !matches!(entry.section, SHN_UNDEF | SHN_COMMON)
                    && !matches!(entry.kind, STT_FILE | STT_SECTION);
                // GNU ld writes versions into the names of the full table.
                let Some(after) = super::elf::string(rest) else { continue };
                entry.version = match after.strip_prefix(b"@") {
                    Some(version) => {
                        let default = version.strip_prefix(b"@");
                        Some((default.unwrap_or(version), default.is_none()))
                    }
                    None if is_full => None,
                    None => self.object.version(index),
                };
                if defined {
                    take(is_full, &entry)?;
                }
            }
        }
        Ok(())
    }

    fn groups(&self, name: &[u8], code: bool) -> Result<Groups, Refusal> {
        let at = name.iter().position(|byte| *byte == b'@').filter(|at| *at > 0);
        let base = name.get(..at.unwrap_or(name.len())).unwrap_or(name);
        let version = at.and_then(|at| name.get(at + 1..));
        let default = version.and_then(|version| version.strip_prefix(b"@"));
        let mut groups = Groups::new()?;
        if base.is_empty() {
            return Ok(groups);
        }
        self.named(base, |_, entry| {
            if code && !entry.is_code() {
                return Ok(());
            }
            let asked = entry.version.is_some_and(|(name, hidden)| {
                Some(name) == default.or(version) && !(default.is_some() && hidden)
            });
            groups.add(entry, asked)
        })?;
        groups.choose(version.is_some());
        Ok(groups)
    }

    fn choose(&self, name: &[u8], sympos: u64, code: bool) -> Result<Group, Refusal> {
        let mut groups = self.groups(name, code)?;
        let count = groups.count;
        if count == 0 {
            if code && self.groups(name, false)?.count > 0 {
                return Err(Refusal::NotAFunction);
            }
            return Err(Refusal::NotFound { local: self.symbols.len > 0 });
        }
        let index = match sympos {
            0 if count == 1 => 0,
            0 => return Err(Refusal::Ambiguous { count }),
            _ => sympos.wrapping_sub(1) as usize,
        };
        groups.all().get(index).copied().ok_or(Refusal::NoSuchPosition { count })
    }

    /// The function called `name` at `sympos` (0: the only one). A name is a symbol's, perhaps with `@VERSION` or `@@VERSION`.
    ///
    /// # Errors
    /// Where there is none, or not only one, or the program is yet to choose it (STT_GNU_IFUNC).
    pub fn function(&self, name: &[u8], sympos: u64) -> Result<Found, Refusal> {
        let group = self.choose(name, sympos, true)?;
        if group.ifunc {
            return Err(Refusal::Ifunc);
        }
        let address = self.object.bias().wrapping_add(group.value);
        Ok(Found { address, size: group.size, kind: STT_FUNC })
    }

    /// The symbol called `name` at `sympos` (0: the only one), of any kind.
    ///
    /// # Errors
    /// As [`File::function`].
    pub fn symbol(&self, name: &[u8], sympos: u64) -> Result<Found, Refusal> {
        let group = self.choose(name, sympos, false)?;
        if group.ifunc {
            return Err(Refusal::Ifunc);
        }
        Ok(self.found(group.value, group.size, group.kind, group.section))
    }

    /// The symbol that a reference of another object would bind to: exported, and of that version, or of the default one where
    /// `version` is empty.
    pub fn export(&self, name: &[u8], version: &[u8]) -> Option<Found> {
        let mut best: Option<Found> = None;
        let _ = self.named(name, |is_full, entry| {
            const STB_LOCAL: u8 = 0;
            const STV_DEFAULT: u8 = 0;
            const STV_PROTECTED: u8 = 3;
            let exported = !is_full
                && entry.bind != STB_LOCAL
                && matches!(entry.visibility, STV_DEFAULT | STV_PROTECTED);
            let fits = match entry.version {
                Some((_, hidden)) if version.is_empty() => !hidden,
                Some((name, _)) => name == version,
                None => true,
            };
            if exported && fits && best.is_none() {
                best = Some(self.found(entry.value, entry.size, entry.kind, entry.section));
            }
            Ok(())
        });
        best
    }

    fn found(&self, value: u64, size: u64, kind: u8, section: u16) -> Found {
        let absolute = kind == STT_TLS || section == SHN_ABS;
        let address = if absolute { value } else { self.object.bias().wrapping_add(value) };
        Found { address, size, kind }
    }
}

fn decode(raw: &[u8]) -> Option<Entry<'static>> {
    let info = number::<1>(raw, 4)? as u8;
    Some(Entry {
        value: number::<8>(raw, 8)?,
        size: number::<8>(raw, 16)?,
        kind: info & 0xf,
        bind: info >> 4,
        visibility: number::<1>(raw, 5)? as u8 & 3,
        section: number::<2>(raw, 6)? as u16,
        version: None,
    })
}
