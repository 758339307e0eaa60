//! In which order patches may come and go.
//!
//! A patch depends on an earlier one if both change a function, and on any patch that its metadata name. It can be enabled
//! when all it depends on is enabled, and disabled when nothing enabled depends on it; patches that have nothing to do
//! with each other come and go as they like. A replacing patch depends on nothing: it takes the place of what is below.

use crate::patch::FuncId;
use crate::refusal::Refusal;
use crate::state::{Life, Patch, State};

/// The first function, in the later patch's order, that makes it depend on an earlier one.
fn shared(later: &Patch, earlier: &Patch) -> Option<FuncId> {
    if later.desc.replace {
        return None;
    }
    later.desc.funcs().find(|func| earlier.desc.changes(func))
}

impl State {
    /// Whether the patch at this place on the stack may be enabled as far as order goes.
    pub(crate) fn check_order_to_enable(&self, at: usize) -> Result<(), Refusal> {
        let patch = &self.patches[at];
        let needs = |parent: &Patch, func| Refusal::NeedsEnabled {
            patch: patch.desc.name.clone(),
            parent: parent.desc.name.clone(),
            life: parent.life,
            func,
        };
        for parent in self.patches[..at].iter().filter(|p| p.is_on_stack() && p.life != Life::Enabled) {
            if let Some(func) = shared(patch, parent) {
                return Err(needs(parent, Some(func)));
            }
        }
        for name in &patch.desc.depends {
            let Some(parent) = self.patch_named(name) else {
                return Err(Refusal::NeedsLoaded { patch: patch.desc.name.clone(), parent: name.clone() });
            };
            if parent.life != Life::Enabled {
                return Err(needs(parent, None));
            }
        }
        Ok(())
    }

    /// Whether the patch at this place on the stack may be disabled as far as order goes.
    pub(crate) fn check_order_to_disable(&self, at: usize) -> Result<(), Refusal> {
        let patch = &self.patches[at];
        for (place, other) in self.patches.iter().enumerate().filter(|(_, other)| other.life == Life::Enabled)
        {
            let func = if place > at { shared(other, patch) } else { None };
            if func.is_some() || other.desc.depends.contains(&patch.desc.name) {
                let (patch, dependent) = (patch.desc.name.clone(), other.desc.name.clone());
                return Err(Refusal::NeededBy { patch, dependent, func });
            }
        }
        Ok(())
    }

    /// Whether the patch at this place knows the states (`klp_state`) that enabled patches below it keep: each at least in
    /// their version, and none unknown if it replaces them.
    pub(crate) fn check_states(&self, at: usize) -> Result<(), Refusal> {
        let patch = &self.patches[at];
        for installed in self.patches[..at].iter().filter(|p| p.life == Life::Enabled) {
            for state in &installed.desc.states {
                let version =
                    patch.desc.states.iter().find(|known| known.id == state.id).map(|known| known.version);
                let compatible = version.map_or(!patch.desc.replace, |version| version >= state.version);
                if !compatible {
                    return Err(Refusal::Incompatible {
                        patch: patch.desc.name.clone(),
                        installed: installed.desc.name.clone(),
                        id: state.id,
                        installed_version: state.version,
                        version,
                    });
                }
            }
        }
        Ok(())
    }
}
