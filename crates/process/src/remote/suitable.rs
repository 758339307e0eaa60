//! Which threads can run a program, and which one does it best.

use crate::limits::STACK_ROOM;
use crate::remote::program::RED_ZONE;
use crate::target::Target;
use crate::target::maps::Maps;
use crate::threads::{Restart, StoppedProcess, StoppedThread, ptrace, restart_code, stop_one};
use crate::{Error, RemoteAddr, Result, Tid};
use std::time::{Duration, Instant};

/// Why a thread, or the whole process, cannot run a program now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsuitable {
    /// Its stack pointer is neither in `[stack]` nor in the mapping its thread pointer is in: a coroutine, a signal stack,
    /// a goroutine.
    #[error("thread {0} is not on its own stack")]
    ForeignStack(Tid),
    /// Less than [`STACK_ROOM`] is left.
    #[error("thread {0} has too little stack left")]
    LittleStack(Tid),
    /// It is in a restartable sequence (rseq(2)), which must not be left and re-entered.
    #[error("thread {0} is in a restartable sequence")]
    Rseq(Tid),
    /// Its system calls become signals (PR_SET_SYSCALL_USER_DISPATCH).
    #[error("thread {0} has its system calls dispatched to itself")]
    SyscallDispatch(Tid),
    /// It has a shadow stack, which a program's end would not match.
    #[error("thread {0} has a shadow stack")]
    ShadowStack(Tid),
    /// It is in 32-bit code.
    #[error("thread {0} is in 32-bit code")]
    Mode32(Tid),
    /// It single-steps itself.
    #[error("thread {0} single-steps itself")]
    SingleStep(Tid),
    /// It runs a program that a killed tool left it with, and will soon be done.
    #[error("thread {0} is still busy with the work of an earlier run; try again")]
    InProgram(Tid),
    /// A seccomp filter may kill it for our calls, and we may not suspend filters.
    #[error(
        "thread {0} is under seccomp, which only a tool with CAP_SYS_ADMIN can suspend; run this program with sudo"
    )]
    Seccomp(Tid),
    /// Its seccomp filters may kill it for a call of ours should the tool die meanwhile, when nobody suspends them any more.
    #[error(
        "the seccomp filter of thread {tid} may kill it for {call}; the process would not survive a kill of this program"
    )]
    SeccompKills {
        /// The thread.
        tid: Tid,
        /// The system call.
        call: &'static str,
    },
    /// No executable mapping has unused bytes.
    #[error("no executable mapping has {0} unused bytes at its end")]
    NoCave(usize),
    /// None of its threads can do it; the last one's reason.
    #[error("none of its threads can: {0}")]
    NoThread(Box<Unsuitable>),
    /// It has no threads left.
    #[error("it has no threads")]
    NoThreads,
    /// The thread crashed, or never finished. It has its registers back.
    #[error("thread {tid} was stopped by signal {signal} within the program")]
    Crashed {
        /// The thread.
        tid: Tid,
        /// The signal.
        signal: i32,
    },
}

/// Says whether a stopped thread can run a program, and how well: less is better.
///
/// # Errors
/// [`Error::CannotRun`] with the reason, or what reading the thread failed with.
pub fn suitability(target: &Target, maps: &Maps, thread: &StoppedThread) -> Result<u32> {
    let tid = thread.tid();
    let refuse = |why| Err(Error::CannotRun { pid: target.pid(), why });
    let regs = thread.regs();
    /// `__USER_CS` (`arch/x86/include/asm/segment.h`): 64-bit mode.
    const USER_CS: u64 = 0x33;
    const TRAP_FLAG: u64 = 1 << 8;
    if regs.cs != USER_CS {
        return refuse(Unsuitable::Mode32(tid));
    }
    if regs.eflags & TRAP_FLAG != 0 {
        return refuse(Unsuitable::SingleStep(tid));
    }
    let room = stack_room(target, maps, thread)?;
    if room < STACK_ROOM {
        return refuse(Unsuitable::LittleStack(tid));
    }
    let restart = restart_code(regs);
    // In a system call there is no restartable sequence: the kernel kills programs that try.
    if restart.is_none() && in_rseq(target, thread)? {
        return refuse(Unsuitable::Rseq(tid));
    }
    if ptrace::dispatches_syscalls(tid).unwrap_or(false) {
        return refuse(Unsuitable::SyscallDispatch(tid));
    }
    if ptrace::has_shadow_stack(tid) {
        return refuse(Unsuitable::ShadowStack(tid));
    }
    // A thread that sleeps loses nothing by it; one that computes loses its turn on the processor.
    Ok(u32::from(!matches!(restart, Some(Restart::Again | Restart::Block))))
}

