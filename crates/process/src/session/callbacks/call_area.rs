//! The call area: memory of ours in the target from which a thread runs a function of a patch for us.
//!
//! ```text
//! code      (r-x)  the trampoline
//! control   (rw-)  what to call, how far it came, the object that is the callback's argument
//! guard     (---)
//! stack     (rw-)  the callback's; at its upper end the frame that leads back, and the vector registers
//! ```
//!
//! A thread is given registers that start the trampoline. It notes that it has begun, saves `errno`, has
//! the C library not act on a cancellation of the thread, calls the function, notes the result together with the call's number **by one
//! aligned store**, puts the cancellation's state and `errno` back, notes that, waits for a moment to be caught by the tool, and else takes all its registers and its signal mask back by rt_sigreturn(2). So a tool
//! that is killed at any time leaves a thread that finishes the call and goes on where it was; and the next run of the
//! tool reads here whether the call has begun and what it returned.
//!
//! The frame is one as the kernel makes for a signal, and the code that ends with it is that of every C library, so
//! whoever walks the thread's stack comes through to what was interrupted.
//!
//! One call at a time: the area is used again only after the thread has left it.
#![allow(unsafe_code)]

use crate::remote::mapping::{MapRequest, Part, Prot};
use crate::session::batch::PAGE;
use crate::state::pieces::CallArea;
use crate::target::memory::Memory;
use crate::threads::{Restart, restart_code};
use crate::{RemoteAddr, Result};
use std::arch::global_asm;

/// Name of the memfd behind it.
pub const CALL_AREA_NAME: &str = "ugraft:call";

const CONTROL_AT: u64 = PAGE;
const STACK_AT: u64 = CONTROL_AT + 2 * PAGE;
/// What a callback may use, and what its way back takes.
const STACK_LEN: u64 = 256 * 1024;
/// Length of the area in bytes.
pub const CALL_AREA_LEN: u64 = STACK_AT + STACK_LEN;
/// Room for the vector registers at the stack's upper end.
const XSTATE_ROOM: u64 = 16 * 1024;
/// Room for the frame below them.
const FRAME_ROOM: u64 = 1024;

/// How long a thread that has run a callback waits to be caught; see `remote`.
const CATCH_NS: u64 = 100_000_000;
/// The vector unit's control register as a program finds it at its start (System V ABI, AMD64 supplement, 3.4.1).
const MXCSR: u64 = 0x1f80;

/// Words of the control block.
mod control {
    pub const ENTERED: u64 = 0;
    pub const DONE: u64 = 8;
    pub const NUMBER: u64 = 16;
    pub const FUNCTION: u64 = 24;
    pub const ARGUMENT: u64 = 32;
    pub const ERRNO_LOCATION: u64 = 40;
    pub const ERRNO_ADDRESS: u64 = 48;
    pub const ERRNO_SAVED: u64 = 56;
    pub const FRAME: u64 = 64;
    pub const CATCH: u64 = 72;
    pub const MXCSR: u64 = 88;
    /// The C library's `pthread_setcancelstate`, or 0; the state that was, and whether it has been changed.
    pub const CANCEL_STATE: u64 = 96;
    pub const CANCEL_SAVED: u64 = 104;
    pub const CANCEL_CHANGED: u64 = 112;
    /// The number of the call whose thread has undone everything but its registers.
    pub const READY: u64 = 120;
    /// `struct module` of the header: state, name.
    pub const MODULE: u64 = 128;
    pub const MODULE_NAME: u64 = 144;
    pub const MODULE_NAME_MAX: usize = 1024;
    /// `pthread_setcanceltype` and `pthread_testcancel`, or 0; the type that was.
    pub const CANCEL_TYPE: u64 = 1280;
    pub const CANCEL_TEST: u64 = 1288;
    pub const CANCEL_TYPE_SAVED: u64 = 1296;
}

