//! Runs every scenario of `scenarios/`, one test for each variant of each file.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ugraft_tests::isolate::{self, Test};
use ugraft_tests::scenario::Scenario;
use ugraft_tests::{compile, play, program, tests_dir};

/// The longest a whole scenario may take.
const LIMIT: Duration = Duration::from_secs(300);
/// What a scenario needs to use `ugraft-next`, a program of a later version.
const NEXT: &str = "ugraft-next";

fn main() -> ExitCode {
    match tests() {
        Ok(tests) => isolate::main("scenarios", tests),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tests() -> Result<Vec<Test>> {
    let directory = tests_dir().join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e != "md"))
        .collect();
    files.sort();
    // Children find the program where their parent has built it.
    let program = program::find()?;
    let path = Arc::new(program::search_path(&program));
    let mut tests = Vec::new();
    for file in files {
        let scenario = Arc::new(Scenario::read(&file)?);
        for variant in scenario.variants.clone() {
            let name = match variant.name.as_str() {
                "" => scenario.name(),
                variant => format!("{}/{variant}", scenario.name()),
            };
            let needed = scenario.needs.iter().chain(variant.env.get("NEEDS"));
            let missing =
                needed.flat_map(|n| n.split_whitespace()).find(|n| is_missing(n)).map(str::to_owned);
            let (scenario, path) = (scenario.clone(), path.clone());
            let body = Box::new(move || match scenario.needs.iter().any(|need| need == NEXT) {
                true => play::play(&scenario, &variant, &with_next(&path)?),
                false => play::play(&scenario, &variant, &path),
            });
            tests.push(Test { name, missing, limit: LIMIT, body });
        }
    }
    Ok(tests)
}

/// The search path with the program of a later version on it, behind the one that is tested.
fn with_next(path: &OsStr) -> Result<OsString> {
    let next = program::find_next()?;
    let directories = std::env::split_paths(path).chain(next.parent().map(Path::to_owned));
    std::env::join_paths(directories).context("a directory has a colon in its name")
}

fn is_missing(need: &str) -> bool {
    match need {
        "root" => !isolate::is_root(),
        // Built where it is needed.
        NEXT => false,
        "cgroup2" => !isolate::has_cgroups(),
        program => !compile::is_installed(program),
    }
}
