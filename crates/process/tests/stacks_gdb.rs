//! A second opinion on the unwinder: gdb's, on programs nobody here wrote.
//!
//! gdb guesses where call frame information fails, so it may see more frames than the strict unwinder; but as far as the
//! unwinder goes, they must be the same, and where it reaches the outermost frame, gdb must not see another.

#[path = "stacks_support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use support::exists;
use support::programs::{self, Program};
use ugraft_process::stacks::unwind::End;

/// What gdb says of every thread: the program counters from the innermost frame on, without the frames that it
/// makes up from debugging information for inlined functions and tail calls.
fn gdb(program: &Program) -> BTreeMap<i32, Vec<u64>> {
    const SCRIPT: &str = "
gdb.execute('set backtrace past-main on')
gdb.execute('set backtrace past-entry on')
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame, pcs = gdb.newest_frame(), []
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            pcs.append('%x' % frame.pc())
        frame = frame.older()
    print('frames', thread.ptid[1], *pcs)
";
    let mut script = tempfile::Builder::new().suffix(".py").tempfile().unwrap();
    script.write_all(SCRIPT.as_bytes()).unwrap();
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &program.pid().to_string(), "-x"])
        .arg(script.path())
        .env("DEBUGINFOD_URLS", "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let frames = text.lines().filter_map(|line| line.strip_prefix("frames ")).map(|line| {
        let mut words = line.split(' ');
        let tid = words.next().unwrap().parse().unwrap();
        (tid, words.map(|w| u64::from_str_radix(w, 16).unwrap()).collect())
    });
    let frames: BTreeMap<_, _> = frames.collect();
    assert!(!frames.is_empty(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    frames
}

/// Compares; `complete` threads at least must be walked to their outermost frame.
fn compare(program: Option<Program>, complete: usize) {
    let Some(program) = program else { return };
    if !exists("/usr/bin/gdb") {
        return eprintln!("skipped: gdb is not here");
    }
    let walks = program.walks();
    let gdb = gdb(&program);
    // Threads that woke up meanwhile cannot be compared.
    let again = program.walks();
    let mut reached = 0;
    for (tid, walk) in &walks {
        if again.get(tid).is_none_or(|w| w.frames != walk.frames) {
            continue;
        }
        let ours: Vec<u64> = walk.frames.iter().map(|f| f.pc).collect();
        let theirs = &gdb[tid];
        if walk.end == End::Outermost {
            reached += 1;
            assert_eq!(&ours, theirs, "{:x?} {:x?}", walk, theirs);
        } else {
            assert!(theirs.starts_with(&ours), "{:x?} {:x?}", walk, theirs);
        }
    }
    let ends: Vec<_> = walks.values().map(|w| (&w.end, w.frames.len())).collect();
    assert!(reached >= complete, "{ends:x?}");
}

#[test]
fn python_with_threads_in_many_places() {
    compare(programs::python(), 10);
}

#[test]
fn redis_server() {
    compare(programs::redis(), 3);
}

#[test]
fn a_shell_that_waits() {
    compare(programs::bash(), 1);
}
