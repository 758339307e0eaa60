//! `cargo bench`: what a patched call costs, how long the target stands still, how long a command takes, and how much
//! memory it adds. Prints Markdown tables, medians with least and greatest.
//!
//! `cargo bench -- --quick` measures less of it, to see that it works.

use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::Duration;
use ugraft_bench::{Spread, Target, Workshop, number};

const THREADS: [usize; 4] = [1, 8, 64, 512];
const COUNTS: [usize; 3] = [1, 10, 100];

fn main() -> Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let workshop = Workshop::open()?;
    println!("{}\n", machine());
    calls(&workshop, if quick { 3 } else { 15 })?;
    let threads = if quick { &THREADS[..2] } else { &THREADS[..] };
    for crew in ["asleep", "calling"] {
        gaps(&workshop, crew, threads, if quick { 3 } else { 15 })?;
    }
    Ok(())
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |m| m.1);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// Nanoseconds per call of a function before it is patched, patched, and after; each against a neighbour that is never
/// touched and one that is redirected by hand, in the same rounds.
fn calls(workshop: &Workshop, rounds: usize) -> Result<()> {
    let program = workshop.compile("calls.c", "calls", &[])?;
    let patch = workshop.compile("calls-patch.c", "calls-patch.o", &[])?.to_string_lossy().into_owned();
    let mut target = Target::start(&program, &[])?;
    println!(
        "| ns per call, loop included | never touched | jmp by hand | the function |\n|---|---|---|---|"
    );
    let row = |target: &mut Target, what: &str| -> Result<()> {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let line = target.ask("time")?;
            for (times, word) in times.iter_mut().zip(["plain", "hand", "subject"]) {
                times.push(number(&line, word)?);
            }
        }
        let [plain, hand, subject] = times.map(|t| Spread::of(t).text(2));
        println!("| {what} | {plain} | {hand} | {subject} |");
        Ok(())
    };
    row(&mut target, "before")?;
    workshop.ugraft(&["load", &patch], target.pid())?;
    ensure!(number(&target.ask("time")?, "value")? == 2.0, "the patch has no effect");
    row(&mut target, "patched")?;
    workshop.ugraft(&["disable", "calls-patch"], target.pid())?;
    workshop.ugraft(&["unload", "calls-patch"], target.pid())?;
    row(&mut target, "restored")?;
    println!();
    Ok(())
}

/// One line of the table of gaps: longest gap and wall time of each command.
#[derive(Default)]
struct Samples {
    gap: Vec<f64>,
    wall: Vec<f64>,
}

fn gaps(workshop: &Workshop, crew: &str, threads: &[usize], rounds: usize) -> Result<()> {
    let program = workshop.compile("gaps.c", "gaps", &[])?;
    println!(
        "Threads {crew}: longest gap of a thread with a core of its own / wall time of the command, in ms\n"
    );
    println!(
        "| threads | functions | load | replace | disable | memory added, KiB (present) |\n|---|---|---|---|---|---|"
    );
    for &threads in threads {
        for count in COUNTS {
            let define = format!("-DCOUNT={count}");
            let first = object(workshop, "first", &[&define])?;
            let second = object(workshop, "second", &[&define, "-DREPLACE", "-DVALUE=2000"])?;
            let mut target = Target::start(&program, &[&threads.to_string(), crew])?;
            let mut samples = [Samples::default(), Samples::default(), Samples::default()];
            let mut memory = (0, 0);
            for _ in 0..rounds {
                let pid = target.pid();
                measure(workshop, &mut target, &["load", &first], &mut samples[0])?;
                memory = target.added_memory()?;
                measure(workshop, &mut target, &["load", &second], &mut samples[1])?;
                measure(workshop, &mut target, &["disable", "second"], &mut samples[2])?;
                workshop.ugraft(&["unload", "first"], pid)?;
                workshop.ugraft(&["unload", "second"], pid)?;
            }
            let cells =
                samples.map(|s| format!("{} / {}", Spread::of(s.gap).text(2), Spread::of(s.wall).text(1)));
            println!("| {threads} | {count} | {} | {} ({}) |", cells.join(" | "), memory.0, memory.1);
        }
    }
    println!();
    Ok(())
}

fn object(workshop: &Workshop, name: &str, flags: &[&str]) -> Result<String> {
    let object: PathBuf = workshop.compile("patch.c", &format!("{name}.o"), flags)?;
    Ok(object.to_string_lossy().into_owned())
}

fn measure(workshop: &Workshop, target: &mut Target, args: &[&str], samples: &mut Samples) -> Result<()> {
    // A little quiet before, so that the end of the last command is not counted.
    std::thread::sleep(Duration::from_millis(20));
    target.ask("begin")?;
    let (_, wall) = workshop.ugraft(args, target.pid())?;
    let gap = number(&target.ask("end")?, "gap")?;
    samples.gap.push(gap / 1e6);
    samples.wall.push(wall.as_secs_f64() * 1e3);
    Ok(())
}
