//! The transition: initialize, start, switch, complete; reverse, cancel, force.
//!
//! The source side is what ran before the transition began and the goal side what runs after it; a reversal does not
//! rename them, it only changes which way the threads go. A pending thread runs the side it comes from.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::event::{Effect, Finish, ObjectPhase};
use crate::funcs::Implementation;
use crate::log;
use crate::refusal::{Errno, Refusal};
use crate::state::{Direction, Life, PatchId, Phase, ThreadId, Transition};
use crate::step::Machine;
use crate::work::{Site, Task};

impl Machine {
    /// Initializes a transition: the `pre_` callbacks, object by object.
    pub(crate) fn initialize(&mut self, id: PatchId, origin: Direction, loading: bool) {
        let patch = self.patch(id);
        let name = patch.desc.name.clone();
        let loaded: Vec<Site> = (0..patch.objects.len())
            .filter(|&object| self.state.is_loaded(patch.objects[object].name()))
            .map(|object| Site { patch: id, object })
            .collect();
        self.set_life(id, if origin == Direction::Patching { Life::Enabling } else { Life::Disabling });
        self.state.transition = Some(Transition { patch: id, origin, loading, ..Transition::default() });
        self.effects.push(log::initializing(&name, origin));
        let phase = ObjectPhase::Live;
        for site in loaded {
            match origin {
                Direction::Patching => {
                    self.state.work.push_back(Task::PrePatch { site, phase });
                    self.state.work.push_back(Task::PatchObject { site, misfit: None });
                }
                Direction::Unpatching => self.state.work.push_back(Task::PreUnpatch { site, phase }),
            }
        }
        if origin == Direction::Unpatching {
            self.state.work.push_back(Task::RedirectAll);
        }
    }

    /// The transition in progress, if it is the one of the patch named.
    fn current(&self, named: Option<&str>) -> Result<(Transition, String), Refusal> {
        let transition = self.state.transition.clone().ok_or(Refusal::NoTransition)?;
        let name = self.patch(transition.patch).desc.name.clone();
        match named {
            Some(other) if other != name => {
                self.named(other)?;
                Err(Refusal::OtherTransition { patch: other.into(), other: name })
            }
            _ => Ok((transition, name)),
        }
    }

    /// The transition in progress, if it has started and is not completing.
    pub(crate) fn started_transition(&self, named: Option<&str>) -> Result<(Transition, String), Refusal> {
        let (transition, patch) = self.current(named)?;
        let direction = transition.direction();
        match transition.phase {
            Phase::Initializing => Err(Refusal::NotStarted { patch, direction }),
            Phase::Started => Ok((transition, patch)),
            Phase::Completing => Err(Refusal::Busy { patch, direction }),
        }
    }

    /// The transition in progress, if all is prepared for its start.
    fn startable(&self) -> Result<(Transition, String), Refusal> {
        self.no_callback()?;
        let (transition, patch) = self.current(None)?;
        if transition.phase != Phase::Initializing {
            return Err(Refusal::AlreadyStarted { patch, direction: transition.direction() });
        }
        Ok((transition, patch))
    }

    /// Changes the transition in progress; callers have made sure that there is one.
    fn update(&mut self, change: impl FnOnce(&mut Transition)) {
        if let Some(transition) = &mut self.state.transition {
            change(transition);
        }
    }

    pub(crate) fn started(&mut self, pending: BTreeSet<ThreadId>) -> Result<(), Refusal> {
        let (transition, name) = self.startable()?;
        self.effects.push(log::starting(&name, transition.direction()));
        self.effects.push(Effect::Begin { pending: pending.clone() });
        self.update(|t| {
            t.phase = Phase::Started;
            t.pending = pending;
        });
        Ok(())
    }

