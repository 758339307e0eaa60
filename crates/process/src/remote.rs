//! Having a stopped thread of the target make system calls for us.
//!
//! The calls are written as a small program onto the thread's own stack, below its red zone, together with all its
//! registers; the [cave] holds the code that works through them. The thread is given registers that make it
//! run the program and then take its own registers back, so a tool that is killed at any moment leaves a thread that
//! finishes and goes on where it was: at its interrupted system call, if it was in one, which it makes again (a call with
//! a timeout goes on with the rest of it, by restart_syscall(2)).
//!
//! While the tool lives the thread does not get that far. Behind the program's calls it sleeps for a moment
//! ([`CATCH_WAIT`]), is stopped there, and gets its registers back by ptrace, where the kernel then finds the state of
//! the interrupted call unchanged, as after a stop without a program. That is right only in a stop on the way to user mode,
//! which that of `PTRACE_INTERRUPT` is; the sleep is by pselect6(2), since nanosleep(2) and poll(2) would overwrite what
//! the kernel remembers of the interrupted call.
//!
//! All signals are blocked meanwhile, and what comes is delivered afterwards. The order of the steps keeps the mask
//! safe: registers before mask on the way in, since the program restores the mask; mask before registers on the way out.
//!
//! A failing call jumps to where its [`OnError`] says, still in the target, so that what a program has begun is also
//! undone without us.

pub mod cave;
pub mod mapping;
pub mod place;
pub(crate) mod seccomp;
pub mod sharing;

use crate::limits::{CATCH_WAIT, POLL_MAX, POLL_MIN, PROGRAM_CALLS, PROGRAM_WAIT, STACK_ROOM};
use crate::remote::cave::Cave;
use crate::target::Target;
use crate::target::maps::Maps;
use crate::threads::ptrace::{self, Event};
use crate::threads::{Restart, StoppedProcess, StoppedThread, restart_code, settled_regs, stop_one};
use crate::{Error, Pid, RemoteAddr, Result, Tid};
use std::collections::HashMap;
use std::io;
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

/// An argument of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// The result of the program's call with this index, which comes before.
    Result(usize),
    /// The address of these bytes, in the target.
    Bytes(Vec<u8>),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

/// Where a program goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the call behind this one.
    Following,
    /// With the call of this index.
    Jump(usize),
    /// It ends.
    End,
}

/// Where a program goes on after an error.
pub type OnError = Next;

/// One system call of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Its name, for messages.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Its arguments; those not given are 0.
    pub args: Vec<Arg>,
    /// Where to go on after success.
    pub then: Next,
    /// Where to go on after an error.
    pub on_error: OnError,
}

impl Syscall {
    /// A call that ends the program if it fails.
    #[must_use]
    pub fn new(name: &'static str, number: i64, args: Vec<Arg>) -> Self {
        Self { name, number, args, then: Next::Following, on_error: Next::End }
    }

    /// Where to go on after an error.
    #[must_use]
    pub fn on_error(mut self, next: Next) -> Self {
        self.on_error = next;
        self
    }

