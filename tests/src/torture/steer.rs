//! One process under patches: commands given to it, and the configurations that follow from them.
//!
//! Before a command every configuration that it may bring about is appended to the list, and *started* is raised to the last;
//! when no transition is left, *finished* is raised too. What the process meets meanwhile lies between the two. The patches'
//! state is always taken from `ugraft status`, which is itself on trial: what the threads meet must agree with it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::checker::Config;
use super::shared::{Control, GROUPS};
use super::world::{PATCHES, Patch, version};
use super::{Outcome, Random};
use crate::proc::Pid;

/// The time given to a command that is to come through.
const PATIENT: &str = "60s";
/// Most times that a transition is turned round or cut short before it is brought to its end.
const MAX_TURNS: u32 = 4;
/// The longest that a command may run before it counts as hanging.
const HANGS: Duration = Duration::from_secs(300);

/// Which parts of a process's state `ugraft status` tells.
#[derive(Debug)]
struct Status {
    /// Name and life of each patch, in the order of loading.
    patches: Vec<(String, String)>,
    /// The running transition.
    transition: Option<Transition>,
}

#[derive(Debug)]
struct Transition {
    patch: String,
    /// Its threads go to the version in which the patch is enabled.
    to_enabled: bool,
    begun: bool,
}

impl Status {
    fn life(&self, name: &str) -> Option<&str> {
        self.patches.iter().find(|(n, _)| n == name).map(|(_, life)| life.as_str())
    }

    /// The configuration, if `changed` were enabled, or were not.
    fn config(&self, changed: Option<(&str, bool)>) -> Config {
        let mut config = [0; GROUPS];
        let mut names: Vec<(&str, bool)> =
            self.patches.iter().map(|(name, life)| (name.as_str(), life == "enabled")).collect();
        if let Some((name, enabled)) = changed {
            match names.iter_mut().find(|(n, _)| *n == name) {
                Some(known) => known.1 = enabled,
                None => names.push((name, enabled)),
            }
        }
        for (name, _) in names.into_iter().filter(|(_, enabled)| *enabled) {
            let Some(version) = version(name) else { continue };
            let patch = PATCHES[version as usize - 1];
            for (runs, covered) in config.iter_mut().zip(patch.covers) {
                if covered {
                    *runs = version;
                } else if patch.replace {
                    *runs = 0;
                }
            }
        }
        config
    }

    /// What the threads run, or are on their way to.
    fn heading(&self) -> Config {
        let t = self.transition.as_ref();
        // What has not begun goes back.
        self.config(t.map(|t| (t.patch.as_str(), t.to_enabled == (t.begun || !self.is_enabling(&t.patch)))))
    }

    fn is_enabling(&self, patch: &str) -> bool {
        self.life(patch) == Some("enabling")
    }
}

/// A process that is patched.
pub struct Steered<'a> {
    /// Its number.
    pub pid: Pid,
    /// Its control block.
    pub control: &'a Control,
    /// All configurations so far, in their order.
    pub configs: Vec<Config>,
    /// The last commands, with what they said, for a report of a failure.
    pub story: Vec<String>,
    program: PathBuf,
    directory: PathBuf,
    outcome: Outcome,
}

/// How a command is treated.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// It has time enough.
    Patient,
    /// It has so many milliseconds.
    Hurried(u64),
    /// It is killed after so many microseconds.
    Killed(u64),
}

impl Manner {
    fn random(random: &mut Random) -> Self {
        match random.below(20) {
            0..=11 => Manner::Patient,
            12..=15 => Manner::Hurried(random.below(15)),
            _ => Manner::Killed(random.below(150_000)),
        }
    }
}

impl<'a> Steered<'a> {
    /// A process whose configurations until now are `configs`.
    pub fn new(
        pid: Pid,
        control: &'a Control,
        configs: Vec<Config>,
        program: PathBuf,
        directory: PathBuf,
    ) -> Self {
        Self { pid, control, configs, story: Vec::new(), program, directory, outcome: Outcome::default() }
    }

