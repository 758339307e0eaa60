//! Looking at the threads that a transition waits for, until none is left.
//!
//! Each is stopped alone, briefly, and struck when its stacks are clean; the pauses between looks grow. Threads that are nearly
//! always inside are met at the gates of the functions' stubs (see [`crate::session::gate`]).

use crate::canary::canary;
use crate::code::stub::UNDECIDED_DEPTH;
use crate::session::Session;
use crate::session::census::Census;
use crate::session::gate::{self, Gates};
use crate::session::look::{Looker, side_watch};
use crate::session::stop::Hindrance;
use crate::session::switch::{BACKOFF_MAX, BACKOFF_MIN, Standing};
use crate::threads::{self};
use crate::{Result, Tid};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{Change, Event, ThreadId};

/// The longest that threads are awaited at the gate in one round.
const GATE_HELD: Duration = Duration::from_millis(20);
/// How long more of them are awaited after the first has come.
const GATE_GRACE: Duration = Duration::from_millis(2);
/// Pause between two looks whether any has come.
const GATE_PAUSE: Duration = Duration::from_micros(250);
/// The longest that one round of looks waits for threads to stop.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

impl Session {
    /// Looks at the pending threads until all have switched or the time is over.
    pub(crate) fn converge(&mut self, deadline: Instant) -> Result<Standing> {
        self.know_images();
        let mut changes = self.document.state.changes();
        let mut pause = BACKOFF_MIN;
        let mut census = self.census.take();
        let mut gates: Option<Gates> = None;
        while let Some(pending) = self.pending() {
            if self.have_libraries_moved()? {
                // Looking at all of them takes it over.
                (census, gates) = (None, None);
            }
            let hindrances = match &mut census {
                Some(census) if census.is_valid() && !self.scan_memory => {
                    let gates = match &gates {
                        Some(gates) => gates,
                        None => gates.insert(self.gates(&changes)?),
                    };
                    self.hold_gates(gates, deadline)?;
                    let looked = self.look_at_each(&pending, census, &changes, gates);
                    gates.set(self.target.memory(), 0)?;
                    looked?
                }
                _ => {
                    let (taken, hindrances) = self.look_at_all(&pending, deadline)?;
                    changes = self.changes_or(changes);
                    census = taken;
                    hindrances
                }
            };
            let Some(left) = self.pending() else { break };
            if Instant::now() + pause >= deadline {
                return Ok(Standing::Pending(hindrances));
            }
            std::thread::sleep(pause);
            pause = if left.len() < pending.len() { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
        }
        self.finish(&changes, deadline)?;
        Ok(Standing::Complete)
    }

    /// What changes in the running transition by now; what `before` says once it is over.
    pub(super) fn changes_or(&self, before: Vec<Change>) -> Vec<Change> {
        if self.is_over() { before } else { self.document.state.changes() }
    }

    /// The gates of the running transition's stubs.
    pub(super) fn gates(&mut self, changes: &[Change]) -> Result<Gates> {
        let maps = self.target.maps()?;
        let (memory, thread, side) =
            (self.target.memory(), self.target.live_thread()?, self.pending_run_goal());
        Gates::of(memory, &maps, thread, &mut self.prover.cfi, &self.document, changes, side)
    }

    /// Has pending threads wait at the stubs that they come by, for a short while: until some have come, or [`GATE_HELD`] is
    /// over. They wait on until they have been looked at and the gates are set to 0, or the counts run out.
    pub(super) fn hold_gates(&self, gates: &Gates, deadline: Instant) -> Result<()> {
        if gates.is_empty() {
            return Ok(());
        }
        let memory = self.target.memory();
        let until = (Instant::now() + GATE_HELD).min(deadline);
        gates.set(memory, gate::TURNS)?;
        let mut came = None;
        loop {
            std::thread::sleep(GATE_PAUSE);
            let now = Instant::now();
            if came.is_none() && gates.any_came(memory, gate::TURNS)? {
                came = Some(now);
            }
            if now >= until || came.is_some_and(|came| now >= came + GATE_GRACE) {
                break;
            }
        }
        // Who waits must go on waiting until it is looked at.
        gates.set(memory, gate::TURNS)
    }

    /// Has the gates hold threads that begin a new activation with the stack pointer at the address given with their keys, or
    /// above: what they are in now is over then.
    pub(super) fn hold(&self, holds: &[(ThreadId, Option<u64>)]) -> Result<()> {
        let Some(arena) = self.document.arena.as_ref().filter(|arena| arena.gates.is_some()) else {
            return Ok(());
        };
        if holds.iter().all(|(_, outermost)| outermost.is_none()) {
            return Ok(());
        }
        let (at, table) = self.valid_table(arena)?;
        for (key, outermost) in holds {
            if let Some(outermost) = outermost
                && let Some((offset, bytes)) = table.hold(key.0, outermost.wrapping_sub(UNDECIDED_DEPTH))
            {
                self.target.memory().write(at.offset(offset as i64), &bytes)?;
            }
        }
        Ok(())
    }

    /// Looks at the threads that hold pending keys, each stopped alone, and strikes those that are clean.
    pub(super) fn look_at_each(
        &mut self,
        pending: &BTreeSet<ThreadId>,
        census: &mut Census,
        changes: &[Change],
        gates: &Gates,
    ) -> Result<Vec<Hindrance>> {
        let maps = self.target.maps()?;
        let watch = &side_watch(&self.document, &maps, changes, self.pending_run_goal())?;
        let mut holders: Vec<(Tid, ThreadId)> = Vec::new();
        for &key in pending {
            match census.holders(key)[..] {
                [tid] => holders.push((tid, key)),
                // Shared or gone: only a stop of all tells.
                _ => census.invalidate(),
            }
        }
        let tids: Vec<Tid> = holders.iter().map(|(tid, _)| *tid).collect();
        let (mut hindrances, mut holds) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        let target = Rc::clone(&self.target);
        let mut renewed = Instant::now();
        let late = threads::stop_each(&target, &tids, LOOK_WITHIN, |thread| {
            seen.insert(thread.tid());
            let mut looker = Looker::new(&target, &mut self.prover, maps.clone()).with_gates(gates);
            let key = Census::key(&thread);
            match looker.look(&thread, watch)?.filter(|_| !canary!("strike-without-proof")) {
                Some(blocker) => {
                    holds.push((key, blocker.outermost));
                    hindrances.push(Hindrance::Blocker(blocker));
                }
                // Who was born since the census may share the key. With this thread stopped it has no more children.
                // A library that the look did not know of may have come, and the thread be in there.
                None if self.have_libraries_moved()? => census.invalidate(),
                None if holders.contains(&(thread.tid(), key)) && self.holds_alone(key, census)? => {
                    self.strike(key)?;
                }
                None => census.invalidate(),
            }
            self.let_go_one(thread)?;
            // Those who wait at the gates while others wait for their turn to be stopped must go on waiting.
            if renewed.elapsed() >= GATE_GRACE {
                renewed = Instant::now();
                gates.set(target.memory(), gate::TURNS)?;
            }
            Ok(())
        })?;
        self.hold(&holds)?;
        for (tid, why) in late {
            seen.insert(tid);
            let comm = target.thread_stat(tid)?.map_or_else(|| "?".to_owned(), |stat| stat.comm);
            hindrances.push(Hindrance::Unstoppable { tid, comm, why });
        }
        for (_, key) in holders.iter().filter(|(tid, _)| canary!("strike-the-dead") && !seen.contains(tid)) {
            self.strike(*key)?;
        }
        if tids.iter().any(|tid| !seen.contains(tid)) {
            census.invalidate();
        }
        Ok(hindrances)
    }

    /// Whether one thread only has `key`, those included that the census does not know yet.
    pub(super) fn holds_alone(&mut self, key: ThreadId, census: &mut Census) -> Result<bool> {
        let Some(unknown) = census.unknown(&self.target)? else { return Ok(false) };
        for tid in unknown {
            match self.stop_one(tid)? {
                Ok(Some(thread)) => {
                    census.add(&thread);
                    self.let_go_one(thread)?;
                }
                Ok(None) => census.add_keyless(tid),
                Err(_) => return Ok(false),
            }
        }
        Ok(census.holders(key).len() == 1)
    }

    /// The same under one stop of all threads, which also tells whose keys they are.
    pub(super) fn look_at_all(
        &mut self,
        pending: &BTreeSet<ThreadId>,
        deadline: Instant,
    ) -> Result<(Option<Census>, Vec<Hindrance>)> {
        let mut maps = self.target.maps()?;
        let mut changes = self.document.state.changes();
        let mut watch = side_watch(&self.document, &maps, &changes, self.pending_run_goal())?;
        let stopped = match self.stop_all(deadline)? {
            Ok(stopped) => stopped,
            Err(unstoppable) => return Ok((None, vec![unstoppable])),
        };
        if self.take_over(&stopped)? {
            maps = self.target.maps()?;
            changes = self.document.state.changes();
            watch = side_watch(&self.document, &maps, &changes, self.pending_run_goal())?;
        }
        let mut looker = Looker::new(&self.target, &mut self.prover, maps);
        let mut hindrances = Vec::new();
        let mut unclean = BTreeSet::new();
        let mut holds = Vec::new();
        for thread in stopped.threads().iter().filter(|t| pending.contains(&Census::key(t))) {
            if let Some(blocker) = looker.look(thread, &watch)? {
                unclean.insert(Census::key(thread));
                holds.push((Census::key(thread), blocker.outermost));
                hindrances.push(Hindrance::Blocker(blocker));
            }
        }
        self.hold(&holds)?;
        let suspended = self.look_at_memory(&stopped, &changes, self.pending_run_goal())?;
        if suspended.is_empty() {
            for key in pending.difference(&unclean) {
                self.strike(*key)?;
            }
        }
        hindrances.extend(suspended);
        let census = Census::of(&self.target, &stopped)?;
        self.let_go(stopped)?;
        Ok((Some(census), hindrances))
    }

    /// Strikes a key: whoever has it is on the other side from now on.
    pub(super) fn strike(&mut self, key: ThreadId) -> Result<()> {
        if let Some(arena) = &self.document.arena {
            let (at, table) = self.valid_table(arena)?;
            if let Some(offset) = table.strike_offset(key.0) {
                self.target.memory().write(at.offset(offset as i64), &[0])?;
            }
        }
        self.step(Event::ThreadSwitched(key))
    }
}
