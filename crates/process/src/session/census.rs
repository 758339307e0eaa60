//! Which thread of the target has which key in the pending table.
//!
//! Keys are thread pointers, and only a stopped thread tells its own. So a census is taken under a stop of the whole
//! process, and threads born later are added as they are stopped.

use crate::code::pending;
use crate::target::Target;
use crate::threads::{StoppedProcess, StoppedThread};
use crate::{Result, Tid};
use std::collections::{BTreeMap, BTreeSet};
use ugraft_core::ThreadId;

/// The keys of all threads that are known.
#[derive(Debug)]
pub(crate) struct Census {
    keys: BTreeMap<Tid, ThreadId>,
    /// Listed threads that run no user code: dead ones, and the kernel's own.
    keyless: BTreeSet<Tid>,
    valid: bool,
}

impl Census {
    /// The key of a stopped thread.
    pub(crate) fn key(thread: &StoppedThread) -> ThreadId {
        ThreadId(pending::key_of(thread.fs_base().0))
    }

    /// The census of all threads, which are stopped.
    pub(crate) fn of(target: &Target, stopped: &StoppedProcess) -> Result<Self> {
        let keys: BTreeMap<_, _> = stopped.threads().iter().map(|t| (t.tid(), Self::key(t))).collect();
        let keyless = target.threads()?.into_iter().filter(|tid| !keys.contains_key(tid)).collect();
        Ok(Self { keys, keyless, valid: true })
    }

    /// The threads that have `key`.
    pub(crate) fn holders(&self, key: ThreadId) -> Vec<Tid> {
        self.keys.iter().filter(|(_, k)| **k == key).map(|(tid, _)| *tid).collect()
    }

    /// The threads of the target that are not known yet; `None` if that cannot be said because threads are dying: a listing ends
    /// early where one does.
    pub(crate) fn unknown(&self, target: &Target) -> Result<Option<Vec<Tid>>> {
        let listed = target.threads()?;
        if listed != target.threads()? {
            return Ok(None);
        }
        let known = |tid: &Tid| self.keys.contains_key(tid) || self.keyless.contains(tid);
        Ok(Some(listed.into_iter().filter(|tid| !known(tid)).collect()))
    }

    /// Adds a stopped thread.
    pub(crate) fn add(&mut self, thread: &StoppedThread) {
        self.keys.insert(thread.tid(), Self::key(thread));
    }

    /// Adds a thread that runs no user code.
    pub(crate) fn add_keyless(&mut self, tid: Tid) {
        self.keyless.insert(tid);
    }

    /// It turned out that threads have come, gone, or changed keys in a way that only a new census can tell.
    pub(crate) fn invalidate(&mut self) {
        self.valid = false;
    }

    /// Whether it may still be used.
    pub(crate) fn is_valid(&self) -> bool {
        self.valid
    }
}
