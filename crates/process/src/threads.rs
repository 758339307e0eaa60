//! Stopping threads, one or all, for a short and measured time, so that they do not notice.
//!
//! A stopped thread is a value, and letting it run on consumes the value; dropping it lets it run on too. Nothing stays
//! attached between stops: a tracer that is not waiting would hold up the target's exec and its parent's wait
//! (`kernel/exit.c`, `fs/exec.c`).
//!
//! - **Signals.** A signal that is about to be delivered when the stop comes is passed on at once; the thread then stops
//!   at the entry of its handler, because the kernel looks for our trap before it takes the next signal (`get_signal` in
//!   `kernel/signal.c`). So none is lost, repeated, or overtaken by another.
//! - **Job control.** A process that is stopped by SIGSTOP and the like goes back to that state when it is let go.
//! - **Blocked calls** are restarted; see [`interrupted`] for those that need help.
//! - **Death and exec.** A dead thread is reaped, the first thread of the process last, which the kernel requires; every
//!   wait looks at all the threads that are still awaited, since one may be waiting for another to be reaped.
//! - **A thread that does not stop** (it waits uninterruptibly, or for its vfork child) makes the whole stop fail within
//!   the time given. Threads in that state are not even attached to. One that enters it between that look and the stop
//!   cannot be detached from until it stops: it is let go at the next stop, by [`settle`], or by the kernel when the
//!   tracing thread ends. [`on_own_thread`] bounds that.
//!
//! All values belong to the thread that made them, since to the kernel a thread is the tracer.

pub(crate) mod crowd;
pub mod interrupted;
pub mod priority;
pub(crate) mod ptrace;
pub(crate) mod rescue;

use crate::canary::canary;
use crate::limits::{DEATH_WAIT, GRACE, POLL_MAX, POLL_MIN, STOP_ROUNDS};
use crate::target::stat::ThreadStat;
use crate::target::{Target, permission_advice, tracer_of};
use crate::threads::interrupted::{ERESTARTNOHAND, needs_hiding};
use crate::threads::priority::Urgent;
use crate::threads::ptrace::Event;
use crate::threads::rescue::Attaching;
use crate::{Error, Pid, RemoteAddr, Result, Tid};
use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Why a thread did not stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unstoppable {
    /// It made a child by vfork(2) (posix_spawn, system, popen) that has neither called exec nor exited.
    #[error("it waits for a vfork child to exec or exit")]
    Vfork,
    /// It is in an uninterruptible sleep, in the system call of that number if it is known.
    #[error("it is in an uninterruptible sleep{}, or frozen with its control group", .0.map_or(String::new(), |nr| format!(" (system call {nr})")))]
    Uninterruptible(Option<i64>),
    /// It is ready to run, but did not get so far.
    #[error("it is ready to run, but got no processor time")]
    Starved,
    /// The process makes threads faster than they can be stopped.
    #[error("the process makes new threads faster than they can be stopped")]
    BirthRate,
    /// It was running calls for us, and did not finish; it will, alone.
    #[error(
        "it did not finish the calls it was given, as if its control group (its container) were frozen, but will when it runs"
    )]
    InProgram,
    /// It, or another thread, is loading or unloading a library, or in a callback for one.
    #[error("it is loading or unloading a library")]
    InLoader,
    /// Anything else; the state letter of proc(5).
    #[error("it is in state {0}")]
    Other(char),
}

/// What became of a thread that was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It runs on (or is stopped by job control, as before).
    Resumed {
        /// How long it had been stopped.
        stopped_for: Duration,
    },
    /// It was killed while it was stopped, and has been reaped.
    Died,
}

/// How long a stop of a whole process took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Threads stopped.
    pub threads: usize,
    /// Of these, how many were killed meanwhile.
    pub died: usize,
    /// From the first thread's stop request to the last one's release.
    pub total: Duration,
    /// The longest time that one thread was stopped.
    pub longest: Duration,
}

