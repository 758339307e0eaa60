//! Bringing libraries that came or went into line with the document, and the hook's table with both.

use crate::Result;
use crate::code::entry::Installed;
use crate::session::look::{Looker, library_watch};
use crate::session::{Session, objects_of};
use crate::state::document::Site;
use crate::target::maps::Maps;
use crate::threads::StoppedProcess;
use std::mem::offset_of;
use std::rc::Rc;
use std::time::{Duration, Instant};
use ugraft_core::{Due, PatchId, Phase};
use ugraft_runtime::expected::Loader;

/// Pause between two attempts to find the libraries' functions unused.
const PAUSE: Duration = Duration::from_millis(2);

impl Session {
    /// Takes over what the hook has done since the document was written, gives it a table that fits the patches as they are, and
    /// puts it in or takes it off. To be done when no transition runs; without effect otherwise.
    /// False where functions of a library that came meanwhile are in use, and not what they are to be yet.
    pub(crate) fn settle_libraries(&mut self, deadline: Instant) -> Result<bool> {
        let waits = self.document.state.transition().is_some() || self.document.state.due() != Due::Nothing;
        if self.document.libraries.is_none() || waits {
            return Ok(true);
        }
        loop {
            let stopped = self.stop_all_patiently(deadline)?;
            let settled = self.settle_stopped(&stopped);
            self.let_go(stopped)?;
            let settled = settled?;
            self.commit()?;
            if settled {
                return Ok(true);
            }
            if Instant::now() + PAUSE >= deadline {
                self.notes.push(
                    "a library that came or goes meanwhile is in use, and not changed yet; the next command tries again"
                        .to_owned(),
                );
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The same before a request, where something came or went, or the last run of the tool was cut short.
    pub(crate) fn take_up_libraries(&mut self, deadline: Instant) -> Result<()> {
        let Some(libraries) = &self.document.libraries else { return Ok(()) };
        let changes = libraries.word(offset_of!(Loader, changes));
        self.hold_loader()?;
        // By mappings of before, a library that came since would not be seen.
        self.maps = None;
        let before = self.target.memory().read_u64(changes)?;
        if (libraries.fits.as_ref() != Some(&self.enabled())
            || self.has_changed(libraries).unwrap_or(true)
            || !self.is_hooked(libraries)?)
            && !self.settle_libraries(deadline)?
        {
            return Err(crate::Error::Libraries(
                "a library came while a patch was enabled or disabled, and a thread is in a function of it that is to be \
                 changed; try again when it has left"
                    .to_owned(),
            ));
        } else if self.counted.is_none()
            && self.in_loader()?.is_none()
            && self.target.memory().read_u64(changes)? == before
        {
            // What the document says is so, and was so while it was looked at.
            self.counted = Some(before);
        }
        Ok(())
    }

    /// Fails if a function of a library that can go still leads to the patch, which is to be unloaded: then a thread has kept it
    /// from being led elsewhere until now.
    pub(crate) fn check_not_led_to(&mut self, patch: PatchId) -> Result<()> {
        let mappings = &self.document.image(patch)?.mappings;
        for site in self.document.sites.iter().filter(|site| self.can_go(&site.func)) {
            if let Some(Installed::Redirect(to)) = self.installed(site)?
                && mappings.iter().any(|mapping| mapping.contains(&to))
            {
                return Err(crate::Error::Libraries(format!(
                    "{} still leads to it, and a thread is in there; try again when it has left",
                    site.func
                )));
            }
        }
        Ok(())
    }

    /// Takes over what the hook has done, for looking only: nothing is stopped, and nothing committed.
    pub(crate) fn look_at_libraries(&mut self) -> Result<()> {
        // Before a transition has started there is more to do than to look.
        let waits = self.document.state.transition().is_some_and(|t| t.phase() != Phase::Started)
            || matches!(self.document.state.due(), Due::Callback(_));
        if self.document.libraries.is_none() || waits {
            return Ok(());
        }
        let before = self.document.clone();
        let target = Rc::clone(&self.target);
        let (maps, objects) = objects_of(&target)?;
        // While the hook is at work, what the document says is as good.
        if self.in_loader()?.is_some() || self.merge(&objects, &maps).is_err() || self.in_loader()?.is_some()
        {
            self.document = before;
        }
        self.drop_messages();
        Ok(())
    }

    pub(super) fn settle_stopped(&mut self, stopped: &StoppedProcess) -> Result<bool> {
        let target = Rc::clone(&self.target);
        let (maps, objects) = objects_of(&target)?;
        self.merge(&objects, &maps)?;
        if !self.is_hook_needed(&objects) {
            return self.take_off(stopped, maps);
        }
        let applied = self.apply_late(stopped, &maps)?;
        self.publish()?;
        self.bind_references(&objects)?;
        if let Some(libraries) = self.document.libraries.as_mut().filter(|_| !applied) {
            libraries.fits = None;
        }
        self.put_in(stopped, maps)?;
        Ok(applied)
    }

    /// Leads functions of libraries that the hook has patched to what they are to lead to by now, which can be something
    /// else where they came while a transition ran. False where a thread is in one of them.
    pub(super) fn apply_late(&mut self, stopped: &StoppedProcess, maps: &Maps) -> Result<bool> {
        let Some(libraries) = &self.document.libraries else { return Ok(true) };
        let known =
            |site: &&Site| libraries.present.iter().any(|p| Some(&p.name) == site.func.object.as_ref());
        let mut late = Vec::new();
        for site in self.document.sites.iter().filter(known) {
            let wanted = self.document.landing(&site.func, self.document.state.steady(&site.func))?;
            let reached = wanted.is_none_or(|wanted| site.entry.reaches(wanted));
            let installed = wanted.map_or(Installed::Original, Installed::Redirect);
            if reached && self.installed(site)?.is_some_and(|now| now != installed && now != Installed::Other)
            {
                late.push((site.clone(), wanted));
            }
        }
        if late.is_empty() {
            return Ok(true);
        }
        let watch = library_watch(&self.document, late.iter().map(|(site, _)| site))?;
        let mut looker = Looker::new(&self.target, &mut self.prover, maps.clone());
        if looker.first_in(stopped, &watch)?.is_some() {
            return Ok(false);
        }
        for (site, wanted) in late {
            self.lead_anew(&site, wanted)?;
        }
        Ok(true)
    }
}
