//! Why a request is refused: typed, with the kernel's number, and a text that names the thing, the reason and the way out.

use alloc::string::String;
use core::fmt;
use serde::{Deserialize, Serialize};

use crate::event::{CallbackKind, Level};
use crate::log;
use crate::patch::{DescError, FuncId, object_text};
use crate::state::{Corrupt, Direction, Life};

/// An error number as in `errno.h`, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Errno(pub i32);

impl Errno {
    /// No such thing.
    pub const ENOENT: Self = Self(2);
    /// In use, or something else runs.
    pub const EBUSY: Self = Self(16);
    /// There is one already.
    pub const EEXIST: Self = Self(17);
    /// No such device: what demonstration callbacks refuse with.
    pub const ENODEV: Self = Self(19);
    /// Makes no sense.
    pub const EINVAL: Self = Self(22);

    /// What a function of the kernel that fails so returns: the negative number.
    pub fn returned(self) -> i32 {
        self.0.saturating_neg()
    }

    /// The number in a callback's value: by convention negative, but anything but 0 is a failure.
    pub fn of_value(value: i32) -> Self {
        Self(value.saturating_abs())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ENOENT => f.write_str("ENOENT"),
            Self::EBUSY => f.write_str("EBUSY"),
            Self::EEXIST => f.write_str("EEXIST"),
            Self::ENODEV => f.write_str("ENODEV"),
            Self::EINVAL => f.write_str("EINVAL"),
            Self(number) => write!(f, "errno {number}"),
        }
    }
}

/// What is already as asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AlreadySo {
    /// The patch is enabled.
    #[error("patch '{0}' is already enabled")]
    Enabled(String),
    /// The patch is on its way to be enabled.
    #[error("patch '{0}' is already being enabled")]
    Enabling(String),
    /// The patch is disabled.
    #[error("patch '{0}' is already disabled")]
    Disabled(String),
    /// The patch is on its way to be disabled.
    #[error("patch '{0}' is already being disabled")]
    Disabling(String),
    /// The patch was replaced, so it has no effect any more.
    #[error("patch '{patch}' has no effect any more: it was replaced by '{by}'")]
    Replaced {
        /// The patch.
        patch: String,
        /// What took its place.
        by: String,
    },
    /// The library is loaded.
    #[error("the library '{0}' is already loaded")]
    ObjectLoaded(String),
    /// The library is not loaded.
    #[error("the library '{0}' is not loaded")]
    ObjectGone(String),
}

