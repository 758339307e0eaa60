//! Real-time priority for the tool while it keeps others waiting.
//!
//! A tool that loses its CPU to the target's busy threads in the middle of a stop makes the others wait for whole time
//! slices. So the thread that stops others runs as SCHED_FIFO for that time, with its timers not rounded. The priority is
//! never inherited (SCHED_RESET_ON_FORK), and where it is not permitted everything works without it.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// sched_setscheduler(2); not in the libc crate.
const SCHED_RESET_ON_FORK: i32 = 0x4000_0000;
/// The lowest real-time priority: enough to come before ordinary threads, and behind every real-time program.
const PRIORITY: i32 = 1;

/// While it lives, the calling thread has real-time priority, if that is permitted.
///
/// Guards nest: an inner one finds the priority raised and changes nothing, and the outer one ends last.
#[derive(Debug)]
pub struct Urgent {
    before: Option<(i32, libc::sched_param)>,
    timer_slack: Option<libc::c_ulong>,
    /// Priorities belong to a thread.
    _not_send: PhantomData<*const ()>,
}

impl Urgent {
    /// Raises the priority of the calling thread.
    #[must_use]
    pub fn begin() -> Self {
        let mut urgent = Self { before: None, timer_slack: None, _not_send: PhantomData };
        let mut param = libc::sched_param { sched_priority: 0 };
        // SAFETY: plain system calls on the calling thread; `param` outlives them.
        let policy = unsafe {
            libc::sched_getparam(0, &raw mut param);
            libc::sched_getscheduler(0)
        };
        if matches!(policy & !SCHED_RESET_ON_FORK, libc::SCHED_FIFO | libc::SCHED_RR) || policy < 0 {
            return urgent;
        }
        let raised = libc::sched_param { sched_priority: PRIORITY };
        // SAFETY: as above.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | SCHED_RESET_ON_FORK, &raw const raised) }
            == 0
        {
            urgent.before = Some((policy, param));
        } else {
            // Real-time threads have no timer slack; without the priority, at least wake in time.
            // SAFETY: plain system calls.
            let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
            // SAFETY: plain system call.
            if slack > 0 && unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) } == 0 {
                urgent.timer_slack = Some(slack as libc::c_ulong);
            }
        }
        urgent
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some((policy, param)) = self.before {
            // SAFETY: a plain system call; `param` outlives it. Lowering is always permitted but for the reset-on-fork
            // flag, which an unprivileged thread keeps: then it is kept here too.
            unsafe {
                if libc::sched_setscheduler(0, policy, &raw const param) != 0 {
                    libc::sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &raw const param);
                }
            }
        }
        if let Some(slack) = self.timer_slack {
            // SAFETY: a plain system call.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack) };
        }
    }
}

/// While it lives, the calling thread comes before ordinary ones whenever it has something to do, if that is permitted: what
/// is computed before a stop is a few milliseconds' work, for which it would wait many times as long among threads that
/// never sleep. Not real-time priority, which would leave nothing to the others if it took long.
#[derive(Debug)]
pub struct Prompt {
    before: Option<i32>,
    /// Priorities belong to a thread.
    _not_send: PhantomData<*const ()>,
}

impl Prompt {
    /// Raises the priority of the calling thread.
    #[must_use]
    pub fn begin() -> Self {
        const HIGHEST: i32 = -20;
        // The "process" 0 is the calling thread (setpriority(2), "C library/kernel differences").
        // SAFETY: a plain system call.
        let before = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: as above.
        let raised = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, HIGHEST) } == 0;
        Self { before: raised.then_some(before), _not_send: PhantomData }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: a plain system call.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_as_before_afterwards() {
        // SAFETY: a plain system call.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        {
            let _outer = Urgent::begin();
            let during = policy();
            let _inner = Urgent::begin();
            assert_eq!(policy(), during);
        }
        assert_eq!(policy(), before);
    }
}
