//! Writing the text of this process, and memory near a library for what its functions' entries lead to.
//!
//! Text is written through `/proc/thread-self/mem`, which needs no mapping that is writable and executable, nor one that
//! changes from the one to the other, and so works under PR_SET_MDWE too. Memory near a library is mapped readable and
//! executable from the beginning and written the same way. All this happens while nobody can be in the library yet, under
//! the loader's lock; what is written is read back.

use super::elf::Object;
use super::entry::far;
use super::refusal::Refusal;
use super::syscall::{self, Errno, Fd, O_RDONLY, O_RDWR, PAGE, PROT_EXEC, PROT_READ, Pages};
use crate::layout::{CELL_JUMP, CELL_LEN, CELL_THUNK, NEAR_MAGIC, NearHead, Site, StubTemplate, THUNK_MAX};
use core::sync::atomic::AtomicI32;

/// How far a 32-bit displacement reaches, less a page for the instruction itself and what it addresses behind its end.
const REACH: u64 = (1 << 31) - PAGE;
/// Room kept between a new mapping and its neighbours, if there is enough.
const GUARD: u64 = 64 * 1024;
/// Room left for the heap to grow.
const HEAP_RESERVE: u64 = 1 << 30;
/// Room left for the first thread's stack to grow.
const STACK_RESERVE: u64 = 256 << 20;
/// One past the last address of user space with 4-level page tables.
const USER_END: u64 = 0x7fff_ffff_f000;
/// Lowest address to use.
const LOWEST: u64 = 64 * 1024;
/// How often a place is looked for that another thread has taken meanwhile.
const ATTEMPTS: usize = 16;
/// Bytes read of the list of mappings at once; a line is shorter.
const LINES: usize = 64 * 1024;

/// The gate of all stubs that are made here: always open.
static GATE: AtomicI32 = AtomicI32::new(0);

/// The text of this process, for writing.
pub struct Text(Fd);

impl Text {
    /// # Errors
    /// [`Refusal::NoProc`] where there is no /proc, or it may not be written.
    pub fn open() -> Result<Self, Refusal> {
        // Not first by the process's own directory, in which a leader that has left keeps nothing open.
        let open = [c"/proc/thread-self/mem", c"/proc/self/mem"].into_iter().map(|path| {
            // SAFETY: a string that ends with a zero.
            unsafe { syscall::open(path.as_ptr().cast(), O_RDWR) }
        });
        let mut last = Err(Errno(0));
        for open in open {
            last = open;
            if last.is_ok() {
                break;
            }
        }
        last.map(Self).map_err(Refusal::NoProc)
    }

    /// Writes `bytes` at `at`, and looks whether they are there.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.0.write_at(bytes, at).map_err(|error| Refusal::Write { at, error })?;
        let mut at = at;
        for piece in bytes.chunks(64) {
            let mut now = [0; 64];
            let now = now.get_mut(..piece.len()).unwrap_or(&mut []);
            self.0.read_at(now, at).map_err(|error| Refusal::Write { at, error })?;
            if now != piece {
                return Err(Refusal::NotWritten { at });
            }
            at = at.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Leads a function to `to`, whether it is original or leads elsewhere.
    ///
    /// # Errors
    /// [`Refusal::OutOfReach`], or where the kernel refuses.
    pub fn lead(&self, site: &Site, to: u64) -> Result<(), Refusal> {
        let jump = site.jump_to(to).ok_or(Refusal::OutOfReach { from: site.jump, to })?;
        self.write(site.jump, &jump)?;
        if site.is_springboard() {
            let rel = site.jump.wrapping_sub(site.place).wrapping_sub(2) as u8;
            self.write(site.place, &[0xeb, rel])?;
        }
        Ok(())
    }

    /// Brings a function's original bytes back.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn restore(&self, site: &Site) -> Result<(), Refusal> {
        self.write(site.place, site.original.get(..site.overwritten()).unwrap_or(&[]))?;
        if site.is_springboard() {
            self.write(site.jump, &site.padding)?;
        }
        Ok(())
    }

