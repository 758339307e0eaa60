//! The session's stops of its target, each counted in what the work has cost.

use crate::answers::HookReport;
use crate::remote::mapping;
use crate::session::Session;
use crate::session::libraries::running::running;
use crate::session::look::{Looker, pad_watch};
use crate::stacks::Blocker;
use crate::stacks::suspended::MemoryHit;
use crate::stacks::watch::WatchRange;
use crate::threads::{self, Release, StoppedProcess, StoppedThread, Unstoppable};
use crate::{Error, RemoteAddr, Result, Tid, remote};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The longest that one attempt to stop may take before everything is let go again.
const WITHIN: Duration = Duration::from_secs(1);
/// The least that it gets, however near the deadline is.
const AT_LEAST: Duration = Duration::from_millis(100);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// What keeps a transition from its next step.
#[derive(Debug)]
pub enum Hindrance {
    /// A thread that is not clean.
    Blocker(Blocker),
    /// A stack that no thread runs on, or what looks like one.
    Memory {
        /// What was found.
        hit: MemoryHit,
        /// The watched range that it points into.
        range: WatchRange,
    },
    /// A thread that did not stop.
    Unstoppable {
        /// The thread.
        tid: Tid,
        /// Its name.
        comm: String,
        /// Why not.
        why: Unstoppable,
    },
}

impl Session {
    /// Stops all threads, or tells which one did not stop. Where the loader is hooked, none of them is in the hook, and the
    /// loader's list of libraries is whole.
    pub(crate) fn stop_all(&mut self, deadline: Instant) -> Result<Result<StoppedProcess, Hindrance>> {
        let within = deadline.saturating_duration_since(Instant::now()).clamp(AT_LEAST, WITHIN);
        let until = Instant::now() + within;
        loop {
            let stopped = match unstoppable(threads::stop_all(&self.target, within))? {
                Ok(stopped) => stopped,
                late => return Ok(late),
            };
            let Some(tid) = self.in_loader()? else { return Ok(Ok(stopped)) };
            self.let_go(stopped)?;
            if Instant::now() >= until {
                let comm = self.target.thread_stat(tid)?.map_or_else(|| "?".to_owned(), |stat| stat.comm);
                let why = match running(&self.target, &self.document)? {
                    Some(HookReport { callback, patch, object, since, .. }) => {
                        Unstoppable::InHook { callback, patch, object, since }
                    }
                    None => Unstoppable::InLoader,
                };
                return Ok(Err(Hindrance::Unstoppable { tid, comm, why }));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Stops all threads, and does `first`, at a moment at which none of them is about to jump on from the padding that an entry
    /// leads by: then original entries may come back, and their padding.
    pub(crate) fn stop_off_pads(
        &mut self,
        deadline: Instant,
        mut first: impl FnMut(&mut Self, &StoppedProcess) -> Result<()>,
    ) -> Result<StoppedProcess> {
        loop {
            let stopped = self.stop_all_patiently(deadline)?;
            first(self, &stopped)?;
            let Some(tid) = self.who_is_at_a_pad(&stopped)? else { return Ok(stopped) };
            self.let_go(stopped)?;
            if Instant::now() >= deadline {
                let comm = self.target.thread_stat(tid)?.map_or_else(|| "?".to_owned(), |stat| stat.comm);
                return Err(Error::CannotStop { tid, comm, why: Unstoppable::AtEntry });
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn who_is_at_a_pad(&mut self, stopped: &StoppedProcess) -> Result<Option<Tid>> {
        let watch = pad_watch(&self.document);
        if watch.is_empty() {
            return Ok(None);
        }
        let maps = self.target.maps()?;
        Looker::new(&self.target, &mut self.prover, maps).first_in(stopped, &watch)
    }

    /// Stops all threads, and tries again until the deadline.
    pub(crate) fn stop_all_patiently(&mut self, deadline: Instant) -> Result<StoppedProcess> {
        loop {
            match self.stop_all(Instant::now() + WITHIN)? {
                Ok(stopped) => return Ok(stopped),
                Err(Hindrance::Unstoppable { tid, comm, why }) if Instant::now() >= deadline => {
                    return Err(Error::CannotStop { tid, comm, why });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Stops one thread, `None` if it is gone, or tells why it did not stop.
    pub(crate) fn stop_one(&mut self, tid: Tid) -> Result<Result<Option<StoppedThread>, Hindrance>> {
        unstoppable(threads::stop_one(&self.target, tid, AT_LEAST))
    }

    /// Lets all threads run on.
    pub(crate) fn let_go(&mut self, stopped: StoppedProcess) -> Result<()> {
        let report = stopped.resume()?;
        self.cost.add_stop(report.threads, report.total, report.longest);
        Ok(())
    }

    /// Lets all threads run on, and has one of them remove `ranges` on the way: it alone waits for that, or all do where
    /// they would keep it from its processor. Before that the document is committed, which does not name the ranges any
    /// more. False if no thread could do it now.
    pub(crate) fn let_go_and_unmap(
        &mut self,
        mut stopped: StoppedProcess,
        ranges: &[Range<RemoteAddr>],
    ) -> Result<bool> {
        let maps = self.recent_maps()?;
        let asleep = stopped.threads().iter().position(|thread| thread.blocked_call().is_some());
        let done = match asleep.filter(|_| !stopped.is_crowded()) {
            Some(asleep) => {
                let (mut thread, report) = stopped.resume_but(asleep)?;
                self.cost.add_stop(report.threads, report.total, report.longest);
                self.commit()?;
                let done = mapping::unmap_in(&self.target, &maps, &mut thread, ranges);
                self.let_go_one(thread)?;
                done
            }
            None => {
                self.commit()?;
                let thread = remote::choose(&self.target, &maps, &mut stopped);
                let done = thread.and_then(|thread| mapping::unmap_in(&self.target, &maps, thread, ranges));
                self.let_go(stopped)?;
                done
            }
        };
        self.maps = None;
        match done {
            Ok(()) => Ok(true),
            Err(Error::CannotRun { .. } | Error::CannotStop { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Lets one thread run on.
    pub(crate) fn let_go_one(&mut self, thread: StoppedThread) -> Result<()> {
        if let Release::Resumed { stopped_for } = thread.resume()? {
            self.cost.add_look(stopped_for);
        }
        Ok(())
    }
}

fn unstoppable<T>(result: Result<T>) -> Result<Result<T, Hindrance>> {
    match result {
        Ok(stopped) => Ok(Ok(stopped)),
        Err(Error::CannotStop { tid, comm, why }) => Ok(Err(Hindrance::Unstoppable { tid, comm, why })),
        Err(e) => Err(e),
    }
}