    /// Where to go on after success.
    #[must_use]
    pub fn then(mut self, next: Next) -> Self {
        self.then = next;
        self
    }
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
fn stack_room(target: &Target, maps: &Maps, thread: &StoppedThread) -> Result<u64> {
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

/// System V ABI for x86-64: leaf functions use this much below rsp.
const RED_ZONE: u64 = 128;
/// Marks a result that no call has given: no system call returns it.
const NOT_MADE: u64 = 1 << 63;
const WORD: u64 = 8;
/// Words of a record; see the [cave](crate::remote::cave).
const RECORD_WORDS: u64 = 10;
const RESULT: u64 = 7;
/// Number of a record that ends the program.
const LEAVE: u64 = u64::MAX;

/// Runs the calls on the thread, in order, and returns each one's result as the kernel gives it (negative errno, address,
/// count...); `None` for calls that were not made because an earlier one failed. A failing call is not an error
/// of this function.
///
/// The thread is stopped before and after, with the same registers, unless the tool was kept from its processor for longer
/// than [`CATCH_WAIT`]: then it has gone on by itself and been stopped again ([`StoppedThread::ran_on`]). Other threads may
/// run meanwhile or not.
///
/// # Errors
/// [`Error::CannotRun`] before anything has happened, or if the thread crashed; [`Error::TargetGone`] if it died;
/// [`Error::CannotStop`] if it does not come back, in which case it is let go and will finish alone.
///
/// # Panics
/// If the program has more than [`PROGRAM_CALLS`] calls, a call with more than six arguments, or a reference to a call that
/// is not there: mistakes of the caller, whatever the target.
pub fn run(target: &Target, thread: &mut StoppedThread, calls: &[Syscall]) -> Result<Vec<Option<i64>>> {
    let maps = target.maps()?;
    run_in(target, &maps, thread, calls)
}

/// [`run`], with the mappings already read.
///
/// # Errors
/// As [`run`].
pub fn run_in(
    target: &Target,
    maps: &Maps,
    thread: &mut StoppedThread,
    calls: &[Syscall],
) -> Result<Vec<Option<i64>>> {
    let tid = thread.tid();
    let cannot = |why| Error::CannotRun { pid: target.pid(), why };
    suitability(target, maps, thread)?;
    let memory = target.memory();
    let cave = Cave::find(memory, maps)?
        .ok_or_else(|| cannot(Unsuitable::NoCave(crate::remote::cave::code().len())))?;
    if cave.range().contains(&thread.pc()) {
        return Err(cannot(Unsuitable::InProgram(tid)));
    }
    let mask = thread.signal_mask()?;
    let image = Image::build(thread.regs(), mask, calls);
    if stack_room(target, maps, thread)? < image.bytes.len() as u64 + STACK_ROOM / 2 {
        return Err(cannot(Unsuitable::LittleStack(tid)));
    }
    seccomp::suspend(target.pid(), tid, &image.filtered(&cave, calls))?;
    // Nothing has been changed up to here, and what follows changes only bytes that nobody looks at, until the
    // thread's registers are set.
    let before = memory.read_vec(image.base, image.bytes.len())?;
    write_downwards(target, image.base, &image.bytes)?;
    cave.fill(memory)?;
    let own = *thread.regs();
    let outcome = start(thread, &own, &image, &cave, mask)
        .and_then(|()| finish(target, thread, &image, &cave, mask, &own));
    match outcome {
        Ok(Caught { results, escaped }) => {
            if !escaped {
                write_downwards(target, image.base, &before)?;
                if !cave.leftover {
                    cave.clear(memory)?;
                }
            }
            // It fails only if the thread is dead, which whoever lets it go finds out.
            let _ = ptrace::set_options(tid, ptrace::O_TRACESYSGOOD);
            Ok(results)
        }
        Err(e) => Err(e),
    }
}

/// The results, and whether the thread had gone on by itself before it could be caught.
struct Caught {
    results: Vec<Option<i64>>,
    escaped: bool,
}

/// Sets the thread going.
fn start(
    thread: &StoppedThread,
    own: &libc::user_regs_struct,
    image: &Image,
    cave: &Cave,
    mask: u64,
) -> Result<()> {
    let tid = thread.tid();
    let mut regs = *own;
    regs.rip = cave.addr.0;
    regs.rbx = image.first_record.0;
    regs.rbp = image.saved_regs.0;
    regs.rsp = image.base.0;
    regs.rax = 0;
    // Not in a system call: nothing to restart.
    regs.orig_rax = u64::MAX;
    // The direction flag clear as the ABI wants it; bit 1 is always set, bit 9 is the interrupt flag.
    regs.eflags = 0x202;
    ptrace::set_regs(tid, &regs).map_err(|e| thread.failed("PTRACE_SETREGS", e))?;
    let go = ptrace::set_signal_mask(tid, u64::MAX)
        .map_err(|e| thread.failed("PTRACE_SETSIGMASK", e))
        .and_then(|()| ptrace::cont(tid, 0).map_err(|e| thread.failed("PTRACE_CONT", e)));
    if go.is_err() {
        give_back(thread, own, mask)?;
    }
    go
}

/// Gives a stopped thread its own mask and registers.
fn give_back(thread: &StoppedThread, own: &libc::user_regs_struct, mask: u64) -> Result<()> {
    ptrace::set_signal_mask(thread.tid(), mask).map_err(|e| thread.failed("PTRACE_SETSIGMASK", e))?;
    ptrace::set_regs(thread.tid(), own).map_err(|e| thread.failed("PTRACE_SETREGS", e))
}

/// Waits for the program's end, catches the thread and restores it.
fn finish(
    target: &Target,
    thread: &mut StoppedThread,
    image: &Image,
    cave: &Cave,
    mask: u64,
    own: &libc::user_regs_struct,
) -> Result<Caught> {
    let tid = thread.tid();
    let deadline = Instant::now() + PROGRAM_WAIT;
    let mut pause = POLL_MIN;
    let mut done = None;
    let mut group_stop = thread.group_stop();
    let inside = cave.range();
    loop {
        if done.is_none() && image.is_done(target)? {
            done = Some(image.results(target)?);
            // It fails only if the thread is dead, which the wait below finds out.
            let _ = ptrace::interrupt(tid);
            pause = POLL_MIN;
        }
        let event = ptrace::poll(tid).map_err(|source| Error::Ptrace { request: "waitid", tid, source })?;
        match event {
            None => {}
            Some(Event::Gone | Event::Unknown) => {
                thread.forget(false);
                return Err(Error::TargetGone(target.pid()));
            }
            Some(stop) => {
                if let Event::GroupStop(signal) = stop {
                    group_stop = Some(signal);
                }
                let regs = ptrace::regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?;
                let at = RemoteAddr(regs.rip);
                match (stop, done.take()) {
                    // Our own code does not fault; if its stack was taken away under it, the thread was lost anyway.
                    // Without its signal and with its registers it is as it was.
                    (Event::Signal(signal), _) if inside.contains(&at) && is_fault(signal) => {
                        give_back(thread, own, mask)?;
                        let why = Unsuitable::Crashed { tid, signal };
                        return Err(Error::CannotRun { pid: target.pid(), why });
                    }
                    (Event::Signal(signal), results) => {
                        done = results;
                        let _ = ptrace::cont(tid, signal);
                    }
                    (Event::Interrupted | Event::GroupStop(_), Some(results)) => {
                        let escaped = !inside.contains(&at);
                        if escaped {
                            let regs = settled_regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?;
                            thread.set_observed(regs, group_stop, true);
                        } else {
                            give_back(thread, own, mask)?;
                            thread.set_observed(*own, group_stop, false);
                        }
                        return Ok(Caught { results, escaped });
                    }
                    (_, results) => {
                        done = results;
                        let _ = ptrace::cont(tid, 0);
                    }
                }
                continue;
            }
        }
        if Instant::now() >= deadline {
            thread.forget(true);
            let comm = target.thread_stat(tid)?.map_or_else(String::new, |stat| stat.comm);
            return Err(Error::CannotStop { tid, comm, why: crate::threads::Unstoppable::InProgram });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
}

fn is_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP | libc::SIGFPE | libc::SIGSYS
    )
}

/// Writes from the highest page to the lowest, so that a guard page in the way is met before anything below it is touched.
fn write_downwards(target: &Target, base: RemoteAddr, bytes: &[u8]) -> Result<()> {
    const PAGE: u64 = 4096;
    let mut end = bytes.len();
    while end > 0 {
        let page = (base.0 + end as u64 - 1) / PAGE * PAGE;
        let start = page.saturating_sub(base.0) as usize;
        target.memory().write(RemoteAddr(base.0 + start as u64), &bytes[start..end])?;
        end = start;
    }
    Ok(())
}

/// A program as it lies on the thread's stack.
struct Image {
    base: RemoteAddr,
    bytes: Vec<u8>,
    first_record: RemoteAddr,
    saved_regs: RemoteAddr,
    /// The record of the sleep in which the thread is caught.
    catch: RemoteAddr,
    calls: usize,
}

impl Image {
    /// Lays out, from low to high: records, numbers that arguments point to, bytes, the progress word, the saved registers,
    /// and rip just below the red zone.
    fn build(own: &libc::user_regs_struct, mask: u64, calls: &[Syscall]) -> Self {
        assert!(calls.len() <= PROGRAM_CALLS, "a program of {} calls", calls.len());
        // Behind the caller's calls: the sleep, the signal mask, the end.
        let catch_time: Vec<u8> = [CATCH_WAIT.as_secs(), u64::from(CATCH_WAIT.subsec_nanos())]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let none = || Arg::Value(0);
        let sleep = vec![none(), none(), none(), none(), Arg::Bytes(catch_time), none()];
        let set_mask = vec![
            Arg::Value(libc::SIG_SETMASK as u64),
            Arg::Bytes(mask.to_le_bytes().to_vec()),
            none(),
            Arg::Value(size_of::<u64>() as u64),
        ];
        let own_calls = [
            Syscall::new("pselect6", libc::SYS_pselect6, sleep).on_error(Next::Following),
            Syscall::new("rt_sigprocmask", libc::SYS_rt_sigprocmask, set_mask).on_error(Next::Following),
        ];
        let records = calls.len() + own_calls.len() + 1;
        let mut pool = Pool::default();
        let regs = saved_words(own);
        // Sizes first, since everything lies below a fixed upper end.
        for call in calls.iter().chain(&own_calls) {
            call.args.iter().for_each(|arg| pool.add(arg));
        }
        pool.add(&Arg::Value(0));
        let records_len = records as u64 * RECORD_WORDS * WORD;
        let pool_len = (pool.bytes.len() as u64).next_multiple_of(WORD);
        let saved_regs = RemoteAddr(own.rsp - RED_ZONE - regs.len() as u64 * WORD);
        let unaligned = saved_regs.0 - WORD - pool_len - records_len;
        let base = RemoteAddr(unaligned & !63);
        let pool_base = base.0 + records_len;
        let record = |i: usize| base.0 + i as u64 * RECORD_WORDS * WORD;
        let mut bytes = vec![0u8; (own.rsp - RED_ZONE - base.0) as usize];
        let mut put = |addr: u64, word: u64| {
            let at = (addr - base.0) as usize;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        };
        for (i, call) in calls.iter().chain(&own_calls).enumerate() {
            assert!(call.args.len() <= 6, "{} with {} arguments", call.name, call.args.len());
            let follow = |next| match next {
                Next::Following => record(i + 1),
                Next::Jump(to) => {
                    assert!(to < calls.len(), "{} goes on at call {to} of {}", call.name, calls.len());
                    record(to)
                }
                Next::End => record(calls.len()),
            };
            let at = |word: u64| record(i) + word * WORD;
            put(at(0), call.number.cast_unsigned());
            for n in 0..6 {
                let arg = call.args.get(n).unwrap_or(&Arg::Value(0));
                let pointer = match arg {
                    Arg::Result(of) => {
                        assert!(*of < calls.len(), "{} uses the result of call {of}", call.name);
                        record(*of) + RESULT * WORD
                    }
                    arg => pool_base + pool.pointer(arg),
                };
                put(at(1 + n as u64), pointer);
            }
            put(at(RESULT), NOT_MADE);
            put(at(8), follow(call.then));
            put(at(9), follow(call.on_error));
        }
        put(record(records - 1), LEAVE);
        for (i, word) in regs.iter().enumerate() {
            put(saved_regs.0 + i as u64 * WORD, *word);
        }
        let at = (pool_base - base.0) as usize;
        bytes[at..at + pool.bytes.len()].copy_from_slice(&pool.bytes);
        // Pointers to bytes are numbers that are only known now.
        for (slot, offset) in pool.addresses {
            let at = (pool_base + slot - base.0) as usize;
            bytes[at..at + 8].copy_from_slice(&(pool_base + offset).to_le_bytes());
        }
        Self {
            base,
            bytes,
            first_record: RemoteAddr(record(0)),
            saved_regs,
            catch: RemoteAddr(record(calls.len())),
            calls: calls.len(),
        }
    }

    /// The calls as the thread's seccomp filters would see them. Results of earlier calls are descriptors, of no interest to
    /// filters; any will do.
    fn filtered(&self, cave: &Cave, calls: &[Syscall]) -> Vec<seccomp::Call> {
        let word = |arg: Option<&Arg>| match arg {
            None => 0,
            Some(Arg::Value(value)) => *value,
            Some(Arg::Bytes(_)) => self.base.0,
            Some(Arg::Result(_)) => 3,
        };
        let call = |name, number, args: &[Arg], vital| seccomp::Call {
            name,
            number,
            instruction_pointer: cave.addr.0,
            args: std::array::from_fn(|n| word(args.get(n))),
            vital,
        };
        let sleep = [0, 0, 0, 0, self.base.0, 0].map(Arg::Value);
        let set_mask = [libc::SIG_SETMASK as u64, self.base.0, 0, WORD].map(Arg::Value);
        let mut all: Vec<_> = calls.iter().map(|c| call(c.name, c.number, &c.args, false)).collect();
        all.push(call("pselect6", libc::SYS_pselect6, &sleep, false));
        all.push(call("rt_sigprocmask", libc::SYS_rt_sigprocmask, &set_mask, true));
        all
    }

    /// Whether the thread has come to the sleep, or further.
    fn is_done(&self, target: &Target) -> Result<bool> {
        let progress = target.memory().read_u64(self.saved_regs.offset(-8))?;
        Ok(progress >= self.catch.0)
    }

    fn results(&self, target: &Target) -> Result<Vec<Option<i64>>> {
        let len = self.calls * (RECORD_WORDS * WORD) as usize;
        let records = target.memory().read_vec(self.first_record, len)?;
        let result = |record: &[u8]| {
            let at = (RESULT * WORD) as usize;
            let word = record[at..at + 8].try_into().map_or(NOT_MADE, u64::from_le_bytes);
            (word != NOT_MADE).then_some(word.cast_signed())
        };
        Ok(records.chunks_exact((RECORD_WORDS * WORD) as usize).map(result).collect())
    }
}

/// The numbers and bytes that arguments point to. Each is there once.
#[derive(Default)]
struct Pool {
    bytes: Vec<u8>,
    values: HashMap<u64, u64>,
    blobs: HashMap<Vec<u8>, u64>,
    /// Words that are to hold the address of something else in the pool.
    addresses: Vec<(u64, u64)>,
}

impl Pool {
    fn add(&mut self, arg: &Arg) {
        match arg {
            Arg::Value(value) if !self.values.contains_key(value) => {
                let at = self.append(&value.to_le_bytes());
                self.values.insert(*value, at);
            }
            Arg::Bytes(bytes) if !self.blobs.contains_key(bytes) => {
                let offset = self.append(bytes);
                let slot = self.append(&[0; 8]);
                self.addresses.push((slot, offset));
                self.blobs.insert(bytes.clone(), slot);
            }
            _ => {}
        }
    }

    fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        at as u64
    }

    /// Offset of the word that holds the argument's value.
    fn pointer(&self, arg: &Arg) -> u64 {
        let found = match arg {
            Arg::Value(value) => self.values.get(value),
            Arg::Bytes(bytes) => self.blobs.get(bytes),
            Arg::Result(_) => None,
        };
        *found.expect("every argument was added")
    }
}

/// The registers in the order in which the cave's code takes them back, the way the kernel would go on with the
/// interrupted system call.
fn saved_words(own: &libc::user_regs_struct) -> [u64; 17] {
    let (rip, rax) = match restart_code(own) {
        // The syscall instruction is two bytes long.
        Some(Restart::Again) => (own.rip - 2, own.orig_rax),
        Some(Restart::Block) => (own.rip - 2, libc::SYS_restart_syscall as u64),
        _ => (own.rip, own.rax),
    };
    [
        own.eflags, own.r15, own.r14, own.r13, own.r12, own.r11, own.r10, own.r9, own.r8, own.rdi, own.rsi,
        own.rdx, own.rcx, own.rbx, rax, own.rbp, rip,
    ]
}

/// The error of a call that failed with this result.
pub(crate) fn call_error(target: &Target, call: &'static str, result: i64) -> Error {
    let source = io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL));
    Error::RemoteCall { pid: target.pid(), call, source }
}

/// What the user can do about a call that failed in the target because one of its limits is reached.
pub(crate) fn way_out(call: &str, error: &io::Error, pid: Pid) -> String {
    match (call, error.raw_os_error()) {
        (_, Some(libc::EMFILE)) => {
            format!("; it is at its limit: raise it with `prlimit --pid {pid} --nofile=...`")
        }
        ("mmap" | "mprotect", Some(libc::ENOMEM)) => format!(
            "; it is at a limit of its memory: `prlimit --pid {pid} --as --data`, or of the number of its mappings: \
             sysctl vm.max_map_count"
        ),
        ("mmap" | "mprotect", Some(libc::EAGAIN)) => {
            format!(
                "; it locks its memory, and is at its limit: raise it with `prlimit --pid {pid} --memlock=...`"
            )
        }
        _ => String::new(),
    }
}
