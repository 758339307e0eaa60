//! Running the callbacks of patches in the target.
//!
//! A callback runs on a thread of the target that is at a [safe point](crate::callbacks::safe_point), from the
//! [call area](crate::callbacks::call_area), while all other threads run on. Before the thread is set going, the document says which
//! call it is and which thread has it; the thread itself notes that it has begun and what came of it. So whichever run of the tool
//! comes next finds a call that has not begun (and makes it), that is running (and waits for it), or that is done (and
//! goes on with its result).
//!
//! A callback that crashes while the tool is there is stopped before its signal reaches the program, and the thread goes
//! back to where it was. One that takes too long is given up as soon as it is in no function of the C library that
//! could hold a lock; until then the transition waits for it.

pub mod call_area;
pub mod params;
pub mod runtime;
pub mod safe_point;
pub(crate) mod xstate;

use crate::callbacks::call_area::{CallArea, Cancellation, Module, Prepared, Progress};
use crate::callbacks::safe_point::{SafePoints, Unsafe, is_blocked};
use crate::limits::{POLL_MAX, POLL_MIN};
use crate::objects::Objects;
use crate::remote;
use crate::remote::seccomp;
use crate::session::{Session, objects_of};
use crate::stacks::scan::Thread;
use crate::stacks::unwind;
use crate::state::document::{Document, RunningCall};
use crate::target::maps::Maps;
use crate::threads::ptrace::{self, Event};
use crate::threads::{Restart, StoppedThread, restart_code, settled_regs, stop_one};
use crate::{Error, RemoteAddr, Result, Tid};
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{Call, CallbackKind, Due, Event as Step, ObjectPhase};

/// A callback gets so much time, however much of the transition's is used up.
const AT_LEAST: Duration = Duration::from_secs(1);
/// How long a callback that is out of time may go on until it can be given up.
const GRACE: Duration = Duration::from_secs(1);
/// How long one attempt to stop a thread may take.
const STOP_WITHIN: Duration = Duration::from_millis(100);
/// Pause between searches for a thread at a safe point; it doubles up to [`SEARCH_MAX`].
const SEARCH_MIN: Duration = Duration::from_millis(1);
const SEARCH_MAX: Duration = Duration::from_millis(50);
/// Pause between looks at a call that an earlier run began.
const FOLLOW_PAUSE: Duration = Duration::from_millis(5);
/// Most threads that one search looks at.
const SEARCH_THREADS: usize = 64;
/// Most threads that are named when none would do.
const NAMED_THREADS: usize = 4;

/// What the kernel takes for a callback that did not come to an end (`EFAULT`, `ETIMEDOUT`).
const CRASHED: i32 = -libc::EFAULT;
const TIMED_OUT: i32 = -libc::ETIMEDOUT;
/// And for one that no thread could run.
const NOBODY: i32 = -libc::EAGAIN;

/// `-ERESTARTNOHAND`; see `interrupted`.
const MAKE_ANEW: u64 = crate::threads::interrupted::ERESTARTNOHAND;

/// How a callback failed to return.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It crashed; its thread is back where it was.
    #[error("crashed by signal {signal} ({}) at {at}; its thread goes on where it was", signal_name(*.signal))]
    Crashed {
        /// The signal.
        signal: i32,
        /// Where.
        at: String,
    },
    /// It did not return in time and was given up; its thread is back where it was.
    #[error("did not return in time and was given up at {0}; its thread goes on where it was")]
    GivenUp(String),
    /// Its thread ended while it ran.
    #[error("ended its thread")]
    ThreadGone,
}

/// What came of a callback.
enum Outcome {
    Returned(i32),
    Failed(Failure),
}

/// What came of waiting for a call.
enum Waited {
    Ended(Outcome),
    /// It has never begun.
    NotBegun,
}

