//! The proof that a stopped thread's stacks hold no activation of given functions.
//!
//! First the word scan ([`crate::stacks::scan`]): nothing found is a proof. Where it finds words, they may be stale, and the
//! strict unwind ([`crate::stacks::unwind`]) decides about those that lie within frames it has reliably walked: there, a
//! word that is no frame's return address is dead. Whatever remains blocks, with its reason. "Clean" is never a
//! guess; docs/stacks.md has the argument and its limits.

pub mod cfi;
pub(crate) mod contexts;
pub(crate) mod exit_path;
pub mod rules;
pub mod scan;
pub mod suspended;
pub mod unwind;
pub mod watch;
pub(crate) mod way_in;

use crate::canary::canary;
use crate::stacks::cfi::Cfi;
use crate::stacks::scan::{Hit, MAX_HITS, Place, Scan, ScanFailure, Scanner, Thread};
use crate::stacks::unwind::{End, Frame, Unwinder, follows_call};
use crate::stacks::watch::{Part, Watch, WatchRange};
use crate::stacks::way_in::enters;
use crate::target::maps::Maps;
use crate::target::memory::Memory;
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
    /// The word that holds the return address of the outermost activation of a watched range, if all frames up to it, and up
    /// to the end or [`MAX_BACKTRACE`], are known: an activation begun with the stack pointer there or above is a new one.
    pub outermost: Option<u64>,
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
    /// The instructions ahead are nothing but the way into the function, by a tail call perhaps.
    #[error("about to enter the function")]
    Entering,
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
    Scan(Box<ScanFailure>),
}

/// Most addresses of a blocker's backtrace.
pub const MAX_BACKTRACE: usize = 256;

/// Proves stacks clean; keeps what it learns about objects from one thread to the next.
#[derive(Debug, Default)]
pub struct Prover {
    scanner: Scanner,
    /// Where call frame information is found. Tables of patch images can be made known here.
    pub cfi: Cfi,
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
        let mut scan = match self.scanner.scan(memory, maps, thread, watch) {
            Ok(scan) => scan,
            Err(ScanFailure::Gone(e)) => return Err(e),
            Err(_) if !fresh => return Ok(Verdict::MapsTooOld),
            Err(e) => {
                return Ok(Verdict::Blocked(Blocker {
                    tid: thread.tid,
                    reason: Reason::Scan(Box::new(e)),
                    range: None,
                    frame: None,
                    backtrace: vec![RemoteAddr(thread.regs.rip)],
                    outermost: None,
                }));
            }
        };
        scan.hits.retain(|hit| !only_behind_the_end(memory, watch, hit));
        let foreign = scan.foreign();
        if foreign && !fresh {
            return Ok(Verdict::MapsTooOld);
        }
        if scan.hits.is_empty() && !scan.more_hits {
            return Ok(Verdict::Clean { how: How::Scan, foreign });
        }
        if !fresh {
            return Ok(Verdict::MapsTooOld);
        }
        Ok(match self.judge(memory, maps, thread, watch, &scan) {
            Some(blocker) => Verdict::Blocked(blocker),
            None => Verdict::Clean { how: How::Unwind, foreign },
        })
    }

    /// Finds out by unwinding which of the words that the scan found are live; `None` if none is.
    fn judge(
        &mut self,
        memory: &Memory,
        maps: &Maps,
        thread: Thread<'_>,
        watch: &Watch,
        scan: &Scan,
    ) -> Option<Blocker> {
        // The stacks' words in one order, for a walk to stop when it has passed them.
        let slots: Vec<u64> = scan.hits.iter().filter_map(|h| h.place.slot()).collect();
        let by_registers = scan.hits.iter().any(|h| matches!(h.place, Place::Register(_)));
        let mut found: Option<usize> = frame_in(memory, watch, &first_frame(thread)).map(|_| 0);
        let mut passed = 0;
        let walk = Unwinder::new(&mut self.cfi, memory, maps, thread).walk(|frames, covered| {
            if found.is_some() {
                // Only the backtrace is wanted yet.
                return frames.len() >= MAX_BACKTRACE;
            }
            if let [.., inner, frame] = &frames[..frames.len() - usize::from(canary!("off-by-a-frame"))]
                && let Some(range) = frame_in(memory, watch, frame)
                && (range.part != Part::Resolver || frame.exact || is_binding(maps, range, inner))
            {
                found = Some(frames.len() - 1);
                return frames.len() >= MAX_BACKTRACE;
            }
            while slots.get(passed).is_some_and(|s| covered.iter().any(|c| c.contains(s))) {
                passed += 1;
            }
            passed == slots.len() && !scan.more_hits && !by_registers
        });
        let backtrace =
            || walk.frames.iter().take(MAX_BACKTRACE).map(|f| RemoteAddr(f.pc)).collect::<Vec<_>>();
        if let Some(n) = found {
            let frame = walk.frames[n];
            let range = frame_in(memory, watch, &frame).cloned();
            let within = !frame.exact || watch.pc(frame.pc).is_some();
            let resolves = range.as_ref().is_some_and(|r| r.part == Part::Resolver);
            let reason = match frame.interrupted {
                _ if !within || resolves => Reason::Entering,
                true => Reason::SignalFrame,
                false => Reason::RunsIn,
            };
            let last = walk.frames.iter().rposition(|f| frame_in(memory, watch, f).is_some());
            let caller = last.and_then(|last| walk.frames.get(last + 1));
            return Some(Blocker {
                tid: thread.tid,
                reason,
                range,
                frame: Some(n),
                backtrace: backtrace(),
                outermost: caller.map(|caller| caller.sp.wrapping_sub(8)),
            });
        }
        let hit = scan.hits.iter().filter(|h| !is_of_resolver(watch, h.value)).find(|h| match h.place {
            _ if is_pointer(watch, h.value) => true,
            // Seen by the first frame already.
            Place::Pc => false,
            // Any frame may keep its return address in a register that its callees preserve.
            Place::Register(_) => walk.end != End::Outermost,
            Place::Stack(at) => !walk.covers(at.0),
        });
        let at_last = |why: String| {
            let last = walk.frames.len() - 1;
            Reason::Unreliable { frame: last, pc: RemoteAddr(walk.frames[last].pc), why }
        };
        let reason = match (hit, &walk.end) {
            (None, _) if scan.more_hits => {
                at_last(format!("more than {MAX_HITS} words point into functions"))
            }
            (None, _) => return None,
            (Some(hit), _) if is_pointer(watch, hit.value) => {
                at_last("it may be about to be called".to_owned())
            }
            (Some(_), End::Unreliable(doubt)) => at_last(doubt.to_string()),
            (Some(Hit { place: Place::Stack(at), .. }), _) => Reason::Suspended(*at),
            (Some(_), _) => at_last("a register points into the function".to_owned()),
        };
        let range = hit.and_then(|h| watch.word(h.value).or_else(|| enters(memory, watch, h.value))).cloned();
        let backtrace = backtrace();
        Some(Blocker { tid: thread.tid, reason, range, frame: None, backtrace, outermost: None })
    }
}

