//! The word scan: every word of every stack of a stopped thread, compared with a [`Watch`].
//!
//! A call pushes its return address, and the kernel writes the registers of a signal's interrupted code, in full
//! words on a stack; the System V ABI keeps stacks aligned at calls, so those words are aligned to 8. Therefore, if
//! no word of the live part of a thread's stacks lies in a function, and neither the program counter nor another
//! register does, the thread has no activation of that function: a proof that needs no unwind information. The
//! reverse does not hold, words may be stale; see [`crate::stacks`].
//!
//! Which memory is "the live part of a thread's stacks" is decided here:
//! - from the stack pointer, less the red zone, upwards, to the end of the mappings that follow one another without
//!   a gap, or to the thread pointer if that lies among them (both C libraries put a thread's stack below its TLS);
//! - the thread's own stack, if it runs on another: for every thread what lies below its thread pointer, for the
//!   first thread also `[stack]`;
//! - the stack of every context that a signal interrupted: signal frames are recognised by the word in which the
//!   kernel saves the segment registers.
//!
//! What this cannot see is listed in docs/stacks.md.

use crate::canary::canary;
use crate::stacks::watch::Watch;
use crate::stacks::way_in::enters;
use crate::target::maps::{Mapping, Maps};
use crate::target::memory::Memory;
use crate::{Error, Pid, RemoteAddr, Result, Tid};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes below the stack pointer that a function may use (System V ABI, AMD64 supplement, 3.2.2).
pub const RED_ZONE: u64 = 128;
/// Most bytes that are read of one thread's stacks.
pub const SCAN_LIMIT: u64 = 64 << 20;
/// Most stacks of one thread: its own and those that signals interrupted.
pub const MAX_STACKS: usize = 64;
/// Most words in watched ranges that are kept of one thread.
pub const MAX_HITS: usize = 4096;

const PAGE: u64 = 4096;
/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// `rsp` is this many bytes before the word that holds the segment registers in `struct sigcontext_64`
/// (arch/x86/include/uapi/asm/sigcontext.h: rsp, rip, eflags, then cs, gs, fs, ss of 16 bits each).
const RSP_BEFORE_SEGMENTS: u64 = 24;
/// The same for `rip`.
const RIP_BEFORE_SEGMENTS: u64 = 16;

/// A stopped thread, as far as its stacks are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Thread<'a> {
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// Its registers at the stop.
    pub regs: &'a libc::user_regs_struct,
}

impl Thread<'_> {
    /// The general registers but for the stack pointer, with their names.
    fn words(&self) -> [(&'static str, u64); 15] {
        let r = self.regs;
        [
            ("rax", r.rax),
            ("rdx", r.rdx),
            ("rcx", r.rcx),
            ("rbx", r.rbx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ]
    }
}

/// Where a word was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The program counter.
    Pc,
    /// A general register. Hand-written assembly may keep a return address there (`vfork` does).
    Register(&'static str),
    /// A word of a stack.
    Stack(RemoteAddr),
}

impl Place {
    /// The address of the word, if it is on a stack.
    #[must_use]
    pub fn slot(self) -> Option<u64> {
        match self {
            Place::Stack(at) => Some(at.0),
            Place::Pc | Place::Register(_) => None,
        }
    }
}

/// A word in a watched range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Where it is.
    pub place: Place,
    /// Its value.
    pub value: u64,
}

/// Why a piece of memory counts as one of the thread's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackKind {
    /// The thread's own, and it runs on it.
    Own,
    /// The thread runs on it, and it is not its own: an alternate signal stack, a coroutine's.
    Foreign,
    /// The thread's own while it runs on another.
    Suspended,
    /// A signal frame says that a context on it was interrupted.
    Interrupted,
}

/// A piece of memory that was scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// From where to where.
    pub range: Range<u64>,
    /// Why.
    pub kind: StackKind,
}

