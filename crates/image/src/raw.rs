//! The raw view: an ELF64 relocatable's headers, sections, symbols and relocations as the file states them, each within
//! the file's bounds. Knows ELF and nothing of patches.
//!
//! Invariants of a [`RawElf`]: every section's bytes lie in the file and overlap no other section's nor the headers; every
//! name is UTF-8, ended by a zero and within [`limits`]; every symbol's section exists and holds the symbol's extent;
//! every relocation's symbol exists.

use crate::error::{Error, Result};
use crate::limits;
use object::elf;
use std::ops::Range;

/// `e_ident` and the rest of the ELF64 header.
const EHDR_SIZE: usize = 64;
/// An ELF64 section header.
const SHDR_SIZE: usize = 64;
/// An ELF64 symbol.
const SYM_SIZE: usize = 24;
/// An ELF64 relocation with addend.
const RELA_SIZE: usize = 24;

/// A section header with its name and bytes.
#[derive(Debug, Clone)]
pub struct RawSection<'a> {
    pub name: &'a str,
    pub kind: u32,
    pub flags: u64,
    /// Empty for SHT_NOBITS.
    pub bytes: &'a [u8],
    /// `sh_size`: the length of `bytes`, or of the zeros.
    pub size: u64,
    pub link: u32,
    pub info: u32,
    pub align: u64,
    pub entry_size: u64,
}

impl RawSection<'_> {
    pub fn is(&self, flag: u32) -> bool {
        self.flags & u64::from(flag) != 0
    }
}

/// Where a symbol is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawPlace {
    Undefined,
    Absolute,
    Common,
    Section(u32),
}

/// A symbol; `name` is a range of the string table.
#[derive(Debug, Clone)]
pub struct RawSymbol {
    pub name: Range<usize>,
    /// STT_*
    pub kind: u8,
    /// STB_*
    pub binding: u8,
    pub place: RawPlace,
    pub value: u64,
    pub size: u64,
}

/// A relocation with addend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRela {
    pub offset: u64,
    /// R_X86_64_*
    pub kind: u32,
    pub symbol: u32,
    pub addend: i64,
}

/// The whole view.
#[derive(Debug)]
pub struct RawElf<'a> {
    pub sections: Vec<RawSection<'a>>,
    pub symbols: Vec<RawSymbol>,
    /// The string table that the symbols' names are ranges of.
    pub strings: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}
/// The caller has checked that the place lies within `bytes`; zeros otherwise.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at.saturating_add(N)).and_then(|s| s.try_into().ok()).unwrap_or([0; N])
}

impl<'a> RawElf<'a> {
    /// Reads the view of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        check_header(bytes)?;
        let sections = read_sections(bytes)?;
        let (symbols, strings) = read_symbols(&sections)?;
        Ok(Self { sections, symbols, strings })
    }

    /// A symbol's name.
    pub fn name(&self, symbol: &RawSymbol) -> &'a str {
        self.strings.get(symbol.name.clone()).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("")
    }

    /// The relocations that a SHT_RELA section holds. Their symbols exist; their offsets are not checked.
    pub fn relocations(&self, section: &RawSection<'a>) -> Result<Vec<RawRela>> {
        let what = || format!("relocation section {}", section.name);
        if section.entry_size != RELA_SIZE as u64 {
            return Err(Error::damaged(what(), "has a wrong entry size"));
        }
        if !section.bytes.len().is_multiple_of(RELA_SIZE) {
            return Err(Error::damaged(what(), "is not a whole number of entries"));
        }
        if self.sections.get(section.link as usize).is_none_or(|s| s.kind != elf::SHT_SYMTAB) {
            return Err(Error::damaged(what(), "names no symbol table"));
        }
        section
            .bytes
            .chunks_exact(RELA_SIZE)
            .map(|b| {
                let info = u64_at(b, 8);
                let rela = RawRela {
                    offset: u64_at(b, 0),
                    kind: info as u32,
                    symbol: (info >> 32) as u32,
                    addend: u64_at(b, 16) as i64,
                };
                if rela.symbol as usize >= self.symbols.len().max(1) {
                    return Err(Error::damaged(
                        what(),
                        format!("names symbol {}, which does not exist", rela.symbol),
                    ));
                }
                Ok(rela)
            })
            .collect()
    }
}