/// A thread that is stopped on its way back to user mode.
#[derive(Debug)]
pub struct StoppedThread {
    pid: Pid,
    tid: Tid,
    regs: libc::user_regs_struct,
    group_stop: Option<i32>,
    since: Instant,
    held: bool,
    ran_on: bool,
    /// For a thread that is stopped alone; a stop of all has one for all.
    _urgent: Option<Urgent>,
    /// The tracer is a thread.
    _not_send: PhantomData<*const ()>,
}

/// All threads of a process, stopped.
#[derive(Debug)]
pub struct StoppedProcess {
    threads: Vec<StoppedThread>,
    workers: Vec<Tid>,
    since: Instant,
    died: usize,
    _urgent: Urgent,
}

/// A thread that was asked to stop.
#[derive(Debug)]
struct Awaited {
    pid: Pid,
    tid: Tid,
    since: Instant,
}

thread_local! {
    /// Threads that this thread traces, and that have not stopped yet although nobody waits for them any more.
    static ABANDONED: RefCell<Vec<(Pid, Tid)>> = const { RefCell::new(Vec::new()) };
}

impl StoppedThread {
    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its general registers. If it was stopped in a system call, `orig_rax` is the call's number and `rax` a restart
    /// code; otherwise `orig_rax` is -1 or rax no restart code.
    #[must_use]
    pub fn regs(&self) -> &libc::user_regs_struct {
        &self.regs
    }

    /// Its program counter.
    #[must_use]
    pub fn pc(&self) -> RemoteAddr {
        RemoteAddr(self.regs.rip)
    }

    /// Its stack pointer.
    #[must_use]
    pub fn sp(&self) -> RemoteAddr {
        RemoteAddr(self.regs.rsp)
    }

    /// Its thread pointer, which `rdfsbase` gives.
    #[must_use]
    pub fn fs_base(&self) -> RemoteAddr {
        RemoteAddr(self.regs.fs_base)
    }

    /// The number of the system call it is blocked in, which will be restarted.
    #[must_use]
    pub fn blocked_call(&self) -> Option<i64> {
        let restart = restart_code(&self.regs)?;
        (restart != Restart::None).then_some(self.regs.orig_rax.cast_signed())
    }

    /// The signal of its job-control stop, if it is in one.
    #[must_use]
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// The signals it has blocked, bit N-1 for signal N.
    ///
    /// # Errors
    /// [`Error::TargetGone`] if it was killed, or [`Error::Ptrace`].
    pub fn signal_mask(&self) -> Result<u64> {
        ptrace::signal_mask(self.tid).map_err(|e| self.failed("PTRACE_GETSIGMASK", e))
    }

    /// When it was asked to stop.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it has run on by itself behind a [remote program](crate::remote), because it was not caught in time, and was
    /// stopped again: what was known of it before is then no longer so.
    #[must_use]
    pub fn ran_on(&self) -> bool {
        self.ran_on
    }

    /// Sets its registers. It may be let go at any moment by the death of the tool, so they must be such that it can go
    /// on from there.
    ///
    /// # Errors
    /// As [`StoppedThread::signal_mask`].
    pub fn set_regs(&mut self, regs: &libc::user_regs_struct) -> Result<()> {
        ptrace::set_regs(self.tid, regs).map_err(|e| self.failed("PTRACE_SETREGS", e))?;
        self.regs = *regs;
        Ok(())
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// [`Error::Ptrace`] if it can be neither let go nor reaped.
    pub fn resume(mut self) -> Result<Release> {
        self.release()
    }

    /// Takes note that it runs, under our eyes.
    pub(crate) fn set_observed(
        &mut self,
        regs: libc::user_regs_struct,
        group_stop: Option<i32>,
        ran_on: bool,
    ) {
        self.regs = regs;
        self.group_stop = group_stop;
        self.ran_on |= ran_on;
    }

    /// Takes note that it is gone, or that nobody can let it go now.
    pub(crate) fn forget(&mut self, abandoned: bool) {
        self.held = false;
        if abandoned {
            ABANDONED.with_borrow_mut(|list| list.push((self.pid, self.tid)));
        }
    }

    pub(crate) fn failed(&self, request: &'static str, source: io::Error) -> Error {
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Error::TargetGone(self.pid);
        }
        Error::Ptrace { request, tid: self.tid, source }
    }

