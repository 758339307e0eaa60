//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// Live patching for running Linux processes, with the semantics of the kernel's livepatch.
#[derive(Debug, Parser)]
#[command(name = "ugraft", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to say what was done.
    #[command(flatten)]
    pub output: OutputArgs,
}

const AFTER_HELP: &str = "\
Exit codes:
  0   as asked (also where it was so already)
  1   failed; the target is unchanged
  2   wrong usage
  3   the target is not patched
  4   no such patch, or no such process
  5   still in transition (reversed or pending); the blockers are named
  6   refused as unsafe
  7   permission denied
  8   bad patch file
  9   the target died or became another program
  10  a callback crashed or did not return; the message says how things stand
  75  busy: another ugraft, or another transition";

/// Options that every command takes.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Print one JSON object on stdout and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true, conflicts_with_all = ["json", "verbose"])]
    pub quiet: bool,
    /// Say more on stderr; twice for every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a patch file into a process and enable it
    Load(LoadArgs),
    /// Enable a loaded patch
    Enable(ChangeArgs),
    /// Disable an enabled patch: its functions run as before
    Disable(ChangeArgs),
    /// Remove a disabled or replaced patch and give its memory back
    Unload(UnloadArgs),
    /// Wait until a patch is no longer in transition, and carry its transition on meanwhile
    Wait(WaitArgs),
    /// Turn the running transition round
    Reverse(TransitionArgs),
    /// Complete the running transition now, without the consistency that makes it safe
    Force(ForceArgs),
    /// List the patches of a process, or the patched processes
    List(ListArgs),
    /// Tell what is patched, what is in transition, and what blocks it
    Status(TargetArgs),
    /// Print the messages that a process keeps of its patching
    Log(LogArgs),
    /// Show the parameters of a loaded patch, or set one
    Param(ParamArgs),
    /// Write the names and unwind tables of a loaded patch to a file, for gdb and perf
    Symbols(SymbolsArgs),
    /// Describe a patch file
    Info(InfoArgs),
    /// Try a patch file on a process up to the first write, with a verdict per function
    Check(CheckArgs),
    /// Show it: patch a server under load, replace the patches, restore the server
    Demo(DemoArgs),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (troff)
    Manual,
}

/// Which process.
#[derive(Clone, Copy, Debug, Args)]
pub struct TargetArgs {
    /// The process to work on
    #[arg(short, long, value_parser = pid)]
    pub pid: i32,
}

/// How long a transition may take.
#[derive(Clone, Copy, Debug, Args)]
pub struct TimeoutArgs {
    /// Reverse a transition that is not complete after so long: 10s, 500ms, 2m
    #[arg(short, long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
}

/// How a transition is made.
#[derive(Clone, Copy, Debug, Args)]
pub struct TransitionOptions {
    /// The time allowed.
    #[command(flatten)]
    pub timeout: TimeoutArgs,
    /// Leave a transition that is not complete in time as it is, for `ugraft wait` or any later run to carry on
    #[arg(long)]
    pub keep: bool,
    /// Where to look for what may still run the functions that change
    #[arg(long, value_enum, default_value_t = Scan::Stacks)]
    pub scan: Scan,
}

/// Where activations are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scan {
    /// On the stacks of all threads
    Stacks,
    /// And in all memory that the process can write: finds suspended coroutines and contexts, also some that are dead;
    /// stops the process for as long as that takes
    Memory,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The patch file: an object made by `cc -c`
    pub file: PathBuf,
    /// Values for the patch's parameters
    #[arg(value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Load it without enabling it
    #[arg(long)]
    pub disabled: bool,
    /// Enable it although a patch it depends on is not enabled
    #[arg(long)]
    pub ignore_order: bool,
    /// How.
    #[command(flatten)]
    pub transition: TransitionOptions,
}

/// Arguments of `enable` and `disable`.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The patch's name, as `ugraft list` shows it
    pub name: String,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Go on although an enabled patch depends on it, or it on one that is not enabled
    #[arg(long)]
    pub ignore_order: bool,
    /// How.
    #[command(flatten)]
    pub transition: TransitionOptions,
}

