//! The `ugraft` program: asks the library for what the command line says, and says what came of it.
#![deny(unsafe_code)]

mod args;
mod commands;
mod demo;
mod exit;
mod output;
mod text;

use args::{Cli, Command, OutputArgs};
use clap::{CommandFactory, Parser};
use output::{Notes, Outcome};
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use ugraft_process::session;

fn main() -> ExitCode {
    ugraft_process::heap::keep_room();
    // Before the command line is looked at any closer, so that the two go on side by side.
    let _prompt =
        std::env::args_os().nth(1).is_some_and(|word| args::is_change(&word)).then(session::prepare);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return misused(&e),
    };
    let how = cli.output;
    log_to_stderr(how.verbose);
    let name = cli.command.name();
    let only_tells = cli.command.only_tells();
    match run(cli.command, how) {
        Ok(outcome) => {
            // What was done to a target is done, whoever hears of it.
            match output::print_outcome(name, &outcome, how) || !only_tells {
                true => ExitCode::from(outcome.exit_code),
                false => ExitCode::from(exit::FAILED),
            }
        }
        Err(error) => {
            let failure = exit::Failure::of(&error);
            let message = message(&error);
            let notes = error.downcast_ref().map_or(&[][..], |Notes(notes)| notes);
            let code = failure.code;
            output::print_failure(name, &message, notes, failure, how);
            ExitCode::from(code)
        }
    }
}

/// Says what is wrong with the command line, or gives the help or version that was asked for.
fn misused(error: &clap::Error) -> ExitCode {
    let asks_for_json = std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json");
    if error.use_stderr() && asks_for_json {
        let command = std::env::args().skip(1).find(|arg| Cli::command().find_subcommand(arg).is_some());
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = exit::Failure::of_usage(&text);
        let how = OutputArgs { json: true, quiet: false, verbose: 0 };
        output::print_failure(&command.unwrap_or_default(), message, &[], failure, how);
        return ExitCode::from(exit::USAGE);
    }
    match output::is_written(error.print()) {
        true => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE)),
        false => ExitCode::from(exit::FAILED),
    }
}

/// An error and what caused it, in one line.
fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ugraft_process::Error>() {
        // These tell their causes in their own text.
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    }
}

fn run(command: Command, how: OutputArgs) -> anyhow::Result<Outcome> {
    match command {
        Command::Load(args) => commands::load(&args),
        Command::Enable(args) => commands::enable(&args),
        Command::Disable(args) => commands::disable(&args),
        Command::Unload(args) => commands::unload(&args),
        Command::Wait(args) => commands::wait(&args),
        Command::Reverse(args) => commands::reverse(&args),
        Command::Force(args) => commands::force(&args),
        Command::List(args) => commands::list(&args),
        Command::Status(args) => commands::status(args),
        Command::Log(args) => commands::log(&args),
        Command::Param(args) => commands::param(&args),
        Command::Symbols(args) => commands::symbols(&args),
        Command::Info(args) => commands::info(&args),
        Command::Check(args) => commands::check(&args),
        Command::Demo(args) => demo::run(&args, how),
        Command::Completions { shell } => {
            // clap_complete panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ugraft", &mut script);
            verbatim(script)
        }
        Command::Manual => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            verbatim(page)
        }
    }
}

/// Text as it is, in JSON too.
fn verbatim(bytes: Vec<u8>) -> anyhow::Result<Outcome> {
    Ok(Outcome::new(serde_json::Value::Null, String::from_utf8(bytes)?.trim_end().to_owned()))
}

/// Messages of the library: warnings always, each step with `-v`, everything with `-vv`.
fn log_to_stderr(verbose: u8) {
    let levels = [LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
    let level = levels[usize::from(verbose).min(3)];
    let filter = Targets::new().with_target("ugraft", level).with_target("ugraft_process", level);
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(stderr.without_time().with_target(false)).with(filter).init();
}
