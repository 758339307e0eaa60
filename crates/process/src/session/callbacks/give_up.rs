//! Whether a thread can be taken out of a callback that is out of time.

use crate::objects::Objects;
use crate::session::Session;
use crate::session::callbacks::safe_point::{SafePoints, Unsafe, is_blocked};
use crate::stacks::scan::Thread;
use crate::stacks::unwind;
use crate::state::pieces::CallArea;
use crate::target::maps::Maps;
use crate::threads::StoppedThread;
use crate::{RemoteAddr, Result};

/// Why a thread cannot be taken out of a call.
pub(super) enum Elsewhere {
    /// It may hold a lock.
    Holds(#[expect(dead_code, reason = "told by a debugger only")] Unsafe),
    /// It is not in the call at all: another thread has its number.
    NotInCall,
}

impl Session {
    /// Whether a stopped thread that is in a call can be taken out of it without leaving a lock of the C library behind.
    pub(super) fn can_give_up(
        &mut self,
        thread: &StoppedThread,
        maps: &Maps,
        area: &CallArea,
        objects: &Objects<'_>,
    ) -> Result<Result<(), Elsewhere>> {
        let safe_points = SafePoints::new(objects)?;
        let facts = Thread { pid: self.target.pid(), tid: thread.tid(), regs: thread.regs() };
        let walk = unwind::walk(&mut self.prover.cfi, self.target.memory(), maps, facts);
        let Some(depth) = walk.frames.iter().position(|frame| area.is_code(RemoteAddr(frame.pc))) else {
            let on_our_stack = area.stack.contains(&thread.sp());
            return Ok(Err(if on_our_stack {
                Elsewhere::Holds(Unsafe::Unreliable(
                    "its frames do not lead to where it was called".to_owned(),
                ))
            } else {
                Elsewhere::NotInCall
            }));
        };
        if depth == 0 {
            // Between the trampoline's own instructions: let it go on.
            return Ok(Err(Elsewhere::Holds(Unsafe::Signal)));
        }
        let blocked = is_blocked(thread.regs());
        Ok(safe_points.judge_frames(&walk.frames[..depth], blocked, false).map_err(Elsewhere::Holds))
    }
}
