//! Programs nobody here wrote, with their threads asleep in many places.

use super::{Stop, exists, maps, regs, wait_for};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use ugraft_process::stacks::cfi::Cfi;
use ugraft_process::stacks::scan::Thread;
use ugraft_process::stacks::unwind::{self, Walk};
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, Tid};

/// A program, killed and reaped when dropped.
pub struct Program {
    child: Child,
    /// Where its files are.
    _directory: TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// python3 with threads that wait in many ways, some below recursion; at least twelve. `None` if it is not here.
pub fn python() -> Option<Program> {
    const PYTHON: &str = "/usr/bin/python3";
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
    Program::start(PYTHON, &["-c", SCRIPT], 12)
}

/// redis-server, with its background threads.
pub fn redis() -> Option<Program> {
    let args = ["--port", "0", "--save", "", "--appendonly", "no", "--hz", "1", "--unixsocket", "socket"];
    Program::start("/usr/bin/redis-server", &args, 4)
}

/// bash, waiting for input below ten calls of a function.
pub fn bash() -> Option<Program> {
    let script = "f() { if [ $1 = 0 ]; then read x; else f $(($1 - 1)); fi; }; f 10";
    Program::start("/bin/bash", &["-c", script], 1)
}

impl Program {
    /// Starts it and waits until it has `threads` threads and all of them sleep.
    fn start(path: &str, args: &[&str], threads: usize) -> Option<Self> {
        if !exists(path) {
            eprintln!("skipped: {path} is not here");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(path);
        command.args(args).current_dir(directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let program = Self { child: command.spawn().unwrap(), _directory: directory };
        program.settle(threads);
        Some(program)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn tids(&self) -> Vec<i32> {
        std::fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect()
    }

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

    /// What `look` says of every thread while it is stopped.
    pub fn of_each<T>(&self, mut look: impl FnMut(&Memory, &Maps, Thread<'_>) -> T) -> BTreeMap<i32, T> {
        let pid = self.pid();
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        let memory = Memory::new(Pid(pid), file);
        let look = |tid: i32| {
            for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                // SAFETY: no pointers are passed.
                assert_eq!(unsafe { libc::ptrace(request, tid, 0, 0) }, 0);
            }
            assert!(matches!(wait_for(tid), Stop::Signal(libc::SIGTRAP, _)));
            let regs = regs(tid);
            let seen = look(&memory, &maps(pid), Thread { pid: Pid(pid), tid: Tid(tid), regs: &regs });
            // SAFETY: no pointers are passed.
            assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, 0) }, 0);
            (tid, seen)
        };
        self.tids().into_iter().map(look).collect()
    }

    /// What the unwinder says of every thread.
    pub fn walks(&self) -> BTreeMap<i32, Walk> {
        let mut cfi = Cfi::default();
        self.of_each(|memory, maps, thread| unwind::walk(&mut cfi, memory, maps, thread))
    }
}
