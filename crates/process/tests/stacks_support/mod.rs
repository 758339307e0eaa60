//! What the tests of stacks share: programs compiled on the spot, run under ptrace, and gone when the test is.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod programs;

use object::{Object, ObjectSymbol};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use ugraft_process::stacks::scan::Thread;
use ugraft_process::stacks::watch::{Part, Watch, WatchRange};
use ugraft_process::target::maps::Maps;
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, RemoteAddr, Tid};

/// Compiles sources of `tests/programs/` into `dir` with `cc` and its arguments; returns the program.
pub fn build(dir: &Path, out: &str, cc: &str, args: &[&str], sources: &[&str]) -> PathBuf {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let exe = dir.join(out);
    let output = Command::new(cc)
        .args(args)
        .arg("-o")
        .arg(&exe)
        .args(sources.iter().map(|s| programs.join(s)))
        .output()
        .unwrap_or_else(|e| panic!("{cc}: {e}"));
    assert!(output.status.success(), "{cc} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    exe
}

/// A function's place in an ELF file: name, link address, size.
#[derive(Clone, Debug)]
pub struct Symbol {
    pub name: String,
    pub address: u64,
    pub size: u64,
}

/// The functions that the file's symbol tables name.
pub fn functions(path: &Path) -> Vec<Symbol> {
    let data = fs::read(path).unwrap();
    let file = object::File::parse(&*data).unwrap();
    file.symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.is_definition() && s.kind() == object::SymbolKind::Text)
        .map(|s| Symbol { name: s.name().unwrap().to_owned(), address: s.address(), size: s.size() })
        .collect()
}

/// Calls a system call that returns -1 on failure.
fn check(what: &str, result: i64) -> i64 {
    assert!(result != -1, "{what}: {}", std::io::Error::last_os_error());
    result
}

/// Why a traced thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With this signal (SIGTRAP for a step) and ptrace event.
    Signal(i32, i32),
    /// It exited with this status, or was killed by minus this signal.
    Gone(i32),
}

/// A process traced from its first instruction, killed and reaped when dropped.
pub struct Traced {
    pub pid: i32,
    gone: bool,
    pub exe: PathBuf,
}

impl Traced {
    /// Starts `exe` with `args`, stopped before its first instruction. Address randomisation is off, so that runs
    /// can be repeated; output goes nowhere.
    pub fn start(exe: &Path, args: &[&str]) -> Self {
        let path = CString::new(exe.as_os_str().as_bytes()).unwrap();
        let args: Vec<CString> = args.iter().map(|a| CString::new(*a).unwrap()).collect();
        let mut argv = vec![path.as_ptr()];
        argv.extend(args.iter().map(|a| a.as_ptr()));
        argv.push(std::ptr::null());
        // A small, fixed environment, so that where the stack begins does not depend on the caller's.
        let env = [c"LANG=C".as_ptr(), c"PATH=/usr/bin:/bin".as_ptr(), std::ptr::null()];
        let null = CString::new("/dev/null").unwrap();
        // SAFETY: between fork and exec the child calls only async-signal-safe functions, on memory prepared before.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; the pointers live until exec.
            unsafe {
                let fd = libc::open(null.as_ptr(), libc::O_RDWR);
                libc::dup2(fd, 0);
                libc::dup2(fd, 1);
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr());
                libc::_exit(127);
            }
        }
        check("fork", pid.into());
        let mut traced = Self { pid, gone: false, exe: exe.to_owned() };
        assert_eq!(traced.wait(), Stop::Signal(libc::SIGTRAP, 0));
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
        // SAFETY: no pointers are passed.
        check("PTRACE_SETOPTIONS", unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) });
        traced
    }

    fn wait(&mut self) -> Stop {
        let stop = wait_for(self.pid);
        self.gone = matches!(stop, Stop::Gone(_));
        stop
    }

    /// One instruction of the first thread, delivering `signal` if not 0.
    pub fn step(&mut self, signal: i32) -> Stop {
        // SAFETY: no pointers are passed.
        check("PTRACE_SINGLESTEP", unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, signal) });
        self.wait()
    }

    /// Lets the first thread run on to its next stop.
    pub fn resume(&mut self, signal: i32) -> Stop {
        resume(self.pid, signal);
        self.wait()
    }

    /// Waits for the end of a process that was killed.
    pub fn resume_to_end(&mut self) -> Stop {
        self.wait()
    }

    /// Lets the first thread run on until it is about to execute the instruction at `addr`.
    pub fn run_to(&mut self, addr: u64) {
        let memory = self.memory();
        let old = memory.read_vec(RemoteAddr(addr), 1).unwrap();
        memory.write(RemoteAddr(addr), &[0xcc]).unwrap();
        assert_eq!(self.resume(0), Stop::Signal(libc::SIGTRAP, 0));
        memory.write(RemoteAddr(addr), &old).unwrap();
        let mut regs = self.regs();
        assert_eq!(regs.rip, addr + 1);
        regs.rip = addr;
        // SAFETY: the kernel reads the structure, which outlives the call.
        check("PTRACE_SETREGS", unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, 0, &regs) });
    }

    pub fn regs(&self) -> libc::user_regs_struct {
        regs(self.pid)
    }

    pub fn memory(&self) -> Memory {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", self.pid)).unwrap();
        Memory::new(Pid(self.pid), file)
    }

    pub fn maps(&self) -> Maps {
        maps(self.pid)
    }

    /// Where link address 0 of the executable is.
    pub fn bias(&self) -> u64 {
        let data = fs::read(&self.exe).unwrap();
        self.entry() - object::File::parse(&*data).unwrap().entry()
    }

    /// Where the executable's first instruction is.
    pub fn entry(&self) -> u64 {
        let auxv = fs::read(format!("/proc/{}/auxv", self.pid)).unwrap();
        auxv.chunks_exact(16)
            .map(|e| e.split_at(8))
            .find(|(tag, _)| u64::from_le_bytes((*tag).try_into().unwrap()) == libc::AT_ENTRY)
            .map(|(_, value)| u64::from_le_bytes(value.try_into().unwrap()))
            .unwrap()
    }

    /// Where the executable's function of this name is.
    pub fn address(&self, name: &str) -> u64 {
        self.bias() + functions(&self.exe).iter().find(|f| f.name == name).unwrap().address
    }

    pub fn thread<'a>(&self, regs: &'a libc::user_regs_struct) -> Thread<'a> {
        Thread { pid: Pid(self.pid), tid: Tid(self.pid), regs }
    }

    /// A watch for functions of the executable.
    pub fn watch(&self, names: &[&str]) -> Watch {
        let (bias, all) = (self.bias(), functions(&self.exe));
        let found: Vec<_> = all
            .iter()
            .filter(|s| names.contains(&s.name.as_str()))
            .map(|s| WatchRange {
                start: RemoteAddr(bias + s.address),
                end: RemoteAddr(bias + s.address + s.size),
                part: Part::Code,
                function: s.name.clone(),
                key: 0,
            })
            .collect();
        assert!(found.len() >= names.len(), "{names:?} in {}", self.exe.display());
        Watch::new(found)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.gone {
            // SAFETY: no pointers are passed; the process is our unreaped child, so its id is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // Threads that are traced are reaped first: the leader's end is reported after theirs.
            loop {
                let mut status = 0;
                // SAFETY: `status` outlives the call.
                let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
                if tid <= 0 || (tid == self.pid && !libc::WIFSTOPPED(status)) {
                    break;
                }
            }
        }
    }
}

