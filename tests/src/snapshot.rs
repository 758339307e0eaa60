//! What a process is like, to be compared before and after (promise P4).
//!
//! Taken: the bytes of every mapping that is not writable, the mappings themselves, open files with their flags and
//! positions, the signal state of every thread, and the registers, floating-point state included, of every thread
//! that sleeps in a system call. Not taken: what the program writes itself, and registers of threads that run.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::proc::{self, Pid};

/// A process at one moment.
pub struct Snapshot {
    maps: Vec<String>,
    /// Line of `maps` to bytes.
    memory: BTreeMap<String, Vec<u8>>,
    files: Vec<String>,
    /// Thread and its lines of `status` that tell about signals.
    signals: BTreeMap<Pid, Vec<String>>,
    registers: BTreeMap<Pid, Registers>,
}

#[derive(PartialEq, Eq)]
struct Registers {
    named: Vec<(&'static str, u64)>,
    /// The XSAVE area: floating point and vectors.
    extended: Vec<u8>,
}

/// How long a process may take to come to rest.
const SETTLES: Duration = Duration::from_secs(3);

/// The register set of all extended state, `NT_X86_XSTATE` of the kernel's `elf.h`.
const NT_X86_XSTATE: i32 = 0x202;

/// Fields of a thread's `status` that make its signal state.
const SIGNALS: [&str; 5] = ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"];

impl Snapshot {
    /// Looks at the process. Its sleeping threads are stopped by ptrace for a moment, one after another.
    pub fn take(pid: Pid) -> Result<Snapshot> {
        let mut registers = BTreeMap::new();
        for tid in proc::threads(pid) {
            if matches!(proc::state(pid, tid), Ok('S' | 'T')) {
                registers
                    .insert(tid, registers_of(tid).with_context(|| format!("registers of thread {tid}"))?);
            }
        }
        let maps = proc::maps(pid)?;
        Ok(Snapshot {
            memory: memory(pid, &maps)?,
            maps,
            files: files(pid)?,
            signals: proc::threads(pid).into_iter().map(|tid| (tid, signals(pid, tid))).collect(),
            registers,
        })
    }

    /// Looks at the process until two looks in succession agree, so that a thread on its way into its sleep has arrived.
    pub fn settled(pid: Pid) -> Result<Snapshot> {
        let end = Instant::now() + SETTLES;
        let mut snapshot = Snapshot::take(pid)?;
        loop {
            std::thread::sleep(Duration::from_millis(5));
            let next = Snapshot::take(pid)?;
            let agree = snapshot.registers.len() == next.registers.len() && snapshot.compare(&next).is_ok();
            if agree || Instant::now() > end {
                return Ok(next);
            }
            snapshot = next;
        }
    }

