//! The truth test of stack proofs: programs are run instruction by instruction, a shadow stack is kept from their calls
//! and returns, and what the scan, the unwinder and the prover say is compared with it.
//!
//! At every point looked at:
//! - the word of every live return address is among what the scan finds;
//! - the unwinder's frames are exactly the shadow stack's, as far as it goes, and all of them if it reaches an end;
//! - a function that is live is never proved absent.
//!
//! `UGRAFT_TRUTH_POINTS` is how many points are looked at in all (100,000 unless told); `UGRAFT_TRUTH_SEED` varies
//! where asynchronous signals fall and which functions are asked about.

mod shadow;
#[path = "../stacks_support/mod.rs"]
mod support;

use shadow::{Entry, Shadow};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use support::{Stop, Traced, build, functions};
use ugraft_process::RemoteAddr;
use ugraft_process::stacks::cfi::Cfi;
use ugraft_process::stacks::scan::{Place, Scanner};
use ugraft_process::stacks::unwind::{self, End};
use ugraft_process::stacks::watch::{Part, Watch, WatchRange};
use ugraft_process::stacks::{How, Prover, Verdict};
use ugraft_process::target::maps::Maps;

/// What was seen while one program ran.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    points: u64,
    /// Walks that reached the end.
    complete: u64,
    /// Walks that did not, by reason.
    doubts: BTreeMap<String, u64>,
    /// Verdicts about a function that a word on the stack points into.
    live_blocked: u64,
    stale_cleaned: u64,
    stale_blocked: BTreeMap<String, u64>,
    signals: u64,
}

/// Small and repeatable (a linear congruential generator, Knuth's constants).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

/// A reason's words without its numbers.
fn kind_of(reason: &impl std::fmt::Display) -> String {
    let text = reason.to_string();
    text.split(' ')
        .filter(|word| !word.contains("0x") && word.parse::<u64>().is_err())
        .collect::<Vec<_>>()
        .join(" ")
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{variable}={v}")))
}

/// Every executable mapping as one range.
fn all_code(maps: &Maps) -> Watch {
    let code = maps.iter().filter(|m| m.exec).map(|m| WatchRange {
        start: m.start,
        end: m.end,
        part: Part::Image,
        function: m.name.clone(),
        key: 0,
    });
    Watch::new(code.collect())
}

struct Truth {
    target: Traced,
    shadow: Shadow,
    maps: Maps,
    code: Watch,
    /// Functions of the program, by address.
    functions: Vec<WatchRange>,
    scanner: Scanner,
    cfi: Cfi,
    prover: Prover,
    random: Random,
    tally: Tally,
}

impl Truth {
    /// `whole`: from the first instruction of the loader, not of the program.
    fn new(exe: &Path, args: &[&str], whole: bool) -> Self {
        let mut target = Traced::start(exe, args);
        if !whole {
            target.run_to(target.entry());
        }
        let maps = target.maps();
        let bias = target.bias();
        let mut seen = HashSet::new();
        let mut functions: Vec<_> = functions(exe)
            .into_iter()
            .filter(|s| s.size > 0 && seen.insert(s.address))
            .map(|s| WatchRange {
                start: RemoteAddr(bias + s.address),
                end: RemoteAddr(bias + s.address + s.size),
                part: Part::Code,
                function: s.name,
                key: 0,
            })
            .collect();
        functions.sort_by_key(|r| r.start);
        Self {
            code: all_code(&maps),
            target,
            shadow: Shadow::default(),
            maps,
            functions,
            scanner: Scanner::default(),
            cfi: Cfi::default(),
            prover: Prover::new(),
            random: Random(number("UGRAFT_TRUTH_SEED", 1)),
            tally: Tally::default(),
        }
    }

