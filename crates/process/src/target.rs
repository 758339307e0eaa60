//! The target: which process it is, whether it can be worked on at all, and the ways to its memory and its threads.
//!
//! A target is opened without stopping or tracing anything. Its identity is the process id, the start time, and the
//! place of its program in memory, so that neither a reused id nor an `exec` is mistaken for it.

pub mod lock;
pub mod maps;
pub mod memory;
pub(crate) mod pages;
pub mod stat;

use crate::target::maps::Maps;
use crate::target::memory::Memory;
use crate::target::stat::{ThreadStat, gone};
use crate::{Error, Pid, RemoteAddr, Result, Tid};
use rustix::fs::{Mode, OFlags, RawDir};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Why a process that exists cannot be a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// It has exited, and its parent has not fetched its exit status.
    #[error("it has exited (a zombie)")]
    Zombie,
    /// It is part of the kernel.
    #[error("it is a kernel thread")]
    KernelThread,
    /// The id is that of a thread that is not the first of its process.
    #[error("it is a thread of process {0}; give that process's id")]
    ThreadOf(Pid),
    /// It is this very process.
    #[error("it is this program itself")]
    Ourselves,
    /// Its program is not for the 64-bit mode of x86-64.
    #[error("its program is {0}; only 64-bit x86-64 (ELF64) programs can be patched")]
    NotX86_64(String),
    /// Its loader has not loaded what it needs.
    #[error("its program is only just being started; try again in a moment")]
    Starting,
    /// The kernel or the processor does not let programs read their fs base.
    #[error("the kernel does not enable the rdfsbase instruction (x86 FSGSBASE, Linux 5.9 and later)")]
    NoFsGsBase,
}

/// The kernel lets programs read their fs base (AT_HWCAP2, arch/x86/include/uapi/asm/hwcap2.h), as stubs do.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// What stays the same while a process runs one program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    start_time: u64,
    start_code: RemoteAddr,
    start_stack: RemoteAddr,
}

impl Identity {
    fn of(stat: &ThreadStat) -> Self {
        Self { start_time: stat.start_time, start_code: stat.start_code, start_stack: stat.start_stack }
    }
}

/// A running process that can be patched.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    identity: Identity,
    memory: Memory,
    /// Its `maps`, of the address space that `memory` is of.
    maps: File,
    /// Its `/proc/PID/task`.
    tasks: File,
    /// A thread that was alive when last asked.
    live: AtomicI32,
    start_brk: RemoteAddr,
}

impl Target {
    /// Opens process `pid`, whose threads are to be stopped: nothing is stopped, traced or changed by that.
    ///
    /// # Errors
    /// [`Error::AlreadyTraced`] where somebody else does so, and those of [`Target::open_to_read`].
    pub fn open(pid: Pid) -> Result<Self> {
        let target = Self::open_to_read(pid)?;
        match target.tracer()? {
            Some((tid, tracer, comm)) => Err(Error::AlreadyTraced { tid, tracer, comm }),
            None => Ok(target),
        }
    }

    /// Opens process `pid`, whoever traces it.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`], [`Error::Unfit`], or [`Error::Permission`], which say what to do about it.
    pub fn open_to_read(pid: Pid) -> Result<Self> {
        let result = Self::open_once(pid);
        let raw = rustix::process::Pid::from_raw(pid.0.max(0));
        match (result, raw) {
            // For a moment within an exec in another thread, procfs does not show the process.
            (Err(Error::NoSuchProcess(_)), Some(raw)) if rustix::process::test_kill_process(raw).is_ok() => {
                std::thread::sleep(Duration::from_millis(1));
                Self::open_once(pid)
            }
            (result, _) => result,
        }
    }

