//! The messages of the target's log, word for word those of the kernel's livepatch: people grep for them.
//!
//! The main executable is called `vmlinux` here, as it is in the lines that people grep for.

use alloc::format;
use alloc::string::String;

use crate::event::{Effect, Level};
use crate::refusal::Errno;
use crate::state::Direction;

/// What the main executable is called in the log.
pub const MAIN_OBJECT: &str = "vmlinux";

fn line(level: Level, text: String) -> Effect {
    Effect::Log(level, format!("livepatch: {text}"))
}

fn object_name(object: &Option<String>) -> &str {
    object.as_deref().unwrap_or(MAIN_OBJECT)
}

pub(crate) fn enabling(patch: &str) -> Effect {
    line(Level::Notice, format!("enabling patch '{patch}'"))
}

pub(crate) fn initializing(patch: &str, direction: Direction) -> Effect {
    line(Level::Debug, format!("'{patch}': initializing {direction} transition"))
}

pub(crate) fn starting(patch: &str, direction: Direction) -> Effect {
    line(Level::Notice, format!("'{patch}': starting {direction} transition"))
}

pub(crate) fn completing(patch: &str, direction: Direction) -> Effect {
    line(Level::Debug, format!("'{patch}': completing {direction} transition"))
}

pub(crate) fn complete(patch: &str, direction: Direction) -> Effect {
    line(Level::Notice, format!("'{patch}': {direction} complete"))
}

pub(crate) fn canceling(patch: &str) -> Effect {
    line(Level::Debug, format!("'{patch}': canceling patching transition, going to unpatch"))
}

pub(crate) fn reversing(patch: &str, from: Direction) -> Effect {
    let to = from.opposite();
    line(Level::Debug, format!("'{patch}': reversing transition from {from} to {to}"))
}

pub(crate) fn forcing() -> Effect {
    line(Level::Warning, String::from("forcing remaining tasks to the patched state"))
}

pub(crate) fn signaling() -> Effect {
    line(Level::Notice, String::from("signaling remaining tasks"))
}

pub(crate) fn pre_patch_failed(object: &Option<String>) -> Effect {
    line(Level::Warning, format!("pre-patch callback failed for object '{}'", object_name(object)))
}

pub(crate) fn patch_object_failed(object: &Option<String>) -> Effect {
    line(Level::Warning, format!("failed to patch object '{}'", object_name(object)))
}

pub(crate) fn enable_failed(patch: &str) -> Effect {
    line(Level::Warning, format!("failed to enable patch '{patch}'"))
}

pub(crate) fn applying(patch: &str, object: &str) -> Effect {
    line(Level::Notice, format!("applying patch '{patch}' to loading module '{object}'"))
}

pub(crate) fn reverting(patch: &str, object: &str) -> Effect {
    line(Level::Notice, format!("reverting patch '{patch}' on unloading module '{object}'"))
}

pub(crate) fn initialize_failed(patch: &str, object: &str, errno: Errno) -> Effect {
    let value = errno.returned();
    line(Level::Warning, format!("failed to initialize patch '{patch}' for module '{object}' ({value})"))
}

pub(crate) fn apply_failed(patch: &str, object: &str, errno: Errno) -> Effect {
    let value = errno.returned();
    line(Level::Warning, format!("failed to apply patch '{patch}' to module '{object}' ({value})"))
}

pub(crate) fn refusing(patch: &str, object: &str) -> Effect {
    let text = format!("patch '{patch}' failed for module '{object}', refusing to load module '{object}'");
    line(Level::Warning, text)
}

pub(crate) fn incompatible(patch: &str) -> (Level, String) {
    let text = format!(
        "livepatch: Livepatch patch ({patch}) is not compatible with the already installed livepatches."
    );
    (Level::Error, text)
}
