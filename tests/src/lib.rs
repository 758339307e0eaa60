//! The harness of the end-to-end tests.
//!
//! A scenario is one annotated source file: programs, libraries and patches as sections of it, the commands an
//! engineer would type, and what must come back. `scenarios/README.md` describes the notation. This crate reads
//! such files ([`scenario`]), compiles their sections ([`compile`]), plays them against real processes ([`play`])
//! and leaves nothing behind ([`isolate`], [`children`]).
//!
//! More test programs use the same parts: one hands wrong files and wrong calls to `ugraft`, one kills it before each of
//! its system calls ([`killer`]), one patches at random ([`torture`]), one patches servers under load ([`servers`]).

#![deny(unsafe_code)]

pub mod children;
pub mod compile;
pub mod isolate;
pub mod killer;
pub mod pattern;
pub mod play;
pub mod proc;
pub mod program;
pub mod scenario;
pub mod servers;
pub mod snapshot;
pub mod torture;
pub mod update;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait for one thing to happen. It is no measure of speed: it only bounds a test that would hang.
/// `UGRAFT_TEST_DEADLINE` (seconds) overrides it, for very slow machines.
pub fn deadline() -> Duration {
    let seconds = std::env::var("UGRAFT_TEST_DEADLINE").ok().and_then(|v| v.parse().ok()).unwrap_or(60);
    Duration::from_secs(seconds)
}

/// The directory of this crate: scenarios and the support header live below it.
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    tests_dir().parent().unwrap_or(Path::new("/")).to_path_buf()
}
