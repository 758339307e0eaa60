//! Keeping callbacks that the tool runs for a library and those that the hook runs apart, when it goes meanwhile.
//!
//! The kernel has a mutex for that. Here the word [`Use::between`] of the patch and the library says which callback was the last, so that the
//! hook runs `pre_unpatch` only where it is due, and that the tool has one running, for which the hook waits.

use super::table;
use crate::canary::canary;
use crate::session::Session;
use crate::{RemoteAddr, Result};
use std::mem::offset_of;
use std::time::Instant;
use ugraft_core::{Call, CallbackKind};
use ugraft_runtime::expected::{BETWEEN, CALLED, Use};

impl Session {
    /// Says to the hook that a callback is about to run. False where its library is just going, or has gone: the hook has run, or runs, what
    /// was due for it then.
    pub(crate) fn claim(&mut self, call: &Call) -> Result<bool> {
        let Some(word) = self.between(call)?.filter(|_| !canary!("say-nothing-of-calls")) else {
            return Ok(true);
        };
        let memory = self.target.memory();
        let before = memory.read_u64(word)?;
        memory.write(word, &CALLED.to_le_bytes())?;
        // A thread that comes to the hook from now on sees the word: between a write and a read of another process's memory lie locks of the
        // kernel, which no processor moves them past.
        let in_hook = self.in_loader()?.is_some();
        if !in_hook && !call.object.as_ref().is_some_and(|object| self.gone.contains(object)) {
            // If this run does not come to it, the next one makes the table agree with what is known then.
            self.document.libraries.iter_mut().for_each(|libraries| libraries.fits = None);
            return Ok(true);
        }
        self.target.memory().write(word, &before.to_le_bytes())?;
        Ok(false)
    }

    /// A callback has returned, or come to its end otherwise: a thread that waits for that in the hook goes on.
    pub(crate) fn note_called(&self, call: &Call) -> Result<()> {
        let Some(word) = self.between(call)? else { return Ok(()) };
        let memory = self.target.memory();
        // Otherwise nobody has waited so long, and the library is another one by now, or gone.
        if memory.read_u64(word)? == CALLED {
            let between = if call.callback == CallbackKind::PreUnpatch { BETWEEN } else { 0 };
            memory.write(word, &between.to_le_bytes())?;
        }
        Ok(())
    }

    /// Takes over what the hook has done, which leaves nothing of a callback that was due for a library that has gone.
    pub(crate) fn hear_of_libraries(&mut self, deadline: Instant) -> Result<()> {
        let stopped = self.stop_all_patiently(deadline)?;
        let taken_over = self.take_over(&stopped);
        self.let_go(stopped)?;
        taken_over?;
        // What is planned was planned before.
        self.counted = None;
        self.commit()
    }

    /// The word for a callback that the hook has to do with: it runs `pre_unpatch` of a library that goes after `post_patch` and before
    /// `pre_unpatch`. `None` for others, and for libraries that it does not know for the patch.
    fn between(&self, call: &Call) -> Result<Option<RemoteAddr>> {
        let (CallbackKind::PostPatch | CallbackKind::PreUnpatch, Some(library)) =
            (call.callback, &call.object)
        else {
            return Ok(None);
        };
        let Some(libraries) = self.document.libraries.as_ref() else { return Ok(None) };
        if !self.is_hooked(libraries)? {
            return Ok(None);
        }
        let Some((at, bytes)) = self.table_that_counts(libraries)? else { return Ok(None) };
        let patch = self.document.state.patch(call.patch).map_or("", |patch| patch.name());
        let one = table::find_use(&bytes, library, patch)?;
        Ok(one.map(|one| at.offset((one + offset_of!(Use, between)) as i64)))
    }
}
