//! For tests that execute generated code in their own process: memory for it, and a harness that sees every register.
#![allow(unsafe_code, dead_code)]

pub mod library;

use std::arch::naked_asm;
use std::ffi::c_void;
use ugraft_process::RemoteAddr;

/// A mapping that is first filled and then executed; unmapped on drop.
pub struct Code {
    base: *mut u8,
    len: usize,
}

// SAFETY: The mapping is plain memory, read and executed only after it has been sealed.
unsafe impl Send for Code {}
// SAFETY: As above.
unsafe impl Sync for Code {}

impl Code {
    /// A writable mapping of `len` bytes, near `hint` where that is free.
    pub fn new(hint: u64, len: usize) -> Self {
        // SAFETY: A new anonymous mapping; the hint is no MAP_FIXED.
        let base = unsafe {
            libc::mmap(
                hint as *mut c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: base.cast(), len }
    }

    pub fn addr(&self) -> RemoteAddr {
        RemoteAddr(self.base as u64)
    }

    pub fn at(&self, offset: usize) -> RemoteAddr {
        self.addr().offset(offset as i64)
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: Within the mapping, and nobody executes it: `protect` has not been called or is being undone by us.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset), bytes.len()) }
    }

    pub fn protect(&mut self, exec: bool) {
        let prot = if exec { libc::PROT_READ | libc::PROT_EXEC } else { libc::PROT_READ | libc::PROT_WRITE };
        // SAFETY: Our own mapping.
        assert_eq!(unsafe { libc::mprotect(self.base.cast(), self.len, prot) }, 0);
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: Our own mapping, and no reference into it outlives the test.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// The flags that user code can see and that may be live: CF PF AF ZF SF DF OF.
pub const FLAGS: u64 = 0x001 | 0x004 | 0x010 | 0x040 | 0x080 | 0x400 | 0x800;

/// Everything a piece of code may keep or change.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub xmm: [u128; 16],
    pub red_zone: [u64; 16],
    /// rax rcx rdx rbx rbp rsi rdi r8 .. r15
    pub gpr: [u64; 15],
    pub flags: u64,
    /// Which of the ends was reached: 1 or 2.
    pub end: u64,
    saved_rsp: u64,
    /// The stack pointer at the end, minus that at the beginning.
    pub rsp_moved: u64,
    target: u64,
    /// The fs base under which the code runs; no Rust code runs meanwhile.
    pub fs_base: u64,
    own_fs_base: u64,
}

const _: () = assert!(std::mem::offset_of!(Cpu, red_zone) == 256);
const _: () = assert!(std::mem::offset_of!(Cpu, gpr) == 384);
const _: () = assert!(std::mem::offset_of!(Cpu, flags) == 504);
const _: () = assert!(std::mem::offset_of!(Cpu, end) == 512);
const _: () = assert!(std::mem::offset_of!(Cpu, target) == 536);
const _: () = assert!(std::mem::offset_of!(Cpu, fs_base) == 544);

impl Cpu {
    pub fn new(gpr: [u64; 15], flags: u64, xmm: [u128; 16], red_zone: [u64; 16]) -> Self {
        let (end, saved_rsp, rsp_moved, target, own_fs_base) = (0, 0, 0, 0, 0);
        let (flags, fs_base) = (flags & FLAGS, fs_base());
        Self { xmm, red_zone, gpr, flags, end, saved_rsp, rsp_moved, target, fs_base, own_fs_base }
    }
}

impl Cpu {
    /// The same, had that end been reached.
    pub fn at_end(self, end: u64) -> Self {
        Self { end, ..self }
    }
}

/// Addresses that the code under test leads to.
pub fn end1_addr() -> RemoteAddr {
    RemoteAddr(end1 as *const () as u64)
}

pub fn end2_addr() -> RemoteAddr {
    RemoteAddr(end2 as *const () as u64)
}

/// Loads `cpu`, jumps to `target`, which must end in a jump to [`end1_addr`] or [`end2_addr`], and returns what is there then.
pub fn run(target: RemoteAddr, cpu: &Cpu) -> Cpu {
    let mut now = *cpu;
    now.target = target.0;
    // SAFETY: `enter` keeps what the ABI wants kept and touches `now` and its own stack only; the code under test is the
    // test's own.
    unsafe { enter(&raw mut now) };
    now.flags &= FLAGS;
    now.saved_rsp = 0;
    now.target = 0;
    now.own_fs_base = 0;
    now
}