    /// Runs the program to its end or until it was looked at `points` times, once in about `stride` instructions.
    /// `storm`: a signal is sent at about one of so many instructions.
    fn run(mut self, points: u64, stride: u64, storm: u64) -> Tally {
        let memory = self.target.memory();
        let main = self.functions.iter().find(|f| f.function == "main").map(|f| f.start.0);
        let mut regs = self.target.regs();
        let mut pending = 0;
        let mut in_main = false;
        let mut until_look = 0;
        loop {
            in_main |= Some(regs.rip) == main;
            if until_look == 0 || self.is_dense(regs.rip) {
                self.look(&memory, &regs);
                if self.tally.points == points {
                    return self.tally;
                }
                // Before main, in the libraries' constructors, there is much of the same.
                until_look = 1 + self.random.next(if in_main { 2 * stride - 1 } else { 50 });
                if self.is_dense(regs.rip) {
                    until_look = 1;
                }
            }
            until_look -= 1;
            // The program's own first signal tells that it has its handlers.
            if storm > 0 && self.tally.signals > 0 && self.random.next(storm) == 0 {
                let signal = if self.random.next(2) == 0 { libc::SIGUSR1 } else { libc::SIGUSR2 };
                // SAFETY: no pointers are passed; the process is our unreaped child.
                unsafe { libc::kill(self.target.pid, signal) };
            }
            let instruction = self.shadow.decode(&memory, regs.rip);
            let old = regs;
            match self.target.step(pending) {
                Stop::Gone(status) => {
                    assert_eq!(status, 0, "the program failed");
                    return self.tally;
                }
                Stop::Signal(libc::SIGTRAP, _) => {
                    regs = self.target.regs();
                    let handled = pending != 0;
                    pending = 0;
                    self.tally.steps += 1;
                    if handled {
                        self.tally.signals += 1;
                        self.shadow.signalled(&memory, &self.maps, &old, &regs);
                        continue;
                    }
                    let system_call = instruction.mnemonic() == iced_x86::Mnemonic::Syscall;
                    self.shadow.executed(&memory, &self.maps, &instruction, &old, &regs);
                    if system_call {
                        let maps = self.target.maps();
                        if maps != self.maps {
                            self.code = all_code(&maps);
                            self.maps = maps;
                            self.shadow.forget_code();
                        }
                    }
                }
                // About to be delivered: nothing was executed.
                Stop::Signal(signal, _) => {
                    let now = self.target.regs();
                    if now.rip != old.rip || now.rsp != old.rsp {
                        self.shadow.executed(&memory, &self.maps, &instruction, &old, &now);
                    }
                    regs = now;
                    pending = signal;
                }
            }
        }
    }

    /// Whether every instruction around `pc` is to be looked at: where exception unwinders leave for another frame.
    fn is_dense(&self, pc: u64) -> bool {
        let i = self.functions.partition_point(|f| f.start.0 <= pc);
        i > 0
            && pc < self.functions[i - 1].end.0
            && ["uw_install_context_1", "_Unwind_DebugHook", "_Unwind_Resume"]
                .contains(&self.functions[i - 1].function.as_str())
    }

