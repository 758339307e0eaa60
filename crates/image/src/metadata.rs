//! What a patch says about itself: its name and version, and the kernel's structures with the functions it replaces.

use crate::error::{Error, Result};
use crate::param::{ParamKind, ParamValue};
use serde::Serialize;

/// What a patch says about itself, known without linking it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// `KLP_NAME`, or the file's stem.
    pub name: String,
    /// `KLP_VERSION`.
    pub version: Option<String>,
    /// `KLP_DESCRIPTION`.
    pub description: Option<String>,
    /// `KLP_LICENSE`.
    pub license: Option<String>,
    /// `klp_patch.replace`: takes the place of every other patch.
    pub replace: bool,
    /// `KLP_DEPENDS`: names of patches, each once, sorted.
    pub depends: Vec<String>,
    /// `klp_patch.objs`, in order, no object twice.
    pub objects: Vec<Object>,
    /// `klp_patch.states`, in order, no id twice.
    pub states: Vec<PatchState>,
    /// `module_param`, sorted by name, none twice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Param>,
    /// The name of the function to run when it is loaded (`module_init`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The name of the function to run before it is unloaded (`module_exit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
}

/// A parameter: a variable of the patch with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ParamKind,
}

/// A `struct klp_object`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Object {
    /// SONAME or file name; None for the main executable.
    pub name: Option<String>,
    /// `KLP_OBJECT_BUILD_ID`: the only build of the object that the patch is for.
    pub build_id: Option<Vec<u8>>,
    /// Its functions in order, no (name, position) twice.
    pub funcs: Vec<Func>,
    /// Its callbacks.
    pub callbacks: Callbacks,
}

/// A `struct klp_func`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Func {
    /// The symbol to replace.
    pub old_name: String,
    /// Which of several of that name, counted from 1; 0 says there must be exactly one.
    pub old_sympos: u32,
    /// The name of the patch's own function that takes its place.
    pub new_func: String,
}

/// The names of an object's callbacks, those that exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Callbacks {
    /// Before the object is patched; may refuse.
    pub pre_patch: Option<String>,
    /// After the object is patched.
    pub post_patch: Option<String>,
    /// Before the object is unpatched.
    pub pre_unpatch: Option<String>,
    /// After the object is unpatched.
    pub post_unpatch: Option<String>,
}

impl Metadata {
    /// The values that `settings`, each `NAME=VALUE`, give to parameters, with the parameters' places in
    /// [`Metadata::params`].
    ///
    /// # Errors
    /// [`Error::Param`] for a parameter that is not there, and for what is no value of one.
    pub fn values(&self, settings: &[String]) -> Result<Vec<(usize, ParamValue)>> {
        let mut values = Vec::new();
        for setting in settings {
            // As in the kernel, a flag is set by its name alone.
            let (name, text) = setting.split_once('=').unwrap_or((setting, ""));
            let Some(at) = self.params.iter().position(|param| param.name == name) else {
                let known: Vec<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
                let reason = match known[..] {
                    [] => "is not known: the patch has no parameters".to_owned(),
                    _ => format!("is not known: the patch has {}", known.join(", ")),
                };
                return Err(Error::Param { name: name.to_owned(), reason });
            };
            values.push((at, self.params[at].kind.parse(name, text)?));
        }
        Ok(values)
    }
}

impl Callbacks {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A `struct klp_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PatchState {
    /// Not 0.
    pub id: u64,
    /// Patches of the same id can follow one another only if the versions allow it.
    pub version: u32,
}
