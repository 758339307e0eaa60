//! Where functions begin and end by their unwind information, which even stripped files keep (`.eh_frame_hdr` and
//! `.eh_frame`, LSB core specification; read from the target's memory, where they are mapped).

use crate::objects::Object;
use crate::{LinkAddr, RemoteAddr, Result};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, UnwindContext, UnwindSection,
    X86_64,
};
use object::elf;
use std::ops::Range;

/// Longest frame description, in bytes.
const MAX_ENTRY: u32 = 1 << 16;
/// Longest `.eh_frame` that is read at once, in bytes.
const MAX_SECTION: u64 = 1 << 28;

/// The operation that pushes rip and an offset in a DWARF expression (DW_OP_breg0 + 16).
const DW_OP_BREG_RIP: u8 = 0x80;

/// A stretch of code that one frame description covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fde {
    /// The code.
    pub range: Range<RemoteAddr>,
    /// At its first instruction the stack is not as a call leaves it (the frame address is not rsp + 8): it is no
    /// function but the cold part of one. Procedure linkage tables and signal trampolines are not meant.
    pub mid_function: bool,
}

/// The search table of `.eh_frame_hdr`.
struct SearchTable {
    header: RemoteAddr,
    /// Where `.eh_frame` begins.
    section: RemoteAddr,
    entries: RemoteAddr,
    count: u64,
}

