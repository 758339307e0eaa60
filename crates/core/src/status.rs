//! What a state looks like to people: the content of the kernel's `/sys/kernel/livepatch`, and what it lacks.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::event::Effect;
use crate::state::{Life, Patch, PatchId, State};

/// A loaded patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchStatus {
    /// Its identifier.
    pub id: PatchId,
    /// Its name.
    pub name: String,
    /// The author's version.
    pub version: String,
    /// The author's line.
    pub description: String,
    /// Whether it takes the place of earlier patches.
    pub replace: bool,
    /// Where it is in its life.
    pub life: Life,
    /// Whether it is in transition.
    pub transition: bool,
    /// What took its place.
    pub replaced_by: Option<String>,
    /// Whether its memory stays for ever because a transition was forced.
    pub forced: bool,
    /// Whether it could be unloaded now.
    pub may_unload: bool,
    /// Its objects, in declared order, those for nops only at the end.
    pub objects: Vec<ObjectStatus>,
}

/// An object of a loaded patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStatus {
    /// The library's name; `None` is the main executable.
    pub name: Option<String>,
    /// Whether it is loaded.
    pub loaded: bool,
    /// Whether its funcs are on the func stacks.
    pub patched: bool,
    /// Its functions, nops last.
    pub funcs: Vec<FuncStatus>,
}

/// A function of a loaded patch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FuncStatus {
    /// The symbol.
    pub name: String,
    /// Its position, from 1.
    pub sympos: u32,
    /// Whether it only returns the function to its original.
    pub nop: bool,
}

impl State {
    /// All loaded patches in stack order, oldest first.
    pub fn status(&self) -> Vec<PatchStatus> {
        self.patches.iter().map(|patch| self.patch_status(patch)).collect()
    }

    fn patch_status(&self, patch: &Patch) -> PatchStatus {
        let objects = patch.objects.iter().enumerate().map(|(at, object)| ObjectStatus {
            name: object.name.clone(),
            loaded: self.is_loaded(object.name()),
            patched: object.patched,
            funcs: patch
                .funcs_of(at)
                .into_iter()
                .map(|func| FuncStatus {
                    nop: !patch.desc.changes(&func),
                    name: func.name,
                    sympos: func.sympos,
                })
                .collect(),
        });
        PatchStatus {
            id: patch.id,
            name: patch.desc.name.clone(),
            version: patch.desc.version.clone(),
            description: patch.desc.description.clone(),
            replace: patch.desc.replace,
            life: patch.life,
            transition: self.transition.as_ref().is_some_and(|t| t.patch == patch.id),
            replaced_by: patch.replaced_by.clone(),
            forced: patch.forced,
            may_unload: self.transition.is_none() && self.awaiting.is_none() && self.may_free(patch.id),
            objects: objects.collect(),
        }
    }

    /// Where the entries of all patched functions have to lead; all others lead to the original. This is what a run of the
    /// tool that takes over makes true, after two looks at the target:
    ///
    /// 1. If a transition has begun there and the state's is initializing or started, [`crate::Event::Resumed`] takes the
    ///    state to where the target is, and its effects are carried out.
    /// 2. If one has begun there and the state has none, or one that is completing, the state is ahead: who is pending still
    ///    is struck, for that can only be left of a force.
    ///
    /// Then every entry is led to where it has to lead, and a library that is loaded and not on its way is admitted. That is
    /// safe at any time: a stub means its source until its transition begins, and a side is settled only when all are on it.
    pub fn entries(&self) -> Vec<Effect> {
        self.steady_all().into_iter().map(|(func, _)| self.entry(&func).effect(func)).collect()
    }
}
