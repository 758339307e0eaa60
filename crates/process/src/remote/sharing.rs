//! Other processes that run in the target's memory.
//!
//! `clone(CLONE_VM)` without CLONE_THREAD makes a process that executes the same text and is not in the target's list of
//! threads: nobody would stop it, and its stacks would not be looked at. kcmp(2) tells whether two processes share their
//! memory.
#![allow(unsafe_code)]

use crate::target::Target;
use crate::target::stat::ThreadStat;
use crate::{Error, Pid, Result, Tid};

/// `KCMP_VM` (`include/uapi/linux/kcmp.h`).
const KCMP_VM: i32 = 1;

/// How memory comes to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Sharing {
    /// By vfork(2): until the child calls exec or exits.
    #[error("a vfork child, which will exec or exit soon; try again then")]
    Vfork,
    /// By clone(2) with CLONE_VM: for good.
    #[error("made by clone with CLONE_VM and without CLONE_THREAD; such programs cannot be patched")]
    Clone,
}

/// Fails if another process shares the target's memory.
///
/// Only processes that we may trace can be asked about; one that we may not trace cannot share memory with one that we
/// may, since the right to trace is the memory's.
///
/// # Errors
/// [`Error::SharedMemory`], [`Error::Proc`]; [`Error::TargetGone`] if the target has ended.
pub fn check_not_shared(target: &Target) -> Result<()> {
    for tid in target.threads()? {
        if !has_memory(target.thread_stat(tid)?.as_ref()) {
            continue;
        }
        if let Some((other, stat)) = sharer(target, tid)? {
            let why = if stat.parent == target.pid() && has_vfork_parent(target)? {
                Sharing::Vfork
            } else {
                Sharing::Clone
            };
            return Err(Error::SharedMemory { pid: target.pid(), other, comm: stat.comm, why });
        }
        // Had it ended meanwhile, nobody would have shared anything with it.
        if has_memory(target.thread_stat(tid)?.as_ref()) {
            return Ok(());
        }
    }
    Err(Error::TargetGone(target.pid()))
}

/// The process that shares the memory of this thread of the target's, which must have some: no memory is the same as no memory
/// to kcmp, and a thread that has ended has as little as a kernel thread.
fn sharer(target: &Target, tid: Tid) -> Result<Option<(Pid, ThreadStat)>> {
    let failed = |source| Error::Proc { path: "/proc".to_owned(), source };
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let Ok(entry) = entry else { continue };
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid) else {
            continue;
        };
        if other == target.pid() || !same_memory(tid, other) {
            continue;
        }
        match ThreadStat::read(other, Tid(other.0))? {
            stat if !has_memory(stat.as_ref()) => {}
            stat => return Ok(stat.map(|stat| (other, stat))),
        }
    }
    Ok(None)
}

/// Whether a thread runs in a program's memory: not if it has ended or is ending, or is the kernel's.
fn has_memory(stat: Option<&ThreadStat>) -> bool {
    stat.is_some_and(|stat| !stat.is_kernel_thread() && !stat.is_ending())
}

fn same_memory(a: Tid, b: Pid) -> bool {
    // SAFETY: a system call that takes numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_VM, 0, 0) == 0 }
}

/// Whether a thread of the target sleeps as vfork's parent does.
fn has_vfork_parent(target: &Target) -> Result<bool> {
    for tid in target.threads()? {
        if target.thread_stat(tid)?.is_some_and(|stat| stat.state == 'D') {
            return Ok(true);
        }
    }
    Ok(false)
}