    /// Fails if the process does not come to be as it was in the snapshot. It is given the time to fall asleep where
    /// it slept before.
    pub fn check_unchanged(&self, pid: Pid) -> Result<()> {
        let end = Instant::now() + SETTLES;
        loop {
            let result = self.compare(&Snapshot::take(pid)?);
            if result.is_ok() || Instant::now() > end {
                return result;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fails with everything that differs from `self` in the `later` one.
    pub fn compare(&self, later: &Snapshot) -> Result<()> {
        let mut differences = Vec::new();
        list_difference("mapping", &self.maps, &later.maps, &mut differences);
        list_difference("file", &self.files, &later.files, &mut differences);
        for (line, bytes) in &self.memory {
            if let Some(now) = later.memory.get(line)
                && let Some(at) = bytes.iter().zip(now).position(|(a, b)| a != b)
            {
                let start = u64::from_str_radix(line.split('-').next().unwrap_or(""), 16).unwrap_or(0);
                let end = (at + 8).min(bytes.len()).min(now.len());
                differences.push(format!(
                    "memory at {:#x} of {line}: was {:02x?}, is {:02x?}",
                    start + at as u64,
                    &bytes[at..end],
                    &now[at..end]
                ));
            }
        }
        for (tid, was) in &self.signals {
            match later.signals.get(tid) {
                Some(now) if now == was => {}
                now => differences.push(format!("signals of thread {tid}: was {was:?}, is {now:?}")),
            }
        }
        for (tid, was) in &self.registers {
            let Some(now) = later.registers.get(tid) else {
                differences.push(format!("thread {tid} no longer sleeps"));
                continue;
            };
            for (a, b) in was.named.iter().zip(&now.named).filter(|(a, b)| a != b) {
                differences.push(format!("register {} of thread {tid}: was {:#x}, is {:#x}", a.0, a.1, b.1));
            }
            if was.extended != now.extended {
                differences.push(format!("floating-point or vector registers of thread {tid} differ"));
            }
        }
        match differences.is_empty() {
            true => Ok(()),
            false => bail!("the process is not as it was:\n{}", differences.join("\n")),
        }
    }
}

fn list_difference(what: &str, was: &[String], now: &[String], differences: &mut Vec<String>) {
    differences.extend(was.iter().filter(|l| !now.contains(l)).map(|l| format!("{what} gone: {l}")));
    differences.extend(now.iter().filter(|l| !was.contains(l)).map(|l| format!("{what} new: {l}")));
}

/// The bytes of all readable, unwritable mappings but the kernel's own.
fn memory(pid: Pid, maps: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = File::open(format!("/proc/{pid}/mem")).context("cannot open the process's memory")?;
    let mut memory = BTreeMap::new();
    for line in maps {
        let mut words = line.split_whitespace();
        let (Some(range), Some(permissions)) = (words.next(), words.next()) else { continue };
        if !permissions.starts_with("r-")
            || line.ends_with("[vvar]")
            || line.contains("[vvar_")
            || line.ends_with("[vsyscall]")
        {
            continue;
        }
        let (start, end) = range.split_once('-').context("a line of maps has no range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // A mapping beyond the end of its file cannot be read; then there is nothing to compare.
        let mut filled = 0;
        while let Ok(n @ 1..) = file.read_at(&mut bytes[filled..], start + filled as u64) {
            filled += n;
        }
        bytes.truncate(filled);
        memory.insert(line.clone(), bytes);
    }
    Ok(memory)
}

fn files(pid: Pid) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let number = entry?.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find(|l| l.starts_with("flags:")).unwrap_or_default();
        files.push(format!("{number} -> {} {flags}", link.display()));
    }
    files.sort();
    Ok(files)
}

fn signals(pid: Pid, tid: Pid) -> Vec<String> {
    SIGNALS
        .iter()
        .filter_map(|field| Some(format!("{field} {}", proc::status_field(pid, tid, field).ok()?)))
        .collect()
}

/// Detaches the thread whatever happens.
struct Traced(Pid);

impl Drop for Traced {
    fn drop(&mut self) {
        // SAFETY: PTRACE_DETACH takes numbers only.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

fn registers_of(tid: Pid) -> Result<Registers> {
    let os = || std::io::Error::last_os_error();
    // SAFETY: SEIZE and INTERRUPT take numbers only.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) } != 0 {
        bail!("PTRACE_SEIZE: {}", os());
    }
    // SAFETY: as above.
    if unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) } != 0 {
        bail!("PTRACE_INTERRUPT: {}", os());
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    if unsafe { libc::waitpid(tid, &mut status, libc::__WALL) } != tid || !libc::WIFSTOPPED(status) {
        bail!("the thread did not stop");
    }
    let traced = Traced(tid);
    // SAFETY: user_regs_struct is plain numbers, for which zeros are a value.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    get_set(tid, libc::NT_PRSTATUS, (&raw mut regs).cast(), size_of_val(&regs))?;
    if regs.rax as i64 == -4 && regs.orig_rax as i64 >= 0 {
        // An interrupted call that returns EINTR to the program after a mere stop is made to restart unnoticed
        // (-514, ERESTARTNOHAND): the harness must not be what disturbs the target.
        regs.rax = -514i64 as u64;
        let mut iov = libc::iovec { iov_base: (&raw mut regs).cast(), iov_len: size_of_val(&regs) };
        // SAFETY: the kernel reads `iov` and the registers it points to; both outlive the call.
        if unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, libc::NT_PRSTATUS as usize, &raw mut iov) } != 0
        {
            bail!("PTRACE_SETREGSET: {}", os());
        }
    }
    let mut extended = vec![0u8; 16384];
    let filled = get_set(tid, NT_X86_XSTATE, extended.as_mut_ptr().cast(), extended.len())?;
    extended.truncate(filled);
    drop(traced);
    // Not rax and orig_rax: any stop turns a sleep into its restart, which shows there.
    let named = vec![
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("eflags", regs.eflags),
        ("fs_base", regs.fs_base),
        ("gs_base", regs.gs_base),
    ];
    Ok(Registers { named, extended })
}

fn get_set(tid: Pid, set: i32, buffer: *mut libc::c_void, length: usize) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buffer, iov_len: length };
    // SAFETY: the caller's buffer has `length` bytes, and the kernel writes no more than iov_len.
    if unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set as usize, &raw mut iov) } != 0 {
        bail!("PTRACE_GETREGSET: {}", std::io::Error::last_os_error());
    }
    Ok(iov.iov_len)
}