/// What a scan of one thread found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Words in watched ranges, the program counter first, then registers, then stacks from the innermost on.
    pub hits: Vec<Hit>,
    /// There were more than [`MAX_HITS`]; the rest is not in `hits`.
    pub more_hits: bool,
    /// The stacks looked at.
    pub stacks: Vec<Stack>,
    /// Bytes compared.
    pub bytes: u64,
}

impl Scan {
    /// Whether the thread runs on a stack that is not its own.
    #[must_use]
    pub fn foreign(&self) -> bool {
        self.stacks.iter().any(|s| s.kind == StackKind::Foreign)
    }
}

/// Why a scan could not be completed; without a complete scan nothing is proved by it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanFailure {
    /// The stack pointer does not point into memory.
    #[error("its stack pointer {0} points to no stack")]
    NotMapped(RemoteAddr),
    /// The stacks are larger than [`SCAN_LIMIT`] or more than [`MAX_STACKS`].
    #[error("its stacks are larger than {} MiB or more than {MAX_STACKS}", SCAN_LIMIT >> 20)]
    TooLarge,
    /// A page of a stack cannot be read.
    #[error("its stack cannot be read at {0}")]
    Unreadable(RemoteAddr),
    /// A return address was replaced by the kernel's for a uretprobe, which keeps the true one to itself.
    #[error("a return probe (uretprobe) hides the return address at {0}; remove the probe")]
    ReturnProbe(RemoteAddr),
    /// It runs 32-bit code.
    #[error("it runs 32-bit code (cs {0:#x})")]
    Compat(u64),
    /// The target is gone.
    #[error(transparent)]
    Gone(#[from] Error),
}

/// The word that holds cs, gs, fs, ss in the signal frames of `thread`: the kernel writes 0 for gs and fs.
pub(crate) fn segments_word(regs: &libc::user_regs_struct) -> u64 {
    (regs.cs & 0xffff) | (regs.ss & 0xffff) << 48
}

fn is_stack_like(m: &Mapping) -> bool {
    m.read && m.write
}

/// The mappings around `addr` that are readable and writable and follow one another without a gap. An address in
/// the gap below `[stack]`, into which that grows, belongs to it.
pub(crate) fn run_around(maps: &Maps, addr: u64) -> Option<Range<u64>> {
    let all = maps.iter().as_slice();
    let mut first = all.partition_point(|m| m.end.0 <= addr);
    let hit = all.get(first)?;
    if !(is_stack_like(hit) && (hit.start.0 <= addr || hit.name == "[stack]")) {
        return None;
    }
    let mut last = first;
    while first > 0 && is_stack_like(&all[first - 1]) && all[first - 1].end == all[first].start {
        first -= 1;
    }
    while last + 1 < all.len() && is_stack_like(&all[last + 1]) && all[last].end == all[last + 1].start {
        last += 1;
    }
    Some(all[first].start.0..all[last].end.0)
}

/// Where the stack that `sp` points into ends: at the thread pointer if that follows without a gap, else where the
/// mappings do.
pub(crate) fn stack_end(maps: &Maps, sp: u64, fs_base: u64) -> Option<u64> {
    let run = run_around(maps, sp)?;
    Some(if sp < fs_base && fs_base < run.end { fs_base } else { run.end })
}

/// Reads and compares; keeps its buffer from one thread to the next.
#[derive(Debug, Default)]
pub struct Scanner {
    buffer: Vec<u8>,
}

