//! Suspended stacks: activations that no thread's registers lead to.
//!
//! A coroutine that is not running, or a context saved by `getcontext`, is a set of registers in memory and a stack
//! somewhere in it. No look at threads finds those. Two things can be done: recognise programs that may have them, and
//! look for words in watched ranges in all memory that the target can write. Many such words are dead, so that this
//! scan finds many false alarms; nothing found is a proof for all threads and coroutines together, but for values that
//! a program hides (see docs/stacks.md).

use crate::stacks::scan::{Presence, ScanFailure, Thread, run_around, stack_end};
use crate::stacks::watch::Watch;
use crate::target::maps::Maps;
use crate::target::memory::Memory;
use crate::{Pid, RemoteAddr, Tid};
use std::ops::Range;

/// Most bytes that a scan of all memory reads.
pub const MEMORY_SCAN_LIMIT: u64 = 64 << 30;
/// Most words that it reports.
pub const MAX_MEMORY_HITS: usize = 1000;

/// Functions by which programs switch contexts within a thread. `setjmp` is not among them: it is mostly used to go
/// back to a frame that is on the stack anyway.
pub(crate) const SWITCHERS: [&str; 10] = [
    "makecontext",
    "swapcontext",
    "setcontext",
    "getcontext",
    // boost.context, and what is built upon it.
    "jump_fcontext",
    "make_fcontext",
    "ontop_fcontext",
    // The split stacks of gcc.
    "__morestack",
    // What a library written in Go has for its callers in C.
    "crosscall2",
    // libco and others.
    "co_switch",
];

/// The first of `imports`, names of functions that the target's objects import, that switches contexts.
pub fn uses_ucontext<'n>(imports: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    imports.into_iter().find(|name| SWITCHERS.contains(name))
}

/// A word in a watched range, found in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryHit {
    /// Where.
    pub at: RemoteAddr,
    /// The address in the watched range.
    pub value: u64,
    /// It was stored in the way in which glibc hides the program counter in a `jmp_buf`.
    pub mangled: bool,
    /// Name of the mapping it is in; empty for anonymous memory.
    pub mapping: String,
}

/// What a scan of all writable memory found.
#[derive(Clone, Debug, Default)]
pub struct MemoryScan {
    /// Words in watched ranges, at most [`MAX_MEMORY_HITS`].
    pub hits: Vec<MemoryHit>,
    /// Bytes compared.
    pub bytes: u64,
}

/// The value by which glibc hides code addresses in a `jmp_buf`, the same for all threads of a process
/// (`PTR_MANGLE` in sysdeps/unix/sysv/linux/x86_64/pointer_guard.h: exclusive or with the word at 0x30 from the thread
/// pointer, then rotated left by 17). With another C library the value means nothing, and finds nothing.
#[must_use]
pub fn pointer_guard(memory: &Memory, fs_base: u64) -> Option<u64> {
    const POINTER_GUARD: i64 = 0x30;
    memory.read_u64(RemoteAddr(fs_base).offset(POINTER_GUARD)).ok()
}

/// The memory of `thread`'s own stack, if it runs on that: what [`crate::stacks`] has judged already, for
/// [`scan_memory`] to skip.
#[must_use]
pub fn own_stack(maps: &Maps, thread: Thread<'_>) -> Option<Range<RemoteAddr>> {
    let (sp, fs_base) = (thread.regs.rsp, thread.regs.fs_base);
    let run = run_around(maps, sp)?;
    let end = stack_end(maps, sp, fs_base)?;
    let main = maps.iter().any(|m| m.name == "[stack]" && run.contains(&m.start.0));
    let own = if thread.pid.0 == thread.tid.0 { main } else { end == fs_base };
    own.then(|| RemoteAddr(run.start.min(sp))..RemoteAddr(end))
}

/// Looks for words in watched ranges in all memory that the target can write, but for `skip`.
///
/// `guard` is what [`pointer_guard`] says. The target should be stopped as a whole: in memory that changes meanwhile,
/// a word may move from where it was not looked for yet to where it was already.
///
/// # Errors
/// [`ScanFailure`] where memory cannot be read or there is more than [`MEMORY_SCAN_LIMIT`].
pub fn scan_memory(
    memory: &Memory,
    pid: Pid,
    maps: &Maps,
    watch: &Watch,
    skip: &[Range<RemoteAddr>],
    guard: Option<u64>,
) -> Result<MemoryScan, ScanFailure> {
    /// How far `PTR_MANGLE` rotates.
    const ROTATION: u32 = 17;
    let mut scan = MemoryScan::default();
    let mut presence = Presence::new(maps);
    presence.ask(pid, Tid(pid.0));
    let mut buffer = Vec::new();
    for m in maps.iter().filter(|m| m.read && m.write) {
        for range in without(m.start.0..m.end.0, skip) {
            presence.for_each_piece(memory, range, 0, &mut buffer, |addr, bytes| {
                scan.bytes += bytes.len() as u64;
                if scan.bytes > MEMORY_SCAN_LIMIT {
                    return Err(ScanFailure::TooLarge);
                }
                for (i, w) in (0..).zip(bytes.chunks_exact(8)) {
                    let word = u64::from_le_bytes(w.try_into().unwrap_or_default());
                    let bare = guard.map(|g| word.rotate_right(ROTATION) ^ g);
                    for (value, mangled) in [(Some(word), false), (bare, true)] {
                        let Some(value) = value.filter(|v| watch.word(*v).is_some()) else { continue };
                        if scan.hits.len() < MAX_MEMORY_HITS {
                            let at = RemoteAddr(addr + i * 8);
                            scan.hits.push(MemoryHit { at, value, mangled, mapping: m.name.clone() });
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(scan)
}

/// The parts of `range` that are not in `skip`.
fn without(range: Range<u64>, skip: &[Range<RemoteAddr>]) -> Vec<Range<u64>> {
    let mut parts = vec![range];
    for s in skip {
        parts = parts
            .into_iter()
            .flat_map(|p| [p.start..p.end.min(s.start.0), p.start.max(s.end.0)..p.end])
            .filter(|p| p.start < p.end)
            .collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_ranges_are_cut_out() {
        let skip =
            [RemoteAddr(20)..RemoteAddr(30), RemoteAddr(35)..RemoteAddr(50), RemoteAddr(0)..RemoteAddr(2)];
        assert_eq!(without(10..40, &skip), [10..20, 30..35]);
        assert_eq!(without(20..30, &skip), []);
    }

    #[test]
    fn context_switchers_are_recognised_by_name() {
        assert_eq!(uses_ucontext(["read", "swapcontext", "malloc"]), Some("swapcontext"));
        assert_eq!(uses_ucontext(["read", "longjmp"]), None);
    }
}
