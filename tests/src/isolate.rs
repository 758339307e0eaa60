//! One process per test, which owns all that the test starts.
//!
//! A test's targets fork, are killed, stopped and traced; whatever it does, nothing may be left. So each test runs in
//! a process of its own (this program again, with `--only-in-child`), which is the subreaper of all below it, and
//! dies with the process that runs the tests. When it ends, or does not end in time, all its descendants are killed
//! and reaped; descendants left by a test that says it is done are a failure of the test.

#![allow(unsafe_code)]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::proc::{self, Pid};

/// A test: its name and what it does.
pub struct Test {
    /// Name as the test runner shows it.
    pub name: String,
    /// What is missing on this machine to run it, if anything.
    pub missing: Option<String>,
    /// How long it may take before it is given up.
    pub limit: Duration,
    /// The test itself, run in its own process.
    pub body: Box<dyn FnOnce() -> Result<()> + Send>,
}

const CHILD: &str = "--only-in-child";

/// Runs the tests of a test program, or, as its child, the one test that was asked for. `target` is the test program's
/// name, for the replay line.
pub fn main(target: &'static str, tests: Vec<Test>) -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(CHILD) {
        let name = args.next().unwrap_or_default();
        return child(tests, &name);
    }
    let arguments = Arguments::from_args();
    become_subreaper();
    let trials = tests
        .into_iter()
        .map(|test| {
            let Test { name, missing, limit, .. } = test;
            let kind = missing.map(|what| format!("needs {what}")).unwrap_or_default();
            let ignored = !kind.is_empty();
            let trial_name = name.clone();
            Trial::test(trial_name, move || parent(target, &name, limit))
                .with_kind(kind)
                .with_ignored_flag(ignored)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    conclusion.exit_code()
}

/// Runs one test in a child process and turns its end into the test's result.
fn parent(target: &str, name: &str, limit: Duration) -> Result<(), Failed> {
    let exe = std::env::current_exe().map_err(|e| Failed::from(format!("no program to run: {e}")))?;
    let mut command = Command::new(exe);
    command.args([CHILD, name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child =
        command.process_group(0).spawn().map_err(|e| Failed::from(format!("cannot start: {e}")))?;
    let pid = child.id() as Pid;
    let mut stderr = child.stderr.take();
    // Read to the end on a thread: what the test says may be long, and a left-over process may hold the pipe open.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let started = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if started.elapsed() > limit => break None,
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if ended.is_none() {
        kill_tree(pid);
        let _ = child.wait();
    }
    let said = reader.join().unwrap_or_default();
    let replay = format!("replay: cargo test -p ugraft-tests --test {target} -- --exact {name}");
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) if status.code() == Some(1) => Err(format!("{said}{replay}").into()),
        Some(status) => Err(format!("{said}the test's process ended with {status}\n{replay}").into()),
        None => Err(format!("{said}given up after {} s\n{replay}", limit.as_secs()).into()),
    }
}

/// The child's side: the test, then the proof that nothing is left of it.
fn child(tests: Vec<Test>, name: &str) -> ExitCode {
    become_subreaper();
    die_with_parent();
    let Some(test) = tests.into_iter().find(|test| test.name == name) else {
        eprintln!("there is no test {name}");
        return ExitCode::from(2);
    };
    let mut result = (test.body)();
    let left = settle();
    if !left.is_empty() && result.is_ok() {
        result = Err(anyhow::anyhow!("processes are left over: {}", left.join(", ")));
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(1)
        }
    }
}

/// Does `what` in this process, and fails if processes are left of it.
pub fn alone<T>(what: impl FnOnce() -> Result<T>) -> Result<T> {
    become_subreaper();
    let done = what();
    let left = settle();
    if !left.is_empty() && done.is_ok() {
        anyhow::bail!("processes are left over: {}", left.join(", "));
    }
    done
}

/// Ends every descendant of this process, reaps it, and names those that were still alive.
fn settle() -> Vec<String> {
    let me = std::process::id() as Pid;
    let mut left = Vec::new();
    loop {
        reap();
        let below = proc::descendants(me);
        if below.is_empty() {
            return left;
        }
        for pid in below {
            if let Ok(state) = proc::state(pid, pid)
                && !matches!(state, 'Z' | 'X')
            {
                let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                left.push(format!("{} ({pid}, state {state})", command.trim_end()));
                kill(pid, libc::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a process and everything below it.
fn kill_tree(pid: Pid) {
    // The children of a process that is gone belong to this one, so ask before it is killed.
    for below in proc::descendants(pid) {
        kill(below, libc::SIGKILL);
    }
    kill(pid, libc::SIGKILL);
}

/// Sends a signal to a process or thread group.
pub fn kill(pid: Pid, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

fn reap() {
    // SAFETY: a null status pointer is allowed; waitpid touches no other memory.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn become_subreaper() {
    // SAFETY: prctl with these arguments takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

fn die_with_parent() {
    // SAFETY: prctl with these arguments takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// Whether control groups of version 2 are mounted, and new ones can be made.
pub fn has_cgroups() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let root = mounts.lines().map(|line| line.split(' ')).find_map(|mut words| {
        let (at, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| at.to_owned())
    });
    root.is_some_and(|root| {
        let group = format!("{root}/ugraft-tests-{}", std::process::id());
        std::fs::create_dir(&group).and_then(|()| std::fs::remove_dir(&group)).is_ok()
    })
}

/// Whether this process may do what only the superuser may.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
