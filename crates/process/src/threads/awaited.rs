//! Threads that were asked to stop and have not yet: looking at one, and letting those go that nobody waits for any more.

use crate::limits::{DEATH_WAIT, GRACE, POLL_MAX, POLL_MIN};
use crate::threads::interrupted::{ERESTARTNOHAND, needs_hiding};
use crate::threads::ptrace::Event;
use crate::threads::{StoppedThread, ptrace, rescue};
use crate::{Error, Pid, Result, Tid};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// A thread that was asked to stop.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) pid: Pid,
    pub(super) tid: Tid,
    pub(super) since: Instant,
}

pub(super) enum Seen {
    Running,
    Stopped(Box<StoppedThread>),
    Dead,
    /// Not there under that id. An exec may have given it the id of the process's first thread, and it is then still
    /// traced.
    Unknown,
}

/// Looks at a thread that was asked to stop.
pub(super) fn look(pid: Pid, tid: Tid, since: Instant) -> Result<Seen> {
    let failed = |request| move |source| Error::Ptrace { request, tid, source };
    let group_stop = match ptrace::poll(tid).map_err(failed("waitid"))? {
        None => return Ok(Seen::Running),
        Some(Event::Gone) => {
            rescue::detached(tid);
            return Ok(Seen::Dead);
        }
        Some(Event::Unknown) => {
            rescue::detached(tid);
            return Ok(Seen::Unknown);
        }
        Some(Event::Interrupted) => None,
        Some(Event::GroupStop(signal)) => Some(signal),
        Some(Event::Signal(signal)) => return pass_on(tid, signal),
        Some(Event::Other(_)) => return pass_on(tid, 0),
    };
    let regs = match settled_regs(tid) {
        Ok(regs) => regs,
        // Killed since: soon to be reaped.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(Seen::Running),
        Err(e) => return Err(failed("PTRACE_GETREGS")(e)),
    };
    let thread = StoppedThread::new(pid, tid, regs, group_stop, since);
    Ok(Seen::Stopped(Box::new(thread)))
}

/// The registers of a thread that has just stopped on its way to user mode, its interruption hidden.
pub(crate) fn settled_regs(tid: Tid) -> io::Result<libc::user_regs_struct> {
    let mut regs = ptrace::regs(tid)?;
    if needs_hiding(regs.rax, regs.orig_rax) {
        ptrace::set_rax(tid, ERESTARTNOHAND)?;
        regs.rax = ERESTARTNOHAND;
    }
    Ok(regs)
}

/// Lets a thread have its signal; the stop that was asked for follows.
fn pass_on(tid: Tid, signal: i32) -> Result<Seen> {
    match ptrace::cont(tid, signal) {
        Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::Ptrace { request: "PTRACE_CONT", tid, source })
        }
        _ => Ok(Seen::Running),
    }
}

thread_local! {
    /// Threads that this thread traces, and that have not stopped yet although nobody waits for them any more.
    static ABANDONED: RefCell<Vec<(Pid, Tid)>> = const { RefCell::new(Vec::new()) };
}

/// Lets threads go that did not stop in time for an earlier stop, and have stopped since. Returns how many have still
/// not stopped.
pub fn settle() -> usize {
    let mut list = ABANDONED.take();
    list.retain_mut(|thread| !let_go(thread));
    ABANDONED.with_borrow_mut(|abandoned| {
        abandoned.append(&mut list);
        abandoned.len()
    })
}

/// Leaves a thread, which is traced by us, to the next [`settle`].
pub(super) fn give_up(pid: Pid, tid: Tid) {
    ABANDONED.with_borrow_mut(|list| list.push((pid, tid)));
}

/// Whether the thread was left to be settled, which it is not any more.
pub(super) fn take_back(tid: Tid) -> bool {
    ABANDONED.with_borrow_mut(|list| {
        let known = list.iter().position(|thread| thread.1 == tid);
        known.map(|i| list.remove(i)).is_some()
    })
}

/// Gives up waiting: those that stop soon are let go then, the others when they are found stopped.
pub(super) fn abandon(awaited: VecDeque<Awaited>) {
    let mut left: Vec<_> = awaited.into_iter().map(|a| (a.pid, a.tid)).collect();
    let deadline = Instant::now() + GRACE;
    let mut pause = POLL_MIN;
    loop {
        left.retain_mut(|thread| !let_go(thread));
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    ABANDONED.with_borrow_mut(|list| list.append(&mut left));
}

/// Detaches from a thread if it has stopped; false if it has not. A thread that an exec gave another id is followed there.
fn let_go(thread: &mut (Pid, Tid)) -> bool {
    let (pid, tid) = *thread;
    match look(pid, tid, Instant::now()) {
        // Letting go is what dropping it does.
        Ok(Seen::Stopped(_) | Seen::Dead) | Err(_) => true,
        Ok(Seen::Running) => ptrace::interrupt(tid).is_err(),
        Ok(Seen::Unknown) => {
            thread.1 = Tid(pid.0);
            tid.0 == pid.0 || ptrace::interrupt(thread.1).is_err()
        }
    }
}

/// Waits for a killed thread to be reapable, and reaps it. An exec may have put another thread under its id: that one is
/// let go.
pub(super) fn reap(pid: Pid, tid: Tid) {
    let deadline = Instant::now() + DEATH_WAIT;
    let mut pause = POLL_MIN;
    loop {
        match ptrace::poll(tid) {
            Ok(Some(Event::Gone | Event::Unknown)) | Err(_) => return,
            Ok(Some(Event::Signal(signal))) => drop(ptrace::cont(tid, signal)),
            Ok(Some(_)) if ptrace::detach(tid).is_ok() => return,
            Ok(_) if ptrace::interrupt(tid).is_err() => return,
            Ok(_) => {}
        }
        if Instant::now() >= deadline {
            give_up(pid, tid);
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// Runs `work`, which may stop threads, on a thread of its own, and returns its result.
///
/// When that thread has ended the kernel has let go of everything it traced, the threads included that could not be
/// detached from because they did not stop.
pub fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
