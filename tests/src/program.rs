//! Finding the `ugraft` program that is under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The program to test: `$UGRAFT_BIN`, or the workspace's own, built if it is not up to date.
///
/// The binary of another package is not built by `cargo test -p ugraft-tests`, hence the build here. It has the
/// profile and the target directory of the running test.
pub fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UGRAFT_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("cannot find the running test program")?;
    // target/PROFILE/deps/scenarios-HASH
    let profile_dir =
        test.parent().and_then(Path::parent).context("the test program lies in no target directory")?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "ugraft", "--bin", "ugraft"]);
    build.current_dir(super::repository());
    match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") => {}
        Some(profile) => drop(build.args(["--profile", profile])),
        None => bail!("the test program lies in no profile directory"),
    }
    build.env("CARGO_TARGET_DIR", profile_dir.parent().unwrap_or(profile_dir));
    let status = build.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo could not build ugraft ({status})");
    }
    Ok(profile_dir.join("ugraft"))
}

/// Puts the program's directory first on this process's search path, for all commands that follow, and returns the
/// new value for `PATH`.
pub fn search_path(program: &Path) -> std::ffi::OsString {
    let mut path = program.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    path
}
