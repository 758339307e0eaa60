//! Who may do what to a target at the same time: one tool changes it, anybody looks.
//!
//! Two rights lie on bytes of one file, as write locks of open file descriptions (F_OFD_SETLK of fcntl(2)), which the kernel
//! takes back when their holder dies:
//!
//! | right | who has it | who finds it taken |
//! |---|---|---|
//! | change | a tool that changes the target, for all of its run | another one is refused: [`Error::Busy`] |
//! | threads | the same tool; or one that looks at threads, which can have one tracer only, for that moment | waits |
//!
//! Reading needs neither. Who looks at threads asks before each of them whether somebody wants to change the target, and
//! leaves then ([`Looking::is_asked_to_leave`]); so the one who wants to change waits for the looks that are under way, and for
//! no others. Whoever has the right to change has a third byte by a lock of the process's own (F_SETLK), which tells its number
//! to those who ask. Nothing but that message depends on it.
//!
//! The file is the target's pidfd, whose inode is the target's own since Linux 6.9 (pidfs). On older kernels all pidfds share
//! one inode; there it is `/proc/PID/comm`, which holds among tools that see the same procfs.
#![expect(unsafe_code, reason = "fcntl(2) with a range is in no safe binding")]

use crate::target::stat::ThreadStat;
use crate::{Error, Pid, Result, Tid};
use rustix::fs::{Mode, OFlags};
use rustix::process::PidfdFlags;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const CHANGE: i64 = 0;
const THREADS: i64 = 1;
const WHO: i64 = 2;

/// The longest that a tool which is to change a target waits for looks that are under way. Each lasts some milliseconds; whoever takes
/// longer is stopped itself, and is named where a thread that it holds is needed.
const LOOKS_END_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two attempts to take a right that others have for a moment.
const PAUSE: Duration = Duration::from_micros(200);

/// The right to change a target; given back on drop, and by the kernel when the holder dies.
#[derive(Debug)]
pub struct Lock {
    _held: LockFile,
}

/// The right to look at threads of a target that nobody changes; given back likewise.
#[derive(Debug)]
pub struct Looking {
    held: LockFile,
}

/// A tool at work on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, where it can be seen from here.
    pub pid: Option<Pid>,
    /// Whether it is stopped itself, and so will not finish by itself.
    pub stopped: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "another ugraft (pid {pid})"),
            None => f.write_str("another ugraft"),
        }
    }
}

impl Holder {
    /// What one can do about it.
    pub(crate) fn way_out(&self) -> String {
        match (self.stopped, self.pid) {
            (true, Some(pid)) => format!(
                "it is stopped: continue it (`kill -CONT {pid}`), or kill it, and the next command takes its work up"
            ),
            _ => "try again when it has finished".to_owned(),
        }
    }
}

impl Lock {
    /// Takes the right to change `pid`, and waits a moment for those who look at its threads.
    ///
    /// # Errors
    /// [`Error::Busy`] (EBUSY) where another tool has it, [`Error::NoSuchProcess`] where there is no such process.
    pub fn take(pid: Pid) -> Result<Self> {
        let file = LockFile::open(pid)?;
        if !file.take(CHANGE)? {
            let holder = file.holder();
            return Err(Error::Busy { pid, holder });
        }
        file.tell_who();
        let until = Instant::now() + LOOKS_END_WITHIN;
        while !file.take(THREADS)? && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
        Ok(Self { _held: file })
    }
}

