//! Running the callbacks of patches in the target.
//!
//! A callback runs on a thread of the target that is at a [safe point](crate::session::callbacks::safe_point), from the
//! [call area](crate::session::callbacks::call_area), while all other threads run on. Before the thread is set going, the document says which
//! call it is and which thread has it; the thread itself notes that it has begun and what came of it. So whichever run of the tool
//! comes next finds a call that has not begun (and makes it), that is running (and waits for it), or that is done (and
//! goes on with its result).
//!
//! A callback that crashes while the tool is there is stopped before its signal reaches the program, and the thread goes
//! back to where it was. One that takes too long is given up as soon as it is in no function of the C library that
//! could hold a lock; until then the transition waits for it.

pub mod call_area;
mod carry;
mod follow;
mod give_up;
pub mod params;
pub mod runtime;
pub mod safe_point;
mod search;
pub(crate) mod xstate;

use crate::objects::Objects;
use crate::session::callbacks::call_area::{Cancellation, Module, Prepared};
use crate::session::callbacks::carry::Run;
use crate::session::callbacks::follow::Waited;
use crate::session::{Session, objects_of};
use crate::state::document::{Document, RunningCall};
use crate::state::pieces::CallArea;
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
/// Pause between looks at a call that an earlier run began.
const FOLLOW_PAUSE: Duration = Duration::from_millis(5);

/// What the kernel takes for a callback that did not come to an end (`EFAULT`, `ETIMEDOUT`).
const CRASHED: i32 = -libc::EFAULT;
const TIMED_OUT: i32 = -libc::ETIMEDOUT;
/// And for one that no thread could run.
const NOBODY: i32 = -libc::EAGAIN;

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
                Ok(None) => {
                    self.hear_of_libraries(deadline)?;
                    return Ok(true);
                }
                // Where nothing has changed yet, the enabling is taken back.
                Err(e @ Error::NoSafePoint { .. }) if may_refuse(call.callback) => {
                    self.trouble.get_or_insert(e);
                    Outcome::Returned(NOBODY)
                }
                Ok(Some(outcome)) => outcome,
                Err(e) => return Err(e),
            };
            self.note_called(&call)?;
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

    /// `None` if it is not to run, since its library is gone.
    fn run_callback(&mut self, call: &Call, deadline: Instant) -> Result<Option<Outcome>> {
        if let Some(running) = self.document.call.clone() {
            match self.follow(call, &running, deadline)? {
                Waited::Ended(outcome) => return Ok(Some(outcome)),
                Waited::NotBegun => self.document.call = None,
            }
        }
        let (function, object) = callback_of(&self.document, call)?;
        let target = Rc::clone(&self.target);
        let (_, objects) = objects_of(&target)?;
        let area = self.area_for_calls()?;
        let (thread, maps) = self.thread_at_safe_point(&objects, deadline)?;
        if !self.claim(call)? {
            self.let_go_one(thread)?;
            return Ok(None);
        }
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
            Some(outcome) => Ok(Some(outcome)),
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

    fn name_of_code(&self, addr: RemoteAddr, objects: &Objects<'_>) -> String {
        self.document.symbol(addr, Some(objects)).unwrap_or_else(|| addr.to_string())
    }
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
