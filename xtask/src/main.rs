//! The project's own commands: `cargo xtask test` sets a machine up and passes the tests; the longer campaigns
//! are commands of their own.

mod canaries;
mod packages;
mod suites;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need from Debian, and run every test
    Test {
        /// Passed on to `cargo test`; what follows a `--` to the test programs
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Install what the tests and benchmarks need from Debian
    Setup,
    /// What a landing must pass: format, lints, docs, tests, fuzzing, the demo
    Ci,
    /// Run each fuzz target for so many seconds
    Fuzz {
        /// Seconds for each target
        #[arg(default_value_t = 60)]
        seconds: u32,
    },
    /// Compare what is said of stacks with what single-stepped programs did, at so many points
    Truth {
        /// How many points in all, such as 1e7
        #[arg(long, default_value_t = 1e7)]
        points: f64,
        /// Varies where signals fall and which functions are asked about
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Kill the tool before every system call it makes (or every K-th), and look at the target after each
    Kill {
        /// Only every so manieth system call
        #[arg(long, default_value_t = 1)]
        every: u32,
    },
    /// Switch seeded faults on, one after another, and see that the tests catch each
    Canaries {
        /// This one only
        name: Option<String>,
    },
    /// Patch servers of this machine's registries under their own load generators: apply, replace, remove, again and again
    Servers {
        /// How often
        #[arg(long, default_value_t = 100)]
        rounds: u32,
        /// These only: redis, nginx, postgres, tokio
        names: Vec<String>,
    },
    /// Patch, replace, reverse and cut short at random while a target checks every call for a mix of versions
    Torture {
        /// Go on until so many calls were judged, such as 1e9
        #[arg(long, default_value_t = 0.0)]
        calls: f64,
        /// Go on for so many seconds
        #[arg(long, default_value_t = 0)]
        seconds: u64,
        /// The first episode's seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// This variant only: plain, calls, tail-calls, threads, forks, signals, longjmp, exceptions, everything
        #[arg(long)]
        variant: Option<String>,
        /// This number of threads only, 1 to 64
        #[arg(long)]
        threads: Option<u32>,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?;
    std::env::set_current_dir(root)?;
    match Cli::parse().task {
        Task::Test { args } => {
            packages::install()?;
            suites::run(&args)
        }
        Task::Setup => packages::install(),
        Task::Ci => ci(),
        Task::Fuzz { seconds } => fuzz(seconds),
        Task::Truth { points, seed } => truth(points, seed),
        Task::Kill { every } => kill(every),
        Task::Canaries { name } => canaries::run(name.as_deref()),
        Task::Servers { rounds, names } => {
            packages::install()?;
            let mut command = cargo();
            command.args(["test", "--release", "--package", "ugraft-tests", "--test", "servers"]);
            command.env("UGRAFT_SERVERS_ROUNDS", rounds.to_string());
            run(command.env("UGRAFT_SERVERS_ONLY", names.join(",")))
        }
        Task::Torture { calls, seconds, seed, variant, threads } => {
            let mut command = cargo();
            command.args(["test", "--release", "--package", "ugraft-tests", "--test", "torture"]);
            command.env("UGRAFT_TORTURE_CALLS", format!("{calls:.0}"));
            command.env("UGRAFT_TORTURE_SECONDS", seconds.to_string());
            command.env("UGRAFT_TORTURE_SEED", seed.to_string());
            command.envs(variant.map(|v| ("UGRAFT_TORTURE_VARIANT", v)));
            command.envs(threads.map(|t| ("UGRAFT_TORTURE_THREADS", t.to_string())));
            run(&mut command)
        }
    }
}

/// One of the things that a landing must pass.
type Step = fn() -> Result<()>;

fn ci() -> Result<()> {
    let steps: [(&str, Step); 7] = [
        ("packages", packages::install),
        ("format", || run(cargo().args(["fmt", "--all", "--check"]))),
        ("lints", || run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
        ("docs", || {
            run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
        }),
        ("tests", || suites::run(&[])),
        ("fuzzing", || fuzz(60)),
        ("demo", || run(cargo().args(["run", "--release", "--", "demo"]))),
    ];
    let mut times = String::new();
    for (name, step) in steps {
        let begun = Instant::now();
        let result = step();
        write!(times, " {name} {} s", begun.elapsed().as_secs())?;
        if result.is_err() {
            eprintln!("xtask: {name} failed; times:{times}");
            return result;
        }
    }
    eprintln!("xtask: all passed; times:{times}");
    Ok(())
}

fn fuzz(seconds: u32) -> Result<()> {
    run(Command::new("fuzz/run").arg(seconds.to_string()))
}

fn truth(points: f64, seed: u64) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "--package", "ugraft-process", "--test", "stacks_truth"]);
    command.args(["--", "--nocapture"]);
    command.env("UGRAFT_TRUTH_POINTS", format!("{points:.0}"));
    run(command.env("UGRAFT_TRUTH_SEED", seed.to_string()))
}

fn kill(every: u32) -> Result<()> {
    run(cargo().args(["build", "--package", "ugraft"]))?;
    let mut command = cargo();
    command.args(["test", "--package", "ugraft-tests", "--test", "kill", "--test", "gone"]);
    run(command.env("UGRAFT_KILL_EVERY", every.to_string()))
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
