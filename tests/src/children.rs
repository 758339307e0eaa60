//! Processes that a scenario starts: their lines as they come, their standard input, and their certain end.

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::deadline;
use crate::isolate::kill;
use crate::pattern::{self, Captures};
use crate::proc::{self, Pid};

/// What a process has said, growing while it runs.
#[derive(Default)]
struct Lines {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// Streams that have not come to their end.
    open: u32,
    /// Whether the process has been seen to have ended.
    ended: bool,
    /// Open streams in which nothing was left after that: a descendant holds them.
    drained: u32,
}

type Shared = Arc<(Mutex<Lines>, Condvar)>;

/// A process in the background. Killed and reaped when dropped.
pub struct Background {
    pid: Pid,
    /// `None` for a process that somebody else started (a child of a target).
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    lines: Shared,
    readers: Vec<JoinHandle<()>>,
    /// How many lines of standard output `expect` has passed.
    passed: usize,
    ended: Option<i32>,
}

/// A shell command in its own process group, with the given variables.
pub fn shell<'a>(
    command: &str,
    directory: &std::path::Path,
    variables: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).current_dir(directory).process_group(0).envs(variables);
    // SAFETY: prctl is async-signal-safe and takes numbers only. Should the test's process be killed, so is this one.
    unsafe {
        shell.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            Ok(())
        })
    };
    shell
}

