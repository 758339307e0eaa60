//! Reading and writing the target's memory.

use crate::{Error, Pid, RemoteAddr, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The target's memory, through `/proc/PID/mem`.
///
/// Writes go through page protections (the kernel's `FOLL_FORCE`): a write to a private text page copies the
/// page, and needs neither ptrace nor mprotect. The descriptor belongs to the address space it was opened on:
/// after the target's `exec` or exit, reads return nothing, which is reported as [`Error::TargetGone`].
#[derive(Debug)]
pub struct Memory {
    pid: Pid,
    file: File,
}

impl Memory {
    /// Wraps `file`, an open `/proc/PID/mem` (or `/proc/PID/task/TID/mem`) of `pid`, opened for read and write.
    #[must_use]
    pub fn new(pid: Pid, file: File) -> Self {
        Self { pid, file }
    }

    /// Whether the address space is still there; `probe` is any address that is mapped while it is. After `exec` and
    /// after the exit of the last thread a read returns nothing.
    #[must_use]
    pub fn is_alive(&self, probe: RemoteAddr) -> bool {
        self.file.read_at(&mut [0], probe.0).is_ok_and(|n| n == 1)
    }

    /// Fills `buf` from `addr`, or fails; a partial read is a failure.
    ///
    /// # Errors
    /// [`Error::Memory`] where a page is not readable, [`Error::TargetGone`] after exit or exec.
    pub fn read(&self, addr: RemoteAddr, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], addr.0.wrapping_add(done as u64)) {
                Ok(0) => return Err(Error::TargetGone(self.pid)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("read", addr, buf.len(), e)),
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `addr`, through page protections.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn write(&self, addr: RemoteAddr, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], addr.0.wrapping_add(done as u64)) {
                Ok(0) => return Err(Error::TargetGone(self.pid)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("write", addr, bytes.len(), e)),
            }
        }
        Ok(())
    }

    /// Reads `len` bytes from `addr`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read_vec(&self, addr: RemoteAddr, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.read(addr, &mut buf)?;
        Ok(buf)
    }

    /// Reads one little-endian 64-bit word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read_u64(&self, addr: RemoteAddr) -> Result<u64> {
        let mut buf = [0; 8];
        self.read(addr, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    fn failed(&self, action: &'static str, addr: RemoteAddr, len: usize, source: io::Error) -> Error {
        if source.raw_os_error() == Some(libc::ESRCH) {
            return Error::TargetGone(self.pid);
        }
        Error::Memory { pid: self.pid, action, addr, len, source }
    }
}
