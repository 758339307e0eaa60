//! The ptrace(2) requests this crate uses, and waiting for one thread.
//!
//! Everything here leaves a way back for a tool that is killed at the next instruction:
//!
//! - Threads are SEIZEd, never ATTACHed, so no SIGSTOP is sent; there is no `PTRACE_O_EXITKILL`.
//! - Stops are waited for with `WNOWAIT`. A plain wait clears the stop's exit code, and with it the signal of a
//!   signal-delivery-stop: should the tool die before it passes the signal on, the signal would be lost
//!   (`ptrace_stop` and `wait_task_stopped` in `kernel/signal.c`, `kernel/exit.c`).
//! - `PTRACE_O_TRACESYSGOOD` is always set: the exit code of a syscall-stop that outlives its tracer is sent as a
//!   signal, and 0x85 is none, whereas the SIGTRAP of an unmarked stop would kill.
//! - Nothing is single-stepped, for the same reason.
//!
//! The tracer is the *thread* that seized (ptrace(2)): all these must be called from it.
#![allow(unsafe_code)]

use crate::Tid;
use std::ffi::c_void;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::ptr;

type Request = libc::c_uint;

// `include/uapi/linux/ptrace.h`; not all are in the libc crate for every libc.
const PTRACE_CONT: Request = 7;
const PTRACE_POKEUSER: Request = 6;
const PTRACE_GETREGS: Request = 12;
const PTRACE_SETREGS: Request = 13;
const PTRACE_DETACH: Request = 17;
const PTRACE_SETOPTIONS: Request = 0x4200;
const PTRACE_SEIZE: Request = 0x4206;
const PTRACE_INTERRUPT: Request = 0x4207;
const PTRACE_GETSIGMASK: Request = 0x420a;
const PTRACE_SETSIGMASK: Request = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: Request = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: Request = 0x4211;
const PTRACE_EVENT_STOP: i32 = 128;

/// `PTRACE_O_TRACESYSGOOD`; see the head of this file.
pub(crate) const O_TRACESYSGOOD: usize = 1;
/// `PTRACE_O_SUSPEND_SECCOMP`: the thread's seccomp filters are not asked while it is traced (needs CAP_SYS_ADMIN).
pub(crate) const O_SUSPEND_SECCOMP: usize = 1 << 21;

/// What a wait for one thread saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Stopped at the trap that `interrupt` asked for, on the way back to user mode.
    Interrupted,
    /// Stopped by job control (the signal says by which), on the way back to user mode.
    GroupStop(i32),
    /// About to be given a signal, which must be passed on.
    Signal(i32),
    /// Any other stop (syscall, an event); the raw status.
    Other(i32),
    /// Dead, and reaped as far as it was ours to reap.
    Gone,
    /// Not traced by us, or under another id since an exec.
    Unknown,
}

