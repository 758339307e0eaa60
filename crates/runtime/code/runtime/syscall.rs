//! The system calls that the runtime makes, without the target's C library: in the middle of a dlopen its locks, its errno and its
//! cancellation points are somebody else's. A call that a signal interrupts is made again.
//!
//! What is opened is closed, and what is mapped is unmapped, when its owner here is dropped.

use core::arch::asm;
use core::ops::{Deref, DerefMut};
use core::ptr;

/// A reason of the kernel's, as in errno.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

const READ: usize = 0;
const CLOSE: usize = 3;
const FSTAT: usize = 5;
const MMAP: usize = 9;
const MPROTECT: usize = 10;
const MUNMAP: usize = 11;
const BRK: usize = 12;
const PREAD64: usize = 17;
const PWRITE64: usize = 18;
const MREMAP: usize = 25;
const NANOSLEEP: usize = 35;
const GETPID: usize = 39;
const GETTID: usize = 186;
const OPENAT: usize = 257;
const KCMP: usize = 312;

/// There is no such process.
pub const ESRCH: i32 = 3;
const EINTR: i32 = 4;
/// The file ends before what was asked for.
pub const EIO: i32 = 5;
/// There are no more system calls than this many errno values below zero (`MAX_ERRNO` of the kernel).
const ERRNO_MAX: usize = 4095;

const AT_FDCWD: usize = -100isize as usize;
/// `O_RDONLY` of fcntl.h, and so on.
pub const O_RDONLY: i32 = 0;
pub const O_RDWR: i32 = 2;
pub const O_NOCTTY: i32 = 0o400;
pub const O_NONBLOCK: i32 = 0o4000;
const O_CLOEXEC: i32 = 0o2_000_000;
const PROT_NONE: usize = 0;
/// `PROT_READ` of sys/mman.h, and so on.
pub const PROT_READ: usize = 1;
pub const PROT_WRITE: usize = 2;
pub const PROT_EXEC: usize = 4;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
/// The size of a page.
pub const PAGE: u64 = 4096;

/// One system call, once.
///
/// # Safety
/// That of the call.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    let result: usize;
    // SAFETY: the kernel takes registers as its ABI says and keeps all but rax, rcx and r11; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    let negative = result.wrapping_neg();
    if (1..=ERRNO_MAX).contains(&negative) { Err(Errno(negative as i32)) } else { Ok(result) }
}

/// The number of this process (getpid(2)).
pub fn process() -> Result<u32, Errno> {
    // SAFETY: it changes nothing.
    unsafe { call(GETPID, [0; 6]) }.map(|pid| pid as u32)
}

/// Whether two processes have the same memory (kcmp(2)).
pub fn share_memory(one: u32, other: u32) -> Result<bool, Errno> {
    const KCMP_VM: usize = 1;
    // SAFETY: it changes nothing.
    unsafe { call(KCMP, [one as usize, other as usize, KCMP_VM, 0, 0, 0]) }.map(|order| order == 0)
}

/// One system call that may be interrupted.
///
/// # Safety
/// That of the call, which may be made several times.
unsafe fn again(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the caller's promise.
        match unsafe { call(number, arguments) } {
            Err(Errno(EINTR)) => {}
            other => return other,
        }
    }
}

/// An open file.
#[derive(Debug)]
pub struct Fd(i32);

/// What of `struct stat` is used here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
    /// Whether it is a regular file.
    pub regular: bool,
    /// `st_size`
    pub size: u64,
}

/// Opens the file of this name, which ends with a zero; it is closed by exec.
///
/// # Safety
/// `path` must end with a zero.
pub unsafe fn open(path: *const u8, flags: i32) -> Result<Fd, Errno> {
    let flags = (flags | O_CLOEXEC) as usize;
    // SAFETY: the caller's promise.
    let fd = unsafe { again(OPENAT, [AT_FDCWD, path.addr(), flags, 0, 0, 0]) }?;
    Ok(Fd(fd as i32))
}

impl Fd {
    fn transfer(&self, number: usize, at: usize, len: usize, offset: u64) -> Result<usize, Errno> {
        // SAFETY: the callers give memory that is theirs, of that length.
        unsafe { again(number, [self.0 as usize, at, len, offset as usize, 0, 0]) }
    }

