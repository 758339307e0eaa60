//! What is asked for by name: load, enable, disable, unload.

use alloc::string::String;

use crate::event::{CallbackKind, Effect, Finish};
use crate::log;
use crate::patch::PatchDesc;
use crate::refusal::{AlreadySo, Refusal};
use crate::replace::objects_for;
use crate::state::{Direction, Life, Patch, PatchId};
use crate::step::Machine;
use crate::work::Task;

impl Machine {
    pub(crate) fn load(&mut self, desc: PatchDesc, enable: bool, ignore_order: bool) -> Result<(), Refusal> {
        desc.check().map_err(|reason| Refusal::BadDescription { patch: desc.name.clone(), reason })?;
        if let Some(loaded) = self.state.patch_named(&desc.name) {
            return Err(Refusal::NameTaken {
                patch: desc.name.clone(),
                life: loaded.life,
                forced: loaded.forced,
                identical: loaded.desc == desc,
            });
        }
        let id = PatchId(self.state.next_id);
        self.state.next_id = self.state.next_id.saturating_add(1);
        let nops = self.nops_for(&desc);
        let objects = objects_for(&desc, &nops);
        let busy = self.idle();
        let own = desc.init;
        self.state.patches.push(Patch { id, desc, nops, objects, ..Patch::default() });
        let at = self.state.patches.len() - 1;
        if own {
            // What would be refused after `init` is refused before it.
            if enable {
                self.check_to_enable(at, ignore_order)?;
            }
            busy?;
            self.state.work.push_back(Task::Init { patch: id, enable, ignore_order });
            return Ok(());
        }
        if !enable {
            return busy;
        }
        self.enable_at(at, ignore_order, true)
    }

    /// The patch whose `init` runs says itself whether it replaces the others.
    pub(crate) fn set_replace(&mut self, replace: bool) -> Result<(), Refusal> {
        let running = self.state.awaiting.as_ref().filter(|a| a.call.callback == CallbackKind::Init);
        let id = running.ok_or(Refusal::NoCallback)?.call.patch;
        let desc = PatchDesc { replace, ..self.patch(id).desc.clone() };
        desc.check().map_err(|reason| Refusal::BadDescription { patch: desc.name.clone(), reason })?;
        let nops = self.nops_for(&desc);
        let objects = objects_for(&desc, &nops);
        let patch = self.patch_mut(id);
        (patch.desc, patch.nops, patch.objects) = (desc, nops, objects);
        Ok(())
    }

    /// Enables a patch whose `init` has run. What could refuse it was asked before.
    pub(crate) fn enable_loaded(&mut self, id: PatchId, ignore_order: bool) {
        let at = self.state.patches.iter().position(|patch| patch.id == id);
        if let Some(at) = at
            && let Err(refusal) = self.enable_at(at, ignore_order, true)
        {
            let finish = Finish::Refused { errno: refusal.errno() };
            self.effects.push(Effect::Finished { patch: id, finish });
            self.state.work.push_back(Task::Exit { patch: id });
            self.state.work.push_back(Task::Forget { patch: id });
        }
    }

    /// Refuses what cannot be enabled.
    fn check_to_enable(&self, at: usize, ignore_order: bool) -> Result<(), Refusal> {
        // As in the kernel, what can never work is refused before what cannot work now.
        self.state.check_states(at)?;
        self.idle()?;
        if !ignore_order {
            self.state.check_order_to_enable(at)?;
        }
        Ok(())
    }

    pub(crate) fn enable(&mut self, name: &str, ignore_order: bool) -> Result<(), Refusal> {
        self.enable_at(self.named(name)?, ignore_order, false)
    }

    fn enable_at(&mut self, at: usize, ignore_order: bool, loading: bool) -> Result<(), Refusal> {
        let patch = &self.state.patches[at];
        let (id, name) = (patch.id, patch.desc.name.clone());
        match patch.life {
            Life::Disabled => {}
            Life::Enabled => return Err(Refusal::AlreadySo(AlreadySo::Enabled(name))),
            Life::Enabling => return Err(Refusal::AlreadySo(AlreadySo::Enabling(name))),
            Life::Disabling => {
                return Err(Refusal::WouldReverse { patch: name, direction: Direction::Unpatching });
            }
            Life::Replaced => return Err(Refusal::Replaced { patch: name, by: by_whom(patch) }),
        }
        self.check_to_enable(at, ignore_order)?;
        self.effects.push(log::enabling(&name));
        self.initialize(id, Direction::Patching, loading);
        Ok(())
    }

    pub(crate) fn disable(&mut self, name: &str, ignore_order: bool) -> Result<(), Refusal> {
        let at = self.named(name)?;
        let patch = &self.state.patches[at];
        let (id, name) = (patch.id, patch.desc.name.clone());
        match patch.life {
            Life::Enabled => {}
            Life::Disabled => return Err(Refusal::AlreadySo(AlreadySo::Disabled(name))),
            Life::Disabling => return Err(Refusal::AlreadySo(AlreadySo::Disabling(name))),
            Life::Enabling => {
                return Err(Refusal::WouldReverse { patch: name, direction: Direction::Patching });
            }
            Life::Replaced => {
                return Err(Refusal::AlreadySo(AlreadySo::Replaced { patch: name, by: by_whom(patch) }));
            }
        }
        self.idle()?;
        if !ignore_order {
            self.state.check_order_to_disable(at)?;
        }
        self.initialize(id, Direction::Unpatching, false);
        Ok(())
    }

    pub(crate) fn unload(&mut self, name: &str) -> Result<(), Refusal> {
        let patch = &self.state.patches[self.named(name)?];
        let id = patch.id;
        if !matches!(patch.life, Life::Disabled | Life::Replaced) {
            return Err(Refusal::StillInUse { patch: name.into(), life: patch.life });
        }
        if patch.forced {
            return Err(Refusal::Forced { patch: name.into() });
        }
        self.idle()?;
        self.state.work.push_back(Task::Exit { patch: id });
        self.state.work.push_back(Task::Forget { patch: id });
        Ok(())
    }
}

fn by_whom(patch: &Patch) -> String {
    patch.replaced_by.clone().unwrap_or_default()
}
