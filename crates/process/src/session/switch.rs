//! Transitions: how threads move from one set of implementations to another (the consistency model).
//!
//! ```text
//! prepare   map and write the arena; everything still means source       commit
//! start     one stop of the whole process: entries lead to stubs, every
//!           thread that is not clean is listed as pending, and one store
//!           of the transition word begins it                             commit
//! converge  look at each pending thread alone, briefly; strike it from
//!           the table when its stacks are clean; have threads that come
//!           by a stub wait there for that, a few milliseconds at a time
//! finish    one stop: entries lead straight to what they lead to now     commit
//! ```
//!
//! The `pre_` callbacks run before the first, once the patch's image is in the target; the `post_` callbacks after the
//! last, when every thread runs what it is to run (see [`crate::session::callbacks`]).
//!
//! A tool that dies leaves a target that works at each of these points, and `Session::resume` finds from the document
//! and the transition word which it is. Before the word is stored nothing has changed for any thread, so an interrupted
//! start is cancelled; after it, the transition goes on.
//!
//! Invariants:
//! - A thread changes sides only by the begin (all threads that are clean), by a strike (this thread, stopped and
//!   clean), and by being forced. A reverse changes nobody's side: it makes the others the pending ones.
//! - A key is struck only when no thread that has it is unclean: threads made by a bare `clone` share one.
//! - A stub in use is never rewritten, nor the word it reads: each transition has an arena of its own, which is
//!   unmapped when no stack refers to it.

use crate::canary::canary;
use crate::code::entry::Installed;
use crate::code::pending::PendingTable;
use crate::code::stub::UNDECIDED_DEPTH;
use crate::session::Session;
use crate::session::again::Attempts;
use crate::session::arena;
use crate::session::batch::Batch;
use crate::session::census::Census;
use crate::session::gate::{self, Gates};
use crate::session::look::{Looker, install_watch, look_at_memory, side_watch};
use crate::session::stop::Hindrance;
use crate::state::document::{Arena, Image, Site};
use crate::threads::{self, StoppedProcess};
use crate::{Error, RemoteAddr, Result, Tid};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{Change, Due, Errno, Event, Implementation, Phase, ThreadId};

/// Pause before the first second look; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(1);
/// The longest pause between looks.
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The longest that threads are awaited at the gate in one round.
const GATE_HELD: Duration = Duration::from_millis(20);
/// How long more of them are awaited after the first has come.
const GATE_GRACE: Duration = Duration::from_millis(2);
/// Pause between two looks whether any has come.
const GATE_PAUSE: Duration = Duration::from_micros(250);
/// The longest that one round of looks waits for threads to stop.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// How a transition that was carried on stands.
#[derive(Debug)]
pub enum Standing {
    /// It is over, in the direction it had last.
    Complete,
    /// It never began; the target is as before. These threads were in the way.
    NotBegun(Vec<Hindrance>),
    /// The time is over and these threads have not switched.
    Pending(Vec<Hindrance>),
}

impl Session {
    /// Carries the transition that a step has just initialized on until `deadline`, after the mappings and writes that
    /// `batch` wants made before it. A transition that does not begin is cancelled.
    pub(crate) fn transition(&mut self, mut batch: Batch, deadline: Instant) -> Result<Standing> {
        if self.owes_callback() {
            // Threads that wait in the loader's hook are at no safe point.
            self.release_loader()?;
            self.run_callbacks(deadline)?;
            if self.is_over() {
                self.close_if_over();
                return self.commit().map(|()| Standing::Complete);
            }
            batch = self.batch(self.target.maps()?);
        }
        let prepared = self.prepare(batch, deadline);
        if prepared.is_err() && !self.committed {
            // Nobody has been told that there is a transition: nothing is to be cancelled.
            return prepared.map(|()| Standing::Complete);
        }
        match prepared.and_then(|()| self.start(deadline)) {
            Ok(None) => self.converge(deadline),
            Ok(Some(hindrances)) => {
                self.cancel(deadline)?;
                Ok(Standing::NotBegun(hindrances))
            }
            Err(e) => {
                // What failed is what is to be reported, and the next run cancels again if this fails too.
                let failed = self.failed_object(&e);
                if let Err(also) = self.cancel_with(failed, deadline) {
                    tracing::warn!("the transition could not be cancelled: {also}");
                }
                Err(e)
            }
        }
    }

