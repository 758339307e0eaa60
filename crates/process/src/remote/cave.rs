//! The cave: where the code lies that a thread runs for us, and the code itself.
//!
//! Before anything of ours is mapped, code has to go where executable memory already is, and where no instruction of the
//! program is. A text segment is mapped in whole pages and its code seldom fills the last one; the linker fills that page
//! with zeros. A run of zeros behind the segment's last byte (`p_filesz` of its program header), in a private file-backed
//! mapping, is the cave; failing that, the same at the end of the kernel's vdso. A library that another thread unloads while
//! one runs there would take the code with it, so what stays is looked at first (`by_stay`).
//!
//! The code is always the same bytes. A tool that is killed leaves them there, perhaps with a thread still in them: a
//! cave that holds exactly this code is used as it is, and cleared only when all threads are stopped and none is in it
//! ([`clear_leftover`]). The page that was written stays a private copy.
#![allow(unsafe_code)]

use crate::target::Target;
use crate::target::maps::{Mapping, Maps};
use crate::target::memory::Memory;
use crate::threads::{StoppedProcess, StoppedThread};
use crate::{RemoteAddr, Result};
use std::arch::global_asm;
use std::ops::Range;

// The interpreter of remote programs. Position independent; needs of memory only what rbx and rbp point to.
//
//   rbx   the next record: number, 6 pointers to arguments, result, next record, next record after an error
//   rbp   the saved registers in the order of the pops below, then rip; rbp-8: the record being worked on
//   rsp   below all of that, so that a signal handler would not overwrite it
//
// A negative number ends the program: all registers are taken back, and `ret 128` jumps to the saved rip while it gives
// back the red zone (System V ABI, 128 bytes), below which rip was stored. Until that instruction everything still
// needed lies above rsp.
global_asm!(
    ".pushsection .rodata.ugraft_cave,\"a\",@progbits",
    ".globl ugraft_cave_code",
    ".hidden ugraft_cave_code",
    ".globl ugraft_cave_code_end",
    ".hidden ugraft_cave_code_end",
    "ugraft_cave_code:",
    "2: mov [rbp - 8], rbx",
    "mov rax, [rbx]",
    "test rax, rax",
    "js 4f",
    "mov rdi, [rbx + 8]",
    "mov rdi, [rdi]",
    "mov rsi, [rbx + 16]",
    "mov rsi, [rsi]",
    "mov rdx, [rbx + 24]",
    "mov rdx, [rdx]",
    "mov r10, [rbx + 32]",
    "mov r10, [r10]",
    "mov r8, [rbx + 40]",
    "mov r8, [r8]",
    "mov r9, [rbx + 48]",
    "mov r9, [r9]",
    "syscall",
    "mov [rbx + 56], rax",
    "cmp rax, -4095",
    "jae 3f",
    "mov rbx, [rbx + 64]",
    "jmp 2b",
    "3: mov rbx, [rbx + 72]",
    "jmp 2b",
    "4: mov rsp, rbp",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "pop rbp",
    "ret 128",
    "ugraft_cave_code_end:",
    ".popsection",
);

unsafe extern "C" {
    static ugraft_cave_code: u8;
    static ugraft_cave_code_end: u8;
}

/// The interpreter's machine code.
#[must_use]
pub(crate) fn code() -> &'static [u8] {
    let (start, end) = (&raw const ugraft_cave_code, &raw const ugraft_cave_code_end);
    // SAFETY: both symbols bound the constant that the assembler put into .rodata above.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Where [`code`] can lie in a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cave {
    /// First byte.
    pub(crate) addr: RemoteAddr,
    /// It already holds the code, left there by a tool that was killed.
    pub(crate) leftover: bool,
}

impl Cave {
    /// Finds one; `None` if no mapping has room.
    pub(crate) fn find(memory: &Memory, maps: &Maps) -> Result<Option<Self>> {
        for mapping in by_stay(maps) {
            let Some(slack) = slack(memory, maps, mapping) else { continue };
            let Some(addr) = aligned_start(&slack) else { continue };
            let Ok(found) = memory.read_vec(addr, code().len()) else { continue };
            if found == code() {
                return Ok(Some(Self { addr, leftover: true }));
            }
            if found.iter().all(|&b| b == 0) {
                return Ok(Some(Self { addr, leftover: false }));
            }
        }
        Ok(None)
    }

