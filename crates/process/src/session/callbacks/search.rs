//! Finding a thread that can run a callback: one at a [safe point](crate::session::callbacks::safe_point).

use super::STOP_WITHIN;
use crate::objects::Objects;
use crate::remote::{self, seccomp};
use crate::session::callbacks::safe_point::SafePoints;
use crate::session::{Session, objects_of};
use crate::target::maps::Maps;
use crate::threads::{Restart, StoppedThread, restart_code, stop_one};
use crate::{Error, Result, Tid};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Pause between searches for a thread at a safe point; it doubles up to [`SEARCH_MAX`].
const SEARCH_MIN: Duration = Duration::from_millis(1);
const SEARCH_MAX: Duration = Duration::from_millis(50);
/// Most threads that one search looks at.
const SEARCH_THREADS: usize = 64;
/// Most threads that are named when none would do.
const NAMED_THREADS: usize = 4;

enum NotSafe {
    Thread(String),
    Error(Error),
}

impl Session {
    /// Refuses early, before anything has changed, where no thread comes to a safe point.
    pub(crate) fn check_safe_point(&mut self, deadline: Instant) -> Result<()> {
        let target = Rc::clone(&self.target);
        let (_, objects) = objects_of(&target)?;
        let (thread, _) = self.thread_at_safe_point(&objects, deadline)?;
        self.let_go_one(thread)
    }

    /// A stopped thread at a safe point, while the others run; one that sleeps, if there is one, and best one in a call
    /// that goes on afterwards as if nothing had been.
    pub(super) fn thread_at_safe_point(
        &mut self,
        objects: &Objects<'_>,
        deadline: Instant,
    ) -> Result<(StoppedThread, Maps)> {
        let target = Rc::clone(&self.target);
        let began = Instant::now();
        let safe_points = SafePoints::new(objects)?;
        self.know_images();
        let mut pause = SEARCH_MIN;
        loop {
            let maps = target.maps()?;
            let mut reasons = Vec::new();
            let mut second_best = None;
            for tid in self.candidates()?.into_iter().take(SEARCH_THREADS) {
                let thread = match stop_one(&target, tid, STOP_WITHIN) {
                    Ok(Some(thread)) => thread,
                    Ok(None) => continue,
                    Err(Error::CannotStop { why, .. }) => {
                        reasons.push((tid, why.to_string()));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                let found = self.is_safe(&safe_points, &maps, &thread);
                match found {
                    Ok(()) if restarts_exactly(&thread) => return Ok((thread, maps)),
                    Ok(()) => second_best = Some(tid),
                    Err(NotSafe::Thread(why)) => reasons.push((tid, why)),
                    Err(NotSafe::Error(e)) => return Err(e),
                }
                self.let_go_one(thread)?;
            }
            if let Some(tid) = second_best
                && let Ok(Some(thread)) = stop_one(&target, tid, STOP_WITHIN)
            {
                if self.is_safe(&safe_points, &maps, &thread).is_ok() {
                    return Ok((thread, maps));
                }
                self.let_go_one(thread)?;
            }
            if Instant::now() + pause >= deadline {
                let comm =
                    |tid: Tid| target.thread_stat(tid).ok().flatten().map_or_else(String::new, |s| s.comm);
                reasons.truncate(NAMED_THREADS);
                let reasons = reasons.into_iter().map(|(tid, why)| (tid, comm(tid), why)).collect();
                return Err(Error::NoSafePoint { pid: target.pid(), waited: began.elapsed(), reasons });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(SEARCH_MAX);
        }
    }

    /// The threads, those that sleep first.
    fn candidates(&self) -> Result<Vec<Tid>> {
        let (mut sleeping, mut running) = (Vec::new(), Vec::new());
        for tid in self.target.threads()? {
            match self.target.thread_stat(tid)? {
                Some(stat) if stat.is_dead() || stat.is_worker() => {}
                Some(stat) if stat.state == 'S' => sleeping.push(tid),
                Some(_) => running.push(tid),
                None => {}
            }
        }
        sleeping.append(&mut running);
        Ok(sleeping)
    }

    fn is_safe(
        &mut self,
        safe_points: &SafePoints<'_, '_>,
        maps: &Maps,
        thread: &StoppedThread,
    ) -> Result<(), NotSafe> {
        let target = &self.target;
        let leaves = self.document.call_area.as_ref().is_some_and(|area| area.is_code(thread.pc()));
        if leaves {
            return Err(NotSafe::Thread("it comes from another callback".to_owned()));
        }
        match remote::suitability(target, maps, thread) {
            Ok(_) => {}
            Err(Error::CannotRun { why, .. }) => return Err(NotSafe::Thread(why.to_string())),
            Err(e) => return Err(NotSafe::Error(e)),
        }
        safe_points
            .judge(target, &mut self.prover, maps, thread)
            .map_err(|why| NotSafe::Thread(why.to_string()))?;
        let call =
            |name, number, vital| seccomp::Call { name, number, instruction_pointer: 0, args: [0; 6], vital };
        let calls =
            [call("pselect6", libc::SYS_pselect6, false), call("rt_sigreturn", libc::SYS_rt_sigreturn, true)];
        match seccomp::suspend(target.pid(), thread.tid(), &calls) {
            Ok(()) => Ok(()),
            Err(Error::CannotRun { why, .. }) => Err(NotSafe::Thread(why.to_string())),
            Err(e) => Err(NotSafe::Error(e)),
        }
    }
}

/// Whether what the thread was doing goes on after a callback as if nothing had been. A call that would go on by
/// restart_syscall(2) is made anew, and only one without a limit of time is none the worse for it.
fn restarts_exactly(thread: &StoppedThread) -> bool {
    let regs = thread.regs();
    if restart_code(regs) != Some(Restart::Block) {
        return true;
    }
    // poll(2): the third argument is the time in milliseconds, negative for ever.
    regs.orig_rax == libc::SYS_poll as u64 && (regs.rdx as i32) < 0
}
