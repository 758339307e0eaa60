//! What a transition costs while it runs, and how long it takes where threads are busy in what changes.

use anyhow::{Context, Result, anyhow, ensure};
use std::time::{Duration, Instant};
use ugraft_bench::{Spread, Target, Workshop, number};
use ugraft_process::session::objects_among;
use ugraft_process::stacks::scan::Thread;
use ugraft_process::stacks::watch::{Part, Watch, WatchRange};
use ugraft_process::stacks::{Prover, Verdict};
use ugraft_process::threads::stop_all;
use ugraft_process::{Pid, RemoteAddr, Target as Process};

/// For how long a transition that cannot end is carried on while gaps are measured.
const WHILE: &str = "2s";
/// Exit code of `ugraft`: still in transition.
pub const IN_TRANSITION: i32 = 5;
/// After this long, stop-everything-and-check is given up.
const GIVE_UP: Duration = Duration::from_secs(20);
/// The longest pause between two of its attempts.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The longest gap of a thread that calls a function in transition, all other threads being pending, while the tool looks
/// at them time and again.
pub fn pending_gaps(workshop: &Workshop, threads: &[usize]) -> Result<()> {
    let program = workshop.compile("gaps.c", "gaps", &[])?;
    let patch = workshop.compile("inside.c", "inside.o", &[])?.to_string_lossy().into_owned();
    println!("A transition that runs for {WHILE}, with all threads but one pending\n");
    println!(
        "| threads | longest gap of the other, ms | wall time of the `wait` that ends it, ms |\n|---|---|---|"
    );
    for &threads in threads {
        let mut target = Target::start(&program, &[&threads.to_string(), "inside"])?;
        let pid = target.pid();
        let (output, _) = workshop.run(&["load", &patch, "--keep", "--timeout", "2s"], pid)?;
        let wanted = if threads == 1 { 0 } else { IN_TRANSITION };
        ensure!(output.status.code() == Some(wanted), "{}", String::from_utf8_lossy(&output.stdout));
        std::thread::sleep(Duration::from_millis(20));
        target.ask("begin")?;
        workshop.run(&["wait", "inside", "--timeout", WHILE], pid)?;
        let gap = number(&target.ask("end")?, "gap")? / 1e6;
        target.ask("leave")?;
        let (_, wall) = workshop.ugraft(&["wait", "inside"], pid)?;
        println!("| {threads} | {gap:.2} | {:.1} |", wall.as_secs_f64() * 1e3);
    }
    println!();
    Ok(())
}

/// How long until all of `threads` busy threads have switched, by ugraft, and by stopping all until all are clean at once.
pub fn converge(workshop: &Workshop, threads: usize, rounds: usize) -> Result<()> {
    let program = workshop.compile("converge.c", "converge", &[])?;
    let patch = workshop.compile("converge-patch.c", "converge-patch.o", &[])?.to_string_lossy().into_owned();
    println!(
        "{threads} busy threads, each with a share of its time in the function that changes: until all have switched\n"
    );
    println!(
        "| share | ugraft, ms | longest pause, ms | stop everything and check, ms | its attempts |\n|---|---|---|---|---|"
    );
    for percent in [10.0, 50.0, 90.0, 99.9] {
        let target = Target::start(&program, &[&threads.to_string(), &percent.to_string()])?;
        let (mut walls, mut pauses) = (Vec::new(), Vec::new());
        let (mut others, mut attempts, mut never) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let (report, wall) = workshop.ugraft(&["load", &patch], target.pid())?;
            walls.push(wall.as_secs_f64() * 1e3);
            let pause = report["report"]["cost"]["longest_pause_ns"].as_f64().context("the pause")?;
            pauses.push(pause / 1e6);
            workshop.ugraft(&["disable", "converge-patch"], target.pid())?;
            workshop.ugraft(&["unload", "converge-patch"], target.pid())?;
            // Once given up it would be so again.
            if never == 0 {
                let (tries, took) = stop_until_clean(target.pid(), "busy")?;
                attempts.push(tries as f64);
                match took {
                    Some(took) => others.push(took.as_secs_f64() * 1e3),
                    None => never += 1,
                }
            }
        }
        let other = match others.is_empty() {
            true => format!("never in {} s", GIVE_UP.as_secs()),
            false => Spread::of(others).text(1),
        };
        println!(
            "| {percent} % | {} | {} | {other} | {} |",
            Spread::of(walls).text(1),
            Spread::of(pauses).text(2),
            Spread::of(attempts).text(0)
        );
    }
    println!();
    Ok(())
}

/// What other tools do: stop all threads, look at their stacks, and if one is in the function let all go and try again. How
/// often, and how long that took in all; `None` if it was given up.
fn stop_until_clean(pid: u32, function: &str) -> Result<(usize, Option<Duration>)> {
    let process = Process::open(Pid(i32::try_from(pid)?))?;
    let range = range_of(&process, function)?;
    let part = Part::Image;
    let watch = Watch::new(vec![WatchRange {
        start: range.start,
        end: range.end,
        part,
        function: function.to_owned(),
        key: 0,
    }]);
    let mut prover = Prover::new();
    let mut pause = Duration::from_millis(1);
    let begun = Instant::now();
    let mut attempts = 0;
    while begun.elapsed() < GIVE_UP {
        attempts += 1;
        let stopped = stop_all(&process, Duration::from_secs(5))?;
        let maps = process.maps()?;
        let mut clean = true;
        for thread in stopped.threads() {
            let thread = Thread { pid: process.pid(), tid: thread.tid(), regs: thread.regs() };
            let verdict = prover.prove(process.memory(), &maps, true, thread, &watch)?;
            clean &= matches!(verdict, Verdict::Clean { .. });
            if !clean {
                break;
            }
        }
        stopped.resume()?;
        if clean {
            return Ok((attempts, Some(begun.elapsed())));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok((attempts, None))
}

fn range_of(process: &Process, function: &str) -> Result<std::ops::Range<RemoteAddr>> {
    let maps = process.maps()?;
    let objects = objects_among(process, &maps)?;
    let function = objects.function(None, function, 0).map_err(|e| anyhow!("{e}"))?;
    Ok(function.range())
}