    /// Maps and writes what the transition needs, and commits it: everything still means source. If the transition is known
    /// already, because its callbacks have run, nothing but the arena is needed, and another place for it will do as well.
    fn prepare(&mut self, mut batch: Batch, deadline: Instant) -> Result<()> {
        let mut attempts = Attempts::until(deadline);
        loop {
            match self.plan_arena(&mut batch).and_then(|()| self.install(batch)) {
                Err(e) if self.committed => self.try_again(e, &mut attempts)?,
                prepared => return prepared,
            }
            batch = self.batch(self.target.maps()?);
        }
    }

    /// Adds to `batch` what the transition needs for the functions that change.
    pub(crate) fn plan_arena(&mut self, batch: &mut Batch) -> Result<()> {
        let changes = self.document.state.changes();
        self.document.arena = None;
        if !changes.is_empty() {
            let threads = self.target.threads()?.len();
            let plan = arena::plan(&self.document, &changes, threads, &mut batch.ground, false)?;
            batch.requests.extend(plan.requests);
            batch.writes.extend(plan.writes);
            let (scan_memory, resolvers) = (self.scan_memory, self.resolvers.clone());
            self.document.arena = Some(Arena { scan_memory, resolvers, ..plan.arena });
        }
        Ok(())
    }

    /// Begins the transition as soon as no thread is inside the bytes that are overwritten. `Some` with the threads in
    /// the way if that was not to be had before the deadline.
    fn start(&mut self, deadline: Instant) -> Result<Option<Vec<Hindrance>>> {
        self.know_images();
        let led = self.is_unwinder_led()?;
        let mut pause = BACKOFF_MIN;
        loop {
            self.hold_loader()?;
            if self.have_libraries_moved()? {
                let hindrance = self.catch_up(deadline)?;
                if self.is_over() {
                    return Ok(None);
                }
                if hindrance.is_some() {
                    return Ok(Some(hindrance.into_iter().collect()));
                }
            }
            let changes = self.document.state.changes();
            let install = install_watch(&self.document, &changes, !led);
            let maps = self.recent_maps()?;
            let watch = side_watch(&self.document, &maps, &changes, false)?;
            let obstacles = match self.stop_all(deadline)? {
                Err(unstoppable) => vec![unstoppable],
                Ok(stopped) if self.have_libraries_moved()? => {
                    self.let_go(stopped)?;
                    Vec::new()
                }
                Ok(stopped) => {
                    let mut looker = Looker::new(&self.target, &mut self.prover, maps);
                    let mut unclean = BTreeSet::new();
                    let mut obstacles = Vec::new();
                    let mut holds = Vec::new();
                    for thread in stopped.threads() {
                        if canary!("skip-a-thread") && thread.tid().0 % 2 == 1 {
                            continue;
                        }
                        if let Some(blocker) = looker.look(thread, &watch)? {
                            unclean.insert(Census::key(thread));
                            holds.push((Census::key(thread), blocker.outermost));
                            obstacles.extend(looker.look(thread, &install)?.map(Hindrance::Blocker));
                        }
                    }
                    if obstacles.is_empty() && !self.look_at_memory(&stopped, &changes, false)?.is_empty() {
                        // Any thread may go on on that stack.
                        unclean.extend(stopped.threads().iter().map(Census::key));
                    }
                    if obstacles.is_empty() {
                        if let Err(e) = self.check_sources(&changes) {
                            self.let_go(stopped)?;
                            return Err(e);
                        }
                        if !unclean.is_empty() {
                            self.census = Some(Census::of(&self.target, &stopped)?);
                        }
                        self.begin(&changes, unclean)?;
                        self.hold(&holds)?;
                        return self.let_go_begun(stopped).map(|()| None);
                    }
                    self.let_go(stopped)?;
                    obstacles
                }
            };
            if Instant::now() + pause >= deadline {
                return Ok(Some(obstacles));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Refuses to begin where the entry of a changing function does not hold what the transition comes from: since it was
    /// looked at first, callbacks have run, and a debugger or a probe may have come.
    fn check_sources(&self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let source = self.document.landing(&change.func, change.source)?;
            let source = source.map_or(Installed::Original, Installed::Redirect);
            let installed = self.installed(site)?;
            if self.can_go(&change.func) && installed != Some(Installed::Other) {
                // Another of its name may have come meanwhile, with or without what the hook has for it.
                continue;
            }
            if installed != Some(source) {
                let function = change.func.to_string();
                return Err(Error::Disturbed { function, at: site.entry.place() });
            }
        }
        Ok(())
    }

    /// The object that could not be patched, for the log: that of the function which the error names, or the first.
    fn failed_object(&self, error: &Error) -> Option<String> {
        let changes = self.document.state.changes();
        let named = changes.iter().find(
            |change| matches!(error, Error::Disturbed { function, .. } if *function == change.func.to_string()),
        );
        named.or(changes.first()).and_then(|change| change.func.object.clone())
    }

    /// The suspended stacks that stand in the way, where those are to be looked for.
    fn look_at_memory(
        &self,
        stopped: &StoppedProcess,
        changes: &[Change],
        goal_side: bool,
    ) -> Result<Vec<Hindrance>> {
        if !self.scan_memory {
            return Ok(Vec::new());
        }
        look_at_memory(&self.target, stopped, &self.document, changes, goal_side)
    }

    /// The begin, with all threads stopped: those whose keys are `unclean` are pending, all others switch at once.
    fn begin(&mut self, changes: &[Change], unclean: BTreeSet<ThreadId>) -> Result<()> {
        // What follows leads threads into the arena, unless it is done to its end before they run.
        let entered_before = std::mem::replace(&mut self.was_entered, true);
        self.lead_unwinder()?;
        if let Some(arena) = self.document.arena.clone() {
            if !unclean.is_empty() {
                let table = PendingTable::build(unclean.iter().map(|key| key.0), arena.capacity()?)?;
                self.target.memory().write(arena.tables[0], table.as_bytes())?;
            }
            if canary!("begin-before-entries") {
                self.make_valid(&arena, 0)?;
            }
            for change in changes {
                self.lead(change, &arena)?;
            }
            self.publish()?;
            self.make_valid(&arena, 0)?;
        }
        self.step(Event::Started { pending: unclean })?;
        if self.is_over() {
            self.settle(changes)?;
            self.publish()?;
            self.was_entered = entered_before;
        }
        self.release_loader()
    }

    /// Lets the threads go after a begin. If that was the end as well, no thread has been in a stub, and what the transition
    /// needed is given back at once.
    fn let_go_begun(&mut self, stopped: StoppedProcess) -> Result<()> {
        let needed = self.document.arena.as_ref().map(|arena| arena.mappings.clone()).unwrap_or_default();
        self.close_if_over();
        if self.document.arena.is_none() && !self.was_entered && !needed.is_empty() {
            // What could not be given back now, the sweep will.
            self.let_go_and_unmap(stopped, &needed).map(drop)
        } else {
            self.let_go(stopped)?;
            self.commit()
        }
    }

    /// Leads the entry of a changing function to its stub.
    fn lead(&self, change: &Change, arena: &Arena) -> Result<()> {
        let site = self.document.site(&change.func);
        let site = site.ok_or_else(|| Error::Damaged(format!("the function {} has no site", change.func)))?;
        if canary!("settle-early") {
            return self.lead_to(site, self.document.landing(&change.func, change.goal)?);
        }
        let stub = Some(arena.stub(&change.func)?);
        match change.source {
            Implementation::Original => self.lead_anew(site, stub),
            Implementation::Patch(_) => self.lead_to(site, stub),
        }
    }

    /// Leads an entry to `landing`, or back to its original.
    fn lead_to(&self, site: &Site, landing: Option<RemoteAddr>) -> Result<()> {
        if self.can_go(&site.func) {
            match self.installed(site)? {
                Some(Installed::Redirect(_) | Installed::Half(_)) => {}
                // Its library is not the one that it was, or not there at all. A thread may be in the bytes of a new one's entry:
                // what is to be done there is done when nobody is (see `Session::settle_libraries`).
                _ => return Ok(()),
            }
        }
        self.lead_anew(site, landing)
    }

    /// The same for an entry that may hold its original bytes, in which no thread is.
    pub(crate) fn lead_anew(&self, site: &Site, landing: Option<RemoteAddr>) -> Result<()> {
        if matches!(self.installed(site)?, None | Some(Installed::Other)) && self.can_go(&site.func) {
            return Ok(());
        }
        let writes = match landing {
            Some(landing) => site.entry.entry_to(landing).map_err(|e| Error::Damaged(e.to_string()))?,
            None => site.entry.restore(),
        };
        for write in writes {
            self.target.memory().write(write.addr, &write.bytes)?;
        }
        Ok(())
    }

    /// Leads the entries of functions straight to what they are by now; to be done with all threads stopped.
    fn settle(&self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let implementation = self.document.state.steady(&change.func);
            self.lead_to(site, self.document.landing(&change.func, implementation)?)?;
        }
        Ok(())
    }

    /// The same for functions of libraries that can come, and the hook is given a table without the transition.
    fn settle_coming(&mut self) -> Result<()> {
        for site in self.document.sites.iter().filter(|site| self.can_go(&site.func)) {
            let implementation = self.document.state.steady(&site.func);
            self.lead_to(site, self.document.landing(&site.func, implementation)?)?;
        }
        self.publish()
    }

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
    fn changes_or(&self, before: Vec<Change>) -> Vec<Change> {
        if self.is_over() { before } else { self.document.state.changes() }
    }

    /// The gates of the running transition's stubs.
    fn gates(&mut self, changes: &[Change]) -> Result<Gates> {
        let maps = self.target.maps()?;
        let (memory, thread, side) =
            (self.target.memory(), self.target.live_thread()?, self.pending_run_goal());
        Gates::of(memory, &maps, thread, &mut self.prover.cfi, &self.document, changes, side)
    }

    /// Has pending threads wait at the stubs that they come by, for a short while: until some have come, or [`GATE_HELD`] is
    /// over. They wait on until they have been looked at and the gates are set to 0, or the counts run out.
    fn hold_gates(&self, gates: &Gates, deadline: Instant) -> Result<()> {
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
    fn hold(&self, holds: &[(ThreadId, Option<u64>)]) -> Result<()> {
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
    fn look_at_each(
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
    fn holds_alone(&mut self, key: ThreadId, census: &mut Census) -> Result<bool> {
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
    fn look_at_all(
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
    fn strike(&mut self, key: ThreadId) -> Result<()> {
        if let Some(arena) = &self.document.arena {
            let (at, table) = self.valid_table(arena)?;
            if let Some(offset) = table.strike_offset(key.0) {
                self.target.memory().write(at.offset(offset as i64), &[0])?;
            }
        }
        self.step(Event::ThreadSwitched(key))
    }

    /// The entries of a completed transition lead straight on, its `post_` callbacks run, and its arena is given up.
    fn finish(&mut self, changes: &[Change], deadline: Instant) -> Result<()> {
        if self.document.arena.is_none() && !self.owes_callback() {
            return Ok(());
        }
        let moving = self.document.libraries.as_ref().is_some_and(|libraries| libraries.moving);
        if moving || !self.is_settled(changes)? {
            let stopped =
                self.stop_off_pads(deadline, |session, stopped| session.take_over(stopped).map(drop))?;
            self.settle(changes)?;
            self.settle_coming()?;
            self.let_go(stopped)?;
        }
        // What was taken over can have brought one, and taken one away.
        if self.owes_callback() {
            self.commit()?;
            self.run_callbacks(deadline)?;
        }
        self.close_if_over();
        self.commit()
    }

    fn owes_callback(&self) -> bool {
        matches!(self.document.state.due(), Due::Callback(_))
    }

    /// Whether every thread has switched: what is left are callbacks at most.
    pub(crate) fn is_over(&self) -> bool {
        self.document.state.transition().is_none_or(|transition| transition.phase() == Phase::Completing)
    }

    /// What a transition that is over, and settled, needed is nobody's any more.
    pub(crate) fn close_if_over(&mut self) {
        if self.document.state.transition().is_none() {
            self.document.arena = None;
            self.forget_what_is_gone();
        }
    }

    fn is_settled(&self, changes: &[Change]) -> Result<bool> {
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let implementation = self.document.state.steady(&change.func);
            let wanted = match self.document.landing(&change.func, implementation)? {
                Some(landing) => Installed::Redirect(landing),
                None => Installed::Original,
            };
            if self.installed(site)?.is_some_and(|installed| installed != wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Turns the running transition round. Nobody changes sides by this: who had switched is pending now.
    pub(crate) fn turn_round(&mut self, deadline: Instant) -> Result<()> {
        self.know_images();
        let mut changes = self.document.state.changes();
        let had_not = self.pending().unwrap_or_default();
        let mut maps = self.target.maps()?;
        let side = self.pending_run_goal() == canary!("reverse-asks-for-the-wrong-side");
        let mut watch = side_watch(&self.document, &maps, &changes, side)?;
        let mut taken_over = false;
        let stopped = self.stop_off_pads(deadline, |session, stopped| {
            taken_over |= session.take_over(stopped)?;
            Ok(())
        })?;
        if taken_over {
            maps = self.target.maps()?;
            changes = self.document.state.changes();
            watch = side_watch(&self.document, &maps, &changes, side)?;
        }
        let mut looker = Looker::new(&self.target, &mut self.prover, maps);
        let mut unclean = BTreeSet::new();
        for thread in stopped.threads().iter().filter(|t| !had_not.contains(&Census::key(t))) {
            if looker.look(thread, &watch)?.is_some() {
                unclean.insert(Census::key(thread));
            }
        }
        if !self.look_at_memory(&stopped, &changes, !self.pending_run_goal())?.is_empty() {
            unclean.extend(stopped.threads().iter().map(Census::key).filter(|key| !had_not.contains(key)));
        }
        if let Some(arena) = &self.document.arena {
            let memory = self.target.memory();
            let valid = self.valid()?.unwrap_or_default();
            let next = if canary!("reverse-moves-threads") { valid } else { 1 - valid };
            let (at, table) = self.table(arena, next)?;
            memory.write(at, table.renewed(unclean.iter().map(|key| key.0))?.as_bytes())?;
            self.make_valid(arena, next)?;
        }
        self.step(Event::Reverse { patch: None, threads: unclean })?;
        if self.is_over() {
            self.settle(&changes)?;
            self.settle_coming()?;
        }
        self.let_go(stopped)?;
        self.commit()
    }

    /// Declares all pending threads switched, clean or not, and completes the transition.
    pub(crate) fn force_through(&mut self, deadline: Instant) -> Result<()> {
        let stopped =
            self.stop_off_pads(deadline, |session, stopped| session.take_over(stopped).map(drop))?;
        self.step(Event::Force { patch: None })?;
        // What is forced must be known before the first thread is struck: its memory stays for ever.
        self.commit()?;
        self.complete_unproved()?;
        self.let_go(stopped)?;
        self.run_callbacks(deadline)?;
        self.close_if_over();
        self.commit()
    }

    /// Strikes all keys that are listed and settles all entries; to be done with all threads stopped.
    fn complete_unproved(&mut self) -> Result<()> {
        if let Some(arena) = &self.document.arena {
            let (at, table) = self.valid_table(arena)?;
            for offset in table.pending().filter_map(|key| table.strike_offset(key)) {
                self.target.memory().write(at.offset(offset as i64), &[0])?;
            }
        }
        for site in &self.document.sites {
            let implementation = self.document.state.steady(&site.func);
            self.lead_to(site, self.document.landing(&site.func, implementation)?)?;
        }
        self.publish()
    }

    /// Takes up what an earlier run of the tool left: cancels a transition that had not begun, reads who is pending in one
    /// that had, and carries a force to its end. Whether a transition runs after that is for the caller to see.
    pub(crate) fn resume(&mut self, deadline: Instant) -> Result<()> {
        while self.document.state.transition().is_none() && self.run_one_callback(deadline)? {
            // The init of a patch whose enabling may have begun by this, the exit of one that is gone, or what was owed to a library that
            // came before a transition was over.
            self.close_if_over();
            self.commit()?;
        }
        let Some(transition) = self.document.state.transition() else {
            if self.document.arena.is_some() {
                // A force that was recorded and not carried out to its end.
                let stopped =
                    self.stop_off_pads(deadline, |session, stopped| session.take_over(stopped).map(drop))?;
                self.complete_unproved()?;
                self.let_go(stopped)?;
                self.commit()?;
                self.run_callbacks(deadline)?;
                self.close_if_over();
                self.commit()?;
            }
            return Ok(());
        };
        let phase = transition.phase();
        let begun = self.valid()?.is_some();
        if phase == Phase::Initializing && !begun {
            // One that began has to be waited for, whatever comes after it.
            self.run_callbacks(deadline)?;
            return self.cancel(deadline);
        }
        if phase == Phase::Completing {
            if self.document.call.is_some() {
                // What is taken over does away with a callback that is due for a library which has gone; one that runs has to end first.
                self.run_one_callback(deadline)?;
            }
            if self.document.arena.is_some() {
                let stopped = self.stop_all_patiently(deadline)?;
                self.take_over(&stopped)?;
                self.complete_unproved()?;
                self.let_go(stopped)?;
            }
            return self.finish(&[], deadline);
        }
        // Once the last thread is known to have switched, the state knows of no changes any more.
        let changes = self.document.state.changes();
        let pending = self.listed()?;
        let reversed = self.valid()? == Some(1);
        self.was_entered = true;
        self.step(Event::Resumed { pending, reversed })?;
        if self.is_over() { self.finish(&changes, deadline) } else { Ok(()) }
    }

    /// Takes back a transition that has not begun.
    fn cancel(&mut self, deadline: Instant) -> Result<()> {
        self.cancel_by(Event::Reverse { patch: None, threads: BTreeSet::new() }, deadline)
    }

    /// The same where it could not be begun, because this object could not be patched (`None`: the main executable).
    fn cancel_with(&mut self, object: Option<String>, deadline: Instant) -> Result<()> {
        self.cancel_by(Event::StartFailed { object, errno: Errno::EBUSY }, deadline)
    }

    /// Entries that lead to stubs, which still mean source, lead to the source again; `event` tells the semantics.
    fn cancel_by(&mut self, event: Event, deadline: Instant) -> Result<()> {
        let Some(transition) = self.document.state.transition() else {
            self.document.arena = None;
            self.forget_what_is_gone();
            return self.commit();
        };
        if transition.phase() != Phase::Initializing {
            return Ok(());
        }
        let changes = self.document.state.changes();
        let moving = self.document.libraries.as_ref().is_some_and(|libraries| libraries.moving);
        if moving || self.leads_to_stubs(&changes)? {
            let stopped = self.stop_off_pads(Instant::now() + BACKOFF_MAX, |_, _| Ok(()))?;
            for change in &changes {
                if let Some(site) = self.document.site(&change.func) {
                    self.lead_to(site, self.document.landing(&change.func, change.source)?)?;
                }
            }
            self.step(event)?;
            // What came meanwhile can have been led to stubs only by a table that was there before the begin.
            self.take_over(&stopped)?;
            self.settle_coming()?;
            self.let_go(stopped)?;
        } else {
            self.step(event)?;
        }
        self.document.arena = None;
        if self.owes_callback() {
            self.commit()?;
            self.run_callbacks(deadline)?;
        }
        self.forget_what_is_gone();
        self.commit()
    }

    fn leads_to_stubs(&self, changes: &[Change]) -> Result<bool> {
        let Some(arena) = &self.document.arena else { return Ok(false) };
        for change in changes {
            let Some(site) = self.document.site(&change.func) else { continue };
            let stub = arena.stub(&change.func)?;
            if let Some(Installed::Redirect(to) | Installed::Half(to)) = self.installed(site)?
                && to == stub
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Drops images of patches that are gone and sites of functions that nobody patches any more.
    pub(crate) fn forget_what_is_gone(&mut self) {
        let state = &self.document.state;
        self.document.images.retain(|image| state.patch(image.patch).is_some());
        let used: Vec<_> = state.steady_all().into_iter().map(|(func, _)| func).collect();
        self.document.sites.retain(|site| used.contains(&site.func));
        let images = &self.document.images;
        if !images.iter().any(Image::has_callbacks) {
            self.document.call_area = None;
        }
        if self.document.state.patches().is_empty() && self.document.libraries.is_none() {
            self.document.runtime = None;
        }
    }

    /// The keys of the transition that have not switched; `None` when it is over.
    fn pending(&self) -> Option<BTreeSet<ThreadId>> {
        let transition = self.document.state.transition().filter(|_| !self.is_over());
        transition.map(|transition| transition.pending().clone())
    }

    fn pending_run_goal(&self) -> bool {
        self.document.state.transition().is_some_and(|transition| transition.is_reversed())
    }

    /// Which pending table the transition word names; `None` where the transition has not begun.
    fn valid(&self) -> Result<Option<usize>> {
        let Some(arena) = &self.document.arena else { return Ok(None) };
        arena.valid_table(self.target.memory().read_u64(arena.word)?)
    }

    /// Begins the transition, or turns it round, by the store of one word.
    fn make_valid(&self, arena: &Arena, table: usize) -> Result<()> {
        self.target.memory().write(arena.word, &arena.tables[table].0.to_le_bytes())
    }

    /// The keys that the pending table in the target lists.
    fn listed(&self) -> Result<BTreeSet<ThreadId>> {
        let Some(arena) = &self.document.arena else { return Ok(BTreeSet::new()) };
        let (_, table) = self.valid_table(arena)?;
        Ok(table.pending().map(ThreadId).collect())
    }

    /// The table that is valid, or will be first, and where it lies.
    fn valid_table(&self, arena: &Arena) -> Result<(RemoteAddr, PendingTable)> {
        self.table(arena, self.valid()?.unwrap_or_default())
    }

    fn table(&self, arena: &Arena, table: usize) -> Result<(RemoteAddr, PendingTable)> {
        let at = arena.tables[table];
        let bytes = self.target.memory().read_vec(at, arena.capacity()?.bytes())?;
        Ok((at, PendingTable::parse(&bytes)?))
    }
}