/// Free bytes below the thread's red zone, on a stack that is certainly its own.
pub(super) fn stack_room(target: &Target, maps: &Maps, thread: &StoppedThread) -> Result<u64> {
    let tid = thread.tid();
    let foreign = || Error::CannotRun { pid: target.pid(), why: Unsuitable::ForeignStack(tid) };
    let sp = RemoteAddr(thread.regs().rsp.wrapping_sub(1));
    let mapping = maps.find(sp).filter(|m| m.read && m.write && !m.shared).ok_or_else(foreign)?;
    if mapping.name != "[stack]" {
        // A thread's stack has its thread pointer at its upper end (glibc and musl both). The first word there is the
        // thread pointer itself by the ABI, which excludes runtimes that keep threads differently.
        let fs = thread.fs_base();
        let own = mapping.contains(fs)
            && mapping.inode == 0
            && mapping.name != "[heap]"
            && sp < fs
            && target.memory().read_u64(fs).is_ok_and(|word| word == fs.0);
        if !own {
            return Err(foreign());
        }
        // The first thread's thread pointer is not on a stack, unless its process was forked by another thread. A
        // stack has a guard below it.
        let guarded = maps.iter().any(|m| m.end == mapping.start && !m.read && !m.write && !m.exec);
        if tid.0 == target.pid().0 && !guarded {
            return Err(foreign());
        }
    }
    Ok((sp.0 - mapping.start.0).saturating_sub(RED_ZONE))
}

/// Whether the thread is inside a restartable sequence.
fn in_rseq(target: &Target, thread: &StoppedThread) -> Result<bool> {
    /// Offset of `rseq_cs` in `struct rseq`, and the fields of `struct rseq_cs` (`include/uapi/linux/rseq.h`).
    const RSEQ_CS: i64 = 8;
    const START_IP: i64 = 8;
    const POST_COMMIT_OFFSET: i64 = 16;
    let Ok(area) = ptrace::rseq_area(thread.tid()) else {
        // The kernel cannot say (before Linux 5.13), so it may be.
        return Ok(true);
    };
    if area == 0 {
        return Ok(false);
    }
    let memory = target.memory();
    let cs = RemoteAddr(memory.read_u64(RemoteAddr(area).offset(RSEQ_CS))?);
    if cs.0 == 0 {
        return Ok(false);
    }
    let start = memory.read_u64(cs.offset(START_IP))?;
    let len = memory.read_u64(cs.offset(POST_COMMIT_OFFSET))?;
    Ok(thread.regs().rip.wrapping_sub(start) < len)
}

/// The thread of a stopped process that can best run a program.
///
/// # Errors
/// [`Error::CannotRun`] if none can.
pub fn choose<'a>(
    target: &Target,
    maps: &Maps,
    process: &'a mut StoppedProcess,
) -> Result<&'a mut StoppedThread> {
    let mut best: Option<(u32, usize)> = None;
    let mut refusal = Unsuitable::NoThreads;
    for (i, thread) in process.threads().iter().enumerate() {
        match suitability(target, maps, thread) {
            Ok(0) => {
                best = Some((0, i));
                break;
            }
            Ok(score) if best.is_none_or(|(least, _)| score < least) => best = Some((score, i)),
            Ok(_) => {}
            Err(Error::CannotRun { why, .. }) => refusal = Unsuitable::NoThread(Box::new(why)),
            Err(e) => return Err(e),
        }
    }
    match best {
        Some((_, i)) => Ok(&mut process.threads_mut()[i]),
        None => Err(Error::CannotRun { pid: target.pid(), why: refusal }),
    }
}

/// Stops one thread that can run a program, while the others run: one that sleeps, if there is one.
///
/// # Errors
/// [`Error::CannotRun`] if no thread can, otherwise as [`stop_one`].
pub fn stop_suitable(target: &Target, maps: &Maps, within: Duration) -> Result<StoppedThread> {
    let deadline = Instant::now() + within;
    let mut failure = Error::CannotRun { pid: target.pid(), why: Unsuitable::NoThreads };
    let mut running = Vec::new();
    let mut listed = target.threads()?.into_iter();
    loop {
        // Most often the first one sleeps.
        let tid = match listed.next() {
            Some(tid) => match target.thread_stat(tid)? {
                Some(stat) if matches!(stat.state, 'S' | 'T') => tid,
                Some(_) => {
                    running.push(tid);
                    continue;
                }
                None => continue,
            },
            None if running.is_empty() => break,
            None => running.remove(0),
        };
        // One that does not stop must not use up the time of those that do.
        let left = deadline.saturating_duration_since(Instant::now()) / 4;
        match stop_one(target, tid, left) {
            Ok(Some(thread)) => match suitability(target, maps, &thread) {
                Ok(_) => return Ok(thread),
                Err(Error::CannotRun { pid, why }) => {
                    failure = Error::CannotRun { pid, why: Unsuitable::NoThread(Box::new(why)) };
                }
                Err(e) => return Err(e),
            },
            Ok(None) => {}
            Err(e @ Error::CannotStop { .. }) => failure = e,
            Err(e) => return Err(e),
        }
    }
    Err(failure)
}
