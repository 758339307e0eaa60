//! Whether and how the entry of a function can be redirected, and its original kept callable: the rules of the tool
//! (`code/entry.rs`, `function.rs`, `padding.rs`, `thunk.rs` of ugraft-process say why they are so), on the text as the object's file
//! has it, compared with memory. Where both judge, they judge alike; a test compares them.

use super::decode::{self, Flow, Instruction, decode};
use super::elf::{Object, number};
use super::refusal::{Foreign, Refusal};
use super::symbols::{File, Found, Text};
use super::syscall::PAGE;
use crate::layout::{ORIGINAL_MAX, Site, THUNK_MAX};

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Length of `jmp rel32`.
pub const NEAR_LEN: u64 = 5;
/// Length of `jmp rel8`.
const SHORT_LEN: u64 = 2;
/// Length of `notrack jmp [rip+0]` with the literal behind it.
pub const FAR_LEN: usize = 15;
/// How far a branch with an 8-bit displacement reaches.
const SHORT_REACH: u64 = 128;
/// How far before that decoding starts, to be in step by then.
const SYNC: u64 = 64;
/// A function shorter than this may have to share a jump with the padding behind it.
const SHORT: u64 = 16;
/// Functions begin at multiples of this, where nobody says where the next one begins.
const ALIGN: u64 = 16;
/// Most entries of a jump table that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Most instructions that a redirect displaces.
const MAX_DISPLACED: usize = 5;

impl Text<'_> {
    fn end(&self) -> u64 {
        self.addr.wrapping_add(self.bytes.len() as u64)
    }

    fn contains(&self, at: u64) -> bool {
        at.wrapping_sub(self.addr) < self.bytes.len() as u64
    }

    fn tail(&self, from: u64) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(from.checked_sub(self.addr)?).ok()?..)
    }

    fn get(&self, from: u64, to: u64) -> Option<&[u8]> {
        self.tail(from)?.get(..usize::try_from(to.checked_sub(from)?).ok()?)
    }

    /// The part of it that lies in `from..to`, perhaps empty.
    fn clip(&self, from: u64, to: u64) -> Text<'_> {
        let start = from.max(self.addr).min(self.end());
        let end = to.min(self.end()).max(start);
        Text { addr: start, bytes: self.get(start, end).unwrap_or(&[]) }
    }
}

/// A range of addresses.
type Range = (u64, u64);

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn straddles(at: u64, len: u64) -> bool {
    at / PAGE != at.wrapping_add(len - 1) / PAGE
}

/// A function and its surroundings.
struct Function<'a, T> {
    start: u64,
    size: u64,
    text: Text<'a>,
    /// The extent of the function right behind it, where it is short and the frame descriptions tell.
    neighbour: Option<Range>,
    object: &'a Object,
    taken: T,
}

