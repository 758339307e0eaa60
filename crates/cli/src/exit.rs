//! Exit codes, and the kind of failure that each stands for.

use serde_json::{Value, json};
use std::path::PathBuf;
use ugraft_core::Refusal;
use ugraft_image::Error as FileError;
use ugraft_process::Error;
use ugraft_process::target::Unfit;

/// Failed; the target is unchanged.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// The target is not patched.
pub const NOT_PATCHED: u8 = 3;
/// No such patch, or no such process.
pub const NOT_FOUND: u8 = 4;
/// The transition was not completed in time.
pub const IN_TRANSITION: u8 = 5;
/// Refused as unsafe.
pub const UNSAFE: u8 = 6;
/// Permission denied.
pub const PERMISSION: u8 = 7;
/// Bad patch file.
pub const BAD_FILE: u8 = 8;
/// The target died or became another program.
pub const GONE: u8 = 9;
/// A callback crashed or did not return.
pub const CALLBACK: u8 = 10;
/// Another tool, or another transition, is at work (EX_TEMPFAIL of sysexits.h).
pub const BUSY: u8 = 75;

/// A patch file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", .path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// A failure as it is shown.
#[derive(Debug)]
pub struct Failure {
    /// One word for programs.
    pub kind: &'static str,
    /// The exit code.
    pub code: u8,
    /// What programs may want to know besides; null where nothing is.
    pub details: Value,
}

impl Failure {
    /// A command line that is not of this program; the whole of what is to be said of it.
    pub fn of_usage(text: &str) -> Self {
        Self { kind: "usage", code: USAGE, details: json!({ "text": text.trim_end() }) }
    }

    /// What an error means to whoever called the program.
    pub fn of(error: &anyhow::Error) -> Self {
        if let Some(e) = error.downcast_ref::<Error>() {
            return Self::of_process(e);
        }
        if matches!(error.downcast_ref(), Some(FileError::Param { .. })) {
            return Self::plain("bad_parameter", USAGE);
        }
        if error.downcast_ref::<FileError>().is_some() || error.downcast_ref::<Unreadable>().is_some() {
            return Self::plain("bad_patch_file", BAD_FILE);
        }
        Self::plain("failed", FAILED)
    }

    fn plain(kind: &'static str, code: u8) -> Self {
        Self { kind, code, details: Value::Null }
    }

    fn of_process(error: &Error) -> Self {
        match error {
            Error::NoSuchProcess(_) => Self::plain("no_such_process", NOT_FOUND),
            // There is nothing left of it but its exit status.
            Error::Unfit { why: Unfit::Zombie, .. } => Self::plain("no_such_process", NOT_FOUND),
            Error::TargetGone(_) => Self::plain("target_gone", GONE),
            Error::Permission(..) => Self::plain("permission", PERMISSION),
            Error::AlreadyTraced { .. } => Self::plain("already_traced", UNSAFE),
            Error::Busy { .. } => Self::plain("busy", BUSY),
            Error::NotPatched(_) => Self::plain("not_patched", NOT_PATCHED),
            Error::InTransition { blocked, .. } => {
                Self { details: json!({ "blocked": blocked }), ..Self::plain("in_transition", IN_TRANSITION) }
            }
            Error::TimedOut { blocked, .. } => {
                Self { details: json!({ "blocked": blocked }), ..Self::plain("timed_out", IN_TRANSITION) }
            }
            Error::Refused(refusal) => Self::of_refusal(refusal),
            Error::Link(FileError::Param { .. }) => Self::plain("bad_parameter", USAGE),
            Error::Link(_) => Self::plain("link", UNSAFE),
            Error::LaterVersion { .. } => Self::plain("later_version", UNSAFE),
            Error::Unfit { .. }
            | Error::SharedMemory { .. }
            | Error::CannotRun { .. }
            | Error::Symbol(_)
            | Error::Entry { .. }
            | Error::Thunk { .. }
            | Error::Disturbed { .. } => Self::plain("unsafe", UNSAFE),
            Error::CannotStop { .. } => Self::plain("cannot_stop", FAILED),
            Error::NoParam { .. } => Self::plain("no_such_parameter", NOT_FOUND),
            Error::CallbackRefused { .. } => Self::plain("callback_refused", FAILED),
            Error::CallbackFailed { .. } => Self::plain("callback_failed", CALLBACK),
            Error::CallbackRuns { .. } => Self::plain("in_transition", IN_TRANSITION),
            Error::NoSafePoint { .. } => Self::plain("no_safe_point", UNSAFE),
            _ => Self::plain("failed", FAILED),
        }
    }

    fn of_refusal(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::NoSuchPatch(_) => Self::plain("no_such_patch", NOT_FOUND),
            Refusal::Busy { .. } | Refusal::WouldReverse { .. } | Refusal::CallbackRunning { .. } => {
                Self::plain("busy", BUSY)
            }
            Refusal::BadDescription { .. } => Self::plain("bad_patch_file", BAD_FILE),
            Refusal::NeedsEnabled { .. } | Refusal::NeededBy { .. } | Refusal::NeedsLoaded { .. } => {
                Self::plain("order", UNSAFE)
            }
            Refusal::Incompatible { .. } => Self::plain("incompatible", UNSAFE),
            _ => Self::plain("refused", FAILED),
        }
    }
}
