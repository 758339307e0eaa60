//! What is left to do of an operation, as a queue that survives the tool: a callback can stop it at any point.

use alloc::string::String;
use serde::{Deserialize, Serialize};

use crate::event::{Call, CallbackKind, Effect, Finish, Misfit, MisfitStage, ObjectPhase};
use crate::funcs::Entry;
use crate::log;
use crate::patch::FuncId;
use crate::refusal::{Errno, Refusal};
use crate::state::{PatchId, PatchObject, Phase};
use crate::step::Machine;

/// An object of a patch, by its place in [`crate::Patch::objects`]; places before the nops' objects never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) patch: PatchId,
    pub(crate) object: usize,
}

/// A callback that has not returned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Awaiting {
    pub(crate) site: Site,
    pub(crate) call: Call,
}

/// One thing left to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Say that a patch is applied to a coming library, or that it does not fit there.
    Apply {
        site: Site,
        misfit: Option<Misfit>,
    },
    PrePatch {
        site: Site,
        phase: ObjectPhase,
    },
    /// Put the object's funcs on the func stacks.
    PatchObject {
        site: Site,
        misfit: Option<Misfit>,
    },
    PostPatch {
        site: Site,
        phase: ObjectPhase,
    },
    PreUnpatch {
        site: Site,
        phase: ObjectPhase,
    },
    /// Take the object's funcs off the func stacks, as its library goes.
    Revert {
        site: Site,
    },
    PostUnpatch {
        site: Site,
        phase: ObjectPhase,
    },
    /// Lead all changing functions to their stubs: a patch that is to be disabled.
    RedirectAll,
    /// End the transition.
    Finish,
    /// Run the patch's `init`, and then enable it if that was asked for.
    Init {
        patch: PatchId,
        enable: bool,
        ignore_order: bool,
    },
    /// Enable a patch that has just been loaded.
    EnableLoaded {
        patch: PatchId,
        ignore_order: bool,
    },
    /// Run the patch's `exit`.
    Exit {
        patch: PatchId,
    },
    /// Forget the patch.
    Forget {
        patch: PatchId,
    },
    /// A patch refused a coming library: undo what earlier patches did to it.
    RefuseObject {
        site: Site,
        errno: Errno,
    },
    /// A library is in.
    Admit {
        object: String,
    },
    /// A library is not let in.
    Refused {
        object: String,
        patch: PatchId,
        errno: Errno,
    },
    /// A library is gone.
    Gone {
        object: String,
    },
}

impl Awaiting {
    /// Whether it belongs to the patch as a whole, and its site's object means nothing.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.call.callback, CallbackKind::Init | CallbackKind::Exit)
    }
}

impl Task {
    /// Whether it is about the patch as a whole, and its site's object means nothing.
    pub(crate) fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Init { .. } | Self::EnableLoaded { .. } | Self::Exit { .. } | Self::Forget { .. }
        )
    }

    /// The object that the task is about, if it is about one of a patch.
    pub(crate) fn site(&self) -> Option<Site> {
        match *self {
            Self::Apply { site, .. }
            | Self::PrePatch { site, .. }
            | Self::PatchObject { site, .. }
            | Self::PostPatch { site, .. }
            | Self::PreUnpatch { site, .. }
            | Self::Revert { site }
            | Self::PostUnpatch { site, .. }
            | Self::RefuseObject { site, .. } => Some(site),
            Self::Init { patch, .. }
            | Self::EnableLoaded { patch, .. }
            | Self::Exit { patch }
            | Self::Forget { patch } => Some(Site { patch, object: 0 }),
            Self::RedirectAll
            | Self::Finish
            | Self::Admit { .. }
            | Self::Refused { .. }
            | Self::Gone { .. } => None,
        }
    }
}