impl Site {
    /// Looks for a way to redirect `found`; the bytes that the sites `taken` use are spoken for.
    ///
    /// # Errors
    /// The reason why there is none.
    pub fn analyze<'s>(
        object: &Object,
        file: &mut File<'_>,
        found: &Found,
        taken: impl Iterator<Item = &'s Self> + Clone,
    ) -> Result<Self, Refusal> {
        let (start, size) = (found.address, found.size);
        if object.has_text_relocations() {
            return Err(Refusal::TextRelocations);
        }
        if size == 0 {
            return Err(Refusal::NoSize { start });
        }
        let end = start.wrapping_add(size);
        let neighbour = if size < SHORT { object.described(end, SHORT) } else { None };
        let f = Function { start, size, text: file.text(start)?, neighbour, object, taken };
        f.site()
    }

    /// Whether the redirect goes through padding.
    pub fn is_springboard(&self) -> bool {
        self.jump != self.place
    }

    /// How many bytes at the place are overwritten.
    pub fn overwritten(&self) -> usize {
        if self.is_springboard() { SHORT_LEN as usize } else { NEAR_LEN as usize }
    }

    /// The ranges of bytes that the redirect changes; the second is empty where there is one.
    fn written(&self) -> [Range; 2] {
        let jump = (self.jump, self.jump.wrapping_add(NEAR_LEN));
        let place = (self.place, self.place.wrapping_add(SHORT_LEN));
        if self.is_springboard() { [jump, place] } else { [jump, (self.jump, self.jump)] }
    }

    /// The jump to `to`; `None` where it does not reach.
    pub fn jump_to(&self, to: u64) -> Option<[u8; 5]> {
        near(self.jump, to)
    }

    /// Whether the redirect reaches `to`.
    pub fn reaches(&self, to: u64) -> bool {
        self.jump_to(to).is_some()
    }

    /// The instructions that a thunk takes over, in order.
    fn displaced_instructions(&self) -> impl Iterator<Item = Instruction> {
        let bytes = self.original.get(..usize::from(self.displaced)).unwrap_or(&[]);
        let mut done = 0;
        core::iter::from_fn(move || {
            let rest = bytes.get(done..).filter(|rest| !rest.is_empty())?;
            let instruction = decode(rest, self.place.wrapping_add(done as u64))?;
            done += usize::from(instruction.len);
            Some(instruction)
        })
    }

    /// Writes the thunk that runs the original function and is to lie at `at`; returns its length.
    ///
    /// # Errors
    /// Where it would not reach what it refers to, or the thread has a shadow stack, which forbids the call that it makes.
    pub fn thunk(&self, at: u64, to: &mut [u8; THUNK_MAX]) -> Result<usize, Refusal> {
        let mut offsets = [0; MAX_DISPLACED];
        let mut len = 0;
        // The second round knows where each instruction lies in the thunk; lengths do not depend on it.
        for _ in 0..2 {
            let mut out = Relocator { site: self, at, to, len: 0, offsets };
            let mut last = None;
            for (i, instruction) in self.displaced_instructions().enumerate() {
                if let Some(offset) = offsets.get_mut(i) {
                    *offset = out.len;
                }
                out.relocate(&instruction)?;
                last = Some(instruction);
            }
            if !last.is_some_and(|last| last.is_terminator() || last.is_call()) {
                out.jump(self.place.wrapping_add(u64::from(self.displaced)));
            }
            len = out.len;
        }
        if len > THUNK_MAX {
            return Err(Refusal::Unmovable { at: self.place });
        }
        Ok(len)
    }
}

