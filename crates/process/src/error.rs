//! The crate's error: what went wrong with which target, in words that name the way out.

use crate::code::entry::EntryRefusal;
use crate::code::pending::PendingError;
use crate::code::thunk::ThunkError;
use crate::{Pid, RemoteAddr, Tid};
use std::io;

/// Why something about a target failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No process has this id, or it is gone (ESRCH).
    #[error("no process {0}; see `ps -e`")]
    NoSuchProcess(Pid),
    /// The target exited, was killed, or replaced itself by `exec` while it was worked on.
    #[error("process {0} died or became another program meanwhile")]
    TargetGone(Pid),
    /// The kernel refused access to the target (EPERM/EACCES).
    #[error("not allowed to trace process {0}: {1}")]
    Permission(Pid, String),
    /// Libraries that come later cannot be seen to.
    #[error("{0}")]
    Libraries(String),
    /// The process exists, but is not one that can be patched (EINVAL).
    #[error("cannot work on process {pid}: {why}")]
    Unfit {
        /// The process.
        pid: Pid,
        /// What it is instead.
        why: crate::target::Unfit,
    },
    /// Another tracer holds a thread (EPERM).
    #[error("thread {tid} is already traced by {comm} (pid {tracer}); end that first")]
    AlreadyTraced {
        /// The thread.
        tid: Tid,
        /// Who traces it.
        tracer: Pid,
        /// The tracer's name.
        comm: String,
    },
    /// A thread did not stop in the time given (EBUSY). Everything has been let go.
    #[error("thread {tid} ({comm}) did not stop in time: {why}; try again later")]
    CannotStop {
        /// The thread.
        tid: Tid,
        /// Its name.
        comm: String,
        /// What it is doing instead.
        why: crate::threads::Unstoppable,
    },
    /// No code can be run in the target, for now or at all (EAGAIN or EPERM); nothing has been changed.
    #[error("cannot run system calls in process {pid}: {why}")]
    CannotRun {
        /// The target.
        pid: Pid,
        /// Why not.
        why: crate::remote::Unsuitable,
    },
    /// A system call that the target made for us failed.
    #[error("{call} in process {pid} failed: {source}{}", crate::remote::way_out(.call, .source, *.pid))]
    RemoteCall {
        /// The target.
        pid: Pid,
        /// The system call.
        call: &'static str,
        /// What the kernel told the target.
        source: io::Error,
    },
    /// The target may make no files (of memory) as long as are needed, and would be killed if it tried (EFBIG).
    #[error(
        "process {pid} may make no file longer than {limit} bytes (RLIMIT_FSIZE), and the {needed} bytes of memory that \
         are needed in it are one; raise the limit with `prlimit --pid {pid} --fsize={needed}:` and try again"
    )]
    FileSize {
        /// The target.
        pid: Pid,
        /// The limit, in bytes.
        limit: u64,
        /// How much is needed, in bytes.
        needed: u64,
    },
    /// No free address range fits (ENOMEM).
    #[error("process {pid} has no free {len} bytes within reach of {near:?}")]
    NoPlace {
        /// The target.
        pid: Pid,
        /// How much was wanted, in bytes.
        len: u64,
        /// What it should have been near to.
        near: std::ops::Range<RemoteAddr>,
    },
    /// Another process runs in the same memory without being a thread of the target (EBUSY).
    #[error(
        "process {pid} shares its memory with process {other} ({comm}), which is not one of its threads: {why}"
    )]
    SharedMemory {
        /// The target.
        pid: Pid,
        /// The other process.
        other: Pid,
        /// Its name.
        comm: String,
        /// Whether it will pass.
        why: crate::remote::sharing::Sharing,
    },
    /// Memory of the target could not be read or written.
    #[error("cannot {action} {len} bytes at {addr} of process {pid}: {source}")]
    Memory {
        /// The target.
        pid: Pid,
        /// `read` or `write`.
        action: &'static str,
        /// Where.
        addr: RemoteAddr,
        /// How much, in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of procfs could not be read or did not have the form that proc(5) gives.
    #[error("cannot read {path}: {source}")]
    Proc {
        /// The file.
        path: String,
        /// What the kernel said, or what was wrong with the text.
        source: io::Error,
    },
    /// A ptrace request failed on a thread.
    #[error("{request} on thread {tid} failed: {source}")]
    Ptrace {
        /// Name of the request, as in ptrace(2).
        request: &'static str,
        /// The thread.
        tid: Tid,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state area in the target is not one that this tool can use.
    #[error("the state area at {at} in the target cannot be used: {why}")]
    StateArea {
        /// Where it lies.
        at: RemoteAddr,
        /// What is wrong with it.
        why: String,
    },
    /// A documented limit would be passed (E2BIG).
    #[error("{wanted} {what} are wanted, and the limit is {limit}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// Another tool is changing the target (EBUSY).
    #[error("{holder} is at work on process {pid}; {}", .holder.way_out())]
    Busy {
        /// The target.
        pid: Pid,
        /// The other tool.
        holder: crate::target::lock::Holder,
    },
    /// A function's code does not allow a redirect.
    #[error("cannot redirect {function}: {reason}")]
    Entry {
        /// Its name.
        function: String,
        /// Why not.
        reason: EntryRefusal,
    },
    /// A function's original cannot be kept callable while it is redirected.
    #[error("cannot redirect {function}: {reason}")]
    Thunk {
        /// Its name.
        function: String,
        /// Why not.
        reason: ThunkError,
    },
    /// The list of threads that a transition waits for cannot be made or read.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// An object, function or symbol of the target could not be had.
    #[error(transparent)]
    Symbol(#[from] crate::objects::symbols::SymbolError),
    /// The semantics refuse the request (the errno is the refusal's).
    #[error(transparent)]
    Refused(#[from] ugraft_core::Refusal),
    /// The patch file cannot be linked for this target.
    #[error(transparent)]
    Link(#[from] ugraft_image::Error),
    /// The target has no patches.
    #[error("process {0} is not patched")]
    NotPatched(Pid),
    /// A `pre_patch` callback or an init function refused: the target is as before (the errno is the callback's).
    #[error("the {} refused with {value}; the patch was not {}", callback_text(.callback, .patch, .object),
        if *.callback == "init" { "loaded" } else { "enabled" })]
    CallbackRefused {
        /// The patch.
        patch: String,
        /// The object; `None` is the main executable.
        object: Option<String>,
        /// Which callback.
        callback: &'static str,
        /// What it returned.
        value: i32,
    },
    /// A patch has no such parameter (ENOENT).
    #[error("patch '{patch}' has no parameter {name}; `ugraft param {patch}` lists what it has")]
    NoParam {
        /// The patch.
        patch: String,
        /// The parameter.
        name: String,
    },
    /// A callback crashed or did not return, and was given up.
    #[error("the {} {failure}", callback_text(.callback, .patch, .object))]
    CallbackFailed {
        /// The patch.
        patch: String,
        /// The object; `None` is the main executable.
        object: Option<String>,
        /// Which callback.
        callback: &'static str,
        /// How.
        failure: crate::session::callbacks::Failure,
    },
    /// A callback has not returned and cannot be given up yet (EBUSY). The transition waits for it.
    #[error(
        "the {} has not returned, and is where it cannot be given up; thread {tid} runs it: wait for it, then give a \
         command again",
        callback_text(.callback, .patch, .object)
    )]
    CallbackRuns {
        /// The patch.
        patch: String,
        /// The object; `None` is the main executable.
        object: Option<String>,
        /// Which callback.
        callback: &'static str,
        /// The thread that runs it.
        tid: Tid,
    },
    /// No thread came to where a callback can be run (EAGAIN).
    #[error(
        "no thread of process {pid} came to where a callback can run within {:.1} s: {}; try again, or allow more time",
        .waited.as_secs_f64(),
        reasons_text(.reasons)
    )]
    NoSafePoint {
        /// The target.
        pid: Pid,
        /// How long was waited for one.
        waited: std::time::Duration,
        /// Threads, their names, and why they would not do.
        reasons: Vec<(Tid, String, String)>,
    },
    /// A later version of the tool has patched the target, and this one may not know all that is to be seen to.
    #[error(
        "process {pid} was patched by a later version, {tool}: change it with that one; `status`, `list` and `log` of this \
         one tell what they know"
    )]
    LaterVersion {
        /// The target.
        pid: Pid,
        /// The later version.
        tool: String,
    },
    /// The document in the target contradicts itself or the target.
    #[error("the record of patches in the target is damaged: {0}")]
    Damaged(String),
    /// The text of a patched function is not what was written there.
    #[error("somebody else has changed the code of {function} at {at}; nothing is done while that is so")]
    Disturbed {
        /// The function.
        function: String,
        /// Where.
        at: RemoteAddr,
    },
    /// A transition did not complete in time and was taken back: the target is as before (ETIMEDOUT).
    #[error("patch '{patch}' could not make its transition in the time given and was reversed: {}", crate::answers::blocked_text(.blocked))]
    TimedOut {
        /// The patch.
        patch: String,
        /// What stood in the way.
        blocked: Vec<crate::answers::Blocked>,
    },
    /// A transition goes on: neither direction could be completed in the time given (EBUSY).
    #[error(
        "patch '{patch}' is still in transition: {}; `ugraft wait {patch}` carries it on, `ugraft reverse` turns it round",
        crate::answers::blocked_text(.blocked)
    )]
    InTransition {
        /// The patch.
        patch: String,
        /// What stands in the way.
        blocked: Vec<crate::answers::Blocked>,
    },
}

fn object_text(object: &Option<String>) -> String {
    object.as_ref().map_or_else(|| "the main executable".to_owned(), |name| format!("the library '{name}'"))
}

fn callback_text(callback: &str, patch: &str, object: &Option<String>) -> String {
    match callback {
        "init" | "exit" => format!("{callback} function of patch '{patch}'"),
        _ => format!("{callback} callback of patch '{patch}' for {}", object_text(object)),
    }
}

fn reasons_text(reasons: &[(Tid, String, String)]) -> String {
    let one = |(tid, comm, why): &(Tid, String, String)| format!("thread {tid} ({comm}): {why}");
    if reasons.is_empty() {
        return "it has no thread that could".to_owned();
    }
    reasons.iter().map(one).collect::<Vec<_>>().join("; ")
}
