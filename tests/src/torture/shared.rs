//! The file that the target logs its calls in, mapped here too.
//!
//! The layout is that of `struct shared` in `torture/target.c`. Each lane has one writer, in the target, and one reader, here:
//! the writer stores a record and then the head, the reader takes it and then stores the tail.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

/// Groups of functions; the functions of one agree with each other.
pub const GROUPS: usize = 2;
const MAGIC: u32 = 0x5452_4f54;
const RING: usize = 2048;
/// Most threads that call without end.
pub const MAX_WORKERS: usize = 64;
/// Slots of children that run by themselves.
pub const BRIEF_SLOTS: usize = 4;
/// Slots of children that the driver patches in turn.
pub const MANAGED_SLOTS: usize = 2;
const LANE_CHILDREN: usize = 2 * MAX_WORKERS + 4 + 1;
/// Rings there are.
pub const LANES: usize = LANE_CHILDREN + BRIEF_SLOTS + MANAGED_SLOTS;
/// Control blocks there are: the target's own, and one for each slot of children.
pub const CONTROLS: usize = 1 + BRIEF_SLOTS + MANAGED_SLOTS;

/// Equal rounds in a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The last configuration that was complete when the round began.
    pub lo: u32,
    /// The last configuration that had been started when it ended.
    pub hi: u32,
    /// Who wrote: a new one is another thread or process.
    pub generation: u32,
    /// How many rounds.
    pub count: u32,
    /// For each group, the versions that were met, one bit each.
    pub mask: [u16; GROUPS],
    /// Padding.
    pub unused: u32,
}

/// One process as it is steered.
#[repr(C)]
pub struct Control {
    /// The last configuration that is complete.
    pub finished: AtomicU32,
    /// The last configuration that may be met.
    pub started: AtomicU32,
    /// Not 0: end.
    pub stop: AtomicU32,
    /// Number of a child that waits to be patched; 0 for none.
    pub pid: AtomicU32,
}

#[repr(C)]
struct Lane {
    head: AtomicU64,
    tail: AtomicU64,
    ring: [Record; RING],
}

#[repr(C)]
struct Layout {
    magic: AtomicU32,
    lanes: AtomicU32,
    ring: AtomicU32,
    controls: AtomicU32,
    control: [Control; CONTROLS],
    signals: AtomicU64,
    threads: AtomicU64,
    forks: AtomicU64,
    unwound: AtomicU64,
    failed_children: AtomicU64,
    lane: [Lane; LANES],
}

/// What the target counts besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Signals handled.
    pub signals: u64,
    /// Short-lived threads that came and went.
    pub threads: u64,
    /// Children made.
    pub forks: u64,
    /// Calls left by an exception or `longjmp`.
    pub unwound: u64,
    /// Children that did not end as they should.
    pub failed_children: u64,
}

/// The mapped file.
pub struct Shared {
    base: NonNull<Layout>,
}

impl Shared {
    /// Makes the file, empty, with the room that the target will use.
    pub fn create(path: &Path) -> Result<Shared> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size_of::<Layout>() as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("cannot map the log");
        }
        Ok(Shared { base: NonNull::new(base.cast()).context("the log is mapped at address 0")? })
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is as long as the layout, lives as long as `self`, is zero at first, which is a valid layout, and
        // what the other process writes is atomics and records that nobody reads before the head says so.
        unsafe { self.base.as_ref() }
    }

    /// Fails where the target was built with another layout.
    pub fn check(&self) -> Result<()> {
        let l = self.layout();
        let seen = [&l.magic, &l.lanes, &l.ring, &l.controls].map(|a| a.load(Ordering::Acquire));
        if seen != [MAGIC, LANES as u32, RING as u32, CONTROLS as u32] {
            bail!("the target's log has another layout: {seen:x?}");
        }
        Ok(())
    }

    /// A control block: 0 is the target's own.
    pub fn control(&self, number: usize) -> &Control {
        &self.layout().control[number]
    }

    /// What was counted until now.
    pub fn counts(&self) -> Counts {
        let l = self.layout();
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Counts {
            signals: get(&l.signals),
            threads: get(&l.threads),
            forks: get(&l.forks),
            unwound: get(&l.unwound),
            failed_children: get(&l.failed_children),
        }
    }

    /// Takes all records that wait in a lane.
    pub fn take(&self, lane: usize, to: &mut Vec<Record>) {
        let lane = &self.layout().lane[lane];
        let tail = lane.tail.load(Ordering::Relaxed);
        // Pairs with the writer's store of the head: the records before it are whole.
        let head = lane.head.load(Ordering::Acquire);
        to.extend((tail..head).map(|n| lane.ring[n as usize % RING]));
        lane.tail.store(head, Ordering::Release);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), size_of::<Layout>()) };
    }
}

/// The lane of a slot of children.
pub const fn lane_of_child(slot: usize) -> usize {
    LANE_CHILDREN + slot
}

/// The lane's writers, in words.
pub fn lane_name(lane: usize) -> String {
    match lane {
        0..MAX_WORKERS => format!("thread {lane}"),
        n if n < 2 * MAX_WORKERS => format!("signal handlers of thread {}", n - MAX_WORKERS),
        n if n < LANE_CHILDREN - 1 => format!("short-lived threads {}", n - 2 * MAX_WORKERS),
        n if n < LANE_CHILDREN => "the thread that forks".to_owned(),
        n => format!("children of slot {}", n - LANE_CHILDREN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_once() {
        assert_eq!(size_of::<Record>(), 24);
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::create(&directory.path().join("log")).unwrap();
        assert!(shared.check().is_err());
        let mut taken = Vec::new();
        shared.take(3, &mut taken);
        assert!(taken.is_empty());
        shared.layout().lane[3].head.store(2, Ordering::Release);
        shared.take(3, &mut taken);
        shared.take(3, &mut taken);
        assert_eq!(taken, [Record::default(); 2]);
    }
}