/// Whether a word points one past the end of a function that does not end with a call, and so cannot be a return
/// address into it: it is the start of what comes next. A redirect may have been written over a call that is all the
/// function's code.
fn only_behind_the_end(memory: &Memory, watch: &Watch, hit: &Hit) -> bool {
    const JUMP: u8 = 0xe9;
    hit.place != Place::Pc
        && watch.word(hit.value).is_some_and(|r| r.end.0 == hit.value)
        && !follows_call(memory, hit.value)
        && memory.read_vec(RemoteAddr(hit.value.wrapping_sub(5)), 1).is_ok_and(|b| b != [JUMP])
}

fn first_frame(thread: Thread<'_>) -> Frame {
    Frame { pc: thread.regs.rip, exact: true, interrupted: false, sp: thread.regs.rsp }
}

/// The watched range that `frame` is an activation of, or is about to enter.
fn frame_in<'w>(memory: &Memory, watch: &'w Watch, frame: &Frame) -> Option<&'w WatchRange> {
    if frame.exact {
        watch.pc(frame.pc).or_else(|| enters(memory, watch, frame.pc))
    } else {
        watch.return_address(frame.pc)
    }
}

fn is_of_resolver(watch: &Watch, word: u64) -> bool {
    watch.word(word).is_some_and(|range| range.part == Part::Resolver)
}

fn is_pointer(watch: &Watch, word: u64) -> bool {
    watch.word(word).is_some_and(|range| range.part == Part::Pointer)
}

/// Whether the loader, in code at `range`, is still about to find what is called: what it has called is the loader's own. A
/// loader that audits or profiles calls the function itself, and stays below it.
fn is_binding(maps: &Maps, range: &WatchRange, inner: &Frame) -> bool {
    maps.find(range.start).is_some_and(|loader| loader.range().contains(&RemoteAddr(inner.pc)))
}