impl<'s, T: Iterator<Item = &'s Site> + Clone> Function<'_, T> {
    fn end(&self) -> u64 {
        self.start.wrapping_add(self.size)
    }

    fn outside(&self) -> Refusal {
        Refusal::OutsideText { start: self.start }
    }

    fn site(&self) -> Result<Site, Refusal> {
        let body = self.text.get(self.start, self.end()).ok_or(self.outside())?;
        let place = if body.starts_with(&ENDBR64) { self.start.wrapping_add(4) } else { self.start };
        let site = match self.direct(place) {
            Ok(site) => site,
            Err(refusal) => self.springboard(place).ok_or(refusal)?,
        };
        self.check_foreign(&site)?;
        Ok(site)
    }

    fn direct(&self, place: u64) -> Result<Site, Refusal> {
        let site = self.overwriting(place, NEAR_LEN)?;
        if straddles(place, NEAR_LEN) {
            return Err(Refusal::StraddlesPage { place });
        }
        Ok(site)
    }

    fn springboard(&self, place: u64) -> Option<Site> {
        if straddles(place, SHORT_LEN) {
            return None;
        }
        let mut site = self.overwriting(place, SHORT_LEN).ok()?;
        let base = place.wrapping_add(SHORT_LEN);
        let reach = (base.wrapping_sub(128), base.wrapping_add(128));
        let own = (place, place.wrapping_add(SHORT_LEN));
        for gap in self.gaps().into_iter().flatten().filter(|gap| overlap(*gap, reach)) {
            let mut pad = gap.0.max(reach.0);
            while pad.wrapping_add(NEAR_LEN) <= gap.1 && pad < reach.1 {
                let range = (pad, pad.wrapping_add(NEAR_LEN));
                if !straddles(pad, NEAR_LEN) && !self.is_taken(range) && !overlap(own, range) {
                    let padding = self.text.get(range.0, range.1)?;
                    site.jump = pad;
                    site.padding = *padding.first_chunk()?;
                    return Some(site);
                }
                pad = pad.wrapping_add(1);
            }
        }
        None
    }

    fn is_taken(&self, range: Range) -> bool {
        self.taken
            .clone()
            .filter(|site| site.start != 0)
            .any(|site| site.written().iter().any(|w| overlap(*w, range)))
    }

    /// The site when `len` bytes are overwritten at `place`.
    fn overwriting(&self, place: u64, len: u64) -> Result<Site, Refusal> {
        let start = self.start;
        let end = place.wrapping_add(len);
        let room = self.room(place, len)?;
        let bytes = self.text.get(place, place.wrapping_add(room)).ok_or(self.outside())?;
        if let Some((at, _)) = self.neighbour.filter(|r| r.0 > place && r.0 < end) {
            return Err(Refusal::OtherEntry { start, at });
        }
        if self.is_taken((place, end)) {
            return Err(Refusal::PaddingTaken { start });
        }
        let mut boundaries = [0; MAX_DISPLACED];
        let (mut displaced, mut ends) = (0, false);
        for boundary in &mut boundaries {
            if displaced >= len || ends {
                break;
            }
            let at = place.wrapping_add(displaced);
            let rest = bytes.get(displaced as usize..).unwrap_or(&[]);
            let instruction = decode(rest, at).ok_or(Refusal::Undecodable { at })?;
            *boundary = at;
            check_movable(&instruction, place, end)?;
            ends = instruction.is_terminator();
            displaced = displaced.wrapping_add(u64::from(instruction.len));
        }
        let hot = (place.wrapping_add(1), end);
        self.intruders(hot, &mut |intruder| match intruder {
            // Moves along, to the same instruction's new place.
            Intruder::Branch { from, to }
                if from.wrapping_sub(place) < displaced && boundaries.contains(&to) =>
            {
                Ok(())
            }
            Intruder::Branch { from, to } => Err(Refusal::BranchInto { from, to, place }),
            Intruder::Address { from, to } => Err(Refusal::AddressTaken { from, to, place }),
            Intruder::Table { table, to } => Err(Refusal::TableInto { table, to, place }),
        })?;
        let mut site = Site {
            start,
            size: self.size,
            place,
            jump: place,
            displaced: displaced as u8,
            ..Site::default()
        };
        let kept = displaced.max(len) as usize;
        for (to, from) in site.original.iter_mut().zip(bytes.get(..kept.min(ORIGINAL_MAX)).unwrap_or(&[])) {
            *to = *from;
        }
        site.original_len = kept as u8;
        Ok(site)
    }

    /// How many bytes from `place` on belong to the function or to padding behind it; at least `need`.
    fn room(&self, place: u64, need: u64) -> Result<u64, Refusal> {
        let own = self.end().saturating_sub(place);
        if own >= need {
            return Ok(own);
        }
        let room = self.end_behind().saturating_sub(place);
        if room < need {
            return Err(Refusal::TooShort { start: self.start, room, need });
        }
        Ok(room)
    }

    /// Refuses where the memory is not as in the file, in any byte that is overwritten or moved.
    fn check_foreign(&self, site: &Site) -> Result<(), Refusal> {
        let [first, second] = site.written();
        let moved = (self.start, site.place.wrapping_add(u64::from(site.original_len)));
        for (from, to) in [first, second, moved] {
            let file = self.text.get(from, to).ok_or(self.outside())?;
            let memory = self.object.bytes(from, to.wrapping_sub(from)).ok_or(self.outside())?;
            for (i, (file, now)) in file.iter().zip(memory).enumerate() {
                if file != now {
                    let what = match now {
                        0xcc => Foreign::Breakpoint,
                        0xe8 => Foreign::Call,
                        0xe9 | 0xeb | 0xff => Foreign::Jump,
                        _ => Foreign::Change,
                    };
                    let offset = from.wrapping_add(i as u64).wrapping_sub(self.start);
                    return Err(Refusal::Foreign { start: self.start, offset, what });
                }
            }
        }
        Ok(())
    }

    /// Calls `each` for everything found that leads into `hot`.
    fn intruders(
        &self,
        hot: Range,
        each: &mut impl FnMut(Intruder) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if hot.0 >= hot.1 {
            return Ok(());
        }
        long_branches(self.text, hot, &mut |intruder| {
            if is_instruction(self.text, intruder) { each(intruder) } else { Ok(()) }
        })?;
        let before = self.text.clip(hot.0.wrapping_sub(SHORT_REACH + SYNC), self.start);
        let after = self.text.clip(self.start, hot.1.wrapping_add(SHORT_REACH + decode::MAX_LEN as u64));
        short_branches(before, hot, each)?;
        short_branches(after, hot, each)?;
        self.jump_tables(hot, each)
    }

    /// Jump tables that the function may use.
    fn jump_tables(
        &self,
        hot: Range,
        each: &mut impl FnMut(Intruder) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let body = self.text.clip(self.start, self.end()).bytes;
        let jumps = body.windows(2).any(|b| matches!(b, [0xff, modrm] if modrm >> 3 & 7 == 4));
        if !jumps {
            return Ok(());
        }
        for (i, window) in body.windows(7).enumerate() {
            let &[a, b, c, d, e, f, g] = window else { continue };
            let field = i32::from_le_bytes([d, e, f, g]);
            // lea reg, [rip+table]: 32-bit offsets from the table's start. Tables of pointers are found by absolute addresses
            // of 32 bits, which no library has.
            if a & 0xf8 != 0x48 || b != 0x8d || c & 0xc7 != 0x05 {
                continue;
            }
            let table = self.start.wrapping_add(i as u64 + 7).wrapping_add_signed(field.into());
            if self.text.contains(table) {
                continue;
            }
            for entry in self.object.tail(table).unwrap_or(&[]).chunks_exact(4).take(MAX_ENTRIES) {
                let offset = number::<4>(entry, 0).unwrap_or(0) as u32;
                let to = table.wrapping_add_signed(offset.cast_signed().into());
                if !self.text.contains(to) {
                    break;
                }
                if hot.0 <= to && to < hot.1 {
                    each(Intruder::Table { table, to })?;
                }
            }
        }
        Ok(())
    }

    /// One past the padding behind the function, as far as it is certain to be nobody else's.
    fn end_behind(&self) -> u64 {
        let end = self.end();
        let next = self.neighbour.map(|r| r.0);
        let limit = next.unwrap_or(u64::MAX).min(self.text.end());
        let padded_to = end.wrapping_add(padding(end, self.text.get(end, limit).unwrap_or(&[])));
        if next.is_some() {
            return padded_to;
        }
        // Nobody says where the next function begins, and it may begin with nops: trust its alignment only.
        let aligned = end.wrapping_add(ALIGN - 1) & !(ALIGN - 1);
        if padded_to >= aligned { aligned } else { end }
    }

    /// Padding near the function in which a jump may lie.
    fn gaps(&self) -> [Option<Range>; 2] {
        let before = self.start_before().map(|start| (start, self.start));
        let end = self.end();
        let behind = match self.neighbour {
            None => Some((end, self.end_behind())),
            Some((next, _)) => {
                let bytes = self.text.get(end, next).unwrap_or(&[]);
                let all = padding(end, bytes) == bytes.len() as u64;
                (end < next && all).then_some((end, next))
            }
        };
        [before, behind.filter(|_| self.ends_for_good())]
    }

    /// Where the padding before the function begins, if it comes behind an instruction that control does not pass. The
    /// function before is not known, so the code is decoded from many places; all decodings that come to the start must agree.
    fn start_before(&self) -> Option<u64> {
        let mut agreed = None;
        for k in 0..=decode::MAX_LEN as u64 {
            let from = self.start.wrapping_add(k).wrapping_sub(3 * SYNC);
            let bytes = self.text.get(from, self.start)?;
            let (mut start, mut at) = (None, from);
            while at < self.start {
                let rest = bytes.get(at.wrapping_sub(from) as usize..)?;
                let skipped = padding(at, rest);
                if skipped == rest.len() as u64 {
                    at = self.start;
                    break;
                }
                at = at.wrapping_add(skipped);
                let found = decode(rest.get(skipped as usize..)?, at);
                at = at.wrapping_add(found.map_or(1, |i| u64::from(i.len)));
                start = found.filter(Instruction::is_terminator).map(|_| at);
            }
            if at != self.start {
                continue;
            }
            match (start, agreed) {
                (Some(_), None) => agreed = start,
                (Some(_), Some(_)) if start == agreed => {}
                _ => return None,
            }
        }
        agreed
    }

    /// Whether control cannot leave the function at its end.
    fn ends_for_good(&self) -> bool {
        let Some(mut bytes) = self.text.get(self.start, self.end()) else { return false };
        let (mut at, mut last) = (self.start, None);
        while !bytes.is_empty() {
            last = decode(bytes, at);
            let step = last.map_or(1, |i| usize::from(i.len));
            at = at.wrapping_add(step as u64);
            bytes = bytes.get(step..).unwrap_or(&[]);
        }
        last.is_some_and(|i| i.is_terminator())
    }
}

