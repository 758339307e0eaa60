//! Func stacks: which implementation of a function runs, before, during and after a transition.
//!
//! The func stack of a function holds, in stack order, each patch whose object is patched and that changes the function
//! or has a nop for it. It is not stored: it follows from the state, so it cannot disagree with it. The newest patch on
//! it wins; a nop stands for the original and hides what is below.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::event::Effect;
use crate::patch::FuncId;
use crate::state::{Direction, Patch, PatchId, Phase, State, ThreadId, Transition};

/// What code a function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Implementation {
    /// The target's own.
    Original,
    /// A patch's.
    Patch(PatchId),
}

/// A function that changes in the running transition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Change {
    /// The function.
    pub func: FuncId,
    /// What it was before the transition. Keeps its meaning when the transition is reversed.
    pub source: Implementation,
    /// What it is after it, unless it is reversed.
    pub goal: Implementation,
}

/// Where the entry of a function has to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Steady(Implementation),
    Stub { source: Implementation, goal: Implementation },
}

impl Patch {
    /// What this patch makes of a function, if it is on the function's stack.
    fn provides(&self, func: &FuncId) -> Option<Implementation> {
        let object = &self.objects[self.object(&func.object)?];
        if !object.patched {
            None
        } else if self.desc.changes(func) {
            Some(Implementation::Patch(self.id))
        } else if self.nops.contains(func) {
            Some(Implementation::Original)
        } else {
            None
        }
    }
}

impl State {
    /// The func stack of a function, oldest first: the patch, and what it makes of the function.
    pub fn func_stack(&self, func: &FuncId) -> Vec<(PatchId, Implementation)> {
        self.patches.iter().filter_map(|patch| Some((patch.id, patch.provides(func)?))).collect()
    }

    /// The transition while it still decides what runs.
    pub(crate) fn switching(&self) -> Option<&Transition> {
        self.transition.as_ref().filter(|t| t.phase != Phase::Completing)
    }

    pub(crate) fn entry(&self, func: &FuncId) -> Entry {
        let top = |patches: &mut dyn DoubleEndedIterator<Item = &Patch>| {
            patches.rev().find_map(|patch| patch.provides(func)).unwrap_or(Implementation::Original)
        };
        let Some(transition) = self.switching() else {
            return Entry::Steady(top(&mut self.patches.iter()));
        };
        let without = top(&mut self.patches.iter().filter(|patch| patch.id != transition.patch));
        // A replacing patch hides all that is below it by having a nop wherever it has no func.
        let with = top(&mut self.patches.iter());
        let (source, goal) = match transition.origin {
            Direction::Patching => (without, with),
            Direction::Unpatching => (with, without),
        };
        if source == goal { Entry::Steady(source) } else { Entry::Stub { source, goal } }
    }

    /// What runs when the function is called and no transition runs, or one that does not change the function. During a
    /// transition that changes it, this is the side from which the transition began.
    pub fn steady(&self, func: &FuncId) -> Implementation {
        match self.entry(func) {
            Entry::Steady(implementation) => implementation,
            Entry::Stub { source, .. } => source,
        }
    }

    /// Every function in a loaded object that some patch on the stack has changed, with what runs when it is called; the
    /// functions of the running transition with their source.
    pub fn steady_all(&self) -> Vec<(FuncId, Implementation)> {
        let mut all = Vec::new();
        for patch in self.patches.iter().filter(|patch| patch.is_active()) {
            for func in patch.all_funcs() {
                if patch.provides(&func).is_some() && !all.iter().any(|(known, _)| *known == func) {
                    let implementation = self.steady(&func);
                    all.push((func, implementation));
                }
            }
        }
        all
    }

    /// Every function that changes in the running transition, in loaded objects only. Empty when it is completing.
    pub fn changes(&self) -> Vec<Change> {
        let Some(patch) = self.switching().and_then(|transition| self.patch(transition.patch)) else {
            return Vec::new();
        };
        let funcs = patch.all_funcs();
        let change = |func| match self.entry(&func) {
            Entry::Stub { source, goal } => Some(Change { func, source, goal }),
            Entry::Steady(_) => None,
        };
        funcs.into_iter().filter_map(change).collect()
    }

    /// What a thread runs when it calls the function now.
    pub fn runs(&self, func: &FuncId, thread: ThreadId) -> Implementation {
        match (self.entry(func), self.switching()) {
            (Entry::Steady(implementation), _) => implementation,
            (Entry::Stub { source, goal }, Some(transition)) => {
                if transition.runs_goal(thread) {
                    goal
                } else {
                    source
                }
            }
            (Entry::Stub { source, .. }, None) => source,
        }
    }
}

impl Transition {
    /// Whether a thread is on the goal's side. This is what the stubs compute from the transition word and the pending
    /// table: begun, and pending exactly if the sides are swapped.
    pub fn runs_goal(&self, thread: ThreadId) -> bool {
        self.phase == Phase::Started && self.pending.contains(&thread) == self.reversed
    }
}

impl Entry {
    pub(crate) fn effect(self, func: FuncId) -> Effect {
        match self {
            Self::Steady(implementation) => Effect::Settle { func, implementation },
            Self::Stub { source, goal } => Effect::Redirect { func, source, goal },
        }
    }
}
