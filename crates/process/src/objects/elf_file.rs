//! ELF files as they lie on disk: program headers, sections, symbol tables, build-id.
//!
//! Everything is read with `pread` when it is asked for, never mapped: a file that is cut short while we look at
//! it gives an error and no SIGBUS, and an object of which only the headers matter costs one read. Only 64-bit
//! little-endian x86-64 files are accepted. Whatever the bytes are, the answer is a value or an [`ElfError`].

use crate::{FileOffset, LinkAddr};
use object::elf;
use object::{LittleEndian as LE, pod};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Longest table (symbols, strings, a section) that is read into memory at once.
pub const MAX_TABLE: u64 = 1 << 30;
/// Most program headers an object may have.
pub const MAX_PROGRAM_HEADERS: usize = 1024;
/// Most sections a file may have.
pub const MAX_SECTIONS: u64 = 1 << 20;
/// How much of the head of a file, or of an object in memory, is read at once: header, program headers and, as
/// link editors lay them out, the notes.
pub const HEAD_LEN: usize = 4096;

const PHDR_LEN: usize = size_of::<elf::ProgramHeader64<LE>>();
const SHDR_LEN: usize = size_of::<elf::SectionHeader64<LE>>();
/// Length of one symbol table entry.
pub const SYM_LEN: usize = size_of::<elf::Sym64<LE>>();

/// A file that cannot be read, or whose bytes are not what an ELF file's must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ElfError {
    /// The file, as it was opened.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The part of an ELF header that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfHeader {
    /// `e_type`: ET_EXEC, ET_DYN ...
    pub kind: u16,
    /// `e_entry`.
    pub entry: LinkAddr,
    /// `e_phoff`.
    pub phoff: u64,
    /// `e_phnum`.
    pub phnum: usize,
    shoff: u64,
    shnum: u16,
    shstrndx: u16,
}

impl ElfHeader {
    /// Reads and checks the header at the start of `bytes`.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (h, _) =
            pod::from_bytes::<elf::FileHeader64<LE>>(bytes).map_err(|()| "too short for an ELF header")?;
        if h.e_ident.magic != elf::ELFMAG {
            return Err("not an ELF file");
        }
        if h.e_ident.class != elf::ELFCLASS64 || h.e_ident.data != elf::ELFDATA2LSB {
            return Err("not a 64-bit little-endian ELF file");
        }
        if h.e_machine.get(LE) != elf::EM_X86_64 {
            return Err("not for x86-64");
        }
        let phnum = usize::from(h.e_phnum.get(LE));
        if phnum > 0 && usize::from(h.e_phentsize.get(LE)) != PHDR_LEN {
            return Err("e_phentsize is not 56");
        }
        if phnum > MAX_PROGRAM_HEADERS {
            return Err("too many program headers");
        }
        if h.e_shoff.get(LE) != 0 && usize::from(h.e_shentsize.get(LE)) != SHDR_LEN {
            return Err("e_shentsize is not 64");
        }
        Ok(Self {
            kind: h.e_type.get(LE),
            entry: LinkAddr(h.e_entry.get(LE)),
            phoff: h.e_phoff.get(LE),
            phnum,
            shoff: h.e_shoff.get(LE),
            shnum: h.e_shnum.get(LE),
            shstrndx: h.e_shstrndx.get(LE),
        })
    }

    /// Length in bytes of the program header table.
    #[must_use]
    pub fn phdrs_len(&self) -> usize {
        self.phnum * PHDR_LEN
    }
}

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`: PF_R, PF_W, PF_X.
    pub flags: u32,
    /// `p_offset`.
    pub offset: FileOffset,
    /// `p_vaddr`.
    pub vaddr: LinkAddr,
    /// `p_filesz`, in bytes.
    pub filesz: u64,
    /// `p_memsz`, in bytes.
    pub memsz: u64,
    /// `p_align`.
    pub align: u64,
}

impl Segment {
    /// Reads a whole program header table.
    #[must_use]
    pub fn parse_all(bytes: &[u8]) -> Vec<Self> {
        let count = bytes.len() / PHDR_LEN;
        let Ok((table, _)) = pod::slice_from_bytes::<elf::ProgramHeader64<LE>>(bytes, count) else {
            return Vec::new();
        };
        table
            .iter()
            .map(|p| Self {
                kind: p.p_type.get(LE),
                flags: p.p_flags.get(LE),
                offset: FileOffset(p.p_offset.get(LE)),
                vaddr: LinkAddr(p.p_vaddr.get(LE)),
                filesz: p.p_filesz.get(LE),
                memsz: p.p_memsz.get(LE),
                align: p.p_align.get(LE),
            })
            .collect()
    }

    /// Whether `addr` lies in the part that comes from the file.
    #[must_use]
    pub fn holds(&self, addr: LinkAddr) -> bool {
        addr.0.checked_sub(self.vaddr.0).is_some_and(|d| d < self.filesz)
    }

    /// Whether `addr` lies anywhere in it.
    #[must_use]
    pub fn covers(&self, addr: LinkAddr) -> bool {
        addr.0.checked_sub(self.vaddr.0).is_some_and(|d| d < self.memsz)
    }

    /// Whether it is a PT_LOAD that may be executed.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.kind == elf::PT_LOAD && self.flags & elf::PF_X != 0
    }
}

/// One section header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name; empty where the file's name table does not hold it.
    pub name: String,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_addr`.
    pub addr: LinkAddr,
    /// `sh_offset`.
    pub offset: FileOffset,
    /// `sh_size`, in bytes.
    pub size: u64,
    /// `sh_link`.
    pub link: u32,
}

