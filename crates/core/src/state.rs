//! What is known of a target between two steps.
//!
//! A state is self-sufficient: it is kept in the target between runs of the tool and read by the next run. All its fields
//! have defaults, so that a state written by an earlier version can be read by a later one.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

use crate::event::{Call, Finish};
use crate::patch::{FuncId, PatchDesc};
use crate::work::{Awaiting, Task};

/// The version of the state's written form. A reader refuses a greater one.
pub const FORMAT: u32 = 1;

/// Identifies a patch in a target. Never used again for another one, not even after an unload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PatchId(pub u32);

impl fmt::Display for PatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Identifies a thread of a target; what it is made of (the thread pointer) is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ThreadId(pub u64);

/// Where a patch is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Loaded, without effect.
    #[default]
    Disabled,
    /// In transition to be enabled.
    Enabling,
    /// In effect.
    Enabled,
    /// In transition to be disabled.
    Disabling,
    /// Another patch took its place; it can only be unloaded.
    Replaced,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::Enabling => "being enabled",
            Self::Enabled => "enabled",
            Self::Disabling => "being disabled",
            Self::Replaced => "replaced",
        })
    }
}

/// The direction of a transition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the patch.
    #[default]
    Patching,
    /// Away from it.
    Unpatching,
}

impl Direction {
    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Patching => Self::Unpatching,
            Self::Unpatching => Self::Patching,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Patching => "patching",
            Self::Unpatching => "unpatching",
        })
    }
}

/// How far a transition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The `pre_` callbacks run and the entries are prepared; every thread runs what it ran before.
    #[default]
    Initializing,
    /// Threads switch, one at a time.
    Started,
    /// All threads have switched; the `post_` callbacks run.
    Completing,
}

/// The transition that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Transition {
    pub(crate) patch: PatchId,
    /// Which way it went at first: what was before it is the source, what is after it the goal, for ever.
    pub(crate) origin: Direction,
    /// Whether it was turned round, so that it now goes from the goal to the source.
    pub(crate) reversed: bool,
    pub(crate) phase: Phase,
    /// Those that have not switched in the present direction.
    pub(crate) pending: BTreeSet<ThreadId>,
    pub(crate) signaled: bool,
    /// Whether the patch was loaded by the same request, and goes if the transition is cancelled.
    pub(crate) loading: bool,
    /// How it ended, if otherwise than by completing.
    pub(crate) failure: Option<Finish>,
}

impl Transition {
    /// The patch in transition.
    pub fn patch(&self) -> PatchId {
        self.patch
    }

    /// Which way it goes now.
    pub fn direction(&self) -> Direction {
        if self.reversed { self.origin.opposite() } else { self.origin }
    }

    /// Which way it went at first.
    pub fn origin(&self) -> Direction {
        self.origin
    }

    /// Whether it goes the other way than at first: then pending threads run the goal and the others the source.
    pub fn is_reversed(&self) -> bool {
        self.reversed
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The threads that have not switched in the present direction. Empty before the start.
    pub fn pending(&self) -> &BTreeSet<ThreadId> {
        &self.pending
    }
}

/// An object as part of a loaded patch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PatchObject {
    pub(crate) name: Option<String>,
    /// Its funcs are on the func stacks.
    pub(crate) patched: bool,
    /// `pre_patch` succeeded (or there is none) and `post_unpatch` has not run.
    pub(crate) post_unpatch_due: bool,
    /// Its last callback was a `pre_` one (or its turn was, where there is none), so a `post_` one is due and `pre_unpatch` is not.
    pub(crate) between: bool,
}

impl PatchObject {
    /// The library's name; `None` is the main executable.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether its funcs are on the func stacks.
    pub fn is_patched(&self) -> bool {
        self.patched
    }

    /// Whether it is between a `pre_` callback and the `post_` one that answers it: its `pre_unpatch` is not due then.
    pub fn is_between(&self) -> bool {
        self.between
    }
}

/// A patch that is loaded in a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Patch {
    pub(crate) id: PatchId,
    pub(crate) desc: PatchDesc,
    pub(crate) life: Life,
    pub(crate) forced: bool,
    pub(crate) replaced_by: Option<String>,
    /// Functions that it returns to their original while it takes the place of earlier patches.
    pub(crate) nops: Vec<FuncId>,
    /// The described objects in their order, then those that are there for nops only.
    pub(crate) objects: Vec<PatchObject>,
}

impl Patch {
    /// Its identifier.
    pub fn id(&self) -> PatchId {
        self.id
    }

    /// What its file says of it.
    pub fn desc(&self) -> &PatchDesc {
        &self.desc
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.desc.name
    }

    /// Where it is in its life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Whether a transition was forced while threads could be in its code, so that its memory stays for ever.
    pub fn is_forced(&self) -> bool {
        self.forced
    }

    /// The name of the patch that took its place.
    pub fn replaced_by(&self) -> Option<&str> {
        self.replaced_by.as_deref()
    }

    /// The functions that it returns to their original while it replaces earlier patches.
    pub fn nops(&self) -> &[FuncId] {
        &self.nops
    }

    /// Its objects, those that are there for nops only at the end.
    pub fn objects(&self) -> &[PatchObject] {
        &self.objects
    }

    /// Whether it is on the patch stack.
    pub fn is_on_stack(&self) -> bool {
        self.life != Life::Replaced
    }

    /// Whether its objects are patched as they come.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.life, Life::Enabling | Life::Enabled | Life::Disabling)
    }

    pub(crate) fn object(&self, name: &Option<String>) -> Option<usize> {
        self.objects.iter().position(|object| object.name == *name)
    }

    /// All functions, nops last.
    pub(crate) fn all_funcs(&self) -> Vec<FuncId> {
        self.desc.funcs().chain(self.nops.iter().cloned()).collect()
    }
}