    /// Its addresses.
    pub(crate) fn range(&self) -> Range<RemoteAddr> {
        self.addr..RemoteAddr(self.addr.0 + code().len() as u64)
    }

    /// Puts the code there.
    pub(crate) fn fill(&self, memory: &Memory) -> Result<()> {
        if self.leftover { Ok(()) } else { memory.write(self.addr, code()) }
    }

    /// Puts back what was there.
    pub(crate) fn clear(&self, memory: &Memory) -> Result<()> {
        memory.write(self.addr, &vec![0; code().len()])
    }
}

/// The mappings in the order in which they are likely to stay: those of the program, which lies lowest; of others the highest first, as
/// the kernel maps what comes later, a library that can go again, below what is there; what is no file last.
fn by_stay(maps: &Maps) -> Vec<&Mapping> {
    let file = |m: &Mapping| (m.dev, m.inode);
    let program = maps.iter().find(|m| m.inode != 0).map(file);
    let rank = |m: &Mapping| match Some(file(m)) {
        _ if m.inode == 0 => 2,
        of if of == program => 0,
        _ => 1,
    };
    let mut all: Vec<_> = maps.iter().collect();
    all.sort_by_key(|m| (rank(m), std::cmp::Reverse(m.start)));
    all
}

/// Puts back what was in the caves that killed tools left filled, if no thread is in one, nor will come back to one from a
/// signal handler. Returns whether any is left.
///
/// # Errors
/// [`Error::Memory`](crate::Error::Memory), [`Error::TargetGone`](crate::Error::TargetGone).
pub fn clear_leftover(target: &Target, stopped: &StoppedProcess) -> Result<bool> {
    clear(target, &filled(target, &target.maps()?), stopped)
}

/// The caves among `maps` that hold the code.
pub(crate) fn filled(target: &Target, maps: &Maps) -> Vec<Cave> {
    let memory = target.memory();
    let places = maps.iter().filter_map(|mapping| aligned_start(&slack(memory, maps, mapping)?));
    let holds_code =
        |addr: &RemoteAddr| memory.read_vec(*addr, code().len()).is_ok_and(|found| found == code());
    places.filter(holds_code).map(|addr| Cave { addr, leftover: true }).collect()
}

/// [`clear_leftover`], with the caves already found.
pub(crate) fn clear(target: &Target, filled: &[Cave], stopped: &StoppedProcess) -> Result<bool> {
    let (memory, maps) = (target.memory(), target.maps()?);
    let mut left = false;
    for cave in filled {
        if stopped.threads().iter().any(|thread| leads_to(memory, &maps, thread, &cave.range())) {
            left = true;
        } else {
            cave.clear(memory)?;
        }
    }
    Ok(left)
}

/// Whether the thread is in the range, or a word on its stack points there: the program counter that a signal handler
/// returns to is such a word.
fn leads_to(memory: &Memory, maps: &Maps, thread: &StoppedThread, range: &Range<RemoteAddr>) -> bool {
    if range.contains(&thread.pc()) {
        return true;
    }
    let sp = RemoteAddr(thread.sp().0 & !7);
    let Some(stack) = maps.find(sp) else { return false };
    // What cannot be read may hold anything.
    let Ok(used) = memory.read_vec(sp, (stack.end.0 - sp.0) as usize) else { return true };
    used.chunks_exact(8)
        .any(|word| word.try_into().is_ok_and(|w| range.contains(&RemoteAddr(u64::from_le_bytes(w)))))
}

/// The code's place in a piece of slack: a few bytes behind its beginning, so that code that runs off the end of the
/// program's own finds the same zeros there as before.
fn aligned_start(slack: &Range<RemoteAddr>) -> Option<RemoteAddr> {
    const ALIGN: u64 = 64;
    let addr = RemoteAddr(slack.start.0.checked_add(ALIGN)?.next_multiple_of(ALIGN));
    (addr.0 + code().len() as u64 <= slack.end.0).then_some(addr)
}

