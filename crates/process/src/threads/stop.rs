//! Asking threads to stop, and waiting until they have.

use crate::canary::canary;
use crate::limits::{POLL_MAX, POLL_MIN, STOP_ROUNDS};
use crate::target::stat::ThreadStat;
use crate::target::{Target, permission_advice, tracer_of};
use crate::threads::awaited::{Awaited, Seen, abandon, look, settle, take_back};
use crate::threads::crowd::Crowd;
use crate::threads::priority::Urgent;
use crate::threads::ptrace::Event;
use crate::threads::rescue::Attaching;
use crate::threads::{StoppedProcess, StoppedThread, Unstoppable, ptrace, rescue};
use crate::{Error, Pid, Result, Tid};
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Stops every thread of the target, or none: on any error all are let go.
///
/// Threads that sleep are stopped before those that run are asked to: so these stand still for no longer than it takes to
/// stop them alone. Where they fill the processors all are asked at once, since sleepers would have to wait for a processor.
///
/// `within` bounds the time until all are stopped.
///
/// # Errors
/// [`Error::CannotStop`] when the time is over, [`Error::AlreadyTraced`], [`Error::Permission`], [`Error::TargetGone`].
pub fn stop_all(target: &Target, within: Duration) -> Result<StoppedProcess> {
    let deadline = Instant::now() + within;
    settle();
    let listed = target.threads()?;
    let mut attaching = (listed.len() > 1 || rescue::holds_any()).then(Attaching::begin);
    let urgent = Urgent::begin();
    let mut known = HashSet::new();
    let mut workers = Vec::new();
    // Before anything stops: attach to all, and see that each can stop. That costs a thread next to nothing.
    let [mut seized, mut running] = [(); 2].map(|()| Seized { pid: target.pid(), tids: Vec::new() });
    let mut crowd = Crowd::default();
    for tid in listed {
        known.insert(tid);
        match stoppable(target, tid, deadline)? {
            Some(stat) if stat.is_worker() => workers.push(tid),
            Some(stat) => {
                crowd.add(tid, &stat);
                if stat.state == 'R' { &mut running } else { &mut seized }.add(target, tid)?;
            }
            None => {}
        }
    }
    let mut process = StoppedProcess {
        threads: Vec::new(),
        workers,
        since: Instant::now(),
        died: 0,
        crowded: crowd.is_full(),
        _urgent: urgent,
    };
    if !process.crowded {
        process.died += wait_all(target, seized.interrupt(), deadline, &mut process.threads)?;
    }
    seized.tids.append(&mut running.tids);
    let mut before = Vec::new();
    for _ in 0..STOP_ROUNDS {
        process.died += wait_all(target, seized.interrupt(), deadline, &mut process.threads)?;
        // A thread may have been born before its maker stopped.
        let listed = target.threads()?;
        let held: HashSet<_> =
            process.threads.iter().map(StoppedThread::tid).chain(process.workers.clone()).collect();
        let mut all_held = true;
        let overlooked = |_: &Tid| canary!("overlook-the-newborn");
        for tid in listed.iter().copied().filter(|tid| !held.contains(tid) && !overlooked(tid)) {
            all_held = false;
            if !known.insert(tid) {
                continue;
            }
            match target.thread_stat(tid)? {
                Some(stat) if stat.is_worker() => process.workers.push(tid),
                Some(stat) if stat.is_dead() => {}
                Some(_) => {
                    attaching.get_or_insert_with(Attaching::begin);
                    seized.add(target, tid)?;
                }
                None => {}
            }
        }
        // A listing ends early where a thread dies under it (`next_tid` in fs/proc/base.c). A held one does not; and if the
        // same are listed twice none has died between.
        if seized.tids.is_empty() && (all_held || listed == before) {
            // In an order that does not depend on who stopped first.
            let first = target.pid().0;
            process.threads.sort_by_key(|t| (t.tid().0 == first, t.tid()));
            // Its id cannot have been reused while we held its threads; it may have called exec.
            target.check_not_execed()?;
            return Ok(process);
        }
        before = listed;
    }
    let tid = seized.tids.first().copied().unwrap_or(Tid(target.pid().0));
    Err(Error::CannotStop { tid, comm: comm(target, tid), why: Unstoppable::BirthRate })
}