impl Session {
    /// Runs the callbacks that are due, until none is. What goes wrong in a callback is kept in `trouble`, and the
    /// operation goes on as after a callback that refused (`pre_patch`) or returned (the others).
    ///
    /// # Errors
    /// [`Error::NoSafePoint`] and [`Error::CallbackRuns`]: the callback is still due, and the next run of the tool carries on.
    pub(crate) fn run_callbacks(&mut self, deadline: Instant) -> Result<()> {
        while self.run_one_callback(deadline)? {}
        Ok(())
    }

    /// Runs the callback that is due, if one is. Whether one was.
    ///
    /// # Errors
    /// As [`Session::run_callbacks`].
    pub(crate) fn run_one_callback(&mut self, deadline: Instant) -> Result<bool> {
        let Due::Callback(call) = self.document.state.due() else { return Ok(false) };
        {
            let deadline = deadline.max(Instant::now() + AT_LEAST);
            self.lead_unwinder_early(deadline)?;
            let outcome = match self.run_callback(&call, deadline) {
                // Where nothing has changed yet, the enabling is taken back.
                Err(e @ Error::NoSafePoint { .. }) if may_refuse(call.callback) => {
                    self.trouble.get_or_insert(e);
                    Outcome::Returned(NOBODY)
                }
                outcome => outcome?,
            };
            let value = match outcome {
                Outcome::Returned(value) if may_refuse(call.callback) => value,
                Outcome::Returned(_) => 0,
                Outcome::Failed(failure) => self.note_failure(&call, failure),
            };
            if may_refuse(call.callback) && value != 0 && self.trouble.is_none() {
                let (patch, object) = (self.patch_name(&call), call.object.clone());
                let callback = call.callback.name();
                self.trouble = Some(Error::CallbackRefused { patch, object, callback, value });
            }
            self.document.call = None;
            if call.callback == CallbackKind::Init && value == 0 {
                self.note_replace(&call)?;
            }
            self.step(Step::CallbackReturned { value })?;
            self.commit()?;
        }
        Ok(true)
    }

    /// A patch may say in its init, by a parameter perhaps, whether it replaces all others.
    fn note_replace(&mut self, call: &Call) -> Result<()> {
        let mut replace = [0];
        let structure = self.document.image(call.patch)?.structure;
        self.target.memory().read(structure.offset(PATCH_REPLACE), &mut replace)?;
        let replace = replace[0] != 0;
        if self.document.state.patch(call.patch).is_some_and(|patch| patch.desc().replace != replace) {
            self.step(Step::ReplaceSet { replace })?;
        }
        Ok(())
    }

    fn note_failure(&mut self, call: &Call, failure: Failure) -> i32 {
        let value = if matches!(failure, Failure::GivenUp(_)) { TIMED_OUT } else { CRASHED };
        let callback = call.callback.name();
        let patch = self.patch_name(call);
        let object = call.object.clone().unwrap_or_else(|| ugraft_core::MAIN_OBJECT.to_owned());
        let text = match call.callback {
            CallbackKind::Init | CallbackKind::Exit => {
                format!("livepatch: '{patch}': {callback} function {failure}")
            }
            _ => format!("livepatch: '{patch}': {callback} callback for object '{object}' {failure}"),
        };
        self.log_error(text);
        if self.trouble.is_none() {
            self.trouble =
                Some(Error::CallbackFailed { patch, object: call.object.clone(), callback, failure });
        }
        value
    }

    fn patch_name(&self, call: &Call) -> String {
        self.document.state.patch(call.patch).map(|p| p.name().to_owned()).unwrap_or_default()
    }

