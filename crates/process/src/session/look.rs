//! Looking at stopped threads: which of them are clean, and what stands in the way of the others.

use crate::canary::canary;
use crate::code::entry::Entry;
use crate::code::trampoline;
use crate::session::gate::Gates;
use crate::session::stop::Hindrance;
use crate::session::sweep;
use crate::stacks::scan::{ScanFailure, Thread};
use crate::stacks::suspended::{self, MemoryHit, pointer_guard};
use crate::stacks::watch::{Part, Watch, WatchRange};
use crate::stacks::{Blocker, Prover, Reason, Verdict};
use crate::state::document::{Document, Site};
use crate::state::pieces::{Libraries, Unwinder};
use crate::target::Target;
use crate::target::maps::{Mapping, Maps};
use crate::threads::{StoppedProcess, StoppedThread};
use crate::{RemoteAddr, Result, Tid};
use std::ops::Range;
use ugraft_core::{Change, FuncId, Implementation};

/// Proves threads of one target clean, with mappings as fresh as each proof needs them.
#[derive(Debug)]
pub(crate) struct Looker<'t> {
    target: &'t Target,
    prover: &'t mut Prover,
    maps: Maps,
    fresh: bool,
    gates: Option<&'t Gates>,
}

impl<'t> Looker<'t> {
    /// A looker with `maps`, read at some earlier moment.
    pub(crate) fn new(target: &'t Target, prover: &'t mut Prover, maps: Maps) -> Self {
        Self { target, prover, maps, fresh: false, gates: None }
    }

    /// Takes threads that wait at one of `gates` as what they are, callers.
    pub(crate) fn with_gates(self, gates: &'t Gates) -> Self {
        Self { gates: Some(gates), ..self }
    }

    /// Whether `thread` is clean of `watch`; the blocker if it is not.
    pub(crate) fn look(&mut self, thread: &StoppedThread, watch: &Watch) -> Result<Option<Blocker>> {
        let caller = self.gates.and_then(|gates| gates.caller(self.target.memory(), thread.regs(), watch));
        let regs = caller.as_ref().unwrap_or(thread.regs());
        loop {
            let facts = Thread { pid: self.target.pid(), tid: thread.tid(), regs };
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

    /// The first of all threads that is not clean of `watch`.
    pub(crate) fn first_in(&mut self, stopped: &StoppedProcess, watch: &Watch) -> Result<Option<Tid>> {
        for thread in stopped.threads() {
            if self.look(thread, watch)?.is_some() {
                return Ok(Some(thread.tid()));
            }
        }
        Ok(None)
    }
}

/// The ranges that a thread on one side must not be in when it leaves that side: the code of that side's
/// implementations, and the stubs and thunks.
///
/// Arenas of earlier transitions, which no document names any more, count as long as they are there: whoever is late in
/// one is still on the way to an implementation, perhaps of this side.
pub(crate) fn side_watch(
    document: &Document,
    maps: &Maps,
    changes: &[Change],
    goal_side: bool,
) -> Result<Watch> {
    let mut ranges = Vec::new();
    for (key, change) in changes.iter().enumerate().skip(usize::from(canary!("forget-a-function"))) {
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
            ranges.extend(pads(site));
        }
    }
    if !canary!("forget-the-stubs") {
        ranges.extend(stubs(document, maps));
    }
    let resolvers = document.arena.iter().flat_map(|arena| &arena.resolvers);
    ranges.extend(resolvers.map(|range| WatchRange {
        start: range.start,
        end: range.end,
        part: Part::Resolver,
        function: "a function that the loader is binding".to_owned(),
        key: u64::MAX,
    }));
    Ok(Watch::new(ranges))
}

/// What no stack may hold that no thread runs on: the code of one side's implementations, stubs and thunks.
fn memory_watch(document: &Document, maps: &Maps, changes: &[Change], goal_side: bool) -> Result<Watch> {
    let mut ranges = Vec::new();
    for change in changes {
        let side = if goal_side { change.goal } else { change.source };
        // In memory at large, the address of a function is mostly just that.
        let code = document.code(&change.func, side)?;
        ranges.extend(code.iter().map(|range| named(range.clone(), Part::Code, &change.func)));
    }
    ranges.extend(stubs(document, maps));
    Ok(Watch::new(ranges))
}

/// The code of this transition's arena, and of those before that are not given back yet.
fn stubs(document: &Document, maps: &Maps) -> Vec<WatchRange> {
    let arena = document.arena.iter().flat_map(|arena| arena.code.iter().cloned());
    let named = |m: &Mapping| document.mappings().any(|r| r.start <= m.start && m.end <= r.end);
    let orphans = maps.iter().filter(|m| m.exec && sweep::is_arena(m) && !named(m)).map(Mapping::range);
    let stub = |range: Range<RemoteAddr>, function: &str| WatchRange {
        start: range.start,
        end: range.end,
        part: Part::Stub,
        function: function.to_owned(),
        key: u64::MAX,
    };
    let near = document.libraries.iter().flat_map(Libraries::near);
    let near = near.map(|range| stub(range, "the stubs near a library"));
    let own = arena.map(|range| stub(range, "the transition's stubs"));
    near.chain(own).chain(orphans.map(|range| stub(range, "an earlier transition's stubs"))).collect()
}

/// The words in memory that may belong to stacks which no thread runs on, and which point into one side's implementations.
/// The first of each function is enough.
pub(crate) fn look_at_memory(
    target: &Target,
    stopped: &StoppedProcess,
    document: &Document,
    changes: &[Change],
    goal_side: bool,
) -> Result<Vec<Hindrance>> {
    let maps = target.maps()?;
    let watch = memory_watch(document, &maps, changes, goal_side)?;
    let facts = stopped.threads().iter().map(|t| Thread { pid: target.pid(), tid: t.tid(), regs: t.regs() });
    let own: Vec<_> = facts.filter_map(|thread| suspended::own_stack(&maps, thread)).collect();
    let guard = stopped.threads().first().and_then(|t| pointer_guard(target.memory(), t.fs_base().0));
    let scan = match suspended::scan_memory(target.memory(), target.pid(), &maps, &watch, &own, guard) {
        Ok(scan) => scan,
        Err(ScanFailure::Gone(e)) => return Err(e),
        Err(e) => {
            let tid = Tid(target.pid().0);
            let reason = Reason::Scan(Box::new(e));
            let blocker =
                Blocker { tid, reason, range: None, frame: None, backtrace: Vec::new(), outermost: None };
            return Ok(vec![Hindrance::Blocker(blocker)]);
        }
    };
    let mut found: Vec<(MemoryHit, WatchRange)> = Vec::new();
    for hit in scan.hits {
        if let Some(range) = watch.word(hit.value)
            && !found.iter().any(|(_, known)| known.function == range.function)
        {
            found.push((hit, range.clone()));
        }
    }
    Ok(found.into_iter().map(|(hit, range)| Hindrance::Memory { hit, range }).collect())
}

/// The bytes that the first redirect of each changing function overwrites, where it is not redirected yet; with `unwinder`
/// those of the functions that unwinders call, too.
pub(crate) fn install_watch(document: &Document, changes: &[Change], unwinder: bool) -> Watch {
    let fresh = changes.iter().filter(|change| change.source == Implementation::Original);
    let ranges = fresh.filter_map(|change| Some((document.site(&change.func)?, &change.func)));
    let ranges = ranges.flat_map(|(site, func)| entry_bytes(&site.entry, &func.name));
    let unwinder = document.unwinder.iter().filter(|_| unwinder).flat_map(Unwinder::install_watch);
    Watch::new(ranges.chain(unwinder).collect())
}

/// The bytes that the first redirect of an entry overwrites.
pub(crate) fn entry_watch(entry: &Entry, name: &str) -> Watch {
    Watch::new(entry_bytes(entry, name))
}

/// All that functions of libraries are by now, and the bytes of their entries: nobody in these is on either side of a change.
pub(crate) fn library_watch<'s>(document: &Document, sites: impl Iterator<Item = &'s Site>) -> Result<Watch> {
    let mut ranges = Vec::new();
    for site in sites {
        ranges.extend(entry_bytes(&site.entry, &site.func.name));
        ranges.extend(pads(site));
        ranges.extend(code_of(document, &site.func, Implementation::Original)?);
        let new = document.images.iter().flat_map(|image| &image.funcs).filter(|new| new.func == site.func);
        for code in new.flat_map(|new| &new.code) {
            ranges.push(named(code.clone(), Part::Image, &site.func));
        }
    }
    Ok(Watch::new(ranges))
}

