//! Playing a scenario: building it in a directory of its own and doing its steps against real processes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::children::{self, Background};
use crate::pattern::{self, Captures};
use crate::scenario::{Action, Expected, Scenario, Step, Variant};
use crate::snapshot::Snapshot;
use crate::update::{self, Rewrite};
use crate::{compile, deadline, isolate, proc, repository, tests_dir};

/// A scenario being played.
struct Play<'a> {
    scenario: &'a Scenario,
    directory: PathBuf,
    variables: BTreeMap<String, OsString>,
    processes: BTreeMap<String, Background>,
    snapshots: BTreeMap<String, Snapshot>,
    current: Option<String>,
    rewrites: Vec<Rewrite>,
}

/// Plays one variant of the scenario from beginning to end with the program in the search path `path`.
pub fn play(scenario: &Scenario, variant: &Variant, path: &OsStr) -> Result<()> {
    let temporary =
        tempfile::Builder::new().prefix("ugraft-test.").tempdir().context("no temporary directory")?;
    let directory = temporary.path().to_path_buf();
    // To look at what was built and left; `directory` is not removed then.
    let _temporary = match std::env::var_os("UGRAFT_TEST_KEEP") {
        None => Some(temporary),
        Some(_) => {
            eprintln!("kept: {}", temporary.keep().display());
            None
        }
    };
    let mut play = Play {
        scenario,
        variables: variables(variant, &directory, path)?,
        directory,
        processes: BTreeMap::new(),
        snapshots: BTreeMap::new(),
        current: None,
        rewrites: Vec::new(),
    };
    compile::build(
        scenario,
        &play.directory,
        variant.env.get("AFTER_BUILD").map(String::as_str),
        |command| children::run(play.shell(command)),
    )?;
    let mut result = Ok(());
    for step in &scenario.steps {
        result = play.step(step).with_context(|| {
            format!(
                "{}:{}: {}",
                scenario.path.display(),
                step.line,
                update::line_of(&scenario.path, step.line)
            )
        });
        if result.is_err() {
            break;
        }
    }
    result.and_then(|()| play.end())?;
    update::write(&scenario.path, scenario.marker, &play.rewrites)
}

/// The variables that builds and commands see.
fn variables(variant: &Variant, directory: &Path, path: &OsStr) -> Result<BTreeMap<String, OsString>> {
    let mut variables: BTreeMap<String, OsString> =
        variant.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    variables.insert("PATH".into(), path.to_owned());
    variables.insert("SDK".into(), repository().join("sdk/include").into());
    variables.insert("SUPPORT".into(), tests_dir().join("support").into());
    variables.insert("VARIANT".into(), variant.name.clone().into());
    variables.insert("NO_COLOR".into(), "1".into());
    variables.insert("LC_ALL".into(), "C.UTF-8".into());
    variables.insert("PORT".into(), free_port()?.to_string().into());
    // Files that the program might write outside the target would land here, and are found at the end.
    for name in ["TMPDIR", "HOME", "XDG_RUNTIME_DIR"] {
        let place = directory.join(format!(".{}", name.to_lowercase()));
        std::fs::create_dir_all(&place)?;
        variables.insert(name.into(), place.into());
    }
    // With HOME elsewhere, rustup must be told where its toolchains are.
    for (name, default) in [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")] {
        let value = std::env::var_os(name)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(default).into()));
        if let Some(value) = value {
            variables.insert(name.into(), value);
        }
    }
    Ok(variables)
}

/// A port of the loopback interface that nothing listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

