//! The tool is killed before each of its system calls in turn, from the first that attaches to the target on. After each,
//! the target must live, work, be neither stopped nor traced, and have every thread back in the call it was blocked in.
//!
//! This program is also the tool that is killed: `killed_tool tool SCENARIO PID THREAD`. The killing one traces it.
#![allow(unsafe_code)]

mod fixture;

use fixture::{Running, descriptors, eventually, states, status_lines};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use ugraft_process::remote::cave;
use ugraft_process::remote::mapping::{MapRequest, Part, Prot, map, unmap};
use ugraft_process::remote::place::{Constraints, place};
use ugraft_process::target::maps::{Mapping, Maps};
use ugraft_process::threads::{stop_all, stop_one};
use ugraft_process::{Pid, Target, Tid, remote};

const WITHIN: Duration = Duration::from_secs(10);
const LEN: u64 = 0x3000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "tool") {
        let id = |i: usize| args[i].parse().unwrap();
        return tool(&args[2], Pid(id(3)), Tid(id(4)));
    }
    if args.iter().any(|arg| arg == "--list") {
        return;
    }
    for scenario in ["one", "all"] {
        kill_everywhere(scenario);
    }
}

/// What the tool does: two mappings made by one thread and removed again.
fn tool(scenario: &str, pid: Pid, tid: Tid) {
    let target = Target::open(pid).unwrap();
    let maps = target.maps().unwrap();
    let requests = requests(&target, &maps);
    let ranges: Vec<_> = requests.iter().map(|r| r.addr..r.addr.offset(LEN as i64)).collect();
    match scenario {
        "one" => {
            let mut thread = stop_one(&target, tid, WITHIN).unwrap().unwrap();
            map(&target, &mut thread, &requests).unwrap();
            unmap(&target, &mut thread, &ranges).unwrap();
            thread.resume().unwrap();
        }
        _ => {
            let mut stopped = stop_all(&target, WITHIN).unwrap();
            let thread = stopped.threads_mut().iter_mut().find(|t| t.tid() == tid).unwrap();
            map(&target, thread, &requests).unwrap();
            unmap(&target, thread, &ranges).unwrap();
            stopped.resume().unwrap();
        }
    }
}

fn requests(target: &Target, maps: &Maps) -> Vec<MapRequest> {
    let near = maps.iter().find(|m| m.exec).unwrap().range();
    let addr = place(maps, 2 * LEN, near, &Constraints::of(target)).unwrap();
    let parts = vec![
        Part { offset: 0, len: 0x1000, prot: Prot::ReadExec },
        Part { offset: 0x1000, len: 0x1000, prot: Prot::ReadWrite },
    ];
    let request = |name: &str, offset| MapRequest {
        name: format!("ugraft:{name}"),
        addr: addr.offset(offset),
        len: LEN,
        parts: parts.clone(),
    };
    vec![request("a", 0), request("b", LEN as i64)]
}

fn ours(maps: &Maps) -> Vec<Mapping> {
    maps.iter().filter(|m| m.name.starts_with("/memfd:ugraft:")).cloned().collect()
}

/// What procfs says of each thread that is blocked for good: arguments, stack pointer and program counter, and the call
/// unless it goes on as restart_syscall(2).
fn blocked(pid: Pid, tids: &[i32]) -> Vec<Vec<String>> {
    let read = |tid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        let mut words: Vec<_> = line.split_ascii_whitespace().map(str::to_owned).collect();
        // The first thread comes back to its call by another way; what its unused argument registers hold differs.
        if words.len() == 9 && tid == &pid.0 {
            words.drain(4..7);
        }
        if words[0] == libc::SYS_poll.to_string() {
            words[0] = libc::SYS_restart_syscall.to_string();
        }
        words
    };
    tids.iter().map(read).collect()
}

