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

mod awaited;
pub(crate) mod crowd;
pub mod interrupted;
pub mod priority;
pub(crate) mod ptrace;
pub(crate) mod rescue;
mod stop;
mod stopped;

pub(crate) use awaited::settled_regs;
pub use awaited::{on_own_thread, settle};
pub use stop::{stop_all, stop_each, stop_one};
pub(crate) use stopped::{Restart, restart_code};
pub use stopped::{StoppedProcess, StoppedThread};

use std::time::Duration;

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
    /// It runs a callback of a patch for a library that comes or goes.
    #[error(
        "it has been in the {callback} callback of patch '{patch}' for the library '{object}' for {:.1} s, and holds the loader's lock",
        .since.as_secs_f64()
    )]
    InHook {
        /// Which callback.
        callback: &'static str,
        /// The patch.
        patch: String,
        /// The library.
        object: String,
        /// For how long.
        since: Duration,
    },
    /// It is on its way into a function whose original entry is to come back, as far as its stack tells.
    #[error("it is on its way into a function that is to be restored")]
    AtEntry,
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
