//! Commands given to all processes of a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Server;
use crate::deadline;
use crate::proc::Pid;

/// The time given to a transition.
const TIMEOUT: &str = "60s";
/// Exit codes of `ugraft`: nothing was done; the process has no patch at all; it has no such patch; it died meanwhile; another transition runs.
const REFUSED: i32 = 1;
const NOT_PATCHED: i32 = 3;
const NO_SUCH: i32 = 4;
const DIED: i32 = 9;
const BUSY: i32 = 75;
/// In the JSON of a failure that asks to try again later.
const CANNOT_STOP: &str = "\"kind\": \"cannot_stop\"";

/// The program, and where its patches lie.
#[derive(Debug)]
pub struct Tool {
    program: PathBuf,
    directory: PathBuf,
}

/// What a command cost one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From the begin to the end of the work.
    pub elapsed: Duration,
    /// The longest time that a thread was stopped at a stretch.
    pub pause: Duration,
    /// All stops of the process together.
    pub stopped: Duration,
    /// Stops of the process, and of single threads.
    pub stops: u64,
}

impl Tool {
    /// Commands by `program` with the patches of `directory`.
    pub fn new(program: &Path, directory: &Path) -> Self {
        Self { program: program.to_owned(), directory: directory.to_owned() }
    }

    /// Gives the command to all processes of the server: to the first one first, so that those which it starts meanwhile carry
    /// what it carries.
    pub fn all(&self, words: &[&str], server: &mut dyn Server) -> Result<Vec<Cost>> {
        let first = server.process().pid();
        let mut costs = vec![self.one(words, first)?.with_context(|| format!("process {first} is gone"))?];
        for pid in server.processes().into_iter().skip(1) {
            // One that had ended, or had been started without it.
            costs.extend(self.one(words, pid)?);
        }
        Ok(costs)
    }

    /// Gives the command to one process. `None`: the process is gone, or had no need of it, as it was born with what its parent had.
    fn one(&self, words: &[&str], pid: Pid) -> Result<Option<Cost>> {
        let mut command = self.command(words, pid);
        let end = Instant::now() + deadline();
        let output = loop {
            let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
            // On a machine with far too much to do a thread may not come to stop in time, and nothing was done.
            let again = String::from_utf8_lossy(&output.stdout).contains(CANNOT_STOP);
            if !again || Instant::now() > end {
                break output;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout);
        match output.status.code() {
            Some(0) => {}
            Some(NOT_PATCHED | NO_SUCH) if matches!(words[0], "disable" | "unload") => return Ok(None),
            // Whatever was said then: it may have been at its end from the first look on. One that is said to be gone is perhaps
            // not quite gone yet: it has lost its memory, and then its number.
            code if has_ended(pid, matches!(code, Some(NO_SUCH | DIED))) => return Ok(None),
            // Born with it: perhaps while its parent changed sides, and has to be brought to the end then.
            Some(REFUSED | BUSY) if words[0] == "load" && self.has(words[1], pid)? => return Ok(None),
            _ => bail!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
        let said: Value = serde_json::from_str(&said).with_context(|| format!("{command:?} said {said}"))?;
        let cost = &said["report"]["cost"];
        let number = |name: &str| cost[name].as_u64().with_context(|| format!("no {name} in {said:#}"));
        Ok(Some(Cost {
            elapsed: Duration::from_nanos(number("elapsed_ns")?),
            pause: Duration::from_nanos(number("longest_pause_ns")?),
            stopped: Duration::from_nanos(number("stopped_ns")?),
            stops: number("stops")? + number("looks")?,
        }))
    }

    /// Whether the patch of this file is enabled in the process, or comes to be when the transition is carried on; or the process has
    /// ended.
    fn has(&self, file: &str, pid: Pid) -> Result<bool> {
        let mut command = self.command(&["wait", file.trim_end_matches(".o")], pid);
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok(output.status.success() && said["report"]["life"] == "enabled" || has_ended(pid, false))
    }

    fn command(&self, words: &[&str], pid: Pid) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).args(["--json", "--timeout", TIMEOUT, "--pid", &pid.to_string()]);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }
}

/// Whether the process has ended, if need be after a while.
fn has_ended(pid: Pid, wait: bool) -> bool {
    let end = Instant::now() + deadline();
    while crate::proc::state(pid, pid).is_ok_and(|state| !matches!(state, 'Z' | 'X')) {
        if !wait || Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}
