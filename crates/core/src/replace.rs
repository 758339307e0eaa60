//! Atomic replace: one patch takes the place of all earlier ones in one transition.
//!
//! A replacing patch has a func or a nop for every function of every patch below it on the stack. That is what lets the
//! patches below leave their func stacks when the transition completes: by then nothing below the replacing patch runs.

use alloc::vec::Vec;

use crate::patch::{FuncId, PatchDesc};
use crate::state::{Life, PatchId, PatchObject};
use crate::step::Machine;

impl Machine {
    /// The nops of a patch that is about to go on top of the stack: all functions of all patches there that it does not
    /// change itself.
    ///
    /// They are made when the patch is loaded. Only patches below it matter, and none can come below it later; if one of
    /// them is unloaded, its nops do no harm. Disabled patches count, since they can be enabled in the meantime.
    pub(crate) fn nops_for(&self, desc: &PatchDesc) -> Vec<FuncId> {
        let mut nops: Vec<FuncId> = Vec::new();
        if !desc.replace {
            return nops;
        }
        for patch in self.state.patches.iter().filter(|patch| patch.is_on_stack()) {
            if self.faults.forget_nops_of_disabled && patch.life == Life::Disabled {
                continue;
            }
            for func in patch.desc.funcs() {
                if !desc.changes(&func) && !nops.contains(&func) {
                    nops.push(func);
                }
            }
        }
        nops
    }

    /// The enabled patches that leave when this one's transition to enable completes.
    pub(crate) fn to_be_replaced(&self, id: PatchId) -> Vec<PatchId> {
        if !self.patch(id).desc.replace {
            return Vec::new();
        }
        let below = self.state.patches.iter().take_while(|patch| patch.id != id);
        below.filter(|patch| patch.life == Life::Enabled).map(|patch| patch.id).collect()
    }

    /// If the patch replaces: takes all patches below it off the func stacks and off the patch stack, and then its nops,
    /// for nothing is left that they hide.
    pub(crate) fn discard_replaced(&mut self, id: PatchId) {
        if !self.patch(id).desc.replace {
            return;
        }
        let by = self.name_of(id);
        for patch in self.state.patches.iter_mut().take_while(|patch| patch.id != id) {
            if patch.life == Life::Replaced {
                continue;
            }
            patch.life = Life::Replaced;
            patch.replaced_by = Some(by.clone());
            patch.nops.clear();
            patch.objects.truncate(patch.desc.objects.len());
            for object in &mut patch.objects {
                object.patched = false;
                object.post_unpatch_due = false;
                object.between = false;
            }
        }
        let patch = self.patch_mut(id);
        patch.nops.clear();
        // Objects that were there for nops only stand behind the described ones.
        patch.objects.truncate(patch.desc.objects.len());
    }
}

/// The objects of a patch: those described, in declared order, then those that only its nops need.
pub(crate) fn objects_for(desc: &PatchDesc, nops: &[FuncId]) -> Vec<PatchObject> {
    let mut objects: Vec<PatchObject> = Vec::new();
    for name in desc.objects.iter().map(|object| &object.name).chain(nops.iter().map(|nop| &nop.object)) {
        if !objects.iter().any(|object| object.name == *name) {
            objects.push(PatchObject { name: name.clone(), ..PatchObject::default() });
        }
    }
    objects
}