    fn release(&mut self) -> Result<Release> {
        if !self.held {
            return Ok(Release::Died);
        }
        self.held = false;
        rescue::detached(self.tid);
        match ptrace::detach(self.tid) {
            Ok(()) => Ok(Release::Resumed { stopped_for: self.since.elapsed() }),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                reap(self.pid, self.tid);
                Ok(Release::Died)
            }
            Err(source) => Err(Error::Ptrace { request: "PTRACE_DETACH", tid: self.tid, source }),
        }
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        if let Err(e) = self.release() {
            tracing::error!("{e}");
        }
    }
}

impl StoppedProcess {
    /// Its threads, without those that are dead or that the kernel keeps for itself.
    #[must_use]
    pub fn threads(&self) -> &[StoppedThread] {
        &self.threads
    }

    /// Its threads, to work with.
    #[must_use]
    pub fn threads_mut(&mut self) -> &mut [StoppedThread] {
        &mut self.threads
    }

    /// Threads that the kernel runs on the process's behalf (io_uring, vhost). They are not stopped, and never run user
    /// code.
    #[must_use]
    pub fn workers(&self) -> &[Tid] {
        &self.workers
    }

    /// When the first thread was asked to stop.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Lets all run on.
    ///
    /// # Errors
    /// The first [`Error::Ptrace`]; the others are let go all the same.
    pub fn resume(mut self) -> Result<StopReport> {
        self.resume_all()
    }

    /// Lets all run on but the one at `index` of [`StoppedProcess::threads`].
    ///
    /// # Errors
    /// As [`StoppedProcess::resume`]; then that one is let go too.
    ///
    /// # Panics
    /// If there is no such thread.
    pub fn resume_but(mut self, index: usize) -> Result<(StoppedThread, StopReport)> {
        let mut kept = self.threads.remove(index);
        let mut report = self.resume_all()?;
        report.threads += 1;
        kept._urgent = Some(self._urgent);
        Ok((kept, report))
    }

    fn resume_all(&mut self) -> Result<StopReport> {
        let mut report =
            StopReport { threads: self.threads.len() + self.died, died: self.died, ..StopReport::default() };
        let mut result = Ok(());
        for thread in &mut self.threads {
            match thread.release() {
                Ok(Release::Resumed { stopped_for }) => report.longest = report.longest.max(stopped_for),
                Ok(Release::Died) => report.died += 1,
                Err(e) => result = result.and(Err(e)),
            }
        }
        report.total = self.since.elapsed();
        result.map(|()| report)
    }
}

/// Stops every thread of the target, or none: on any error all are let go.
///
/// `within` bounds the time until all are stopped.
///
/// # Errors
/// [`Error::CannotStop`] when the time is over, [`Error::AlreadyTraced`], [`Error::Permission`], [`Error::TargetGone`].
pub fn stop_all(target: &Target, within: Duration) -> Result<StoppedProcess> {
    let deadline = Instant::now() + within;
    settle();
    let listed = target.threads()?;
    let mut attaching = (listed.len() > 1 || rescue::holds_any()).then(Attaching::begin);
    let urgent = Urgent::begin();
    let mut known = HashSet::new();
    let mut workers = Vec::new();
    // Before anything stops: attach to all, and see that each can stop. That costs a thread next to nothing.
    let mut seized = Seized { pid: target.pid(), tids: Vec::new() };
    for tid in listed {
        known.insert(tid);
        match stoppable(target, tid, deadline)? {
            Some(stat) if stat.is_worker() => workers.push(tid),
            Some(_) => seized.add(target, tid)?,
            None => {}
        }
    }
    let mut process =
        StoppedProcess { threads: Vec::new(), workers, since: Instant::now(), died: 0, _urgent: urgent };
    let mut before = Vec::new();
    for _ in 0..STOP_ROUNDS {
        process.died += wait_all(target, seized.interrupt(), deadline, &mut process.threads)?;
        // A thread may have been born before its maker stopped.
        let listed = target.threads()?;
        let held: HashSet<_> = process.threads.iter().map(|t| t.tid).chain(process.workers.clone()).collect();
        let mut all_held = true;
        let overlooked = |_: &Tid| canary!("overlook-the-newborn");
        for tid in listed.iter().copied().filter(|tid| !held.contains(tid) && !overlooked(tid)) {
            all_held = false;
            if !known.insert(tid) {
                continue;
            }
            match target.thread_stat(tid)? {
                Some(stat) if stat.is_worker() => process.workers.push(tid),
                Some(stat) if stat.is_dead() => {}
                Some(_) => {
                    attaching.get_or_insert_with(Attaching::begin);
                    seized.add(target, tid)?;
                }
                None => {}
            }
        }
        // A listing ends early where a thread dies under it (`next_tid` in fs/proc/base.c). A held one does not; and if the
        // same are listed twice none has died between.
        if seized.tids.is_empty() && (all_held || listed == before) {
            // The first thread goes last, since it cannot be reaped before the others.
            let first = target.pid().0;
            process.threads.sort_by_key(|t| t.tid.0 == first);
            // Its id cannot have been reused while we held its threads; it may have called exec.
            target.check_not_execed()?;
            return Ok(process);
        }
        before = listed;
    }
    let tid = seized.tids.first().copied().unwrap_or(Tid(target.pid().0));
    Err(Error::CannotStop { tid, comm: comm(target, tid), why: Unstoppable::BirthRate })
}

