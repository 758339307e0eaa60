//! A few rounds on each server, one test for each; or, for `cargo xtask servers`, as many as asked.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ugraft_tests::isolate::{self, Test};
use ugraft_tests::program;
use ugraft_tests::servers::{KINDS, Kind, Outcome, Plan, campaign};

/// The longest that a server may take on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(600);
/// What a test does: PostgreSQL has a dozen processes, each of which gets every command.
const ROUNDS: u32 = 3;
const ROUNDS_OF_MANY: u32 = 1;
/// How long throughput is measured at a stretch, in a test and in a campaign.
const SLICE: Duration = Duration::from_millis(50);
const INTERVAL: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    if let Ok(rounds) = std::env::var("UGRAFT_SERVERS_ROUNDS") {
        return match whole(&rounds) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let tests = KINDS.iter().map(|kind| Test {
        name: kind.name.to_owned(),
        missing: kind.missing().map(str::to_owned),
        limit: LIMIT,
        body: Box::new(move || play(kind, &slice(kind)).map(drop)),
    });
    isolate::main("servers", tests.collect())
}

fn slice(kind: &Kind) -> Plan {
    let brief = kind.many_processes;
    Plan { rounds: if brief { ROUNDS_OF_MANY } else { ROUNDS }, interval: SLICE, brief }
}

fn play(kind: &Kind, plan: &Plan) -> Result<Outcome> {
    let directory = tempfile::Builder::new().prefix("ugraft-test.").tempdir()?;
    campaign::run(kind, plan, directory.path(), &program::find()?)
}

/// The servers that `UGRAFT_SERVERS_ONLY` names, or all, one after another.
fn whole(rounds: &str) -> Result<()> {
    let plan =
        Plan { rounds: rounds.parse().context("the number of rounds")?, interval: INTERVAL, brief: false };
    let only = std::env::var("UGRAFT_SERVERS_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(name) = only.iter().find(|name| KINDS.iter().all(|kind| kind.name != **name)) {
        bail!("there is no server {name}; there are {}", KINDS.map(|kind| kind.name).join(", "));
    }
    println!("{}", Outcome::HEAD);
    for kind in KINDS.iter().filter(|kind| only.is_empty() || only.contains(&kind.name)) {
        if let Some(what) = kind.missing() {
            bail!("{} needs {what}, which is not installed", kind.name);
        }
        println!("{}", isolate::alone(|| play(kind, &plan))?.row());
    }
    Ok(())
}