    fn look(&mut self, memory: &ugraft_process::target::memory::Memory, regs: &libc::user_regs_struct) {
        self.tally.points += 1;
        let thread = self.target.thread(regs);
        let scan = self.scanner.scan(memory, &self.maps, thread, &self.code).unwrap();
        let found: HashSet<(u64, u64)> =
            scan.hits.iter().filter_map(|h| Some((h.place.slot()?, h.value))).collect();
        let in_registers: HashSet<u64> =
            scan.hits.iter().filter(|h| h.place.slot().is_none()).map(|h| h.value).collect();
        let mut chain = self.shadow.chain(&self.maps, regs.rsp);
        for entry in &mut chain {
            if let Entry::Call { slot, ra, register: None } = entry {
                let there = memory.read_u64(RemoteAddr(*slot)).unwrap();
                if there != *ra {
                    self.shadow.overwrite(*slot, there);
                    *ra = there;
                }
            }
        }
        let at =
            || format!("{} at {:#x}, sp {:#x}\n{chain:x?}", self.target.exe.display(), regs.rip, regs.rsp);
        // Suspended coroutines are out of the scan's reach, the thread's own stack is not.
        let own = self.maps.iter().find(|m| m.name == "[stack]").unwrap().end.0;
        for entry in chain.iter().chain(self.shadow.on(own..own + 1)) {
            let present = match entry {
                Entry::Call { ra, register: Some(_), .. } => in_registers.contains(ra),
                Entry::Signal { returned: true, .. } => true,
                entry => found.contains(&(entry.slot(), entry.ra())),
            };
            assert!(present, "the scan misses {entry:x?}\n{}\n{scan:x?}", at());
            if let Entry::Signal { pc, .. } = entry {
                let saved = scan.hits.iter().any(|h| h.value == *pc);
                assert!(saved, "the scan misses the interrupted {pc:#x}\n{}", at());
            }
        }

        // What is live, as a list of frames and for each where its return address lies.
        let mut expected = vec![(regs.rip, true, None)];
        for entry in &chain {
            if !matches!(entry, Entry::Signal { returned: true, .. }) {
                let popped = matches!(entry, Entry::Call { register: Some(_), .. });
                expected.push((entry.ra(), false, Some(entry.slot()).filter(|_| !popped)));
            }
            if let Entry::Signal { pc, .. } = entry {
                expected.push((*pc, true, None));
            }
        }
        let walk = unwind::walk(&mut self.cfi, memory, &self.maps, thread);
        for (n, frame) in walk.frames.iter().enumerate() {
            let wanted = expected.get(n).map(|&(pc, exact, _)| (pc, exact));
            assert_eq!(Some((frame.pc, frame.exact)), wanted, "frame {n} of {walk:x?}\n{}", at());
        }
        for (n, &(_, _, slot)) in expected.iter().enumerate().skip(walk.frames.len()) {
            assert!(!slot.is_some_and(|s| walk.covers(s)), "frame {n} is covered by {walk:x?}\n{}", at());
        }
        match &walk.end {
            End::Outermost => {
                assert_eq!(walk.frames.len(), expected.len(), "{walk:x?}\n{}", at());
                self.tally.complete += 1;
            }
            End::Unreliable(doubt) => {
                *self.tally.doubts.entry(kind_of(doubt)).or_default() += 1;
            }
            End::Enough => panic!("nobody said so"),
        }

        self.ask(memory, regs, &expected, &scan);
    }

    /// Asks the prover about a function that some word points into, live or stale.
    fn ask(
        &mut self,
        memory: &ugraft_process::target::memory::Memory,
        regs: &libc::user_regs_struct,
        expected: &[(u64, bool, Option<u64>)],
        scan: &ugraft_process::stacks::scan::Scan,
    ) {
        let candidates: Vec<_> = scan
            .hits
            .iter()
            .filter(|h| h.place != Place::Pc)
            .filter_map(|h| {
                let i = self.functions.partition_point(|f| f.start.0 < h.value).checked_sub(1)?;
                (h.value <= self.functions[i].end.0).then_some(i)
            })
            .collect();
        if candidates.is_empty() {
            return;
        }
        let function = &self.functions[candidates[self.random.next(candidates.len() as u64) as usize]];
        let (start, end) = (function.start.0, function.end.0);
        let live = expected.iter().any(
            |&(pc, exact, _)| {
                if exact { start < pc && pc < end } else { start < pc && pc <= end }
            },
        );
        let watch = Watch::new(vec![function.clone()]);
        let verdict = self.prover.prove(memory, &self.maps, true, self.target.thread(regs), &watch).unwrap();
        match (live, &verdict) {
            (true, Verdict::Blocked(_)) => self.tally.live_blocked += 1,
            (false, Verdict::Blocked(blocker)) => {
                *self.tally.stale_blocked.entry(kind_of(&blocker.reason)).or_default() += 1;
            }
            (false, Verdict::Clean { how, .. }) => {
                // Words at the very start are no hits; then the scan alone decides.
                self.tally.stale_cleaned += u64::from(*how == How::Unwind);
            }
            _ => panic!("{} is live ({live}): {verdict:?}\n{expected:x?}", function.function),
        }
    }
}

/// A program to step through.
#[derive(Clone, Copy)]
struct Program<'a> {
    /// The compiler.
    cc: &'a str,
    /// Its arguments.
    flags: &'a [&'a str],
    sources: &'a [&'a str],
    /// The program's arguments behind the number of rounds.
    args: &'a [&'a str],
    /// It is looked at once in about so many instructions.
    stride: u64,
    /// A signal is sent at about one of so many instructions; 0 for never.
    storm: u64,
    /// From the loader's first instruction on.
    whole: bool,
}

const MIX: Program<'_> =
    Program { cc: "gcc", flags: &[], sources: &["mix.c"], args: &[], stride: 3, storm: 0, whole: false };
