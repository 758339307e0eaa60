//! Runs the workspace's test programs side by side, as many as there are processors.
//!
//! `cargo test` runs one after the other, and most of ours wait for a target more than they compute. What a test program
//! prints is shown whole when it ends.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The test programs that take longest; they are begun first, so that no processor waits for one of them in the end.
const LONGEST_FIRST: &[&str] = &[
    "bad_input",
    "model",
    "kill",
    "gone",
    "torture",
    "scenarios",
    "servers",
    "stacks_truth",
    "killed_tool",
    "survey",
];

/// A test program that cargo built.
struct Suite {
    /// Package and target, as in `ugraft-process/entries`.
    name: String,
    target: String,
    program: PathBuf,
    /// Where cargo would run it: the root of its package.
    directory: PathBuf,
}

/// What cargo says of something it built (`cargo build --message-format=json`); of the other messages only the reason.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds and runs the tests. `args` go to `cargo test`, and those behind a `--` to the test programs.
pub fn run(args: &[String]) -> Result<()> {
    let split = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (for_cargo, for_programs) = (&args[..split], args.get(split + 1..).unwrap_or_default());
    let mut environment = Vec::new();
    if args.is_empty() {
        // First, since the other takes the same name in the target directory.
        environment.push(("UGRAFT_NEXT_BIN", build_next()?));
    }
    let (mut suites, ugraft) = build(for_cargo)?;
    environment.extend(ugraft.map(|ugraft| ("UGRAFT_BIN", ugraft)));
    let rank =
        |suite: &Suite| LONGEST_FIRST.iter().position(|name| *name == suite.target).unwrap_or(usize::MAX);
    suites.sort_by_key(rank);

    let count = suites.len();
    let begun = Instant::now();
    let queue = Mutex::new(VecDeque::from(suites));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(suite) = next(&queue) {
                    if let Err(e) = run_suite(&suite, for_programs, &environment) {
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(format!("{}: {e:#}", suite.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{} of {count} test programs failed:\n  {}", failed.len(), failed.join("\n  "));
    }
    println!("xtask: {count} test programs passed in {} s", begun.elapsed().as_secs());
    Ok(())
}

fn next(queue: &Mutex<VecDeque<Suite>>) -> Option<Suite> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Has cargo build a program of a later version of what lies in targets, `ugraft-next`, which the tests set against this one.
fn build_next() -> Result<PathBuf> {
    // As the tests are built, or the packages that both need would be built twice. Cargo builds the program for the test of its package.
    let words = ["--workspace", "--features", "ugraft/next-version", "--test", "json"];
    let (_, built) = build(&words.map(str::to_owned))?;
    let built = built.context("cargo did not say where it put ugraft")?;
    let next = built.with_file_name("ugraft-next");
    std::fs::copy(&built, &next).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(next)
}

/// Has cargo build test programs, all if `args` do not choose; the second is the `ugraft` that they are to test, if it was built with them.
fn build(args: &[String]) -> Result<(Vec<Suite>, Option<PathBuf>)> {
    let mut command = super::cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(args);
    if args.is_empty() {
        command.arg("--workspace");
    }
    eprintln!("xtask: {command:?}");
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    let mut suites = Vec::new();
    let mut ugraft = None;
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'{')) {
        let message: Message = serde_json::from_slice(line).context("cannot read what cargo says")?;
        let Message {
            manifest_path: Some(manifest), target: Some(target), executable: Some(program), ..
        } = message
        else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        if message.profile.is_some_and(|profile| profile.test) {
            let directory = manifest.parent().context("a manifest lies in no directory")?.to_owned();
            let package = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = format!("{package}/{}", target.name);
            suites.push(Suite { name, target: target.name, program, directory });
        } else if target.kind == ["bin"] && target.name == "ugraft" {
            ugraft = Some(program);
        }
    }
    Ok((suites, ugraft))
}

fn run_suite(suite: &Suite, args: &[String], environment: &[(&str, PathBuf)]) -> Result<()> {
    let mut printed = tempfile::tempfile().context("cannot make a file for what a test prints")?;
    let share = |file: &File| file.try_clone().context("cannot share the file for what a test prints");
    let begun = Instant::now();
    let mut command = Command::new(&suite.program);
    command.args(args).current_dir(&suite.directory).env("CARGO_MANIFEST_DIR", &suite.directory);
    command.stdin(Stdio::null()).stdout(share(&printed)?).stderr(share(&printed)?);
    command.envs(environment.iter().cloned());
    let status = command.status().with_context(|| format!("cannot run {}", suite.program.display()))?;
    let mut text = Vec::new();
    printed
        .rewind()
        .and_then(|()| printed.read_to_end(&mut text))
        .context("cannot read what a test printed")?;
    let mut out = std::io::stdout().lock();
    let seconds = begun.elapsed().as_secs();
    let written =
        writeln!(out, "\nxtask: {}: {status}, {seconds} s", suite.name).and_then(|()| out.write_all(&text));
    written.context("cannot write to the standard output")?;
    if status.success() { Ok(()) } else { bail!("{status}") }
}
