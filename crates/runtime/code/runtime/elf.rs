//! An object as its loader lists it: its dynamic section, its headers, what it is called. (System V gABI, chapters 4 and 5; the GNU
//! hash table and symbol versions as glibc's `elf/dl-lookup.c` reads them.)
//!
//! What the loader itself goes by while it loads the object (the dynamic section, the names there) is read as the loader reads it.
//! Everything else is read only where the program headers say that the object was mapped.

use super::refusal::Refusal;
use super::syscall::{self, Errno, O_RDONLY};

/// Most entries read of a dynamic section.
const MAX_DYNAMIC: usize = 4096;
/// Most program headers.
const MAX_SEGMENTS: usize = 32;
/// Most dynamic symbols.
const MAX_SYMBOLS: u64 = 1 << 24;
/// Most version definitions.
const MAX_VERSIONS: usize = 1 << 12;
/// Longest name that is looked at.
const MAX_NAME: usize = 4096;
/// Bytes of an ELF header and of a program header.
pub const HEADER_LEN: usize = 64;
const SEGMENT_LEN: usize = 56;
/// Bytes of all program headers that are looked at.
pub const SEGMENTS_LEN: usize = MAX_SEGMENTS * SEGMENT_LEN;
/// Bytes of a symbol.
pub const SYMBOL_LEN: usize = 24;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;

/// A program header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub filesz: u64,
    pub memsz: u64,
}

impl Segment {
    pub fn is_load(&self) -> bool {
        self.kind == PT_LOAD
    }

    pub fn is_text(&self) -> bool {
        self.is_load() && self.flags & PF_X != 0
    }

    pub fn is_note(&self) -> bool {
        self.kind == PT_NOTE
    }
}

/// The addresses that a dynamic section gives; 0 where it gives none.
#[derive(Clone, Copy, Debug, Default)]
struct Dynamic {
    symtab: u64,
    strtab: u64,
    strsz: u64,
    gnu_hash: u64,
    hash: u64,
    versym: u64,
    verdef: u64,
    soname: Option<u64>,
    textrel: bool,
}

/// An object of the loader's list. It must not be used when the object is gone.
pub struct Object {
    bias: u64,
    name: *const u8,
    dynamic: Dynamic,
    dynamic_at: u64,
    header: [u8; HEADER_LEN],
    headers: [u8; SEGMENTS_LEN],
    /// How many program headers there are; 0 where they could not be read.
    count: usize,
}

/// The little-endian number of `N` bytes at `at`.
pub fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut value = 0;
    for byte in bytes.get(at..)?.get(..N)?.iter().rev() {
        value = value << 8 | u64::from(*byte);
    }
    Some(value)
}

/// The bytes up to the first zero.
pub fn string(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().take(MAX_NAME + 1).position(|byte| *byte == 0)?;
    bytes.get(..end)
}

/// # Safety
/// `at` must be null or end with a zero.
unsafe fn c_string<'s>(at: *const u8) -> &'s [u8] {
    let mut len = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while !at.is_null() && len < MAX_NAME && *at.add(len) != 0 {
            len += 1;
        }
        if at.is_null() { &[] } else { core::slice::from_raw_parts(at, len) }
    }
}

impl Object {
    /// The object of a `struct link_map`: its `l_addr`, `l_name` and `l_ld`. It has a name only until its headers
    /// [are read](Self::read_headers); so far no system call is made.
    ///
    /// # Errors
    /// [`Refusal::NoHeader`] where it has no dynamic section.
    ///
    /// # Safety
    /// They must be of an object that the loader has mapped, and stay mapped as long as the result is used.
    pub unsafe fn of(bias: u64, name: *const u8, dynamic: u64) -> Result<Self, Refusal> {
        if dynamic == 0 {
            return Err(Refusal::NoHeader);
        }
        let mut object = Self {
            bias,
            name,
            dynamic: Dynamic::default(),
            dynamic_at: 0,
            header: [0; HEADER_LEN],
            headers: [0; SEGMENTS_LEN],
            count: 0,
        };
        // SAFETY: the loader has read this section up to its end before it listed the object.
        unsafe { object.read_dynamic(dynamic) };
        object.dynamic_at = dynamic;
        Ok(object)
    }

