//! Are the tests able to fail? Each seeded fault of `crates/process/src/canary.rs` is switched on in turn, and the test that is to
//! catch it must fail, for the right reason; and pass without any.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

/// A fault, and what finds it.
struct Canary {
    name: &'static str,
    found_by: Test,
    /// One of these must be in what the failing test says.
    says: &'static [&'static str],
}

/// A test that runs the program, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Test {
    /// So many threads of a variant of the torture.
    Torture(&'static str, u32),
    /// A scenario.
    Scenario(&'static str),
    /// A command killed before each of its calls that the case is about.
    Kill(&'static str),
}

/// What a call says that met a mix, or a version out of its time.
const MIXED: &[&str] = &["met a mix", "met a version"];
/// What the commands and the driver say of a target that is not there any more.
const DIED: &[&str] = &["has exited", "has ended"];
/// How long the torture is given for each, in seconds.
const TORTURE_SECONDS: u32 = 150;

const CANARIES: &[Canary] = &[
    Canary { name: "skip-a-thread", found_by: Test::Torture("plain", 4), says: MIXED },
    Canary {
        name: "one-stack-only",
        found_by: Test::Scenario("alternate-stack-below"),
        says: &["alternate-stack-below.c"],
    },
    Canary { name: "off-by-a-frame", found_by: Test::Scenario("stuck-thread"), says: &["stuck-thread.c"] },
    Canary {
        name: "forget-a-function",
        found_by: Test::Scenario("alternate-stack"),
        says: &["alternate-stack.c"],
    },
    Canary { name: "forget-the-stubs", found_by: Test::Scenario("held-between"), says: &["held-between.c"] },
    Canary {
        name: "who-enters-is-outside",
        found_by: Test::Scenario("held-between"),
        says: &["held-between.c"],
    },
    Canary { name: "overlook-the-newborn", found_by: Test::Torture("threads", 4), says: MIXED },
    Canary { name: "begin-before-entries", found_by: Test::Kill("load-writes"), says: &["complaint: outer"] },
    Canary { name: "settle-early", found_by: Test::Torture("plain", 4), says: MIXED },
    Canary { name: "strike-without-proof", found_by: Test::Torture("plain", 4), says: MIXED },
    Canary { name: "strike-the-dead", found_by: Test::Torture("threads", 4), says: MIXED },
    Canary {
        name: "strike-the-late",
        found_by: Test::Scenario("late-in-the-stub/word-read"),
        says: &["late-in-the-stub.c"],
    },
    Canary { name: "reverse-moves-threads", found_by: Test::Torture("plain", 4), says: MIXED },
    Canary { name: "reverse-asks-for-the-wrong-side", found_by: Test::Torture("plain", 4), says: MIXED },
    Canary { name: "give-back-at-once", found_by: Test::Torture("calls", 3), says: DIED },
    Canary {
        name: "restore-too-little",
        found_by: Test::Torture("plain", 2),
        says: &["code is not what it was", DIED[0], DIED[1]],
    },
    Canary {
        name: "clobber-the-red-zone",
        found_by: Test::Scenario("red-zone-in-stubs"),
        says: &["red-zone-in-stubs.c"],
    },
    Canary {
        name: "ignore-the-changes",
        found_by: Test::Scenario("libraries-between-callbacks"),
        says: &["libraries-between-callbacks.c"],
    },
    Canary {
        name: "say-nothing-of-calls",
        found_by: Test::Scenario("libraries-between-callbacks"),
        says: &["libraries-between-callbacks.c"],
    },
    Canary {
        name: "show-interruptions",
        found_by: Test::Scenario("sleeping-threads"),
        says: &["sleeping-threads.c"],
    },
];

/// Builds the program with the faults in it, and runs the tests. `only`: this fault alone.
pub fn run(only: Option<&str>) -> Result<()> {
    let chosen: Vec<_> = CANARIES.iter().filter(|c| only.is_none_or(|name| name == c.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = CANARIES.iter().map(|c| c.name).collect();
        bail!("there is no such seeded fault; there are {}", names.join(", "));
    }
    // A directory of its own: the program with the faults must not be taken for the ordinary one.
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from).join("canaries");
    let mut build = super::cargo();
    build.args(["build", "--package", "ugraft", "--features", "canaries", "--target-dir"]).arg(&target);
    super::run(&mut build)?;
    let program = target.join("debug/ugraft").canonicalize().context("the program was not built")?;
    let mut missed = Vec::new();
    let mut proved: Vec<Test> = Vec::new();
    for canary in chosen {
        // The same test, the same program, no fault: else the failure says nothing.
        if !proved.contains(&canary.found_by) {
            let (output, seconds) = test(canary.found_by, &program, "", 10)?;
            if !output.status.success() {
                bail!("the test fails without a fault, too, after {seconds} s:\n{}", said(&output));
            }
            proved.push(canary.found_by);
        }
        let (output, seconds) = test(canary.found_by, &program, canary.name, TORTURE_SECONDS)?;
        let said = said(&output);
        let for_that = canary.says.iter().any(|word| said.contains(word));
        let name = canary.name;
        if output.status.success() {
            println!("{name}: MISSED, after {seconds} s");
            missed.push(name);
        } else if for_that {
            println!("{name}: caught in {seconds} s");
        } else {
            println!("{name}: MISSED: the test failed for another reason, after {seconds} s:\n{said}");
            missed.push(name);
        }
    }
    if !missed.is_empty() {
        bail!("seeded faults that the tests do not catch: {}", missed.join(", "));
    }
    Ok(())
}

fn test(test: Test, program: &Path, fault: &str, seconds: u32) -> Result<(Output, u64)> {
    let mut command = super::cargo();
    command.args(["test", "--package", "ugraft-tests", "--test"]);
    match test {
        Test::Torture(variant, threads) => {
            command.arg("torture").env("UGRAFT_TORTURE_SECONDS", seconds.to_string());
            command.env("UGRAFT_TORTURE_VARIANT", variant).env("UGRAFT_TORTURE_THREADS", threads.to_string())
        }
        Test::Scenario(name) => command.args(["scenarios", "--", "--exact", name]),
        Test::Kill(name) => command.args(["kill", "--", "--exact", name]).env("UGRAFT_KILL_EVERY", "1"),
    };
    command.env("UGRAFT_BIN", program).env("UGRAFT_CANARY", fault).stdin(Stdio::null());
    let begun = Instant::now();
    let output = output_of(&mut command)?;
    Ok((output, begun.elapsed().as_secs()))
}

fn output_of(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run {command:?}"))
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}
