//! What the code of an object says about a function's first bytes: who branches into them.
//!
//! Questions are answered from the bytes of the file, not from those in memory: a breakpoint in the middle of a
//! function must not hide the instruction below it.
//!
//! How branches are found:
//! - Those with a 32-bit displacement (`call`, `jmp`, `jcc`, `xbegin`) and `lea` of an address are looked for at *every* byte
//!   offset of the text at hand, decoded or not, so that neither data among the code nor a function without a symbol
//!   hides one. What merely looks like one, being the middle of an instruction, is told by decoding up to it from many places.
//! - Those with an 8-bit displacement reach 128 bytes. There the code is decoded: from the function's start onwards, and from
//!   some way before it up to its start (x86 code read from a wrong offset falls into step within a few
//!   instructions). Where decoding fails, every offset is looked at as above.
//! - Indirect jumps land at targets that a table lists. Tables that the function addresses by `lea` (offsets relative to the
//!   table, from gcc and clang) or by a 32-bit address (pointers) are read where the caller has the object's read-only
//!   data, as the search for a function to be patched does. Assumption for the rest: no landing pad of an exception and no computed `goto` lies in bytes 1 to 4 of
//!   a function.

use crate::RemoteAddr;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use std::ops::Range;

/// How far a branch with an 8-bit displacement reaches, in bytes.
const SHORT_REACH: i64 = 128;
/// How far before the short branches' reach decoding starts, to be in step by then.
pub(crate) const SYNC: i64 = 64;
/// How far around a function's start bytes can matter to its redirect, in bytes: see [`Function::memory`].
pub const NEARBY: i64 = 192;
/// Most entries of a jump table that are looked at.
const MAX_TABLE_ENTRIES: usize = 4096;
/// More bytes of a jump table are not looked at.
pub const MAX_TABLE_LEN: usize = MAX_TABLE_ENTRIES * 8;
/// Longest x86 instruction, in bytes.
pub(crate) const MAX_INSTRUCTION: usize = 15;

/// Bytes of the target and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// Address of the first byte.
    pub addr: RemoteAddr,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// The addresses covered.
    #[must_use]
    pub fn range(&self) -> Range<RemoteAddr> {
        self.addr..self.addr.offset(self.bytes.len() as i64)
    }

    /// The bytes of `range`; `None` where it is not covered entirely.
    #[must_use]
    pub fn get(&self, range: Range<RemoteAddr>) -> Option<&'a [u8]> {
        let start = usize::try_from(range.start.distance_from(self.addr)).ok()?;
        let len = usize::try_from(range.end.distance_from(range.start)).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// The bytes from `addr` to the end; `None` where `addr` is not covered.
    #[must_use]
    pub fn tail(&self, addr: RemoteAddr) -> Option<&'a [u8]> {
        self.bytes.get(usize::try_from(addr.distance_from(self.addr)).ok()?..)
    }

    /// The part of it that lies in `range`, perhaps empty.
    pub(crate) fn clip(&self, range: Range<RemoteAddr>) -> Text<'a> {
        let all = self.range();
        let start = range.start.max(all.start).min(all.end);
        let end = range.end.min(all.end).max(start);
        Text { addr: start, bytes: self.get(start..end).unwrap_or_default() }
    }
}

/// A function of the target, and what is known about its surroundings. Everything but the first three fields
/// may be left empty; the more is given, the more can be done and the more is checked.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    /// Its first byte.
    pub start: RemoteAddr,
    /// Its length in bytes, from its symbol or its frame description.
    pub size: u64,
    /// Executable bytes around it, as the *file* has them: at least the function and, where it is shorter than a jump, the
    /// padding behind it; best the whole segment, since branches from anywhere in it into the entry are looked for.
    pub text: Text<'a>,
    /// The same in memory, at least [`NEARBY`] bytes before and after the start, as far as `text` goes. Where they differ
    /// from the file, somebody else changed the text. `None` leaves that unchecked.
    pub memory: Option<Text<'a>>,
    /// Extents of functions known nearby, its own and its cold parts' among them or not, in any order.
    pub neighbours: &'a [Range<RemoteAddr>],
    /// Read-only data of its object, where jump tables lie.
    pub data: &'a [Text<'a>],
    /// Padding that is already promised to others; see [`Entry::written`](crate::code::entry::Entry::written).
    pub taken: &'a [Range<RemoteAddr>],
}