impl Scanner {
    /// Scans all stacks of `thread`, which is stopped.
    ///
    /// `maps` may be older than the stop if the thread runs on its own stack, which [`Scan::foreign`] tells: a
    /// thread's own stack does not change its place.
    ///
    /// # Errors
    /// [`ScanFailure`] where the scan could not be completed.
    pub fn scan(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        thread: Thread<'_>,
        watch: &Watch,
    ) -> Result<Scan, ScanFailure> {
        let regs = thread.regs;
        // __USER32_CS is 0x23 (arch/x86/include/asm/segment.h).
        if regs.cs & 0xffff == 0x23 {
            return Err(ScanFailure::Compat(regs.cs));
        }
        let mut scan = Scan::default();
        // Behind a system call there is no way into a function by jumps alone, and most threads are there.
        let in_call = regs.orig_rax.cast_signed() >= 0;
        if watch.pc(regs.rip).is_some() || (!in_call && enters(memory, watch, regs.rip).is_some()) {
            scan.hits.push(Hit { place: Place::Pc, value: regs.rip });
        }
        for (name, value) in thread.words() {
            if watch.word(value).is_some() {
                scan.hits.push(Hit { place: Place::Register(name), value });
            }
        }
        self.stacks(maps, thread, &mut scan)?;
        let mut next = 0;
        while next < scan.stacks.len() {
            if canary!("one-stack-only") && next == 1 {
                break;
            }
            let stack = scan.stacks[next].clone();
            next += 1;
            self.scan_stack(memory, maps, thread, watch, &stack, &mut scan)?;
        }
        Ok(scan)
    }

    /// Finds the stacks that are known from the registers alone.
    fn stacks(&self, maps: &Maps, thread: Thread<'_>, scan: &mut Scan) -> Result<(), ScanFailure> {
        let (sp, fs_base) = (thread.regs.rsp, thread.regs.fs_base);
        let run = run_around(maps, sp).ok_or(ScanFailure::NotMapped(RemoteAddr(sp)))?;
        let end = stack_end(maps, sp, fs_base).ok_or(ScanFailure::NotMapped(RemoteAddr(sp)))?;
        let main = maps.iter().find(|m| m.name == "[stack]").filter(|_| thread.pid.0 == thread.tid.0);
        let on_main = main.is_some_and(|m| run.contains(&m.start.0));
        let below_thread_pointer = end == fs_base;
        // The first thread is at home on [stack] only: below its thread pointer a coroutine's stack may happen to lie.
        let own = on_main || (main.is_none() && below_thread_pointer);
        // In the gap below [stack] there is memory only if the stack has grown since `maps` was read; what cannot
        // be read there is not there (see scan_stack).
        let start = sp.saturating_sub(RED_ZONE);
        let start = if sp < run.start { start } else { start.max(run.start) };
        scan.stacks
            .push(Stack { range: start..end, kind: if own { StackKind::Own } else { StackKind::Foreign } });
        if let Some(m) = main.filter(|_| !on_main) {
            let run = run_around(maps, m.start.0).unwrap_or(m.start.0..m.end.0);
            scan.stacks.push(Stack { range: run, kind: StackKind::Suspended });
        }
        if !on_main
            && !below_thread_pointer
            && let Some(run) = run_around(maps, fs_base).filter(|r| r.start < fs_base)
        {
            // Thread stacks may be separated by guard pages within one mapping (glibc from 2.42 on).
            let start = highest_guard(thread, run.start..fs_base).unwrap_or(run.start);
            scan.stacks.push(Stack { range: start..fs_base, kind: StackKind::Suspended });
        }
        Ok(())
    }