/// What a file that is no ELF file looks like, and what to do about it.
fn foreign(bytes: &[u8]) -> (&'static str, &'static str) {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let compile = "compile the source with `cc -c`";
    if bytes.is_empty() {
        ("an empty file", compile)
    } else if starts(b"\x1f\x8b") || starts(b"\xfd7zXZ\0") || starts(b"\x28\xb5\x2f\xfd") || starts(b"BZh") {
        ("a compressed file", "decompress it first (gunzip, xz -d, zstd -d)")
    } else if starts(b"PK\x03\x04") {
        ("a zip archive", "extract the object first")
    } else if starts(b"BC\xc0\xde") || starts(b"\xde\xc0\x17\x0b") {
        ("LLVM bitcode", "compile without -flto and -emit-llvm")
    } else if starts(b"!<arch>\n") || starts(b"!<thin>\n") {
        ("an archive of objects", "extract them and join them: `ld -r -o patch.o a.o b.o`")
    } else if starts(b"#!") {
        ("a script", compile)
    } else if bytes.len() >= 4
        && bytes.iter().take(256).all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e))
    {
        ("text, perhaps the source", compile)
    } else {
        ("data of some other kind", compile)
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        elf::EM_386 => "i386".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_ARM => "arm".into(),
        elf::EM_RISCV => "riscv".into(),
        elf::EM_PPC64 => "ppc64".into(),
        elf::EM_S390 => "s390x".into(),
        elf::EM_BPF => "bpf".into(),
        elf::EM_LOONGARCH => "loongarch".into(),
        other => format!("machine {other}"),
    }
}

fn check_header(bytes: &[u8]) -> Result<()> {
    if bytes.len() > limits::MAX_FILE_SIZE {
        return Err(Error::FileTooLarge { size: bytes.len() });
    }
    if !bytes.starts_with(&elf::ELFMAG) {
        let (what, way) = foreign(bytes);
        return Err(Error::NotElf { what, way });
    }
    if bytes.len() < EHDR_SIZE {
        return Err(Error::damaged("the ELF header", "is cut off"));
    }
    match bytes[4] {
        elf::ELFCLASS64 => {}
        elf::ELFCLASS32 => return Err(Error::Elf32),
        _ => return Err(Error::damaged("the ELF header", "has an unknown class")),
    }
    match bytes[5] {
        elf::ELFDATA2LSB => {}
        elf::ELFDATA2MSB => return Err(Error::BigEndian),
        _ => return Err(Error::damaged("the ELF header", "has an unknown byte order")),
    }
    if bytes[6] != elf::EV_CURRENT || u32_at(bytes, 20) != u32::from(elf::EV_CURRENT) {
        return Err(Error::damaged("the ELF header", "has an unknown version"));
    }
    if !matches!(bytes[7], elf::ELFOSABI_SYSV | elf::ELFOSABI_GNU) {
        return Err(Error::damaged("the ELF header", format!("is for another system (OSABI {})", bytes[7])));
    }
    let machine = u16_at(bytes, 18);
    if machine != elf::EM_X86_64 {
        return Err(Error::Machine { machine: machine_name(machine) });
    }
    match u16_at(bytes, 16) {
        elf::ET_REL => Ok(()),
        elf::ET_EXEC => Err(Error::NotRelocatable { what: "an executable" }),
        elf::ET_DYN => {
            Err(Error::NotRelocatable { what: "a shared object or position-independent executable" })
        }
        elf::ET_CORE => Err(Error::NotRelocatable { what: "a core file" }),
        _ => Err(Error::damaged("the ELF header", "has an unknown type")),
    }
}