    /// # Safety
    /// A dynamic section must lie there.
    unsafe fn read_dynamic(&mut self, at: u64) {
        let bias = self.bias;
        // glibc has added the bias in place, musl does not; link addresses lie below it.
        let address = |value: u64| if value < bias { value.wrapping_add(bias) } else { value };
        let entries = core::ptr::with_exposed_provenance::<[u64; 2]>(at as usize);
        for i in 0..MAX_DYNAMIC {
            // SAFETY: the caller's promise; the entry with tag 0 ends it.
            let [tag, value] = unsafe { entries.add(i).read_unaligned() };
            let d = &mut self.dynamic;
            match tag {
                0 => break,
                4 => d.hash = address(value),
                5 => d.strtab = address(value),
                6 => d.symtab = address(value),
                10 => d.strsz = value,
                14 => d.soname = Some(value),
                22 => d.textrel = true,
                // DT_FLAGS: DF_TEXTREL
                30 => d.textrel |= value & 4 != 0,
                0x6fff_fef5 => d.gnu_hash = address(value),
                0x6fff_fff0 => d.versym = address(value),
                0x6fff_fffc => d.verdef = address(value),
                _ => {}
            }
        }
    }

    /// Reads the headers, which lie at the bias if the first segment has link address 0, as it has in all but prelinked libraries.
    /// Where that fails it stays without, and cannot be patched.
    ///
    /// # Errors
    /// Where the process's memory cannot be read.
    pub fn read_headers(&mut self) -> Result<(), Errno> {
        let dynamic = self.dynamic_at;
        // Not by a pointer: nothing says yet that anything is mapped there.
        // SAFETY: a literal that ends with a zero.
        let memory = unsafe { syscall::open(c"/proc/thread-self/mem".as_ptr().cast(), O_RDONLY) }?;
        memory.read_at(&mut self.header, self.bias)?;
        if !is_header(&self.header) {
            return Ok(());
        }
        let at = number::<8>(&self.header, 32).unwrap_or(0);
        let count = number::<2>(&self.header, 56).unwrap_or(0) as usize;
        let Some(table) = self.headers.get_mut(..count.wrapping_mul(SEGMENT_LEN)) else { return Ok(()) };
        memory.read_at(table, self.bias.wrapping_add(at))?;
        self.count = count;
        let has = |s: &Segment| s.kind == 2 && self.bias.wrapping_add(s.vaddr) == dynamic;
        let first = self.segments().find(Segment::is_load);
        if !self.segments().any(|s| has(&s)) || first.is_none_or(|s| s.vaddr != s.offset) {
            self.count = 0;
        }
        Ok(())
    }

    /// What the loader adds to link addresses.
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// The name that it was loaded by, which ends with a zero.
    pub fn name(&self) -> *const u8 {
        self.name
    }

    /// The ELF header, and the program headers.
    ///
    /// # Errors
    /// [`Refusal::NoHeader`].
    pub fn headers(&self) -> Result<(&[u8; HEADER_LEN], &[u8]), Refusal> {
        let table = self.headers.get(..self.count.wrapping_mul(SEGMENT_LEN));
        table.filter(|table| !table.is_empty()).map(|table| (&self.header, table)).ok_or(Refusal::NoHeader)
    }