    fn run_callback(&mut self, call: &Call, deadline: Instant) -> Result<Outcome> {
        if let Some(running) = self.document.call.clone() {
            match self.follow(call, &running, deadline)? {
                Waited::Ended(outcome) => return Ok(outcome),
                Waited::NotBegun => self.document.call = None,
            }
        }
        let (function, object) = callback_of(&self.document, call)?;
        let target = Rc::clone(&self.target);
        let (_, objects) = objects_of(&target)?;
        let area = self.area_for_calls()?;
        let (thread, maps) = self.thread_at_safe_point(&objects, deadline)?;
        let mask = thread.signal_mask()?;
        let state = xstate::get(thread.tid()).map_err(|source| Error::Ptrace {
            request: "PTRACE_GETREGSET",
            tid: thread.tid(),
            source,
        })?;
        self.document.calls = self.document.calls.wrapping_add(1).max(1);
        let number = self.document.calls;
        self.document.call = Some(RunningCall { number, tid: thread.tid().0 });
        self.was_entered = true;
        self.commit()?;
        let module = call.object.as_deref().map(|name| Module { state: module_state(call.phase), name });
        runtime::tell_patches(target.memory(), &self.document, call.patch)?;
        let pointer = if module.is_some() { area.module() } else { RemoteAddr(0) };
        if let Some(object) = object {
            target.memory().write(object.offset(OBJECT_MOD), &pointer.0.to_le_bytes())?;
        }
        let argument = object.unwrap_or(RemoteAddr(0));
        let errno_location = library_function(&objects, "__errno_location");
        let cancellation = Cancellation {
            set_state: library_function(&objects, "pthread_setcancelstate"),
            set_type: library_function(&objects, "pthread_setcanceltype"),
            test: library_function(&objects, "pthread_testcancel"),
        };
        let prepared = Prepared { number, function, argument, errno_location, cancellation };
        let frame = xstate::for_frame(&state);
        let regs = area.prepare(target.memory(), &prepared, module, thread.regs(), mask, &frame)?;
        let own = *thread.regs();
        let run = Run { area, number, own, mask, state, maps, objects: &objects };
        let mut thread = thread;
        let outcome = self.carry(&mut thread, &run, &regs, deadline);
        self.let_go_one(thread)?;
        match outcome? {
            Some(outcome) => Ok(outcome),
            None => Err(self.still_running(call)),
        }
    }

    fn still_running(&self, call: &Call) -> Error {
        Error::CallbackRuns {
            patch: self.patch_name(call),
            object: call.object.clone(),
            callback: call.callback.name(),
            tid: Tid(self.document.call.as_ref().map_or(0, |running| running.tid)),
        }
    }

    fn area_for_calls(&self) -> Result<CallArea> {
        let area = self.document.call_area.clone();
        area.ok_or_else(|| {
            Error::Damaged("a callback is due, and there is no memory to run it from".to_owned())
        })
    }

    /// Refuses early, before anything has changed, where no thread comes to a safe point.
    pub(crate) fn check_safe_point(&mut self, deadline: Instant) -> Result<()> {
        let target = Rc::clone(&self.target);
        let (_, objects) = objects_of(&target)?;
        let (thread, _) = self.thread_at_safe_point(&objects, deadline)?;
        self.let_go_one(thread)
    }

