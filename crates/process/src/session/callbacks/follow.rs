//! A callback that an earlier run of the tool has set going.

use super::give_up::Elsewhere;
use super::{FOLLOW_PAUSE, Failure, GRACE, Outcome, STOP_WITHIN};
use crate::session::callbacks::call_area::Progress;
use crate::session::{Session, objects_of};
use crate::state::document::RunningCall;
use crate::state::pieces::CallArea;
use crate::threads::{StoppedThread, stop_one};
use crate::{Error, Result, Tid};
use std::rc::Rc;
use std::time::Instant;
use ugraft_core::Call;

/// What came of waiting for a call.
pub(super) enum Waited {
    Ended(Outcome),
    /// It has never begun.
    NotBegun,
}

impl Session {
    /// Waits for a call that an earlier run of the tool set going.
    pub(super) fn follow(&mut self, call: &Call, running: &RunningCall, deadline: Instant) -> Result<Waited> {
        let target = Rc::clone(&self.target);
        let area = self.area_for_calls()?;
        let tid = Tid(running.tid);
        let until = deadline + GRACE;
        loop {
            let progress = area.progress(target.memory(), running.number)?;
            let thread = match stop_one(&target, tid, STOP_WITHIN) {
                Ok(thread) => thread,
                Err(Error::CannotStop { .. }) if Instant::now() < until => {
                    std::thread::sleep(FOLLOW_PAUSE);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let here = thread.as_ref().is_some_and(|thread| area.is_code(thread.pc()));
            match (progress, thread) {
                // Its frame is used again by the next call: it must have left.
                (Progress::Done(value), thread) if !here => {
                    self.let_go_all(thread)?;
                    return Ok(Waited::Ended(Outcome::Returned(value)));
                }
                (Progress::NotBegun, thread) if !here => {
                    self.let_go_all(thread)?;
                    return Ok(Waited::NotBegun);
                }
                (Progress::Running, None) => {
                    let result = area.result(target.memory(), running.number)?;
                    let outcome = result.map_or(Outcome::Failed(Failure::ThreadGone), Outcome::Returned);
                    return Ok(Waited::Ended(outcome));
                }
                (Progress::Running, Some(mut thread)) if Instant::now() >= deadline => {
                    let (maps, objects) = objects_of(&target)?;
                    self.know_images();
                    match self.can_give_up(&thread, &maps, &area, &objects)? {
                        Ok(()) => {
                            let at = self.name_of_code(thread.pc(), &objects);
                            let regs = area.leaving(thread.regs());
                            thread.set_regs(&regs)?;
                            self.let_go_one(thread)?;
                            self.see_off(&area, tid)?;
                            return Ok(Waited::Ended(Outcome::Failed(Failure::GivenUp(at))));
                        }
                        Err(Elsewhere::NotInCall) => {
                            self.let_go_one(thread)?;
                            return Ok(Waited::Ended(Outcome::Failed(Failure::ThreadGone)));
                        }
                        Err(Elsewhere::Holds(_)) => self.let_go_one(thread)?,
                    }
                }
                (_, thread) => self.let_go_all(thread)?,
            }
            if Instant::now() >= until {
                return Err(self.still_running(call));
            }
            std::thread::sleep(FOLLOW_PAUSE);
        }
    }

    /// Waits until a thread that leaves a call has left: what it comes back by is used again by the next call.
    fn see_off(&mut self, area: &CallArea, tid: Tid) -> Result<()> {
        let target = Rc::clone(&self.target);
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            std::thread::sleep(FOLLOW_PAUSE);
            let thread = match stop_one(&target, tid, STOP_WITHIN) {
                Ok(Some(thread)) => thread,
                Ok(None) => break,
                Err(Error::CannotStop { .. }) => continue,
                Err(e) => return Err(e),
            };
            let here = area.is_code(thread.pc()) || area.stack.contains(&thread.sp());
            self.let_go_one(thread)?;
            if !here {
                break;
            }
        }
        Ok(())
    }

    fn let_go_all(&mut self, thread: Option<StoppedThread>) -> Result<()> {
        thread.map_or(Ok(()), |thread| self.let_go_one(thread))
    }
}
