//! A way out of a deadlock with an exec.
//!
//! When a thread calls exec the kernel kills its siblings and waits until they are gone (`de_thread` in `fs/exec.c`), and a
//! killed thread that is traced is not gone until its tracer has reaped it. Meanwhile the exec holds a lock that
//! PTRACE_SEIZE takes, so a tracer that has seized some of the threads and is about to seize the next waits for the
//! exec, which waits for the tracer. A signal does not help, since the kernel makes the call again. But any thread of
//! the tracer's process may reap for it: one sleeps here, and while others are attaching it looks now and then for
//! dead threads.

use crate::threads::ptrace::{self, Event};
use crate::{Pid, Tid};
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// How often dead threads are looked for while somebody attaches. It is how long such an exec is held up.
const INTERVAL: Duration = Duration::from_millis(10);

struct Watched {
    /// Threads this process traces, but for the first ones of their processes: those are not waited for by an exec, and
    /// their exit status is somebody else's.
    tids: HashSet<Tid>,
    /// How many are attaching.
    attaching: usize,
    /// The thread that looks sleeps until it is woken. To wake it costs the attaching one more than all else here, so
    /// it is done no more than once in an [`INTERVAL`].
    asleep: bool,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);
static BEGUN: Condvar = Condvar::new();

/// While it lives, dead threads among the traced ones are reaped even if the tracer is stuck.
#[derive(Debug)]
pub(crate) struct Attaching(());

impl Attaching {
    pub(crate) fn begin() -> Self {
        let asleep = with(|watched| {
            watched.attaching += 1;
            std::mem::take(&mut watched.asleep)
        });
        if asleep {
            BEGUN.notify_one();
        }
        static START: Once = Once::new();
        // Without the thread all works as well, but for the deadlock.
        START.call_once(|| drop(std::thread::Builder::new().name("rescue".to_owned()).spawn(watch)));
        Self(())
    }
}

impl Drop for Attaching {
    fn drop(&mut self) {
        with(|watched| watched.attaching -= 1);
    }
}

/// Whether threads are traced now that an exec would wait for. While there are none, attaching to one cannot deadlock.
pub(crate) fn holds_any() -> bool {
    with(|watched| !watched.tids.is_empty())
}

/// Takes note of a thread that was attached to.
pub(crate) fn attached(pid: Pid, tid: Tid) {
    if pid.0 != tid.0 {
        with(|watched| watched.tids.insert(tid));
    }
}

/// Takes note of a thread that was let go, or has been reaped.
pub(crate) fn detached(tid: Tid) {
    with(|watched| watched.tids.remove(&tid));
}

fn lock() -> MutexGuard<'static, Option<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<R>(f: impl FnOnce(&mut Watched) -> R) -> R {
    f(lock().get_or_insert_with(|| Watched { tids: HashSet::new(), attaching: 0, asleep: false }))
}

fn watch() {
    let mut guard = lock();
    loop {
        let Some(watched) = guard.as_mut() else { return };
        if watched.attaching == 0 {
            watched.asleep = true;
            guard = BEGUN.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        // The tracer itself is faster in the usual case, so the look comes after the wait.
        guard = BEGUN.wait_timeout(guard, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        if let Some(watched) = guard.as_mut().filter(|watched| watched.attaching > 0) {
            watched.tids.retain(|&tid| !matches!(ptrace::poll(tid), Ok(Some(Event::Gone))));
        }
    }
}