/// What leads into bytes that would be overwritten.
#[derive(Clone, Copy)]
enum Intruder {
    Branch { from: u64, to: u64 },
    Address { from: u64, to: u64 },
    Table { table: u64, to: u64 },
}

/// What the four bytes at offset `i` of the text are the displacement of, if the bytes before them make them one.
fn long_branch(text: Text<'_>, i: usize) -> Option<Intruder> {
    let last = *text.bytes.get(i.wrapping_sub(1))?;
    let before = text.bytes.get(i.wrapping_sub(2)).copied().unwrap_or(0);
    let at = text.addr.wrapping_add(i as u64);
    let (from, branch) = match (before, last) {
        (_, 0xe8 | 0xe9) => (at.wrapping_sub(1), true),
        (0x0f, 0x80..=0x8f) | (0xc7, 0xf8) => (at.wrapping_sub(2), true),
        (0x8d, modrm) if modrm & 0xc7 == 0x05 => (at.wrapping_sub(2), false),
        _ => return None,
    };
    let rel = number::<4>(text.bytes, i)? as u32;
    let to = at.wrapping_add(4).wrapping_add_signed(rel.cast_signed().into());
    Some(if branch { Intruder::Branch { from, to } } else { Intruder::Address { from, to } })
}

/// Branches with a 32-bit displacement, and `lea` relative to the instruction pointer, at every offset.
fn long_branches(
    text: Text<'_>,
    hot: Range,
    each: &mut impl FnMut(Intruder) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    /// Offsets that are looked at together; a multiple of four.
    const BLOCK: usize = 1024;
    let mut block = 0;
    while block < text.bytes.len() {
        let end = text.bytes.len().min(block + BLOCK);
        let bytes = text.bytes.get(block..text.bytes.len().min(block + BLOCK + 3)).unwrap_or(&[]);
        if may_lead_into(bytes, text.addr.wrapping_add(block as u64), hot) {
            for i in block.max(1)..end {
                let Some(intruder) = long_branch(text, i) else { continue };
                if let Intruder::Branch { to, .. } | Intruder::Address { to, .. } = intruder
                    && hot.0 <= to
                    && to < hot.1
                {
                    each(intruder)?;
                }
            }
        }
        block += BLOCK;
    }
    Ok(())
}