    fn scan_stack(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        thread: Thread<'_>,
        watch: &Watch,
        stack: &Stack,
        scan: &mut Scan,
    ) -> Result<(), ScanFailure> {
        // Where a thread is running or was interrupted nearly every page is there, so that asking costs more than
        // reading; a suspended stack is read whole, from pages never touched to the last.
        let mut present = Presence::new(maps);
        if stack.kind == StackKind::Suspended {
            present.ask(thread.pid, thread.tid);
        }
        let segments = segments_word(thread.regs);
        // An ABI-conforming thread has an aligned stack pointer. One that has not may have pushed anywhere.
        let bytewise = !thread.regs.rsp.is_multiple_of(8);
        // The kernel's return trampoline lies in a mapping of this name (kernel/events/uprobes.c).
        let probes = maps.iter().find(|m| m.name == "[uprobes]").map_or((0, 0), |m| (m.start.0, m.len()));
        let mut hidden = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut contexts = Vec::new();
        let overlap = if bytewise { 7 } else { 0 };
        let result =
            present.for_each_piece(memory, stack.range.clone(), overlap, &mut buffer, |addr, bytes| {
                scan.bytes += bytes.len() as u64;
                if scan.bytes > SCAN_LIMIT {
                    return Err(ScanFailure::TooLarge);
                }
                let mut word_at = |offset: usize, word: u64| {
                    if word == segments {
                        contexts.push(addr + offset as u64);
                    }
                    if word.wrapping_sub(probes.0) < probes.1 {
                        hidden = Some(RemoteAddr(addr + offset as u64));
                    }
                    if !watch.may_contain(word) || watch.word(word).is_none() {
                        return;
                    }
                    if scan.hits.len() < MAX_HITS {
                        let place = Place::Stack(RemoteAddr(addr + offset as u64));
                        scan.hits.push(Hit { place, value: word });
                    } else {
                        scan.more_hits = true;
                    }
                };
                if bytewise {
                    for (i, w) in bytes.windows(8).enumerate() {
                        word_at(i, u64::from_le_bytes(w.try_into().unwrap_or_default()));
                    }
                } else {
                    for (i, w) in bytes.chunks_exact(8).enumerate() {
                        word_at(i * 8, u64::from_le_bytes(w.try_into().unwrap_or_default()));
                    }
                }
                Ok(())
            });
        self.buffer = buffer;
        result?;
        if let Some(at) = hidden {
            return Err(ScanFailure::ReturnProbe(at));
        }
        for at in contexts {
            let pc_at = RemoteAddr(at.wrapping_sub(RIP_BEFORE_SEGMENTS));
            if let Ok(pc) = memory.read_u64(pc_at)
                && watch.word(pc).is_none()
                && enters(memory, watch, pc).is_some()
            {
                scan.hits.push(Hit { place: Place::Stack(pc_at), value: pc });
            }
            self.interrupted(memory, maps, thread, at, scan)?;
        }
        Ok(())
    }

    /// Adds the stack of the context whose segment registers the kernel saved at `at`, unless it is known.
    fn interrupted(
        &self,
        memory: &Memory,
        maps: &Maps,
        thread: Thread<'_>,
        at: u64,
        scan: &mut Scan,
    ) -> Result<(), ScanFailure> {
        let Ok(sp) = memory.read_u64(RemoteAddr(at.wrapping_sub(RSP_BEFORE_SEGMENTS))) else {
            return Ok(());
        };
        // A context whose stack pointer points to no memory cannot be gone back to: the word was no context.
        let Some(end) = stack_end(maps, sp, thread.regs.fs_base) else { return Ok(()) };
        let run_start = run_around(maps, sp).map_or(sp, |r| r.start.min(sp));
        let start = sp.saturating_sub(RED_ZONE).max(run_start) & !7;
        if scan.stacks.iter().any(|s| s.range.start <= start && end <= s.range.end) {
            return Ok(());
        }
        if scan.stacks.len() == MAX_STACKS {
            return Err(ScanFailure::TooLarge);
        }
        scan.stacks.push(Stack { range: start..end, kind: StackKind::Interrupted });
        Ok(())
    }
}

/// Which pages of private anonymous mappings hold anything, from `/proc/PID/pagemap`
/// (Documentation/admin-guide/mm/pagemap.rst).
pub(crate) struct Presence<'a> {
    maps: &'a Maps,
    pagemap: Option<File>,
    flags: Vec<u8>,
}

/// The page is in memory.
const PM_PRESENT: u64 = 1 << 63;
/// The page is in swap, or is a marker that reads as such.
const PM_SWAP: u64 = 1 << 62;
/// The page is a guard (MADV_GUARD_INSTALL), which reads as swap too.
const PM_GUARD: u64 = 1 << 58;