/// The string at `offset` of a string table, as a range of it: within bounds, ended, UTF-8 and not too long.
fn string_at(table: &[u8], offset: usize) -> Result<Range<usize>, &'static str> {
    let rest = table.get(offset..).ok_or("has a name beyond its string table")?;
    let rest = &rest[..rest.len().min(limits::MAX_SYMBOL_NAME + 1)];
    let Some(len) = rest.iter().position(|b| *b == 0) else {
        return Err(if rest.len() > limits::MAX_SYMBOL_NAME {
            "has a name longer than 16384 bytes"
        } else {
            "has a name that does not end"
        });
    };
    if core::str::from_utf8(&rest[..len]).is_err() {
        return Err("has a name that is not UTF-8");
    }
    Ok(offset..offset + len)
}

fn read_sections(bytes: &[u8]) -> Result<Vec<RawSection<'_>>> {
    let table = "the section header table";
    let offset = usize::try_from(u64_at(bytes, 40))
        .map_err(|_| Error::damaged(table, "lies beyond the end of the file"))?;
    let count = usize::from(u16_at(bytes, 60));
    let names = usize::from(u16_at(bytes, 62));
    if u16_at(bytes, 52) as usize != EHDR_SIZE {
        return Err(Error::damaged("the ELF header", "states a wrong size of itself"));
    }
    if offset == 0 {
        return Err(Error::damaged(table, "is missing"));
    }
    if u16_at(bytes, 58) as usize != SHDR_SIZE {
        return Err(Error::damaged(table, "has a wrong entry size"));
    }
    let cut = || Error::damaged(table, "lies beyond the end of the file (is it cut off?)");
    if count == 0 {
        // Extended numbering: the count stands in the first header's sh_size.
        if offset.checked_add(SHDR_SIZE).is_none_or(|end| end > bytes.len()) {
            return Err(cut());
        }
        let count = u64_at(bytes, offset + 32);
        return Err(if count == 0 {
            Error::damaged(table, "is empty")
        } else {
            Error::TooMany { what: "sections", count, limit: limits::MAX_SECTIONS as u64 }
        });
    }
    if count > limits::MAX_SECTIONS {
        return Err(Error::TooMany {
            what: "sections",
            count: count as u64,
            limit: limits::MAX_SECTIONS as u64,
        });
    }
    let end = offset.checked_add(count * SHDR_SIZE).ok_or_else(cut)?;
    let headers = bytes.get(offset..end).ok_or_else(cut)?;

    let mut used: Vec<(usize, usize, usize)> = vec![(0, EHDR_SIZE, usize::MAX), (offset, end, usize::MAX)];
    let mut sections = Vec::with_capacity(count);
    for (index, h) in headers.chunks_exact(SHDR_SIZE).enumerate() {
        let what = || format!("section {index}");
        let kind = u32_at(h, 4);
        let size = u64_at(h, 32);
        let content = if kind == elf::SHT_NOBITS || kind == elf::SHT_NULL {
            &[][..]
        } else {
            let beyond = || Error::damaged(what(), "lies beyond the end of the file (is it cut off?)");
            let start = usize::try_from(u64_at(h, 24)).map_err(|_| beyond())?;
            let end = usize::try_from(size).ok().and_then(|s| start.checked_add(s)).ok_or_else(beyond)?;
            let content = bytes.get(start..end).ok_or_else(beyond)?;
            if start < end {
                used.push((start, end, index));
            }
            content
        };
        let align = u64_at(h, 48);
        if align != 0 && !align.is_power_of_two() {
            return Err(Error::damaged(
                what(),
                format!("has an alignment of {align}, which is no power of two"),
            ));
        }
        sections.push(RawSection {
            name: "",
            kind,
            flags: u64_at(h, 8),
            bytes: content,
            size,
            link: u32_at(h, 40),
            info: u32_at(h, 44),
            align: align.max(1),
            entry_size: u64_at(h, 56),
        });
    }
    if sections[0].kind != elf::SHT_NULL {
        return Err(Error::damaged("section 0", "is not the null section"));
    }
    used.sort_unstable();
    if let Some(pair) = used.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let name = |index| match index {
            usize::MAX => "a header".to_string(),
            index => format!("section {index}"),
        };
        return Err(Error::damaged(name(pair[1].2), format!("overlaps {}", name(pair[0].2))));
    }
    let name_table = match sections.get(names) {
        Some(s) if s.kind == elf::SHT_STRTAB => s.bytes,
        _ => return Err(Error::damaged("the table of section names", "is missing")),
    };
    for (index, h) in headers.chunks_exact(SHDR_SIZE).enumerate() {
        let range = string_at(name_table, u32_at(h, 0) as usize)
            .map_err(|reason| Error::damaged(format!("section {index}"), reason))?;
        sections[index].name = core::str::from_utf8(&name_table[range]).unwrap_or("");
    }
    Ok(sections)
}