/// Arguments of `unload`.
#[derive(Debug, Args)]
pub struct UnloadArgs {
    /// The patch's name, as `ugraft list` shows it
    pub name: String,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The time allowed.
    #[command(flatten)]
    pub timeout: TimeoutArgs,
}

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The patch's name, as `ugraft list` shows it
    pub name: String,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Give up after so long, and leave the transition as it is: 10s, 500ms, 2m
    #[arg(short, long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

/// Arguments of `reverse`.
#[derive(Debug, Args)]
pub struct TransitionArgs {
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The time allowed.
    #[command(flatten)]
    pub timeout: TimeoutArgs,
}

/// Arguments of `force`.
#[derive(Debug, Args)]
pub struct ForceArgs {
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The process; without it, every patched process is listed
    #[arg(short, long, value_parser = pid)]
    pub pid: Option<i32>,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The least grave messages to show
    #[arg(short, long, value_enum, default_value_t = LogLevel::Debug)]
    pub level: LogLevel,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Errors only
    Err,
    /// And warnings
    Warn,
    /// And what was done
    Notice,
    /// And remarks
    Info,
    /// Everything
    Debug,
}

/// Arguments of `param`.
#[derive(Debug, Args)]
pub struct ParamArgs {
    /// The patch's name, as `ugraft list` shows it
    pub name: String,
    /// The parameter, with =VALUE to set it; all are shown if it is left out
    #[arg(value_name = "PARAMETER[=VALUE]")]
    pub param: Option<String>,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `symbols`.
#[derive(Debug, Args)]
pub struct SymbolsArgs {
    /// The patch's name, as `ugraft list` shows it
    pub name: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The patch file
    pub file: PathBuf,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The patch file
    pub file: PathBuf,
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Serve under load for so long after each step
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub step: Duration,
}

impl Command {
    /// Whether it is given for what it prints alone.
    pub fn only_tells(&self) -> bool {
        match self {
            Self::List(_) | Self::Status(_) | Self::Log(_) | Self::Info(_) | Self::Check(_) => true,
            Self::Completions { .. } | Self::Manual => true,
            Self::Param(args) => !args.param.as_ref().is_some_and(|param| param.contains('=')),
            _ => false,
        }
    }

    /// The command's name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Load(_) => "load",
            Self::Enable(_) => "enable",
            Self::Disable(_) => "disable",
            Self::Unload(_) => "unload",
            Self::Wait(_) => "wait",
            Self::Reverse(_) => "reverse",
            Self::Force(_) => "force",
            Self::List(_) => "list",
            Self::Status(_) => "status",
            Self::Log(_) => "log",
            Self::Param(_) => "param",
            Self::Symbols(_) => "symbols",
            Self::Info(_) => "info",
            Self::Check(_) => "check",
            Self::Demo(_) => "demo",
            Self::Completions { .. } => "completions",
            Self::Manual => "manual",
        }
    }
}

/// Whether a command of this name changes functions.
pub fn is_change(word: &OsStr) -> bool {
    ["load", "enable", "disable"].iter().any(|name| word == *name)
}

fn pid(text: &str) -> Result<i32, String> {
    match text.parse::<i32>() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err("a process id is a positive number".to_owned()),
    }
}

/// Reads `10s`, `500ms`, `2m`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST_SECONDS: f64 = 366.0 * 86400.0;
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is not ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| "a time is a number and a unit, as in 500ms".to_owned())?;
    let seconds = number * seconds_per_unit;
    if !(0.0..=LONGEST_SECONDS).contains(&seconds) {
        return Err("a time is between 0 and a year".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("10").unwrap(), Duration::from_secs(10));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["", "s", "5x", "-1s", "1e300", "nan", "1s1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pids() {
        assert_eq!(pid("1"), Ok(1));
        for wrong in ["0", "-1", "x", "99999999999"] {
            assert!(pid(wrong).is_err(), "{wrong}");
        }
    }
}
