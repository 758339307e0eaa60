//! A callback under the tool's eyes: the thread is set going, watched until the call has ended, and given back what it had.

use super::{FOLLOW_PAUSE, Failure, GRACE, Outcome};
use crate::limits::{POLL_MAX, POLL_MIN};
use crate::objects::Objects;
use crate::session::Session;
use crate::session::callbacks::call_area::Progress;
use crate::session::callbacks::xstate;
use crate::state::pieces::CallArea;
use crate::target::maps::Maps;
use crate::threads::ptrace::{self, Event};
use crate::threads::{Restart, StoppedThread, restart_code, settled_regs};
use crate::{Error, RemoteAddr, Result};
use std::rc::Rc;
use std::time::Instant;

/// All signals blocked but those that a fault raises, which the kernel would otherwise unblock together with taking their
/// handlers away; and abort(3)'s.
const MASK: u64 = {
    let faults =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];
    let mut mask = u64::MAX;
    let mut i = 0;
    while i < faults.len() {
        mask &= !(1 << (faults[i] - 1));
        i += 1;
    }
    mask
};
/// `-ERESTARTNOHAND`; see `interrupted`.
const MAKE_ANEW: u64 = crate::threads::interrupted::ERESTARTNOHAND;

/// A call under way, with what its thread gets back.
pub(super) struct Run<'o, 't> {
    pub(super) area: CallArea,
    pub(super) number: u32,
    pub(super) own: libc::user_regs_struct,
    pub(super) mask: u64,
    pub(super) state: Vec<u8>,
    pub(super) maps: Maps,
    pub(super) objects: &'o Objects<'t>,
}