// rbx: the control block; rsp: the callback's stack, aligned to 16. Callees keep rbx.
global_asm!(
    ".pushsection .rodata.ugraft_call,\"a\",@progbits",
    ".globl ugraft_call_code",
    ".hidden ugraft_call_code",
    ".globl ugraft_call_leave",
    ".hidden ugraft_call_leave",
    ".globl ugraft_call_code_end",
    ".hidden ugraft_call_code_end",
    "ugraft_call_code:",
    "mov rax, [rbx + 16]",
    "mov [rbx], rax",
    "fninit",
    "ldmxcsr [rbx + 88]",
    "mov rax, [rbx + 40]",
    "test rax, rax",
    "jz 2f",
    "call rax",
    "mov ecx, [rax]",
    "mov [rbx + 56], rcx",
    "mov [rbx + 48], rax",
    // PTHREAD_CANCEL_DISABLE is 1.
    "2: mov rax, [rbx + 96]",
    "test rax, rax",
    "jz 3f",
    "mov edi, 1",
    "lea rsi, [rbx + 104]",
    "call rax",
    "mov qword ptr [rbx + 112], 1",
    "3: mov rdi, [rbx + 32]",
    "call [rbx + 24]",
    "mov ecx, eax",
    "mov rax, [rbx + 16]",
    "shl rax, 32",
    "or rax, rcx",
    "mov [rbx + 8], rax",
    "4: cmp qword ptr [rbx + 112], 0",
    "je 5f",
    "mov qword ptr [rbx + 112], 0",
    "mov rax, [rbx + 1280]",
    "test rax, rax",
    "jz 7f",
    "xor edi, edi",
    "lea rsi, [rbx + 1296]",
    "call rax",
    "7: mov edi, [rbx + 104]",
    "xor esi, esi",
    "call [rbx + 96]",
    // The thread can be cancelled anywhere (PTHREAD_CANCEL_ASYNCHRONOUS is 1): it sleeps in a cancellation point. Then here, too.
    "cmp dword ptr [rbx + 1296], 1",
    "jne 5f",
    "call [rbx + 1288]",
    "mov edi, 1",
    "xor esi, esi",
    "call [rbx + 1280]",
    "5: mov rdx, [rbx + 48]",
    "test rdx, rdx",
    "jz 6f",
    "mov eax, [rbx + 56]",
    "mov [rdx], eax",
    "6: mov rax, [rbx + 16]",
    "mov [rbx + 120], rax",
    // pselect6: like nothing else it leaves alone what the kernel remembers of an interrupted call.
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "lea r8, [rbx + 72]",
    "xor r9d, r9d",
    "mov eax, 270",
    "syscall",
    "mov rsp, [rbx + 64]",
    // The very bytes of a C library's signal return: `mov rax, 15` in seven bytes, `syscall`.
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    "ud2",
    // A thread that is taken out of its call begins here.
    "ugraft_call_leave:",
    "mov rsp, [rbx + 64]",
    "sub rsp, 8",
    "and rsp, -16",
    "jmp 4b",
    "ugraft_call_code_end:",
    ".popsection",
);

unsafe extern "C" {
    static ugraft_call_code: u8;
    static ugraft_call_leave: u8;
    static ugraft_call_code_end: u8;
}

/// Where the code for leaving a call before its end begins, from the trampoline's begin.
fn leave_at() -> usize {
    &raw const ugraft_call_leave as usize - &raw const ugraft_call_code as usize
}

fn code() -> &'static [u8] {
    let start = &raw const ugraft_call_code;
    let len = &raw const ugraft_call_code_end as usize - start as usize;
    // SAFETY: both symbols delimit one read-only piece of this program, written above.
    unsafe { std::slice::from_raw_parts(start, len) }
}

/// Functions of the C library with which a thread says whether and when it can be cancelled; 0 where there are none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cancellation {
    /// `pthread_setcancelstate`
    pub(crate) set_state: RemoteAddr,
    /// `pthread_setcanceltype`
    pub(crate) set_type: RemoteAddr,
    /// `pthread_testcancel`
    pub(crate) test: RemoteAddr,
}

/// One call, as the area is prepared for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) number: u32,
    pub(crate) function: RemoteAddr,
    pub(crate) argument: RemoteAddr,
    /// The C library's `__errno_location`, or 0.
    pub(crate) errno_location: RemoteAddr,
    pub(crate) cancellation: Cancellation,
}

/// The object that a callback is told of, if it is a library: `struct module` of the header.
#[derive(Debug)]
pub(crate) struct Module<'n> {
    pub(crate) state: u32,
    pub(crate) name: &'n str,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The thread has not come to the trampoline's first store.
    NotBegun,
    /// The function has not returned, or its thread has not undone yet what was changed for it.
    Running,
    /// It has returned this, and its thread only takes its registers back.
    Done(i32),
}