impl Looking {
    /// Takes the right to look at threads of `pid`, after others who do; `None` where somebody changes it, or where others
    /// look at them until `deadline`.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`].
    pub fn take(pid: Pid, deadline: Instant) -> Result<Option<Self>> {
        let file = LockFile::open(pid)?;
        while !file.is_taken(CHANGE)? {
            if file.take(THREADS)? {
                return Ok(Some(Self { held: file }));
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// Whether somebody wants to change the target, and waits for this look to end.
    ///
    /// # Errors
    /// [`Error::Proc`].
    pub fn is_asked_to_leave(&self) -> Result<bool> {
        self.held.is_taken(CHANGE)
    }
}

/// The tool that has the right to change `pid` at this moment.
///
/// # Errors
/// [`Error::NoSuchProcess`].
pub fn holder(pid: Pid) -> Result<Option<Holder>> {
    let file = LockFile::open(pid)?;
    Ok(file.is_taken(CHANGE)?.then(|| file.holder()))
}

/// Whether a tool changes `pid`, or looks at its threads: who traces them then is one of ours.
pub(crate) fn is_attended(pid: Pid) -> Result<bool> {
    let file = LockFile::open(pid)?;
    Ok(file.is_taken(CHANGE)? || file.is_taken(THREADS)?)
}

/// What the rights lie on.
#[derive(Debug)]
struct LockFile {
    pid: Pid,
    fd: OwnedFd,
}

impl LockFile {
    fn open(pid: Pid) -> Result<Self> {
        let fd = match own_pidfd(pid)? {
            Some(fd) => fd,
            None => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let opened = rustix::fs::open(format!("/proc/{pid}/comm"), flags, Mode::empty());
                opened.map_err(|e| super::open_error(pid, e.into()))?
            }
        };
        Ok(Self { pid, fd })
    }

    /// Takes a right, if nobody has it.
    fn take(&self, byte: i64) -> Result<bool> {
        match self.fcntl(libc::F_OFD_SETLK, byte) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(e) => Err(self.error(e)),
        }
    }

    /// Whether somebody else has a right.
    fn is_taken(&self, byte: i64) -> Result<bool> {
        let lock = self.fcntl(libc::F_OFD_GETLK, byte).map_err(|e| self.error(e))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    fn tell_who(&self) {
        if let Err(e) = self.fcntl(libc::F_SETLK, WHO) {
            tracing::debug!("others are not told who works on process {}: {e}", self.pid);
        }
    }

    fn holder(&self) -> Holder {
        let lock = self.fcntl(libc::F_GETLK, WHO).ok();
        let pid = lock.filter(|lock| i32::from(lock.l_type) != libc::F_UNLCK && lock.l_pid > 0);
        let pid = pid.map(|lock| Pid(lock.l_pid));
        let stat = pid.and_then(|pid| ThreadStat::read(pid, Tid(pid.0)).ok().flatten());
        Holder { pid, stopped: stat.is_some_and(|stat| matches!(stat.state, 'T' | 't')) }
    }

    /// Does what `command` says with a write lock of one byte.
    fn fcntl(&self, command: i32, byte: i64) -> io::Result<libc::flock> {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and the structure that these commands read and write outlives the call.
        match unsafe { libc::fcntl(self.fd.as_raw_fd(), command, &raw mut lock) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(lock),
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Proc { path: format!("the locks on process {}", self.pid), source }
    }
}

/// A pidfd of `pid`, if it has an inode of its own.
fn own_pidfd(pid: Pid) -> Result<Option<OwnedFd>> {
    let raw = rustix::process::Pid::from_raw(pid.0).ok_or(Error::NoSuchProcess(pid))?;
    let open = |raw| rustix::process::pidfd_open(raw, PidfdFlags::empty());
    let (Ok(theirs), Ok(own)) = (open(raw), open(rustix::process::getpid())) else { return Ok(None) };
    match (rustix::fs::fstat(&theirs), rustix::fs::fstat(&own)) {
        (Ok(their_stat), Ok(own_stat)) if their_stat.st_ino != own_stat.st_ino => Ok(Some(theirs)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Killed(Child);

    impl Killed {
        fn sleep() -> (Self, Pid) {
            let child = Command::new("sleep").arg("100").spawn().unwrap();
            let pid = Pid(child.id() as i32);
            (Self(child), pid)
        }
    }

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn only_one_changes() {
        let (_child, pid) = Killed::sleep();
        let (_other, other) = Killed::sleep();
        let held = Lock::take(pid).unwrap();
        assert!(matches!(Lock::take(pid), Err(Error::Busy { .. })));
        assert!(holder(pid).unwrap().is_some() && is_attended(pid).unwrap());
        Lock::take(other).unwrap();
        drop(held);
        assert_eq!(holder(pid).unwrap(), None);
        Lock::take(pid).unwrap();
    }

    #[test]
    fn who_looks_makes_room_for_who_changes() {
        let (_child, pid) = Killed::sleep();
        let looking = Looking::take(pid, now()).unwrap().unwrap();
        assert!(Looking::take(pid, now()).unwrap().is_none());
        assert!(!looking.is_asked_to_leave().unwrap() && is_attended(pid).unwrap());
        let changer = std::thread::spawn(move || Lock::take(pid).unwrap());
        while !looking.is_asked_to_leave().unwrap() {
            std::thread::sleep(PAUSE);
        }
        // It has the right already, and waits for the threads.
        assert!(matches!(Lock::take(pid), Err(Error::Busy { .. })));
        assert!(!changer.is_finished());
        drop(looking);
        let changing = changer.join().unwrap();
        assert!(Looking::take(pid, now()).unwrap().is_none());
        drop(changing);
        assert!(Looking::take(pid, now()).unwrap().is_some());
    }

    #[test]
    fn kernels_without_pidfs_have_a_file_for_it() {
        let (_child, pid) = Killed::sleep();
        let open = || {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let fd = rustix::fs::open(format!("/proc/{pid}/comm"), flags, Mode::empty()).unwrap();
            LockFile { pid, fd }
        };
        let (one, two) = (open(), open());
        assert!(one.take(CHANGE).unwrap() && two.is_taken(CHANGE).unwrap());
        assert!(!two.take(CHANGE).unwrap() && two.take(THREADS).unwrap());
        drop(one);
        assert!(two.take(CHANGE).unwrap());
    }

    #[test]
    fn nobody_to_lock() {
        assert!(matches!(Lock::take(Pid(i32::MAX)), Err(Error::NoSuchProcess(_))));
        assert!(matches!(Looking::take(Pid(i32::MAX), now()), Err(Error::NoSuchProcess(_))));
    }
}
