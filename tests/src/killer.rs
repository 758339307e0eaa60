//! Running a program and killing it just before its N-th system call, or its N-th write into another process's memory; or having
//! something else happen at that instant.
//!
//! The program is traced and every entry into the kernel of any of its threads is counted. At the N-th it is sent
//! SIGKILL, which it takes instead of doing the call. So over all N every order of effects that an unlucky death can
//! leave behind is met.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::isolate::kill;
use crate::proc::Pid;

/// Which system calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// All.
    All,
    /// Writes at an offset, by which `/proc/PID/mem` is written: there are some dozens in a command of many thousand calls.
    Writes,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was killed before the call that was asked for.
    Killed,
    /// It exited by itself after fewer calls: `calls` of them, with `code`.
    Exited {
        /// System calls entered, of those that are counted, by all threads.
        calls: u64,
        /// Exit code; 128 + signal if a signal ended it.
        code: i32,
    },
}

/// Runs `command`, which is killed before its system call number `before` (from 1) of those that count.
pub fn run(command: Command, counted: Calls, before: u64) -> Result<End> {
    let mut killed = false;
    let end = run_until(command, counted, before, |pid| {
        killed = true;
        kill(pid, libc::SIGKILL);
    })?;
    Ok(if killed { End::Killed } else { end })
}

/// More system calls than any command makes: one that goes on for ever is not followed for ever.
const CALLS_MAX: u64 = 1_000_000;

/// Calls `round` with 1, and so many more each time, until it says that the command ended before so many calls. How many is what
/// `UGRAFT_KILL_EVERY` says, or `every`.
pub fn each_call(every: u64, mut round: impl FnMut(u64) -> Result<bool>) -> Result<()> {
    let every = match std::env::var("UGRAFT_KILL_EVERY") {
        Ok(value) => value.parse().ok().filter(|k| *k > 0).context("UGRAFT_KILL_EVERY is a number from 1")?,
        Err(_) => every,
    };
    let mut n = 1;
    while n < CALLS_MAX {
        if round(n)? {
            return Ok(());
        }
        n += every;
    }
    bail!("the command makes too many system calls")
}

/// Runs `command`, and calls `meanwhile` with its number before its system call number `before` of those that count, for which
/// all its threads wait that come to one. Returns how it exited.
pub fn run_until(
    mut command: Command,
    counted: Calls,
    before: u64,
    meanwhile: impl FnOnce(Pid),
) -> Result<End> {
    let mut meanwhile = Some(meanwhile);
    // SAFETY: ptrace TRACEME and raise are async-signal-safe; neither touches memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    };
    // The exec stops the child with SIGTRAP; spawn returns once it has happened.
    let child = command.spawn().context("cannot start the program")?;
    let pid = child.id() as Pid;
    match wait(pid)? {
        Some((_, status)) if libc::WIFSTOPPED(status) => {}
        _ => bail!("the program did not stop at its start"),
    }
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize)?;
    ptrace(libc::PTRACE_SYSCALL, pid, 0)?;
    let mut inside = BTreeSet::new();
    let mut calls = 0;
    loop {
        let Some((tid, status)) = wait(-1)? else { bail!("the program vanished") };
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            inside.remove(&tid);
            if tid != pid {
                continue;
            }
            let code = match libc::WIFEXITED(status) {
                true => libc::WEXITSTATUS(status),
                false => 128 + libc::WTERMSIG(status),
            };
            return Ok(End::Exited { calls, code });
        }
        let signal = match libc::WSTOPSIG(status) {
            s if s == libc::SIGTRAP | 0x80 => {
                // Stops alternate between the entry into a call and its end.
                if inside.insert(tid) {
                    calls += u64::from(counted == Calls::All || is_write(tid));
                    if calls == before
                        && let Some(meanwhile) = meanwhile.take()
                    {
                        meanwhile(pid);
                    }
                } else {
                    inside.remove(&tid);
                }
                0
            }
            // A clone event, or the first stop of a new thread.
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        // A thread that was just killed cannot be resumed, which is no error.
        let _ = ptrace(libc::PTRACE_SYSCALL, tid, signal as usize);
    }
}

/// Whether a thread that stopped at the entry into a system call is about to write at an offset.
fn is_write(tid: Pid) -> bool {
    // SAFETY: the structure is plain numbers, which may be 0.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than the structure, which outlives the call.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &mut regs) };
    got == 0 && [libc::SYS_pwrite64, libc::SYS_pwritev].contains(&regs.orig_rax.cast_signed())
}

fn wait(tid: Pid) -> Result<Option<(Pid, i32)>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::__WNOTHREAD) } {
            -1 => match std::io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINTR) => {}
                e if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
                e => return Err(e.into()),
            },
            tid => return Ok(Some((tid, status))),
        }
    }
}

fn ptrace(request: u32, tid: Pid, data: usize) -> Result<()> {
    // SAFETY: the requests used here take numbers only.
    if unsafe { libc::ptrace(request, tid, 0, data) } != 0 {
        bail!("ptrace: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_killed_before_each_of_its_calls() {
        let program = || {
            let mut c = Command::new("/bin/true");
            c.env_clear();
            c
        };
        let End::Exited { calls, code: 0 } = run(program(), Calls::All, u64::MAX).unwrap() else { panic!() };
        assert!(calls > 5, "{calls}");
        for n in 1..=calls {
            assert_eq!(run(program(), Calls::All, n).unwrap(), End::Killed, "call {n} of {calls}");
        }
    }

    #[test]
    fn a_program_is_killed_before_each_of_its_writes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = |before| {
            file.as_file().set_len(0).unwrap();
            let mut program = Command::new("python3");
            // The first one has no offset, and does not count.
            let script = "import os; f = os.open(os.sys.argv[1], os.O_RDWR); os.write(f, b'-'); \
                          [os.pwrite(f, b'x', n) for n in (1, 2, 3)]";
            program.args(["-c", script]).arg(file.path());
            (run(program, Calls::Writes, before).unwrap(), std::fs::read_to_string(file.path()).unwrap())
        };
        assert_eq!(written(u64::MAX), (End::Exited { calls: 3, code: 0 }, "-xxx".to_owned()));
        for (before, text) in [(1, "-"), (2, "-x"), (3, "-xx")] {
            assert_eq!(written(before), (End::Killed, text.to_owned()));
        }
    }
}
