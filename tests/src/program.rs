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
    let (targets, profile) = target_directory()?;
    build(&targets, &profile, &[])
}

/// A program of a later version of what lies in targets, `ugraft-next`: `$UGRAFT_NEXT_BIN`, or the workspace's own, built with the
/// feature `next-version` in a target directory of its own.
pub fn find_next() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UGRAFT_NEXT_BIN") {
        return Ok(PathBuf::from(path));
    }
    let (targets, profile) = target_directory()?;
    let built = build(&targets.join("next-version"), &profile, &["--features", "next-version"])?;
    let named = built.with_file_name("ugraft-next");
    // Others may be about to do the same, and to run it.
    let fresh = built.with_file_name(format!("ugraft-next.{}", std::process::id()));
    std::fs::copy(&built, &fresh)
        .and_then(|_| std::fs::rename(&fresh, &named))
        .context("cannot copy ugraft")?;
    Ok(named)
}

/// The target directory of the running test program, and its profile.
fn target_directory() -> Result<(PathBuf, String)> {
    // target/PROFILE/deps/scenarios-HASH
    let test = std::env::current_exe().context("cannot find the running test program")?;
    let profile = test.ancestors().nth(2).context("the test program lies in no profile directory")?;
    let targets = profile.parent().context("the test program lies in no target directory")?;
    let name = profile.file_name().and_then(|name| name.to_str());
    Ok((targets.to_owned(), name.context("a profile has a name")?.to_owned()))
}

fn build(targets: &Path, profile: &str, args: &[&str]) -> Result<PathBuf> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "ugraft", "--bin", "ugraft"]).args(args);
    build.current_dir(super::repository()).env("CARGO_TARGET_DIR", targets);
    if profile != "debug" {
        build.args(["--profile", profile]);
    }
    let status = build.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo could not build ugraft ({status})");
    }
    Ok(targets.join(profile).join("ugraft"))
}

/// Puts the program's directory first on this process's search path, for all commands that follow, and returns the
/// new value for `PATH`.
pub fn search_path(program: &Path) -> std::ffi::OsString {
    let mut path = program.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    path
}
