//! One thread's line in `/proc/PID/task/TID/stat` (proc(5)): its state, its flags, and what tells one program from
//! the next under the same id.

use crate::{Error, Pid, RemoteAddr, Result, Tid};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};

/// `PF_EXITING` (`include/linux/sched.h`): on its way to its end, perhaps without its memory already.
const PF_EXITING: u64 = 0x0000_0004;
/// `PF_KTHREAD` (`include/linux/sched.h`): a kernel thread.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_IO_WORKER | PF_USER_WORKER`: a thread that the kernel runs on the process's behalf (io_uring, vhost). It is
/// listed with the process's threads, and never runs a user instruction.
const PF_WORKERS: u64 = 0x0000_0010 | 0x0000_4000;

/// The fields this crate uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadStat {
    /// The thread's name (`comm`), up to 15 bytes.
    pub comm: String,
    /// `R` running, `S` sleeping, `D` uninterruptible, `T` stopped by job control, `t` stopped by a tracer, `Z` and
    /// `X` dead, `I` idle.
    pub state: char,
    /// The parent process.
    pub parent: Pid,
    /// The kernel's `PF_*` flags.
    pub flags: u64,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Bottom of the main program's text, stack and heap; 0 where we may not see them. With
    /// [`start_time`](Self::start_time), what identifies a program: `exec` keeps the id and the start time, but
    /// makes a new address space.
    pub start_code: RemoteAddr,
    /// See [`start_code`](Self::start_code).
    pub start_stack: RemoteAddr,
    /// The processor it runs on, waits for, or ran on last.
    pub processor: u32,
    /// See [`start_code`](Self::start_code). The heap (`brk`) grows upwards from here.
    pub start_brk: RemoteAddr,
}

impl ThreadStat {
    /// Reads the line of thread `tid` of process `pid`; `None` if there is no such thread.
    ///
    /// # Errors
    /// [`Error::Proc`] if procfs cannot be read.
    pub fn read(pid: Pid, tid: Tid) -> Result<Option<Self>> {
        let path = format!("/proc/{pid}/task/{tid}/stat");
        Self::of_file(File::open(&path), path)
    }

    /// The same, of an open `/proc/PID/task`.
    ///
    /// # Errors
    /// As [`ThreadStat::read`].
    pub(crate) fn read_in(tasks: &File, pid: Pid, tid: Tid) -> Result<Option<Self>> {
        let path = format!("{tid}/stat");
        let file = rustix::fs::openat(tasks, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Self::of_file(file.map(File::from).map_err(io::Error::from), format!("/proc/{pid}/task/{path}"))
    }

    fn of_file(file: io::Result<File>, path: String) -> Result<Option<Self>> {
        // One line, far shorter than this. One read gives it whole; asking for more costs as much again, and this is
        // done for every thread before a stop.
        let mut buf = [0; 1024];
        match file.and_then(|mut file| file.read(&mut buf)) {
            Ok(len) => match Self::parse(&String::from_utf8_lossy(&buf[..len])) {
                Some(stat) => Ok(Some(stat)),
                // The file of a thread that is reaped between open and read is empty.
                None if len == 0 => Ok(None),
                None => Err(Error::Proc { path, source: io::Error::from(io::ErrorKind::InvalidData) }),
            },
            Err(e) if gone(&e) => Ok(None),
            Err(source) => Err(Error::Proc { path, source }),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        // The name may hold spaces and parentheses: it ends at the last one.
        let (head, tail) = line.rsplit_once(')')?;
        let comm = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Fields are numbered from 1 in proc(5), and the state is number 3.
        let field = |n: usize| fields.get(n - 3).copied();
        let number = |n: usize| field(n)?.parse::<u64>().ok();
        Some(Self {
            comm,
            state: field(3)?.chars().next()?,
            parent: Pid(field(4)?.parse().ok()?),
            flags: number(9)?,
            start_time: number(22)?,
            start_code: RemoteAddr(number(26)?),
            start_stack: RemoteAddr(number(28)?),
            processor: field(39)?.parse().ok()?,
            start_brk: RemoteAddr(number(47)?),
        })
    }

    /// Dead, but perhaps not reaped.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Dead, or about to be.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.is_dead() || self.flags & PF_EXITING != 0
    }

    /// A kernel thread: no program at all.
    #[must_use]
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// A worker of io_uring or vhost: among the process's threads, but never in user code.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.flags & PF_WORKERS != 0
    }
}

/// Whether procfs said that the process or thread is not there.
pub(crate) fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "77 (a) R (b) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 4242 99 88 1 4198400 4199000 \
                    140000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 100 200 300 0 0 0 0 0\n";
        let stat = ThreadStat::parse(line).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent), ("a) R (b", 'S', Pid(1)));
        assert_eq!(
            (stat.start_time, stat.start_code, stat.start_stack),
            (4242, RemoteAddr(4_198_400), RemoteAddr(140_000))
        );
        assert_eq!((stat.processor, stat.start_brk), (1, RemoteAddr(300)));
        assert!(!stat.is_dead() && !stat.is_worker() && !stat.is_kernel_thread());
        assert_eq!(ThreadStat::parse("nonsense"), None);
    }

    #[test]
    fn our_own_line_is_read() {
        let pid = std::process::id() as i32;
        let stat = ThreadStat::read(Pid(pid), Tid(pid)).unwrap().unwrap();
        assert!(stat.start_time > 0 && stat.start_stack.0 > 0);
        assert_eq!(ThreadStat::read(Pid(pid), Tid(i32::MAX)).unwrap(), None);
    }
}