impl Function<'_> {
    /// One past its last byte.
    #[must_use]
    pub fn end(&self) -> RemoteAddr {
        self.start.offset(self.size as i64)
    }
}

/// Something that makes control, or an address, come into bytes that would be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intruder {
    /// A branch or call at this address leads to `to`.
    Branch { from: RemoteAddr, to: RemoteAddr },
    /// An instruction at this address takes the address `to`.
    Address { from: RemoteAddr, to: RemoteAddr },
    /// A jump table at this address lists `to`.
    Table { table: RemoteAddr, to: RemoteAddr },
}

impl Intruder {
    pub(crate) fn ends(self) -> (RemoteAddr, RemoteAddr) {
        match self {
            Self::Branch { from, to } | Self::Address { from, to } | Self::Table { table: from, to } => {
                (from, to)
            }
        }
    }
}

/// The branches and taken addresses with a 32-bit displacement of a whole text, sorted by destination: made once, it
/// answers for every function. Worth while from some ten functions of an object on; for fewer, looking through the text for
/// each is faster.
#[derive(Clone, Debug)]
pub struct Branches {
    text: Range<RemoteAddr>,
    sorted: Vec<Intruder>,
}

impl Branches {
    /// Reads all of `text`: some milliseconds for 1 MiB.
    #[must_use]
    pub fn of(text: Text<'_>) -> Self {
        let range = text.range();
        let mut sorted: Vec<_> = (1..text.bytes.len())
            .filter_map(|i| long_branch(text, i))
            .filter(|b| range.contains(&b.ends().1))
            .collect();
        sorted.sort_unstable_by_key(|branch| branch.ends().1);
        Self { text: range, sorted }
    }

    fn into(&self, hot: &Range<RemoteAddr>) -> &[Intruder] {
        let first = self.sorted.partition_point(|branch| branch.ends().1 < hot.start);
        let end = self.sorted.partition_point(|branch| branch.ends().1 < hot.end);
        &self.sorted[first..end]
    }
}

/// All intruders into `hot` that can be found, in no particular order. `branches` serves if it is of the function's text.
pub(crate) fn intruders(
    f: &Function<'_>,
    hot: Range<RemoteAddr>,
    branches: Option<&Branches>,
) -> Vec<Intruder> {
    if hot.start >= hot.end {
        return Vec::new();
    }
    let mut found = Vec::new();
    match branches.filter(|branches| branches.text == f.text.range()) {
        Some(branches) => found.extend(branches.into(&hot)),
        None => long_branches(f.text, &hot, &mut found),
    }
    found.retain(|intruder| is_instruction(f.text, *intruder));
    let before = f.text.clip(hot.start.offset(-SHORT_REACH - SYNC)..f.start);
    let after = f.text.clip(f.start..hot.end.offset(SHORT_REACH + MAX_INSTRUCTION as i64));
    short_branches(before, &hot, &mut found);
    short_branches(after, &hot, &mut found);
    jump_tables(f, &hot, &mut found);
    found
}

