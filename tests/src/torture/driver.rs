//! One episode: a target is started, steered at random, judged, taken down and looked at.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::checker::{Config, Fault, Lane};
use super::shared::{BRIEF_SLOTS, LANES, MANAGED_SLOTS, Record, Shared, lane_name, lane_of_child};
use super::steer::Steered;
use super::{Episode, Outcome, Random, world};
use crate::children::Background;
use crate::pattern::Captures;
use crate::proc::{self, Pid};

/// Commands that a child gets.
const CHILD_COMMANDS: u64 = 4;
/// Commands that a report of a failure shows.
const STORY: usize = 30;

/// Builds what `episode` needs in `directory`, which is empty, and plays it.
pub fn run(episode: &Episode, directory: &Path, program: PathBuf) -> Result<Outcome> {
    world::build(directory, &episode.variant)?;
    let shared = Shared::create(&directory.join("log"))?;
    let mut target = world::start(directory, episode)?;
    shared.check()?;
    let pid = target.pid();
    let text = text_of(pid)?;
    let mut steered =
        Steered::new(pid, shared.control(0), vec![[0, 0]], program.clone(), directory.to_owned());
    let mut log = Log::new(&shared);
    let mut children = Outcome::default();
    let played = play(episode, &mut steered, &mut log, &mut target, &mut children, &program, directory);
    // What the threads met before it went wrong tells more than what went wrong.
    log.judge(&steered.configs).and(played).with_context(|| story(&steered))?;
    let left = proc::ugraft_maps(pid)?;
    ensure!(left.is_empty(), "mappings are left:\n{}", left.join("\n"));
    ensure!(text_of(pid)? == text, "the code is not what it was before the first patch");
    target.check_alive()?;

    shared.control(0).stop.store(1, Ordering::Release);
    target.say("")?;
    while target.is_running() {
        log.collect();
        std::thread::sleep(Duration::from_millis(1));
    }
    target.expect("done", &mut Captures::new())?;
    let (code, _, stderr) = target.wait()?;
    log.collect();
    log.judge(&steered.configs).with_context(|| story(&steered))?;
    let counts = shared.counts();
    ensure!(code == 0 && counts.failed_children == 0, "the target ended with {code}, {counts:?}: {stderr:?}");
    let mut outcome = steered.outcome();
    outcome += children;
    outcome.calls = log.calls;
    outcome.counts = counts;
    Ok(outcome)
}

fn play(
    episode: &Episode,
    steered: &mut Steered<'_>,
    log: &mut Log<'_>,
    target: &mut Background,
    children: &mut Outcome,
    program: &Path,
    directory: &Path,
) -> Result<()> {
    let mut random = Random::new(episode.seed);
    let began = Instant::now();
    let mut commands = 0;
    while commands < episode.commands || log.calls < episode.calls || began.elapsed() < episode.time {
        steered.step(&mut random, &mut || log.collect())?;
        log.judge(&steered.configs)?;
        target.check_alive()?;
        commands += 1;
        for slot in BRIEF_SLOTS..BRIEF_SLOTS + MANAGED_SLOTS {
            let control = log.shared.control(1 + slot);
            let pid = control.pid.load(Ordering::Acquire) as Pid;
            if pid != 0 && random.below(2) == 0 {
                let mut child = Steered::new(
                    pid,
                    control,
                    steered.configs.clone(),
                    program.to_owned(),
                    directory.to_owned(),
                );
                let played = patch_child(&mut child, &mut random, log);
                let judged = log.judge_child(slot, &child.configs);
                judged.and(played).with_context(|| format!("child {pid}\n{}", story(&child)))?;
                *children += child.outcome();
                children.children += 1;
            }
        }
    }
    steered.take_down(&mut || log.collect())
}