/// Stops one thread; `None` if it is dead, gone, or one that the kernel keeps for itself.
///
/// # Errors
/// As [`stop_all`].
pub fn stop_one(target: &Target, tid: Tid, within: Duration) -> Result<Option<StoppedThread>> {
    let deadline = Instant::now() + within;
    settle();
    match stoppable(target, tid, deadline)? {
        Some(stat) if !stat.is_worker() => {}
        _ => return Ok(None),
    }
    let _attaching = rescue::holds_any().then(Attaching::begin);
    let urgent = Urgent::begin();
    let mut seized = Seized { pid: target.pid(), tids: Vec::new() };
    seized.add(target, tid)?;
    let mut stopped = Vec::new();
    wait_all(target, seized.interrupt(), deadline, &mut stopped)?;
    let mut thread = stopped.pop();
    if let Some(thread) = &mut thread {
        thread.hold_urgent(urgent);
    }
    Ok(thread)
}

/// Asks threads to stop, all at once, and gives each to `seen` as soon as it has; none waits for another. Those that are
/// dead, gone, or the kernel's own are left out. Returns the threads that had not stopped after `within`.
///
/// On few processors with many busy threads, this takes as long as one thread waits for its turn, and not as many times
/// that as there are threads.
///
/// # Errors
/// As [`stop_all`], and those of `seen`; the threads are let go.
pub fn stop_each(
    target: &Target,
    tids: &[Tid],
    within: Duration,
    mut seen: impl FnMut(StoppedThread) -> Result<()>,
) -> Result<Vec<(Tid, Unstoppable)>> {
    let deadline = Instant::now() + within;
    settle();
    let _attaching = Attaching::begin();
    let _urgent = Urgent::begin();
    let mut late = Vec::new();
    let mut seized = Seized { pid: target.pid(), tids: Vec::new() };
    for &tid in tids {
        match target.thread_stat(tid)? {
            Some(stat) if stat.is_worker() || stat.is_dead() => {}
            Some(stat) if stat.state == 'D' => late.push((tid, why_unstoppable(target, tid))),
            Some(_) => seized.add(target, tid)?,
            None => {}
        }
    }
    let mut awaited = seized.interrupt();
    let mut pause = POLL_MIN;
    while !awaited.is_empty() {
        let mut progress = false;
        let mut i = 0;
        while i < awaited.len() {
            let Awaited { pid, tid, .. } = awaited[i];
            // It was not stopped while it waited for its turn.
            let result = match look(pid, tid, Instant::now()) {
                Ok(Seen::Running) => {
                    i += 1;
                    continue;
                }
                Ok(Seen::Stopped(thread)) => seen(*thread),
                Ok(Seen::Dead | Seen::Unknown) => Ok(()),
                Err(e) => Err(e),
            };
            progress = true;
            awaited.remove(i);
            if let Err(e) = result {
                abandon(awaited);
                return Err(e);
            }
        }
        if progress {
            pause = POLL_MIN;
            continue;
        }
        if Instant::now() >= deadline {
            late.extend(awaited.iter().map(|a| (a.tid, why_unstoppable(target, a.tid))));
            abandon(awaited);
            break;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(late)
}

/// What procfs says of the thread, once it can be expected to stop: not in an uninterruptible sleep. `None` if it is
/// dead or gone.
fn stoppable(target: &Target, tid: Tid, deadline: Instant) -> Result<Option<ThreadStat>> {
    let mut pause = POLL_MIN;
    loop {
        let Some(stat) = target.thread_stat(tid)? else { return Ok(None) };
        if stat.is_dead() {
            return Ok(None);
        }
        if stat.state != 'D' || stat.is_worker() {
            return Ok(Some(stat));
        }
        if Instant::now() >= deadline {
            return Err(Error::CannotStop {
                tid,
                comm: stat.comm.clone(),
                why: why_unstoppable(target, tid),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// Attaches to a thread, which runs on; false if it is dead or gone.
fn seize(target: &Target, tid: Tid) -> Result<bool> {
    let pid = target.pid();
    let e = match ptrace::seize(tid, ptrace::O_TRACESYSGOOD) {
        Ok(()) => {
            rescue::attached(pid, tid);
            return Ok(true);
        }
        Err(e) => e,
    };
    if take_back(tid) {
        // Ours since an earlier stop.
        return Ok(true);
    }
    match e.raw_os_error() {
        Some(libc::ESRCH) => Ok(false),
        Some(libc::EPERM) => match ThreadStat::read(pid, tid)? {
            // The kernel says EPERM of dead threads too.
            None => Ok(false),
            Some(stat) if stat.is_dead() => Ok(false),
            Some(_) => Err(match tracer_of(pid, tid)? {
                Some((tracer, comm)) => Error::AlreadyTraced { tid, tracer, comm },
                None => Error::Permission(pid, permission_advice(pid)),
            }),
        },
        _ => Err(Error::Ptrace { request: "PTRACE_SEIZE", tid, source: e }),
    }
}

/// Threads that are attached to and run. Dropping it lets them go.
#[derive(Debug)]
struct Seized {
    pid: Pid,
    tids: Vec<Tid>,
}

impl Seized {
    fn add(&mut self, target: &Target, tid: Tid) -> Result<()> {
        if seize(target, tid)? {
            self.tids.push(tid);
        }
        Ok(())
    }

    /// Asks them to stop, without waiting for any.
    fn interrupt(&mut self) -> VecDeque<Awaited> {
        let pid = self.pid;
        self.tids
            .drain(..)
            .map(|tid| {
                let since = Instant::now();
                // It fails only if the thread is dead, which waiting for it will find out.
                let _ = ptrace::interrupt(tid);
                Awaited { pid, tid, since }
            })
            .collect()
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // Only a stopped thread can be detached from.
        abandon(self.interrupt());
    }
}

/// Waits until every awaited thread has stopped or died; returns how many died.
fn wait_all(
    target: &Target,
    mut awaited: VecDeque<Awaited>,
    deadline: Instant,
    stopped: &mut Vec<StoppedThread>,
) -> Result<usize> {
    /// How often all are looked at, and not only the first: a thread may be unable to stop before another is reaped.
    const SWEEP: Duration = Duration::from_millis(1);
    let mut died = 0;
    let mut pause = POLL_MIN;
    let mut swept = Instant::now();
    while !awaited.is_empty() {
        let now = Instant::now();
        let sweep = now - swept >= SWEEP;
        if sweep {
            swept = now;
            stopped.retain_mut(|thread| {
                let dead = matches!(ptrace::poll(thread.tid()), Ok(Some(Event::Gone)));
                if dead {
                    thread.forget(false);
                    died += 1;
                }
                !dead
            });
        }
        let mut i = 0;
        let mut progress = false;
        while i < awaited.len() {
            let Awaited { pid, tid, since } = awaited[i];
            match look(pid, tid, since) {
                Ok(Seen::Stopped(thread)) => stopped.push(*thread),
                Ok(Seen::Dead) => died += 1,
                Ok(Seen::Unknown) => {
                    died += 1;
                    let first = Tid(pid.0);
                    let known =
                        awaited.iter().any(|a| a.tid == first) || stopped.iter().any(|t| t.tid() == first);
                    if !known && ptrace::interrupt(first).is_ok() {
                        awaited.push_back(Awaited { pid, tid: first, since });
                    }
                }
                // An exec in another thread puts that one under the first one's id, and it was not asked to stop; or it
                // is not traced at all, and a wait for it would be one for a child of ours.
                Ok(Seen::Running) if sweep => {
                    if ptrace::interrupt(tid).is_ok() {
                        i += 1;
                        continue;
                    }
                    died += 1;
                }
                Ok(Seen::Running) => break,
                Err(e) => {
                    abandon(awaited);
                    return Err(e);
                }
            }
            awaited.remove(i);
            progress = true;
        }
        if progress {
            pause = POLL_MIN;
            continue;
        }
        if now >= deadline {
            let tid = awaited[0].tid;
            let e = Error::CannotStop { tid, comm: comm(target, tid), why: why_unstoppable(target, tid) };
            abandon(awaited);
            return Err(e);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(died)
}

fn comm(target: &Target, tid: Tid) -> String {
    target.thread_stat(tid).ok().flatten().map_or_else(|| "?".to_owned(), |stat| stat.comm)
}

fn why_unstoppable(target: &Target, tid: Tid) -> Unstoppable {
    let state = target.thread_stat(tid).ok().flatten().map_or('?', |stat| stat.state);
    let call =
        std::fs::read_to_string(format!("/proc/{}/task/{tid}/syscall", target.pid())).unwrap_or_default();
    let number: Option<i64> = call.split_ascii_whitespace().next().and_then(|nr| nr.parse().ok());
    match (state, number) {
        ('D', Some(libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3)) => Unstoppable::Vfork,
        ('D', number) => Unstoppable::Uninterruptible(number),
        ('R', _) => Unstoppable::Starved,
        (state, _) => Unstoppable::Other(state),
    }
}