    /// What its commands came to.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Takes a process over that somebody else may have left in the middle of something.
    pub fn adopt(&mut self, wait: &mut dyn FnMut()) -> Result<()> {
        let mut status = self.status()?;
        if status.transition.is_some() {
            let (heading, other) = (status.heading(), self.other_side(&status));
            self.open(heading, other);
            self.run(&["reverse"], Manner::Patient, wait)?;
            status = self.status()?;
            ensure!(
                status.transition.is_none(),
                "the transition of an adopted process does not end: {status:?}"
            );
        }
        self.open(status.heading(), status.heading());
        self.settle(&status);
        Ok(())
    }

    /// Gives one command at random and sees what comes of it.
    pub fn step(&mut self, random: &mut Random, wait: &mut dyn FnMut()) -> Result<()> {
        let status = self.status()?;
        let patch = PATCHES[random.below(PATCHES.len() as u64) as usize];
        let file = format!("{}.o", patch.name);
        let (args, enabled): (Vec<&str>, Option<bool>) = match status.life(patch.name) {
            None if random.below(8) == 0 => (vec!["load", &file, "--disabled"], None),
            None => (vec!["load", &file], Some(true)),
            Some("disabled") if random.below(3) > 0 => (vec!["enable", patch.name], Some(true)),
            Some("enabled") => (vec!["disable", patch.name], Some(false)),
            Some(_) => (vec!["unload", patch.name], None),
        };
        self.carry_out(&status, patch, &args, enabled, random, wait)
    }

    fn carry_out(
        &mut self,
        before: &Status,
        patch: Patch,
        args: &[&str],
        enabled: Option<bool>,
        random: &mut Random,
        wait: &mut dyn FnMut(),
    ) -> Result<()> {
        let source = before.config(None);
        let goal = before.config(enabled.map(|e| (patch.name, e)));
        let manner = Manner::random(random);
        self.open(goal, goal);
        let code = self.run(args, manner, wait)?;
        let mut status = self.status()?;
        let mut turned = false;
        for turn in 0.. {
            // What came of it is known now; the records are judged by it.
            let heading = status.heading();
            self.resolve(heading);
            if status.transition.is_none() {
                break;
            }
            ensure!(turn <= MAX_TURNS, "the transition does not end: {status:?}");
            let last = turn == MAX_TURNS;
            let manner = if last { Manner::Patient } else { Manner::random(random) };
            if random.below(2) == 0 || args[0] == "load" && last {
                turned = true;
                let other = self.other_side(&status);
                self.open(other, other);
                self.run(&["reverse"], manner, wait)?;
            } else {
                self.open(goal, goal);
                self.run(args, manner, wait)?;
            }
            status = self.status()?;
        }
        self.settle(&status);
        let now = status.config(None);
        let came_through = now == goal && source != goal;
        match code {
            Some(0) if !turned => {
                self.outcome.completed += 1;
                ensure!(now == goal, "`{}` succeeded, and {status:?}", args.join(" "));
            }
            Some(0 | 5) => {
                if came_through {
                    self.outcome.completed += 1;
                } else {
                    self.outcome.reversed += 1;
                }
            }
            Some(_) => {
                self.outcome.refused += 1;
                ensure!(now == source, "`{}` was refused, and {status:?}", args.join(" "));
            }
            None => self.outcome.killed += 1,
        }
        ensure!(now == source || now == goal, "`{}` led from {source:?} to {now:?}", args.join(" "));
        Ok(())
    }

    /// Disables and unloads everything.
    pub fn take_down(&mut self, wait: &mut dyn FnMut()) -> Result<()> {
        for verb in ["disable", "unload"] {
            let status = self.status()?;
            for (name, life) in status.patches.iter().rev() {
                if verb == "disable" && life != "enabled" {
                    continue;
                }
                let goal = self.status()?.config(Some((name, false)));
                self.open(goal, goal);
                let code = self.run(&[verb, name], Manner::Patient, wait)?;
                ensure!(code == Some(0), "cannot {verb} {name}");
                let status = self.status()?;
                ensure!(status.config(None) == goal, "{verb} {name} led to {status:?}");
                self.settle(&status);
            }
        }
        let status = self.status()?;
        ensure!(status.patches.is_empty(), "patches are left: {status:?}");
        Ok(())
    }