/// Stops one thread; `None` if it is dead, gone, or one that the kernel keeps for itself.
///
/// # Errors
/// As [`stop_all`].
pub fn stop_one(target: &Target, tid: Tid, within: Duration) -> Result<Option<StoppedThread>> {
    let deadline = Instant::now() + within;
    settle();
    match stoppable(target, tid, deadline)? {
        Some(stat) if !stat.is_worker() => {}
        _ => return Ok(None),
    }
    let _attaching = rescue::holds_any().then(Attaching::begin);
    let urgent = Urgent::begin();
    let mut seized = Seized { pid: target.pid(), tids: Vec::new() };
    seized.add(target, tid)?;
    let mut stopped = Vec::new();
    wait_all(target, seized.interrupt(), deadline, &mut stopped)?;
    let mut thread = stopped.pop();
    if let Some(thread) = &mut thread {
        thread._urgent = Some(urgent);
    }
    Ok(thread)
}

/// Asks threads to stop, all at once, and gives each to `seen` as soon as it has; none waits for another. Those that are
/// dead, gone, or the kernel's own are left out. Returns the threads that had not stopped after `within`.
///
/// On few processors with many busy threads, this takes as long as one thread waits for its turn, and not as many times
/// that as there are threads.
///
/// # Errors
/// As [`stop_all`], and those of `seen`; the threads are let go.
pub fn stop_each(
    target: &Target,
    tids: &[Tid],
    within: Duration,
    mut seen: impl FnMut(StoppedThread) -> Result<()>,
) -> Result<Vec<(Tid, Unstoppable)>> {
    let deadline = Instant::now() + within;
    settle();
    let _attaching = Attaching::begin();
    let _urgent = Urgent::begin();
    let mut late = Vec::new();
    let mut seized = Seized { pid: target.pid(), tids: Vec::new() };
    for &tid in tids {
        match target.thread_stat(tid)? {
            Some(stat) if stat.is_worker() || stat.is_dead() => {}
            Some(stat) if stat.state == 'D' => late.push((tid, why_unstoppable(target, tid))),
            Some(_) => seized.add(target, tid)?,
            None => {}
        }
    }
    let mut awaited = seized.interrupt();
    let mut pause = POLL_MIN;
    while !awaited.is_empty() {
        let mut progress = false;
        let mut i = 0;
        while i < awaited.len() {
            let Awaited { pid, tid, .. } = awaited[i];
            // It was not stopped while it waited for its turn.
            let result = match look(pid, tid, Instant::now()) {
                Ok(Seen::Running) => {
                    i += 1;
                    continue;
                }
                Ok(Seen::Stopped(thread)) => seen(*thread),
                Ok(Seen::Dead | Seen::Unknown) => Ok(()),
                Err(e) => Err(e),
            };
            progress = true;
            awaited.remove(i);
            if let Err(e) = result {
                abandon(awaited);
                return Err(e);
            }
        }
        if progress {
            pause = POLL_MIN;
            continue;
        }
        if Instant::now() >= deadline {
            late.extend(awaited.iter().map(|a| (a.tid, why_unstoppable(target, a.tid))));
            abandon(awaited);
            break;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(late)
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

/// How a blocked system call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// Not at all: it has its result.
    None,
    /// It is made again with the same registers.
    Again,
    /// By restart_syscall(2), which goes on with what the kernel remembers of it.
    Block,
}

/// How the kernel will go on with the system call in these registers (`arch_do_signal_or_restart` in
/// `arch/x86/kernel/signal.c`); `None` outside of system calls.
pub(crate) fn restart_code(regs: &libc::user_regs_struct) -> Option<Restart> {
    if regs.orig_rax.cast_signed() < 0 {
        return None;
    }
    Some(match regs.rax.cast_signed() {
        // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
        -514..=-512 => Restart::Again,
        // ERESTART_RESTARTBLOCK
        -516 => Restart::Block,
        _ => Restart::None,
    })
}

/// What procfs says of the thread, once it can be expected to stop: not in an uninterruptible sleep. `None` if it is
/// dead or gone.
fn stoppable(target: &Target, tid: Tid, deadline: Instant) -> Result<Option<ThreadStat>> {
    let mut pause = POLL_MIN;
    loop {
        let Some(stat) = target.thread_stat(tid)? else { return Ok(None) };
        if stat.is_dead() {
            return Ok(None);
        }
        if stat.state != 'D' || stat.is_worker() {
            return Ok(Some(stat));
        }
        if Instant::now() >= deadline {
            return Err(Error::CannotStop {
                tid,
                comm: stat.comm.clone(),
                why: why_unstoppable(target, tid),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// Attaches to a thread, which runs on; false if it is dead or gone.
fn seize(target: &Target, tid: Tid) -> Result<bool> {
    let pid = target.pid();
    let e = match ptrace::seize(tid, ptrace::O_TRACESYSGOOD) {
        Ok(()) => {
            rescue::attached(pid, tid);
            return Ok(true);
        }
        Err(e) => e,
    };
    if ABANDONED
        .with_borrow_mut(|list| list.iter().position(|t| t.1 == tid).map(|i| list.remove(i)))
        .is_some()
    {
        // Ours since an earlier stop.
        return Ok(true);
    }
    match e.raw_os_error() {
        Some(libc::ESRCH) => Ok(false),
        Some(libc::EPERM) => match ThreadStat::read(pid, tid)? {
            // The kernel says EPERM of dead threads too.
            None => Ok(false),
            Some(stat) if stat.is_dead() => Ok(false),
            Some(_) => Err(match tracer_of(pid, tid)? {
                Some((tracer, comm)) => Error::AlreadyTraced { tid, tracer, comm },
                None => Error::Permission(pid, permission_advice(pid)),
            }),
        },
        _ => Err(Error::Ptrace { request: "PTRACE_SEIZE", tid, source: e }),
    }
}

/// Threads that are attached to and run. Dropping it lets them go.
#[derive(Debug)]
struct Seized {
    pid: Pid,
    tids: Vec<Tid>,
}

impl Seized {
    fn add(&mut self, target: &Target, tid: Tid) -> Result<()> {
        if seize(target, tid)? {
            self.tids.push(tid);
        }
        Ok(())
    }

    /// Asks them to stop, without waiting for any.
    fn interrupt(&mut self) -> VecDeque<Awaited> {
        let pid = self.pid;
        self.tids
            .drain(..)
            .map(|tid| {
                let since = Instant::now();
                // It fails only if the thread is dead, which waiting for it will find out.
                let _ = ptrace::interrupt(tid);
                Awaited { pid, tid, since }
            })
            .collect()
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // Only a stopped thread can be detached from.
        abandon(self.interrupt());
    }
}

/// Waits until every awaited thread has stopped or died; returns how many died.
fn wait_all(
    target: &Target,
    mut awaited: VecDeque<Awaited>,
    deadline: Instant,
    stopped: &mut Vec<StoppedThread>,
) -> Result<usize> {
    /// How often all are looked at, and not only the first: a thread may be unable to stop before another is reaped.
    const SWEEP: Duration = Duration::from_millis(1);
    let mut died = 0;
    let mut pause = POLL_MIN;
    let mut swept = Instant::now();
    while !awaited.is_empty() {
        let now = Instant::now();
        let sweep = now - swept >= SWEEP;
        if sweep {
            swept = now;
            stopped.retain_mut(|thread| {
                let dead = matches!(ptrace::poll(thread.tid), Ok(Some(Event::Gone)));
                if dead {
                    thread.forget(false);
                    died += 1;
                }
                !dead
            });
        }
        let mut i = 0;
        let mut progress = false;
        while i < awaited.len() {
            let Awaited { pid, tid, since } = awaited[i];
            match look(pid, tid, since) {
                Ok(Seen::Stopped(thread)) => stopped.push(*thread),
                Ok(Seen::Dead) => died += 1,
                Ok(Seen::Unknown) => {
                    died += 1;
                    let first = Tid(pid.0);
                    let known =
                        awaited.iter().any(|a| a.tid == first) || stopped.iter().any(|t| t.tid == first);
                    if !known && ptrace::interrupt(first).is_ok() {
                        awaited.push_back(Awaited { pid, tid: first, since });
                    }
                }
                // An exec in another thread puts that one under the first one's id, and it was not asked to stop; or it
                // is not traced at all, and a wait for it would be one for a child of ours.
                Ok(Seen::Running) if sweep => {
                    if ptrace::interrupt(tid).is_ok() {
                        i += 1;
                        continue;
                    }
                    died += 1;
                }
                Ok(Seen::Running) => break,
                Err(e) => {
                    abandon(awaited);
                    return Err(e);
                }
            }
            awaited.remove(i);
            progress = true;
        }
        if progress {
            pause = POLL_MIN;
            continue;
        }
        if now >= deadline {
            let tid = awaited[0].tid;
            let e = Error::CannotStop { tid, comm: comm(target, tid), why: why_unstoppable(target, tid) };
            abandon(awaited);
            return Err(e);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(died)
}

enum Seen {
    Running,
    Stopped(Box<StoppedThread>),
    Dead,
    /// Not there under that id. An exec may have given it the id of the process's first thread, and it is then still
    /// traced.
    Unknown,
}

/// Looks at a thread that was asked to stop.
fn look(pid: Pid, tid: Tid, since: Instant) -> Result<Seen> {
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
    let thread = StoppedThread {
        pid,
        tid,
        regs,
        group_stop,
        since,
        held: true,
        ran_on: false,
        _urgent: None,
        _not_send: PhantomData,
    };
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

/// Gives up waiting: those that stop soon are let go then, the others when they are found stopped.
fn abandon(awaited: VecDeque<Awaited>) {
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
fn reap(pid: Pid, tid: Tid) {
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
            ABANDONED.with_borrow_mut(|list| list.push((pid, tid)));
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
}

fn comm(target: &Target, tid: Tid) -> String {
    target.thread_stat(tid).ok().flatten().map_or_else(|| "?".to_owned(), |stat| stat.comm)
}

fn why_unstoppable(target: &Target, tid: Tid) -> Unstoppable {
    let state = target.thread_stat(tid).ok().flatten().map_or('?', |stat| stat.state);
    let call =
        std::fs::read_to_string(format!("/proc/{}/task/{tid}/syscall", target.pid())).unwrap_or_default();
    let number: Option<i64> = call.split_ascii_whitespace().next().and_then(|nr| nr.parse().ok());
    match (state, number) {
        ('D', Some(libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3)) => Unstoppable::Vfork,
        ('D', number) => Unstoppable::Uninterruptible(number),
        ('R', _) => Unstoppable::Starved,
        (state, _) => Unstoppable::Other(state),
    }
}
