//! The word scan on real threads: on their own stacks, in signal handlers, on coroutines.

#[path = "stacks_support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use support::{Traced, build, first_trap, maps, regs};
use ugraft_process::scan::{Place, Scan, Scanner, StackKind, Thread};
use ugraft_process::{Pid, Tid};

fn program(dir: &Path) -> PathBuf {
    build(dir, "where", "gcc", &["-O2", "-pthread"], &["where.c"])
}

/// Runs the program to its int3 and scans the thread that is there for `names`.
fn scan_at_stop(exe: &Path, mode: &str, names: &[&str]) -> Scan {
    let mut target = Traced::start(exe, &[mode]);
    let watch = target.watch(names);
    let tid = first_trap(&mut target);
    let regs = regs(tid);
    let thread = Thread { pid: Pid(target.pid), tid: Tid(tid), regs: &regs };
    Scanner::default().scan(&target.memory(), &maps(target.pid), thread, &watch).unwrap()
}

#[test]
fn finds_the_program_counter() {
    let dir = tempfile::tempdir().unwrap();
    let scan = scan_at_stop(&program(dir.path()), "not", &["leaf"]);
    assert_eq!(scan.hits[0].place, Place::Pc);
}

#[test]
fn finds_an_active_function_wherever_the_thread_is() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for (mode, name, kind) in [
        ("plain", "wanted", StackKind::Own),
        ("deep", "wanted_deep", StackKind::Own),
        ("signal", "wanted_interrupted", StackKind::Own),
        ("thread", "wanted", StackKind::Own),
        ("altstack", "wanted_interrupted", StackKind::Suspended),
        ("fault", "wanted_faulting", StackKind::Suspended),
        ("altstack-thread", "wanted_interrupted", StackKind::Suspended),
        ("coroutine", "wanted_suspended", StackKind::Suspended),
    ] {
        let scan = scan_at_stop(&exe, mode, &[name]);
        assert!(!scan.hits.is_empty(), "{mode}: {scan:?}");
        assert!(scan.stacks.iter().any(|s| s.kind == kind), "{mode}: {scan:?}");
        assert_eq!(scan.more_hits, mode == "deep", "{mode}");
        assert_eq!(scan.foreign(), kind != StackKind::Own, "{mode}");
    }
}

#[test]
fn finds_nothing_where_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for mode in [
        "plain",
        "not",
        "thread",
        "thread-not",
        "signal",
        "altstack",
        "fault",
        "altstack-thread",
        "coroutine",
    ] {
        let scan = scan_at_stop(&exe, mode, &["elsewhere"]);
        assert_eq!(scan.hits, [], "{mode}");
        assert!(scan.bytes >= 128, "{mode}");
    }
}