    /// Puts a far jump to `to` into a cell; returns its address.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn trampoline(&self, cell: u64, to: u64) -> Result<u64, Refusal> {
        let at = cell.wrapping_add(CELL_JUMP as u64);
        self.write(at, &far(to))?;
        Ok(at)
    }

    /// Leads a function to `to`, by a far jump in its cell where that is too far away; returns where its own jump leads.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn lead_far(&self, site: &Site, cell: u64, to: u64) -> Result<u64, Refusal> {
        let landing = if site.reaches(to) { to } else { self.trampoline(cell, to)? };
        self.lead(site, landing)?;
        Ok(landing)
    }

    /// Puts the stub of a function into its cell, which leads from `source` to `goal`; returns its address. No pending thread is
    /// ever held up in it.
    ///
    /// # Errors
    /// [`Refusal::NoStub`] where the template is none, or the kernel refuses.
    pub fn fill_stub(
        &self,
        cell: u64,
        template: &StubTemplate,
        source: u64,
        goal: u64,
    ) -> Result<u64, Refusal> {
        let mut code = template.code;
        let code =
            code.get_mut(..template.len as usize).filter(|code| !code.is_empty()).ok_or(Refusal::NoStub)?;
        let open = GATE.as_ptr().addr() as u64;
        let holes = [(template.gate_at, open), (template.source_at, source), (template.goal_at, goal)];
        for (at, address) in holes {
            let hole = code.get_mut(usize::from(at)..).and_then(|rest| rest.first_chunk_mut());
            *hole.ok_or(Refusal::NoStub)? = address.to_le_bytes();
        }
        self.write(cell, code)?;
        Ok(cell)
    }

    /// Puts the thunk of a function into its cell; returns its address.
    ///
    /// # Errors
    /// Where it cannot be made, or the kernel refuses.
    pub fn fill_thunk(&self, cell: u64, site: &Site) -> Result<u64, Refusal> {
        let at = cell.wrapping_add(CELL_THUNK as u64);
        let mut code = [0; THUNK_MAX];
        let len = site.thunk(at, &mut code)?;
        self.write(at, code.get(..len).unwrap_or(&[]))?;
        Ok(at)
    }
}

/// Memory near a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl Near {
    /// Maps memory for the cells of `count` functions, within reach of all of the object.
    ///
    /// # Errors
    /// Where there is no place, no memory, or no way to write it.
    pub fn map(object: &Object, count: usize, text: &Text) -> Result<Self, Refusal> {
        let range = object.range().ok_or(Refusal::NoHeader)?;
        let len = (size_of::<NearHead>() + count.saturating_mul(CELL_LEN)) as u64;
        let len = len.checked_next_multiple_of(PAGE).ok_or(Refusal::NoPlace)?;
        for _ in 0..ATTEMPTS {
            let at = place(len, range)?.ok_or(Refusal::NoPlace)?;
            // Somebody else may have taken it since.
            match syscall::map(at, len as usize, PROT_READ | PROT_EXEC) {
                Ok(start) => {
                    let near = Self { start, len };
                    if let Err(refusal) = near.write_head(text) {
                        // SAFETY: nobody knows of it yet.
                        unsafe { near.unmap() };
                        return Err(refusal);
                    }
                    return Ok(near);
                }
                Err(Errno(17)) => {}
                Err(error) => return Err(Refusal::NoMemory(error)),
            }
        }
        Err(Refusal::NoPlace)
    }

    fn write_head(&self, text: &Text) -> Result<(), Refusal> {
        let mut head = [0; size_of::<NearHead>()];
        let words = [NEAR_MAGIC, self.start, self.len, 0];
        for (to, from) in head.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *to = from;
        }
        text.write(self.start, &head)
    }

    /// Where the cell at `index` lies.
    pub fn cell(&self, index: usize) -> u64 {
        let offset = size_of::<NearHead>() + index.wrapping_mul(CELL_LEN);
        self.start.wrapping_add(offset as u64)
    }

    /// Gives it back.
    ///
    /// # Safety
    /// No entry may lead there any more, and no thread be in it.
    pub unsafe fn unmap(self) {
        // SAFETY: the caller's promise.
        unsafe { syscall::unmap(self.start, self.len as usize) };
    }
}

