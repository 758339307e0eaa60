//! Making and removing mappings in the target.
//!
//! Each mapping is a piece of a memfd of its own, private, so that it is copied by fork like the program's own data, and so
//! that its name is seen in the target's `maps`. It is made without any access at an address that must be free, and
//! then its parts get theirs (code by being mapped over it, data by mprotect(2)); nothing is ever writable and executable. Its contents are written from outside, through
//! `/proc/PID/mem`.

use crate::remote::{Arg, Next, Syscall, call_error, run_in};
use crate::target::maps::Maps;
use crate::target::{Target, read_text};
use crate::threads::StoppedThread;
use crate::{Error, RemoteAddr, Result};
use std::ffi::CString;
use std::ops::Range;

/// Mappings that one program removes.
const UNMAP_AT_ONCE: usize = 64;

/// What a part of a mapping may be used for. There is no writable and executable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prot {
    /// Read only.
    Read,
    /// Data.
    ReadWrite,
    /// Code.
    ReadExec,
    /// None, and shared, so that the target can map the file once more from there on, in whatever length (mremap(2)): a name in its maps
    /// for memory that it maps itself. Never written, so a fork shares nothing but that.
    Seed,
}

impl Prot {
    fn bits(self) -> u64 {
        let bits = match self {
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Self::ReadExec => libc::PROT_READ | libc::PROT_EXEC,
            Self::Seed => libc::PROT_NONE,
        };
        bits as u64
    }
}

/// A piece of a mapping with one kind of access; offset and length in bytes, multiples of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, from the mapping's begin.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// What it may be used for.
    pub prot: Prot,
}

/// A mapping to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Name of the memfd, seen in the target's maps as `/memfd:NAME (deleted)`.
    pub name: String,
    /// Where, page aligned; nothing may be mapped there.
    pub addr: RemoteAddr,
    /// How long, in bytes, a multiple of the page size.
    pub len: u64,
    /// The access to its parts. What lies between them has none.
    pub parts: Vec<Part>,
}

/// Makes all the mappings, filled with zeros, or none.
///
/// # Errors
/// [`Error::RemoteCall`] if a call failed in the target, which then has none of them;
/// [`Error::FileSize`] if one would kill it; otherwise as [`remote::run`](crate::remote::run).
///
/// # Panics
/// If a name contains a NUL byte or is longer than memfd_create(2) allows (249 bytes).
pub fn map(target: &Target, thread: &mut StoppedThread, requests: &[MapRequest]) -> Result<()> {
    map_in(target, &target.maps()?, thread, requests)
}

