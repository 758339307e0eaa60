//! `cargo bench`: what a patched call costs, how long the target stands still, how long a command takes, how much memory it
//! adds, and how a transition comes to its end. Prints Markdown tables, medians with least and greatest.
//!
//! `cargo bench -- --quick` measures less of it, to see that it works; `cargo bench -- calls gaps` only what is named, of
//! `calls`, `commands`, `gaps`, `pending` and `convergence`.

mod convergence;

use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::time::Duration;
use ugraft_bench::{Spread, Target, Workshop, number};

const THREADS: [usize; 4] = [1, 8, 64, 512];
const COUNTS: [usize; 3] = [1, 10, 100];
/// Threads that are pending while calls on both sides of a transition are timed.
const PENDING: &str = "64";

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let wanted = |name: &str| {
        let mut names = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|arg| arg == name)
    };
    let workshop = Workshop::open()?;
    println!("{}\n", machine());
    let rounds = if quick { 3 } else { 15 };
    let threads = if quick { &THREADS[..2] } else { &THREADS[..] };
    if wanted("calls") {
        calls(&workshop, rounds)?;
    }
    if wanted("commands") {
        commands(&workshop, 2 * rounds)?;
    }
    if wanted("gaps") {
        for crew in ["asleep", "calling"] {
            gaps(&workshop, crew, threads, rounds)?;
        }
    }
    if wanted("pending") {
        convergence::pending_gaps(&workshop, threads)?;
    }
    if wanted("convergence") {
        convergence::converge(&workshop, if quick { 8 } else { 64 }, rounds.div_ceil(3))?;
    }
    Ok(())
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |m| m.1);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = load.split(' ').next().unwrap_or("?");
    format!("{model}, {cores} cores, Linux {}, load average before {load}", kernel.trim())
}

/// Nanoseconds per call of a function before it is patched, patched, during a transition, and after; each against a
/// neighbour that is never touched and one that is redirected by hand, in the same rounds.
fn calls(workshop: &Workshop, rounds: usize) -> Result<()> {
    let program = workshop.compile("calls.c", "calls", &[])?;
    let patch = workshop.compile("calls-patch.c", "calls-patch.o", &[])?.to_string_lossy().into_owned();
    let both = workshop.compile("calls-patch.c", "pending.o", &["-DOUTER"])?.to_string_lossy().into_owned();
    let mut target = Target::start(&program, &[])?;
    println!(
        "| ns per call, loop included | never touched | jmp by hand | the function |\n|---|---|---|---|"
    );
    let row = |target: &mut Target, what: &str, ask: &str| -> Result<()> {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let line = target.ask(ask)?;
            for (times, word) in times.iter_mut().zip(["plain", "hand", "subject"]) {
                times.push(number(&line, word)?);
            }
        }
        let [plain, hand, subject] = times.map(|t| Spread::of(t).text(2));
        println!("| {what} | {plain} | {hand} | {subject} |");
        Ok(())
    };
    row(&mut target, "before", "time")?;
    workshop.ugraft(&["load", &patch], target.pid())?;
    ensure!(number(&target.ask("time")?, "value")? == 2.0, "the patch has no effect");
    row(&mut target, "patched", "time")?;
    workshop.ugraft(&["disable", "calls-patch"], target.pid())?;
    workshop.ugraft(&["unload", "calls-patch"], target.pid())?;
    row(&mut target, "restored", "time")?;

    let mut target = Target::start(&program, &[PENDING])?;
    let (output, _) = workshop.run(&["load", &both, "--keep", "--timeout", "2s"], target.pid())?;
    ensure!(output.status.code() == Some(convergence::IN_TRANSITION), "the transition should not complete");
    ensure!(number(&target.ask("time")?, "value")? == 1.0, "the old side is not old");
    ensure!(number(&target.ask("new")?, "value")? == 2.0, "the new side is not new");
    row(&mut target, &format!("in transition, {PENDING} threads pending, old side"), "time")?;
    row(&mut target, "the same, new side", "new")?;
    target.ask("leave")?;
    workshop.ugraft(&["wait", "pending"], target.pid())?;
    row(&mut target, "patched, after it", "time")?;
    println!();
    Ok(())
}

/// How long each command takes from the start of the program to its end, when the target's threads may be on any core. Most
/// programs that run anywhere have an unwinder, which has to be told of a patch: the same with one.
fn commands(workshop: &Workshop, rounds: usize) -> Result<()> {
    let plain = workshop.compile("gaps.c", "gaps", &[])?;
    let unwinding = workshop.compile("gaps.c", "gaps-unwinding", &["-Wl,--no-as-needed", "-lstdc++"])?;
    let first = object(workshop, "first", &["-DCOUNT=1"])?;
    let second = object(workshop, "second", &["-DCOUNT=1", "-DREPLACE", "-DVALUE=2000"])?;
    println!("Wall time of the whole command, one function, in ms\n");
    println!("| threads | load | load, replacing | disable | unload |\n|---|---|---|---|---|");
    let crews = [(1, "asleep"), (8, "asleep"), (64, "asleep"), (8, "calling"), (64, "calling")];
    let targets = crews.map(|(threads, crew)| (&plain, threads, crew, "")).into_iter();
    for (program, threads, crew, what) in targets.chain([(&unwinding, 1, "asleep", ", with libstdc++")]) {
        let mut target = Target::start(program, &[&threads.to_string(), crew, "alone"])?;
        let pid = target.pid();
        let mut walls = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let commands =
                [&["load", &first][..], &["load", &second], &["disable", "second"], &["unload", "second"]];
            for (command, walls) in commands.into_iter().zip(&mut walls) {
                std::thread::sleep(Duration::from_millis(5));
                walls.push(workshop.ugraft(command, pid)?.1.as_secs_f64() * 1e3);
            }
            workshop.ugraft(&["unload", "first"], pid)?;
        }
        target.ask("call")?;
        let cells = walls.map(|walls| Spread::of(walls).text(1));
        println!("| {threads} {crew}{what} | {} |", cells.join(" | "));
    }
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
        "Threads {crew}: longest gap of a thread with a core of its own / wall time of the command on the others, in ms\n"
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
    let (_, wall) = workshop.ugraft_beside(args, target.pid())?;
    let gap = number(&target.ask("end")?, "gap")?;
    samples.gap.push(gap / 1e6);
    samples.wall.push(wall.as_secs_f64() * 1e3);
    Ok(())
}
