//! Whether threads have to wait for processors.
//!
//! Among more running threads than there are processors, one that is woken waits for its turn: for time slices of others, each
//! time. Then it is quicker, for the process too, to stop all of its threads for a moment than to have one of them, alone,
//! do something for us.

use crate::Result;
use crate::target::{Target, read_text};

/// Whether the target's running threads fill the processors.
///
/// # Errors
/// [`Error::TargetGone`](crate::Error::TargetGone), [`Error::Proc`](crate::Error::Proc).
pub(crate) fn is_crowded(target: &Target) -> Result<bool> {
    // Most often the whole machine has less to do than that, which takes one look to see.
    if running_everywhere().is_some_and(|running| !fills_processors(running)) {
        return Ok(false);
    }
    let mut running = 0;
    for tid in target.threads()? {
        running += usize::from(target.thread_stat(tid)?.is_some_and(|stat| stat.state == 'R'));
        if fills_processors(running) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether so many running threads leave no processor free.
pub(crate) fn fills_processors(running: usize) -> bool {
    running > 0 && running >= processors()
}

/// The processors that we may use: the target's are the same more often than not, and this is no more than a guess.
fn processors() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize)
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

    #[test]
    fn processors_and_running_threads_are_counted() {
        assert!(processors() >= 1);
        assert!(running_everywhere().is_some());
        assert!(!fills_processors(0) && fills_processors(usize::MAX));
    }
}
