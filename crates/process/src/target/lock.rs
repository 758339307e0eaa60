//! One tool at a time: an exclusive lock on a target that the kernel takes back when its holder dies.
//!
//! The lock is an flock(2) on the target's pidfd, whose inode is the target's own since Linux 6.9 (pidfs). On older
//! kernels all pidfds share one inode; there it lies on the directory `/proc/PID`, which holds among tools that see
//! the same procfs.

use crate::{Error, Pid, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use std::os::fd::OwnedFd;

/// The right to change a target; given back on drop, and by the kernel when the holder dies.
#[derive(Debug)]
pub struct Lock {
    _held: OwnedFd,
}

impl Lock {
    /// Takes the lock on `pid` without waiting.
    ///
    /// # Errors
    /// [`Error::Busy`] (EBUSY) where another tool holds it, [`Error::NoSuchProcess`] where there is no such process.
    pub fn take(pid: Pid) -> Result<Self> {
        let fd = lockable(pid)?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _held: fd }),
            Err(Errno::WOULDBLOCK) => Err(Error::Busy(pid)),
            Err(e) => Err(Error::Proc { path: format!("the pidfd of {pid}"), source: e.into() }),
        }
    }
}

fn lockable(pid: Pid) -> Result<OwnedFd> {
    let no_such = |_| Error::NoSuchProcess(pid);
    let raw = rustix::process::Pid::from_raw(pid.0).ok_or(Error::NoSuchProcess(pid))?;
    if let (Ok(theirs), Ok(own)) = (
        rustix::process::pidfd_open(raw, PidfdFlags::empty()),
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()),
    ) && let (Ok(their_stat), Ok(own_stat)) = (rustix::fs::fstat(&theirs), rustix::fs::fstat(&own))
        && their_stat.st_ino != own_stat.st_ino
    {
        return Ok(theirs);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(no_such)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn only_one_holds_it() {
        let child = Killed(Command::new("sleep").arg("100").spawn().unwrap());
        let other = Killed(Command::new("sleep").arg("100").spawn().unwrap());
        let pid = Pid(child.0.id() as i32);
        let held = Lock::take(pid).unwrap();
        assert!(matches!(Lock::take(pid), Err(Error::Busy(_))));
        Lock::take(Pid(other.0.id() as i32)).unwrap();
        drop(held);
        Lock::take(pid).unwrap();
    }

    #[test]
    fn nobody_to_lock() {
        assert!(matches!(Lock::take(Pid(i32::MAX)), Err(Error::NoSuchProcess(_))));
    }
}
