//! One event, dispatched to the file that knows about it.

use alloc::vec::Vec;

use crate::event::{Effect, Event};
use crate::faults::Faults;
use crate::refusal::Refusal;
use crate::state::{Life, Patch, PatchId, State};

/// Takes a state over one event.
///
/// The effects are to be carried out in order; the last one may be [`Effect::RunCallback`], after which the state waits for
/// [`Event::CallbackReturned`]. When to save the new state is told by [`Event::save_after`].
///
/// # Errors
/// The reason why the event is refused; the state is as before then, and nothing has to be done.
pub fn step(state: &State, event: Event) -> Result<(State, Vec<Effect>), Refusal> {
    Machine::run(state.clone(), event, Faults::NONE)
}

/// A state while it is being taken over an event.
pub(crate) struct Machine {
    pub(crate) state: State,
    pub(crate) effects: Vec<Effect>,
    pub(crate) faults: Faults,
}

impl Machine {
    pub(crate) fn run(state: State, event: Event, faults: Faults) -> Result<(State, Vec<Effect>), Refusal> {
        state.check().map_err(Refusal::Corrupt)?;
        let mut machine = Self { state, effects: Vec::new(), faults };
        machine.handle(event)?;
        machine.work();
        Ok((machine.state, machine.effects))
    }

    fn handle(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Load { desc, enable, ignore_order } => self.load(desc, enable, ignore_order),
            Event::Enable { patch, ignore_order } => self.enable(&patch, ignore_order),
            Event::Disable { patch, ignore_order } => self.disable(&patch, ignore_order),
            Event::Unload { patch } => self.unload(&patch),
            Event::Started { pending } => self.started(pending),
            Event::StartFailed { object, errno } => self.start_failed(object, errno),
            Event::ThreadBorn(_) => Ok(()),
            Event::ThreadExited(thread) => {
                self.strike(thread);
                Ok(())
            }
            Event::ThreadSwitched(thread) => {
                self.started_transition(None)?;
                self.strike(thread);
                Ok(())
            }
            Event::Resumed { pending, reversed } => self.resumed(pending, reversed),
            Event::Reverse { patch, threads } => self.reverse(patch.as_deref(), threads),
            Event::Force { patch } => self.force(patch.as_deref()),
            Event::Signal => self.signal(),
            Event::CallbackReturned { value } => self.callback_returned(value),
            Event::ReplaceSet { replace } => self.set_replace(replace),
            Event::ObjectComing { object, misfits } => self.object_coming(object, misfits),
            Event::ObjectGoing { object } => self.object_going(&object),
            Event::ObjectCame { object, applied, waits } => {
                self.object_came(object, &applied, waits);
                Ok(())
            }
            Event::ObjectGone { object, left } => {
                self.object_gone(&object, &left);
                Ok(())
            }
        }
    }

    /// The index of the patch with this name.
    pub(crate) fn named(&self, name: &str) -> Result<usize, Refusal> {
        let at = self.state.patches.iter().position(|patch| patch.desc.name == name);
        at.ok_or_else(|| Refusal::NoSuchPatch(name.into()))
    }

    /// The patch that an operation under way is about: there, as [`State::check`] found, and not forgotten before the
    /// operation ends, for which [`Machine::idle`] stands.
    pub(crate) fn patch(&self, id: PatchId) -> &Patch {
        self.state.patch(id).expect("a patch with work to do is loaded")
    }

    pub(crate) fn patch_mut(&mut self, id: PatchId) -> &mut Patch {
        self.state.patches.iter_mut().find(|patch| patch.id == id).expect("a patch with work to do is loaded")
    }

    pub(crate) fn set_life(&mut self, id: PatchId, life: Life) {
        self.patch_mut(id).life = life;
    }

    /// Refuses while a callback has not returned: everything else has to wait for it.
    pub(crate) fn no_callback(&self) -> Result<(), Refusal> {
        match &self.state.awaiting {
            None => Ok(()),
            Some(awaiting) => {
                let call = &awaiting.call;
                let patch = self.patch(awaiting.site.patch).desc.name.clone();
                Err(Refusal::CallbackRunning { patch, object: call.object.clone(), callback: call.callback })
            }
        }
    }

    /// Refuses while a transition or a callback runs.
    pub(crate) fn idle(&self) -> Result<(), Refusal> {
        if let Some(transition) = &self.state.transition {
            let patch = self.patch(transition.patch).desc.name.clone();
            return Err(Refusal::Busy { patch, direction: transition.direction() });
        }
        self.no_callback()
    }
}