    fn open_once(pid: Pid) -> Result<Self> {
        if pid.0 <= 0 {
            return Err(Error::NoSuchProcess(pid));
        }
        let unfit = |why| Error::Unfit { pid, why };
        if pid.0.cast_unsigned() == std::process::id() {
            return Err(unfit(Unfit::Ourselves));
        }
        let status = read_text(&format!("/proc/{pid}/status")).map_err(|e| open_error(pid, e))?;
        match status_field(&status, "Tgid").and_then(|s| s.parse().ok()) {
            Some(tgid) if tgid != pid.0 => return Err(unfit(Unfit::ThreadOf(Pid(tgid)))),
            _ => {}
        }
        let first = ThreadStat::read(pid, Tid(pid.0))?.ok_or(Error::NoSuchProcess(pid))?;
        if first.is_kernel_thread() {
            return Err(unfit(Unfit::KernelThread));
        }
        // The first thread may have left by pthread_exit while others run on: then what belongs to the process as a
        // whole is reached through one of those.
        let (live, stat) = match first.is_dead() {
            false => (Tid(pid.0), first),
            true => live_thread(pid)?.ok_or_else(|| unfit(Unfit::Zombie))?,
        };
        let dir = format!("/proc/{pid}/task/{live}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("{dir}/mem"))
            .map_err(|e| open_error(pid, e))?;
        check_machine(pid, &format!("{dir}/exe"))?;
        if hwcap2() & HWCAP2_FSGSBASE == 0 {
            return Err(unfit(Unfit::NoFsGsBase));
        }
        let target = Self {
            pid,
            identity: Identity::of(&stat),
            memory: Memory::new(pid, file),
            maps: File::open(format!("{dir}/maps")).map_err(|e| open_error(pid, e))?,
            tasks: File::open(format!("/proc/{pid}/task")).map_err(|e| open_error(pid, e))?,
            live: AtomicI32::new(live.0),
            start_brk: stat.start_brk,
        };
        // Whatever was opened above belongs to the program that was found first, or the process is refused.
        target.check_same()?;
        Ok(target)
    }

    /// A thread of it, the process that traces that one, and its name, where there is such.
    ///
    /// # Errors
    /// [`Error::TargetGone`], or [`Error::Proc`].
    pub fn tracer(&self) -> Result<Option<(Tid, Pid, String)>> {
        let tid = self.live_thread()?;
        Ok(tracer_of(self.pid, tid)?.map(|(tracer, comm)| (tid, tracer, comm)))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where its heap (`brk`) begins, and grows upwards from.
    #[must_use]
    pub fn start_brk(&self) -> RemoteAddr {
        self.start_brk
    }

    /// Its start time, in clock ticks since boot: with the id, it names a process uniquely until the next boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.identity.start_time
    }

    /// The name of its first thread.
    ///
    /// # Errors
    /// [`Error::TargetGone`].
    pub fn comm(&self) -> Result<String> {
        let stat = ThreadStat::read(self.pid, Tid(self.pid.0))?.ok_or(Error::TargetGone(self.pid))?;
        Ok(stat.comm)
    }

    /// Its mappings. Exact while all its threads are stopped; otherwise, each line was true at some moment of the
    /// reading.
    ///
    /// # Errors
    /// [`Error::TargetGone`], or [`Error::Proc`].
    pub fn maps(&self) -> Result<Maps> {
        let failed = |source| self.proc_error(&format!("/proc/{}/maps", self.pid), source);
        let bytes = read_from_start(&self.maps).map_err(failed)?;
        // The descriptor is of the address space that was opened, of which nothing is left after an exec.
        if bytes.is_empty() {
            return Err(Error::TargetGone(self.pid));
        }
        Maps::parse(&into_text(bytes)).ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))
    }

    /// Its auxiliary vector (getauxval(3)): pairs of type and value.
    ///
    /// # Errors
    /// As [`Target::maps`].
    pub fn auxv(&self) -> Result<Vec<(u64, u64)>> {
        let path = self.proc_path("auxv")?;
        let bytes = read_file(&path).map_err(|source| self.proc_error(&path, source))?;
        let word = |b: &[u8]| b.try_into().map(u64::from_le_bytes).unwrap_or_default();
        Ok(bytes
            .chunks_exact(16)
            .map(|pair| (word(&pair[..8]), word(&pair[8..])))
            .take_while(|p| p.0 != 0)
            .collect())
    }

    /// Its threads, dead and kernel-owned ones included, as listed at this moment.
    ///
    /// # Errors
    /// [`Error::TargetGone`], or [`Error::Proc`].
    pub fn threads(&self) -> Result<Vec<Tid>> {
        let failed = |e: rustix::io::Errno| self.proc_error(&format!("/proc/{}/task", self.pid), e.into());
        let mut tids = Vec::new();
        let mut names = [MaybeUninit::uninit(); 16 * 1024];
        // Opened anew, since a descriptor keeps one place in the listing for all who use it.
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = rustix::fs::openat(&self.tasks, ".", how, Mode::empty()).map_err(failed)?;
        let mut entries = RawDir::new(listing, &mut names);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(failed)?;
            tids.extend(entry.file_name().to_str().ok().and_then(|s| s.parse().ok()).map(Tid));
        }
        if tids.is_empty() { Err(Error::TargetGone(self.pid)) } else { Ok(tids) }
    }

    /// What procfs says of one of its threads; `None` if it is gone.
    ///
    /// # Errors
    /// [`Error::Proc`].
    pub fn thread_stat(&self, tid: Tid) -> Result<Option<ThreadStat>> {
        ThreadStat::read_in(&self.tasks, self.pid, tid)
    }

    /// The root directory as it sees it: prefix for the paths in its [`maps`](Self::maps), which may belong to another
    /// mount namespace.
    ///
    /// # Errors
    /// [`Error::TargetGone`].
    pub fn root(&self) -> Result<PathBuf> {
        self.proc_path("root").map(PathBuf::from)
    }

    /// Its program file, by a path that works even if the file was deleted or replaced.
    ///
    /// # Errors
    /// [`Error::TargetGone`].
    pub fn exe(&self) -> Result<PathBuf> {
        self.proc_path("exe").map(PathBuf::from)
    }

    /// Whether it is stopped by job control (SIGSTOP, SIGTSTP...). It stays so through all we do.
    ///
    /// # Errors
    /// [`Error::TargetGone`].
    pub fn is_job_stopped(&self) -> Result<bool> {
        let (_, stat) = live_thread(self.pid)?.ok_or(Error::TargetGone(self.pid))?;
        Ok(stat.state == 'T')
    }

    /// Fails if the process is no longer the program that was opened: it exited, its id was reused, or it called
    /// `exec`.
    ///
    /// # Errors
    /// [`Error::TargetGone`], or [`Error::Proc`].
    pub fn check_same(&self) -> Result<()> {
        let first = self.thread_stat(Tid(self.pid.0))?.ok_or(Error::TargetGone(self.pid))?;
        let stat = match first.is_dead() {
            false => first.clone(),
            true => live_thread(self.pid)?.ok_or(Error::TargetGone(self.pid))?.1,
        };
        // Threads have start times of their own; the process's is its first thread's, which remains listed until all
        // are gone, and which an exec in another thread takes over with the id.
        let now = Identity { start_time: first.start_time, ..Identity::of(&stat) };
        if now != self.identity { Err(Error::TargetGone(self.pid)) } else { self.check_not_execed() }
    }

    /// What is to be said of a failure: where the process has ended, that it has, and not what was missing of it then. What was
    /// decided before it ended remains so.
    #[must_use]
    pub(crate) fn cause_of(&self, error: Error) -> Error {
        match error {
            Error::Refused(_)
            | Error::NotPatched(_)
            | Error::NoParam { .. }
            | Error::Busy { .. }
            | Error::TimedOut { .. }
            | Error::InTransition { .. }
            | Error::CallbackRefused { .. }
            | Error::CallbackFailed { .. }
            | Error::CallbackRuns { .. } => error,
            _ => match self.check_same() {
                Err(gone @ Error::TargetGone(_)) => gone,
                _ => error,
            },
        }
    }

    /// Fails if the address space that was opened is gone: the part of [`check_same`](Self::check_same) that can
    /// be asked within a stop, in a microsecond.
    pub(crate) fn check_not_execed(&self) -> Result<()> {
        if self.memory.is_alive(self.identity.start_stack) {
            Ok(())
        } else {
            Err(Error::TargetGone(self.pid))
        }
    }

    /// A thread that lives: the first one, unless that has left by pthread_exit(3). What is the process's own is seen
    /// through it, below `/proc/TID` too, which is there for threads but not listed (proc_pid(5)).
    ///
    /// # Errors
    /// [`Error::TargetGone`].
    pub fn live_thread(&self) -> Result<Tid> {
        let known = Tid(self.live.load(Ordering::Relaxed));
        let tid = match self.thread_stat(known)? {
            Some(stat) if !stat.is_dead() => known,
            _ => {
                let (tid, _) = live_thread(self.pid)?.ok_or(Error::TargetGone(self.pid))?;
                self.live.store(tid.0, Ordering::Relaxed);
                tid
            }
        };
        Ok(tid)
    }

    /// The path of `file` in the procfs directory of a thread that lives.
    fn proc_path(&self, file: &str) -> Result<String> {
        Ok(format!("/proc/{}/{file}", self.live_thread()?))
    }

    fn proc_error(&self, path: &str, source: io::Error) -> Error {
        if gone(&source) {
            Error::TargetGone(self.pid)
        } else {
            Error::Proc { path: path.to_owned(), source }
        }
    }
}