/// A free place for `len` bytes within reach of all of `near`, as close as possible; `None` where there is none.
fn place(len: u64, near: (u64, u64)) -> Result<Option<u64>, Refusal> {
    // SAFETY: a literal that ends with a zero.
    let list = unsafe { syscall::open(c"/proc/thread-self/maps".as_ptr().cast(), O_RDONLY) };
    let list = list.map_err(Refusal::NoProc)?;
    let mut buffer = Pages::new(LINES).map_err(Refusal::NoMemory)?;
    let mut search = Search { len, near, brk: syscall::brk(), ..Search::default() };
    let mut filled = 0;
    loop {
        let read = list.read(buffer.get_mut(filled..).unwrap_or(&mut [])).map_err(Refusal::NoProc)?;
        filled += read;
        let bytes = buffer.get(..filled).unwrap_or(&[]);
        let mut done = 0;
        while let Some(rest) = bytes.get(done..)
            && let Some(end) = rest.iter().position(|byte| *byte == b'\n')
        {
            search.line(rest.get(..end).unwrap_or(&[]));
            done += end + 1;
        }
        if read == 0 {
            break;
        }
        filled = filled.saturating_sub(done);
        let first = buffer.as_mut_ptr();
        // SAFETY: both lie in the buffer, since no more was done than it holds.
        unsafe { core::ptr::copy(first.add(done), first, filled) };
    }
    search.gap(USER_END, false);
    Ok(search.best.or(search.second).map(|(_, at)| at))
}

/// The search for a gap between mappings.
#[derive(Default)]
struct Search {
    len: u64,
    near: (u64, u64),
    /// The end of the heap, or where it will begin.
    brk: u64,
    /// The end of the last mapping.
    last: u64,
    after_heap: bool,
    /// The best place with room around it, and the best without: distance and address.
    best: Option<(u64, u64)>,
    second: Option<(u64, u64)>,
}

impl Search {
    /// A line of /proc/PID/maps: `start-end perms offset dev inode name`, the lowest first.
    fn line(&mut self, line: &[u8]) {
        let Some((start, rest)) = hexadecimal(line) else { return };
        let Some((end, _)) = rest.get(1..).and_then(hexadecimal) else { return };
        self.gap(start, line.ends_with(b"[stack]"));
        self.last = end;
        self.after_heap = line.ends_with(b"[heap]");
    }

    /// Looks at what is free up to `end`.
    fn gap(&mut self, end: u64, stack_above: bool) {
        let start = self.last.max(LOWEST);
        let heap = if self.after_heap || self.brk == self.last {
            HEAP_RESERVE
        } else if self.brk > start && self.brk < end {
            self.brk.wrapping_sub(start).saturating_add(HEAP_RESERVE)
        } else {
            0
        };
        let stack = if stack_above { STACK_RESERVE } else { 0 };
        for guard in [GUARD, PAGE] {
            let low = start.saturating_add(heap.max(guard)).max(self.near.1.saturating_sub(REACH));
            let low = low.saturating_add(PAGE - 1) & !(PAGE - 1);
            let high =
                end.saturating_sub(stack.max(guard)).min(self.near.0.saturating_add(REACH)) & !(PAGE - 1);
            if low.checked_add(self.len).is_none_or(|needed| needed > high) {
                continue;
            }
            let at = if low >= self.near.1 { low } else { high.wrapping_sub(self.len) };
            let distance = at.wrapping_add(self.len).max(self.near.1).wrapping_sub(at.min(self.near.0));
            let best = if guard == GUARD { &mut self.best } else { &mut self.second };
            if best.is_none_or(|(other, _)| distance < other) {
                *best = Some((distance, at));
            }
        }
    }
}

/// The hexadecimal number that `text` begins with, and what follows.
fn hexadecimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut value, mut len) = (0u64, 0);
    for byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => break,
        };
        value = value << 4 | u64::from(digit);
        len += 1;
    }
    if len == 0 { None } else { Some((value, text.get(len..)?)) }
}
