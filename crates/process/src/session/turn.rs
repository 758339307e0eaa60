//! Transitions that take another course: turned round, forced, cancelled, or taken up by a later run of the tool.

use crate::Result;
use crate::canary::canary;
use crate::session::Session;
use crate::session::census::Census;
use crate::session::look::{Looker, side_watch};
use crate::session::switch::BACKOFF_MAX;
use crate::state::document::Image;
use std::collections::BTreeSet;
use std::time::Instant;
use ugraft_core::{Errno, Event, Phase};

impl Session {
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
    pub(super) fn complete_unproved(&mut self) -> Result<()> {
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
    pub(super) fn cancel(&mut self, deadline: Instant) -> Result<()> {
        self.cancel_by(Event::Reverse { patch: None, threads: BTreeSet::new() }, deadline)
    }

    /// The same where it could not be begun, because this object could not be patched (`None`: the main executable).
    pub(super) fn cancel_with(&mut self, object: Option<String>, deadline: Instant) -> Result<()> {
        self.cancel_by(Event::StartFailed { object, errno: Errno::EBUSY }, deadline)
    }

    /// Entries that lead to stubs, which still mean source, lead to the source again; `event` tells the semantics.
    pub(super) fn cancel_by(&mut self, event: Event, deadline: Instant) -> Result<()> {
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
}
