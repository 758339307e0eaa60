//! The way into a watched range by jumps alone.
//!
//! Between a function that ends in a jump to another (a tail call) and that other one there may be a few instructions
//! that belong to neither: an entry of a procedure linkage table, a linker's veneer. A thread that is stopped there has no
//! activation of either, and yet carries what the one has made for the other. So it counts as in the range that it is
//! about to enter. No table says where such code lies; the instructions themselves do, being nothing but jumps.
//!
//! Where the jump is bound at its first use, the way leads through the loader, whose code is watched as
//! [`Part::Resolver`](crate::stacks::watch::Part::Resolver): see [`resolvers`].

use crate::canary::canary;
use crate::objects::Objects;
use crate::stacks::watch::{Watch, WatchRange};
use crate::target::memory::Memory;
use crate::{RemoteAddr, Result};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use std::ops::Range;

/// Most instructions that are followed: `endbr64; push; jmp` to `push; jmp` is what a linkage table has, and a veneer may
/// stand before it.
const MAX_INSTRUCTIONS: usize = 12;
/// Bytes read at once.
const CHUNK: usize = 32;
/// The word of a global offset table that holds the loader's entry for binding (System V ABI, AMD64 supplement, 5.2).
const RESOLVER_SLOT: i64 = 16;

/// The range of `watch` that a thread about to execute `pc` will enter without doing anything else before.
pub(crate) fn enters<'w>(memory: &Memory, watch: &'w Watch, pc: u64) -> Option<&'w WatchRange> {
    if canary!("who-enters-is-outside") {
        return None;
    }
    match follow(memory, pc, |at| watch.pc(at).is_some()) {
        Landing::At(at) => watch.pc(at),
        Landing::Elsewhere | Landing::Unknown => None,
    }
}

/// Where a way by jumps alone ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// At a place that was looked for.
    At(u64),
    /// At code that does something else.
    Elsewhere,
    /// It cannot be told, as where a call is yet to be bound.
    Unknown,
}

/// Where a jump to `to` leads, by jumps alone: to a place that `is_wanted`, `to` itself being one perhaps.
pub(crate) fn landing(memory: &Memory, to: u64, is_wanted: impl Fn(u64) -> bool) -> Landing {
    if is_wanted(to) { Landing::At(to) } else { follow(memory, to, is_wanted) }
}

/// Follows the way from the instruction at `pc` until a jump leads to a place that `is_wanted`.
fn follow(memory: &Memory, pc: u64, is_wanted: impl Fn(u64) -> bool) -> Landing {
    let (mut at, mut chunk) = (pc, Vec::new());
    let mut start = pc;
    let mut pushed = false;
    for _ in 0..MAX_INSTRUCTIONS {
        let Some(instruction) = decode(memory, at, &mut start, &mut chunk) else { return Landing::Unknown };
        match instruction.flow_control() {
            FlowControl::Next if is_harmless(&instruction) => {
                pushed |= instruction.mnemonic() == Mnemonic::Push;
                at = instruction.next_ip();
            }
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                let Some(to) = target(memory, &instruction) else { return Landing::Unknown };
                at = to;
                if is_wanted(at) {
                    return Landing::At(at);
                }
            }
            _ if pushed => return Landing::Unknown,
            _ => return Landing::Elsewhere,
        }
    }
    Landing::Unknown
}

/// The instruction at `at`; `chunk` holds what was read from `start` on.
fn decode(memory: &Memory, at: u64, start: &mut u64, chunk: &mut Vec<u8>) -> Option<Instruction> {
    loop {
        let from = usize::try_from(at.wrapping_sub(*start)).ok().filter(|from| *from < chunk.len());
        let fresh = from == Some(0);
        if let Some(from) = from {
            let instruction = Decoder::with_ip(64, &chunk[from..], at, DecoderOptions::NONE).decode();
            if !instruction.is_invalid() {
                return Some(instruction);
            }
            if fresh {
                return None;
            }
        }
        // Where the mapping ends before, as much as there is will do.
        const PAGE: u64 = 4096;
        let to_page_end = (PAGE - at % PAGE) as usize;
        *chunk = memory
            .read_vec(RemoteAddr(at), CHUNK)
            .or_else(|_| memory.read_vec(RemoteAddr(at), to_page_end.min(CHUNK)))
            .ok()?;
        *start = at;
    }
}

/// Whether a linkage table may have it before a jump.
fn is_harmless(i: &Instruction) -> bool {
    match i.mnemonic() {
        Mnemonic::Endbr64 | Mnemonic::Nop => true,
        // The number of the slot, and the object.
        Mnemonic::Push => i.op0_kind() != OpKind::Register,
        _ => false,
    }
}

/// Where a jump leads: by its displacement, or through a word at a fixed address.
fn target(memory: &Memory, i: &Instruction) -> Option<u64> {
    match i.op0_kind() {
        OpKind::NearBranch64 => Some(i.near_branch_target()),
        OpKind::Memory if i.code() == Code::Jmp_rm64 && i.is_ip_rel_memory_operand() => {
            memory.read_u64(RemoteAddr(i.ip_rel_memory_address())).ok()
        }
        _ => None,
    }
}

/// The code of the loader that binds calls at their first use, as the objects' global offset tables name it; none where all
/// is bound at the start.
///
/// # Errors
/// Where the target's memory cannot be read.
pub fn resolvers(objects: &Objects<'_>) -> Result<Vec<Range<RemoteAddr>>> {
    let mut found: Vec<Range<RemoteAddr>> = Vec::new();
    for object in objects.iter() {
        let Some(table) = object.dynamic()?.pltgot else { continue };
        let entry = object.pages.memory().read_u64(table.offset(RESOLVER_SLOT)).unwrap_or(0);
        let entry = RemoteAddr(entry);
        if entry.0 == 0 || found.iter().any(|range| range.contains(&entry)) {
            continue;
        }
        if let Some(loader) = objects.at(entry)
            && let Some(fde) = loader.fde_at(entry)?
        {
            found.push(fde.range);
        }
    }
    Ok(found)
}
