//! The parts of the benchmark: targets that measure themselves, the program under test, and medians.

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where everything is built.
#[derive(Debug)]
pub struct Workshop {
    dir: tempfile::TempDir,
    root: PathBuf,
    ugraft: PathBuf,
}

impl Workshop {
    /// A workshop with the release build of the program.
    ///
    /// # Errors
    /// Where it does not build.
    pub fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?.to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(&root).args(["build", "--release", "--quiet", "--package", "ugraft"]);
        ensure!(build.status()?.success(), "the program does not build");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(Self { dir: tempfile::tempdir()?, ugraft: target.join("release/ugraft"), root })
    }

    /// Compiles `benches/targets/SOURCE` to `name`; an object if that ends in `.o`.
    ///
    /// # Errors
    /// Where it does not compile.
    pub fn compile(&self, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
        let out = self.dir.path().join(name);
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-g", "-pthread"]).args(flags);
        if name.ends_with(".o") {
            cc.arg("-c").arg("-I").arg(self.root.join("sdk/include"));
        }
        cc.arg("-o").arg(&out).arg(self.root.join("benches/targets").join(source));
        ensure!(cc.status()?.success(), "{source} does not compile");
        Ok(out)
    }

    /// Runs the program with `--json`; its answer, and the wall time of the whole command.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ugraft(&self, args: &[&str], pid: u32) -> Result<(Value, Duration)> {
        let (output, took) = self.run(&[args, &["--timeout", "60s"]].concat(), pid)?;
        if !output.status.success() {
            bail!("ugraft {args:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
        Ok((serde_json::from_slice(&output.stdout)?, took))
    }

    /// [`Workshop::ugraft`] on any processor but the last, which is the observer's.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ugraft_beside(&self, args: &[&str], pid: u32) -> Result<(Value, Duration)> {
        let all = sched_getaffinity(None)?;
        let mut others = all;
        if let Some(last) = (0..CpuSet::MAX_CPU).rfind(|cpu| all.is_set(*cpu)).filter(|_| all.count() > 1) {
            others.unset(last);
        }
        sched_setaffinity(None, &others)?;
        let result = self.ugraft(args, pid);
        sched_setaffinity(None, &all)?;
        result
    }

    /// Runs the program, whatever comes of it.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn run(&self, args: &[&str], pid: u32) -> Result<(Output, Duration)> {
        let pid = pid.to_string();
        let mut command = Command::new(&self.ugraft);
        command.args(args).args(["--pid", &pid, "--json"]);
        let begun = Instant::now();
        Ok((command.output()?, begun.elapsed()))
    }
}

/// A target that answers commands on its standard input; killed when dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path, args: &[&str]) -> Result<Self> {
        let mut child =
            Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut target = Self { child, input, output };
        let ready = target.read()?;
        ensure!(ready.starts_with("ready"), "the target said {ready:?}");
        Ok(target)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a line to it and returns its answer.
    ///
    /// # Errors
    /// Where it has died.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        self.read()
    }

    /// Memory that ugraft has added to it, in KiB: address space, and of that what is present.
    ///
    /// # Errors
    /// Where its maps cannot be read.
    pub fn added_memory(&self) -> Result<(u64, u64)> {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid()))?;
        let (mut ours, mut size, mut present) = (false, 0, 0);
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            let kib =
                || line.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            match first {
                "Size:" if ours => size += kib(),
                "Rss:" if ours => present += kib(),
                _ if first.contains('-') => ours = line.contains("/memfd:ugraft:"),
                _ => {}
            }
        }
        Ok((size, present))
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the target has died");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be dead already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number behind `word` in a line of words and numbers.
///
/// # Errors
/// Where there is none.
pub fn number(line: &str, word: &str) -> Result<f64> {
    let mut words = line.split_ascii_whitespace().skip_while(|w| *w != word).skip(1);
    words.next().with_context(|| format!("no {word} in {line:?}"))?.parse().context("a number")
}

/// Median, least and greatest of some measurements.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of at least one measurement.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), least: at(0), greatest: at(values.len().saturating_sub(1)) }
    }

    /// `median (least-greatest)` with so many decimals.
    #[must_use]
    pub fn text(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}-{:.decimals$})", self.median, self.least, self.greatest)
    }
}