/// Runs a program to its int3, passing signals on; the thread that is there. Of threads that it makes, the first is
/// awaited.
pub fn first_trap(target: &mut Traced) -> i32 {
    let mut tid = target.pid;
    let mut signal = 0;
    loop {
        resume(tid, signal);
        signal = 0;
        match wait_for(tid) {
            Stop::Signal(libc::SIGTRAP, 0) => return tid,
            Stop::Signal(libc::SIGTRAP, libc::PTRACE_EVENT_CLONE) => {
                // The new thread stops by itself; the first one waits for it and needs no more looks.
                tid = fs::read_dir(format!("/proc/{}/task", target.pid))
                    .unwrap()
                    .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
                    .find(|&t: &i32| t != target.pid)
                    .unwrap();
                assert!(matches!(wait_for(tid), Stop::Signal(libc::SIGSTOP, _)));
                resume(target.pid, 0);
            }
            Stop::Signal(other, _) => signal = other,
            gone => panic!("{gone:?}"),
        }
    }
}

/// The next stop of thread `tid`, a tracee of the calling thread.
pub fn wait_for(tid: i32) -> Stop {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let got = unsafe { libc::waitpid(tid, &mut status, libc::__WALL) };
    check("waitpid", got.into());
    if libc::WIFSTOPPED(status) {
        Stop::Signal(libc::WSTOPSIG(status), status >> 16)
    } else if libc::WIFEXITED(status) {
        Stop::Gone(libc::WEXITSTATUS(status))
    } else {
        Stop::Gone(-libc::WTERMSIG(status))
    }
}

/// Lets thread `tid` run on, delivering `signal` if not 0.
pub fn resume(tid: i32, signal: i32) {
    // SAFETY: no pointers are passed.
    check("PTRACE_CONT", unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0, signal) });
}

/// The registers of thread `tid`.
pub fn regs(tid: i32) -> libc::user_regs_struct {
    // SAFETY: the structure is plain numbers.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which outlives the call.
    check("PTRACE_GETREGS", unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &mut regs) });
    regs
}

/// The mappings of process `pid`.
pub fn maps(pid: i32) -> Maps {
    Maps::parse(&fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()).unwrap()
}

/// Whether `path` exists and is a program; tests of optional tools ask.
pub fn exists(path: &str) -> bool {
    File::open(path).is_ok()
}