/// The ids listed for a process, or `None` if there is no process.
fn list_threads(pid: Pid) -> Result<Option<Vec<Tid>>> {
    let path = format!("/proc/{pid}/task");
    let failed = |source| Error::Proc { path: path.clone(), source };
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut tids = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => tids.extend(entry.file_name().to_str().and_then(|s| s.parse().ok()).map(Tid)),
            Err(e) if gone(&e) => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(Some(tids))
}

/// A thread of the process that has not exited, the first if possible; with the first one's start time, which names the
/// process.
pub(crate) fn live_thread(pid: Pid) -> Result<Option<(Tid, ThreadStat)>> {
    let first = Tid(pid.0);
    // An exec in another thread gives that one the first one's id; both may be missed in one pass.
    for _ in 0..3 {
        let start_time = match ThreadStat::read(pid, first)? {
            None => return Ok(None),
            Some(stat) if !stat.is_dead() => return Ok(Some((first, stat))),
            Some(stat) => stat.start_time,
        };
        for tid in list_threads(pid)?.unwrap_or_default() {
            if let Some(stat) = ThreadStat::read(pid, tid)?
                && !stat.is_dead()
                && !stat.is_worker()
            {
                return Ok(Some((tid, ThreadStat { start_time, ..stat })));
            }
        }
    }
    Ok(None)
}

