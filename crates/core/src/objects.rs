//! Libraries that come and go: patched before they are initialized, unpatched after they are finished.

use alloc::string::String;
use alloc::vec::Vec;

use crate::event::{Misfit, MisfitStage, ObjectPhase};
use crate::log;
use crate::patch::FuncId;
use crate::refusal::{AlreadySo, Errno, Refusal};
use crate::state::{Patch, PatchId};
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
        let place = |patch: &Patch| patch.objects.iter().position(|o| o.name() == Some(object));
        let active = self.state.patches.iter().filter(|patch| patch.is_active());
        active.filter_map(|patch| Some(Site { patch: patch.id, object: place(patch)? })).collect()
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

    /// Unpatches a library for a patch. The patch in transition is between its own `pre_` and `post_` callbacks, so its
    /// `pre_unpatch` does not run.
    fn leave(&mut self, site: Site, phase: ObjectPhase) {
        if !self.in_transition(site.patch) {
            self.state.work.push_back(Task::PreUnpatch { site, phase });
        }
        self.state.work.push_back(Task::Revert { site });
        self.state.work.push_back(Task::PostUnpatch { site, phase });
    }
}
