//! Giving memory back: every mapping of ours that the document does not name, once no stack refers to it.
//!
//! Such mappings are arenas of transitions that are over, images of unloaded patches, and what a killed tool had made and
//! not named yet. Nothing leads to them any more, so a thread once seen without an address of theirs on its stacks
//! stays so. When nothing is left to know about the target, the state area itself goes with the last of them.

use crate::canary::canary;
use crate::remote::cave;
use crate::session::Session;
use crate::session::arena::ARENA_NAME;
use crate::session::look::{Looker, mapping_watch, watch_range};
use crate::stacks::watch::Part;
use crate::state::pieces::{Libraries, Unwinder};
use crate::state::state_area;
use crate::target::maps::{Mapping, Maps};
use crate::threads::StoppedProcess;
use crate::{RemoteAddr, Result};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};
use ugraft_runtime::layout::NEAR_MAGIC;

/// What the names of all our memfds begin with.
const PREFIX: &str = "/memfd:ugraft:";
/// Pause before a second look; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

impl Session {
    /// Gives back what can be had before the deadline, and notes what cannot.
    pub(crate) fn sweep(&mut self, deadline: Instant) -> Result<()> {
        let mut pause = PAUSE;
        loop {
            let maps = self.target.maps()?;
            let left = self.left_over(&maps)?;
            if left.is_empty() {
                return self.give_up_area(&maps);
            }
            let slots = self.slots_in(&left, &maps)?;
            let leaves = !slots.is_empty() || self.is_unwinder_in(&left);
            // What no thread has ever been led to needs no look.
            let untouched =
                !self.was_entered && !leaves && left.iter().all(|range| self.made_here.contains(range));
            let stopped = match untouched {
                true => None,
                false => self.nobody_in(&left, leaves, maps, deadline)?,
            };
            if untouched || stopped.is_some() {
                if let Some(stopped) = &stopped {
                    self.leave_unwinder(&slots, &left, stopped)?;
                }
                let mut ranges = left;
                if self.document.is_empty()
                    && self.document.unwinder.is_none()
                    && let Some(area) = self.area.take()
                {
                    ranges.push(area.range());
                }
                let done = match stopped {
                    Some(stopped) => self.let_go_and_unmap(stopped, &ranges)?,
                    None => false,
                };
                return if done { Ok(()) } else { self.unmap(&ranges) };
            }
            if Instant::now() + pause >= deadline {
                let bytes: u64 = left.iter().map(|r| r.end.0 - r.start.0).sum();
                self.notes.push(format!(
                    "{bytes} bytes of patch memory are still on a thread's stack; a later command gives them back"
                ));
                return Ok(());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// All threads, stopped, if no stack refers to the ranges, nor with `leaves` to the code that unwinders ask.
    fn nobody_in(
        &mut self,
        ranges: &[Range<RemoteAddr>],
        leaves: bool,
        maps: Maps,
        deadline: Instant,
    ) -> Result<Option<StoppedProcess>> {
        let unwinder = self.document.unwinder.iter().filter(|_| leaves).flat_map(Unwinder::leave_watch);
        // Stubs near libraries read the word and the tables of the transition that they came in.
        let near = self.document.libraries.iter().flat_map(Libraries::near);
        let near = near.map(|range| watch_range(range, Part::Stub, "the stubs near a library"));
        let watch = mapping_watch(ranges, unwinder.chain(near));
        let filled = cave::filled(&self.target, &maps);
        let Ok(stopped) = self.stop_all(deadline)? else { return Ok(None) };
        let mut looker = Looker::new(&self.target, &mut self.prover, maps);
        let nobody = looker.first_in(&stopped, &watch)?.is_none() || canary!("give-back-at-once");
        // With everything stopped is the time to take off what a killed tool left in the text.
        if !filled.is_empty() {
            cave::clear(&self.target, &filled, &stopped)?;
        }
        if nobody {
            return Ok(Some(stopped));
        }
        self.let_go(stopped)?;
        Ok(None)
    }

    /// The state area alone is left, and nothing to know.
    fn give_up_area(&mut self, maps: &Maps) -> Result<()> {
        if !self.document.is_empty() || self.needs_unwinder()? {
            return Ok(());
        }
        self.area = None;
        self.document.unwinder = None;
        let areas = runs(maps, |_| true);
        if areas.is_empty() { Ok(()) } else { self.unmap(&areas) }
    }

    /// Whether there is anything to give back.
    pub(crate) fn has_left_overs(&mut self) -> Result<bool> {
        let maps = self.recent_maps()?;
        Ok(!self.left_over(&maps)?.is_empty() || (self.area.is_some() && self.document.is_empty()))
    }

    /// Mappings of ours that nobody needs: not named by the document, and not the state area.
    fn left_over(&self, maps: &Maps) -> Result<Vec<Range<RemoteAddr>>> {
        let area = self.area.as_ref().map(|area| area.range());
        let mut named: Vec<_> = self.document.mappings().chain(&area).cloned().collect();
        if let Some(unwinder) = &self.document.unwinder
            && !self.needs_unwinder()?
        {
            named.retain(|range| *range != unwinder.mapping);
        }
        // The whole file behind them is in use: what the runtime has mapped by itself, too.
        let in_use: BTreeSet<u64> = maps
            .iter()
            .filter(|m| named.iter().any(|range| range.start <= m.start && m.end <= range.end))
            .map(|m| m.inode)
            .collect();
        let mut left = runs(maps, |m| !in_use.contains(&m.inode));
        left.extend(self.strays(maps));
        Ok(left)
    }

    /// What the hook in the loader had mapped near libraries and nobody needs any more: it says at its head what it is.
    fn strays(&self, maps: &Maps) -> Vec<Range<RemoteAddr>> {
        let is_ours = |start: RemoteAddr, len: u64| {
            let words = [NEAR_MAGIC, start.0, len].map(u64::to_le_bytes).concat();
            let mut head = vec![0; words.len()];
            maps.find(start).is_some_and(|m| m.name.is_empty() && start.offset(len as i64) <= m.end)
                && self.target.memory().read(start, &mut head).is_ok()
                && head == words
        };
        let ranges = self.document.strays.iter().map(|[start, len]| (RemoteAddr(*start), *len));
        ranges.filter(|(start, len)| is_ours(*start, *len)).map(|(s, len)| s..s.offset(len as i64)).collect()
    }

    /// Bytes of address space that our mappings take in the target.
    pub(crate) fn mapped_bytes(maps: &Maps) -> u64 {
        runs(maps, |_| true).iter().map(|range| range.end.0 - range.start.0).sum()
    }
}

/// Mappings of ours that `wanted` picks, each as it was made: its parts have different protections by now, and over some of it
/// the runtime has put memory of no file.
fn runs(maps: &Maps, wanted: impl Fn(&Mapping) -> bool) -> Vec<Range<RemoteAddr>> {
    let mut runs: Vec<Range<RemoteAddr>> = Vec::new();
    let mut last: Option<&Mapping> = None;
    // Where memory of no file ends that began at the end of the last run.
    let mut covered = RemoteAddr(0);
    for m in maps {
        if m.name.starts_with(PREFIX) && wanted(m) {
            match runs.last_mut() {
                Some(run) if covered == m.start && last.is_some_and(|last| were_one(last, m)) => {
                    run.end = m.end;
                }
                _ => runs.push(m.range()),
            }
            (last, covered) = (Some(m), m.end);
        } else if covered == m.start && m.name.is_empty() && m.inode == 0 && !m.shared {
            covered = m.end;
        }
    }
    runs
}

/// Whether two parts of a file lie as far from each other in memory as they do in the file.
fn were_one(one: &Mapping, other: &Mapping) -> bool {
    let place = |m: &Mapping| m.start.0.wrapping_sub(m.offset.0);
    one.inode == other.inode && place(one) == place(other)
}

/// Whether `maps` show any memory of ours.
#[must_use]
pub fn has_traces(maps: &Maps) -> bool {
    maps.iter().any(|m| m.name.starts_with(PREFIX))
}

/// Whether a mapping is part of a transition's arena.
pub(crate) fn is_arena(mapping: &Mapping) -> bool {
    state_area::is_named(mapping, ARENA_NAME)
}

/// Whether a mapping is a state area.
#[must_use]
pub fn is_area(mapping: &Mapping) -> bool {
    state_area::is_named(mapping, state_area::AREA_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs_of(text: &str) -> Vec<[u64; 2]> {
        let maps = Maps::parse(text).unwrap();
        runs(&maps, |_| true).iter().map(|range| [range.start.0, range.end.0]).collect()
    }

    #[test]
    fn what_the_runtime_maps_is_found_whole() {
        let chunk = "\
10000-11000 ---s 00003000 00:01 7 /memfd:ugraft:runtime (deleted)
11000-13000 rw-p 00000000 00:00 0 
13000-14000 ---s 00006000 00:01 7 /memfd:ugraft:runtime (deleted)
";
        assert_eq!(runs_of(chunk), [[0x10000, 0x14000]]);
        // Another chunk beside it, of which the memory is not there yet.
        let next = "14000-20000 ---s 00003000 00:01 7 /memfd:ugraft:runtime (deleted)\n";
        assert_eq!(runs_of(&format!("{chunk}{next}")), [[0x10000, 0x14000], [0x14000, 0x20000]]);
        // The memory may be in parts.
        let parts = chunk.replace("11000-13000 rw-p", "11000-12000 ---p 00000000 00:00 0 \n12000-13000 rw-p");
        assert_eq!(runs_of(&parts), [[0x10000, 0x14000]]);
    }

    #[test]
    fn what_lies_between_is_ours_only_where_it_was_one_mapping() {
        let text = "\
10000-11000 ---s 00003000 00:01 7 /memfd:ugraft:runtime (deleted)
11000-13000 rw-p 00000000 00:00 0 
13000-14000 ---s 00006000 00:01 7 /memfd:ugraft:runtime (deleted)
";
        let apart = [[0x10000, 0x11000], [0x13000, 0x14000]];
        // Two mappings of the program's memory between.
        assert_eq!(runs_of(&text.replace("00006000", "00003000")), apart);
        assert_eq!(runs_of(&text.replace("00006000 00:01 7", "00006000 00:01 8")), apart);
        // A file, or shared memory, or a hole between.
        assert_eq!(runs_of(&text.replace("00:00 0 ", "fe:00 9 /lib/libc.so.6")), apart);
        assert_eq!(runs_of(&text.replace("rw-p", "rw-s")), apart);
        assert_eq!(runs_of(&text.replace("11000-13000", "11000-12000")), apart);
        assert_eq!(runs_of(&text.replace("11000-13000", "12000-13000")), apart);
    }
}