/// What the four bytes at offset `i` of the text are the displacement of, if the bytes before them make them one.
fn long_branch(text: Text<'_>, i: usize) -> Option<Intruder> {
    let last = text.bytes[i - 1];
    let before = if i >= 2 { text.bytes[i - 2] } else { 0 };
    let at = |back: i64| text.addr.offset(i as i64 - back);
    // In the order of frequency, as this runs for every byte.
    let (from, branch) = match (before, last) {
        (_, 0xe8 | 0xe9) => (at(1), true),
        (0x0f, 0x80..=0x8f) | (0xc7, 0xf8) => (at(2), true),
        (0x8d, modrm) if modrm & 0xc7 == 0x05 => (at(2), false),
        _ => return None,
    };
    let rel = i32::from_le_bytes(text.bytes.get(i..i + 4)?.try_into().ok()?);
    let to = at(-4).offset(rel.into());
    Some(if branch { Intruder::Branch { from, to } } else { Intruder::Address { from, to } })
}

/// Branches with a 32-bit displacement, and `lea` relative to the instruction pointer, at every offset.
fn long_branches(text: Text<'_>, hot: &Range<RemoteAddr>, found: &mut Vec<Intruder>) {
    /// Offsets that are looked at together; a multiple of four.
    const BLOCK: usize = 1024;
    for block in (0..text.bytes.len()).step_by(BLOCK) {
        let bytes = &text.bytes[block..text.bytes.len().min(block + BLOCK + 3)];
        if may_lead_into(bytes, text.addr.offset(block as i64), hot) {
            let offsets = block.max(1)..text.bytes.len().min(block + BLOCK);
            let branches = offsets.filter_map(|i| long_branch(text, i));
            found.extend(branches.filter(|branch| hot.contains(&branch.ends().1)));
        }
    }
}

/// Whether any four of `bytes`, taken for a displacement that an instruction ends with, lead into `hot` modulo 2^32. Written so that
/// the compiler makes vector code of it: a text of megabytes is looked through while the command waits.
fn may_lead_into(bytes: &[u8], addr: RemoteAddr, hot: &Range<RemoteAddr>) -> bool {
    let width = hot.end.distance_from(hot.start) as u32;
    let mut hit = false;
    for phase in 0..bytes.len().min(4) {
        let mut next = (addr.0 as u32).wrapping_add(phase as u32 + 4).wrapping_sub(hot.start.0 as u32);
        for chunk in bytes[phase..].chunks_exact(4) {
            let rel = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            hit |= rel.wrapping_add(next) < width;
            next = next.wrapping_add(4);
        }
    }
    hit
}

/// Whether what looks like a branch may be one: some decoding that begins a little before comes to an instruction that leads, or
/// refers, to where it does. Wherever decoding begins, it falls into step soon, so what none of many comes to is the middle
/// of something else.
fn is_instruction(text: Text<'_>, intruder: Intruder) -> bool {
    let (at, to) = intruder.ends();
    let mut instruction = Instruction::default();
    (0..=MAX_INSTRUCTION as i64).any(|k| {
        let from = at.offset(k - 2 * SYNC).max(text.addr);
        let Some(bytes) = text.tail(from) else { return true };
        let mut decoder = Decoder::with_ip(64, bytes, from.0, DecoderOptions::NONE);
        // Prefixes may lie before `at`, so the instruction begins at or before it and ends behind it.
        while decoder.can_decode() && decoder.ip() <= at.0 {
            let position = decoder.position();
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                let _ = decoder.set_position(position + 1);
                decoder.set_ip(from.offset(position as i64 + 1).0);
            }
        }
        !instruction.is_invalid()
            && (is_near_branch(&instruction) && instruction.near_branch_target() == to.0
                || instruction.is_ip_rel_memory_operand() && instruction.ip_rel_memory_address() == to.0)
    })
}

