//! Whether threads have to wait for processors.
//!
//! Where running threads fill the processors, one that is woken waits for its turn: for time slices of others, each
//! time. Then it is quicker, for the process too, to stop all of its threads for a moment than to have one of them, alone,
//! do something for us.

use crate::target::stat::ThreadStat;
use crate::target::{Target, read_text};
use crate::{Result, Tid};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::collections::BTreeSet;

/// The target's threads, by what they want of the processors, as of a look at each. What else the machine has to do is not
/// counted, so that all that follows from it is a guess.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    running: usize,
    processors: BTreeSet<u32>,
    asleep: Option<Tid>,
}

impl Crowd {
    /// Takes note of a thread.
    pub(crate) fn add(&mut self, tid: Tid, stat: &ThreadStat) {
        if stat.state == 'R' {
            self.running += 1;
            self.processors.insert(stat.processor);
        } else {
            self.asleep.get_or_insert(tid);
        }
    }

    /// Whether the running ones leave no processor to one of the others that is woken.
    pub(crate) fn is_full(&self) -> bool {
        if self.running == 0 {
            return false;
        }
        match self.asleep.and_then(allowed) {
            Some(set) => {
                let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
                all.all(|cpu| self.processors.contains(&(cpu as u32)))
            }
            None => self.running >= allowed_us(),
        }
    }
}

/// Whether the target's running threads fill the processors.
///
/// # Errors
/// [`Error::TargetGone`](crate::Error::TargetGone), [`Error::Proc`](crate::Error::Proc).
pub(crate) fn is_crowded(target: &Target) -> Result<bool> {
    // Most often the whole machine has less to do than that, which takes one look to see.
    if running_everywhere().is_some_and(|running| running < allowed_us()) {
        return Ok(false);
    }
    let mut crowd = Crowd::default();
    for tid in target.threads()? {
        if let Some(stat) = target.thread_stat(tid)? {
            crowd.add(tid, &stat);
        }
    }
    Ok(crowd.is_full())
}

/// The processors that a thread may use.
fn allowed(tid: Tid) -> Option<CpuSet> {
    sched_getaffinity(rustix::process::Pid::from_raw(tid.0)).ok()
}

/// How many processors we may use ourselves.
fn allowed_us() -> usize {
    sched_getaffinity(None).map_or(1, |set| set.count() as usize)
}

/// Threads of the whole machine that run or would like to, but for this one (proc_loadavg(5)).
fn running_everywhere() -> Option<usize> {
    let text = read_text("/proc/loadavg").ok()?;
    let running: usize = text.split(' ').nth(3)?.split('/').next()?.parse().ok()?;
    Some(running.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pid;

    #[test]
    fn processors_and_running_threads_are_counted() {
        assert!(allowed_us() >= 1);
        assert!(running_everywhere().is_some());
    }

    #[test]
    fn processors_are_full_where_none_is_left_to_a_sleeper() {
        let us = std::process::id() as i32;
        let stat = ThreadStat::read(Pid(us), Tid(us)).unwrap().unwrap();
        let running = |processor| ThreadStat { state: 'R', processor, ..stat.clone() };
        let mut crowd = Crowd::default();
        assert!(!crowd.is_full());
        crowd.add(Tid(us), &ThreadStat { state: 'S', ..stat.clone() });
        assert!(!crowd.is_full());
        let set = allowed(Tid(us)).unwrap();
        let all: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        for (n, cpu) in all.iter().enumerate() {
            crowd.add(Tid(1), &running(*cpu as u32));
            assert_eq!(crowd.is_full(), n + 1 == all.len());
        }
        let mut nobody_sleeps = Crowd::default();
        for _ in 0..allowed_us() {
            assert!(!nobody_sleeps.is_full());
            nobody_sleeps.add(Tid(1), &running(0));
        }
        assert!(nobody_sleeps.is_full());
    }
}