/// Why a request is refused. The state is as before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The state is none that steps led to.
    #[error("the state kept in the target is damaged: {0}")]
    Corrupt(Corrupt),
    /// It is already so: a success for whoever only wants it to be so.
    #[error("{0}")]
    AlreadySo(AlreadySo),
    /// No patch of that name is loaded.
    #[error("no patch '{0}' is loaded in this target: see the list of patches for the names there are")]
    NoSuchPatch(String),
    /// A patch of that name is loaded.
    #[error("a patch '{patch}' is already loaded ({life}): {}", name_taken_way_out(*.life, *.forced))]
    NameTaken {
        /// The name.
        patch: String,
        /// What the loaded one is.
        life: Life,
        /// Whether it can never be unloaded.
        forced: bool,
        /// Whether its description is the same.
        identical: bool,
    },
    /// The description is wrong.
    #[error("patch '{patch}' cannot be loaded: {reason}")]
    BadDescription {
        /// The patch's name, as far as it has one.
        patch: String,
        /// What is wrong.
        reason: DescError,
    },
    /// A transition runs.
    #[error(
        "patch '{patch}' is in its {direction} transition: let it complete, or reverse it, then ask again"
    )]
    Busy {
        /// The patch in transition.
        patch: String,
        /// Which way.
        direction: Direction,
    },
    /// The opposite is under way; asking for this is asking to reverse it.
    #[error("patch '{patch}' is in its {direction} transition: reverse it")]
    WouldReverse {
        /// The patch in transition.
        patch: String,
        /// Which way it goes now.
        direction: Direction,
    },
    /// A callback was started and has not returned.
    #[error(
        "the {} callback of patch '{patch}' for {} has not returned: wait for it, then ask again",
        .callback.name(),
        object_text(.object)
    )]
    CallbackRunning {
        /// Whose.
        patch: String,
        /// The object it runs for.
        object: Option<String>,
        /// Which one.
        callback: CallbackKind,
    },
    /// A callback is said to have returned, but none was run.
    #[error("no callback was running that could have returned")]
    NoCallback,
    /// The patch was replaced.
    #[error("patch '{patch}' was replaced by '{by}' and cannot be used again: unload it and load it anew")]
    Replaced {
        /// The patch.
        patch: String,
        /// What took its place.
        by: String,
    },
    /// A patch that this one depends on is not enabled.
    #[error(
        "patch '{patch}' depends on patch '{parent}', which is {life}{}: enable '{parent}' first, or ask to ignore the order",
        sharing(.func)
    )]
    NeedsEnabled {
        /// What was to be enabled.
        patch: String,
        /// What is missing.
        parent: String,
        /// What it is.
        life: Life,
        /// The function that both change; `None` if the patch's metadata name the parent.
        func: Option<FuncId>,
    },
    /// A patch that this one depends on is not loaded.
    #[error(
        "patch '{patch}' depends on patch '{parent}', which is not loaded: load '{parent}' first, or ask to ignore the order"
    )]
    NeedsLoaded {
        /// What was to be enabled.
        patch: String,
        /// What is missing.
        parent: String,
    },
    /// An enabled patch depends on this one.
    #[error(
        "patch '{patch}' is needed by the enabled patch '{dependent}'{}: disable '{dependent}' first, or ask to ignore the order",
        sharing(.func)
    )]
    NeededBy {
        /// What was to be disabled.
        patch: String,
        /// What needs it.
        dependent: String,
        /// The function that both change; `None` if the dependent's metadata name the patch.
        func: Option<FuncId>,
    },
    /// A state that an installed patch keeps is not one this patch can take over.
    #[error("patch '{patch}' is not compatible with the installed patch '{installed}': it {}", state_text(*.id, *.installed_version, *.version))]
    Incompatible {
        /// What was to be enabled.
        patch: String,
        /// The enabled patch that has the state.
        installed: String,
        /// The state.
        id: u64,
        /// Its version in the installed patch.
        installed_version: u32,
        /// Its version in the patch, if it knows the state.
        version: Option<u32>,
    },
    /// Only a disabled or replaced patch can be unloaded.
    #[error("patch '{patch}' is {life}: disable it, then unload it")]
    StillInUse {
        /// The patch.
        patch: String,
        /// What it is.
        life: Life,
    },
    /// Its code may still be running somewhere.
    #[error(
        "patch '{patch}' cannot be unloaded: a transition was forced while threads could be in its code, so its memory stays for ever"
    )]
    Forced {
        /// The patch.
        patch: String,
    },
    /// There is no transition.
    #[error("no patch is in transition")]
    NoTransition,
    /// Another patch is in transition, not the one named.
    #[error("patch '{patch}' is not in transition, '{other}' is: name that one")]
    OtherTransition {
        /// The one named.
        patch: String,
        /// The one in transition.
        other: String,
    },
    /// The transition has not started yet.
    #[error(
        "the {direction} transition of patch '{patch}' has not started, so no thread can be moved: start or cancel it"
    )]
    NotStarted {
        /// The patch in transition.
        patch: String,
        /// Which way.
        direction: Direction,
    },
    /// The transition has started already.
    #[error("the {direction} transition of patch '{patch}' has already started")]
    AlreadyStarted {
        /// The patch in transition.
        patch: String,
        /// Which way.
        direction: Direction,
    },
}

impl Refusal {
    /// The kernel's number for it. Note that the kernel answers what is already so with `EINVAL`.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoSuchPatch(_) | Self::NeedsLoaded { .. } => Errno::ENOENT,
            Self::NameTaken { .. } => Errno::EEXIST,
            Self::BadDescription { reason, .. } => reason.errno(),
            Self::Busy { .. }
            | Self::WouldReverse { .. }
            | Self::CallbackRunning { .. }
            | Self::NeedsEnabled { .. }
            | Self::NeededBy { .. }
            | Self::StillInUse { .. }
            | Self::Forced { .. } => Errno::EBUSY,
            Self::Corrupt(_)
            | Self::AlreadySo(_)
            | Self::NoCallback
            | Self::Replaced { .. }
            | Self::Incompatible { .. }
            | Self::NoTransition
            | Self::OtherTransition { .. }
            | Self::NotStarted { .. }
            | Self::AlreadyStarted { .. } => Errno::EINVAL,
        }
    }

    /// Whether what was asked for is already so.
    pub fn is_already_so(&self) -> bool {
        matches!(self, Self::AlreadySo(_))
    }

    /// What the kernel writes to its log on such a refusal; on most it writes nothing.
    pub fn log_line(&self) -> Option<(Level, String)> {
        match self {
            Self::Incompatible { patch, .. } => Some(log::incompatible(patch)),
            _ => None,
        }
    }
}

fn name_taken_way_out(life: Life, forced: bool) -> &'static str {
    match (life, forced) {
        (_, true) => {
            "its memory stays for ever because a transition was forced, so load this one under another name"
        }
        (Life::Disabled, _) => "enable it, or unload it first",
        (Life::Replaced, _) => "unload it first, then load it anew",
        _ => "disable and unload it first, or load this one under another name",
    }
}

fn sharing(func: &Option<FuncId>) -> String {
    match func {
        Some(func) => alloc::format!(" (both change the function {func})"),
        None => String::from(" (its metadata say so)"),
    }
}

fn state_text(id: u64, installed: u32, version: Option<u32>) -> String {
    match version {
        Some(version) => alloc::format!(
            "knows state {id} in version {version}, installed is version {installed}; use a patch that knows version {installed}"
        ),
        None => alloc::format!(
            "would replace the owner of state {id} (version {installed}) without knowing that state; use a patch that knows it"
        ),
    }
}
