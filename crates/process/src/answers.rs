//! What is answered to whoever asked: the same structures for people and for programs.

use crate::RemoteAddr;
use crate::target::lock::Holder;
use serde::Serialize;
use std::time::Duration;
use ugraft_core::{Direction, Life, PatchStatus};

/// What a request has led to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The patch that was asked about.
    pub patch: String,
    /// What that patch is now; `None` once it is unloaded.
    pub life: Option<Life>,
    /// Set where nothing had to be done: the words for it.
    pub already: Option<String>,
    /// Patches that this one has replaced.
    pub replaced: Vec<String>,
    /// Patches whose memory stays for ever because this request forced a transition.
    pub forced: Vec<String>,
    /// What the transition cost the target.
    pub cost: Cost,
    /// Remarks, such as that memory could not be given back yet.
    pub notes: Vec<String>,
}

/// What work on a target cost it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Threads that were looked at in the largest stop.
    pub threads: usize,
    /// Stops of the whole process.
    pub stops: u32,
    /// Stops of one thread alone.
    pub looks: u32,
    /// The longest time that a thread was stopped at a stretch, in nanoseconds.
    #[serde(rename = "longest_pause_ns", serialize_with = "nanoseconds")]
    pub longest_pause: Duration,
    /// Sum of the times from the first to the last thread of each stop, in nanoseconds.
    #[serde(rename = "stopped_ns", serialize_with = "nanoseconds")]
    pub stopped: Duration,
    /// Wall time of the whole work, in nanoseconds.
    #[serde(rename = "elapsed_ns", serialize_with = "nanoseconds")]
    pub elapsed: Duration,
}

/// What keeps a transition from its end: a thread that has not switched, or a stack that no thread runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// The thread's id; 0 where it is no thread.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// The function concerned, if one is.
    pub function: Option<String>,
    /// The number of the frame, 0 being the innermost, where it is known.
    pub frame: Option<usize>,
    /// In what way it blocks, in one word for programs.
    pub kind: BlockKind,
    /// In what way it blocks.
    pub reason: String,
    /// What one can do about it.
    pub advice: &'static str,
    /// For how long, in nanoseconds.
    #[serde(rename = "since_ns", serialize_with = "nanoseconds")]
    pub since: Duration,
    /// Its frames from the innermost on, as far as they are known for sure.
    pub backtrace: Vec<Frame>,
}

/// In what way a thread blocks a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// It is in the function.
    InFunction,
    /// It is in the function, interrupted by a signal.
    SignalFrame,
    /// A stack that no thread runs on holds the function.
    SuspendedStack,
    /// Its stack cannot be unwound as far as is needed.
    Unreliable,
    /// Its stack cannot be scanned.
    Unscannable,
    /// It did not stop.
    Unstoppable,
}

impl BlockKind {
    /// What one can do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::InFunction | Self::SignalFrame => {
                "wait until it returns; if it never does, leave the function out of the patch, or force"
            }
            Self::SuspendedStack => "wait until the program has run that coroutine or context on, or force",
            Self::Unreliable => {
                "wait until it leaves that place; build the code there with unwind tables to have it proved"
            }
            Self::Unscannable => "remove what the reason names, or wait until the thread is elsewhere",
            Self::Unstoppable => "wait until it can be stopped",
        }
    }
}

/// One frame of a backtrace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Where it executes.
    pub addr: RemoteAddr,
    /// `object: function+offset`, where it is known.
    pub symbol: Option<String>,
}

/// A target as it stands.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Its process id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its patches, oldest first.
    pub patches: Vec<PatchStatus>,
    /// The transition that runs.
    pub transition: Option<TransitionReport>,
    /// The callback that a thread runs in its loader for a library that comes or goes.
    pub hook: Option<HookReport>,
    /// Whether a tool is at work on it right now.
    pub tool_at_work: bool,
    /// Which one, where that can be seen from here.
    pub tool: Option<ToolReport>,
    /// Memory added to the target, in bytes: mapped, and of that present.
    pub mapped_bytes: u64,
    /// Name and version of the tool that wrote the state last.
    pub written_by: String,
}

/// A tool at work on a target.
#[derive(Clone, Debug, Serialize)]
pub struct ToolReport {
    /// Its process id.
    pub pid: i32,
    /// Whether it is stopped itself (by job control, or a debugger), and so will not finish by itself.
    pub stopped: bool,
}

impl ToolReport {
    pub(crate) fn of(holder: Holder) -> Option<Self> {
        Some(Self { pid: holder.pid?.0, stopped: holder.stopped })
    }
}

/// A callback that runs for a library that comes or goes, on the thread that loads or unloads it. As long as it runs, no thread can load
/// or unload another, and no command can change anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HookReport {
    /// The thread.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// The patch.
    pub patch: String,
    /// The library.
    pub object: String,
    /// Which callback.
    pub callback: &'static str,
    /// For how long, in nanoseconds.
    #[serde(rename = "since_ns", serialize_with = "nanoseconds")]
    pub since: Duration,
}

/// A transition as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct TransitionReport {
    /// The patch.
    pub patch: String,
    /// Which way.
    pub direction: Direction,
    /// Whether it has begun; before, every thread still runs what it ran before.
    pub begun: bool,
    /// For how long it has run, in nanoseconds.
    #[serde(rename = "since_ns", serialize_with = "nanoseconds")]
    pub since: Duration,
    /// Threads of the target.
    pub threads: usize,
    /// Threads that have not switched.
    pub pending: usize,
    /// Those of them that could be looked at, and what keeps them.
    pub blockers: Vec<Blocked>,
    /// The callback that it waits for.
    pub callback: Option<CallbackReport>,
}

/// A callback that has to return before anything else can go on.
#[derive(Clone, Debug, Serialize)]
pub struct CallbackReport {
    /// The object; `None` is the main executable.
    pub object: Option<String>,
    /// Which callback.
    pub callback: &'static str,
    /// The thread that was set to run it, if one was.
    pub tid: Option<i32>,
}

impl Blocked {
    /// Who it is: a thread by id and name, or something that is no thread.
    #[must_use]
    pub fn who(&self) -> String {
        if self.tid == 0 { "no thread".to_owned() } else { format!("thread {} ({})", self.tid, self.comm) }
    }
}

impl Cost {
    /// Takes a stop of the whole process into account.
    pub(crate) fn add_stop(&mut self, threads: usize, total: Duration, longest: Duration) {
        self.stops += 1;
        self.threads = self.threads.max(threads);
        self.stopped += total;
        self.longest_pause = self.longest_pause.max(longest);
    }

    /// Takes a stop of one thread into account.
    pub(crate) fn add_look(&mut self, paused: Duration) {
        self.looks += 1;
        self.longest_pause = self.longest_pause.max(paused);
    }
}

fn nanoseconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_nanos() as u64)
}

/// What stands in the way, in a few words.
#[must_use]
pub(crate) fn blocked_text(blocked: &[Blocked]) -> String {
    let one = |b: &Blocked| {
        let frame = b.frame.map(|f| format!(" (frame {f})")).unwrap_or_default();
        let place = b.function.as_ref().map(|f| format!(" {f}{frame}:")).unwrap_or_default();
        format!("{}:{place} {}, for {:.1} s", b.who(), b.reason, b.since.as_secs_f64())
    };
    blocked.iter().map(one).collect::<Vec<_>>().join("; ")
}