    /// The target is further than the state: it has begun, threads have switched, or the sides are swapped.
    pub(crate) fn resumed(&mut self, pending: BTreeSet<ThreadId>, reversed: bool) -> Result<(), Refusal> {
        let (mut transition, name) = self.current(None)?;
        if transition.phase == Phase::Initializing {
            self.no_callback()?;
            self.effects.push(log::starting(&name, transition.direction()));
            transition.phase = Phase::Started;
        } else {
            self.started_transition(None)?;
        }
        if transition.reversed != reversed {
            let direction = transition.direction();
            self.effects.push(log::reversing(&name, direction));
            self.effects.push(log::starting(&name, direction.opposite()));
            transition.signaled = false;
        }
        self.state.transition = Some(Transition { pending, reversed, ..transition });
        self.follow_direction();
        Ok(())
    }

    pub(crate) fn start_failed(&mut self, object: Option<String>, errno: Errno) -> Result<(), Refusal> {
        let (transition, name) = self.startable()?;
        let finish = Finish::Cancelled { object: object.clone(), errno };
        match transition.origin {
            Direction::Patching => {
                self.effects.push(log::patch_object_failed(&object));
                self.enable_failed(finish);
            }
            Direction::Unpatching => self.back_out_of_disabling(&name, finish),
        }
        Ok(())
    }

    /// Enabling failed before the start.
    pub(crate) fn enable_failed(&mut self, finish: Finish) {
        let Some(transition) = &self.state.transition else { return };
        let name = self.patch(transition.patch).desc.name.clone();
        self.effects.push(log::enable_failed(&name));
        self.cancel(finish);
    }

    /// Goes back to the state before an enable that has not started.
    fn cancel(&mut self, finish: Finish) {
        let Some(transition) = &self.state.transition else { return };
        let id = transition.patch;
        let name = self.patch(id).desc.name.clone();
        self.effects.push(log::canceling(&name));
        self.turn_round(finish);
    }

    /// Goes back to the state before a disable that has not started. The kernel has no such case, since it cannot die
    /// between the callbacks and the start; this is a reversal that finds no thread switched.
    fn back_out_of_disabling(&mut self, name: &str, finish: Finish) {
        self.effects.push(log::reversing(name, Direction::Unpatching));
        self.turn_round(finish);
    }

    /// Completes a transition that has not started in the other direction.
    fn turn_round(&mut self, finish: Finish) {
        self.state.work.clear();
        self.update(|t| {
            t.reversed = true;
            t.failure = Some(finish);
        });
        self.follow_direction();
        self.complete();
    }

    /// Has the patch's life follow its transition's direction.
    fn follow_direction(&mut self) {
        if let Some(transition) = &self.state.transition {
            let (id, direction) = (transition.patch, transition.direction());
            self.set_life(
                id,
                if direction == Direction::Patching { Life::Enabling } else { Life::Disabling },
            );
        }
    }

    /// A thread is no longer pending: it switched, or it is gone.
    pub(crate) fn strike(&mut self, thread: ThreadId) {
        let mut struck = false;
        self.update(|t| struck = t.pending.remove(&thread));
        if struck {
            self.effects.push(Effect::Switch(thread));
        }
    }

    /// No thread is pending: the transition is over but for its `post_` callbacks.
    pub(crate) fn complete(&mut self) {
        let Some(transition) = self.state.transition.clone() else { return };
        let (id, direction) = (transition.patch, transition.direction());
        let patch = self.patch(id);
        let name = patch.desc.name.clone();
        let funcs = patch.all_funcs();
        self.effects.push(log::completing(&name, direction));
        if transition.phase == Phase::Started {
            self.effects.push(Effect::End);
        }
        self.rerouting(&funcs, |machine| {
            machine.update(|t| t.phase = Phase::Completing);
            match direction {
                Direction::Patching => machine.discard_replaced(id),
                Direction::Unpatching => {
                    machine.patch_mut(id).objects.iter_mut().for_each(|object| object.patched = false);
                }
            }
        });
        let patch = self.patch(id);
        let loaded: Vec<usize> = (0..patch.objects.len())
            .filter(|&object| self.state.is_loaded(patch.objects[object].name()))
            .collect();
        let phase = ObjectPhase::Live;
        for object in loaded {
            let site = Site { patch: id, object };
            self.state.work.push_back(match direction {
                Direction::Patching => Task::PostPatch { site, phase },
                Direction::Unpatching => Task::PostUnpatch { site, phase },
            });
        }
        self.state.work.push_back(Task::Finish);
    }