impl Session {
    /// Sets the thread going and waits for the end of the call. `None` if the call still runs and cannot be given up;
    /// the thread is then let go with it.
    pub(super) fn carry(
        &mut self,
        thread: &mut StoppedThread,
        run: &Run<'_, '_>,
        regs: &libc::user_regs_struct,
        deadline: Instant,
    ) -> Result<Option<Outcome>> {
        let tid = thread.tid();
        ptrace::set_regs(tid, regs).map_err(|e| thread.failed("PTRACE_SETREGS", e))?;
        let go = ptrace::set_signal_mask(tid, MASK)
            .map_err(|e| thread.failed("PTRACE_SETSIGMASK", e))
            .and_then(|()| ptrace::cont(tid, 0).map_err(|e| thread.failed("PTRACE_CONT", e)));
        if let Err(e) = go {
            give_back(thread, run, None)?;
            return Err(e);
        }
        let target = Rc::clone(&self.target);
        let memory = target.memory();
        let mut pause = POLL_MIN;
        let mut group_stop = thread.group_stop();
        let mut asked = None;
        loop {
            let done = run.area.progress(memory, run.number)?;
            let late = Instant::now() >= deadline;
            if asked.is_none() && (matches!(done, Progress::Done(_)) || late) {
                // It fails only if the thread is dead, which the wait below finds out.
                let _ = ptrace::interrupt(tid);
                asked = Some(Instant::now());
                pause = POLL_MIN;
            }
            match ptrace::poll(tid).map_err(|source| Error::Ptrace { request: "waitid", tid, source })? {
                None => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(POLL_MAX);
                    // Killed uninterruptibly asleep, say: what does not stop is let go when it does.
                    if asked.is_some_and(|at| at.elapsed() > GRACE) {
                        thread.forget(true);
                        return Ok(None);
                    }
                    continue;
                }
                Some(Event::Gone | Event::Unknown) => {
                    thread.forget(false);
                    self.target.check_same()?;
                    let gone = self.target.threads()?.is_empty();
                    if gone {
                        return Err(Error::TargetGone(self.target.pid()));
                    }
                    // Cancelled when it was at the end of the call, perhaps.
                    let result = run.area.result(memory, run.number)?;
                    return Ok(Some(result.map_or(Outcome::Failed(Failure::ThreadGone), Outcome::Returned)));
                }
                Some(Event::Signal(signal)) if is_fault(signal) && !matches!(done, Progress::Done(_)) => {
                    let at = ptrace::regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?.rip;
                    let at = self.name_of_code(RemoteAddr(at), run.objects);
                    let failure = Failure::Crashed { signal, at };
                    let back = self.take_out(thread, run, group_stop)?;
                    let failure = if back { failure } else { Failure::ThreadGone };
                    return Ok(Some(Outcome::Failed(failure)));
                }
                Some(Event::Signal(signal)) => {
                    let _ = ptrace::cont(tid, signal);
                }
                Some(stop @ (Event::Interrupted | Event::GroupStop(_))) => {
                    if let Event::GroupStop(signal) = stop {
                        group_stop = Some(signal);
                    }
                    let regs = ptrace::regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?;
                    // Read again: it may have been done between the look and the stop.
                    let done = run.area.progress(memory, run.number)?;
                    if let Progress::Done(value) = done {
                        if run.area.is_code(RemoteAddr(regs.rip)) {
                            give_back(thread, run, group_stop)?;
                        } else {
                            let regs = settled_regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?;
                            thread.set_observed(regs, group_stop, true);
                        }
                        return Ok(Some(Outcome::Returned(value)));
                    }
                    thread.set_observed(
                        settled_regs(tid).map_err(|e| thread.failed("PTRACE_GETREGS", e))?,
                        group_stop,
                        false,
                    );
                    if late {
                        if self.can_give_up(thread, &run.maps, &run.area, run.objects)?.is_ok() {
                            let at = self.name_of_code(thread.pc(), run.objects);
                            let back = self.take_out(thread, run, group_stop)?;
                            let failure = if back { Failure::GivenUp(at) } else { Failure::ThreadGone };
                            return Ok(Some(Outcome::Failed(failure)));
                        }
                        if Instant::now() >= deadline + GRACE {
                            return Ok(None);
                        }
                        asked = None;
                        let _ = ptrace::cont(tid, 0);
                        std::thread::sleep(FOLLOW_PAUSE);
                        continue;
                    }
                    let _ = ptrace::cont(tid, 0);
                }
                Some(Event::Other(_)) => {
                    let _ = ptrace::cont(tid, 0);
                }
            }
        }
    }

    /// Has a stopped thread undo what was changed for its call, and gives it back what it had. Whether it is there still: a
    /// cancellation of it takes effect now.
    fn take_out(
        &mut self,
        thread: &mut StoppedThread,
        run: &Run<'_, '_>,
        mut group_stop: Option<i32>,
    ) -> Result<bool> {
        let tid = thread.tid();
        let regs = run.area.leaving(&run.own);
        ptrace::set_regs(tid, &regs).map_err(|e| thread.failed("PTRACE_SETREGS", e))?;
        let _ = ptrace::cont(tid, 0);
        let target = Rc::clone(&self.target);
        let until = Instant::now() + GRACE;
        let mut asked = false;
        loop {
            let late = Instant::now() > until;
            if !asked && (late || run.area.is_ready(target.memory(), run.number)?) {
                // It fails only if the thread is dead, which the wait below finds out.
                let _ = ptrace::interrupt(tid);
                asked = true;
            }
            match ptrace::poll(tid).map_err(|source| Error::Ptrace { request: "waitid", tid, source })? {
                None if Instant::now() > until + GRACE => {
                    thread.forget(true);
                    return Ok(false);
                }
                None => std::thread::sleep(POLL_MIN),
                Some(Event::Gone | Event::Unknown) => {
                    thread.forget(false);
                    target.check_same()?;
                    return Ok(false);
                }
                Some(Event::Signal(signal)) => {
                    let _ = ptrace::cont(tid, signal);
                }
                Some(stop @ (Event::Interrupted | Event::GroupStop(_))) => {
                    if let Event::GroupStop(signal) = stop {
                        group_stop = Some(signal);
                    }
                    if asked {
                        break;
                    }
                    let _ = ptrace::cont(tid, 0);
                }
                Some(Event::Other(_)) => {
                    let _ = ptrace::cont(tid, 0);
                }
            }
        }
        give_back(thread, run, group_stop)?;
        Ok(true)
    }
}

fn is_fault(signal: i32) -> bool {
    (1..=64).contains(&signal) && MASK >> (signal - 1) & 1 == 0
}

/// Gives the stopped thread everything back that it had before the call. Mask before registers: should the tool die
/// between, the thread finishes the trampoline by itself.
fn give_back(thread: &mut StoppedThread, run: &Run<'_, '_>, group_stop: Option<i32>) -> Result<()> {
    let tid = thread.tid();
    let mut own = run.own;
    if restart_code(&own) == Some(Restart::Block) {
        // The callback may have made calls that overwrite what the kernel remembers of this one.
        own.rax = MAKE_ANEW;
    }
    xstate::set(tid, &run.state).map_err(|e| thread.failed("PTRACE_SETREGSET", e))?;
    ptrace::set_signal_mask(tid, run.mask).map_err(|e| thread.failed("PTRACE_SETSIGMASK", e))?;
    ptrace::set_regs(tid, &own).map_err(|e| thread.failed("PTRACE_SETREGS", e))?;
    thread.set_observed(own, group_stop, false);
    // It fails only if the thread is dead, which whoever lets it go finds out.
    let _ = ptrace::set_options(tid, ptrace::O_TRACESYSGOOD);
    Ok(())
}