impl Machine {
    /// Does what is left, until a callback has to return or a decision has to come from outside.
    pub(crate) fn work(&mut self) {
        loop {
            while self.state.awaiting.is_none() {
                let Some(task) = self.state.work.pop_front() else { break };
                self.execute(task);
            }
            if self.state.awaiting.is_some() {
                return;
            }
            let over = |t: &crate::state::Transition| t.phase == Phase::Started && t.pending.is_empty();
            if !self.state.transition.as_ref().is_some_and(over) {
                return;
            }
            self.complete();
        }
    }

    fn execute(&mut self, task: Task) {
        match task {
            Task::Apply { site, misfit } => self.apply(site, misfit),
            Task::PrePatch { site, phase } => {
                if !self.call(site, CallbackKind::PrePatch, phase) {
                    self.pre_patch_returned(site, phase, 0);
                }
            }
            Task::PatchObject { site, misfit } => match misfit {
                None => self.set_patched(site, true),
                Some(misfit) => self.apply_failed(site, misfit.errno),
            },
            Task::PostPatch { site, phase } => {
                // What was never patched, a library that an enabled patch left alone, has no callbacks.
                if self.object_mut(site).patched && !self.call(site, CallbackKind::PostPatch, phase) {
                    self.object_mut(site).between = false;
                }
            }
            Task::PreUnpatch { site, phase } => {
                let object = self.object_mut(site);
                if object.patched && !core::mem::replace(&mut object.between, true) {
                    self.call(site, CallbackKind::PreUnpatch, phase);
                }
            }
            Task::Revert { site } => self.revert(site),
            Task::PostUnpatch { site, phase } => {
                let object = self.object_mut(site);
                object.between = false;
                if core::mem::take(&mut object.post_unpatch_due) {
                    self.call(site, CallbackKind::PostUnpatch, phase);
                }
            }
            Task::RedirectAll => {
                for change in self.state.changes() {
                    let (func, source, goal) = (change.func, change.source, change.goal);
                    self.effects.push(Effect::Redirect { func, source, goal });
                }
            }
            Task::Finish => self.finish(),
            Task::Init { patch, enable, ignore_order } => {
                if enable {
                    self.state.work.push_front(Task::EnableLoaded { patch, ignore_order });
                }
                if self.patch(patch).desc.init {
                    self.run_own(patch, CallbackKind::Init);
                }
            }
            Task::EnableLoaded { patch, ignore_order } => self.enable_loaded(patch, ignore_order),
            Task::Exit { patch } => {
                if self.patch(patch).desc.exit {
                    self.run_own(patch, CallbackKind::Exit);
                }
            }
            Task::Forget { patch } => self.forget(patch),
            Task::RefuseObject { site, errno } => self.refuse_object(site, errno),
            Task::Admit { object } => self.effects.push(Effect::Admit { object }),
            Task::Refused { object, patch, errno } => {
                self.state.objects.remove(&object);
                self.effects.push(Effect::Refuse { object, patch, errno });
            }
            Task::Gone { object } => {
                self.state.objects.remove(&object);
            }
        }
    }

    pub(crate) fn object_mut(&mut self, site: Site) -> &mut PatchObject {
        &mut self.patch_mut(site.patch).objects[site.object]
    }

    /// Has a callback run, if the object has it. Whether it has.
    fn call(&mut self, site: Site, callback: CallbackKind, phase: ObjectPhase) -> bool {
        let patch = self.patch(site.patch);
        // Objects that are there for nops only are not described, and have no callbacks.
        let Some(described) = patch.desc.objects.get(site.object) else { return false };
        let has = match callback {
            CallbackKind::PrePatch => described.callbacks.pre_patch,
            CallbackKind::PostPatch => described.callbacks.post_patch,
            CallbackKind::PreUnpatch => described.callbacks.pre_unpatch,
            CallbackKind::PostUnpatch => described.callbacks.post_unpatch,
            CallbackKind::Init | CallbackKind::Exit => false,
        };
        if has {
            let call = Call { patch: site.patch, object: described.name.clone(), callback, phase };
            self.effects.push(Effect::RunCallback(call.clone()));
            self.state.awaiting = Some(Awaiting { site, call });
        }
        has
    }

