//! The rounds on one server: unpatched, first patch, second patch in its place, unpatched, and so on, under load.
//!
//! Throughput is measured between the commands, one interval after each. The two patched intervals of a round are compared with
//! the unpatched ones before and after it, so that what else the machine does weighs on both alike: by the clock, and by the
//! processor time that the server had, which a busy machine only makes fewer of.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::judge::Judge;
use super::memory::{self, Size};
use super::outcome::Outcome;
use super::tool::{Cost, Tool};
use super::{Kind, Load, Plan, Server, build_patches};
use crate::children::Background;
use crate::deadline;
use crate::proc::{self, Pid};

/// Answers of the load that must have come before the first command.
const WARM: u64 = 200;
/// How much memory a process may have gained between the end of the first round and that of the last, in KiB: a server's own
/// caches grow a little. And how many mappings.
const MAX_GROWTH: u64 = 4096;
const MAX_NEW_MAPPINGS: usize = 4;

/// Starts the server in `directory`, which is empty, and does the rounds.
pub fn run(kind: &Kind, plan: &Plan, directory: &Path, program: &Path) -> Result<Outcome> {
    build_patches(kind, directory)?;
    let mut server = (kind.start)(directory).with_context(|| format!("cannot start {}", kind.name))?;
    let tool = Tool::new(program, directory);
    let mut campaign = Campaign {
        server: server.as_mut(),
        tool,
        plan,
        outcome: Outcome::new(kind.name),
        intervals: Vec::new(),
    };
    campaign.play()?;
    let outcome = campaign.outcome;
    let processes = server.processes();
    server.end()?;
    let (code, _, stderr) = server.process().wait()?;
    ensure!(code == 0 || code == 128 + libc::SIGTERM, "the server ended with {code}: {}", stderr.join("\n"));
    let end = Instant::now() + deadline();
    while let Some(pid) = processes.iter().find(|pid| memory::sizes(&[**pid]).contains_key(pid)) {
        ensure!(Instant::now() < end, "process {pid} of the server is left");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(outcome)
}

/// A time in which no command ran.
struct Interval {
    patched: bool,
    begin: SystemTime,
    length: Duration,
    served: Option<u64>,
    /// Processor time that the server's threads had.
    worked: Duration,
}

/// One server's rounds under way.
struct Campaign<'a> {
    server: &'a mut dyn Server,
    tool: Tool,
    plan: &'a Plan,
    outcome: Outcome,
    intervals: Vec<Interval>,
}