/// Whether any four of `bytes`, taken for a displacement that an instruction ends with, lead into `hot` modulo 2^32. The compiler
/// makes vector code of it.
fn may_lead_into(bytes: &[u8], at: u64, hot: Range) -> bool {
    let width = hot.1.wrapping_sub(hot.0) as u32;
    let mut hit = false;
    for phase in 0..4 {
        let mut next = (at as u32).wrapping_add(phase as u32 + 4).wrapping_sub(hot.0 as u32);
        for chunk in bytes.get(phase..).unwrap_or(&[]).as_chunks::<4>().0 {
            hit |= u32::from_le_bytes(*chunk).wrapping_add(next) < width;
            next = next.wrapping_add(4);
        }
    }
    hit
}

/// Whether what looks like a branch may be one: some decoding that begins a little before comes to it.
fn is_instruction(text: Text<'_>, intruder: Intruder) -> bool {
    let (at, to) = match intruder {
        Intruder::Branch { from, to }
        | Intruder::Address { from, to }
        | Intruder::Table { table: from, to } => (from, to),
    };
    (0..=decode::MAX_LEN as u64).any(|k| {
        let mut from = at.wrapping_add(k).wrapping_sub(2 * SYNC).max(text.addr);
        let Some(mut rest) = text.tail(from) else { return true };
        let mut last = None;
        // Prefixes may lie before `at`, so the instruction begins at or before it and ends behind it.
        while !rest.is_empty() && from <= at {
            last = decode(rest, from);
            let step = last.map_or(1, |i| usize::from(i.len));
            from = from.wrapping_add(step as u64);
            rest = rest.get(step..).unwrap_or(&[]);
        }
        last.is_some_and(|i| (i.is_near_branch() || i.field != 0) && i.to == to)
    })
}