/// One symbol, as its table states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawSymbol<'a> {
    /// Its name, without the terminating NUL.
    pub name: &'a [u8],
    /// `st_value`.
    pub value: u64,
    /// `st_size`, in bytes.
    pub size: u64,
    /// STT_FUNC, STT_OBJECT ...
    pub kind: u8,
    /// STB_LOCAL, STB_GLOBAL ...
    pub bind: u8,
    /// STV_DEFAULT, STV_HIDDEN ...
    pub visibility: u8,
    /// `st_shndx`.
    pub section: u16,
}

/// A symbol table and its strings, owned.
#[derive(Clone, Debug, Default)]
pub struct SymbolTable {
    symbols: Vec<u8>,
    strings: Vec<u8>,
}

impl SymbolTable {
    /// Takes the raw bytes of both tables.
    #[must_use]
    pub fn new(symbols: Vec<u8>, strings: Vec<u8>) -> Self {
        Self { symbols, strings }
    }

    fn raw(&self) -> &[elf::Sym64<LE>] {
        pod::slice_from_bytes(&self.symbols, self.symbols.len() / SYM_LEN).map_or(&[], |(s, _)| s)
    }

    /// How many symbols it has, the null symbol included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.symbols.len() / SYM_LEN
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The symbol at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<RawSymbol<'_>> {
        self.raw().get(index).map(|s| decode(s, &self.strings))
    }

    /// All symbols in table order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RawSymbol<'_>> + ExactSizeIterator {
        self.raw().iter().map(|s| decode(s, &self.strings))
    }

    /// Indices of the symbols whose name is `name`, or `name` followed by `separator` and more.
    pub(crate) fn named<'a>(&'a self, name: &'a [u8], separator: u8) -> impl Iterator<Item = usize> + 'a {
        // Quick over a big table: nothing else of an entry is looked at.
        self.raw().iter().enumerate().filter_map(move |(i, s)| {
            let rest = self.strings.get(s.st_name.get(LE) as usize..)?;
            let after = rest.strip_prefix(name)?.first()?;
            (*after == 0 || *after == separator).then_some(i)
        })
    }

    /// Indices of the functions whose value is `value`.
    pub(crate) fn functions_at(&self, value: u64) -> impl Iterator<Item = usize> {
        let here = move |s: &elf::Sym64<LE>| s.st_value.get(LE) == value && s.st_info & 0xf == elf::STT_FUNC;
        self.raw().iter().enumerate().filter(move |(_, s)| here(s)).map(|(i, _)| i)
    }

    /// Index of the last STT_FILE symbol before `index`.
    pub(crate) fn file_before(&self, index: usize) -> Option<usize> {
        self.raw().get(..index)?.iter().rposition(|s| s.st_info & 0xf == elf::STT_FILE)
    }

    /// Whether any function in it is a local symbol.
    pub(crate) fn has_local_functions(&self) -> bool {
        let local_function = elf::STB_LOCAL << 4 | elf::STT_FUNC;
        self.raw().iter().any(|s| s.st_info == local_function && s.st_shndx.get(LE) != elf::SHN_UNDEF)
    }
}

fn decode<'a>(s: &elf::Sym64<LE>, strings: &'a [u8]) -> RawSymbol<'a> {
    let name = strings.get(s.st_name.get(LE) as usize..).unwrap_or(&[]);
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    RawSymbol {
        name: &name[..end],
        value: s.st_value.get(LE),
        size: s.st_size.get(LE),
        kind: s.st_info & 0xf,
        bind: s.st_info >> 4,
        visibility: s.st_other & 3,
        section: s.st_shndx.get(LE),
    }
}

#[derive(Debug)]
enum Bytes {
    Disk(File),
    Owned(Vec<u8>),
}

/// An open ELF file.
#[derive(Debug)]
pub struct ElfFile {
    bytes: Bytes,
    path: PathBuf,
    len: u64,
    head: Vec<u8>,
    header: ElfHeader,
    segments: Vec<Segment>,
    sections: OnceLock<Result<Vec<Section>, ElfError>>,
}

