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
//! and the transition word which it is (`turn`). Before the word is stored nothing has changed for any thread, so an interrupted
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
use crate::session::Session;
use crate::session::again::Attempts;
use crate::session::arena;
use crate::session::batch::Batch;
use crate::session::census::Census;
use crate::session::look::{Looker, install_watch, look_at_memory, side_watch};
use crate::session::stop::Hindrance;
use crate::state::document::Arena;
use crate::threads::StoppedProcess;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use ugraft_core::{Change, Due, Event, Phase, ThreadId};

/// Pause before the first second look; it doubles up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(1);
/// The longest pause between looks.
pub(super) const BACKOFF_MAX: Duration = Duration::from_millis(500);

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
    pub(super) fn look_at_memory(
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

    /// The entries of a completed transition lead straight on, its `post_` callbacks run, and its arena is given up.
    pub(super) fn finish(&mut self, changes: &[Change], deadline: Instant) -> Result<()> {
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

    pub(super) fn owes_callback(&self) -> bool {
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
}
