//! Tail calls through linkage tables, instruction by instruction: from the first instruction of the function that makes the
//! call to the last of the one that is called, whatever lies between, the thread is never proved clean. Not either when a
//! signal interrupts it on the way.

#[path = "stacks_support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use support::{Stop, Traced, build, functions};
use ugraft_process::objects::Objects;
use ugraft_process::stacks::watch::{Part, Watch, WatchRange};
use ugraft_process::stacks::{Prover, Verdict};
use ugraft_process::{RemoteAddr, resolvers};

fn program(dir: &Path, flags: &[&str]) -> PathBuf {
    build(dir, "libsecond.so", "gcc", &["-O2", "-shared", "-fPIC"], &["tail-second.c"]);
    let dir_flag = format!("-L{}", dir.display());
    let run_path = format!("-Wl,-rpath,{}", dir.display());
    let mut args = vec!["-O2", dir_flag.as_str(), run_path.as_str()];
    args.extend(flags);
    // The library goes behind the source that needs it.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/tail.c");
    let source = source.to_str().unwrap();
    args.extend([source, "-lsecond"]);
    build(dir, "tail", "gcc", &args, &[])
}

/// The watch that a transition has for functions at these places.
fn watch(target: &Traced, places: &[(&str, u64, u64)]) -> Watch {
    let auxv = std::fs::read(format!("/proc/{}/auxv", target.pid)).unwrap();
    let (memory, maps) = (target.memory(), target.maps());
    let proc_dir = PathBuf::from(format!("/proc/{}", target.pid));
    let objects = Objects::read(&memory, &maps, &auxv, &proc_dir).unwrap();
    let range = |start, end, part, function: &str| WatchRange {
        start,
        end,
        part,
        function: function.to_owned(),
        key: 0,
    };
    let mut ranges: Vec<_> = places
        .iter()
        .map(|(name, at, size)| range(RemoteAddr(*at), RemoteAddr(at + size), Part::Cold, name))
        .collect();
    ranges.extend(
        resolvers(&objects).unwrap().into_iter().map(|r| range(r.start, r.end, Part::Resolver, "binding")),
    );
    Watch::new(ranges)
}

fn is_clean(target: &Traced, prover: &mut Prover, watch: &Watch) -> bool {
    let regs = target.regs();
    match prover.prove(&target.memory(), &target.maps(), true, target.thread(&regs), watch).unwrap() {
        Verdict::Clean { .. } => true,
        Verdict::Blocked(_) => false,
        Verdict::MapsTooOld => panic!("the mappings are fresh"),
    }
}

/// Whether somewhere on the way from `first` to `second` nothing tells that there is one but what this file is about.
fn has_a_gap(exe: &Path) -> bool {
    let mut target = Traced::start(exe, &[]);
    let (first, main) = (target.address("first"), target.address("main"));
    target.run_to(main);
    target.run_to(first);
    let mut prover = Prover::new();
    let code = target.maps().iter().find(|m| m.name == exe.to_str().unwrap() && m.exec).unwrap().range();
    let size = functions(exe).into_iter().find(|f| f.name == "first").unwrap().size;
    let only_first = Watch::new(vec![WatchRange {
        start: RemoteAddr(first),
        end: RemoteAddr(first + size),
        part: Part::Cold,
        function: "first".to_owned(),
        key: 0,
    }]);
    while (first..first + size).contains(&target.regs().rip) {
        target.step(0);
    }
    code.contains(&RemoteAddr(target.regs().rip)) && is_clean(&target, &mut prover, &only_first)
}

/// Steps both calls from the first instruction of `first` to the last of `second`. At instruction `interrupt_at` of the
/// way a signal is delivered, and the handler's first instruction looked at. Returns the instructions on the way.
fn step_through(exe: &Path, interrupt_at: Option<usize>) -> usize {
    let mut target = Traced::start(exe, &[]);
    let main = target.address("main");
    target.run_to(main);
    let library = exe.with_file_name("libsecond.so");
    let in_library = functions(&library).into_iter().find(|f| f.name == "second").unwrap();
    let base = target.maps().iter().find(|m| m.name == library.to_str().unwrap()).unwrap().start.0;
    let second = base + in_library.address..base + in_library.address + in_library.size;
    let in_program = functions(exe).into_iter().find(|f| f.name == "first").unwrap();
    let first = target.bias() + in_program.address..target.bias() + in_program.address + in_program.size;
    let handler = target.address("handler");
    let watch =
        watch(&target, &[("first", first.start, in_program.size), ("second", second.start, in_library.size)]);
    let mut prover = Prover::new();
    let mut steps = 0;
    for call in 0..2 {
        target.run_to(first.start);
        let mut reached = false;
        loop {
            let pc = target.regs().rip;
            reached |= second.contains(&pc);
            if reached && !second.contains(&pc) {
                break;
            }
            assert!(!is_clean(&target, &mut prover, &watch), "call {call}, step {steps}, at {pc:#x}");
            let interrupt = interrupt_at == Some(steps);
            steps += 1;
            if interrupt {
                assert_eq!(target.step(libc::SIGUSR1), Stop::Signal(libc::SIGTRAP, 0));
                assert_eq!(target.regs().rip, handler);
                assert!(!is_clean(&target, &mut prover, &watch), "call {call}, in a handler at {pc:#x}");
                // It comes back to where it was.
                let memory = target.memory();
                let sp = target.regs().rsp;
                let trampoline = memory.read_u64(RemoteAddr(sp)).unwrap();
                target.run_to(trampoline);
                while target.regs().rip != pc {
                    target.step(0);
                }
            } else {
                assert_eq!(target.step(0), Stop::Signal(libc::SIGTRAP, 0));
            }
        }
        assert!(is_clean(&target, &mut prover, &watch), "after call {call}");
    }
    steps
}

#[test]
fn nobody_is_clean_between_the_ends_of_a_tail_call() {
    for (flags, through_loader) in [
        (&["-Wl,-z,lazy"][..], true),
        (&["-Wl,-z,now"][..], false),
        (&["-Wl,-z,lazy", "-fcf-protection=full", "-Wl,-z,ibtplt"][..], true),
        (&["-fno-plt"][..], false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let exe = program(dir.path(), flags);
        let steps = step_through(&exe, None);
        assert_eq!(steps > 100, through_loader, "{flags:?}: {steps} steps");
        assert_eq!(has_a_gap(&exe), !flags.contains(&"-fno-plt"), "{flags:?}");
    }
}

#[test]
fn nor_is_who_was_interrupted_there() {
    for flags in [&["-Wl,-z,lazy"][..], &["-Wl,-z,now"][..]] {
        let dir = tempfile::tempdir().unwrap();
        let exe = program(dir.path(), flags);
        let steps = step_through(&exe, None);
        // Everywhere on a short way, at some twenty places of a long one.
        for at in (0..steps).step_by(1 + steps / 20) {
            step_through(&exe, Some(at));
        }
    }
}