/// The jumps in padding that entries lead by: nobody may be about to make one when the padding comes back.
pub(crate) fn pad_watch(document: &Document) -> Watch {
    Watch::new(document.sites.iter().flat_map(pads).collect())
}

fn pads(site: &Site) -> impl Iterator<Item = WatchRange> {
    site.entry.watch_restore().into_iter().map(|range| named(range, Part::Stub, &site.func))
}

/// The mappings of ours that are to be given back, and what else nobody may be in then.
pub(crate) fn mapping_watch(mappings: &[Range<RemoteAddr>], also: impl Iterator<Item = WatchRange>) -> Watch {
    let range = |r: &Range<RemoteAddr>| WatchRange {
        start: r.start,
        end: r.end,
        part: Part::Image,
        function: format!("the patch memory at {}", r.start),
        key: 0,
    };
    Watch::new(mappings.iter().map(range).chain(also).collect())
}

/// The bytes that the first redirect of a function overwrites.
pub(crate) fn entry_bytes(entry: &Entry, name: &str) -> Vec<WatchRange> {
    // A word equal to a part's first byte does not count for entry bytes: begin one before the first that does.
    let exclusive = |r: Range<RemoteAddr>| r.start.offset(-1)..r.end;
    let ranges = entry.watch_install().into_iter().map(exclusive);
    ranges.map(|r| watch_range(r, Part::EntryBytes, name)).collect()
}

fn code_of(document: &Document, func: &FuncId, side: Implementation) -> Result<Vec<WatchRange>> {
    let code = document.code(func, side)?;
    Ok(code
        .iter()
        .map(|range| {
            // A thread at the very first instruction counts: it may have come there by a tail call from another
            // changing function, whose version it must keep to. `Part::Code` would let it pass.
            let part = match side {
                _ if canary!("who-enters-is-outside") => Part::Code,
                Implementation::Original => Part::Cold,
                Implementation::Patch(_) => Part::Image,
            };
            named(range.clone(), part, func)
        })
        .collect())
}

fn named(range: Range<RemoteAddr>, part: Part, func: &FuncId) -> WatchRange {
    watch_range(range, part, &func.name)
}

/// A range to watch, of what is called `name`.
pub(crate) fn watch_range(range: Range<RemoteAddr>, part: Part, name: &str) -> WatchRange {
    WatchRange { start: range.start, end: range.end, part, function: name.to_owned(), key: 0 }
}
