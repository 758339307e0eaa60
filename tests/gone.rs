//! Has the target end, or become another program, before the N-th system call of `ugraft`, for every N of a load, a disable, an
//! unload, a check and a look.
//!
//! Whatever it was about to do then, it says that the target is gone (exit code 9), and nothing else; it is not kept waiting; and a
//! program that took the target's place is neither patched nor disturbed, unless the command found nothing but that one.
//!
//! `UGRAFT_KILL_EVERY=K` takes every K-th N only, from 1 on; `cargo xtask kill` takes them all. The everyday tests take a slice.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ugraft_tests::children::{self, Background, Finished};
use ugraft_tests::isolate::{self, Test, kill};
use ugraft_tests::killer::{self, Calls, End};
use ugraft_tests::pattern::Captures;
use ugraft_tests::proc::Pid;
use ugraft_tests::{compile, proc, program};

const LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Where nothing is asked for.
const EVERY: u64 = 97;
/// Exit codes of `ugraft`.
const DONE: i32 = 0;
const NOT_PATCHED: i32 = 3;
const NO_PROCESS: i32 = 4;
const GONE: i32 = 9;
/// How long the target is given to meet its fate. It cannot become another program while its threads are stopped.
const MEET_WITHIN: Duration = Duration::from_millis(20);

/// What becomes of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Killed,
    Another,
}

/// Commands before the one that is looked at, and that one.
struct Case {
    name: &'static str,
    before: &'static [&'static [&'static str]],
    command: &'static [&'static str],
}

const LOAD: &[&str] = &["load", "fix.o"];
const DISABLE: &[&str] = &["disable", "fix"];
const CASES: [Case; 6] = [
    Case { name: "load", before: &[], command: LOAD },
    Case { name: "disable", before: &[LOAD], command: DISABLE },
    Case { name: "unload", before: &[LOAD, DISABLE], command: &["unload", "fix"] },
    Case { name: "check", before: &[], command: &["check", "fix.o"] },
    Case { name: "status", before: &[LOAD], command: &["status"] },
    Case { name: "log", before: &[LOAD], command: &["log"] },
];

fn main() -> ExitCode {
    let missing = (!compile::is_installed("cc")).then(|| "cc".to_owned());
    let all = CASES.iter().flat_map(|case| [(case, Fate::Killed), (case, Fate::Another)]);
    let tests = all.map(|(case, fate)| Test {
        name: format!("{}-{}", case.name, if fate == Fate::Killed { "killed" } else { "another" }),
        missing: missing.clone(),
        limit: LIMIT,
        body: Box::new(move || run(case, fate)),
    });
    isolate::main("gone", tests.collect())
}

fn run(case: &Case, fate: Fate) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("ugraft-test.").tempdir()?;
    let world = World::build(temporary.path())?;
    let command = case.command.join(" ");
    killer::each_call(EVERY, |n| {
        let context = || format!("`{command}`, {fate:?} before its system call {n}");
        world.round(case, fate, n).with_context(context)
    })
}

struct World {
    directory: PathBuf,
    program: PathBuf,
}

impl World {
    fn build(directory: &Path) -> Result<World> {
        compile::build_in(directory, "gone", &[("fix.c", "-fPIC")])?;
        Ok(World { directory: directory.to_path_buf(), program: program::find()? })
    }

    /// One target and its fate. Returns whether the command ended before that.
    fn round(&self, case: &Case, fate: Fate, n: u64) -> Result<bool> {
        let mut target = Background::start(children::shell("exec ./target", &self.directory, []))?;
        target.expect("ready", &mut Captures::new())?;
        for command in case.before {
            let done = self.run(command, &target)?;
            ensure!(done.code == DONE, "`{}` failed: {}", command.join(" "), done.told());
        }
        let mut command = self.ugraft(case.command, &target);
        let output = self.directory.join("output");
        let file = std::fs::File::create(&output)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let pid = target.pid();
        let mut met = false;
        // On a thread of its own, whose child the target is not: it waits for any.
        let end = std::thread::scope(|scope| {
            let play = || {
                killer::run_until(command, Calls::All, n, |_| {
                    meet(fate, pid);
                    met = true;
                })
            };
            scope.spawn(play).join()
        });
        let Ok(end) = end else { bail!("the thread that traces panicked") };
        let End::Exited { code, .. } = end? else { bail!("nobody killed it") };
        let said = std::fs::read_to_string(&output)?;
        match (met, fate) {
            (false, _) => ensure!(code == DONE, "left alone it ended with {code}: {said}"),
            (true, Fate::Killed) => {
                // It was done, or had not begun, or noticed.
                let expected = [DONE, NO_PROCESS, GONE].contains(&code);
                ensure!(expected, "it ended with {code}: {said}");
                ensure!(target.wait()?.0 == 128 + libc::SIGKILL, "the target did not die of its fate");
            }
            (true, Fate::Another) => self.another(case, &mut target, code, &said)?,
        }
        Ok(!met)
    }

    /// The program that took the target's place goes on, and has no patch unless the command met nothing but this program.
    fn another(&self, case: &Case, target: &mut Background, code: i32, said: &str) -> Result<()> {
        target.expect("again", &mut Captures::new())?;
        let expected = match code {
            DONE | GONE => true,
            // It looked for a patch in the new program.
            NOT_PATCHED => !case.before.is_empty(),
            _ => false,
        };
        ensure!(expected, "it ended with {code}: {said}");
        target.check_let_go()?;
        let patched = !proc::ugraft_maps(target.pid())?.is_empty();
        ensure!(
            !patched || case.command == LOAD && code == DONE,
            "the new program was changed, and the tool ended with {code}: {said}"
        );
        target.say("work")?;
        let version = if patched { "works, version 1" } else { "works, version 0" };
        target.expect(version, &mut Captures::new())?;
        let status = self.run(&["status"], target)?;
        ensure!(status.code == if patched { DONE } else { NOT_PATCHED }, "status: {}", status.told());
        target.check_let_go()
    }

    fn ugraft(&self, args: &[&str], target: &Background) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--pid").arg(target.pid().to_string()).current_dir(&self.directory);
        if matches!(args[0], "load" | "disable" | "unload") {
            // A busy machine makes a transition slow, which is not what is looked at here.
            command.args(["--timeout", "60s"]);
        }
        command
    }

    fn run(&self, args: &[&str], target: &Background) -> Result<Finished> {
        children::run(self.ugraft(args, target))
    }
}

/// Has the process meet its fate, which it cannot escape, and waits a moment for it.
fn meet(fate: Fate, pid: Pid) {
    match fate {
        Fate::Killed => {
            kill(pid, libc::SIGKILL);
            // Its memory goes a moment later.
            until(MEET_WITHIN, || proc::state(pid, pid).is_ok_and(|state| state == 'Z'));
        }
        Fate::Another => {
            kill(pid, libc::SIGUSR1);
            until(MEET_WITHIN, || is_another(pid));
        }
    }
}

fn is_another(pid: Pid) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"again\0"))
}

fn until(within: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !is_so() && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(200));
    }
}