impl Play<'_> {
    fn shell(&self, command: &str) -> std::process::Command {
        children::shell(
            command,
            &self.directory,
            self.variables.iter().map(|(k, v)| (k.as_str(), v.as_os_str())),
        )
    }

    fn process(&mut self, at: Option<&str>) -> Result<(&str, &mut Background)> {
        let name = at.or(self.current.as_deref()).context("no process has been started")?;
        match self.processes.get_key_value(name).map(|(key, _)| key.clone()) {
            Some(_) => {
                let (name, process) = self
                    .processes
                    .iter_mut()
                    .find(|(key, _)| key.as_str() == name)
                    .context("no such process")?;
                Ok((name, process))
            }
            None => bail!("there is no process `{name}`"),
        }
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let at = step.at.as_deref();
        let mut captures = Captures::new();
        match &step.action {
            Action::Start { name, command } => {
                let process = Background::start(self.shell(&format!("exec {command}")))?;
                self.keep(name, process);
            }
            Action::Adopt { name, variable } => {
                let number =
                    self.variables.get(variable).and_then(|v| v.to_str()).and_then(|v| v.parse().ok());
                let pid = number.with_context(|| format!("${variable} is no process number"))?;
                self.keep(name, Background::adopt(pid));
            }
            Action::Run { command, expected } => {
                let finished = children::run(self.shell(command))?;
                self.compare(expected, finished.code, &finished.stdout, &finished.stderr)?;
            }
            Action::Wait(expected) => {
                let (code, stdout, stderr) = self.process(at)?.1.wait()?;
                self.compare(expected, code, &stdout, &stderr)?;
            }
            Action::Until(command) => self.until(command)?,
            Action::Say(line) => {
                let line = self.substitute(line);
                self.process(at)?.1.say(&line)?;
            }
            Action::Close => self.process(at)?.1.close(),
            Action::Expect(pattern) => {
                let pattern = self.substitute(pattern);
                self.process(at)?.1.expect(&pattern, &mut captures)?;
            }
            Action::Never(pattern) => {
                let pattern = self.substitute(pattern);
                self.process(at)?.1.never(&pattern)?;
            }
            Action::Alive => self.process(at)?.1.check_alive()?,
            Action::Stopped => self.process(at)?.1.check_stopped()?,
            Action::Signal(name) => {
                let number = signal(name)?;
                isolate::kill(self.process(at)?.1.pid(), number);
            }
            Action::Snapshot => {
                let (name, process) = self.process(at)?;
                let (name, snapshot) = (name.to_owned(), Snapshot::settled(process.pid())?);
                self.snapshots.insert(name, snapshot);
            }
            Action::Unchanged => {
                let (name, process) = self.process(at)?;
                let (name, pid) = (name.to_owned(), process.pid());
                self.snapshots.get(&name).context("no snapshot was taken")?.check_unchanged(pid)?;
            }
            Action::Clean => {
                let left = proc::ugraft_maps(self.process(at)?.1.pid())?;
                if !left.is_empty() {
                    bail!("mappings are left:\n{}", left.join("\n"));
                }
            }
        }
        self.remember(captures);
        Ok(())
    }

    fn keep(&mut self, name: &str, process: Background) {
        let pid = OsString::from(process.pid().to_string());
        self.variables.insert(variable_name(name), pid.clone());
        self.variables.insert("PID".into(), pid);
        self.processes.insert(name.to_owned(), process);
        self.current = Some(name.to_owned());
    }

    fn remember(&mut self, captures: Captures) {
        self.variables.extend(captures.into_iter().map(|(name, word)| (name, word.into())));
    }

    /// Compares a finished command with what was expected, or notes how the expectation must be rewritten.
    fn compare(
        &mut self,
        expected: &Expected,
        code: i32,
        stdout: &[String],
        stderr: &[String],
    ) -> Result<()> {
        // Columns of a table are padded at the end of a line too, which nobody wants to see in a transcript.
        let trimmed =
            |lines: &[String]| lines.iter().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        let (stdout, stderr) = (&trimmed(stdout), &trimmed(stderr));
        let mut captures = Captures::new();
        let mut report = String::new();
        let mut fits = true;
        for (title, patterns, seen) in
            [("standard output", &expected.stdout, stdout), ("standard error", &expected.stderr, stderr)]
        {
            let patterns: Vec<String> = patterns.iter().map(|p| self.substitute(p)).collect();
            if !pattern::align(&patterns, seen, &mut captures).1 {
                fits = false;
                report.push_str(&pattern::diff(title, &patterns, seen));
            } else if !seen.is_empty() {
                report.push_str(&format!("{title} (as expected):\n{}\n", seen.join("\n")));
            }
        }
        if code != expected.code {
            report.push_str(&format!("exit code: expected {}, seen {code}\n", expected.code));
        }
        let mode = update::mode();
        if mode.is_wanted() {
            let names = self.names();
            let rewrite = Rewrite::new(mode, expected, code, stdout, stderr, &names, |pattern| {
                self.substitute(pattern)
            });
            self.rewrites.push(rewrite);
        } else if !fits || code != expected.code {
            bail!("{report}");
        }
        self.remember(captures);
        Ok(())
    }

    /// What a rewritten transcript should say instead of what differs from run to run.
    fn names(&self) -> Vec<(String, String)> {
        let mut names: Vec<(String, String)> = self
            .processes
            .iter()
            .map(|(name, process)| (process.pid().to_string(), format!("${}", variable_name(name))))
            .collect();
        names.push((self.directory.display().to_string(), "[..]".into()));
        names
    }

    /// `$NAME` in an expected line or a line to a process stands for the variable, if there is one.
    fn substitute(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let length =
                after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
            match self.variables.get(&after[..length]).and_then(|v| v.to_str()) {
                Some(value) => out.push_str(value),
                None => {
                    out.push('$');
                    out.push_str(&after[..length]);
                }
            }
            rest = &after[length..];
        }
        out + rest
    }

    fn until(&self, command: &str) -> Result<()> {
        let end = Instant::now() + deadline();
        loop {
            let finished = children::run(self.shell(command))?;
            if finished.code == 0 {
                return Ok(());
            }
            if Instant::now() > end {
                let said = [finished.stdout, finished.stderr].concat().join("\n");
                bail!("not so in time; the last try exited with {} and said:\n{said}", finished.code);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What must hold at the end of every scenario: nothing that still runs is stopped by a tracer or traced, what is
    /// not patched carries no mapping of ours, and no file was written anywhere but by the scenario itself.
    fn end(&mut self) -> Result<()> {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for name in names {
            let Some(process) = self.processes.get_mut(&name) else { continue };
            if !process.is_running() {
                continue;
            }
            // A target whose debugger or tool is part of the scenario is let go when that ends, below.
            let pid = process.pid();
            if !self
                .scenario
                .steps
                .iter()
                .any(|s| matches!(&s.action, Action::Start { name, .. } if name == "debugger"))
            {
                process.check_free().with_context(|| format!("at the end, `{name}`"))?;
            }
            let status = children::run(self.shell(&format!("ugraft status --pid {pid}")))?;
            let left = proc::ugraft_maps(pid).unwrap_or_default();
            if status.code == NOT_PATCHED && !left.is_empty() {
                bail!("at the end, `{name}` is not patched but has mappings of ugraft:\n{}", left.join("\n"));
            }
        }
        self.processes.clear();
        for variable in ["TMPDIR", "HOME", "XDG_RUNTIME_DIR"] {
            let Some(place) = self.variables.get(variable) else { continue };
            let files: Vec<String> = std::fs::read_dir(place)?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            if !files.is_empty() {
                bail!("files are left over in ${variable}: {}", files.join(", "));
            }
        }
        Ok(())
    }
}

/// Exit code of `ugraft status` for a process without patches.
const NOT_PATCHED: i32 = 3;

fn variable_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn signal(name: &str) -> Result<i32> {
    Ok(match name {
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "CONT" => libc::SIGCONT,
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "INT" => libc::SIGINT,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        _ => bail!("unknown signal {name}"),
    })
}
