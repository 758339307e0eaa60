//! A slice of the torture, one test for each variant; or, for `cargo xtask torture`, a campaign for as long as asked.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use ugraft_tests::isolate::{self, Test};
use ugraft_tests::torture::shared::MAX_WORKERS;
use ugraft_tests::torture::{Episode, Outcome, Random, VARIANTS, Variant, driver};
use ugraft_tests::{compile, program};

/// The longest an episode may take on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(600);
const THREADS: u32 = 6;
const CALLS: u64 = 1_000_000 / VARIANTS.len() as u64;
const COMMANDS: u32 = 14;
/// How long one episode of a campaign lasts.
const EPISODE: Duration = Duration::from_secs(30);
/// Most threads of a campaign's episode; the others have a power of two less.
const THREADS_MAX: u32 = MAX_WORKERS as u32;

fn main() -> ExitCode {
    if let Some(campaign) = Campaign::asked_for() {
        return campaign.run();
    }
    let tests = VARIANTS.into_iter().map(|variant| Test {
        name: variant.name.to_owned(),
        missing: ["cc", "c++"].into_iter().find(|c| !compile::is_installed(c)).map(str::to_owned),
        limit: LIMIT,
        body: Box::new(move || {
            let episode = Episode {
                variant,
                threads: number("THREADS").unwrap_or(THREADS),
                seed: number("SEED").unwrap_or(1),
                calls: CALLS,
                commands: COMMANDS,
                time: Duration::ZERO,
            };
            play(&episode).map(drop)
        }),
    });
    isolate::main("torture", tests.collect())
}

fn play(episode: &Episode) -> Result<Outcome> {
    let directory = tempfile::Builder::new().prefix("ugraft-test.").tempdir()?;
    driver::run(episode, directory.path(), program::find()?)
}

/// Episodes one after another, each with another seed, variant and number of threads.
struct Campaign {
    seconds: u64,
    calls: u64,
    seed: u64,
    variant: Option<Variant>,
    threads: Option<u32>,
}

impl Campaign {
    /// `UGRAFT_TORTURE_SECONDS` and `UGRAFT_TORTURE_CALLS` ask for one: it goes on until both are reached.
    fn asked_for() -> Option<Self> {
        let (seconds, calls) = (number("SECONDS"), number("CALLS"));
        if seconds.is_none() && calls.is_none() {
            return None;
        }
        let name = std::env::var("UGRAFT_TORTURE_VARIANT").ok();
        let variant = name.map(|name| VARIANTS.into_iter().find(|v| v.name == name));
        if variant == Some(None) {
            eprintln!("the variants are: {}", VARIANTS.map(|v| v.name).join(", "));
            std::process::exit(2);
        }
        Some(Self {
            seconds: seconds.unwrap_or(0),
            calls: calls.unwrap_or(0),
            seed: number("SEED").unwrap_or(1),
            variant: variant.flatten(),
            threads: number("THREADS"),
        })
    }

    fn run(&self) -> ExitCode {
        let began = Instant::now();
        let mut total = Outcome::default();
        for seed in self.seed.. {
            let mut random = Random::new(seed);
            let threads = random.below(THREADS_MAX.ilog2().into()) as u32;
            let left = self.seconds.saturating_sub(began.elapsed().as_secs());
            let episode = Episode {
                variant: self.variant.unwrap_or(VARIANTS[seed as usize % VARIANTS.len()]),
                threads: self.threads.unwrap_or(THREADS_MAX >> threads),
                seed,
                calls: 0,
                commands: COMMANDS,
                time: if self.calls > total.calls { EPISODE } else { EPISODE.min(Duration::from_secs(left)) },
            };
            let name = format!("{} with {} threads, seed {seed}", episode.variant.name, episode.threads);
            match play(&episode) {
                Ok(outcome) => {
                    eprintln!("{name}: {outcome}");
                    total += outcome;
                }
                Err(error) => {
                    eprintln!("{name}: {error:#}\nbefore it: {total}");
                    eprintln!(
                        "replay: cargo xtask torture --seed {seed} --variant {} --threads {}",
                        episode.variant.name, episode.threads
                    );
                    return ExitCode::FAILURE;
                }
            }
            if total.calls >= self.calls && began.elapsed().as_secs() >= self.seconds {
                break;
            }
        }
        println!("{total}; no mix, no stray version, no crash in {:.0} s", began.elapsed().as_secs_f64());
        ExitCode::SUCCESS
    }
}

fn number<N: std::str::FromStr>(name: &str) -> Option<N> {
    std::env::var(format!("UGRAFT_TORTURE_{name}")).ok()?.parse().ok()
}