/// What must happen next in a state, besides requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Due {
    /// Nothing: no patch is in transition.
    Nothing,
    /// This callback must be run and answered by [`crate::Event::CallbackReturned`]. A run of the tool that takes over
    /// cannot know from the state whether it ran.
    Callback(Call),
    /// [`crate::Event::Started`], or a reversal.
    Start,
    /// The pending threads have to be looked at.
    Threads,
}

/// Why what was read is no state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Corrupt {
    /// It was written by a later version.
    #[error(
        "it was written in format {format}, this version reads formats up to {FORMAT}: use the later version"
    )]
    Newer {
        /// The format.
        format: u32,
    },
    /// Two patches of the same name or identifier.
    #[error("it has two patches '{0}'")]
    Twice(String),
    /// What it says of a patch does not fit together.
    #[error("what it says of patch '{0}' does not fit together")]
    Patch(String),
    /// It speaks of a patch that it does not have.
    #[error("it speaks of patch number {0}, which it does not have")]
    UnknownPatch(PatchId),
}

/// All that is known of a target's patches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub(crate) format: u32,
    /// The patch stack, oldest first, with replaced patches in their old places.
    pub(crate) patches: Vec<Patch>,
    /// The libraries that are loaded.
    pub(crate) objects: BTreeSet<String>,
    pub(crate) transition: Option<Transition>,
    /// What is left of the running operation.
    pub(crate) work: VecDeque<Task>,
    /// The callback that has not returned.
    pub(crate) awaiting: Option<Awaiting>,
    pub(crate) next_id: u32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            format: FORMAT,
            patches: Vec::new(),
            objects: BTreeSet::new(),
            transition: None,
            work: VecDeque::new(),
            awaiting: None,
            next_id: 1,
        }
    }
}

impl State {
    /// A target without patches, with these libraries loaded.
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(objects: I) -> Self {
        Self { objects: objects.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The version of the written form that this state was read from; not to be used if above [`FORMAT`].
    pub fn format(&self) -> u32 {
        self.format
    }

    /// All loaded patches in stack order, oldest first; replaced ones in their old places.
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The patch with this identifier.
    pub fn patch(&self, id: PatchId) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.id == id)
    }

    /// The patch with this name.
    pub fn patch_named(&self, name: &str) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.desc.name == name)
    }

    /// The transition that runs, if any.
    pub fn transition(&self) -> Option<&Transition> {
        self.transition.as_ref()
    }

    /// The libraries that are loaded, as far as was told.
    pub fn objects(&self) -> &BTreeSet<String> {
        &self.objects
    }

    /// Whether the object is loaded; the main executable (`None`) always is.
    pub fn is_loaded(&self, object: Option<&str>) -> bool {
        object.is_none_or(|name| self.objects.contains(name))
    }

    /// Says anew who is pending, as read in the target; without effect unless a transition has started. This is for
    /// looking only: it completes nothing, as [`crate::Event::Resumed`] does.
    pub fn set_pending(&mut self, pending: BTreeSet<ThreadId>) {
        if let Some(transition) = &mut self.transition
            && transition.phase == Phase::Started
        {
            transition.pending = pending;
        }
    }

    /// What must happen next.
    pub fn due(&self) -> Due {
        if let Some(awaiting) = &self.awaiting {
            return Due::Callback(awaiting.call.clone());
        }
        match &self.transition {
            None => Due::Nothing,
            Some(transition) if transition.phase == Phase::Initializing => Due::Start,
            Some(_) => Due::Threads,
        }
    }

    /// Whether the patch's memory may be given back if it is asked for; see [`crate::Event::Unload`].
    pub fn may_free(&self, id: PatchId) -> bool {
        self.patch(id).is_some_and(|p| matches!(p.life, Life::Disabled | Life::Replaced) && !p.forced)
    }

    /// Whether the state can be one that steps led to, as far as steps rely on it. What is read from a target may be
    /// anything.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn check(&self) -> Result<(), Corrupt> {
        if self.format > FORMAT {
            return Err(Corrupt::Newer { format: self.format });
        }
        for (at, patch) in self.patches.iter().enumerate() {
            if self.patches[..at]
                .iter()
                .any(|other| other.id == patch.id || other.desc.name == patch.desc.name)
            {
                return Err(Corrupt::Twice(patch.desc.name.clone()));
            }
            let described = patch.desc.objects.iter().map(|object| &object.name);
            if patch.id.0 >= self.next_id
                || !described.eq(patch.objects.iter().take(patch.desc.objects.len()).map(|o| &o.name))
            {
                return Err(Corrupt::Patch(patch.desc.name.clone()));
            }
            let moving = matches!(patch.life, Life::Enabling | Life::Disabling);
            if moving != self.transition.as_ref().is_some_and(|t| t.patch == patch.id) {
                return Err(Corrupt::Patch(patch.desc.name.clone()));
            }
        }
        if let Some(transition) = &self.transition
            && self.patch(transition.patch).is_none()
        {
            return Err(Corrupt::UnknownPatch(transition.patch));
        }
        let awaited = self.awaiting.iter().map(|awaiting| (awaiting.site, awaiting.is_own()));
        let tasks = self.work.iter().filter_map(|task| Some((task.site()?, task.is_own())));
        for (site, own) in tasks.chain(awaited) {
            match self.patch(site.patch) {
                None => return Err(Corrupt::UnknownPatch(site.patch)),
                Some(patch) if !own && site.object >= patch.objects.len() => {
                    return Err(Corrupt::Patch(patch.desc.name.clone()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
