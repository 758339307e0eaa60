//! The proof that a stopped thread's stacks hold no activation of given functions.
//!
//! First the word scan ([`crate::scan`]): nothing found is a proof. Where it finds words, they may be stale, and the
//! strict unwind ([`crate::unwind`]) decides about those that lie within frames it has reliably walked: there, a
//! word that is no frame's return address is dead. Whatever remains blocks, with its reason. "Clean" is never a
//! guess; docs/stacks.md has the argument and its limits.

use crate::maps::Maps;
use crate::memory::Memory;
use crate::scan::{Hit, Place, ScanFailure, Scanner, Thread};
use crate::watch::{Part, Watch, WatchRange};
use crate::{RemoteAddr, Result, Tid};

/// How a thread was proved clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// No word of its stacks lies in a watched range.
    Scan,
    /// Words do, but a reliable unwind shows that none of them belongs to an activation.
    Unwind,
}

/// What is known of a thread.
#[derive(Debug)]
pub enum Verdict {
    /// No activation of a watched function is on its stacks.
    Clean {
        /// By what.
        how: How,
        /// It runs on a stack that is not its own and was reached by no signal: a coroutine's, probably. There may be
        /// suspended stacks that no thread's registers lead to; only a scan of all memory finds those.
        foreign: bool,
    },
    /// There is one, or there may be.
    Blocked(Blocker),
    /// The answer depends on mappings that may have changed since `maps` was read: read them again while the thread is
    /// stopped, and ask again with `fresh`.
    MapsTooOld,
}

/// Why a thread does not count as clean, and where.
#[derive(Debug)]
pub struct Blocker {
    /// The thread.
    pub tid: Tid,
    /// Why.
    pub reason: Reason,
    /// The watched range concerned; `None` where none is (the stack cannot be read, say).
    pub range: Option<WatchRange>,
    /// The number of the frame, 0 being the innermost; `None` where it is not known.
    pub frame: Option<usize>,
    /// Addresses of the frames from the innermost on as far as they could be walked reliably.
    pub backtrace: Vec<RemoteAddr>,
}

impl Blocker {
    /// The name of the function concerned.
    #[must_use]
    pub fn function(&self) -> Option<&str> {
        self.range.as_ref().map(|r| r.function.as_str())
    }

    /// The part of the function concerned.
    #[must_use]
    pub fn part(&self) -> Option<Part> {
        self.range.as_ref().map(|r| r.part)
    }
}

/// Why a thread does not count as clean.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It executes the function, or will return into it.
    #[error("in the function")]
    RunsIn,
    /// A signal interrupted the function and its handler has not returned.
    #[error("in the function, interrupted by a signal")]
    SignalFrame,
    /// A word on a stack that the thread will come back to, or outside all frames, points into the function.
    #[error("suspended stack: the word at {0} points into the function")]
    Suspended(RemoteAddr),
    /// A word may be a return address, and the stack cannot be unwound reliably up to there.
    #[error("unreliable stack at frame {frame} ({pc}): {why}")]
    Unreliable {
        /// The first frame whose caller is not known for sure.
        frame: usize,
        /// Its address.
        pc: RemoteAddr,
        /// Why not.
        why: String,
    },
    /// The stack could not be scanned.
    #[error("the stack cannot be scanned: {0}")]
    Scan(ScanFailure),
}

/// Proves stacks clean; keeps what it learns about objects from one thread to the next.
#[derive(Debug, Default)]
pub struct Prover {
    scanner: Scanner,
}

impl Prover {
    /// A prover that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the stacks of `thread`, which is stopped, hold an activation of a range in `watch`.
    ///
    /// `fresh` says that `maps` was read while the thread was stopped. With older maps (read after the thread was
    /// born) the answer may be [`Verdict::MapsTooOld`].
    ///
    /// # Errors
    /// Only [`crate::Error::TargetGone`]; all other trouble is a [`Verdict::Blocked`].
    pub fn prove(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        fresh: bool,
        thread: Thread<'_>,
        watch: &Watch,
    ) -> Result<Verdict> {
        let scan = match self.scanner.scan(memory, maps, thread, watch) {
            Ok(scan) => scan,
            Err(ScanFailure::Gone(e)) => return Err(e),
            Err(_) if !fresh => return Ok(Verdict::MapsTooOld),
            Err(e) => return Ok(blocked(thread, Reason::Scan(e), None, None)),
        };
        if scan.foreign() && !fresh {
            return Ok(Verdict::MapsTooOld);
        }
        let Some(hit) = scan.hits.first() else {
            return Ok(Verdict::Clean { how: How::Scan, foreign: scan.foreign() });
        };
        if !fresh {
            return Ok(Verdict::MapsTooOld);
        }
        let range = range_of(watch, hit);
        let (reason, frame) = match hit.place {
            Place::Pc => (Reason::RunsIn, Some(0)),
            Place::Register(_) | Place::Stack(_) => (
                Reason::Unreliable {
                    frame: 0,
                    pc: RemoteAddr(thread.regs.rip),
                    why: "a word points into the function".to_owned(),
                },
                None,
            ),
        };
        Ok(blocked(thread, reason, range, frame))
    }
}

fn range_of(watch: &Watch, hit: &Hit) -> Option<WatchRange> {
    match hit.place {
        Place::Pc => watch.pc(hit.value),
        Place::Register(_) | Place::Stack(_) => watch.word(hit.value),
    }
    .cloned()
}

fn blocked(thread: Thread<'_>, reason: Reason, range: Option<WatchRange>, frame: Option<usize>) -> Verdict {
    Verdict::Blocked(Blocker {
        tid: thread.tid,
        reason,
        range,
        frame,
        backtrace: vec![RemoteAddr(thread.regs.rip)],
    })
}