    /// Reads at the file's own position; 0 at its end.
    pub fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        self.transfer(READ, to.as_mut_ptr().addr(), to.len(), 0)
    }

    /// Fills `to` with what lies at `offset`.
    ///
    /// # Errors
    /// [`EIO`] where the file ends before.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.wrapping_add(done as u64);
            match self.transfer(PREAD64, rest.as_mut_ptr().addr(), rest.len(), at)? {
                0 => return Err(Errno(EIO)),
                read => done = done.wrapping_add(read),
            }
        }
        Ok(())
    }

    /// Writes all of `from` at `offset`.
    pub fn write_at(&self, from: &[u8], offset: u64) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.wrapping_add(done as u64);
            match self.transfer(PWRITE64, rest.as_ptr().addr(), rest.len(), at)? {
                0 => return Err(Errno(EIO)),
                written => done = done.wrapping_add(written),
            }
        }
        Ok(())
    }

    /// What the kernel says of the file.
    pub fn stat(&self) -> Result<Stat, Errno> {
        // struct stat of x86-64: st_dev, st_ino, st_nlink, st_mode ..., st_rdev, st_size ...; 144 bytes.
        let mut raw = [0u64; 18];
        // SAFETY: the buffer has the length of the structure.
        unsafe { again(FSTAT, [self.0 as usize, raw.as_mut_ptr().addr(), 0, 0, 0, 0]) }?;
        let [device, inode, _, mode, _, _, size, ..] = raw;
        Ok(Stat { device, inode, regular: mode & 0o17_0000 == 0o10_0000, size })
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // Not again after EINTR: the descriptor is closed all the same.
        // SAFETY: it is ours.
        let _ = unsafe { call(CLOSE, [self.0 as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Maps private memory of no file: anywhere where `at` is 0, else exactly there, and never over something else.
pub fn map(at: u64, len: usize, protection: usize) -> Result<u64, Errno> {
    const EEXIST: i32 = 17;
    let fixed = if at == 0 { 0 } else { MAP_FIXED_NOREPLACE };
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | fixed;
    // SAFETY: memory that nobody uses yet.
    let found = unsafe { again(MMAP, [at as usize, len, protection, flags, usize::MAX, 0]) }? as u64;
    if at != 0 && found != at {
        // Linux before 4.17 takes the address for a wish.
        // SAFETY: it was mapped just now.
        unsafe { unmap(found, len) };
        return Err(Errno(EEXIST));
    }
    Ok(found)
}

/// Maps the file that is mapped shared at `page` once more, from the same place in it on, with the same access: `len` bytes, anywhere
/// (mremap(2) with an old size of 0).
pub fn map_again(page: u64, len: usize) -> Result<u64, Errno> {
    const MREMAP_MAYMOVE: usize = 1;
    // SAFETY: it only adds a mapping.
    unsafe { again(MREMAP, [page as usize, 0, len, MREMAP_MAYMOVE, 0, 0]) }.map(|at| at as u64)
}

/// Puts private memory of no file, without access, in the place of what is mapped there.
///
/// # Safety
/// Nobody may use what is there any more.
pub unsafe fn map_over(at: u64, len: usize) -> Result<(), Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { again(MMAP, [at as usize, len, PROT_NONE, flags, usize::MAX, 0]) }.map(drop)
}

/// Changes the access to memory.
///
/// # Safety
/// Nobody may rely on the access that is taken away.
pub unsafe fn protect(at: u64, len: usize, protection: usize) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { again(MPROTECT, [at as usize, len, protection, 0, 0, 0]) }.map(drop)
}

/// Unmaps memory. What the kernel refuses stays.
///
/// # Safety
/// Nobody may use it any more.
pub unsafe fn unmap(at: u64, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { again(MUNMAP, [at as usize, len, 0, 0, 0, 0]) };
}

/// The end of the heap, or where it would begin.
pub fn brk() -> u64 {
    // SAFETY: a wish that cannot be fulfilled changes nothing.
    unsafe { call(BRK, [0; 6]) }.map_or(0, |end| end as u64)
}

/// Waits for so many nanoseconds, less than a second, or until a signal comes.
pub fn sleep(nanoseconds: u64) {
    let time = [0, nanoseconds];
    // SAFETY: a `struct timespec`.
    let _ = unsafe { call(NANOSLEEP, [time.as_ptr().addr(), 0, 0, 0, 0, 0]) };
}

/// The number of the calling thread.
pub fn gettid() -> u64 {
    // SAFETY: it cannot fail.
    unsafe { call(GETTID, [0; 6]) }.map_or(0, |id| id as u64)
}

/// Whether the calling thread is under seccomp, or nobody says. It opens, reads and closes a file, as every dlopen does.
pub fn is_filtered() -> bool {
    // SAFETY: a literal that ends with a zero.
    let Ok(status) = (unsafe { open(c"/proc/thread-self/status".as_ptr().cast(), O_RDONLY) }) else {
        return true;
    };
    // It has some 1500 bytes.
    let mut text = [0; 4096];
    let mut filled = 0;
    while let Some(rest) = text.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match status.read(rest) {
            Ok(read) if read > 0 => filled += read,
            _ => break,
        }
    }
    let mut lines = text.get(..filled).unwrap_or(&[]).split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"Seccomp:")) != Some(b"\t0")
}

/// The calling thread, without a system call: where its thread block lies.
pub fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: the ABI of thread-local storage has that address at the block's beginning (x86-64 psABI; ELF TLS, variant II).
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

/// Memory for a while, zeroed, of whole pages.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    /// At least `len` bytes.
    pub fn new(len: usize) -> Result<Self, Errno> {
        const ENOMEM: i32 = 12;
        let whole = len.max(1).checked_next_multiple_of(PAGE as usize).ok_or(Errno(ENOMEM))?;
        let start = map(0, whole, PROT_READ | PROT_WRITE)?;
        Ok(Self { start: ptr::with_exposed_provenance_mut(start as usize), len: whole })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: it is mapped, and ours.
        unsafe { core::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: it is mapped, and ours.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more.
        unsafe { unmap(self.start.addr() as u64, self.len) };
    }
}
