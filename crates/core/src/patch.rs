//! What a patch says of itself: objects, funcs, callbacks, states and dependencies.
//!
//! A [`PatchDesc`] is data from outside; [`PatchDesc::check`] is what it must pass before it becomes part of a state.
//! The fields are those of the kernel's `klp_patch`, `klp_object`, `klp_func`, `klp_callbacks` and `klp_state`.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

use crate::refusal::Errno;

/// The longest name of a patch, in bytes. The kernel has 56 (`MODULE_NAME_LEN`); a file name may have 255.
pub const MAX_PATCH_NAME: usize = 255;

/// A patch as its file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PatchDesc {
    /// The name by which it is asked for; unique in a target.
    pub name: String,
    /// The author's version, for people only.
    pub version: String,
    /// One line for people.
    pub description: String,
    /// Whether it takes the place of every earlier patch.
    pub replace: bool,
    /// Names of patches that must be enabled while this one is, beyond those it shares a function with.
    pub depends: Vec<String>,
    /// The states it knows how to handle (`klp_state`).
    pub states: Vec<StateDesc>,
    /// The objects it changes; their order is the order of the callbacks.
    pub objects: Vec<ObjectDesc>,
    /// Whether it has a function to run when it is loaded, which may refuse (`module_init`).
    pub init: bool,
    /// Whether it has a function to run before it is unloaded (`module_exit`).
    pub exit: bool,
}

/// A state of the system that a patch changes beyond its code (`klp_state`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct StateDesc {
    /// Identifies the state across patches.
    pub id: u64,
    /// Grows with each incompatible change of what is kept there.
    pub version: u32,
}

/// One object of a patch: the main executable or a shared library.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectDesc {
    /// The library's name; `None` is the main executable.
    pub name: Option<String>,
    /// The build-id that the object must have, if the patch pins one.
    pub build_id: Option<Vec<u8>>,
    /// The functions to change; may be empty for an object with callbacks only.
    pub funcs: Vec<FuncDesc>,
    /// Which callbacks the object has.
    pub callbacks: Callbacks,
}

/// One function to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct FuncDesc {
    /// The symbol of the function.
    pub old_name: String,
    /// Which of several symbols of that name, from 1; 0 says that there is only one.
    pub old_sympos: u32,
}

/// Which of the four callbacks an object of a patch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Callbacks {
    /// Runs before the object is patched, and may refuse.
    pub pre_patch: bool,
    /// Runs after the transition that patched the object.
    pub post_patch: bool,
    /// Runs before the transition that unpatches the object.
    pub pre_unpatch: bool,
    /// Runs after the object was unpatched.
    pub post_unpatch: bool,
}

impl Callbacks {
    /// All four.
    pub const ALL: Self = Self { pre_patch: true, post_patch: true, pre_unpatch: true, post_unpatch: true };
}

/// The identity of a patched function in a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FuncId {
    /// The library's name; `None` is the main executable.
    pub object: Option<String>,
    /// The symbol.
    pub name: String,
    /// Its position among symbols of that name, from 1: position 0 of a description is shown as 1, as the kernel does.
    pub sympos: u32,
}

impl fmt::Display for FuncId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if self.sympos > 1 {
            write!(f, ",{}", self.sympos)?;
        }
        match &self.object {
            Some(object) => write!(f, " of '{object}'"),
            None => write!(f, " of the main executable"),
        }
    }
}

impl ObjectDesc {
    /// The identity of one of this object's funcs.
    pub fn id_of(&self, func: &FuncDesc) -> FuncId {
        FuncId { object: self.name.clone(), name: func.old_name.clone(), sympos: func.old_sympos.max(1) }
    }

    /// Whether this object changes `func`.
    pub(crate) fn has(&self, func: &FuncId) -> bool {
        self.name == func.object
            && self.funcs.iter().any(|f| f.old_sympos.max(1) == func.sympos && f.old_name == func.name)
    }
}

impl PatchDesc {
    /// Every function that the patch changes, in declared order.
    pub fn funcs(&self) -> impl Iterator<Item = FuncId> + '_ {
        self.objects.iter().flat_map(|object| object.funcs.iter().map(|func| object.id_of(func)))
    }

    /// Whether the patch changes `func`.
    pub fn changes(&self, func: &FuncId) -> bool {
        self.objects.iter().any(|object| object.has(func))
    }

    /// Whether the description can become a patch at all.
    ///
    /// # Errors
    /// What is missing (`EINVAL`) or named twice (`EEXIST`).
    pub fn check(&self) -> Result<(), DescError> {
        if self.name.is_empty() {
            return Err(DescError::NoName);
        }
        if self.name.len() > MAX_PATCH_NAME
            || self.name.chars().any(|c| c.is_control() || c == '/' || c == '\'')
        {
            return Err(DescError::BadName(self.name.clone()));
        }
        let mut objects = BTreeSet::new();
        for object in &self.objects {
            if object.name.as_deref() == Some("") {
                return Err(DescError::NamelessObject);
            }
            if !objects.insert(&object.name) {
                return Err(DescError::ObjectTwice(object.name.clone()));
            }
        }
        let mut funcs = BTreeSet::new();
        for func in self.funcs() {
            if func.name.is_empty() {
                return Err(DescError::NamelessFunc { object: func.object });
            }
            if funcs.contains(&func) {
                return Err(DescError::FuncTwice(func));
            }
            funcs.insert(func);
        }
        if self.depends.contains(&self.name) {
            return Err(DescError::DependsOnItself);
        }
        if self.replace && !self.depends.is_empty() {
            return Err(DescError::ReplaceDepends(self.depends[0].clone()));
        }
        Ok(())
    }
}

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DescError {
    /// The patch has no name.
    #[error("it has no name: give it one in its metadata, or in its file's name")]
    NoName,
    /// The name cannot be shown, or is too long.
    #[error(
        "its name '{}' has a slash, a quote or a control character or more than {MAX_PATCH_NAME} bytes: choose another",
        .0.escape_debug()
    )]
    BadName(String),
    /// A library with an empty name.
    #[error(
        "one of its objects has an empty name: the main executable is named by NULL, a library by its file name"
    )]
    NamelessObject,
    /// A function without a name.
    #[error("a func in {} has no old_name: name the function to change", object_text(.object))]
    NamelessFunc {
        /// Where.
        object: Option<String>,
    },
    /// The same object twice.
    #[error("it names {} twice: put the funcs of one object into one klp_object", object_text(.0))]
    ObjectTwice(Option<String>),
    /// The same function twice.
    #[error("it changes the function {0} twice: keep one of the two funcs")]
    FuncTwice(FuncId),
    /// It depends on itself.
    #[error("it says that it depends on itself: drop that dependency")]
    DependsOnItself,
    /// A patch that replaces all earlier ones needs one of them.
    #[error(
        "it replaces every earlier patch and yet depends on '{0}', which would be gone: drop the dependency or the replace flag"
    )]
    ReplaceDepends(String),
}

impl DescError {
    /// The kernel's number for it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::ObjectTwice(_) | Self::FuncTwice(_) => Errno::EEXIST,
            _ => Errno::EINVAL,
        }
    }
}

/// An object's name in a message for people.
pub(crate) fn object_text(object: &Option<String>) -> String {
    match object {
        Some(name) => alloc::format!("the library '{name}'"),
        None => String::from("the main executable"),
    }
}