    /// Its program headers; none where they could not be read.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        (0..self.count).filter_map(|i| {
            let bytes = self.headers.get(i.wrapping_mul(SEGMENT_LEN)..)?;
            Some(Segment {
                kind: number::<4>(bytes, 0)? as u32,
                flags: number::<4>(bytes, 4)? as u32,
                offset: number::<8>(bytes, 8)?,
                vaddr: number::<8>(bytes, 16)?,
                filesz: number::<8>(bytes, 32)?,
                memsz: number::<8>(bytes, 40)?,
            })
        })
    }

    /// The lowest address that it has, and one past its highest.
    pub fn range(&self) -> Option<(u64, u64)> {
        let loads = || self.segments().filter(Segment::is_load);
        let start = loads().map(|s| s.vaddr).min()?.wrapping_add(self.bias);
        let end = loads().map(|s| s.vaddr.wrapping_add(s.memsz)).max()?.wrapping_add(self.bias);
        (start < end).then_some((start, end))
    }

    /// The bytes that its file has put at `at`; `None` where the object does not have so many there.
    pub fn bytes(&self, at: u64, len: u64) -> Option<&[u8]> {
        let link = at.wrapping_sub(self.bias);
        let holds = |s: &Segment| {
            link >= s.vaddr && len <= s.filesz && link.wrapping_sub(s.vaddr) <= s.filesz.wrapping_sub(len)
        };
        self.segments().filter(Segment::is_load).find(holds)?;
        // SAFETY: it lies in a segment that the loader has mapped; who uses the object keeps that so. What a library has in
        // writable segments nobody writes before its constructors run.
        Some(unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at as usize), len as usize)
        })
    }

    /// The rest of the segment's bytes from `at` on.
    pub fn tail(&self, at: u64) -> Option<&[u8]> {
        let link = at.wrapping_sub(self.bias);
        let holds = |s: &Segment| link >= s.vaddr && link.wrapping_sub(s.vaddr) < s.filesz;
        let s = self.segments().filter(Segment::is_load).find(holds)?;
        self.bytes(at, s.filesz.wrapping_sub(link.wrapping_sub(s.vaddr)))
    }

    /// Whether the loader is to change its text.
    pub fn has_text_relocations(&self) -> bool {
        self.dynamic.textrel
    }

    /// DT_SONAME.
    pub fn soname(&self) -> Option<&[u8]> {
        let d = &self.dynamic;
        let at = d.soname.filter(|at| *at < d.strsz && d.strtab != 0)?;
        // SAFETY: the loader compares this name with others when it looks for a library; it ends within the string table.
        Some(unsafe { c_string(core::ptr::with_exposed_provenance(d.strtab.wrapping_add(at) as usize)) })
    }

    /// The last part of the name that it was loaded by.
    pub fn file_name(&self) -> &[u8] {
        let path = self.path();
        let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        path.get(start..).unwrap_or(path)
    }

    /// The name that it was loaded by.
    pub fn path(&self) -> &[u8] {
        // SAFETY: the loader's own string.
        unsafe { c_string(self.name) }
    }

    /// Whether a patch means this object by `name`: its SONAME, its file name, or the name that it was loaded by.
    pub fn is_named(&self, name: &[u8]) -> bool {
        !name.is_empty() && (self.soname() == Some(name) || self.file_name() == name || self.path() == name)
    }

    /// The build-id, where it has one.
    pub fn build_id(&self) -> Option<&[u8]> {
        const NT_GNU_BUILD_ID: u64 = 3;
        let mut notes = self.segments().filter(Segment::is_note);
        notes.find_map(|s| {
            let mut bytes = self.bytes(self.bias.wrapping_add(s.vaddr), s.filesz)?;
            loop {
                let (name_len, len) = (number::<4>(bytes, 0)? as usize, number::<4>(bytes, 4)? as usize);
                let at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
                let found = bytes.get(at..)?.get(..len)?;
                if number::<4>(bytes, 8)? == NT_GNU_BUILD_ID
                    && bytes.get(12..)?.get(..name_len)? == b"GNU\0"
                    && len > 0
                {
                    return Some(found);
                }
                bytes = bytes.get(at.checked_add(len.checked_next_multiple_of(4)?)?..)?;
            }
        })
    }

    /// The dynamic symbols and their strings, as they lie in memory; empty where there are none.
    pub fn dynamic_symbols(&self) -> (&[u8], &[u8]) {
        let d = &self.dynamic;
        let count = self.symbol_count().unwrap_or(0);
        let symbols = self.bytes(d.symtab, count.wrapping_mul(SYMBOL_LEN as u64)).unwrap_or(&[]);
        (symbols, self.bytes(d.strtab, d.strsz).unwrap_or(&[]))
    }

    /// How many dynamic symbols there are: the hash tables tell.
    fn symbol_count(&self) -> Option<u64> {
        let d = &self.dynamic;
        if d.hash != 0 {
            return number::<4>(self.bytes(d.hash, 8)?, 4).filter(|count| *count <= MAX_SYMBOLS);
        }
        let table = self.tail(d.gnu_hash)?;
        let (buckets, first) = (number::<4>(table, 0)?, number::<4>(table, 4)?);
        let bloom = number::<4>(table, 8)?;
        if buckets > MAX_SYMBOLS || bloom > MAX_SYMBOLS {
            return None;
        }
        let heads = 16 + 8 * bloom as usize;
        let mut last = 0;
        for i in 0..buckets as usize {
            last = last.max(number::<4>(table, heads + 4 * i)?);
        }
        if last < first || last == 0 {
            return Some(first);
        }
        let chains = heads + 4 * buckets as usize;
        while last <= MAX_SYMBOLS {
            if number::<4>(table, chains + 4 * last.wrapping_sub(first) as usize)? & 1 != 0 {
                return Some(last + 1);
            }
            last += 1;
        }
        None
    }

    /// The name of the version that the dynamic symbol at `index` is defined with, and whether it is a hidden one.
    pub fn version(&self, index: usize) -> Option<(&[u8], bool)> {
        let d = &self.dynamic;
        if d.versym == 0 || d.verdef == 0 {
            return None;
        }
        let raw = number::<2>(self.bytes(d.versym.wrapping_add(2 * index as u64), 2)?, 0)?;
        let wanted = raw & 0x7fff;
        // 0 is local, 1 global without a version.
        if wanted < 2 {
            return None;
        }
        let mut at = d.verdef;
        for _ in 0..MAX_VERSIONS {
            let entry = self.bytes(at, 20)?;
            if number::<2>(entry, 4)? & 0x7fff == wanted {
                let aux = at.wrapping_add(number::<4>(entry, 12)?);
                let name = number::<4>(self.bytes(aux, 4)?, 0)?;
                let strings = self.bytes(d.strtab, d.strsz)?;
                return Some((string(strings.get(name as usize..)?)?, raw & 0x8000 != 0));
            }
            match number::<4>(entry, 16)? {
                0 => return None,
                next => at = at.wrapping_add(next),
            }
        }
        None
    }

    /// The extent of the first function that begins in `from..from + within`, by the frame descriptions; `None` where there is
    /// none, or the descriptions are of a form that is not read here (compilers for x86-64 make this one).
    pub fn described(&self, from: u64, within: u64) -> Option<(u64, u64)> {
        let frames = self.segments().find(|s| s.kind == PT_GNU_EH_FRAME)?;
        let base = self.bias.wrapping_add(frames.vaddr);
        let table = self.bytes(base, frames.filesz)?;
        // Version 1; count as udata4; a sorted table of pairs of sdata4 relative to the table's start.
        if number::<4>(table, 0)? & 0xffff_00ff != 0x3b03_0001 {
            return None;
        }
        let count = number::<4>(table, 8)? as usize;
        let pair = |i: usize, at: usize| {
            let offset = number::<4>(table, i.checked_mul(8)?.checked_add(12 + at)?)? as u32;
            Some(base.wrapping_add_signed(i64::from(offset.cast_signed())))
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.wrapping_add(high.wrapping_sub(low) >> 1);
            if pair(middle, 0)? < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let start = pair(low, 0).filter(|start| low < count && start.wrapping_sub(from) < within)?;
        // Length, distance to the common part, start, length of the function: with starts as sdata4 relative to themselves.
        let description = pair(low, 4)?;
        let entry = self.bytes(description, 16)?;
        let offset = number::<4>(entry, 8)? as u32;
        let stated = description.wrapping_add(8).wrapping_add_signed(i64::from(offset.cast_signed()));
        if stated != start {
            return None;
        }
        Some((start, start.wrapping_add(number::<4>(entry, 12)?)))
    }
}

/// Whether an ELF header of a 64-bit x86 file begins there, with program headers of the usual size.
fn is_header(bytes: &[u8]) -> bool {
    const MACHINE: u64 = 62;
    bytes.get(..6) == Some(b"\x7fELF\x02\x01")
        && number::<2>(bytes, 18) == Some(MACHINE)
        && number::<2>(bytes, 54) == Some(SEGMENT_LEN as u64)
}