/// Patches a child, and lets it end.
fn patch_child(child: &mut Steered<'_>, random: &mut Random, log: &mut Log<'_>) -> Result<()> {
    let mut wait = || log.collect();
    child.adopt(&mut wait)?;
    for _ in 0..random.below(CHILD_COMMANDS) {
        child.step(random, &mut wait)?;
    }
    child.take_down(&mut wait)?;
    let left = proc::ugraft_maps(child.pid)?;
    ensure!(left.is_empty(), "mappings are left:\n{}", left.join("\n"));
    child.control.stop.store(1, Ordering::Release);
    let end = Instant::now() + crate::deadline();
    while child.control.pid.load(Ordering::Acquire) == child.pid as u32 {
        ensure!(Instant::now() < end, "it does not end");
        wait();
        std::thread::sleep(Duration::from_millis(1));
    }
    wait();
    Ok(())
}

fn story(steered: &Steered<'_>) -> String {
    let from = steered.story.len().saturating_sub(STORY);
    format!(
        "after these commands, [N] being the last configuration opened:\n{}",
        steered.story[from..].join("\n")
    )
}

/// The records of all lanes, and the judgement of them.
struct Log<'a> {
    shared: &'a Shared,
    waiting: Vec<Vec<Record>>,
    lanes: Vec<Lane>,
    /// The last records of each lane, for a report of a failure.
    last: Vec<VecDeque<Record>>,
    calls: u64,
}

/// Records of a lane that a report of a failure shows.
const LAST: usize = 12;

impl<'a> Log<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            waiting: vec![Vec::new(); LANES],
            lanes: vec![Lane::default(); LANES],
            last: vec![VecDeque::new(); LANES],
            calls: 0,
        }
    }

    /// Takes what the threads have logged, so that they need not wait.
    fn collect(&mut self) {
        for lane in 0..LANES {
            self.shared.take(lane, &mut self.waiting[lane]);
        }
    }

    /// Judges what was collected from all lanes but those of children that are patched in turn.
    fn judge(&mut self, configs: &[Config]) -> Result<()> {
        self.collect();
        let managed = lane_of_child(BRIEF_SLOTS)..lane_of_child(BRIEF_SLOTS + MANAGED_SLOTS);
        (0..LANES).filter(|lane| !managed.contains(lane)).try_for_each(|lane| self.judge_lane(lane, configs))
    }

    /// Judges what a child has logged that was patched in turn.
    fn judge_child(&mut self, slot: usize, configs: &[Config]) -> Result<()> {
        self.judge_lane(lane_of_child(slot), configs)
    }

    fn judge_lane(&mut self, lane: usize, configs: &[Config]) -> Result<()> {
        for record in std::mem::take(&mut self.waiting[lane]) {
            let before = self.lanes[lane];
            if let Err(fault) = self.lanes[lane].judge(&record, configs) {
                let last: Vec<_> = self.last[lane].iter().map(|r| format!("  {r:?}\n")).collect();
                let (from, to) = (record.lo.saturating_sub(2) as usize, record.hi as usize + 1);
                let known: Vec<_> = (from..to.min(configs.len())).map(|k| (k, configs[k])).collect();
                bail!(
                    "{}: {}\n{record:?}\nbefore it: {before:?}\n{}configurations: {known:?}",
                    lane_name(lane),
                    words(fault),
                    last.concat()
                );
            }
            self.calls += u64::from(record.count) * record.mask.len() as u64;
            if self.last[lane].len() == LAST {
                self.last[lane].pop_front();
            }
            self.last[lane].push_back(record);
        }
        Ok(())
    }
}

fn words(fault: Fault) -> String {
    match fault {
        Fault::Mix { group } => format!("one call met a mix of versions of group {group}"),
        Fault::Stray { group, from } => {
            format!(
                "a call met a version of group {group} that was not in effect from configuration {from} on"
            )
        }
    }
}

/// The code of the target and its library, as it is in memory.
fn text_of(pid: Pid) -> Result<Vec<(String, Vec<u8>)>> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut text = Vec::new();
    for line in proc::maps(pid)? {
        let is_ours = line.ends_with("/target") || line.ends_with("/libtorture.so");
        if !is_ours || !line.contains("r-xp") {
            continue;
        }
        let range = line.split_whitespace().next().and_then(|r| r.split_once('-')).context("no range")?;
        let (start, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).context("cannot read the target's code")?;
        text.push((line, bytes));
    }
    ensure!(text.len() == 2, "the target's code is not found");
    Ok(text)
}
