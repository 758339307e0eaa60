//! What can happen to a state, and what has to be done about it.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::funcs::Implementation;
use crate::patch::{FuncId, PatchDesc};
use crate::refusal::Errno;
use crate::state::{Direction, PatchId, ThreadId};

/// Something asked for, or something that happened in the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Event {
    /// Take a patch in, and enable it unless told not to. If enabling is refused or cancelled, it is not taken in.
    Load {
        /// What its file says.
        desc: PatchDesc,
        /// Whether to enable it at once.
        enable: bool,
        /// Whether to enable it without the patches it depends on.
        ignore_order: bool,
    },
    /// Enable a loaded patch.
    Enable {
        /// Its name.
        patch: String,
        /// Whether to do so without the patches it depends on.
        ignore_order: bool,
    },
    /// Disable an enabled patch; it stays loaded.
    Disable {
        /// Its name.
        patch: String,
        /// Whether to do so though enabled patches depend on it.
        ignore_order: bool,
    },
    /// Give the memory of a disabled or replaced patch back.
    Unload {
        /// Its name.
        patch: String,
    },
    /// The entries lead to stubs that still mean the source side, and these are all threads: begin.
    Started {
        /// All threads of the target.
        pending: BTreeSet<ThreadId>,
    },
    /// The transition being initialized cannot be started: an object could not be patched. It is cancelled.
    StartFailed {
        /// The object; `None` is the main executable.
        object: Option<String>,
        /// Why.
        errno: Errno,
    },
    /// A thread was born. Threads are on the switched side from birth, so nothing changes; but if its identifier is
    /// still pending (the identifier of a thread that died unseen), it is pending like that one was.
    ThreadBorn(ThreadId),
    /// A thread is gone and **no living thread has its identifier**.
    ThreadExited(ThreadId),
    /// A thread's stacks were proved clean and it is on the other side now.
    ThreadSwitched(ThreadId),
    /// Another run of the tool took over and read in the target that the transition has begun, who is still pending and
    /// which way it goes. What the last run did and could not save any more is made up for.
    Resumed {
        /// The threads that are still pending.
        pending: BTreeSet<ThreadId>,
        /// Whether the sides are swapped.
        reversed: bool,
    },
    /// Turn the running transition round, or cancel it if it has not started.
    Reverse {
        /// The patch that must be the one in transition, if named.
        patch: Option<String>,
        /// All threads of the target, listed under one stop. Those that had switched become pending.
        threads: BTreeSet<ThreadId>,
    },
    /// Declare all pending threads switched, clean or not.
    Force {
        /// The patch that must be the one in transition, if named.
        patch: Option<String>,
    },
    /// The pending threads are to be woken, so that they leave what they sleep in.
    Signal,
    /// The callback that was run last returned.
    CallbackReturned {
        /// Its value; 0 for callbacks that return nothing.
        value: i32,
    },
    /// A patch's `init` has set `replace` in its description. Only before its return is told.
    ReplaceSet {
        /// What it is now.
        replace: bool,
    },
    /// A library is mapped and not yet initialized.
    ObjectComing {
        /// Its name.
        object: String,
        /// The patches that turned out not to fit it, if any.
        misfits: Vec<Misfit>,
    },
    /// A library is about to be unmapped.
    ObjectGoing {
        /// Its name.
        object: String,
    },
    /// A library has come, and what is to be done for it was done in the target, its callbacks and messages included. Only a transition that
    /// has not started was not known there: for its patch the library is one that was there before.
    ObjectCame {
        /// Its name.
        object: String,
        /// The patches that were applied to it.
        applied: Vec<PatchId>,
        /// The one of them that was applied as the patch in transition, if one was: it owes the library the callback that ends the
        /// transition, which may be over by now.
        waits: Option<PatchId>,
    },
    /// The same of a library that has gone.
    ObjectGone {
        /// Its name.
        object: String,
        /// The patches that have let go of it.
        left: Vec<PatchId>,
    },
}

impl Event {
    /// How many of a step's effects have to be carried out before the step's new state is saved, if the tool may die at
    /// any time. The rest is carried out after that.
    ///
    /// Who is pending, and which way, is a truth of the target: a state saved before it is so would have a later run
    /// believe that threads have switched which have not. Everything else has to be announced before it is done: an
    /// entry that leads to a stub, a callback that runs, memory that is given back. Forcing is announced first, since the
    /// marks that it leaves on patches must not get lost.
    pub fn save_after(&self, effects: &[Effect]) -> usize {
        if matches!(self, Self::Force { .. }) {
            return 0;
        }
        let truth = |e: &Effect| matches!(e, Effect::Begin { .. } | Effect::Switch(_) | Effect::Swap { .. });
        effects.iter().rposition(truth).map_or(0, |at| at + 1)
    }
}