/// [`map`], with the target's mappings already read.
///
/// # Errors
/// As [`map`].
pub fn map_in(
    target: &Target,
    maps: &Maps,
    thread: &mut StoppedThread,
    requests: &[MapRequest],
) -> Result<()> {
    check_file_size(target, requests)?;
    let (calls, undo) = map_program(requests);
    let results = run_in(target, maps, thread, &calls)?;
    for (call, result) in calls[..undo].iter().zip(&results[..undo]) {
        match result {
            Some(result) if is_error(*result) && call.on_error != Next::Following => {
                return Err(call_error(target, call.name, *result));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses mappings whose files would be longer than the target may make files: it would not be told so by an error, but
/// killed by SIGXFSZ (setrlimit(2)).
fn check_file_size(target: &Target, requests: &[MapRequest]) -> Result<()> {
    let path = format!("/proc/{}/limits", target.pid());
    let text = read_text(&path).map_err(|source| Error::Proc { path, source })?;
    let limit = file_size_limit(&text).unwrap_or(u64::MAX);
    match requests.iter().map(|request| request.len).max() {
        Some(needed) if needed > limit => Err(Error::FileSize { pid: target.pid(), limit, needed }),
        _ => Ok(()),
    }
}

/// The soft limit of the size of files, in bytes, in a text that proc(5) calls `limits`; `None` if there is none.
fn file_size_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Removes mappings, in this order.
///
/// # Errors
/// [`Error::RemoteCall`] if one could not be removed (the others are); otherwise as
/// [`remote::run`](crate::remote::run).
pub fn unmap(target: &Target, thread: &mut StoppedThread, ranges: &[Range<RemoteAddr>]) -> Result<()> {
    unmap_in(target, &target.maps()?, thread, ranges)
}

/// [`unmap`], with the target's mappings already read.
///
/// # Errors
/// As [`unmap`].
pub fn unmap_in(
    target: &Target,
    maps: &Maps,
    thread: &mut StoppedThread,
    ranges: &[Range<RemoteAddr>],
) -> Result<()> {
    let mut results = Vec::new();
    // A program lies on the thread's stack, so its length is limited.
    for some in ranges.chunks(UNMAP_AT_ONCE) {
        let calls: Vec<_> =
            some.iter().map(|r| munmap(r.start, r.end.0 - r.start.0).on_error(Next::Following)).collect();
        results.extend(run_in(target, maps, thread, &calls)?);
    }
    match results.into_iter().flatten().find(|&result| is_error(result)) {
        Some(result) => Err(call_error(target, "munmap", result)),
        None => Ok(()),
    }
}

/// What the kernel returns for an error.
fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

fn munmap(addr: RemoteAddr, len: u64) -> Syscall {
    Syscall::new("munmap", libc::SYS_munmap, vec![addr.0.into(), len.into()])
}

/// The program that makes the mappings; from the returned index on, the calls that undo.
///
/// A failing call jumps to the undoing of what has been done: the descriptor of the mapping it belongs to if that is
/// open, and then each mapping that is there, last first.
fn map_program(requests: &[MapRequest]) -> (Vec<Syscall>, usize) {
    // memfd_create, ftruncate, mmap, close, and an mmap or an mprotect for each part.
    let undo: usize = requests.iter().map(|r| 4 + r.parts.len()).sum();
    let count = requests.len();
    // Undoing, for request i counted from the last: a close for what is not mapped yet, which goes on behind the munmap; a
    // close, and the munmap.
    let close_of = |i: usize| Next::Jump(undo + 3 * (count - 1 - i));
    let close_mapped_of = |i: usize| Next::Jump(undo + 3 * (count - 1 - i) + 1);
    let unmap_of = |i: usize| Next::Jump(undo + 3 * (count - 1 - i) + 2);
    let unmap_before = |i: usize| if i == 0 { Next::End } else { unmap_of(i - 1) };
    let mut calls = Vec::new();
    let mut fds = Vec::new();
    for (i, r) in requests.iter().enumerate() {
        let fd = calls.len();
        fds.push(fd);
        // The callers' names are our own.
        let name = CString::new(r.name.as_str()).expect("a mapping's name has no NUL").into_bytes_with_nul();
        let create = vec![Arg::Bytes(name), u64::from(libc::MFD_CLOEXEC).into()];
        calls.push(Syscall::new("memfd_create", libc::SYS_memfd_create, create).on_error(unmap_before(i)));
        let truncate = vec![Arg::Result(fd), r.len.into()];
        calls.push(Syscall::new("ftruncate", libc::SYS_ftruncate, truncate).on_error(close_of(i)));
        let mmap = |offset: u64, len: u64, prot: u64, flags: i32| {
            let flags = flags as u64;
            let addr = r.addr.0 + offset;
            let args =
                vec![addr.into(), len.into(), prot.into(), flags.into(), Arg::Result(fd), offset.into()];
            Syscall::new("mmap", libc::SYS_mmap, args)
        };
        let free = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        calls.push(mmap(0, r.len, libc::PROT_NONE as u64, free).on_error(close_of(i)));
        // Code is mapped as such from the start: a process may have renounced making anything executable later
        // (PR_SET_MDWE; MemoryDenyWriteExecute= of systemd).
        let (mapped, data): (Vec<&Part>, Vec<&Part>) =
            r.parts.iter().partition(|part| matches!(part.prot, Prot::ReadExec | Prot::Seed));
        for part in mapped {
            let sharing = if part.prot == Prot::Seed { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let call = mmap(part.offset, part.len, part.prot.bits(), sharing | libc::MAP_FIXED);
            calls.push(call.on_error(close_mapped_of(i)));
        }
        calls.push(Syscall::new("close", libc::SYS_close, vec![Arg::Result(fd)]).on_error(Next::Following));
        for part in data {
            let protect = vec![(r.addr.0 + part.offset).into(), part.len.into(), part.prot.bits().into()];
            calls.push(Syscall::new("mprotect", libc::SYS_mprotect, protect).on_error(unmap_of(i)));
        }
    }
    if let Some(last) = calls.last_mut() {
        last.then = Next::End;
        if last.on_error == Next::Following {
            last.on_error = Next::End;
        }
    }
    for (i, r) in requests.iter().enumerate().rev() {
        let next = unmap_before(i);
        let close = || Syscall::new("close", libc::SYS_close, vec![Arg::Result(fds[i])]);
        calls.push(close().then(next).on_error(next));
        calls.push(close().on_error(Next::Following));
        calls.push(munmap(r.addr, r.len).then(next).on_error(next));
    }
    (calls, undo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_counts() {
        let limits = "Limit    Soft Limit    Hard Limit    Units\n\
            Max cpu time              unlimited            unlimited            seconds\n\
            Max file size             4096                 unlimited            bytes\n";
        assert_eq!(file_size_limit(limits), Some(4096));
        assert_eq!(file_size_limit(&limits.replace("4096     ", "unlimited")), None);
        assert_eq!(file_size_limit(""), None);
    }
}
