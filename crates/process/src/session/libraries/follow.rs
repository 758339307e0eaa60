//! Following libraries that come and go while a transition is begun and while it runs.

use super::{is_about_to_come, loaded};
use crate::canary::canary;
use crate::objects::Objects;
use crate::session::again::{ATTEMPTS, Attempts, Looked};
use crate::session::stop::Hindrance;
use crate::session::{Session, objects_of, plan};
use crate::target::maps::Maps;
use crate::threads::StoppedProcess;
use crate::{Error, Result};
use std::mem::offset_of;
use std::rc::Rc;
use std::time::Instant;
use ugraft_core::{Due, Event, FuncId, PatchId, PatchObject};
use ugraft_runtime::expected::Loader;

/// How many turns of the hook threads wait in it for: about a quarter of a second.
const HELD: u64 = 1000;

impl Session {
    /// Has threads that have loaded or unloaded something wait in the hook, for a short while, so that what is there stays so.
    pub(crate) fn hold_loader(&self) -> Result<()> {
        self.set_hold(HELD)
    }

    /// Lets them go on.
    pub(crate) fn release_loader(&self) -> Result<()> {
        self.set_hold(0)
    }

    fn set_hold(&self, turns: u64) -> Result<()> {
        let Some(libraries) = &self.document.libraries else { return Ok(()) };
        // Where it is not put in, nobody waits in it, and its words need not be there.
        if !self.is_hooked(libraries)? {
            return Ok(());
        }
        self.target.memory().write(libraries.word(offset_of!(Loader, hold)), &turns.to_le_bytes())
    }

    /// Whether libraries came or went since what the hook had done was taken over last. Asked while a thread is stopped it tells of
    /// all that this thread can have been in.
    pub(crate) fn have_libraries_moved(&self) -> Result<bool> {
        let Some(libraries) = &self.document.libraries else { return Ok(false) };
        let changes = self.target.memory().read_u64(libraries.word(offset_of!(Loader, changes)))?;
        Ok(self.counted.is_none_or(|counted| counted != changes && !canary!("ignore-the-changes")))
    }

    /// Takes over what came and went, under a stop. Whether anything has.
    pub(crate) fn take_over(&mut self, _: &StoppedProcess) -> Result<bool> {
        if !self.have_libraries_moved()? {
            return Ok(false);
        }
        let target = Rc::clone(&self.target);
        let (maps, objects) = objects_of(&target)?;
        self.merge(&objects, &maps)?;
        Ok(true)
    }

    /// Brings a transition that has not begun into line with the libraries that are there by now: those that came since it was planned
    /// are patched as those that were there, but for what the hook has done. `Some` with a thread that could not be stopped before the deadline.
    pub(crate) fn catch_up(&mut self, deadline: Instant) -> Result<Option<Hindrance>> {
        let mut attempts = 0;
        let mut failures = Attempts::until(deadline);
        while attempts < ATTEMPTS {
            self.hold_loader()?;
            let stopped = match self.stop_all(deadline)? {
                Ok(stopped) => stopped,
                Err(unstoppable) if Instant::now() >= deadline => return Ok(Some(unstoppable)),
                Err(_) => continue,
            };
            let target = Rc::clone(&self.target);
            let result = objects_of(&target).and_then(|(maps, objects)| {
                if !self.is_loader_led()? {
                    self.put_in(&stopped, maps.clone())?;
                    self.hold_loader()?;
                }
                // Of what went before the hook was there it says nothing.
                self.forget_libraries(&objects)?;
                self.merge(&objects, &maps)?;
                self.take_in(&objects)?;
                Ok((maps, objects))
            });
            self.let_go(stopped)?;
            attempts += 1;
            let (maps, objects) = result?;
            if matches!(self.document.state.due(), Due::Callback(_)) {
                self.commit()?;
                // Threads that wait in the hook are at no safe point.
                self.release_loader()?;
                self.run_callbacks(deadline)?;
                if self.is_over() {
                    return Ok(None);
                }
                self.hold_loader()?;
            }
            if self.have_libraries_moved()? {
                continue;
            }
            self.looked = Some(Looked::at(&maps, &objects));
            let before = self.document.clone();
            match self.plan_anew(&objects, &maps) {
                Ok(()) => return Ok(None),
                Err(e) => {
                    // What was planned and is not there must not be believed to be.
                    self.document = before;
                    self.try_again(e, &mut failures)?;
                }
            }
        }
        Err(Error::Libraries("libraries come and go too fast for a transition to begin".to_owned()))
    }

    /// Libraries that only the patch in transition names are taken in.
    fn take_in(&mut self, objects: &Objects<'_>) -> Result<()> {
        let Some(patch) = self.patch_in_transition() else { return Ok(()) };
        let Some(patch) = self.document.state.patch(patch) else { return Ok(()) };
        plan::check_build_ids(patch.desc(), objects)?;
        let seen = self.seen_libraries()?;
        let names: Vec<_> = patch.objects().iter().filter_map(PatchObject::name).map(str::to_owned).collect();
        for name in names {
            if !self.document.state.is_loaded(Some(&name))
                && let Some(object) = loaded(objects, &name)
                && !is_about_to_come(object, seen.as_deref())
            {
                self.step(Event::ObjectCame { object: name, applied: Vec::new(), waits: None })?;
            }
        }
        Ok(())
    }

    fn is_loader_led(&self) -> Result<bool> {
        self.document.libraries.as_ref().map_or(Ok(true), |libraries| self.is_hooked(libraries))
    }

    fn patch_in_transition(&self) -> Option<PatchId> {
        self.document.state.transition().map(|transition| transition.patch())
    }

    /// Sites, jumps and stubs for what changes by now.
    fn plan_anew(&mut self, objects: &Objects<'_>, maps: &Maps) -> Result<()> {
        let target = Rc::clone(&self.target);
        let changes = self.document.state.changes();
        let funcs: Vec<FuncId> = changes.iter().map(|change| change.func.clone()).collect();
        let sites = plan::new_sites(&target, maps, objects, &self.document, funcs.into_iter())?;
        self.document.sites.extend(sites);
        let mut batch = self.batch(maps.clone());
        let mut images = std::mem::take(&mut self.document.images);
        let names = |id: PatchId| self.document.state.patch(id).map(|patch| patch.name().to_owned());
        let moving = self.patch_in_transition();
        let result = images.iter_mut().filter(|image| Some(image.patch) == moving).try_for_each(|image| {
            let name = names(image.patch).unwrap_or_default();
            plan::trampolines(image, &self.document, &name, &mut batch)
        });
        self.document.images = images;
        result?;
        self.plan_arena(&mut batch)?;
        self.install(batch)
    }
}
