//! A second opinion on the unwinder: gdb's, on programs nobody here wrote.
//!
//! gdb guesses where call frame information fails, so it may see more frames than the strict unwinder; but as far as the
//! unwinder goes, they must be the same, and where it reaches the outermost frame, gdb must not see another.

#[path = "stacks_support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Stop, exists, maps, regs, wait_for};
use ugraft_process::stacks::cfi::Cfi;
use ugraft_process::stacks::scan::Thread;
use ugraft_process::stacks::unwind::{self, End, Walk};
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, Tid};

/// A program, killed and reaped when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn tids(&self) -> Vec<i32> {
        std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Waits until it has `threads` threads and all of them sleep.
    fn settle(&self, threads: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let asleep = |tid: &i32| {
            std::fs::read_to_string(format!("/proc/{}/task/{tid}/stat", self.pid()))
                .is_ok_and(|s| s.rsplit(')').next().is_some_and(|s| s.starts_with(" S")))
        };
        let mut calm = 0;
        while calm < 20 {
            assert!(Instant::now() < deadline, "{:?}", self.tids());
            let tids = self.tids();
            calm = if tids.len() >= threads && tids.iter().all(asleep) { calm + 1 } else { 0 };
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the unwinder says of every thread.
    fn walks(&self) -> BTreeMap<i32, Walk> {
        let pid = self.pid();
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        let memory = Memory::new(Pid(pid), file);
        let mut cfi = Cfi::default();
        let walk = |tid: i32| {
            for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                // SAFETY: no pointers are passed.
                assert_eq!(unsafe { libc::ptrace(request, tid, 0, 0) }, 0);
            }
            assert!(matches!(wait_for(tid), Stop::Signal(libc::SIGTRAP, _)));
            let regs = regs(tid);
            let thread = Thread { pid: Pid(pid), tid: Tid(tid), regs: &regs };
            let walk = unwind::walk(&mut cfi, &memory, &maps(pid), thread);
            // SAFETY: no pointers are passed.
            assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, 0) }, 0);
            (tid, walk)
        };
        self.tids().into_iter().map(walk).collect()
    }

    /// What gdb says of every thread: the program counters from the innermost frame on, without the frames that it
    /// makes up from debugging information for inlined functions and tail calls.
    fn gdb(&self) -> BTreeMap<i32, Vec<u64>> {
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
            .args(["-nx", "-batch", "-p", &self.pid().to_string(), "-x"])
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
}

/// Compares; `complete` threads at least must be walked to their outermost frame.
fn compare(program: &Program, complete: usize) {
    let walks = program.walks();
    let gdb = program.gdb();
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
    const PYTHON: &str = "/usr/bin/python3";
    if !exists(PYTHON) || !exists("/usr/bin/gdb") {
        return eprintln!("skipped: {PYTHON} or gdb is not here");
    }
    const SCRIPT: &str = "
import threading, time, select, socket, signal, queue, re, os, functools
def deep(n, f): return f() if n == 0 else deep(n - 1, f)
lock = threading.Lock(); lock.acquire()
r, w = os.pipe()
a, b = socket.socketpair()
q = queue.Queue()
ways = [lambda: time.sleep(1000), lambda: lock.acquire(), lambda: os.read(r, 1), lambda: a.recv(1), q.get,
        lambda: select.select([r], [], []), lambda: select.poll().poll(), lambda: signal.sigwait([signal.SIGUSR1]),
        lambda: sorted([2, 1], key=lambda x: time.sleep(1000)), lambda: re.sub('a', lambda m: time.sleep(1000), 'a'),
        lambda: functools.reduce(lambda x, y: time.sleep(1000), [1, 2])]
for i, way in enumerate(ways):
    threading.Thread(target=deep, args=(i * 3, way), daemon=True).start()
deep(20, lambda: time.sleep(1000))
";
    let program = Program::start(Command::new(PYTHON).args(["-c", SCRIPT]));
    program.settle(12);
    compare(&program, 10);
}

#[test]
fn redis_server() {
    const REDIS: &str = "/usr/bin/redis-server";
    if !exists(REDIS) || !exists("/usr/bin/gdb") {
        return eprintln!("skipped: {REDIS} or gdb is not here");
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let program = Program::start(
        Command::new(REDIS)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--hz", "1", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path()),
    );
    program.settle(4);
    compare(&program, 3);
}

#[test]
fn a_shell_that_waits() {
    const BASH: &str = "/bin/bash";
    if !Path::new(BASH).exists() || !exists("/usr/bin/gdb") {
        return eprintln!("skipped: {BASH} or gdb is not here");
    }
    let script = "f() { if [ $1 = 0 ]; then read x; else f $(($1 - 1)); fi; }; f 10";
    let program = Program::start(Command::new(BASH).args(["-c", script]));
    program.settle(1);
    compare(&program, 1);
}