impl CallArea {
    /// An area at `base`, which is to be mapped and written as told here.
    pub(crate) fn plan(base: RemoteAddr) -> (Self, MapRequest, (RemoteAddr, Vec<u8>)) {
        let at = |offset: u64| base.offset(offset as i64);
        let area = Self {
            mapping: base..at(CALL_AREA_LEN),
            code: base..at(code().len() as u64),
            leave: at(leave_at() as u64),
            control: at(CONTROL_AT),
            stack: at(STACK_AT)..at(CALL_AREA_LEN),
        };
        let parts = vec![
            Part { offset: 0, len: PAGE, prot: Prot::ReadExec },
            Part { offset: CONTROL_AT, len: PAGE, prot: Prot::ReadWrite },
            Part { offset: STACK_AT, len: STACK_LEN, prot: Prot::ReadWrite },
        ];
        let request = MapRequest { name: CALL_AREA_NAME.to_owned(), addr: base, len: CALL_AREA_LEN, parts };
        (area, request, (base, code().to_vec()))
    }

    /// Whether `addr` is in the trampoline.
    pub(crate) fn is_code(&self, addr: RemoteAddr) -> bool {
        self.code.contains(&addr)
    }

    /// Writes what the call `prepared` needs, for a thread with these registers, signal mask and vector registers (in a
    /// frame's form). Returns the registers that make the thread run it.
    pub(crate) fn prepare(
        &self,
        memory: &Memory,
        prepared: &Prepared,
        module: Option<Module<'_>>,
        own: &libc::user_regs_struct,
        mask: u64,
        xstate: &[u8],
    ) -> Result<libc::user_regs_struct> {
        let xstate_at = RemoteAddr((self.stack.end.0 - XSTATE_ROOM) & !63);
        memory.write(xstate_at, &xstate[..xstate.len().min(XSTATE_ROOM as usize)])?;
        let frame_at = xstate_at.offset(-(FRAME_ROOM as i64));
        memory.write(frame_at, &frame(own, mask, xstate_at))?;
        if let Some(module) = module {
            let name = module.name.as_bytes();
            let mut bytes = name[..name.len().min(control::MODULE_NAME_MAX - 1)].to_vec();
            bytes.push(0);
            memory.write(self.word(control::MODULE_NAME), &bytes)?;
            let words = [u64::from(module.state), self.word(control::MODULE_NAME).0];
            memory.write(self.module(), &words.map(u64::to_le_bytes).concat())?;
        }
        let cancellation = prepared.cancellation;
        // The type matters only with a way to find out whether the thread is cancelled.
        let set_type = if cancellation.test.0 == 0 { RemoteAddr(0) } else { cancellation.set_type };
        let words = [
            (control::NUMBER, u64::from(prepared.number)),
            (control::FUNCTION, prepared.function.0),
            (control::ARGUMENT, prepared.argument.0),
            (control::ERRNO_LOCATION, prepared.errno_location.0),
            (control::ERRNO_ADDRESS, 0),
            (control::ERRNO_SAVED, 0),
            (control::FRAME, frame_at.0 + 8),
            (control::CATCH, 0),
            (control::CATCH + 8, CATCH_NS),
            (control::MXCSR, MXCSR),
            (control::CANCEL_STATE, cancellation.set_state.0),
            (control::CANCEL_TYPE, set_type.0),
            (control::CANCEL_TEST, cancellation.test.0),
            (control::CANCEL_TYPE_SAVED, 0),
            (control::CANCEL_SAVED, 0),
            (control::CANCEL_CHANGED, 0),
            (control::READY, 0),
        ];
        for (offset, value) in words {
            memory.write(self.word(offset), &value.to_le_bytes())?;
        }
        let mut regs = self.leaving(own);
        regs.rip = self.code.start.0;
        regs.rsp = frame_at.0 & !15;
        Ok(regs)
    }

    /// Registers that make a thread which is in a call leave it at once.
    pub(crate) fn leaving(&self, own: &libc::user_regs_struct) -> libc::user_regs_struct {
        let mut regs = *own;
        regs.rip = self.leave.0;
        regs.rbx = self.control.0;
        regs.rax = 0;
        // Not in a system call: nothing to restart.
        regs.orig_rax = u64::MAX;
        // Bit 1 is always set, bit 9 is the interrupt flag; the direction flag is clear as the ABI wants it.
        regs.eflags = 0x202;
        regs
    }