/// Branches with an 8-bit displacement, by decoding `text` from its start.
fn short_branches(
    text: Text<'_>,
    hot: Range,
    each: &mut impl FnMut(Intruder) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let (mut at, mut rest) = (text.addr, text.bytes);
    while let Some(opcode) = rest.first() {
        let found = decode(rest, at);
        let to = match found {
            Some(i) if i.is_near_branch() => Some(i.to),
            Some(_) => None,
            // Data, or out of step: take each of the bytes for a short branch, and go on behind the first.
            None => match (opcode, rest.get(1)) {
                (0x70..=0x7f | 0xe0..=0xe3 | 0xeb, Some(rel)) => {
                    Some(at.wrapping_add(2).wrapping_add_signed(rel.cast_signed().into()))
                }
                _ => None,
            },
        };
        if let Some(to) = to.filter(|to| hot.0 <= *to && *to < hot.1) {
            each(Intruder::Branch { from: at, to })?;
        }
        let step = found.map_or(1, |i| usize::from(i.len));
        at = at.wrapping_add(step as u64);
        rest = rest.get(step..).unwrap_or(&[]);
    }
    Ok(())
}

/// How many of the leading `bytes` are padding: nops of any length, `int3`, zeros.
fn padding(at: u64, bytes: &[u8]) -> u64 {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        if matches!(rest.first(), Some(0xcc | 0x00)) {
            done += 1;
            continue;
        }
        match decode(rest, at.wrapping_add(done as u64)) {
            Some(i) if i.nop => done += usize::from(i.len),
            _ => break,
        }
    }
    done as u64
}

/// Whether `instruction` can run in a thunk while `place..end` is overwritten.
fn check_movable(i: &Instruction, place: u64, end: u64) -> Result<(), Refusal> {
    let calls = matches!(i.flow, Flow::Call | Flow::IndirectCall | Flow::FarCall | Flow::System);
    let indirect = matches!(i.flow, Flow::IndirectCall | Flow::FarCall);
    if i.truncated || i.flow == Flow::FarCall || (indirect && i.is_rsp) {
        return Err(Refusal::Unmovable { at: i.at });
    }
    if calls && i.next() < end {
        return Err(Refusal::CallReturnsInto { at: i.at, to: i.next(), place });
    }
    Ok(())
}