fn kill_everywhere(scenario: &str) {
    let mut running = Running::fixture("blocked", &["1"]);
    let pid = running.pid();
    let target = running.target();
    let maps = target.maps().unwrap();
    let text = text_of(&target, &maps);
    let fds = descriptors(pid);
    let masks = status_lines(pid, "SigBlk");
    let all: Vec<i32> = states(pid).into_iter().map(|(tid, _)| tid).collect();
    // The last five are those that sleep for a time again and again; the others stay where they are.
    let forever = &all[..all.len() - 5];
    eventually(|| blocked(pid, forever).iter().all(|words| words.len() > 1));
    let calls = blocked(pid, forever);
    let mut kills = 0;
    let mut interrupted = 0;
    loop {
        let tid = all[kills % all.len()];
        let context = format!("{scenario}, thread {}, killed before call {kills}", kills % all.len());
        let end = killed_before(scenario, pid, tid, kills);
        if std::panic::catch_unwind(|| eventually(|| blocked(pid, forever) == calls)).is_err() {
            let now = blocked(pid, forever);
            let differing: Vec<_> = calls.iter().zip(now).filter(|(a, b)| *a != b).collect();
            panic!("{context}: threads are not where they were: {differing:?}");
        }
        assert!(states(pid).iter().all(|(_, s)| !matches!(s, 't' | 'T')), "{context}");
        assert!(status_lines(pid, "TracerPid").iter().all(|l| l.ends_with("\t0")), "{context}");
        let counts: Vec<i32> = running.ask("count").split(' ').map(|n| n.parse().unwrap()).collect();
        assert_eq!(counts[0], 0, "{context}");
        // Between a thread's stop and the hiding of its EINTR nothing can be done for it.
        if end != End::KilledWhileStopping {
            assert_eq!(counts[1], interrupted, "{context}");
        }
        interrupted = counts[1];
        // Only when nobody is in the cave any more, all that a thread was given to do is done.
        eventually(|| {
            cave::clear_leftover(&target, &stop_all(&target, WITHIN).unwrap()).unwrap();
            text_of(&target, &maps) == text
        });
        assert_eq!(descriptors(pid), fds, "{context}");
        // The mappings are there whole, or not at all. (Two adjacent parts of one access are one line.)
        let left = ours(&target.maps().unwrap());
        assert!(left.is_empty() || left.len() == 6 || (left.len() == 3 && kills > 10), "{context}: {left:?}");
        // The next tool clears up.
        let mut stopped = stop_all(&target, WITHIN).unwrap();
        if !left.is_empty() {
            let ranges: Vec<_> = left.iter().map(Mapping::range).collect();
            let thread = remote::choose(&target, &maps, &mut stopped).unwrap();
            unmap(&target, thread, &ranges).unwrap();
        }
        stopped.resume().unwrap();
        assert_eq!(target.maps().unwrap(), maps, "{context}");
        eventually(|| status_lines(pid, "SigBlk") == masks);
        if end == End::Finished {
            break;
        }
        kills += 1;
    }
    println!("killed_tool {scenario}: the tool was killed before each of its {kills} calls ... ok");
    assert!(kills > 40, "{kills}");
}

fn text_of(target: &Target, maps: &Maps) -> Vec<Vec<u8>> {
    let read = |m: &Mapping| target.memory().read_vec(m.start, m.len() as usize).unwrap_or_default();
    maps.iter().filter(|m| m.exec).map(read).collect()
}

struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the tool came to its end.
#[derive(PartialEq, Eq)]
enum End {
    /// By itself, successfully.
    Finished,
    /// It was killed before it wrote anything to the target.
    KilledWhileStopping,
    Killed,
}

/// Runs the tool and kills it before its call number `n`, counted from its first PTRACE_SEIZE, if it makes that many.
fn killed_before(scenario: &str, pid: Pid, tid: i32, n: usize) -> End {
    const PTRACE_SEIZE: u64 = 0x4206;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["tool", scenario, &pid.to_string(), &tid.to_string()]).stdin(Stdio::null());
    // SAFETY: only an async-signal-safe system call is made between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let tool = Tool(command.spawn().unwrap());
    let child = tool.0.id() as i32;
    let mut entering = true;
    let mut count = None;
    let mut writes = false;
    loop {
        let mut status = 0;
        // SAFETY: a system call on our own child; `status` outlives it.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) }, child);
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0, "the tool failed");
            return End::Finished;
        }
        assert!(libc::WIFSTOPPED(status), "the tool was killed by signal {}", libc::WTERMSIG(status));
        let mut signal = 0;
        if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
            if entering {
                // SAFETY: plain data, filled by the kernel.
                let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
                // SAFETY: `regs` is as large as the request says.
                unsafe { libc::ptrace(libc::PTRACE_GETREGS, child, 0, &raw mut regs) };
                let attaches = regs.orig_rax == libc::SYS_ptrace as u64 && regs.rdi == PTRACE_SEIZE;
                writes |= count.is_some() && regs.orig_rax == libc::SYS_pwrite64 as u64;
                if count.is_some() || attaches {
                    let made = count.get_or_insert(0);
                    if *made == n {
                        // SAFETY: kills our own child. It is not reaped yet, so the id is its.
                        unsafe { libc::kill(child, libc::SIGKILL) };
                        drop(tool);
                        return if writes { End::Killed } else { End::KilledWhileStopping };
                    }
                    *made += 1;
                }
            }
            entering = !entering;
        } else if libc::WSTOPSIG(status) == libc::SIGTRAP {
            // The stop at exec.
            // SAFETY: takes numbers only.
            unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_TRACESYSGOOD) };
        } else {
            signal = libc::WSTOPSIG(status);
        }
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, child, 0, signal) }, 0);
    }
}
