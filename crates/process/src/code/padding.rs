//! Padding between functions: how much of it lies somewhere, and where a jump may lie in it.
//!
//! Bytes between two functions are padding if they are nops, `int3` or zeros up to the next function and control cannot come to them from
//! the function before. Then they are nobody's, and may be overwritten while threads run.

use crate::RemoteAddr;
use crate::code::function::{Function, MAX_INSTRUCTION, SYNC, is_terminator};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use std::ops::Range;

/// Functions begin at multiples of this, where nobody says where the next one begins.
const ALIGN: u64 = 16;

/// How many of the leading `bytes`, which lie at `addr`, are padding as compilers, assemblers and linkers lay between functions: nops
/// of any length, `int3`, zeros.
pub(crate) fn length(addr: RemoteAddr, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        if matches!(bytes[done], 0xcc | 0x00) {
            done += 1;
            continue;
        }
        let mut decoder =
            Decoder::with_ip(64, &bytes[done..], addr.offset(done as i64).0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if !is_nop(&instruction) {
            break;
        }
        done += instruction.len();
    }
    done
}

/// Whether an instruction does nothing: the nops that are named so, and `lea reg, [reg+0]`, which old assemblers used.
fn is_nop(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Nop => true,
        Mnemonic::Lea => {
            instruction.code() == Code::Lea_r64_m
                && instruction.memory_base() == instruction.op0_register()
                && instruction.memory_index() == Register::None
                && instruction.memory_displacement64() == 0
        }
        _ => false,
    }
}

/// One past the padding behind `f`, as far as it is certain to be nobody else's.
pub(crate) fn end_behind(f: &Function<'_>) -> RemoteAddr {
    let end = f.end();
    let next = f.neighbours.iter().map(|r| r.start).filter(|start| *start >= end).min();
    let limit = next.unwrap_or(f.text.range().end).min(f.text.range().end);
    let padded_to = end.offset(length(end, f.text.get(end..limit).unwrap_or_default()) as i64);
    match next {
        Some(_) => padded_to,
        // Nobody says where the next function begins, and it may begin with nops: trust its alignment only.
        None => {
            let aligned = RemoteAddr(end.0.checked_next_multiple_of(ALIGN).unwrap_or(end.0));
            if padded_to >= aligned { aligned } else { end }
        }
    }
}

/// Padding between functions near `around`, in which a jump may lie: gaps of the known functions that are filled with padding
/// entirely, behind a function that control cannot leave at its end. Where no function is known before or behind this one,
/// the padding that adjoins it.
pub(crate) fn gaps(f: &Function<'_>, around: Range<RemoteAddr>) -> Vec<Range<RemoteAddr>> {
    let mut known: Vec<_> =
        f.neighbours.iter().cloned().chain([f.start..f.end()]).filter(|r| r.start < r.end).collect();
    known.sort_unstable_by_key(|r| (r.start, r.end));
    let mut gaps = Vec::new();
    if known.iter().all(|r| r.end > f.start) {
        gaps.extend(start_before(f).map(|start| start..f.start));
    }
    if known.iter().all(|r| r.start < f.end()) && ends_for_good(f, &(f.start..f.end())) {
        gaps.push(f.end()..end_behind(f));
    }
    let mut last: Option<Range<RemoteAddr>> = None;
    for next in known {
        if let Some(previous) = &last {
            let gap = previous.end..next.start;
            if gap.start < gap.end
                && f.text.get(gap.clone()).is_some_and(|bytes| length(gap.start, bytes) == bytes.len())
                && ends_for_good(f, previous)
            {
                gaps.push(gap);
            }
        }
        if last.as_ref().is_none_or(|previous| next.end > previous.end) {
            last = Some(next);
        }
    }
    gaps.retain(|gap| gap.start < around.end && around.start < gap.end);
    gaps
}

/// Where the padding before `f` begins, if it comes behind an instruction that control does not pass. The function before is not
/// known, so the code is decoded from many places; all decodings that come to `f` must agree.
fn start_before(f: &Function<'_>) -> Option<RemoteAddr> {
    let mut agreed = None;
    for k in 0..=MAX_INSTRUCTION as i64 {
        let from = f.start.offset(k - 3 * SYNC);
        let bytes = f.text.get(from..f.start)?;
        let mut start = None;
        let mut at = from;
        while at < f.start {
            let rest = &bytes[at.distance_from(from) as usize..];
            let skipped = length(at, rest);
            if skipped == rest.len() {
                at = f.start;
                break;
            }
            at = at.offset(skipped as i64);
            let instruction = Decoder::with_ip(64, &rest[skipped..], at.0, DecoderOptions::NONE).decode();
            // Out of step, or data: go on behind the byte.
            let step = if instruction.is_invalid() { 1 } else { instruction.len() as i64 };
            at = at.offset(step);
            start = (!instruction.is_invalid() && is_terminator(&instruction)).then_some(at);
        }
        // A last nop may run over the function's start: then this decoding is out of step.
        if at != f.start {
            continue;
        }
        match (start, agreed) {
            (Some(start), None) => agreed = Some(start),
            (Some(start), Some(before)) if start == before => {}
            _ => return None,
        }
    }
    agreed
}

/// Whether the last instruction of a function is a [terminator](is_terminator), in the decoding from its start.
fn ends_for_good(f: &Function<'_>, extent: &Range<RemoteAddr>) -> bool {
    let Some(bytes) = f.text.get(extent.clone()) else { return false };
    let mut decoder = Decoder::with_ip(64, bytes, extent.start.0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
    }
    !instruction.is_invalid() && instruction.next_ip() == extent.end.0 && is_terminator(&instruction)
}