/// The end of the highest guard page in `range`.
fn highest_guard(thread: Thread<'_>, range: Range<u64>) -> Option<u64> {
    /// Entries of pagemap asked for at once.
    const BATCH: u64 = 512;
    let pagemap = File::open(format!("/proc/{}/task/{}/pagemap", thread.pid, thread.tid)).ok()?;
    let mut flags = vec![0; BATCH as usize * 8];
    let (first, mut end) = (range.start / PAGE, range.end.div_ceil(PAGE));
    while first < end {
        let start = first.max(end.saturating_sub(BATCH));
        let flags = &mut flags[..((end - start) * 8) as usize];
        pagemap.read_exact_at(flags, start * 8).ok()?;
        let guard = |e: &[u8]| u64::from_le_bytes(e.try_into().unwrap_or_default()) & PM_GUARD != 0;
        if let Some(i) = flags.chunks_exact(8).rposition(guard) {
            return Some((start + i as u64 + 1) * PAGE);
        }
        end = start;
    }
    None
}

impl<'a> Presence<'a> {
    /// Takes all pages of `maps` to hold something.
    pub(crate) fn new(maps: &'a Maps) -> Self {
        Self { maps, pagemap: None, flags: Vec::new() }
    }

    /// Asks the kernel from now on; any thread of the process will do.
    pub(crate) fn ask(&mut self, pid: Pid, tid: Tid) {
        self.pagemap = File::open(format!("/proc/{pid}/task/{tid}/pagemap")).ok();
    }

    /// Calls `f` with the address and the bytes of every piece of `range` that may hold anything, in order; each
    /// piece but the last is a multiple of 8 long, plus `overlap` bytes of the next one.
    pub(crate) fn for_each_piece(
        &mut self,
        memory: &Memory,
        range: Range<u64>,
        overlap: u64,
        buffer: &mut Vec<u8>,
        mut f: impl FnMut(u64, &[u8]) -> Result<(), ScanFailure>,
    ) -> Result<(), ScanFailure> {
        buffer.resize(CHUNK + 8, 0);
        let mut at = range.start;
        while let Some(held) = self.next_held(at..range.end) {
            let mut step = CHUNK as u64;
            at = held.start;
            while at < held.end {
                // Up to the end of a page, so that what cannot be read is whole pieces.
                let end = held.end.min((at + step) & !(PAGE - 1)).max(at + 1);
                let piece = &mut buffer[..(range.end.min(end + overlap) - at) as usize];
                match memory.read(RemoteAddr(at), piece) {
                    Ok(()) => f(at, piece)?,
                    Err(e @ Error::TargetGone(_)) => return Err(e.into()),
                    Err(_) if step > PAGE => {
                        step = PAGE;
                        continue;
                    }
                    // In the gap below [stack] this means that there is nothing.
                    Err(_) if self.maps.find(RemoteAddr(at)).is_none() => {}
                    Err(_) => return Err(ScanFailure::Unreadable(RemoteAddr(at))),
                }
                at = end;
            }
        }
        Ok(())
    }

    /// The first part of `range` that may hold anything; `None` where nothing of it does.
    fn next_held(&mut self, range: Range<u64>) -> Option<Range<u64>> {
        /// Entries of pagemap asked for at once.
        const BATCH: u64 = 512;
        let mut at = range.start;
        while at < range.end {
            let mapping = self.maps.find(RemoteAddr(at));
            // Only of private anonymous memory does "not present" mean "never written".
            let (Some(pagemap), Some(mapping)) =
                (&self.pagemap, mapping.filter(|m| m.inode == 0 && !m.shared))
            else {
                return Some(at..range.end);
            };
            let first = at / PAGE;
            let pages = BATCH.min(range.end.min(mapping.end.0).div_ceil(PAGE) - first);
            self.flags.resize((pages * 8) as usize, 0);
            if pagemap.read_exact_at(&mut self.flags, first * 8).is_err() {
                return Some(at..range.end);
            }
            let mut held = self.flags.chunks_exact(8).map(|e| {
                let e = u64::from_le_bytes(e.try_into().unwrap_or_default());
                e & (PM_PRESENT | PM_SWAP) != 0 && e & PM_GUARD == 0
            });
            if let Some(n) = held.position(|h| h) {
                let start = first + n as u64;
                let end = held.position(|h| !h).map_or(first + pages, |more| start + 1 + more as u64);
                return Some(at.max(start * PAGE)..range.end.min(end * PAGE));
            }
            at = (first + pages) * PAGE;
        }
        None
    }
}