/// The process that traces a thread, and its name.
pub(crate) fn tracer_of(pid: Pid, tid: Tid) -> Result<Option<(Pid, String)>> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let status = match read_text(&path) {
        Ok(status) => status,
        Err(e) if gone(&e) => return Ok(None),
        Err(source) => return Err(Error::Proc { path, source }),
    };
    Ok(tracer_in(&status))
}

/// The process that traces a thread, and its name, from the thread's `status`.
fn tracer_in(status: &str) -> Option<(Pid, String)> {
    let tracer = status_field(status, "TracerPid").and_then(|s| s.parse().ok()).unwrap_or(0);
    if tracer == 0 {
        return None;
    }
    let comm = read_text(&format!("/proc/{tracer}/comm")).unwrap_or_default();
    Some((Pid(tracer), comm.trim_end().to_owned()))
}

/// The value of one line of a `status` file.
pub(crate) fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A whole procfs file; names in it need not be UTF-8.
pub(crate) fn read_text(path: &str) -> io::Result<String> {
    read_file(path).map(into_text)
}

fn read_file(path: &str) -> io::Result<Vec<u8>> {
    read_from_start(&File::open(path)?)
}

/// All that a procfs file holds now. Such files have no size to ask for, and give no more than a page at once.
fn read_from_start(file: &File) -> io::Result<Vec<u8>> {
    /// What one read is given room for.
    const PIECE: usize = 4096;
    let mut bytes = vec![0; 2 * PIECE];
    let mut len = 0;
    loop {
        match file.read_at(&mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if bytes.len() - len < PIECE {
            bytes.resize(bytes.len() * 2, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn open_error(pid: Pid, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::NoSuchProcess(pid),
        Some(libc::EACCES | libc::EPERM) => Error::Permission(pid, permission_advice(pid)),
        _ => Error::Proc { path: format!("/proc/{pid}/mem"), source: e },
    }
}

/// Why tracing may be refused to us, and the way out, from what can be seen.
pub(crate) fn permission_advice(pid: Pid) -> String {
    let status = read_text(&format!("/proc/{pid}/status")).unwrap_or_default();
    let owner =
        status_field(&status, "Uid").and_then(|s| s.split_ascii_whitespace().next()?.parse::<u32>().ok());
    let us = rustix::process::geteuid().as_raw();
    let scope = read_text("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match (owner, scope.trim()) {
        (Some(uid), _) if us != 0 && uid != us => {
            format!("it belongs to user {uid} and this program runs as user {us}; run it as that user, or with sudo")
        }
        (_, "3") => "kernel.yama.ptrace_scope is 3, which forbids tracing until the next boot".to_owned(),
        (_, "1" | "2") if us != 0 => format!(
            "kernel.yama.ptrace_scope is {}; run this program with sudo, or set it to 0 (sysctl)",
            scope.trim()
        ),
        _ if us != 0 => "it may hold privileges (setuid, capabilities) or have made itself undumpable; run this program \
                         with sudo"
            .to_owned(),
        _ => "it lies outside what this container or security policy lets root trace; CAP_SYS_PTRACE is needed, in \
              the target's user namespace"
            .to_owned(),
    }
}

/// Refuses programs for other processors and for the 32-bit modes (i386, x32) by their ELF header.
fn check_machine(pid: Pid, exe: &str) -> Result<()> {
    const CLASS: usize = 4;
    const CLASS64: u8 = 2;
    const MACHINE: usize = 18;
    const X86_64: u16 = 62;
    const I386: u16 = 3;
    let mut header = [0u8; 20];
    File::open(exe).and_then(|mut f| f.read_exact(&mut header)).map_err(|e| {
        if e.kind() == io::ErrorKind::UnexpectedEof { Error::TargetGone(pid) } else { open_error(pid, e) }
    })?;
    let machine = u16::from_le_bytes([header[MACHINE], header[MACHINE + 1]]);
    let what = match (&header[..4], header[CLASS], machine) {
        (b"\x7fELF", CLASS64, X86_64) => return Ok(()),
        (b"\x7fELF", _, X86_64) => "for the x32 ABI".to_owned(),
        (b"\x7fELF", _, I386) => "for 32-bit x86 (i386)".to_owned(),
        (b"\x7fELF", _, machine) => format!("for another processor (ELF machine {machine})"),
        _ => "not an ELF file".to_owned(),
    };
    Err(Error::Unfit { pid, why: Unfit::NotX86_64(what) })
}

/// What the kernel tells every process of the machine (AT_HWCAP2).
fn hwcap2() -> u64 {
    rustix::param::linux_hwcap().1 as u64
}
