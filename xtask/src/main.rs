//! The project's own commands: `cargo xtask test` sets a machine up and passes the tests; the longer campaigns
//! are commands of their own.

mod packages;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::path::Path;
use std::process::Command;

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
        /// Passed on to `cargo test`
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
    /// Kill the tool before every system call it makes (or every K-th), and look at the target after each
    Kill {
        /// Only every so manieth system call
        #[arg(long, default_value_t = 1)]
        every: u32,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?;
    std::env::set_current_dir(root)?;
    match Cli::parse().task {
        Task::Test { args } => {
            packages::install()?;
            test(&args)
        }
        Task::Setup => packages::install(),
        Task::Ci => ci(),
        Task::Fuzz { seconds } => fuzz(seconds),
        Task::Kill { every } => kill(every),
    }
}

fn test(args: &[String]) -> Result<()> {
    // The end-to-end tests run the program itself, which is not one of their build dependencies.
    run(cargo().args(["build", "--package", "ugraft"]))?;
    run(cargo().args(["test", "--workspace"]).args(args))
}

fn ci() -> Result<()> {
    packages::install()?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test(&[])?;
    fuzz(60)?;
    run(cargo().args(["run", "--release", "--", "demo"]))
}

fn fuzz(seconds: u32) -> Result<()> {
    run(Command::new("fuzz/run").arg(seconds.to_string()))
}

fn kill(every: u32) -> Result<()> {
    run(cargo().args(["build", "--package", "ugraft"]))?;
    let mut command = cargo();
    command.args(["test", "--package", "ugraft-tests", "--test", "kill"]);
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
