//! Libraries that come and go: patched before they are initialized, unpatched after they are finished.

use alloc::string::String;
use alloc::vec::Vec;

use crate::event::{CallbackKind, Misfit, MisfitStage, ObjectPhase};
use crate::log;
use crate::patch::FuncId;
use crate::refusal::{AlreadySo, Errno, Refusal};
use crate::state::{Direction, Life, Patch, PatchId, Phase, Transition};
use crate::step::Machine;
use crate::work::{Site, Task};

impl Patch {
    /// The functions of one object, nops last.
    pub(crate) fn funcs_of(&self, object: usize) -> Vec<FuncId> {
        let name = &self.objects[object].name;
        self.all_funcs().into_iter().filter(|func| func.object == *name).collect()
    }
}

impl Machine {
    /// The places of a library in the patches that are in effect or in transition, oldest first.
    fn sites(&self, object: &str) -> Vec<Site> {
        self.places(object, Patch::is_active)
    }

    fn places(&self, object: &str, of: impl Fn(&Patch) -> bool) -> Vec<Site> {
        let place = |patch: &Patch| patch.objects.iter().position(|o| o.name() == Some(object));
        let patches = self.state.patches.iter().filter(|patch| of(patch));
        patches.filter_map(|patch| Some(Site { patch: patch.id, object: place(patch)? })).collect()
    }

    fn in_transition(&self, id: PatchId) -> bool {
        self.state.transition.as_ref().is_some_and(|transition| transition.patch == id)
    }

    pub(crate) fn object_coming(&mut self, object: String, misfits: Vec<Misfit>) -> Result<(), Refusal> {
        self.no_callback()?;
        if !self.state.objects.insert(object.clone()) {
            return Err(Refusal::AlreadySo(AlreadySo::ObjectLoaded(object)));
        }
        let phase = ObjectPhase::Coming;
        for site in self.sites(&object) {
            let misfit = misfits.iter().find(|misfit| misfit.patch == site.patch).cloned();
            let at_apply = misfit.clone().filter(|misfit| misfit.stage == MisfitStage::Apply);
            self.state.work.push_back(Task::Apply { site, misfit });
            self.state.work.push_back(Task::PrePatch { site, phase });
            self.state.work.push_back(Task::PatchObject { site, misfit: at_apply });
            if !self.in_transition(site.patch) {
                self.state.work.push_back(Task::PostPatch { site, phase });
            }
        }
        self.state.work.push_back(Task::Admit { object });
        Ok(())
    }

    /// A patch refused a coming library: the patches before it take their hands off again.
    pub(crate) fn refuse_object(&mut self, refused: Site, errno: Errno) {
        let patch = self.patch(refused.patch);
        let Some(object) = patch.objects[refused.object].name.clone() else { return };
        self.effects.push(log::refusing(&patch.desc.name, &object));
        let earlier = self.sites(&object).into_iter().take_while(|site| site.patch != refused.patch);
        for site in earlier.collect::<Vec<Site>>() {
            self.leave(site, ObjectPhase::Coming);
        }
        self.state.work.push_back(Task::Refused { object, patch: refused.patch, errno });
    }

    pub(crate) fn object_going(&mut self, object: &str) -> Result<(), Refusal> {
        self.no_callback()?;
        if !self.state.objects.contains(object) {
            return Err(Refusal::AlreadySo(AlreadySo::ObjectGone(object.into())));
        }
        for site in self.sites(object) {
            self.leave(site, ObjectPhase::Going);
        }
        self.state.work.push_back(Task::Gone { object: object.into() });
        Ok(())
    }