/// With signals at random instructions, on the same stack and on an alternate one.
const STORM: Program<'_> = Program { args: &["0"], storm: 300, ..MIX };
const STORM_ASIDE: Program<'_> = Program { args: &["1"], storm: 300, ..MIX };

/// How many points each of all programs below is given.
fn points_each() -> u64 {
    const PROGRAMS: u64 = 24;
    number("UGRAFT_TRUTH_POINTS", 100_000).div_ceil(PROGRAMS)
}

fn check(programs: &[Program<'_>]) {
    let dir = tempfile::tempdir().unwrap();
    for (n, p) in programs.iter().enumerate() {
        let exe = build(dir.path(), &format!("program{n}"), p.cc, p.flags, p.sources);
        // More rounds than there are points.
        let mut args = vec!["1000000000"];
        args.extend(p.args);
        let tally = Truth::new(&exe, &args, p.whole).run(points_each(), p.stride, p.storm);
        eprintln!("{} {} {}: {tally:?}", p.cc, p.flags.join(" "), p.sources.join(" "));
        assert_eq!(tally.points, points_each());
        // With few points the program does not get so far.
        if points_each() > 2000 {
            assert_eq!(tally.signals > 0, p.storm > 0, "{tally:?}");
        }
    }
}

#[test]
fn gcc() {
    check(&[
        Program { flags: &["-O0"], ..MIX },
        Program { flags: &["-O1", "-Wl,-z,lazy"], stride: 20, whole: true, ..MIX },
        Program { flags: &["-O2"], ..STORM },
        Program { flags: &["-O3", "-fno-omit-frame-pointer"], ..STORM_ASIDE },
        Program { flags: &["-Os", "-Wl,-z,lazy", "-fcf-protection=full"], ..MIX },
        Program { flags: &["-O2", "-static", "-fstack-protector-all"], ..STORM_ASIDE },
        Program { flags: &["-O2", "-mno-accumulate-outgoing-args", "-mpush-args"], ..STORM },
    ]);
}

#[test]
fn clang() {
    let mix = Program { cc: "clang", ..MIX };
    check(&[
        Program { flags: &["-O0"], ..mix },
        Program { flags: &["-O1", "-fuse-ld=lld"], args: &["1"], storm: 300, ..mix },
        Program { flags: &["-O2", "-fomit-frame-pointer"], args: &["0"], storm: 300, ..mix },
        Program { flags: &["-O3", "-static-pie"], ..mix },
    ]);
}

#[test]
fn tables_that_are_right_at_calls_only() {
    let clang = Program { cc: "clang", ..STORM };
    check(&[
        Program { flags: &["-O2", "-fno-asynchronous-unwind-tables", "-fexceptions"], ..STORM },
        Program { flags: &["-O2", "-fno-asynchronous-unwind-tables"], ..STORM },
        Program { flags: &["-O1", "-fno-asynchronous-unwind-tables", "-fexceptions"], ..clang },
        Program { flags: &["-O2", "-fno-asynchronous-unwind-tables", "-funwind-tables"], ..clang },
        Program { flags: &["-O0", "-fno-asynchronous-unwind-tables", "-fexceptions"], ..clang },
    ]);
}

#[test]
fn musl() {
    check(&[
        Program { cc: "musl-gcc", flags: &["-O2", "-static"], ..STORM_ASIDE },
        Program { cc: "musl-gcc", flags: &["-O1"], ..STORM },
    ]);
}

#[test]
fn exceptions() {
    let throws = Program { sources: &["throws.cpp"], stride: 20, ..MIX };
    check(&[
        Program { cc: "g++", flags: &["-O2"], ..throws },
        Program { cc: "g++", flags: &["-O0", "-static"], ..throws },
        Program { cc: "clang++", flags: &["-O2", "-fno-omit-frame-pointer"], ..throws },
    ]);
}

#[test]
fn assembly() {
    let hand = Program { sources: &["hand.c", "hand.S"], stride: 1, ..MIX };
    check(&[Program { flags: &["-O2"], ..hand }, Program { flags: &["-O0", "-static"], ..hand }]);
}

#[test]
fn coroutines() {
    check(&[Program { flags: &["-O2"], sources: &["coroutines.c"], ..MIX }]);
}