/// `jmp rel32` that lies at `from` and leads to `to`; `None` where `to` is more than 2 GiB away.
pub fn near(from: u64, to: u64) -> Option<[u8; 5]> {
    let [a, b, c, d] = rel32(from.wrapping_add(NEAR_LEN), to)?.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

/// `notrack jmp [rip+0]; .quad to`
pub fn far(to: u64) -> [u8; FAR_LEN] {
    let [a, b, c, d, e, f, g, h] = to.to_le_bytes();
    [0x3e, 0xff, 0x25, 0, 0, 0, 0, a, b, c, d, e, f, g, h]
}

fn rel32(next: u64, to: u64) -> Option<i32> {
    i32::try_from(to.wrapping_sub(next).cast_signed()).ok()
}

/// Writes a thunk.
struct Relocator<'a> {
    site: &'a Site,
    at: u64,
    to: &'a mut [u8; THUNK_MAX],
    /// How long it is; more than there is room for where it does not fit.
    len: usize,
    offsets: [usize; MAX_DISPLACED],
}

impl Relocator<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.to.get_mut(self.len) {
                *place = *byte;
            }
            self.len += 1;
        }
    }

    fn here(&self) -> u64 {
        self.at.wrapping_add(self.len as u64)
    }

    /// The bytes of an instruction.
    fn bytes(&self, i: &Instruction) -> [u8; decode::MAX_LEN] {
        let mut bytes = [0; decode::MAX_LEN];
        let rest = self.site.original.get(i.at.wrapping_sub(self.site.place) as usize..).unwrap_or(&[]);
        for (to, from) in bytes.iter_mut().zip(rest).take(usize::from(i.len)) {
            *to = *from;
        }
        bytes
    }

    /// Where a branch to `to` leads in the thunk.
    fn destination(&self, to: u64) -> u64 {
        let index = self.site.displaced_instructions().position(|i| i.at == to);
        let offset = index.and_then(|index| self.offsets.get(index));
        offset.map_or(to, |offset| self.at.wrapping_add(*offset as u64))
    }

    fn relocate(&mut self, i: &Instruction) -> Result<(), Refusal> {
        match i.flow {
            Flow::Call | Flow::IndirectCall => self.call(i),
            Flow::Jump => {
                let to = self.destination(i.to);
                self.jump(to);
                Ok(())
            }
            Flow::Begin => {
                // c7 f8 rel32: there is no other form, and no far one.
                let to = self.destination(i.to);
                let rel = self.displacement(self.here().wrapping_add(6), to)?;
                self.push(&[0xc7, 0xf8]);
                self.push(&rel.to_le_bytes());
                Ok(())
            }
            Flow::Loop => {
                // There is no long form: op +2; jmp short over; jmp to. Prefixes (67) stay.
                let to = self.destination(i.to);
                let bytes = self.bytes(i);
                self.push(bytes.get(..usize::from(i.len).wrapping_sub(1)).unwrap_or(&[]));
                self.push(&[2]);
                let len = if near(self.here().wrapping_add(2), to).is_some() { 5 } else { FAR_LEN as u8 };
                self.push(&[0xeb, len]);
                self.jump(to);
                Ok(())
            }
            Flow::Condition(condition) => {
                let to = self.destination(i.to);
                match rel32(self.here().wrapping_add(6), to) {
                    Some(rel) => {
                        self.push(&[0x0f, 0x80 | condition]);
                        self.push(&rel.to_le_bytes());
                    }
                    None => {
                        self.push(&[0x70 | (condition ^ 1), FAR_LEN as u8]);
                        self.push(&far(to));
                    }
                }
                Ok(())
            }
            _ => {
                let bytes = self.bytes(i);
                self.copy(i, &bytes)
            }
        }
    }

    /// The bytes as they are, but for a displacement from the instruction pointer.
    fn copy(&mut self, i: &Instruction, bytes: &[u8]) -> Result<(), Refusal> {
        let start = self.len;
        let rel = match i.field {
            0 => None,
            _ => Some(self.displacement(self.here().wrapping_add(u64::from(i.len)), i.to)?),
        };
        self.push(bytes.get(..usize::from(i.len)).unwrap_or(&[]));
        if let Some(rel) = rel {
            self.patch(start + usize::from(i.field), rel.to_le_bytes());
        }
        Ok(())
    }

    /// Writes over four bytes.
    fn patch(&mut self, at: usize, bytes: [u8; 4]) {
        for (to, from) in self.to.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
    }

    fn call(&mut self, i: &Instruction) -> Result<(), Refusal> {
        // The return address is not pushed by a call.
        if has_shadow_stack() {
            return Err(Refusal::Unmovable { at: i.at });
        }
        // push [rip+literal], whose displacement is filled in when the literal's place is known.
        self.push(&[0xff, 0x35, 0, 0, 0, 0]);
        let pushed = self.len;
        if i.flow == Flow::Call {
            let to = self.destination(i.to);
            self.jump(to);
        } else {
            self.indirect_jump(i)?;
        }
        let distance = self.len.wrapping_sub(pushed) as u32;
        self.patch(pushed.wrapping_sub(4), distance.to_le_bytes());
        self.push(&i.next().to_le_bytes());
        Ok(())
    }

    /// An indirect call's jump, after its return address has been pushed.
    fn indirect_jump(&mut self, i: &Instruction) -> Result<(), Refusal> {
        let mut bytes = self.bytes(i);
        let (opcode, at) = (usize::from(i.opcode), usize::from(i.modrm));
        let Some(modrm) = bytes.get_mut(at) else { return Err(Refusal::Unmovable { at: i.at }) };
        // /2 (call) becomes /4 (jmp).
        *modrm = *modrm & !0x38 | 0x20;
        if !i.based_on_rsp {
            return self.copy(i, &bytes);
        }
        // The push moved the stack pointer away from the operand.
        let (modrm, sib) = (*modrm, bytes.get(at + 1).copied().unwrap_or(0));
        let old = match modrm >> 6 {
            0 => 0,
            1 => i64::from(bytes.get(at + 2).copied().unwrap_or(0).cast_signed()),
            _ => i64::from((number::<4>(&bytes, at + 2).unwrap_or(0) as u32).cast_signed()),
        };
        let new = i32::try_from(old + 8).map_err(|_| Refusal::Unmovable { at: i.at })?;
        // Prefixes stay, but for a REX.W, which says nothing here.
        self.push(bytes.get(..opcode).unwrap_or(&[]));
        let head = modrm & 0x3f;
        match (new, i8::try_from(new)) {
            (0, _) => self.push(&[0xff, head, sib]),
            (_, Ok(short)) => self.push(&[0xff, head | 0x40, sib, short.cast_unsigned()]),
            _ => {
                self.push(&[0xff, head | 0x80, sib]);
                self.push(&new.to_le_bytes());
            }
        }
        Ok(())
    }

    /// A jump to `to`, near or far.
    fn jump(&mut self, to: u64) {
        match near(self.here(), to) {
            Some(bytes) => self.push(&bytes),
            None => self.push(&far(to)),
        }
    }

    fn displacement(&self, next: u64, to: u64) -> Result<i32, Refusal> {
        rel32(next, to).ok_or(Refusal::OutOfReach { from: next, to })
    }
}

/// Whether this thread has a user shadow stack.
fn has_shadow_stack() -> bool {
    let mut pointer: u64 = 0;
    // SAFETY: `rdsspq` reads the shadow stack's pointer where there is one and is a nop elsewhere.
    unsafe { core::arch::asm!("rdsspq {0}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer != 0
}