#[unsafe(naked)]
unsafe extern "C" fn enter(_cpu: *mut Cpu) {
    naked_asm!(
        "push rbx; push rbp; push r12; push r13; push r14; push r15",
        "mov [rdi+520], rsp",
        "sub rsp, 1024",
        "mov [rsp+16], rdi",
        "mov rax, [rdi+536]",
        "mov [rsp+24], rax",
        "rdfsbase rax; mov [rdi+552], rax",
        "mov rax, [rdi+544]; wrfsbase rax",
        "push [rdi+504]",
        "popfq",
        // From here on nothing touches the flags.
        "movaps xmm0, [rdi]; movaps xmm1, [rdi+16]; movaps xmm2, [rdi+32]; movaps xmm3, [rdi+48]",
        "movaps xmm4, [rdi+64]; movaps xmm5, [rdi+80]; movaps xmm6, [rdi+96]; movaps xmm7, [rdi+112]",
        "movaps xmm8, [rdi+128]; movaps xmm9, [rdi+144]; movaps xmm10, [rdi+160]; movaps xmm11, [rdi+176]",
        "movaps xmm12, [rdi+192]; movaps xmm13, [rdi+208]; movaps xmm14, [rdi+224]; movaps xmm15, [rdi+240]",
        ".set i, 0",
        ".rept 16",
        "mov rax, [rdi+256+i*8]; mov [rsp-128+i*8], rax",
        ".set i, i+1",
        ".endr",
        "mov rax, [rdi+384]; mov rcx, [rdi+392]; mov rdx, [rdi+400]; mov rbx, [rdi+408]; mov rbp, [rdi+416]",
        "mov rsi, [rdi+424]; mov r8, [rdi+440]; mov r9, [rdi+448]; mov r10, [rdi+456]; mov r11, [rdi+464]",
        "mov r12, [rdi+472]; mov r13, [rdi+480]; mov r14, [rdi+488]; mov r15, [rdi+496]; mov rdi, [rdi+432]",
        "jmp [rsp+24]",
    )
}

#[unsafe(naked)]
unsafe extern "C" fn end1() {
    naked_asm!("endbr64; mov qword ptr [rsp+32], 1; jmp {}", sym capture)
}

#[unsafe(naked)]
unsafe extern "C" fn end2() {
    naked_asm!("endbr64; mov qword ptr [rsp+32], 2; jmp {}", sym capture)
}

#[unsafe(naked)]
unsafe extern "C" fn capture() {
    naked_asm!(
        "xchg rax, [rsp+16]", // rax = the Cpu, the stack slot = rax
        "mov [rax+392], rcx; mov [rax+400], rdx; mov [rax+408], rbx; mov [rax+416], rbp; mov [rax+424], rsi",
        "mov [rax+432], rdi; mov [rax+440], r8; mov [rax+448], r9; mov [rax+456], r10; mov [rax+464], r11",
        "mov [rax+472], r12; mov [rax+480], r13; mov [rax+488], r14; mov [rax+496], r15",
        ".set i, 0",
        ".rept 16",
        "mov rcx, [rsp-128+i*8]; mov [rax+256+i*8], rcx",
        ".set i, i+1",
        ".endr",
        "mov rcx, [rsp+16]; mov [rax+384], rcx",
        "mov rcx, [rsp+32]; mov [rax+512], rcx",
        "pushfq; pop rcx; mov [rax+504], rcx",
        "cld",
        "rdfsbase rcx; mov [rax+544], rcx",
        "mov rcx, [rax+552]; wrfsbase rcx",
        "movaps [rax], xmm0; movaps [rax+16], xmm1; movaps [rax+32], xmm2; movaps [rax+48], xmm3",
        "movaps [rax+64], xmm4; movaps [rax+80], xmm5; movaps [rax+96], xmm6; movaps [rax+112], xmm7",
        "movaps [rax+128], xmm8; movaps [rax+144], xmm9; movaps [rax+160], xmm10; movaps [rax+176], xmm11",
        "movaps [rax+192], xmm12; movaps [rax+208], xmm13; movaps [rax+224], xmm14; movaps [rax+240], xmm15",
        "mov rcx, [rax+520]; sub rcx, 1024; mov rdx, rsp; sub rdx, rcx; mov [rax+528], rdx",
        "mov rsp, [rax+520]",
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
        "ret",
    )
}

/// This thread's fs base, as a stub sees it.
pub fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: Reads one register; the tests need a CPU and kernel that allow it, as stubs do.
    unsafe { std::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// A small deterministic generator (xorshift64*), so that failures repeat.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn cpu(&mut self) -> Cpu {
        Cpu::new(
            std::array::from_fn(|_| self.next()),
            self.next(),
            std::array::from_fn(|_| u128::from(self.next()) << 64 | u128::from(self.next())),
            std::array::from_fn(|_| self.next()),
        )
    }
}