/// A patch that cannot be applied to a library that is coming.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Misfit {
    /// The patch.
    pub patch: PatchId,
    /// Where it failed.
    pub stage: MisfitStage,
    /// Why.
    pub errno: Errno,
}

/// Where applying a patch to a coming library failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MisfitStage {
    /// Its symbols do not resolve there; known before any callback.
    Initialize,
    /// Its entries cannot be written; found after `pre_patch`.
    Apply,
}

/// What has to be done in the target, in the order given.
///
/// All but [`Effect::Log`] and [`Effect::RunCallback`] may be done twice and can be found again from the state: see
/// [`crate::State::entries`] for what a run of the tool that takes over has to do. [`Event::save_after`] tells when to save
/// the new state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Append to the target's log, without the `livepatch: ` prefix being added again: the text has it.
    Log(Level, String),
    /// Run a callback; always the last effect of a step, and to be answered by [`Event::CallbackReturned`].
    RunCallback(Call),
    /// Lead the function's entry to a stub with these two sides. To be in place by the next [`Effect::Begin`], or at
    /// once if the transition has begun.
    Redirect {
        /// The function.
        func: FuncId,
        /// What it was before the transition.
        source: Implementation,
        /// What it is after it.
        goal: Implementation,
    },
    /// List these threads as pending and begin, by one store.
    Begin {
        /// All threads.
        pending: BTreeSet<ThreadId>,
    },
    /// Strike the thread from the pending table, if it is still there.
    Switch(ThreadId),
    /// Swap the sides under one stop: these threads are pending now.
    Swap {
        /// The threads that had switched.
        pending: BTreeSet<ThreadId>,
        /// Whether pending threads now run the goal and the others the source.
        reversed: bool,
    },
    /// Wake a pending thread.
    Signal(ThreadId),
    /// The pending table is empty: the transition is over, by one store.
    End,
    /// Make the function's entry lead straight to this implementation; [`Implementation::Original`] restores its bytes.
    Settle {
        /// The function.
        func: FuncId,
        /// What it is now.
        implementation: Implementation,
    },
    /// The request that began a transition has come to its end.
    Finished {
        /// The patch.
        patch: PatchId,
        /// How.
        finish: Finish,
    },
    /// The library may be initialized and used.
    Admit {
        /// Its name.
        object: String,
    },
    /// The library must not be loaded.
    Refuse {
        /// Its name.
        object: String,
        /// The patch that refused it.
        patch: PatchId,
        /// Why.
        errno: Errno,
    },
    /// Give the patch's memory back, once no stack refers to it. The state has forgotten it.
    FreePatch(PatchId),
}

/// How a transition ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Finish {
    /// All threads are in this direction's end, after as many reversals as there were.
    Completed(Direction),
    /// It never started, because this object refused or could not be patched.
    Cancelled {
        /// The object; `None` is the main executable.
        object: Option<String>,
        /// Why.
        errno: Errno,
    },
    /// It never started, because somebody asked for that.
    Abandoned,
    /// The patch was not loaded, because its `init` refused.
    Refused {
        /// Why.
        errno: Errno,
    },
}

/// A callback of a patch to run in the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// Whose.
    pub patch: PatchId,
    /// The object that it gets; `None` is the main executable.
    pub object: Option<String>,
    /// Which of the four.
    pub callback: CallbackKind,
    /// The object's state at that time.
    pub phase: ObjectPhase,
}

/// The four callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackKind {
    /// Before the object is patched; not 0 refuses.
    PrePatch,
    /// After the transition that patched it.
    PostPatch,
    /// Before the transition that unpatches it.
    PreUnpatch,
    /// After it was unpatched, if `pre_patch` had succeeded.
    PostUnpatch,
    /// The patch's own, when it is loaded; not 0 refuses. Its object means nothing.
    Init,
    /// The patch's own, before it is unloaded, if [`CallbackKind::Init`] had succeeded. Its object means nothing.
    Exit,
}

impl CallbackKind {
    /// The field's name in `klp_callbacks`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrePatch => "pre_patch",
            Self::PostPatch => "post_patch",
            Self::PreUnpatch => "pre_unpatch",
            Self::PostUnpatch => "post_unpatch",
            Self::Init => "init",
            Self::Exit => "exit",
        }
    }
}

/// The state of an object as its callbacks see it (`enum module_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ObjectPhase {
    /// In normal use.
    Live,
    /// Mapped, its constructors have not run.
    Coming,
    /// Its destructors have run, it is about to be unmapped.
    Going,
}

/// The level of a log message, as the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Shown only when asked for (`pr_debug`).
    Debug,
    /// What happened (`pr_notice`).
    Notice,
    /// What went wrong and was handled (`pr_warn`).
    Warning,
    /// What is broken (`pr_err`).
    Error,
}