    /// A stopped thread at a safe point, while the others run; one that sleeps, if there is one, and best one in a call
    /// that goes on afterwards as if nothing had been.
    fn thread_at_safe_point(
        &mut self,
        objects: &Objects<'_>,
        deadline: Instant,
    ) -> Result<(StoppedThread, Maps)> {
        let target = Rc::clone(&self.target);
        let began = Instant::now();
        let safe_points = SafePoints::new(objects)?;
        self.know_images();
        let mut pause = SEARCH_MIN;
        loop {
            let maps = target.maps()?;
            let mut reasons = Vec::new();
            let mut second_best = None;
            for tid in self.candidates()?.into_iter().take(SEARCH_THREADS) {
                let thread = match stop_one(&target, tid, STOP_WITHIN) {
                    Ok(Some(thread)) => thread,
                    Ok(None) => continue,
                    Err(Error::CannotStop { why, .. }) => {
                        reasons.push((tid, why.to_string()));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                let found = self.is_safe(&safe_points, &maps, &thread);
                match found {
                    Ok(()) if restarts_exactly(&thread) => return Ok((thread, maps)),
                    Ok(()) => second_best = Some(tid),
                    Err(NotSafe::Thread(why)) => reasons.push((tid, why)),
                    Err(NotSafe::Error(e)) => return Err(e),
                }
                self.let_go_one(thread)?;
            }
            if let Some(tid) = second_best
                && let Ok(Some(thread)) = stop_one(&target, tid, STOP_WITHIN)
            {
                if self.is_safe(&safe_points, &maps, &thread).is_ok() {
                    return Ok((thread, maps));
                }
                self.let_go_one(thread)?;
            }
            if Instant::now() + pause >= deadline {
                let comm =
                    |tid: Tid| target.thread_stat(tid).ok().flatten().map_or_else(String::new, |s| s.comm);
                reasons.truncate(NAMED_THREADS);
                let reasons = reasons.into_iter().map(|(tid, why)| (tid, comm(tid), why)).collect();
                return Err(Error::NoSafePoint { pid: target.pid(), waited: began.elapsed(), reasons });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(SEARCH_MAX);
        }
    }

    /// The threads, those that sleep first.
    fn candidates(&self) -> Result<Vec<Tid>> {
        let (mut sleeping, mut running) = (Vec::new(), Vec::new());
        for tid in self.target.threads()? {
            match self.target.thread_stat(tid)? {
                Some(stat) if stat.is_dead() || stat.is_worker() => {}
                Some(stat) if stat.state == 'S' => sleeping.push(tid),
                Some(_) => running.push(tid),
                None => {}
            }
        }
        sleeping.append(&mut running);
        Ok(sleeping)
    }

    fn is_safe(
        &mut self,
        safe_points: &SafePoints<'_, '_>,
        maps: &Maps,
        thread: &StoppedThread,
    ) -> Result<(), NotSafe> {
        let target = &self.target;
        let leaves = self.document.call_area.as_ref().is_some_and(|area| area.is_code(thread.pc()));
        if leaves {
            return Err(NotSafe::Thread("it comes from another callback".to_owned()));
        }
        match remote::suitability(target, maps, thread) {
            Ok(_) => {}
            Err(Error::CannotRun { why, .. }) => return Err(NotSafe::Thread(why.to_string())),
            Err(e) => return Err(NotSafe::Error(e)),
        }
        safe_points
            .judge(target, &mut self.prover, maps, thread)
            .map_err(|why| NotSafe::Thread(why.to_string()))?;
        let call =
            |name, number, vital| seccomp::Call { name, number, instruction_pointer: 0, args: [0; 6], vital };
        let calls =
            [call("pselect6", libc::SYS_pselect6, false), call("rt_sigreturn", libc::SYS_rt_sigreturn, true)];
        match seccomp::suspend(target.pid(), thread.tid(), &calls) {
            Ok(()) => Ok(()),
            Err(Error::CannotRun { why, .. }) => Err(NotSafe::Thread(why.to_string())),
            Err(e) => Err(NotSafe::Error(e)),
        }
    }

    /// Sets the thread going and waits for the end of the call. `None` if the call still runs and cannot be given up;
    /// the thread is then let go with it.
    fn carry(
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

    /// Waits for a call that an earlier run of the tool set going.
    fn follow(&mut self, call: &Call, running: &RunningCall, deadline: Instant) -> Result<Waited> {
        let target = Rc::clone(&self.target);
        let area = self.area_for_calls()?;
        let tid = Tid(running.tid);
        let until = deadline + GRACE;
        loop {
            let progress = area.progress(target.memory(), running.number)?;
            let thread = match stop_one(&target, tid, STOP_WITHIN) {
                Ok(thread) => thread,
                Err(Error::CannotStop { .. }) if Instant::now() < until => {
                    std::thread::sleep(FOLLOW_PAUSE);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let here = thread.as_ref().is_some_and(|thread| area.is_code(thread.pc()));
            match (progress, thread) {
                // Its frame is used again by the next call: it must have left.
                (Progress::Done(value), thread) if !here => {
                    self.let_go_all(thread)?;
                    return Ok(Waited::Ended(Outcome::Returned(value)));
                }
                (Progress::NotBegun, thread) if !here => {
                    self.let_go_all(thread)?;
                    return Ok(Waited::NotBegun);
                }
                (Progress::Running, None) => {
                    let result = area.result(target.memory(), running.number)?;
                    let outcome = result.map_or(Outcome::Failed(Failure::ThreadGone), Outcome::Returned);
                    return Ok(Waited::Ended(outcome));
                }
                (Progress::Running, Some(mut thread)) if Instant::now() >= deadline => {
                    let (maps, objects) = objects_of(&target)?;
                    self.know_images();
                    match self.can_give_up(&thread, &maps, &area, &objects)? {
                        Ok(()) => {
                            let at = self.name_of_code(thread.pc(), &objects);
                            let regs = area.leaving(thread.regs());
                            thread.set_regs(&regs)?;
                            self.let_go_one(thread)?;
                            self.see_off(&area, tid)?;
                            return Ok(Waited::Ended(Outcome::Failed(Failure::GivenUp(at))));
                        }
                        Err(Elsewhere::NotInCall) => {
                            self.let_go_one(thread)?;
                            return Ok(Waited::Ended(Outcome::Failed(Failure::ThreadGone)));
                        }
                        Err(Elsewhere::Holds(_)) => self.let_go_one(thread)?,
                    }
                }
                (_, thread) => self.let_go_all(thread)?,
            }
            if Instant::now() >= until {
                return Err(self.still_running(call));
            }
            std::thread::sleep(FOLLOW_PAUSE);
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

    /// Waits until a thread that leaves a call has left: what it comes back by is used again by the next call.
    fn see_off(&mut self, area: &CallArea, tid: Tid) -> Result<()> {
        let target = Rc::clone(&self.target);
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            std::thread::sleep(FOLLOW_PAUSE);
            let thread = match stop_one(&target, tid, STOP_WITHIN) {
                Ok(Some(thread)) => thread,
                Ok(None) => break,
                Err(Error::CannotStop { .. }) => continue,
                Err(e) => return Err(e),
            };
            let here = area.is_code(thread.pc()) || area.stack.contains(&thread.sp());
            self.let_go_one(thread)?;
            if !here {
                break;
            }
        }
        Ok(())
    }

    fn let_go_all(&mut self, thread: Option<StoppedThread>) -> Result<()> {
        thread.map_or(Ok(()), |thread| self.let_go_one(thread))
    }

    /// Whether a stopped thread that is in a call can be taken out of it without leaving a lock of the C library behind.
    fn can_give_up(
        &mut self,
        thread: &StoppedThread,
        maps: &Maps,
        area: &CallArea,
        objects: &Objects<'_>,
    ) -> Result<Result<(), Elsewhere>> {
        let safe_points = SafePoints::new(objects)?;
        let facts = Thread { pid: self.target.pid(), tid: thread.tid(), regs: thread.regs() };
        let walk = unwind::walk(&mut self.prover.cfi, self.target.memory(), maps, facts);
        let Some(depth) = walk.frames.iter().position(|frame| area.is_code(RemoteAddr(frame.pc))) else {
            let on_our_stack = area.stack.contains(&thread.sp());
            return Ok(Err(if on_our_stack {
                Elsewhere::Holds(Unsafe::Unreliable(
                    "its frames do not lead to where it was called".to_owned(),
                ))
            } else {
                Elsewhere::NotInCall
            }));
        };
        if depth == 0 {
            // Between the trampoline's own instructions: let it go on.
            return Ok(Err(Elsewhere::Holds(Unsafe::Signal)));
        }
        let blocked = is_blocked(thread.regs());
        Ok(safe_points.judge_frames(&walk.frames[..depth], blocked, false).map_err(Elsewhere::Holds))
    }

    fn name_of_code(&self, addr: RemoteAddr, objects: &Objects<'_>) -> String {
        crate::report::describe::symbol(addr, &self.document, Some(objects))
            .unwrap_or_else(|| addr.to_string())
    }
}

/// A call under way, with what its thread gets back.
struct Run<'o, 't> {
    area: CallArea,
    number: u32,
    own: libc::user_regs_struct,
    mask: u64,
    state: Vec<u8>,
    maps: Maps,
    objects: &'o Objects<'t>,
}

enum NotSafe {
    Thread(String),
    Error(Error),
}

/// Why a thread cannot be taken out of a call.
enum Elsewhere {
    /// It may hold a lock.
    Holds(#[expect(dead_code, reason = "told by a debugger only")] Unsafe),
    /// It is not in the call at all: another thread has its number.
    NotInCall,
}

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

fn is_fault(signal: i32) -> bool {
    (1..=64).contains(&signal) && MASK >> (signal - 1) & 1 == 0
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGSYS => "SIGSYS",
        libc::SIGABRT => "SIGABRT",
        _ => "a signal",
    }
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

/// Whether what the thread was doing goes on after a callback as if nothing had been. A call that would go on by
/// restart_syscall(2) is made anew, and only one without a limit of time is none the worse for it.
fn restarts_exactly(thread: &StoppedThread) -> bool {
    let regs = thread.regs();
    if restart_code(regs) != Some(Restart::Block) {
        return true;
    }
    // poll(2): the third argument is the time in milliseconds, negative for ever.
    regs.orig_rax == libc::SYS_poll as u64 && (regs.rdx as i32) < 0
}

/// Whether what the callback returns means anything.
fn may_refuse(callback: CallbackKind) -> bool {
    matches!(callback, CallbackKind::PrePatch | CallbackKind::Init)
}

/// Offset of `mod` in `struct klp_object` (sdk/include/ugraft/livepatch.h): behind name, funcs and the callbacks.
const OBJECT_MOD: i64 = 8 + 8 + 5 * 8;

/// Offset of `replace` in `struct klp_patch`.
const PATCH_REPLACE: i64 = 24;

/// `enum module_state` of the header.
fn module_state(phase: ObjectPhase) -> u32 {
    match phase {
        ObjectPhase::Live => 0,
        ObjectPhase::Coming => 1,
        ObjectPhase::Going => 2,
    }
}

/// The address of a callback, and of the object that is its argument.
fn callback_of(document: &Document, call: &Call) -> Result<(RemoteAddr, Option<RemoteAddr>)> {
    let image = document.image(call.patch)?;
    let missing = || Error::Damaged(format!("the {} callback has no address", call.callback.name()));
    let own = match call.callback {
        CallbackKind::Init => Some(image.init),
        CallbackKind::Exit => Some(image.exit),
        _ => None,
    };
    if let Some(function) = own {
        return Ok((function.ok_or_else(missing)?, None));
    }
    let object = image.objects.iter().find(|object| object.name == call.object);
    let object = object.ok_or_else(missing)?;
    let function = match call.callback {
        CallbackKind::PrePatch => object.pre_patch,
        CallbackKind::PostPatch => object.post_patch,
        CallbackKind::PreUnpatch => object.pre_unpatch,
        CallbackKind::PostUnpatch => object.post_unpatch,
        CallbackKind::Init | CallbackKind::Exit => None,
    };
    Ok((function.ok_or_else(missing)?, Some(object.addr)))
}

/// A function of the C library; 0 where there is none.
fn library_function(objects: &Objects<'_>, name: &str) -> RemoteAddr {
    let exported = objects.scope(&[]).ok().and_then(|scope| scope.resolve(name, None).ok());
    if let Some(crate::objects::scope::Value::Address(addr)) = exported.map(|found| found.value) {
        return addr;
    }
    objects.function(None, name, 0).map_or(RemoteAddr(0), |function| function.address)
}
