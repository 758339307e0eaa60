//! The prover on real threads: what blocks is named with its reason, what is stale does not block.

#[path = "stacks_support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use support::{Stop, Traced, build, first_trap, maps, regs};
use ugraft_process::stacks::scan::Thread;
use ugraft_process::stacks::suspended::{own_stack, pointer_guard, scan_memory};
use ugraft_process::stacks::watch::Watch;
use ugraft_process::stacks::{Blocker, How, Prover, Reason, Verdict};
use ugraft_process::{Pid, Tid};

fn program(dir: &Path) -> PathBuf {
    build(dir, "where", "gcc", &["-O2", "-pthread"], &["where.c"])
}

/// Runs the program to its int3 and asks the prover about functions on the thread that is there.
fn prove(exe: &Path, mode: &str, names: &[&str]) -> Verdict {
    let mut target = Traced::start(exe, &[mode]);
    let watch = target.watch(names);
    let tid = first_trap(&mut target);
    prove_at(&target, tid, &watch)
}

fn prove_at(target: &Traced, tid: i32, watch: &Watch) -> Verdict {
    let regs = regs(tid);
    let thread = Thread { pid: Pid(target.pid), tid: Tid(tid), regs: &regs };
    Prover::new().prove(&target.memory(), &maps(target.pid), true, thread, watch).unwrap()
}

fn blocker(verdict: Verdict, context: &str) -> Blocker {
    match verdict {
        Verdict::Blocked(blocker) => blocker,
        other => panic!("{context}: {other:?}"),
    }
}

#[test]
fn names_the_frame_that_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for (mode, name, frame) in [
        ("plain", "leaf", 0),
        ("plain", "inner", 1),
        ("plain", "wanted", 2),
        ("plain", "main", 3),
        ("deep", "wanted_deep", 2),
        ("thread", "wanted", 2),
        ("thread", "thread", 3),
    ] {
        let blocker = blocker(prove(&exe, mode, &[name]), mode);
        assert_eq!(blocker.frame, Some(frame), "{mode} {name}: {blocker:?}");
        assert_eq!(blocker.function(), Some(name), "{mode}");
        assert!(matches!(blocker.reason, Reason::RunsIn), "{mode}: {blocker:?}");
        assert!(blocker.backtrace.len() > frame, "{mode}: {blocker:?}");
    }
}

#[test]
fn names_what_a_signal_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    let blocker = blocker(prove(&exe, "fault", &["wanted_faulting"]), "fault");
    assert!(matches!(blocker.reason, Reason::SignalFrame), "{blocker:?}");
    // leaf, fault_handler, the trampoline, and the interrupted function.
    assert_eq!(blocker.frame, Some(3), "{blocker:?}");
    // Behind raise(), which the signal interrupted in the C library, the caller is in a frame like any other.
    for mode in ["signal", "altstack", "altstack-thread"] {
        let blocker = self::blocker(prove(&exe, mode, &["wanted_interrupted"]), mode);
        assert!(matches!(blocker.reason, Reason::RunsIn), "{mode}: {blocker:?}");
        assert!(blocker.frame.unwrap() > 3, "{mode}: {blocker:?}");
    }
}

#[test]
fn a_suspended_stack_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    let blocker = blocker(prove(&exe, "coroutine", &["wanted_suspended"]), "coroutine");
    assert!(matches!(blocker.reason, Reason::Suspended(_) | Reason::Unreliable { .. }), "{blocker:?}");
    match prove(&exe, "coroutine", &["elsewhere"]) {
        Verdict::Clean { how: How::Scan, foreign: true } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn stale_words_do_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    // A buffer in a live frame keeps the return addresses of a recursion that is over.
    match prove(&exe, "stale", &["wanted_quiet"]) {
        Verdict::Clean { how: How::Unwind, foreign: false } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_thread_elsewhere_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for mode in ["plain", "deep", "thread", "signal", "altstack", "fault", "altstack-thread"] {
        match prove(&exe, mode, &["elsewhere"]) {
            Verdict::Clean { .. } => {}
            other => panic!("{mode}: {other:?}"),
        }
    }
}

#[test]
fn old_mappings_are_enough_on_the_own_stack_only() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for (mode, names, old_will_do) in [
        ("plain", ["elsewhere"], true),
        ("thread", ["elsewhere"], true),
        ("coroutine", ["elsewhere"], false),
        ("altstack", ["elsewhere"], false),
        // Words are found: to unwind, the objects must be known as they are.
        ("plain", ["wanted"], false),
    ] {
        let mut target = Traced::start(&exe, &[mode]);
        let watch = target.watch(&names);
        let tid = first_trap(&mut target);
        let regs = regs(tid);
        let thread = Thread { pid: Pid(target.pid), tid: Tid(tid), regs: &regs };
        let verdict =
            Prover::new().prove(&target.memory(), &maps(target.pid), false, thread, &watch).unwrap();
        assert_eq!(matches!(verdict, Verdict::Clean { .. }), old_will_do, "{mode}: {verdict:?}");
        assert_eq!(matches!(verdict, Verdict::MapsTooOld), !old_will_do, "{mode}: {verdict:?}");
    }
}

#[test]
fn a_scan_of_all_memory_finds_coroutines_and_saved_contexts() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    for (mode, name, expected) in [
        // A coroutine that gave way; the thread is back on its own stack.
        ("gone", "wanted_elsewhere", Some(false)),
        ("gone", "elsewhere", None),
        // The program counter in a jmp_buf.
        ("saved", "wanted_saved", Some(true)),
        ("saved", "elsewhere", None),
    ] {
        let mut target = Traced::start(&exe, &[mode]);
        let watch = target.watch(&[name]);
        let tid = first_trap(&mut target);
        assert_eq!(tid, target.pid);
        let regs = target.regs();
        let (memory, maps) = (target.memory(), target.maps());
        let thread = target.thread(&regs);
        assert!(matches!(prove_at(&target, tid, &watch), Verdict::Clean { .. }), "{mode}");
        let skip = [own_stack(&maps, thread).unwrap()];
        let guard = pointer_guard(&memory, regs.fs_base);
        let scan = scan_memory(&memory, Pid(target.pid), &maps, &watch, &skip, guard).unwrap();
        assert_eq!(scan.hits.first().map(|h| h.mangled), expected, "{mode} {name}: {scan:?}");
    }
}

#[test]
fn the_end_of_the_target_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    let mut target = Traced::start(&exe, &["plain"]);
    let watch = target.watch(&["wanted"]);
    let regs = target.regs();
    let (memory, maps) = (target.memory(), target.maps());
    // SAFETY: no pointers are passed; the process is our unreaped child.
    unsafe { libc::kill(target.pid, libc::SIGKILL) };
    assert_eq!(target.resume_to_end(), Stop::Gone(-libc::SIGKILL));
    let result = Prover::new().prove(&memory, &maps, true, target.thread(&regs), &watch);
    assert!(matches!(result, Err(ugraft_process::Error::TargetGone(_))), "{result:?}");
}