    /// All is done: the transition is forgotten.
    pub(crate) fn finish(&mut self) {
        let Some(transition) = self.state.transition.take() else { return };
        let (id, direction) = (transition.patch, transition.direction());
        let name = self.patch(id).desc.name.clone();
        self.effects.push(log::complete(&name, direction));
        self.set_life(id, if direction == Direction::Patching { Life::Enabled } else { Life::Disabled });
        let cancelled = transition.failure.is_some();
        let finish = transition.failure.unwrap_or(Finish::Completed(direction));
        self.effects.push(Effect::Finished { patch: id, finish });
        // A load that was to enable and could not is no load.
        if cancelled && transition.loading {
            self.state.work.push_back(Task::Exit { patch: id });
            self.state.work.push_back(Task::Forget { patch: id });
        }
    }

    pub(crate) fn reverse(
        &mut self,
        named: Option<&str>,
        threads: BTreeSet<ThreadId>,
    ) -> Result<(), Refusal> {
        let (transition, name) = self.current(named)?;
        self.no_callback()?;
        let direction = transition.direction();
        match (transition.phase, direction) {
            (Phase::Initializing, Direction::Patching) => self.cancel(Finish::Abandoned),
            (Phase::Initializing, Direction::Unpatching) => {
                self.back_out_of_disabling(&name, Finish::Abandoned)
            }
            (Phase::Started, _) => {
                let mut pending: BTreeSet<ThreadId> =
                    threads.difference(&transition.pending).copied().collect();
                if self.faults.forget_pending_on_reverse {
                    pending.clear();
                }
                let reversed = !transition.reversed;
                self.effects.push(log::reversing(&name, direction));
                self.effects.push(log::starting(&name, direction.opposite()));
                self.effects.push(Effect::Swap { pending: pending.clone(), reversed });
                self.update(|t| {
                    t.reversed = reversed;
                    t.pending = pending;
                    t.signaled = false;
                });
                self.follow_direction();
            }
            (Phase::Completing, _) => return Err(Refusal::Busy { patch: name, direction }),
        }
        Ok(())
    }

    pub(crate) fn signal(&mut self) -> Result<(), Refusal> {
        let (transition, _) = self.started_transition(None)?;
        if !transition.signaled {
            self.effects.push(log::signaling());
        }
        self.effects.extend(transition.pending.iter().map(|&thread| Effect::Signal(thread)));
        self.update(|t| t.signaled = true);
        Ok(())
    }

    pub(crate) fn force(&mut self, named: Option<&str>) -> Result<(), Refusal> {
        let (transition, _) = self.started_transition(named)?;
        self.no_callback()?;
        self.effects.push(log::forcing());
        self.mark_forced(&transition);
        self.effects.extend(transition.pending.iter().map(|&thread| Effect::Switch(thread)));
        self.update(|t| t.pending.clear());
        Ok(())
    }

    /// Notes whose code the pending threads may go on running unseen. The kernel notes the patch that is removed and the
    /// patches that are replaced; so is here whoever owned the implementation that a pending thread runs.
    fn mark_forced(&mut self, transition: &Transition) {
        let owner = |implementation| match implementation {
            Implementation::Patch(id) => Some(id),
            Implementation::Original => None,
        };
        let changes = self.state.changes();
        let come_from = changes.iter().map(|c| if transition.reversed { c.goal } else { c.source });
        let mut forced: BTreeSet<PatchId> = come_from.filter_map(owner).collect();
        match transition.direction() {
            Direction::Unpatching => {
                forced.insert(transition.patch);
            }
            Direction::Patching => forced.extend(self.to_be_replaced(transition.patch)),
        }
        for id in forced {
            self.patch_mut(id).forced = true;
        }
    }

    /// Forgets a patch and gives its memory back.
    pub(crate) fn forget(&mut self, id: PatchId) {
        self.state.patches.retain(|patch| patch.id != id);
        self.effects.push(Effect::FreePatch(id));
    }

    /// The name of a patch, for a message.
    pub(crate) fn name_of(&self, id: PatchId) -> String {
        self.patch(id).desc.name.to_string()
    }
}
