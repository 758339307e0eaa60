//! The word scan on real threads: on their own stacks, in signal handlers, on coroutines.

#[path = "stacks_support/mod.rs"]
mod support;

use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use support::{Traced, build, first_trap, functions, maps, regs};
use ugraft_process::stacks::scan::{Place, Scan, ScanFailure, Scanner, StackKind, Thread};
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

#[test]
fn finds_what_a_signal_interrupted_on_a_stack_of_the_programs_own() {
    // musl puts the thread pointer of such a thread elsewhere; only the signal frame leads to the stack.
    let dir = tempfile::tempdir().unwrap();
    let glibc = program(dir.path());
    let musl = build(dir.path(), "musl", "musl-gcc", &["-O2", "-static"], &["where.c"]);
    for (exe, mode) in [(&glibc, "altstack-guarded"), (&glibc, "altstack-small"), (&musl, "altstack-small")] {
        let scan = scan_at_stop(exe, mode, &["wanted_interrupted"]);
        assert!(!scan.hits.is_empty(), "{}: {scan:x?}", exe.display());
        let scan = scan_at_stop(exe, mode, &["elsewhere"]);
        assert_eq!(scan.hits, [], "{}", exe.display());
    }
}

#[test]
fn a_neighbours_stack_in_the_same_mapping_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let exe = program(dir.path());
    let scan = scan_at_stop(&exe, "altstack-guarded", &["wanted"]);
    assert!(scan.stacks.iter().any(|s| s.kind == StackKind::Suspended), "{scan:x?}");
    assert_eq!(scan.hits, []);
}

/// Whether a return probe can be set here, on the function at a file offset of a program; the probe lasts as long as
/// the descriptor.
fn return_probe(exe: &Path, offset: u64) -> Option<OwnedFd> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/bus/event_source/devices/uprobe/{name}"));
    let kind: u32 = read("type").ok()?.trim().parse().unwrap();
    let bit: u64 = read("format/retprobe").ok()?.trim().strip_prefix("config:")?.parse().unwrap();
    let path = CString::new(exe.as_os_str().as_bytes()).unwrap();
    // struct perf_event_attr, version 1 (include/uapi/linux/perf_event.h), in 8-byte words: type and size, config,
    // sample period, sample type, read format, flags, wakeup and breakpoint type, config1, config2.
    let mut attr = [0u64; 9];
    attr[0] = u64::from(kind) | 72 << 32;
    attr[1] = 1 << bit;
    attr[7] = path.as_ptr() as u64;
    attr[8] = offset;
    // SAFETY: the structure and the path that it points to outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 0) };
    // SAFETY: the descriptor is new and ours.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[test]
fn a_return_probe_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    // Not position-independent, so that file offsets are easily told: text is mapped from 0x401000 at 0x1000.
    let exe = build(dir.path(), "where", "gcc", &["-O2", "-pthread", "-no-pie"], &["where.c"]);
    let pausing = functions(&exe).into_iter().find(|f| f.name == "pausing").unwrap();
    let Some(_probe) = return_probe(&exe, pausing.address - 0x400000) else {
        return eprintln!("skipped: no return probes here ({})", std::io::Error::last_os_error());
    };
    let mut target = Traced::start(&exe, &["returns"]);
    let watch = target.watch(&["wanted_pausing"]);
    // The probe replaces the return address at the function's first instruction: step into what it calls.
    let poll = ["pausing", "wanted_pausing"].map(|name| target.address(name));
    target.run_to(poll[1]);
    while !(poll[0] + 1..poll[0] + pausing.size).contains(&target.regs().rip) {
        assert_eq!(target.step(0), support::Stop::Signal(libc::SIGTRAP, 0));
    }
    let regs = target.regs();
    let result = Scanner::default().scan(&target.memory(), &target.maps(), target.thread(&regs), &watch);
    assert!(matches!(result, Err(ScanFailure::ReturnProbe(_))), "{result:x?}");
}
