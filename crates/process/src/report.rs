//! What is reported to whoever asked: the same structures for people and for programs.

use crate::RemoteAddr;
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

/// A thread that has not switched, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// Its id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// The function concerned, if one is.
    pub function: Option<String>,
    /// The number of the frame, 0 being the innermost, where it is known.
    pub frame: Option<usize>,
    /// In what way it blocks.
    pub reason: String,
    /// For how long, in nanoseconds.
    #[serde(rename = "since_ns", serialize_with = "nanoseconds")]
    pub since: Duration,
    /// Its frames from the innermost on, as far as they are known for sure.
    pub backtrace: Vec<Frame>,
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
    /// Whether a tool is at work on it right now.
    pub tool_at_work: bool,
    /// Memory added to the target, in bytes: mapped, and of that present.
    pub mapped_bytes: u64,
    /// Name and version of the tool that wrote the state last.
    pub written_by: String,
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
        let function = b.function.as_ref().map(|f| format!(" {f}")).unwrap_or_default();
        let frame = b.frame.map(|f| format!(" (frame {f})")).unwrap_or_default();
        format!(
            "thread {} ({}):{function}{frame}: {}, for {:.1} s",
            b.tid,
            b.comm,
            b.reason,
            b.since.as_secs_f64()
        )
    };
    blocked.iter().map(one).collect::<Vec<_>>().join("; ")
}
