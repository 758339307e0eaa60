//! A patch's code in a target as a file for debuggers: an ELF file with the names of its functions and its unwind tables, at the
//! addresses where they are.
//!
//! ```text
//! ELF header | .eh_frame | .symtab | .strtab | .shstrtab | section headers
//! ```
//!
//! As in files of separate debugging information, the code itself is not there: debuggers read it from the process or its core. In
//! place of where it would lie in the file, its section states where it lies in the patch's memory, which is what profilers
//! reckon with.

use crate::session::Session;
use crate::{Error, RemoteAddr, Result};
use object::elf;

const HEADER_LEN: u64 = 64;
const SECTION_LEN: u64 = 64;
const SYMBOL_LEN: u64 = 24;
const SECTION_NAMES: &[u8] = b"\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab\0";

/// A section as its header states it: the name's place in [`SECTION_NAMES`], type, flags, address, link, info, alignment, entry's
/// length; and its content.
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    addr: RemoteAddr,
    link: u32,
    info: u32,
    align: u64,
    entry: u64,
    /// Where it lies and how long it is, for one that has no content.
    elsewhere: Option<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Session {
    /// The file for a loaded patch.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such patch, [`Error::Memory`] on a failed read.
    pub(crate) fn symbol_file(&self, patch: &str) -> Result<Vec<u8>> {
        let image = self.image_named(patch)?;
        let missing = || Error::Damaged(format!("patch '{patch}' has no unwind tables on record"));
        let tables = image.tables.as_ref().ok_or_else(missing)?;
        let read = |range: &std::ops::Range<RemoteAddr>| {
            self.target.memory().read_vec(range.start, (range.end.0 - range.start.0) as usize)
        };
        let mut frames = read(&tables.tables)?;
        // The zero word that ends them.
        frames.extend([0; 4]);
        let (mut names, mut symbols) = (vec![0], vec![0; SYMBOL_LEN as usize]);
        for symbol in &image.symbols {
            symbols.extend((names.len() as u32).to_le_bytes());
            symbols.extend([elf::STB_GLOBAL << 4 | elf::STT_FUNC, 0, 1, 0]);
            symbols.extend(symbol.range.start.0.to_le_bytes());
            symbols.extend((symbol.range.end.0 - symbol.range.start.0).to_le_bytes());
            names.extend(symbol.name.as_bytes());
            names.push(0);
        }
        let code = &tables.code;
        let maps = self.target.maps()?;
        let mapping = maps.find(code.start).ok_or_else(missing)?;
        let offset = mapping.offset.0 + (code.start.0 - mapping.start.0);
        let alloc = u64::from(elf::SHF_ALLOC);
        let executable = alloc | u64::from(elf::SHF_EXECINSTR);
        Ok(file(&[
            Section::new("", elf::SHT_NULL, 0, Vec::new()),
            Section {
                flags: executable,
                addr: code.start,
                elsewhere: Some((offset, code.end.0 - code.start.0)),
                ..Section::new(".text", elf::SHT_NOBITS, 16, Vec::new())
            },
            Section {
                flags: alloc,
                addr: tables.tables.start,
                ..Section::new(".eh_frame", elf::SHT_PROGBITS, 8, frames)
            },
            Section {
                // Its names are in the next section, and none but the first of its symbols is local.
                link: 4,
                info: 1,
                entry: SYMBOL_LEN,
                ..Section::new(".symtab", elf::SHT_SYMTAB, 8, symbols)
            },
            Section::new(".strtab", elf::SHT_STRTAB, 1, names),
            Section::new(".shstrtab", elf::SHT_STRTAB, 1, SECTION_NAMES.to_vec()),
        ]))
    }
}

impl Section {
    fn new(name: &str, kind: u32, align: u64, bytes: Vec<u8>) -> Self {
        let place = SECTION_NAMES.windows(name.len().max(1)).position(|window| window == name.as_bytes());
        let (name, addr) = (place.unwrap_or(0) as u32, RemoteAddr(0));
        Self { name, kind, flags: 0, addr, link: 0, info: 0, align, entry: 0, elsewhere: None, bytes }
    }
}

fn file(sections: &[Section]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut headers = Vec::new();
    for section in sections {
        let at = HEADER_LEN + content.len() as u64;
        content.resize((at.next_multiple_of(section.align.max(1)) - HEADER_LEN) as usize, 0);
        let offset = HEADER_LEN + content.len() as u64;
        headers.extend([section.name, section.kind].map(u32::to_le_bytes).concat());
        let (offset, len) = section.elsewhere.unwrap_or((offset, section.bytes.len() as u64));
        let words = [section.flags, section.addr.0, offset, len];
        headers.extend(words.map(u64::to_le_bytes).concat());
        headers.extend([section.link, section.info].map(u32::to_le_bytes).concat());
        headers.extend([section.align, section.entry].map(u64::to_le_bytes).concat());
        content.extend(&section.bytes);
    }
    content.resize(content.len().next_multiple_of(8), 0);
    let mut file = vec![0x7f, b'E', b'L', b'F', elf::ELFCLASS64, elf::ELFDATA2LSB, elf::EV_CURRENT, 0];
    file.resize(16, 0);
    file.extend([elf::ET_EXEC, elf::EM_X86_64].map(u16::to_le_bytes).concat());
    file.extend(u32::from(elf::EV_CURRENT).to_le_bytes());
    // No entry and no program headers: nothing is to be run from here.
    file.extend([0, 0, HEADER_LEN + content.len() as u64].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    let count = sections.len() as u16;
    let halves = [HEADER_LEN as u16, 0, 0, SECTION_LEN as u16, count, count - 1];
    file.extend(halves.map(u16::to_le_bytes).concat());
    file.extend(content);
    file.extend(headers);
    file
}