/// Bytes of the mapping's last page that belong to no segment.
fn slack(memory: &Memory, maps: &Maps, mapping: &Mapping) -> Option<Range<RemoteAddr>> {
    if !mapping.exec || mapping.shared || mapping.write {
        return None;
    }
    let end = if mapping.name == "[vdso]" {
        end_of_elf(memory, mapping.start, mapping.len())?
    } else if mapping.inode != 0 {
        // The file's own headers, as the same file's first mapping shows them.
        let head = maps.iter().filter(|m| m.start <= mapping.start && m.offset.0 == 0).rfind(|m| {
            (m.dev, m.inode) == (mapping.dev, mapping.inode) && m.name == mapping.name && m.read && !m.shared
        })?;
        end_of_text(memory, head.start, mapping)?
    } else {
        return None;
    };
    // No more than the last page: what lies before is not padding, whatever the headers say.
    (end < mapping.end && mapping.end.0 - end.0 < PAGE).then_some(end..mapping.end)
}

const PAGE: u64 = 4096;

/// One past the last byte that the executable segment that `mapping` shows has in the file.
fn end_of_text(memory: &Memory, head: RemoteAddr, mapping: &Mapping) -> Option<RemoteAddr> {
    const PT_LOAD: u32 = 1;
    const PF_X: u32 = 1;
    segments(memory, head)?.into_iter().find_map(|s| {
        let in_mapping = s.kind == PT_LOAD
            && s.flags & PF_X != 0
            && s.file_size == s.mem_size
            && s.offset / PAGE * PAGE >= mapping.offset.0
            && s.offset - mapping.offset.0 < mapping.len();
        let end = (s.offset.checked_add(s.file_size)?).checked_sub(mapping.offset.0)?;
        // The mapping is the whole of the segment's rest: not split, not cut off.
        (in_mapping && end.next_multiple_of(PAGE) == mapping.len()).then(|| RemoteAddr(mapping.start.0 + end))
    })
}

/// One past the last byte that the vdso, a whole ELF file in memory, uses.
fn end_of_elf(memory: &Memory, start: RemoteAddr, len: u64) -> Option<RemoteAddr> {
    let head = header(memory, start)?;
    let (table, size, count) = (u64_at(&head, 40)?, u16_at(&head, 58)?, u16_at(&head, 60)?);
    let sections = table.checked_add(u64::from(size) * u64::from(count))?;
    let end = segments(memory, start)?
        .iter()
        .filter_map(|s| s.offset.checked_add(s.file_size))
        .fold(sections, u64::max);
    (end < len).then_some(RemoteAddr(start.0 + end))
}

struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    file_size: u64,
    mem_size: u64,
}

/// The program headers of the ELF64 file whose first page is mapped at `start`.
fn segments(memory: &Memory, start: RemoteAddr) -> Option<Vec<Segment>> {
    const ENTRY: u16 = 56;
    const MAX_BYTES: u64 = PAGE - 64;
    let head = header(memory, start)?;
    let (table, size, count) = (u64_at(&head, 32)?, u16_at(&head, 54)?, u16_at(&head, 56)?);
    let bytes = u64::from(ENTRY) * u64::from(count);
    if size != ENTRY || table >= PAGE || bytes > MAX_BYTES {
        return None;
    }
    let table = memory.read_vec(RemoteAddr(start.0 + table), bytes as usize).ok()?;
    table
        .chunks_exact(usize::from(ENTRY))
        .map(|h| {
            Some(Segment {
                kind: u32_at(h, 0)?,
                flags: u32_at(h, 4)?,
                offset: u64_at(h, 8)?,
                file_size: u64_at(h, 32)?,
                mem_size: u64_at(h, 40)?,
            })
        })
        .collect()
}

fn header(memory: &Memory, start: RemoteAddr) -> Option<Vec<u8>> {
    let head = memory.read_vec(start, 64).ok()?;
    head.starts_with(b"\x7fELF\x02\x01").then_some(head)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_comes_first() {
        let text = "00400000-00401000 r-xp 00000000 08:01 7 /bin/program\n\
                    00600000-00601000 rw-p 00000000 00:00 0 [heap]\n\
                    7f0000000000-7f0000001000 r-xp 00000000 08:01 9 /lib/plugin.so\n\
                    7f0000100000-7f0000101000 r-xp 00000000 08:01 8 /lib/libc.so\n\
                    7fff00000000-7fff00001000 r-xp 00000000 00:00 0 [vdso]\n";
        let maps = Maps::parse(text).unwrap();
        let names: Vec<_> = by_stay(&maps).iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["/bin/program", "/lib/libc.so", "/lib/plugin.so", "[vdso]", "[heap]"]);
    }
}
