//! Having a stopped thread of the target make system calls for us.
//!
//! The calls are written as a small program onto the thread's own stack, below its red zone, together with all its
//! registers; the [cave] holds the code that works through them. The thread is given registers that make it
//! run the program and then take its own registers back, so a tool that is killed at any moment leaves a thread that
//! finishes and goes on where it was: at its interrupted system call, if it was in one, which it makes again (a call with
//! a timeout goes on with the rest of it, by restart_syscall(2)).
//!
//! While the tool lives the thread does not get that far. Behind the program's calls it sleeps for a moment
//! ([`CATCH_WAIT`](crate::limits::CATCH_WAIT)), is stopped there, and gets its registers back by ptrace, where the kernel then finds the state of
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
mod program;
pub(crate) mod seccomp;
pub mod sharing;
mod suitable;

pub use program::{Arg, Next, OnError, Syscall};
pub use suitable::{Unsuitable, choose, stop_suitable, suitability};

use crate::limits::{POLL_MAX, POLL_MIN, PROGRAM_WAIT, STACK_ROOM};
use crate::remote::cave::Cave;
use crate::remote::program::Image;
use crate::remote::suitable::stack_room;
use crate::target::Target;
use crate::target::maps::Maps;
use crate::threads::ptrace::{self, Event};
use crate::threads::{StoppedThread, settled_regs};
use crate::{Error, Pid, RemoteAddr, Result};
use std::io;
use std::time::Instant;

/// Runs the calls on the thread, in order, and returns each one's result as the kernel gives it (negative errno, address,
/// count...); `None` for calls that were not made because an earlier one failed. A failing call is not an error
/// of this function.
///
/// The thread is stopped before and after, with the same registers, unless the tool was kept from its processor for longer
/// than [`CATCH_WAIT`](crate::limits::CATCH_WAIT): then it has gone on by itself and been stopped again ([`StoppedThread::ran_on`]). Other threads may
/// run meanwhile or not.
///
/// # Errors
/// [`Error::CannotRun`] before anything has happened, or if the thread crashed; [`Error::TargetGone`] if it died;
/// [`Error::CannotStop`] if it does not come back, in which case it is let go and will finish alone.
///
/// # Panics
/// If the program has more than [`PROGRAM_CALLS`](crate::limits::PROGRAM_CALLS) calls, a call with more than six arguments, or a reference to a call that
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