    /// How far the call of that number has come.
    pub(crate) fn progress(&self, memory: &Memory, number: u32) -> Result<Progress> {
        // In the order opposite to that of the stores.
        let ready = self.is_ready(memory, number)?;
        if let (true, Some(value)) = (ready, self.result(memory, number)?) {
            return Ok(Progress::Done(value));
        }
        let entered = memory.read_u64(self.word(control::ENTERED))?;
        Ok(if entered == u64::from(number) { Progress::Running } else { Progress::NotBegun })
    }

    /// What the function of the call of that number has returned, if it has.
    pub(crate) fn result(&self, memory: &Memory, number: u32) -> Result<Option<i32>> {
        let done = memory.read_u64(self.word(control::DONE))?;
        Ok((done >> 32 == u64::from(number)).then_some((done as u32).cast_signed()))
    }

    /// Whether the thread of that call has undone everything but its registers.
    pub(crate) fn is_ready(&self, memory: &Memory, number: u32) -> Result<bool> {
        Ok(memory.read_u64(self.word(control::READY))? == u64::from(number))
    }

    /// The `struct module` that an object's `mod` is to point to.
    pub(crate) fn module(&self) -> RemoteAddr {
        self.word(control::MODULE)
    }

    fn word(&self, offset: u64) -> RemoteAddr {
        self.control.offset(offset as i64)
    }
}

/// `struct rt_sigframe` without the `siginfo` that rt_sigreturn(2) does not read (`arch/x86/include/asm/sigframe.h`,
/// `arch/x86/include/uapi/asm/{ucontext,sigcontext}.h`): it leads back to `own`, the way the kernel would go on
/// with an interrupted system call, except that a call which goes on by restart_syscall(2) is made anew, since the callback may
/// have made calls that overwrite what the kernel remembers of it.
fn frame(own: &libc::user_regs_struct, mask: u64, xstate: RemoteAddr) -> Vec<u8> {
    /// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
    const FLAGS: u64 = 1 | 2 | 4;
    /// No mode of sigaltstack(2): the kernel then leaves the thread's alternate stack alone.
    const KEEP_ALTERNATE_STACK: u64 = 0x7fff_ffff;
    let (rip, rax) = match restart_code(own) {
        // The syscall instruction is two bytes long.
        Some(Restart::Again | Restart::Block) => (own.rip - 2, own.orig_rax),
        _ => (own.rip, own.rax),
    };
    let segments = own.cs & 0xffff | (own.ss & 0xffff) << 48;
    let head = [0, FLAGS, 0, 0, KEEP_ALTERNATE_STACK, 0];
    let context = [
        own.r8, own.r9, own.r10, own.r11, own.r12, own.r13, own.r14, own.r15, own.rdi, own.rsi, own.rbp,
        own.rbx, own.rdx, rax, own.rcx, own.rsp, rip, own.eflags, segments, 0, 0, 0, 0, xstate.0,
    ];
    let reserved = [0; 8];
    let words = head.iter().chain(&context).chain(&reserved).chain([&mask]);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_follow_one_another() {
        let (area, request, (at, bytes)) = CallArea::plan(RemoteAddr(0x10000));
        assert_eq!(area.mapping.end.0 - area.mapping.start.0, request.len);
        assert_eq!(at, area.code.start);
        assert!(bytes.len() < PAGE as usize && area.is_code(area.leave));
        assert!(control::MODULE_NAME + control::MODULE_NAME_MAX as u64 <= control::CANCEL_TYPE);
        // A guard lies between the control block and the stack.
        let parts: Vec<_> = request.parts.iter().map(|p| (p.offset, p.offset + p.len)).collect();
        assert!(parts[1].1 < parts[2].0);
    }

    #[test]
    fn a_frame_is_as_long_as_the_kernel_reads() {
        // SAFETY: all zeros are registers.
        let regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // pretcode, the ucontext's head, the sigcontext, the mask.
        assert_eq!(frame(&regs, 0, RemoteAddr(0)).len(), 8 + 40 + 256 + 8);
        assert!(frame(&regs, 0, RemoteAddr(0)).len() < FRAME_ROOM as usize);
    }
}