impl Object<'_> {
    /// The frame description that covers `addr`; `None` where there is none, or none that can be read.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn fde_at(&self, addr: RemoteAddr) -> Result<Option<Fde>> {
        let Some(table) = self.search_table()? else { return Ok(None) };
        let (mut low, mut high) = (0, table.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.table_entry(&table, middle)?.0 <= addr {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == 0 {
            return Ok(None);
        }
        let (_, entry) = self.table_entry(&table, low - 1)?;
        Ok(self.parse_fde(entry, &mut UnwindContext::new())?.filter(|f| f.range.contains(&addr)))
    }

    /// The code that begins in mid-function, in address order, neighbours joined.
    pub(crate) fn mid_function_code(&self) -> Result<&[Range<RemoteAddr>]> {
        if let Some(known) = self.mid_function.get() {
            return Ok(known);
        }
        let mut out: Vec<Range<RemoteAddr>> = Vec::new();
        let mut add = |range: Range<RemoteAddr>| match out.last_mut() {
            // Alignment may lie between neighbours.
            Some(last) if range.start.0.wrapping_sub(last.end.0) < 16 => last.end = range.end,
            _ => out.push(range),
        };
        if let Some(table) = self.search_table()?
            && let Some((at, section)) = self.whole_section(&table)?
        {
            let mut context = UnwindContext::new();
            let frames = EhFrame::new(&section, LittleEndian);
            for i in 0..table.count {
                let (_, entry) = self.table_entry(&table, i)?;
                let offset = usize::try_from(entry.0.wrapping_sub(at.0)).unwrap_or(usize::MAX);
                if offset < section.len()
                    && let Some(f) = parse(&frames, at, offset, &mut context)
                    && f.mid_function
                {
                    add(f.range);
                }
            }
        }
        Ok(self.mid_function.get_or_init(|| out))
    }

    fn search_table(&self) -> Result<Option<SearchTable>> {
        // Version 1, and the encodings that every link editor uses: a 32-bit offset from its own place to the section,
        // a 32-bit count, pairs of 32-bit offsets from the header.
        const HEAD: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
        let Some(segment) = self.segments().iter().find(|s| s.kind == elf::PT_GNU_EH_FRAME) else {
            return Ok(None);
        };
        let header = self.to_remote(segment.vaddr);
        let mut head = [0; 4];
        self.pages.read(header, &mut head)?;
        if head != HEAD {
            return Ok(None);
        }
        let section = header.offset(4 + i64::from(self.pages.u32(header.offset(4))? as i32));
        let room = segment.memsz.saturating_sub(12) / 8;
        let count = u64::from(self.pages.u32(header.offset(8))?).min(room);
        Ok(Some(SearchTable { header, section, entries: header.offset(12), count }))
    }

    /// The first address and the place of the description of entry `i`.
    fn table_entry(&self, table: &SearchTable, i: u64) -> Result<(RemoteAddr, RemoteAddr)> {
        let both = self.pages.u64(RemoteAddr(table.entries.0.wrapping_add(8 * i)))?;
        let relative = |v: u32| table.header.offset(i64::from(v as i32));
        Ok((relative(both as u32), relative((both >> 32) as u32)))
    }

    /// One frame description, with its common part put before it as a section of their own for the parser.
    fn parse_fde(&self, at: RemoteAddr, context: &mut UnwindContext<usize>) -> Result<Option<Fde>> {
        let in_object = |a: RemoteAddr| self.covers(a);
        let entry = |at: RemoteAddr| -> Result<Option<Vec<u8>>> {
            if !in_object(at) {
                return Ok(None);
            }
            let len = self.pages.u32(at)?;
            if !(4..=MAX_ENTRY).contains(&len) || !in_object(at.offset(i64::from(len) + 3)) {
                return Ok(None);
            }
            self.pages.vec(at, len as usize + 4).map(Some)
        };
        let Some(mut fde) = entry(at)? else { return Ok(None) };
        let back = u32::from_le_bytes([fde[4], fde[5], fde[6], fde[7]]);
        let Some(mut section) = entry(at.offset(4 - i64::from(back)))? else { return Ok(None) };
        let fde_at = section.len();
        fde[4..8].copy_from_slice(&(fde_at as u32 + 4).to_le_bytes());
        section.append(&mut fde);

        let section_at = RemoteAddr(at.0.wrapping_sub(fde_at as u64));
        Ok(parse(&EhFrame::new(&section, LittleEndian), section_at, fde_at, context))
    }

    /// The section from its start to the last description that `table` lists, and where it lies.
    fn whole_section(&self, table: &SearchTable) -> Result<Option<(RemoteAddr, Vec<u8>)>> {
        let mut last = table.section;
        for i in 0..table.count {
            last = last.max(self.table_entry(table, i)?.1);
        }
        let len = last.0 - table.section.0;
        if !self.covers(table.section) || !self.covers(last) || len > MAX_SECTION {
            return Ok(None);
        }
        let len = len + u64::from(self.pages.u32(last)?.min(MAX_ENTRY)) + 4;
        Ok(Some((table.section, self.pages.memory().read_vec(table.section, len as usize)?)))
    }

    /// The length of the function that begins at `value`, by its frame description.
    pub(crate) fn fde_len(&self, value: LinkAddr) -> Result<Option<u64>> {
        let start = self.to_remote(value);
        let fde = self.fde_at(start)?.filter(|f| f.range.start == start);
        Ok(fde.map(|f| f.range.end.0 - f.range.start.0))
    }
}

/// The description at `offset` of a section that lies at `at`.
fn parse(
    frames: &EhFrame<EndianSlice<'_, LittleEndian>>,
    at: RemoteAddr,
    offset: usize,
    context: &mut UnwindContext<usize>,
) -> Option<Fde> {
    let bases = BaseAddresses::default().set_eh_frame(at.0);
    let fde = frames.fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset).ok()?;
    let start = fde.initial_address();
    let end = start.checked_add(fde.len())?;
    let mut rows = fde.rows(frames, &bases, context).ok()?;
    let first = rows.next_row().ok()??;
    let at_call = matches!(
        first.cfa(),
        CfaRule::RegisterAndOffset { register, offset: 8 } if *register == X86_64::RSP
    );
    let mut mid_function = !at_call && !fde.is_signal_trampoline();
    while mid_function && let Ok(Some(row)) = rows.next_row() {
        // What a link editor writes for its PLT tells the place in an entry by the program counter.
        if let CfaRule::Expression(e) = row.cfa()
            && let Ok(e) = e.get(frames)
            && e.0.slice().contains(&DW_OP_BREG_RIP)
        {
            mid_function = false;
        }
    }
    Some(Fde { range: RemoteAddr(start)..RemoteAddr(end), mid_function })
}
