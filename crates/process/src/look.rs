//! Looking at stopped threads: which of them are clean, and what stands in the way of the others.

use crate::document::Document;
use crate::entry::Entry;
use crate::maps::Maps;
use crate::scan::Thread;
use crate::stacks::{Blocker, Prover, Verdict};
use crate::target::Target;
use crate::threads::StoppedThread;
use crate::watch::{Part, Watch, WatchRange};
use crate::{RemoteAddr, Result, trampoline};
use std::ops::Range;
use ugraft_core::{Change, FuncId, Implementation};

/// Proves threads of one target clean, with mappings as fresh as each proof needs them.
#[derive(Debug)]
pub(crate) struct Looker<'t> {
    target: &'t Target,
    prover: &'t mut Prover,
    maps: Maps,
    fresh: bool,
}

impl<'t> Looker<'t> {
    /// A looker with `maps`, read at some earlier moment.
    pub(crate) fn new(target: &'t Target, prover: &'t mut Prover, maps: Maps) -> Self {
        Self { target, prover, maps, fresh: false }
    }

    /// Whether `thread` is clean of `watch`; the blocker if it is not.
    pub(crate) fn look(&mut self, thread: &StoppedThread, watch: &Watch) -> Result<Option<Blocker>> {
        loop {
            let facts = Thread { pid: self.target.pid(), tid: thread.tid(), regs: thread.regs() };
            match self.prover.prove(self.target.memory(), &self.maps, self.fresh, facts, watch)? {
                Verdict::Clean { .. } => return Ok(None),
                Verdict::Blocked(blocker) => return Ok(Some(blocker)),
                Verdict::MapsTooOld => {
                    self.maps = self.target.maps()?;
                    self.fresh = true;
                }
            }
        }
    }
}

/// The ranges that a thread on one side must not be in when it leaves that side: the code of that side's
/// implementations, and the stubs and thunks.
pub(crate) fn side_watch(document: &Document, changes: &[Change], goal_side: bool) -> Result<Watch> {
    let mut ranges = Vec::new();
    for (key, change) in changes.iter().enumerate() {
        let side = if goal_side { change.goal } else { change.source };
        for range in code_of(document, &change.func, side)? {
            ranges.push(WatchRange { key: key as u64, ..range });
        }
        // On the way to the side's implementation, which it would still enter after the begin.
        if let Some(landing) = document.landing(&change.func, side)? {
            let end = landing.offset(trampoline::FAR_LEN as i64);
            ranges.push(named(landing..end, Part::Stub, &change.func));
        }
        if let Some(site) = document.site(&change.func) {
            let pads = site.entry.watch_restore();
            ranges.extend(pads.into_iter().map(|r| named(r, Part::Stub, &change.func)));
        }
    }
    for code in document.arena.iter().flat_map(|arena| &arena.code) {
        ranges.push(WatchRange {
            start: code.start,
            end: code.end,
            part: Part::Stub,
            function: "the transition's stubs".to_owned(),
            key: u64::MAX,
        });
    }
    Ok(Watch::new(ranges))
}

/// The bytes that the first redirect of each changing function overwrites, where it is not redirected yet.
pub(crate) fn install_watch(document: &Document, changes: &[Change]) -> Watch {
    let fresh = changes.iter().filter(|change| change.source == Implementation::Original);
    let ranges = fresh.filter_map(|change| Some((document.site(&change.func)?, &change.func)));
    Watch::new(ranges.flat_map(|(site, func)| entry_bytes(&site.entry, func)).collect())
}

/// The mappings of ours that are to be given back.
pub(crate) fn mapping_watch(mappings: &[Range<RemoteAddr>]) -> Watch {
    let range = |r: &Range<RemoteAddr>| WatchRange {
        start: r.start,
        end: r.end,
        part: Part::Image,
        function: format!("the patch memory at {}", r.start),
        key: 0,
    };
    Watch::new(mappings.iter().map(range).collect())
}

fn entry_bytes(entry: &Entry, func: &FuncId) -> Vec<WatchRange> {
    // A word equal to a part's first byte does not count for entry bytes: begin one before the first that does.
    let exclusive = |r: Range<RemoteAddr>| r.start.offset(-1)..r.end;
    entry.watch_install().into_iter().map(|r| named(exclusive(r), Part::EntryBytes, func)).collect()
}

fn code_of(document: &Document, func: &FuncId, side: Implementation) -> Result<Vec<WatchRange>> {
    let code = document.code(func, side)?;
    Ok(code
        .iter()
        .map(|range| {
            // A thread at the very first instruction counts: it may have come there by a tail call from another
            // changing function, whose version it must keep to. `Part::Code` would let it pass.
            let part = match side {
                Implementation::Original => Part::Cold,
                Implementation::Patch(_) => Part::Image,
            };
            named(range.clone(), part, func)
        })
        .collect())
}

fn named(range: Range<RemoteAddr>, part: Part, func: &FuncId) -> WatchRange {
    WatchRange { start: range.start, end: range.end, part, function: func.name.clone(), key: 0 }
}