fn request(request: Request, tid: Tid, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: every caller passes either plain numbers or a pointer, in `addr` or `data`, to memory it borrows that is
    // as large as the request says; none of the requests is a PEEK, for which the C library writes through `data`.
    let r = unsafe { libc::ptrace(request, tid.0, addr as *mut c_void, data as *mut c_void) };
    if r == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes the tracer of a thread, which runs on.
pub(crate) fn seize(tid: Tid, options: usize) -> io::Result<()> {
    request(PTRACE_SEIZE, tid, 0, options)
}

/// Asks a seized thread to stop on its way back to user mode.
pub(crate) fn interrupt(tid: Tid) -> io::Result<()> {
    request(PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread run on, with `signal` given to it (0: none).
pub(crate) fn cont(tid: Tid, signal: i32) -> io::Result<()> {
    request(PTRACE_CONT, tid, 0, signal as usize)
}

/// Ends the tracing of a stopped thread, which runs on, or goes back into its group-stop.
pub(crate) fn detach(tid: Tid) -> io::Result<()> {
    request(PTRACE_DETACH, tid, 0, 0)
}

/// Sets the tracing options of a stopped thread.
pub(crate) fn set_options(tid: Tid, options: usize) -> io::Result<()> {
    request(PTRACE_SETOPTIONS, tid, 0, options)
}

/// The general registers of a stopped thread.
pub(crate) fn regs(tid: Tid) -> io::Result<libc::user_regs_struct> {
    let mut regs = MaybeUninit::<libc::user_regs_struct>::uninit();
    request(PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize)?;
    // SAFETY: the request succeeded, so the kernel has filled the whole structure.
    Ok(unsafe { regs.assume_init() })
}

/// Sets all general registers of a stopped thread in one call, which no kill of the tool can interrupt.
pub(crate) fn set_regs(tid: Tid, regs: &libc::user_regs_struct) -> io::Result<()> {
    request(PTRACE_SETREGS, tid, 0, ptr::from_ref(regs) as usize)
}

/// Sets rax alone.
pub(crate) fn set_rax(tid: Tid, rax: u64) -> io::Result<()> {
    request(PTRACE_POKEUSER, tid, offset_of!(libc::user_regs_struct, rax), rax as usize)
}

/// The blocked signals of a stopped thread, bit N-1 for signal N. Inside a call that swaps the mask for its own time
/// (ppoll, sigsuspend...) this is the mask to return to, not the temporary one.
pub(crate) fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, size_of::<u64>(), ptr::from_mut(&mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread, and makes a call that swapped them forget the mask to return to.
pub(crate) fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, size_of::<u64>(), ptr::from_ref(&mask) as usize)
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RseqConfiguration {
    rseq_abi_pointer: u64,
    rseq_abi_size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// Address of the thread's `struct rseq`, or 0 if it registered none.
pub(crate) fn rseq_area(tid: Tid) -> io::Result<u64> {
    let mut conf = RseqConfiguration::default();
    let len = size_of::<RseqConfiguration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, len, ptr::from_mut(&mut conf) as usize)?;
    Ok(conf.rseq_abi_pointer)
}

/// `struct ptrace_sud_config`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct UserDispatch {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}
const _: () = assert!(size_of::<UserDispatch>() == 32);

/// Whether the thread has its own system calls turned into signals (`PR_SET_SYSCALL_USER_DISPATCH`).
pub(crate) fn dispatches_syscalls(tid: Tid) -> io::Result<bool> {
    let mut conf = UserDispatch::default();
    let len = size_of::<UserDispatch>();
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, len, ptr::from_mut(&mut conf) as usize)?;
    Ok(conf.mode != 0)
}

/// `struct sock_filter` (`include/uapi/linux/filter.h`): an instruction of classic BPF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

/// The thread's seccomp filter number `index`, the newest being 0. EINVAL if it has none, ENOENT if not that many, EACCES if
/// we may not know (CAP_SYS_ADMIN).
pub(crate) fn seccomp_filter(tid: Tid, index: usize) -> io::Result<Vec<Instruction>> {
    const PTRACE_SECCOMP_GET_FILTER: Request = 0x420c;
    /// `BPF_MAXINSNS`: the longest filter there is.
    const MAX: usize = 4096;
    let mut filter = vec![Instruction::default(); MAX];
    let to = filter.as_mut_ptr().cast::<c_void>();
    // SAFETY: the kernel writes one filter, which has at most as many instructions as there is room for.
    let len = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, tid.0, index as *mut c_void, to) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    filter.truncate(len);
    Ok(filter)
}

/// Whether the thread has a shadow stack (`NT_X86_SHSTK`, `include/uapi/linux/elf.h`); without one the kernel says ENODEV.
pub(crate) fn has_shadow_stack(tid: Tid) -> bool {
    const PTRACE_GETREGSET: Request = 0x4204;
    const NT_X86_SHSTK: usize = 0x204;
    let mut pointer = 0u64;
    let mut iov = libc::iovec { iov_base: ptr::from_mut(&mut pointer).cast(), iov_len: size_of::<u64>() };
    request(PTRACE_GETREGSET, tid, NT_X86_SHSTK, ptr::from_mut(&mut iov) as usize).is_ok()
}

/// Looks whether a seized thread has stopped or died, without waiting. A stop is left to be seen again, see the head
/// of this file; a dead thread is reaped.
pub(crate) fn poll(tid: Tid) -> io::Result<Option<Event>> {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    let Some((code, status)) = waitid(tid, flags | libc::WNOWAIT)? else { return Ok(None) };
    if code == -1 {
        return Ok(Some(Event::Unknown));
    }
    if matches!(code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
        if !is_own_child(tid) {
            waitid(tid, libc::WEXITED | libc::WNOHANG | libc::__WALL)?;
        }
        return Ok(Some(Event::Gone));
    }
    let (signal, event) = (status & 0xff, status >> 8);
    Ok(Some(match (signal, event) {
        (libc::SIGTRAP, PTRACE_EVENT_STOP) => Event::Interrupted,
        (signal, PTRACE_EVENT_STOP) => Event::GroupStop(signal),
        (signal, 0) if signal & 0x80 == 0 => Event::Signal(signal),
        _ => Event::Other(status),
    }))
}

/// Whether a dead thread is the first of a process that this program started: its exit status is for whoever waits for the
/// process, and to fetch it as the tracer would take it away. (From another parent's child a tracer takes nothing.)
fn is_own_child(tid: Tid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let number =
        |name| crate::target::status_field(&status, name).and_then(|value| value.parse::<u32>().ok());
    number("Tgid") == Some(tid.0.cast_unsigned()) && number("PPid") == Some(std::process::id())
}

/// `si_code` and `si_status`, or `None` if nothing has happened; code -1 if there is no such child.
fn waitid(tid: Tid, flags: i32) -> io::Result<Option<(i32, i32)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is writable and as large as the call expects.
    let r = unsafe { libc::waitid(libc::P_PID, tid.0 as libc::id_t, info.as_mut_ptr(), flags) };
    if r == -1 {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::ECHILD) => Ok(Some((-1, 0))),
            Some(libc::EINTR) => Ok(None),
            _ => Err(e),
        };
    }
    // SAFETY: zeroed above, which is a valid siginfo_t, and perhaps filled by the kernel.
    let info = unsafe { info.assume_init() };
    // SAFETY: a siginfo_t of waitid has the child's id, or 0 as zeroed above if there was no event.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok((pid != 0).then_some((info.si_code, status)))
}