fn read_symbols<'a>(sections: &[RawSection<'a>]) -> Result<(Vec<RawSymbol>, &'a [u8])> {
    let what = "the symbol table";
    let mut tables = sections.iter().filter(|s| s.kind == elf::SHT_SYMTAB);
    let Some(table) = tables.next() else { return Ok((Vec::new(), &[])) };
    if tables.next().is_some() {
        return Err(Error::damaged(what, "is there twice"));
    }
    if table.entry_size != SYM_SIZE as u64 {
        return Err(Error::damaged(what, "has a wrong entry size"));
    }
    if !table.bytes.len().is_multiple_of(SYM_SIZE) {
        return Err(Error::damaged(what, "is not a whole number of entries"));
    }
    let count = table.bytes.len() / SYM_SIZE;
    if count > limits::MAX_SYMBOLS {
        return Err(Error::TooMany {
            what: "symbols",
            count: count as u64,
            limit: limits::MAX_SYMBOLS as u64,
        });
    }
    let strings = match sections.get(table.link as usize) {
        Some(s) if s.kind == elf::SHT_STRTAB => s.bytes,
        _ => return Err(Error::damaged(what, "has no string table")),
    };
    let symbols = table
        .bytes
        .chunks_exact(SYM_SIZE)
        .enumerate()
        .map(|(index, b)| {
            read_symbol(b, sections, strings)
                .map_err(|reason| Error::damaged(format!("symbol {index}"), reason))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((symbols, strings))
}

fn read_symbol(b: &[u8], sections: &[RawSection<'_>], strings: &[u8]) -> Result<RawSymbol, String> {
    let name = string_at(strings, u32_at(b, 0) as usize)?;
    let (kind, binding) = (b[4] & 0xf, b[4] >> 4);
    let known_kind = matches!(
        kind,
        elf::STT_NOTYPE
            | elf::STT_OBJECT
            | elf::STT_FUNC
            | elf::STT_SECTION
            | elf::STT_FILE
            | elf::STT_COMMON
            | elf::STT_TLS
            | elf::STT_GNU_IFUNC
    );
    if !known_kind {
        return Err(format!("has an unknown type {kind}"));
    }
    if !matches!(binding, elf::STB_LOCAL | elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE) {
        return Err(format!("has an unknown binding {binding}"));
    }
    let (value, size) = (u64_at(b, 8), u64_at(b, 16));
    /// Common data of the medium and large code models (psABI, "SHN_X86_64_LCOMMON").
    const SHN_X86_64_LCOMMON: u16 = 0xff02;
    let place = match u16_at(b, 6) {
        elf::SHN_UNDEF => RawPlace::Undefined,
        elf::SHN_ABS => RawPlace::Absolute,
        elf::SHN_COMMON | SHN_X86_64_LCOMMON => RawPlace::Common,
        index if usize::from(index) < sections.len() && index < elf::SHN_LORESERVE => {
            RawPlace::Section(u32::from(index))
        }
        index => return Err(format!("is in section {index}, which does not exist")),
    };
    if let RawPlace::Section(index) = place {
        let end = value.checked_add(size);
        if end.is_none_or(|end| end > sections[index as usize].size) {
            return Err(format!("reaches beyond the end of section {}", sections[index as usize].name));
        }
    }
    Ok(RawSymbol { name, kind, binding, place, value, size })
}
