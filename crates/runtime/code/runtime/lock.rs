//! A lock for a few instructions, which a fork cannot leave behind.
//!
//! A fork copies the lock as it is, but not the thread that has it. So its word says in which process it was taken; a thread that has
//! waited long for one of another process asks the kernel whether that shares its memory (as a child of vfork does), and
//! else takes the lock away from nobody. Whatever the lock guards is therefore changed by one store at a time, each of which
//! leaves it whole.
//!
//! Who only reads need not take it: the word changes with each use.

use super::syscall::{self, ESRCH, Errno};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// The process that has the lock, or 0.
const OWNER: u64 = 0xffff_ffff;
/// Counts its uses.
const USE: u64 = 1 << 32;
/// How often a waiting thread looks before it asks whether the owner is there.
const LOOKS: u32 = 1 << 16;

/// A lock.
#[repr(transparent)]
pub struct Lock(AtomicU64);

impl Lock {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Runs `work` alone.
    pub fn with<R>(&self, work: impl FnOnce() -> R) -> R {
        let me = process();
        let mut looks = 0u32;
        let count = loop {
            let word = self.0.load(Ordering::Relaxed);
            let owner = word & OWNER;
            looks = looks.wrapping_add(1);
            let free = owner == 0 || looks.is_multiple_of(LOOKS) && owner != me && !shares_memory(me, owner);
            let count = word & !OWNER;
            let taken = count.wrapping_add(USE) | me;
            if free && self.0.compare_exchange(word, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break count.wrapping_add(USE);
            }
            spin_loop();
        };
        let result = work();
        self.0.store(count.wrapping_add(USE), Ordering::Release);
        result
    }

    /// A mark for [`Lock::is_unused_since`]; `None` while somebody has the lock.
    pub fn mark(&self) -> Option<u64> {
        let word = self.0.load(Ordering::Acquire);
        (word & OWNER == 0).then_some(word)
    }

    /// Whether nobody has taken the lock since, so that what was read since then was whole.
    pub fn is_unused_since(&self, mark: u64) -> bool {
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) == mark
    }
}

/// The number of this process, not 0. Where a filter denies even that, processes are not told apart.
fn process() -> u64 {
    syscall::process().map_or(OWNER, u64::from)
}

/// Whether that other process has the same memory, as far as the kernel tells.
fn shares_memory(me: u64, other: u64) -> bool {
    if me == OWNER || other == OWNER {
        return true;
    }
    match syscall::share_memory(me as u32, other as u32) {
        Ok(share) => share,
        Err(Errno(reason)) => reason != ESRCH,
    }
}