impl ElfFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// Where it cannot be opened or is no ELF file for x86-64.
    pub fn open(path: &Path) -> Result<Self, ElfError> {
        // A target may name a FIFO or a device; O_NONBLOCK keeps the open from waiting for its other end.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| error(path, e))?;
        Self::from_file(file, path)
    }

    /// Takes a file that is open already; `path` is for messages.
    ///
    /// # Errors
    /// As [`ElfFile::open`].
    pub fn from_file(file: File, path: &Path) -> Result<Self, ElfError> {
        let meta = file.metadata().map_err(|e| error(path, e))?;
        if !meta.is_file() {
            return Err(error(path, "not a regular file"));
        }
        Self::new(Bytes::Disk(file), path.to_owned(), meta.len())
    }

    /// Takes a file that lies in our memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`ElfFile::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, ElfError> {
        let len = bytes.len() as u64;
        Self::new(Bytes::Owned(bytes), path.to_owned(), len)
    }

    fn new(bytes: Bytes, path: PathBuf, len: u64) -> Result<Self, ElfError> {
        let head = read(&bytes, 0, len.min(HEAD_LEN as u64) as usize).map_err(|e| error(&path, e))?;
        let header = ElfHeader::parse(&head).map_err(|e| error(&path, e))?;
        let mut file =
            Self { bytes, path, len, head, header, segments: Vec::new(), sections: OnceLock::new() };
        file.segments = Segment::parse_all(&file.read(FileOffset(header.phoff), header.phdrs_len() as u64)?);
        Ok(file)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &ElfHeader {
        &self.header
    }

    /// Its program headers.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Device and inode of the file, where it is one on disk.
    #[must_use]
    pub fn inode(&self) -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        match &self.bytes {
            Bytes::Disk(f) => f.metadata().ok().map(|m| (m.dev(), m.ino())),
            Bytes::Owned(_) => None,
        }
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// Where they lie outside of the file, or the file cannot be read.
    pub fn read(&self, offset: FileOffset, len: u64) -> Result<Vec<u8>, ElfError> {
        let end = offset.0.checked_add(len).filter(|end| *end <= self.len);
        if end.is_none() || len > MAX_TABLE {
            return Err(self.error(format!("{len} bytes at offset {offset} lie outside of the file")));
        }
        if let Some(part) = usize::try_from(offset.0)
            .ok()
            .and_then(|start| self.head.get(start..)?.get(..usize::try_from(len).ok()?))
        {
            return Ok(part.to_vec());
        }
        read(&self.bytes, offset.0, len as usize).map_err(|e| self.error(e))
    }

    /// The bytes that the file has for `len` bytes at `addr`.
    ///
    /// # Errors
    /// Where no PT_LOAD segment holds all of them.
    pub fn read_at(&self, addr: LinkAddr, len: u64) -> Result<Vec<u8>, ElfError> {
        let last = addr.0.checked_add(len.max(1) - 1).map(LinkAddr);
        let segment = self
            .segments
            .iter()
            .find(|s| s.kind == elf::PT_LOAD && s.holds(addr) && last.is_some_and(|l| s.holds(l)))
            .ok_or_else(|| self.error(format!("no segment holds {len} bytes at {addr}")))?;
        let offset = segment.offset.0.checked_add(addr.0 - segment.vaddr.0);
        self.read(FileOffset(offset.unwrap_or(u64::MAX)), len)
    }

    /// Its sections; none where the file has no section table.
    ///
    /// # Errors
    /// Where the table lies outside of the file.
    pub fn sections(&self) -> Result<&[Section], ElfError> {
        self.sections.get_or_init(|| self.read_sections()).as_deref().map_err(Clone::clone)
    }

    fn read_sections(&self) -> Result<Vec<Section>, ElfError> {
        let h = &self.header;
        if h.shoff == 0 {
            return Ok(Vec::new());
        }
        // Counts that do not fit the header are in section 0 (gABI, "e_shnum").
        let (mut count, mut names) = (u64::from(h.shnum), u32::from(h.shstrndx));
        if count == 0 || names == u32::from(elf::SHN_XINDEX) {
            let first = self.read(FileOffset(h.shoff), SHDR_LEN as u64)?;
            let (s, _) = pod::from_bytes::<elf::SectionHeader64<LE>>(&first)
                .map_err(|()| self.error("its section table is cut short"))?;
            if count == 0 {
                count = s.sh_size.get(LE);
            }
            if names == u32::from(elf::SHN_XINDEX) {
                names = s.sh_link.get(LE);
            }
        }
        if count > MAX_SECTIONS {
            return Err(self.error(format!("{count} sections are more than {MAX_SECTIONS}")));
        }
        let bytes = self.read(FileOffset(h.shoff), count * SHDR_LEN as u64)?;
        let (table, _) = pod::slice_from_bytes::<elf::SectionHeader64<LE>>(&bytes, count as usize)
            .map_err(|()| self.error("its section table is cut short"))?;
        let strings = match table.get(names as usize) {
            Some(s) if s.sh_type.get(LE) == elf::SHT_STRTAB => {
                self.read(FileOffset(s.sh_offset.get(LE)), s.sh_size.get(LE))?
            }
            _ => Vec::new(),
        };
        let name = |at: u32| {
            let rest = strings.get(at as usize..).unwrap_or(&[]);
            let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
            String::from_utf8_lossy(&rest[..end]).into_owned()
        };
        let section = |s: &elf::SectionHeader64<LE>| Section {
            name: name(s.sh_name.get(LE)),
            kind: s.sh_type.get(LE),
            flags: s.sh_flags.get(LE),
            addr: LinkAddr(s.sh_addr.get(LE)),
            offset: FileOffset(s.sh_offset.get(LE)),
            size: s.sh_size.get(LE),
            link: s.sh_link.get(LE),
        };
        Ok(table.iter().map(section).collect())
    }

    /// The bytes of the section called `name`, where the file has it and it has bytes.
    ///
    /// # Errors
    /// Where it lies outside of the file, or is compressed (no section asked for here ever is).
    pub fn section(&self, name: &str) -> Result<Option<Vec<u8>>, ElfError> {
        match self.sections()?.iter().find(|s| s.name == name && s.kind != elf::SHT_NOBITS) {
            Some(s) => self.section_bytes(s).map(Some),
            None => Ok(None),
        }
    }

    fn section_bytes(&self, s: &Section) -> Result<Vec<u8>, ElfError> {
        if s.flags & u64::from(elf::SHF_COMPRESSED) != 0 {
            return Err(self.error(format!("section {} is compressed", s.name)));
        }
        self.read(s.offset, s.size)
    }

    /// The symbol table of the given type (SHT_SYMTAB or SHT_DYNSYM) with its strings.
    ///
    /// # Errors
    /// Where either lies outside of the file.
    pub fn symbol_table(&self, kind: u32) -> Result<Option<SymbolTable>, ElfError> {
        let sections = self.sections()?;
        let Some(table) = sections.iter().find(|s| s.kind == kind && s.size > 0) else { return Ok(None) };
        let strings = sections
            .get(table.link as usize)
            .filter(|s| s.kind == elf::SHT_STRTAB)
            .ok_or_else(|| self.error(format!("symbol table {} has no string table", table.name)))?;
        Ok(Some(SymbolTable::new(self.section_bytes(table)?, self.section_bytes(strings)?)))
    }

    /// The build-id, from the PT_NOTE segments: for a file that programs are mapped from.
    #[must_use]
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let mut segments = self.segments.iter().filter(|s| s.kind == elf::PT_NOTE);
        segments.find_map(|s| build_id_of_notes(&self.read(s.offset, s.filesz).ok()?))
    }

    /// The build-id, from the note sections: for a separate debug file, which has the sections' notes but whose
    /// program headers describe bytes that it does not have.
    #[must_use]
    pub fn debug_build_id(&self) -> Option<Vec<u8>> {
        let mut sections = self.sections().unwrap_or(&[]).iter().filter(|s| s.kind == elf::SHT_NOTE);
        sections.find_map(|s| build_id_of_notes(&self.section_bytes(s).ok()?))
    }

    fn error(&self, reason: impl ToString) -> ElfError {
        error(&self.path, reason)
    }
}

fn error(path: &Path, reason: impl ToString) -> ElfError {
    ElfError { path: path.display().to_string(), reason: reason.to_string() }
}

fn read(bytes: &Bytes, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    match bytes {
        Bytes::Disk(file) => {
            let mut buf = vec![0; len];
            file.read_exact_at(&mut buf, offset)?;
            Ok(buf)
        }
        Bytes::Owned(all) => {
            let part = usize::try_from(offset).ok().and_then(|start| all.get(start..)?.get(..len));
            part.map(<[u8]>::to_vec).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// The build-id among the notes in `bytes` (`NT_GNU_BUILD_ID` of `GNU`), where there is one.
#[must_use]
pub fn build_id_of_notes(mut bytes: &[u8]) -> Option<Vec<u8>> {
    while bytes.len() >= 12 {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (name_len, desc_len, kind) = (word(0) as usize, word(4) as usize, word(8));
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let desc = bytes.get(desc_at..)?.get(..desc_len)?;
        if kind == elf::NT_GNU_BUILD_ID && bytes.get(12..12 + name_len) == Some(b"GNU\0") && !desc.is_empty()
        {
            return Some(desc.to_vec());
        }
        bytes = bytes.get(desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?..).unwrap_or(&[]);
    }
    None
}