/// Branches with an 8-bit displacement, by decoding `text` from its start.
fn short_branches(text: Text<'_>, hot: &Range<RemoteAddr>, found: &mut Vec<Intruder>) {
    let mut decoder = Decoder::with_ip(64, text.bytes, text.addr.0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let at = decoder.position();
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            // Data, or out of step: take each of the bytes for a short branch, and go on behind the first.
            if let [0x70..=0x7f | 0xe0..=0xe3 | 0xeb, rel, ..] = text.bytes[at..] {
                let next = text.addr.offset(at as i64 + 2);
                let to = next.offset(i64::from(rel as i8));
                if hot.contains(&to) {
                    found.push(Intruder::Branch { from: next.offset(-2), to });
                }
            }
            if decoder.set_position(at + 1).is_err() {
                break;
            }
            decoder.set_ip(text.addr.offset(at as i64 + 1).0);
            continue;
        }
        let to = RemoteAddr(instruction.near_branch_target());
        if is_near_branch(&instruction) && hot.contains(&to) {
            found.push(Intruder::Branch { from: RemoteAddr(instruction.ip()), to });
        }
    }
}

/// Whether its first operand is a destination in the code.
pub(crate) fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// Where jump tables lie that a function with this body may use, and addresses that are none; empty if it makes no indirect
/// jump.
#[must_use]
pub fn possible_tables(body: Text<'_>) -> Vec<RemoteAddr> {
    let jumps = body.bytes.windows(2).any(|b| b[0] == 0xff && (b[1] >> 3) & 7 == 4);
    if jumps { table_uses(body).map(|(table, _)| table).collect() } else { Vec::new() }
}

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TableKind {
    /// 32-bit offsets from its start.
    Offsets,
    /// Pointers.
    Pointers,
}

fn table_uses(body: Text<'_>) -> impl Iterator<Item = (RemoteAddr, TableKind)> {
    body.bytes.windows(7).enumerate().filter_map(move |(i, b)| {
        let field = i64::from(i32::from_le_bytes([b[3], b[4], b[5], b[6]]));
        if b[0] & 0xf8 == 0x48 && b[1] == 0x8d && b[2] & 0xc7 == 0x05 {
            // lea reg, [rip+table]
            Some((body.addr.offset(i as i64 + 7 + field), TableKind::Offsets))
        } else if b[0] == 0xff && b[1] == 0x24 && b[2] & 0xc7 == 0xc5 {
            // jmp [table+reg*8]
            Some((RemoteAddr(field as u64), TableKind::Pointers))
        } else {
            None
        }
    })
}

/// Jump tables that the function may use, where their bytes are at hand.
fn jump_tables(f: &Function<'_>, hot: &Range<RemoteAddr>, found: &mut Vec<Intruder>) {
    for (table, kind) in table_uses(f.text.clip(f.start..f.end())) {
        let targets: Vec<_> = match kind {
            TableKind::Offsets => entries::<4>(f, table)
                .map(|entry| table.offset(i64::from(i32::from_le_bytes(entry))))
                .take_while(|to| near(f, *to))
                .collect(),
            TableKind::Pointers => entries::<8>(f, table)
                .map(|entry| RemoteAddr(u64::from_le_bytes(entry)))
                .take_while(|to| near(f, *to))
                .collect(),
        };
        for to in targets {
            note_table(hot, table, to, found);
        }
    }
}

fn note_table(hot: &Range<RemoteAddr>, table: RemoteAddr, to: RemoteAddr, found: &mut Vec<Intruder>) {
    if hot.contains(&to) {
        found.push(Intruder::Table { table, to });
    }
}

/// What lies at `table` in the object's data, as entries of `N` bytes.
fn entries<'a, const N: usize>(f: &Function<'a>, table: RemoteAddr) -> impl Iterator<Item = [u8; N]> + 'a {
    let bytes = f.data.iter().find_map(|data| data.tail(table)).unwrap_or_default();
    bytes.chunks_exact(N).take(MAX_TABLE_ENTRIES).filter_map(|chunk| chunk.try_into().ok())
}

/// Whether `to` can be a target of the function's own table: in its body, or a cold part somewhere in the text.
fn near(f: &Function<'_>, to: RemoteAddr) -> bool {
    f.text.range().contains(&to)
}

/// Whether control never goes on behind it.
pub(crate) fn is_terminator(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    ) || matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Hlt)
}