    /// Takes over that a library has come, and what was done for it. One of the patches may have been applied to it as the one in transition,
    /// and owe it the callback that ends that: it `waits`.
    pub(crate) fn object_came(&mut self, object: String, applied: &[PatchId], waits: Option<PatchId>) {
        let sites = self.places(&object, |patch| patch.is_active() || waits == Some(patch.id));
        self.state.objects.insert(object);
        for site in sites {
            let waits = waits == Some(site.patch);
            let of_patch = |t: &&Transition| t.patch == site.patch;
            let stage = self.state.transition.as_ref().filter(of_patch).map(|t| (t.phase, t.origin));
            if applied.contains(&site.patch) {
                let object = self.object_mut(site);
                (object.patched, object.post_unpatch_due, object.between) = (true, true, waits);
                match stage {
                    Some((Phase::Completing, _)) | None if waits => self.complete_for(site),
                    // It came to an enabled patch, which begins to be disabled only now.
                    Some((Phase::Initializing, Direction::Unpatching)) => {
                        self.state.work.push_back(Task::PreUnpatch { site, phase: ObjectPhase::Live });
                    }
                    _ => {}
                }
            } else if stage == Some((Phase::Initializing, Direction::Patching)) {
                // It is let in and may be in use, as if it had been there before: who refuses it now refuses the enabling.
                let phase = ObjectPhase::Live;
                self.state.work.push_back(Task::PrePatch { site, phase });
                self.state.work.push_back(Task::PatchObject { site, misfit: None });
            }
        }
    }

    /// Takes over that a library has gone, and what was done for it. What is due for it and was done there, or makes no sense any more, is
    /// not done again, so a callback of its that runs must have returned before.
    pub(crate) fn object_gone(&mut self, object: &str, left: &[PatchId]) {
        self.state.objects.remove(object);
        for site in self.sites(object) {
            let is_left = left.contains(&site.patch);
            self.drop_work(site, is_left);
            let phase = self.phase_of(site.patch).filter(|_| !is_left);
            let place = self.object_mut(site);
            match phase {
                // What its callback has prepared nobody else knows of.
                Some(Phase::Initializing) if place.post_unpatch_due => self.leave(site, ObjectPhase::Going),
                Some(Phase::Completing) => (place.patched, place.between) = (false, false),
                _ => (place.patched, place.post_unpatch_due, place.between) = (false, false, false),
            }
        }
    }

    /// Forgets what was to be done for a library that is gone; but for `post_unpatch`, where nobody has run that.
    fn drop_work(&mut self, site: Site, is_left: bool) {
        if self.faults.do_again_what_was_done {
            return;
        }
        self.state.work.retain(|task| {
            let is_of_site = task.site() == Some(site) && !task.is_own();
            !is_of_site || (!is_left && matches!(task, Task::PostUnpatch { .. }))
        });
        self.state.awaiting.take_if(|awaiting| {
            let is_of_site = awaiting.site == site && !awaiting.is_own();
            is_of_site && (is_left || awaiting.call.callback != CallbackKind::PostUnpatch)
        });
    }

    /// How far the transition is that the patch is in.
    fn phase_of(&self, id: PatchId) -> Option<Phase> {
        self.state.transition.as_ref().filter(|transition| transition.patch == id).map(|t| t.phase)
    }

    /// Has a library that came before a transition was over, and was not known of then, be treated as the others are, or were, at its end.
    fn complete_for(&mut self, site: Site) {
        let phase = ObjectPhase::Live;
        let task = match self.patch(site.patch).life {
            Life::Enabling | Life::Enabled => Task::PostPatch { site, phase },
            Life::Disabling | Life::Disabled => {
                self.object_mut(site).patched = false;
                Task::PostUnpatch { site, phase }
            }
            Life::Replaced => return,
        };
        let end = self.state.work.iter().position(|task| *task == Task::Finish);
        let end = end.unwrap_or(self.state.work.len());
        self.state.work.insert(end, task);
    }

    /// Unpatches a library for a patch. The patch in transition is between its own `pre_` and `post_` callbacks, so its
    /// `pre_unpatch` does not run.
    fn leave(&mut self, site: Site, phase: ObjectPhase) {
        self.state.work.push_back(Task::PreUnpatch { site, phase });
        self.state.work.push_back(Task::Revert { site });
        self.state.work.push_back(Task::PostUnpatch { site, phase });
    }
}