impl Campaign<'_> {
    fn play(&mut self) -> Result<()> {
        let mut judge = Judge::start(self.server.client());
        let mut load = self.server.load()?;
        self.warm_up(&judge)?;
        let mut before = BTreeMap::new();
        self.interval(false)?;
        for round in 1..=self.plan.rounds {
            self.round(&mut judge, &mut load).with_context(|| format!("in round {round}"))?;
            if round == 1 {
                before = memory::sizes(&self.server.processes());
            }
        }
        let after = memory::sizes(&self.server.processes());
        load.check_alive().context("the load generator")?;
        // While those that only live for the load are still there.
        self.outcome.restored = self.restored()?;
        let load = self.server.end_load(load)?;
        judge.end()?;
        self.outcome.asked = judge.asked();
        if !self.plan.brief {
            self.inherit()?;
        }
        ensure!(load.failed == 0, "{} of {} requests failed", load.failed, load.requests);
        ensure!(load.requests > 0, "there was no load");
        self.outcome.requests = load.requests;
        self.restored()?;
        self.compare(&before, &after)?;
        self.outcome.ratios = ratios(&self.intervals, &load, |interval| interval.length);
        self.outcome.work_ratios = ratios(&self.intervals, &load, |interval| interval.worked);
        self.server.process().check_alive()
    }

    fn warm_up(&mut self, judge: &Judge) -> Result<()> {
        let end = Instant::now() + deadline();
        let begun = self.server.served()?.unwrap_or(0);
        while judge.asked() < 10 || self.server.served()?.is_some_and(|served| served < begun + WARM) {
            ensure!(Instant::now() < end, "the load does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn round(&mut self, judge: &mut Judge, load: &mut Background) -> Result<()> {
        for (file, from, to) in [("first.o", 0, 1), ("second.o", 1, 2)] {
            judge.allow(&[from, to]);
            let costs = self.tool.all(&["load", file], self.server)?;
            judge.allow(&[to]);
            self.outcome.transition(&costs);
            self.interval(true)?;
        }
        judge.allow(&[2, 0]);
        let costs = self.tool.all(&["disable", "second"], self.server)?;
        judge.allow(&[0]);
        self.outcome.transition(&costs);
        for name in ["second", "first"] {
            let costs = self.tool.all(&["unload", name], self.server)?;
            self.outcome.unload(&costs);
        }
        self.interval(false)?;
        self.outcome.rounds += 1;
        judge.check()?;
        load.check_alive().context("the load generator")?;
        self.server.process().check_alive()
    }

    fn interval(&mut self, patched: bool) -> Result<()> {
        let before = (self.server.served()?, processor_times(&self.server.processes()));
        let (begin, began) = (SystemTime::now(), Instant::now());
        std::thread::sleep(self.plan.interval);
        let length = began.elapsed();
        let served = self.server.served()?.zip(before.0).map(|(after, before)| after - before);
        let worked = processor_times(&self.server.processes())
            .iter()
            .map(|(tid, time)| time.saturating_sub(before.1.get(tid).copied().unwrap_or_default()))
            .sum();
        self.intervals.push(Interval { patched, begin, length, served, worked });
        Ok(())
    }

    /// A child that is started anew while the server is patched carries the patch, and what is taken off is taken off it, too.
    fn inherit(&mut self) -> Result<()> {
        self.tool.all(&["load", "first.o"], self.server)?;
        // The new one may be there before anybody looks.
        let known = self.server.processes();
        if let Some(old) = self.server.renewed_child() {
            let new = self.newborn(old, &known)?;
            ensure!(
                !proc::ugraft_maps(new)?.is_empty(),
                "process {new} does not carry the patch of its parent"
            );
            self.outcome.born_patched += 1;
        }
        let mut client = self.server.client();
        ensure!(client.ask(true)? == 1, "a new connection is served without the patch");
        self.tool.all(&["disable", "first"], self.server)?;
        self.tool.all(&["unload", "first"], self.server)?;
        ensure!(client.ask(true)? == 0, "a new connection is served with the patch that was taken off");
        Ok(())
    }

    /// The child that came in the place of the old one, besides those known.
    fn newborn(&mut self, old: Pid, known: &[Pid]) -> Result<Pid> {
        let end = Instant::now() + deadline();
        loop {
            let now = self.server.processes();
            if let Some(new) = now.iter().find(|pid| !known.contains(pid) && **pid != old) {
                return Ok(*new);
            }
            ensure!(Instant::now() < end, "no child comes in the place of {old}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many processes have the code of their files.
    fn restored(&mut self) -> Result<u32> {
        let restored = self.server.processes().into_iter().map(memory::check_restored);
        restored.map(|restored| restored.map(u32::from)).sum()
    }

    fn compare(&mut self, before: &BTreeMap<Pid, Size>, after: &BTreeMap<Pid, Size>) -> Result<()> {
        for (pid, before) in before {
            let Some(after) = after.get(pid) else { continue };
            let grown = after.resident.saturating_sub(before.resident);
            let mapped = after.mappings.saturating_sub(before.mappings);
            ensure!(
                grown <= MAX_GROWTH && mapped <= MAX_NEW_MAPPINGS,
                "process {pid} has grown from {before:?} to {after:?}"
            );
            self.outcome.grown = self.outcome.grown.max(grown);
            self.outcome.mapped = self.outcome.mapped.max(mapped);
        }
        Ok(())
    }
}

/// The time that each thread of the processes has had on a processor.
fn processor_times(pids: &[Pid]) -> BTreeMap<Pid, Duration> {
    let time = |pid: Pid, tid: Pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
        Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
    };
    let of = |pid: &Pid| {
        let pid = *pid;
        proc::threads(pid).into_iter().filter_map(move |tid| Some((tid, time(pid, tid)?)))
    };
    pids.iter().flat_map(of).collect()
}

/// The requests of each round's patched intervals in so much `time`, as a part of those of the unpatched ones around them.
fn ratios(intervals: &[Interval], load: &Load, time: fn(&Interval) -> Duration) -> Vec<f64> {
    let rate = |interval: &Interval| {
        let served = interval.served.unwrap_or_else(|| {
            let begin =
                interval.begin.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
            let end = begin + interval.length.as_micros() as u64;
            load.answered.iter().filter(|at| (begin..end).contains(*at)).count() as u64
        });
        served as f64 / time(interval).as_secs_f64()
    };
    let unpatched: Vec<usize> = (0..intervals.len()).filter(|n| !intervals[*n].patched).collect();
    let mean = |of: &[Interval]| of.iter().map(rate).sum::<f64>() / of.len().max(1) as f64;
    let around = unpatched.windows(2).map(|pair| {
        let outside = (rate(&intervals[pair[0]]) + rate(&intervals[pair[1]])) / 2.0;
        mean(&intervals[pair[0] + 1..pair[1]]) / outside
    });
    around.filter(|ratio| ratio.is_finite()).collect()
}

impl Outcome {
    fn transition(&mut self, costs: &[Cost]) {
        self.transitions.extend(costs.iter().map(|cost| cost.elapsed));
        self.stops(costs);
    }

    fn unload(&mut self, costs: &[Cost]) {
        self.stops(costs);
    }

    fn stops(&mut self, costs: &[Cost]) {
        self.pauses.extend(costs.iter().map(|cost| cost.pause));
        self.stopped += costs.iter().map(|cost| cost.stopped).sum::<Duration>();
        self.stops += costs.iter().map(|cost| cost.stops).sum::<u64>();
    }
}