    /// Lets the process be in two further configurations.
    fn open(&mut self, first: Config, second: Config) {
        self.configs.extend([first, second]);
        self.control.started.store(self.configs.len() as u32 - 1, Ordering::Release);
    }

    /// Says what the last configuration has turned out to be.
    fn resolve(&mut self, config: Config) {
        if let Some(last) = self.configs.last_mut() {
            *last = config;
        }
    }

    /// Nothing is in transition: all threads are in the last configuration.
    fn settle(&mut self, status: &Status) {
        self.resolve(status.config(None));
        self.control.finished.store(self.configs.len() as u32 - 1, Ordering::Release);
    }

    /// The side that the running transition does not lead to.
    fn other_side(&self, status: &Status) -> Config {
        let Some(t) = &status.transition else { return status.config(None) };
        let on = status.config(Some((&t.patch, true)));
        let off = status.config(Some((&t.patch, false)));
        if status.heading() == on { off } else { on }
    }

    /// Runs one command; `None` if it was killed.
    fn run(&mut self, args: &[&str], manner: Manner, wait: &mut dyn FnMut()) -> Result<Option<i32>> {
        let timeout = match manner {
            Manner::Hurried(ms) => format!("{ms}ms"),
            _ => PATIENT.to_owned(),
        };
        let mut command = Command::new(&self.program);
        command.args(args).args(["--timeout", &timeout, "--pid", &self.pid.to_string()]);
        command.current_dir(&self.directory);
        let began = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the program")?;
        let mut killed = false;
        // What it says fits into the pipes, so that it can be read when it has ended.
        while child.try_wait()?.is_none() {
            match manner {
                Manner::Killed(us) if !killed && began.elapsed() >= Duration::from_micros(us) => {
                    child.kill()?;
                    killed = true;
                }
                _ if began.elapsed() > HANGS => {
                    child.kill()?;
                    bail!("`{}` hangs", args.join(" "));
                }
                _ => {}
            }
            wait();
            std::thread::sleep(Duration::from_micros(500));
        }
        let output = child.wait_with_output()?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().replace('\n', "; ");
        let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
        let code = output.status.code();
        self.outcome.commands += 1;
        self.story.push(format!(
            "[{}] `{}` {manner:?}: {} {stdout}{stderr}",
            self.configs.len() - 1,
            args.join(" "),
            output.status
        ));
        match code {
            Some(0 | 5) => Ok(code),
            // What the state of the patches does not allow: loaded already by the cut-short command, order.
            Some(1 | 6) if is_refusal(&stderr) => Ok(code),
            None if killed => Ok(None),
            _ => bail!("`{}` ended with {}: {stderr}", args.join(" "), output.status),
        }
    }

    fn status(&self) -> Result<Status> {
        let mut command = Command::new(&self.program);
        command.args(["status", "--json", "--pid", &self.pid.to_string()]);
        let output = command.output().context("cannot start the program")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let parse = || -> Result<Status> {
            let json: Value = serde_json::from_str(&text)?;
            let status = &json["status"];
            let word = |v: &Value| v.as_str().map(str::to_owned).context("not a word");
            let mut patches = Vec::new();
            for p in status["patches"].as_array().into_iter().flatten() {
                patches.push((word(&p["name"])?, word(&p["life"])?));
            }
            let transition = match &status["transition"] {
                Value::Null => None,
                t => Some(Transition {
                    patch: word(&t["patch"])?,
                    to_enabled: word(&t["direction"])? == "patching",
                    begun: t["begun"].as_bool().context("not a yes or no")?,
                }),
            };
            Ok(Status { patches, transition })
        };
        match output.status.code() {
            Some(0 | 3 | 5) => parse().with_context(|| format!("the status cannot be read: {text}")),
            _ => bail!("{}: {text} {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }
}

fn is_refusal(stderr: &str) -> bool {
    ["enabled", "already loaded", "is loaded", "no patch is in transition", "replaced", "disabled"]
        .iter()
        .any(|w| stderr.contains(w))
}