impl Background {
    /// Starts `command` with all three standard streams held.
    pub fn start(mut command: Command) -> Result<Background> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the process")?;
        let lines: Shared = Arc::default();
        lock(&lines).open = 2;
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let readers = vec![
            follow(stdout, lines.clone(), |lines| &mut lines.stdout),
            follow(stderr, lines.clone(), |lines| &mut lines.stderr),
        ];
        Ok(Background {
            pid: child.id() as Pid,
            stdin: child.stdin.take(),
            child: Some(child),
            lines,
            readers,
            passed: 0,
            ended: None,
        })
    }

    /// Takes an existing process as if it had been started here; what it says goes where it went before.
    pub fn adopt(pid: Pid) -> Background {
        Background {
            pid,
            child: None,
            stdin: None,
            lines: Arc::default(),
            readers: Vec::new(),
            passed: 0,
            ended: None,
        }
    }

    /// The process's number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Writes one line to the process.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the process's standard input is closed")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .context("the process does not read its standard input")
    }

    /// Closes the process's standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line of standard output that matches `pattern`, beyond those that earlier calls have passed.
    pub fn expect(&mut self, pattern: &str, captures: &mut Captures) -> Result<()> {
        let end = Instant::now() + deadline();
        let mut seen = Vec::new();
        let mut lines = lock(&self.lines);
        loop {
            while let Some(line) = lines.stdout.get(self.passed) {
                self.passed += 1;
                if pattern::line_matches(pattern, line, captures) {
                    return Ok(());
                }
                seen.push(line.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if lines.open == 0 || left.is_zero() {
                let why = if lines.open == 0 {
                    "the process closed its output"
                } else {
                    "nothing more came in time"
                };
                let stderr = lines.stderr.join("\n");
                drop(lines);
                let diff = pattern::diff("output", &[pattern.to_owned()], &seen);
                bail!("no line `{pattern}`: {why}\n{diff}standard error:\n{stderr}");
            }
            lines = self.lines.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Fails if a line said so far, on either stream, matches `pattern`.
    pub fn never(&self, pattern: &str) -> Result<()> {
        let lines = lock(&self.lines);
        match lines
            .stdout
            .iter()
            .chain(&lines.stderr)
            .find(|l| pattern::line_matches(pattern, l, &mut Captures::new()))
        {
            Some(line) => bail!("the process said `{line}`"),
            None => Ok(()),
        }
    }

    /// Waits for the end; returns the exit code (128 + signal for a killed process) and the lines of both streams
    /// that nobody has looked at.
    pub fn wait(&mut self) -> Result<(i32, Vec<String>, Vec<String>)> {
        self.stdin = None;
        let end = Instant::now() + deadline();
        while self.poll()?.is_none() {
            if Instant::now() > end {
                let lines = lock(&self.lines);
                bail!(
                    "process {} does not end; it said:\n{}\n{}",
                    self.pid,
                    lines.stdout.join("\n"),
                    lines.stderr.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // What it wrote is in the pipes; a descendant may hold them open for ever.
        let mut lines = lock(&self.lines);
        lines.ended = true;
        while lines.open > lines.drained {
            lines = self.lines.1.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        let passed = self.passed.min(lines.stdout.len());
        let stdout = lines.stdout.split_off(passed);
        let stderr = std::mem::take(&mut lines.stderr);
        Ok((self.ended.unwrap_or_default(), stdout, stderr))
    }

    /// The exit code, if the process has ended.
    pub fn poll(&mut self) -> Result<Option<i32>> {
        if self.ended.is_none() {
            self.ended = match &mut self.child {
                Some(child) => child.try_wait()?.map(code),
                // The end of a process that is not our child cannot be told in detail.
                None => (!matches!(proc::state(self.pid, self.pid), Ok(s) if s != 'Z')).then_some(0),
            };
        }
        Ok(self.ended)
    }

    /// Whether it runs, by its exit status only.
    pub fn is_running(&mut self) -> bool {
        matches!(self.poll(), Ok(None))
    }

    /// No thread is traced, and none stands in a tracer's stop.
    pub fn check_free(&self) -> Result<()> {
        for tid in proc::threads(self.pid) {
            // A thread may leave between the listing and the look at it.
            if let Ok(Some(tracer)) = proc::tracer(self.pid, tid) {
                let comm = std::fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
                bail!("thread {tid} of {} is traced by {tracer} ({})", self.pid, comm.trim_end());
            }
            if let Ok('t') = proc::state(self.pid, tid) {
                bail!("thread {tid} of {} is left in a tracer's stop", self.pid);
            }
        }
        Ok(())
    }

    /// The process runs: it has not ended, no thread is stopped or traced.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(code) = self.poll()? {
            let lines = lock(&self.lines);
            bail!("process {} has ended with {code}; standard error:\n{}", self.pid, lines.stderr.join("\n"));
        }
        self.check_free()?;
        for tid in proc::threads(self.pid) {
            if let Ok('T') = proc::state(self.pid, tid) {
                bail!("thread {tid} of {} is stopped", self.pid);
            }
        }
        Ok(())
    }

    /// The process runs, or does so soon: the kernel frees what a tracer held that has just ended, which takes it a moment.
    pub fn check_let_go(&mut self) -> Result<()> {
        let end = Instant::now() + deadline();
        loop {
            let result = self.check_alive();
            if result.is_ok() || Instant::now() > end || !self.is_running() {
                return result;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Every thread is stopped by job control and none is traced. A stop takes a moment to reach every thread, so
    /// this waits for it.
    pub fn check_stopped(&mut self) -> Result<()> {
        let end = Instant::now() + deadline();
        loop {
            self.check_free()?;
            let states: Vec<char> = proc::threads(self.pid)
                .into_iter()
                .filter_map(|tid| proc::state(self.pid, tid).ok())
                .collect();
            if !states.is_empty() && states.iter().all(|s| *s == 'T') {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("process {} is not stopped: its threads' states are {states:?}", self.pid);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A child's whole process group: what it started in turn is part of it, unless it made a group of its own.
        if self.child.is_some() && matches!(self.poll(), Ok(None)) {
            kill(-self.pid, libc::SIGKILL);
            kill(self.pid, libc::SIGKILL);
        } else if self.child.is_none() {
            kill(self.pid, libc::SIGKILL);
            // Its parent may be gone, and this process the one that has to reap it; else its parent does.
            let end = Instant::now() + deadline();
            while matches!(proc::state(self.pid, self.pid), Ok(state) if state != 'Z') && Instant::now() < end
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        if lock(&self.lines).open == 0 {
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
    }
}

/// What a finished command said and how it ended.
pub struct Finished {
    /// Exit code; 128 + signal for a killed one.
    pub code: i32,
    /// Lines of standard output.
    pub stdout: Vec<String>,
    /// Lines of standard error.
    pub stderr: Vec<String>,
}

impl Finished {
    /// All of it, for whoever has to find out what went wrong.
    pub fn told(&self) -> String {
        let lines: Vec<&str> = self.stdout.iter().chain(&self.stderr).map(String::as_str).collect();
        format!("exit code {}: {}", self.code, lines.join("\n"))
    }
}

/// Runs a command to its end, within the deadline.
pub fn run(command: Command) -> Result<Finished> {
    let mut background = Background::start(command)?;
    background.close();
    let (code, stdout, stderr) = background.wait()?;
    Ok(Finished { code, stdout, stderr })
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn lock(shared: &Shared) -> MutexGuard<'_, Lines> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn follow<R: Read + AsRawFd + Send + 'static>(
    mut stream: R,
    shared: Shared,
    pick: fn(&mut Lines) -> &mut Vec<String>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut line = Vec::new();
        let mut bytes = [0; 4096];
        let mut drained = false;
        loop {
            // Asked before the look at the stream: what the process wrote is there then.
            let ended = lock(&shared).ended;
            if !drained && !is_readable(stream.as_raw_fd()) {
                if ended {
                    drained = true;
                    lock(&shared).drained += 1;
                    shared.1.notify_all();
                }
                continue;
            }
            let Ok(len @ 1..) = stream.read(&mut bytes) else { break };
            line.extend_from_slice(&bytes[..len]);
            while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                let text = String::from_utf8_lossy(&line[..end]).into_owned();
                line.drain(..=end);
                pick(&mut lock(&shared)).push(text);
                shared.1.notify_all();
            }
        }
        let mut lines = lock(&shared);
        if !line.is_empty() {
            pick(&mut lines).push(String::from_utf8_lossy(&line).into_owned());
        }
        lines.open -= 1;
        lines.drained -= u32::from(drained);
        shared.1.notify_all();
    })
}

/// Whether there is something to read, or an end, or comes soon.
fn is_readable(fd: RawFd) -> bool {
    /// How often it is asked whether the process has ended, in milliseconds.
    const PAUSE: i32 = 5;
    let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one element, which outlives the call. A failure is met again by whoever reads.
    unsafe { libc::poll(&raw mut wanted, 1, PAUSE) != 0 }
}
