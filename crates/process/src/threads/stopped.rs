//! Stopped threads: values whose end lets the threads run on.

use crate::threads::awaited::{give_up, reap};
use crate::threads::priority::Urgent;
use crate::threads::{Release, StopReport, ptrace, rescue};
use crate::{Error, Pid, RemoteAddr, Result, Tid};
use std::io;
use std::marker::PhantomData;
use std::time::Instant;

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
    pub(super) threads: Vec<StoppedThread>,
    pub(super) workers: Vec<Tid>,
    pub(super) since: Instant,
    pub(super) died: usize,
    pub(super) crowded: bool,
    pub(super) _urgent: Urgent,
}

impl StoppedThread {
    pub(super) fn new(
        pid: Pid,
        tid: Tid,
        regs: libc::user_regs_struct,
        group_stop: Option<i32>,
        since: Instant,
    ) -> Self {
        let _not_send = PhantomData;
        Self { pid, tid, regs, group_stop, since, held: true, ran_on: false, _urgent: None, _not_send }
    }

    /// Keeps the tool's priority for as long as the thread is stopped.
    pub(super) fn hold_urgent(&mut self, urgent: Urgent) {
        self._urgent = Some(urgent);
    }

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
            give_up(self.pid, self.tid);
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

    /// Whether those that were running filled the processors, so that one of the others has to wait for its turn.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded
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
        kept.hold_urgent(self._urgent);
        Ok((kept, report))
    }

    fn resume_all(&mut self) -> Result<StopReport> {
        // Whoever was running goes on first. The first thread goes last, since it cannot be reaped before the others.
        self.threads.sort_by_key(|t| (t.tid.0 == t.pid.0, t.blocked_call().is_some()));
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
