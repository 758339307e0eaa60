//! Finds the call frame information of an address in the target.
//!
//! The tables are read from the target's own memory where they are loaded: an object's `PT_GNU_EH_FRAME` leads to
//! `.eh_frame_hdr`, whose table is searched in place, and that to one entry of `.eh_frame`, so that of a library's
//! megabytes only a few pages are read. Objects that have no such header (static musl programs) are looked up in
//! their file's section table, and so is `.debug_frame`. The file is believed only if its program headers and notes,
//! which hold the build-id, are those in memory.
//!
//! What is learned of an object is kept until the executable mappings change.

use crate::stacks::rules::{self, BadRules, Row};
use crate::target::maps::{Mapping, Maps};
use crate::target::memory::Memory;
use crate::{RemoteAddr, Tid};
use gimli::{BaseAddresses, EndianSlice, LittleEndian, UnwindSection};
use object::LittleEndian as LE;
use object::elf::{FileHeader64, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Most bytes of one call frame entry.
const MAX_ENTRY: u64 = 1 << 20;
/// Most bytes of a section that has no search table and is read whole.
const MAX_SECTION: u64 = 64 << 20;
/// Most bytes of an object's program headers and notes.
const MAX_HEADERS: u64 = 64 << 10;
/// Most rows that are kept.
const MAX_ROWS: usize = 1 << 16;
const PAGE: u64 = 4096;

/// Why an address has no call frame information.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCfi {
    /// No executable mapping covers it.
    #[error("it is not in executable memory")]
    NotCode,
    /// The memory belongs to no ELF object (generated code, a copy).
    #[error("it is in no ELF object")]
    NoObject,
    /// The object's tables do not cover it.
    #[error("there is no call frame information for it")]
    NoEntry,
    /// The tables could not be read or searched.
    #[error("the call frame tables cannot be used: {0}")]
    Tables(&'static str),
    /// The entry was found and yields no rules.
    #[error(transparent)]
    Rules(#[from] BadRules),
}

/// Memory of the target, read page by page as needed, at the place it has in a section.
#[derive(Debug)]
struct Window {
    /// Address of the first byte in the target.
    start: u64,
    bytes: Vec<u8>,
    filled: Vec<bool>,
}

impl Window {
    fn new(range: Range<u64>) -> Self {
        let len = range.end.saturating_sub(range.start) as usize;
        // Zeroed memory comes from the kernel untouched: what is never read costs nothing.
        Self { start: range.start, bytes: vec![0; len], filled: vec![false; len.div_ceil(PAGE as usize)] }
    }

    /// The bytes of `range`, which are offsets into the window.
    fn get(&mut self, memory: &Memory, range: Range<usize>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.bytes.len() {
            return None;
        }
        let page = PAGE as usize;
        for i in range.start / page..range.end.div_ceil(page) {
            if !self.filled[i] {
                let part = i * page..((i + 1) * page).min(self.bytes.len());
                memory.read(RemoteAddr(self.start + part.start as u64), &mut self.bytes[part]).ok()?;
                self.filled[i] = true;
            }
        }
        Some(&self.bytes[range])
    }

    fn u32(&mut self, memory: &Memory, offset: usize) -> Option<u32> {
        let bytes = self.get(memory, offset..offset.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Has the call frame entry at `offset` in memory, whose first 4 bytes are its length.
    fn load_entry(&mut self, memory: &Memory, offset: usize) -> Option<()> {
        let len = u64::from(self.u32(memory, offset)?);
        if len == 0 || len > MAX_ENTRY {
            return None;
        }
        self.get(memory, offset..offset.checked_add(4 + len as usize)?).map(drop)
    }

    /// The offset of an address.
    fn offset(&self, addr: u64) -> Option<usize> {
        let offset = addr.checked_sub(self.start)? as usize;
        (offset < self.bytes.len()).then_some(offset)
    }
}

/// Where an object's `.eh_frame` entries are found.
#[derive(Debug)]
enum EhFrame {
    /// By the search table of `.eh_frame_hdr`: pairs of (code, entry), both relative to the header, 4 bytes each.
    Searched { header: Window, count: usize, frame: Window },
    /// By a list made from the whole section.
    Listed { list: List, frame: Window },
    /// There is none.
    Absent,
}

/// The entries of a section: the code covered and the entry's offset, by address.
#[derive(Debug, Default)]
struct List(Vec<(Range<u64>, usize)>);

impl List {
    fn read<
        'a,
        S: UnwindSection<EndianSlice<'a, LittleEndian>, Offset = O>,
        O: gimli::UnwindOffset<usize>,
    >(
        section: &S,
        bases: &BaseAddresses,
    ) -> Result<Self, gimli::Error> {
        let mut list = Vec::new();
        let mut entries = section.entries(bases);
        while let Some(entry) = entries.next()? {
            if let gimli::CieOrFde::Fde(partial) = entry {
                let offset = partial.offset();
                let fde = partial.parse(S::cie_from_offset)?;
                let start = fde.initial_address();
                list.push((start..start.saturating_add(fde.len()), offset));
            }
        }
        list.sort_by_key(|(code, _)| code.start);
        Ok(Self(list))
    }

    fn find(&self, addr: u64) -> Option<usize> {
        let i = self.0.partition_point(|(code, _)| code.start <= addr).checked_sub(1)?;
        let (code, offset) = &self.0[i];
        code.contains(&addr).then_some(*offset)
    }
}

/// `.debug_frame` of an object's file.
#[derive(Debug)]
struct DebugFrame {
    list: List,
    bytes: Vec<u8>,
}

/// An ELF object in the target.
#[derive(Debug)]
struct Object {
    /// What is added to its addresses.
    bias: u64,
    segments: Vec<ProgramHeader64<LE>>,
    eh_frame: EhFrame,
    /// Read from the file when `.eh_frame` does not help; the inner `None` where there is none.
    debug_frame: Option<Option<DebugFrame>>,
    /// The mapping that holds the ELF header.
    first: Mapping,
}

/// Tables that a caller knows of, for code that belongs to no ELF object.
#[derive(Debug)]
struct Registered {
    code: Range<u64>,
    list: List,
    frame: Window,
}

/// Finds and keeps call frame information of one target.
#[derive(Debug, Default)]
pub struct Cfi {
    /// A digest of the executable mappings that the rest belongs to.
    mappings: u64,
    /// By the address of the ELF header.
    objects: HashMap<u64, Option<Object>>,
    rows: HashMap<u64, Result<Arc<Row>, NoCfi>>,
    registered: Vec<Registered>,
}

impl Cfi {
    /// Tells that `maps` is what the target's mappings are now; forgets objects if executable ones have changed.
    pub fn maps_are(&mut self, maps: &Maps) {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        for m in maps.iter().filter(|m| m.exec) {
            (m.start, m.end, m.offset, m.dev, m.inode).hash(&mut hasher);
        }
        let digest = hasher.finish();
        if digest != self.mappings {
            self.mappings = digest;
            self.objects.clear();
            self.rows.clear();
        }
    }

    /// Makes the tables of `eh_frame` (the section's range in the target) known for `code`, which belongs to no ELF
    /// object: the code of a patch image. False if they cannot be read or parsed.
    pub fn register(
        &mut self,
        memory: &Memory,
        code: Range<RemoteAddr>,
        eh_frame: Range<RemoteAddr>,
    ) -> bool {
        let frame = Window::new(eh_frame.start.0..eh_frame.end.0);
        let Some((list, frame)) = list_eh_frame(memory, frame) else { return false };
        self.forget(&code);
        self.registered.push(Registered { code: code.start.0..code.end.0, list, frame });
        true
    }

    /// Forgets tables made known for code that overlaps `code`.
    pub fn forget(&mut self, code: &Range<RemoteAddr>) {
        self.registered.retain(|r| r.code.end <= code.start.0 || code.end.0 <= r.code.start);
        self.rows.clear();
    }

    /// The rules for the instruction at, or that contains, `pc`. The target's files are reached through `thread`, which lives.
    ///
    /// # Errors
    /// [`NoCfi`] says why there are none.
    pub fn row(&mut self, memory: &Memory, maps: &Maps, thread: Tid, pc: u64) -> Result<Arc<Row>, NoCfi> {
        if let Some(known) = self.rows.get(&pc) {
            return known.clone();
        }
        let row = self.find(memory, maps, thread, pc).map(Arc::new);
        if self.rows.len() >= MAX_ROWS {
            self.rows.clear();
        }
        self.rows.insert(pc, row.clone());
        row
    }

    fn find(&mut self, memory: &Memory, maps: &Maps, thread: Tid, pc: u64) -> Result<Row, NoCfi> {
        if let Some(r) = self.registered.iter_mut().find(|r| r.code.contains(&pc)) {
            let offset = r.list.find(pc).ok_or(NoCfi::NoEntry)?;
            return eh_row(memory, &mut r.frame, offset, pc);
        }
        let mapping = maps.find(RemoteAddr(pc)).filter(|m| m.exec).ok_or(NoCfi::NotCode)?;
        for first in headers_of(maps, mapping) {
            let object =
                self.objects.entry(first.start.0).or_insert_with(|| Object::read(memory, thread, first));
            if let Some(object) = object.as_mut().filter(|o| o.is_code(pc, mapping)) {
                return object.row(memory, thread, pc);
            }
        }
        Err(NoCfi::NoObject)
    }
}

/// Mappings that may hold the ELF header of the object that `mapping` is code of, the nearest first.
fn headers_of<'m>(maps: &'m Maps, mapping: &'m Mapping) -> impl Iterator<Item = &'m Mapping> {
    let all = maps.iter().as_slice();
    let last = all.partition_point(|m| m.start <= mapping.start);
    let vdso = mapping.name == "[vdso]";
    all[..last].iter().rev().filter(move |m| {
        if vdso {
            m.start == mapping.start
        } else {
            mapping.inode != 0 && m.offset.0 == 0 && (m.dev, m.inode) == (mapping.dev, mapping.inode)
        }
    })
}

impl Object {
    fn read(memory: &Memory, thread: Tid, first: &Mapping) -> Option<Self> {
        let head = memory.read_vec(first.start, 64).ok()?;
        let (phoff, phsize) = program_headers_of(&head)?;
        let table = memory.read_vec(first.start.offset(phoff as i64), phsize).ok()?;
        let segments = parse_program_headers(&table)?;
        // The segment that holds the ELF header tells where address 0 of the file is.
        let load = segments
            .iter()
            .find(|p| p.p_type(LE) == PT_LOAD && p.p_offset(LE) / PAGE == 0 && p.p_filesz(LE) > 0)?;
        let bias = first.start.0.wrapping_sub(load.p_vaddr(LE).wrapping_sub(load.p_offset(LE)));
        let mut object =
            Self { bias, segments, eh_frame: EhFrame::Absent, debug_frame: None, first: first.clone() };
        object.eh_frame = match object.searched(memory) {
            Some(found) => found,
            None => object.listed(memory, thread).unwrap_or(EhFrame::Absent),
        };
        Some(object)
    }

    /// Whether `pc`, which `mapping` covers, is code of this object.
    fn is_code(&self, pc: u64, mapping: &Mapping) -> bool {
        self.segments.iter().any(|p| {
            let start = p.p_vaddr(LE).wrapping_add(self.bias);
            p.p_type(LE) == PT_LOAD
                && p.p_flags(LE) & PF_X != 0
                && pc.wrapping_sub(start) < p.p_memsz(LE)
                && (mapping.inode == 0
                    || p.p_offset(LE).wrapping_add(pc.wrapping_sub(start))
                        == mapping.offset.0 + (pc - mapping.start.0))
        })
    }

    /// The end, in the target, of the loaded segment that holds `addr`.
    fn segment_end(&self, addr: u64) -> Option<u64> {
        self.segments.iter().filter(|p| p.p_type(LE) == PT_LOAD).find_map(|p| {
            let start = p.p_vaddr(LE).wrapping_add(self.bias);
            (addr.wrapping_sub(start) < p.p_filesz(LE)).then(|| start.wrapping_add(p.p_filesz(LE)))
        })
    }

    /// `.eh_frame` with its search table (Linux Standard Base, core, 10.6.2), if it has the form that linkers give
    /// it: the section's address as a 4-byte relative one, the count of 4 bytes, and a sorted table of pairs.
    fn searched(&self, memory: &Memory) -> Option<EhFrame> {
        const PCREL_SDATA4: u8 = 0x1b;
        const UDATA4: u8 = 0x03;
        const DATAREL_SDATA4: u8 = 0x3b;
        let segment = self.segments.iter().find(|p| p.p_type(LE) == PT_GNU_EH_FRAME)?;
        let start = segment.p_vaddr(LE).wrapping_add(self.bias);
        let end = start.checked_add(segment.p_memsz(LE))?.min(self.segment_end(start)?);
        let mut header = Window::new(start..end);
        let head = header.get(memory, 0..12)?;
        if head[..4] != [1, PCREL_SDATA4, UDATA4, DATAREL_SDATA4] {
            return None;
        }
        let to_frame = i32::from_le_bytes(head[4..8].try_into().ok()?);
        let count = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
        if count == 0 || count.checked_mul(8)?.checked_add(12)? > header.bytes.len() {
            return None;
        }
        let frame = start.wrapping_add(4).wrapping_add_signed(to_frame.into());
        Some(EhFrame::Searched { header, count, frame: Window::new(frame..self.segment_end(frame)?) })
    }

    /// `.eh_frame` where only the file's section table tells where it is.
    fn listed(&self, memory: &Memory, thread: Tid) -> Option<EhFrame> {
        let file = self.file(memory, thread)?;
        let section = file.section(".eh_frame")?;
        let start = section.0.wrapping_add(self.bias);
        if section.2 > MAX_SECTION || self.segment_end(start)? < start.checked_add(section.2)? {
            return None;
        }
        let (list, frame) = list_eh_frame(memory, Window::new(start..start + section.2))?;
        Some(EhFrame::Listed { list, frame })
    }

    fn row(&mut self, memory: &Memory, thread: Tid, pc: u64) -> Result<Row, NoCfi> {
        let found = match &mut self.eh_frame {
            EhFrame::Absent => Ok(None),
            EhFrame::Listed { list, frame } => {
                list.find(pc).map(|offset| eh_row(memory, frame, offset, pc)).transpose()
            }
            EhFrame::Searched { header, count, frame } => {
                let offset = search(memory, header, *count, frame, pc)?;
                offset.map(|offset| eh_row(memory, frame, offset, pc)).transpose()
            }
        };
        match found {
            Ok(Some(row)) => return Ok(row),
            Ok(None) | Err(NoCfi::NoEntry) => {}
            Err(e) => return Err(e),
        }
        if self.debug_frame.is_none() {
            self.debug_frame = Some(self.read_debug_frame(memory, thread));
        }
        let Some(Some(debug)) = &self.debug_frame else { return Err(NoCfi::NoEntry) };
        let link = pc.wrapping_sub(self.bias);
        let offset = debug.list.find(link).ok_or(NoCfi::NoEntry)?;
        let section = debug_section(&debug.bytes);
        let bases = BaseAddresses::default();
        let fde = section
            .fde_from_offset(&bases, offset.into(), gimli::DebugFrame::cie_from_offset)
            .map_err(BadRules::from)?;
        Ok(rules::row(&section, &bases, &fde, link, self.bias)?)
    }

    fn read_debug_frame(&self, memory: &Memory, thread: Tid) -> Option<DebugFrame> {
        let file = self.file(memory, thread)?;
        let (_, offset, size) = file.section(".debug_frame")?;
        if size > MAX_SECTION {
            return None;
        }
        let mut bytes = vec![0; size as usize];
        file.file.read_exact_at(&mut bytes, offset).ok()?;
        let list = List::read(&debug_section(&bytes), &BaseAddresses::default()).ok()?;
        Some(DebugFrame { list, bytes })
    }

    /// The file that the object was loaded from, if its program headers and notes are those in memory.
    fn file(&self, memory: &Memory, thread: Tid) -> Option<ObjectFile> {
        let m = &self.first;
        let by_range = format!("/proc/{thread}/map_files/{:x}-{:x}", m.start.0, m.end.0);
        let by_name = format!("/proc/{thread}/root{}", m.name);
        [by_range, by_name]
            .iter()
            .filter_map(|path| File::open(path).ok())
            .map(|file| ObjectFile { file })
            .find(|file| {
                let mut head = [0; 64];
                file.file.read_exact_at(&mut head, 0).is_ok()
                    && program_headers_of(&head).is_some_and(|(phoff, phsize)| {
                        self.same(memory, file, phoff, phsize as u64, m.start.offset(phoff as i64))
                    })
                    && self.segments.iter().filter(|p| p.p_type(LE) == PT_NOTE).all(|p| {
                        let addr = RemoteAddr(p.p_vaddr(LE).wrapping_add(self.bias));
                        self.same(memory, file, p.p_offset(LE), p.p_filesz(LE), addr)
                    })
            })
    }

    fn same(&self, memory: &Memory, file: &ObjectFile, offset: u64, len: u64, addr: RemoteAddr) -> bool {
        if len > MAX_HEADERS {
            return false;
        }
        let mut bytes = vec![0; len as usize];
        file.file.read_exact_at(&mut bytes, offset).is_ok()
            && memory.read_vec(addr, len as usize).is_ok_and(|there| there == bytes)
    }
}

/// The file of an object.
struct ObjectFile {
    file: File,
}

impl ObjectFile {
    /// Address, file offset and size of the named section, unless it is compressed.
    fn section(&self, name: &str) -> Option<(u64, u64, u64)> {
        let read = |offset: u64, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            self.file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let head = read(0, 64)?;
        let header = FileHeader64::<LE>::parse(&*head).ok()?;
        let (offset, count) = (header.e_shoff(LE), u64::from(header.e_shnum(LE)));
        let size = u64::from(header.e_shentsize(LE));
        if offset == 0 || count == 0 || size != 64 {
            return None;
        }
        let table = read(offset, count * size)?;
        let sections = object::slice_from_all_bytes::<object::elf::SectionHeader64<LE>>(&table).ok()?;
        let names = sections.get(usize::from(header.e_shstrndx(LE)))?;
        if names.sh_size(LE) > MAX_SECTION {
            return None;
        }
        let names = read(names.sh_offset(LE), names.sh_size(LE))?;
        let named = |s: &&object::elf::SectionHeader64<LE>| {
            names
                .get(s.sh_name(LE) as usize..)
                .is_some_and(|n| n.split(|&b| b == 0).next() == Some(name.as_bytes()))
        };
        let section = sections.iter().find(named)?;
        let plain = section.sh_flags(LE) & u64::from(object::elf::SHF_COMPRESSED) == 0
            && section.sh_type(LE) != object::elf::SHT_NOBITS;
        plain.then(|| (section.sh_addr(LE), section.sh_offset(LE), section.sh_size(LE)))
    }
}

/// Offset and size of the program headers that an ELF header (64-bit, x86-64) states.
fn program_headers_of(head: &[u8]) -> Option<(u64, usize)> {
    let header = FileHeader64::<LE>::parse(head).ok()?;
    let size = usize::from(header.e_phentsize(LE));
    let fits = header.is_little_endian()
        && header.e_machine(LE) == object::elf::EM_X86_64
        && size == size_of::<ProgramHeader64<LE>>();
    fits.then(|| (header.e_phoff(LE), size * usize::from(header.e_phnum(LE))))
}

fn parse_program_headers(table: &[u8]) -> Option<Vec<ProgramHeader64<LE>>> {
    Some(object::slice_from_all_bytes::<ProgramHeader64<LE>>(table).ok()?.to_vec())
}

fn eh_section(bytes: &[u8]) -> gimli::EhFrame<EndianSlice<'_, LittleEndian>> {
    let mut section = gimli::EhFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    section
}

fn debug_section(bytes: &[u8]) -> gimli::DebugFrame<EndianSlice<'_, LittleEndian>> {
    let mut section = gimli::DebugFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    section
}

/// Reads a whole `.eh_frame` and lists its entries.
fn list_eh_frame(memory: &Memory, mut frame: Window) -> Option<(List, Window)> {
    let len = frame.bytes.len();
    if len as u64 > MAX_SECTION {
        return None;
    }
    frame.get(memory, 0..len)?;
    let bases = BaseAddresses::default().set_eh_frame(frame.start);
    let list = List::read(&eh_section(&frame.bytes), &bases).ok()?;
    Some((list, frame))
}

/// Searches the table of an `.eh_frame_hdr` for the entry that may cover `pc`; its offset in `frame`.
fn search(
    memory: &Memory,
    header: &mut Window,
    count: usize,
    frame: &Window,
    pc: u64,
) -> Result<Option<usize>, NoCfi> {
    const UNREADABLE: NoCfi = NoCfi::Tables(".eh_frame_hdr cannot be read");
    let base = header.start;
    let mut field = |i: usize| {
        let relative = header.u32(memory, 12 + 4 * i).ok_or(UNREADABLE)? as i32;
        Ok::<_, NoCfi>(base.wrapping_add_signed(relative.into()))
    };
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if field(2 * middle)? <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let Some(i) = low.checked_sub(1) else { return Ok(None) };
    let entry = field(2 * i + 1)?;
    frame.offset(entry).map(Some).ok_or(NoCfi::Tables(".eh_frame_hdr points out of .eh_frame"))
}

/// The row for `pc` by the entry at `offset` of an `.eh_frame`.
fn eh_row(memory: &Memory, frame: &mut Window, offset: usize, pc: u64) -> Result<Row, NoCfi> {
    const BAD: NoCfi = NoCfi::Tables(".eh_frame cannot be read");
    // gimli reads only the entry and the CIE that it names; have both in the window.
    frame.load_entry(memory, offset).ok_or(BAD)?;
    let back = frame.u32(memory, offset + 4).ok_or(BAD)? as usize;
    let cie = (offset + 4).checked_sub(back).filter(|_| back != 0).ok_or(BAD)?;
    frame.load_entry(memory, cie).ok_or(BAD)?;
    let bases = BaseAddresses::default().set_eh_frame(frame.start);
    let section = eh_section(&frame.bytes);
    let fde = section
        .fde_from_offset(&bases, offset.into(), gimli::EhFrame::cie_from_offset)
        .map_err(BadRules::from)?;
    if !fde.contains(pc) {
        return Err(NoCfi::NoEntry);
    }
    Ok(rules::row(&section, &bases, &fde, pc, 0)?)
}