    /// Has a function run that belongs to the patch as a whole.
    fn run_own(&mut self, patch: PatchId, callback: CallbackKind) {
        let call = Call { patch, object: None, callback, phase: ObjectPhase::Live };
        self.effects.push(Effect::RunCallback(call.clone()));
        self.state.awaiting = Some(Awaiting { site: Site { patch, object: 0 }, call });
    }

    pub(crate) fn callback_returned(&mut self, value: i32) -> Result<(), Refusal> {
        let Awaiting { site, call } = self.state.awaiting.take().ok_or(Refusal::NoCallback)?;
        match call.callback {
            CallbackKind::PrePatch => self.pre_patch_returned(site, call.phase, value),
            CallbackKind::PostPatch => self.object_mut(site).between = false,
            CallbackKind::Init if value != 0 => {
                // What was to come after it does not.
                self.state.work.clear();
                let finish = Finish::Refused { errno: Errno::of_value(value) };
                self.effects.push(Effect::Finished { patch: site.patch, finish });
                self.forget(site.patch);
            }
            _ => {}
        }
        Ok(())
    }

    fn pre_patch_returned(&mut self, site: Site, phase: ObjectPhase, value: i32) {
        let object = self.object_mut(site);
        (object.post_unpatch_due, object.between) = (value == 0, value == 0);
        if value == 0 {
            return;
        }
        let name = object.name.clone();
        self.effects.push(log::pre_patch_failed(&name));
        let errno = Errno::of_value(value);
        if phase == ObjectPhase::Coming {
            self.state.work.clear();
            self.state.work.push_back(Task::RefuseObject { site, errno });
        } else {
            self.enable_failed(Finish::Cancelled { object: name, errno });
        }
    }

    fn apply(&mut self, site: Site, misfit: Option<Misfit>) {
        let patch = self.patch(site.patch);
        let Some(object) = patch.objects[site.object].name.clone() else { return };
        let name = patch.desc.name.clone();
        match misfit {
            Some(Misfit { stage: MisfitStage::Initialize, errno, .. }) => {
                self.effects.push(log::initialize_failed(&name, &object, errno));
                self.state.work.clear();
                self.state.work.push_back(Task::RefuseObject { site, errno });
            }
            _ => self.effects.push(log::applying(&name, &object)),
        }
    }

    fn apply_failed(&mut self, site: Site, errno: Errno) {
        let patch = self.patch(site.patch);
        if let Some(object) = &patch.objects[site.object].name {
            let line = log::apply_failed(&patch.desc.name, object, errno);
            self.effects.push(line);
        }
        self.state.work.clear();
        self.state.work.push_back(Task::PostUnpatch { site, phase: ObjectPhase::Coming });
        self.state.work.push_back(Task::RefuseObject { site, errno });
    }

    fn revert(&mut self, site: Site) {
        let patch = self.patch(site.patch);
        if let Some(object) = &patch.objects[site.object].name {
            let line = log::reverting(&patch.desc.name, object);
            self.effects.push(line);
        }
        self.set_patched(site, false);
    }

    /// Puts an object's funcs on their func stacks or takes them off, and has the entries follow.
    fn set_patched(&mut self, site: Site, patched: bool) {
        let funcs = self.patch(site.patch).funcs_of(site.object);
        self.rerouting(&funcs, |machine| {
            machine.object_mut(site).patched = patched;
        });
    }

    /// Does something to the func stacks, and then leads the entries of these functions where they have to lead after it.
    pub(crate) fn rerouting(&mut self, funcs: &[FuncId], change: impl FnOnce(&mut Self)) {
        let before: alloc::vec::Vec<Entry> = funcs.iter().map(|func| self.state.entry(func)).collect();
        change(self);
        for (func, before) in funcs.iter().zip(before) {
            let after = self.state.entry(func);
            if after != before {
                self.effects.push(after.effect(func.clone()));
            }
        }
    }
}
