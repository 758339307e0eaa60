//! Failures that only mean that the target changed while it was looked at: a library came or went, or something was mapped where
//! memory of ours was to be. Whoever gave the command would give it again; the session does that itself.
//!
//! A request is begun anew only while nothing of it has been committed. Until then nothing in the target leads to anything of the
//! request: no entry is redirected, no callback has run, and mappings that no document names are nobody's. So the document of
//! before is still the truth, and to go back to it is all there is to undo.

use crate::objects::Objects;
use crate::session::{Session, objects_of};
use crate::state::pieces::Libraries;
use crate::target::Target;
use crate::target::maps::Maps;
use crate::{Error, Result};
use std::io;
use std::time::{Duration, Instant};
use ugraft_core::{DescError, Refusal};

/// How often a request is begun.
pub(crate) const ATTEMPTS: usize = 8;
/// How often the same is said of the libraries before it is believed although they come and go.
const BELIEVED: usize = 3;
/// Pause before the second attempt; it doubles each time. A thread that is about to change something must get on.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);
/// The longest wait for a thread that is changing the loader's list.
const LIST_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether libraries change, and the pause between two readings: many times as long as a library takes
/// to come and go where that is done without pause.
const SAMPLES: usize = 3;
const SAMPLE_PAUSE: Duration = Duration::from_micros(300);
/// The most room that is kept between a new mapping and its neighbours.
const MAX_APART: u64 = 64 << 20;

/// The attempts at something that have failed.
#[derive(Debug)]
pub(crate) struct Attempts {
    until: Instant,
    failures: Vec<Error>,
}

/// What a request was planned by.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    /// Whether the loader's list was whole.
    pub(crate) whole: bool,
    maps: Maps,
}

/// What a failure says of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Something came to where memory of ours was to be.
    Taken,
    /// Something went that was looked at.
    Gone,
    /// Perhaps that libraries changed meanwhile: it would be said of a library that is half there, too, or of two that are taken for one.
    Libraries,
    /// What will be so the next time.
    Lasting,
}

impl Attempts {
    /// None yet, and no more from `until` on.
    pub(crate) fn until(until: Instant) -> Self {
        Self { until, failures: Vec::new() }
    }

    /// Adds one and waits for a moment, if there may be more; otherwise what is to be told of them.
    fn add(&mut self, e: Error) -> Result<()> {
        let pause = PAUSE * (1 << self.failures.len());
        self.failures.push(e);
        if self.failures.len() < ATTEMPTS && Instant::now() + pause < self.until {
            std::thread::sleep(pause);
            return Ok(());
        }
        self.told().map_or(Ok(()), Err)
    }

    /// How often the same as this has been said.
    fn times(&self, e: &Error) -> usize {
        let said = e.to_string();
        self.failures.iter().filter(|failure| failure.to_string() == said).count()
    }

    /// What to tell of them: what was said most often. A race says now this and now that.
    fn told(&mut self) -> Option<Error> {
        let times: Vec<_> = self.failures.iter().map(|e| self.times(e)).collect();
        let most = times.iter().max()?;
        let first = times.iter().position(|times| times == most)?;
        Some(self.failures.swap_remove(first))
    }
}

impl Looked {
    /// What was there by `maps` and `objects`.
    pub(crate) fn at(maps: &Maps, objects: &Objects<'_>) -> Self {
        Self { whole: !objects.is_changing(), maps: maps.clone() }
    }

    /// Whether libraries have changed since, or do so now.
    pub(crate) fn is_outdated(&self, target: &Target) -> Result<bool> {
        for _ in 0..SAMPLES {
            let (maps, objects) = objects_of(target)?;
            if !self.whole || objects.is_changing() || !maps.same_files(&self.maps) {
                return Ok(true);
            }
            std::thread::sleep(SAMPLE_PAUSE);
        }
        Ok(false)
    }
}

impl Session {
    /// Waits for a moment after a failure that need not come again; otherwise tells what is to be told of it. If something came to
    /// where a mapping was to be, places are looked for further from others from now on.
    pub(crate) fn try_again(&mut self, e: Error, attempts: &mut Attempts) -> Result<()> {
        let cause = cause(&e);
        // What cannot be read is being changed.
        let lasts = match cause {
            Cause::Taken | Cause::Gone => false,
            Cause::Libraries => {
                attempts.times(&e) + 1 >= BELIEVED || !self.do_libraries_change().unwrap_or(true)
            }
            Cause::Lasting => true,
        };
        if lasts {
            return Err(e);
        }
        if cause == Cause::Taken {
            // Who maps much takes what is free next to what there is.
            self.apart = (self.apart * 16).min(MAX_APART);
        }
        tracing::debug!("to be tried again: {e}");
        attempts.add(e)?;
        self.await_whole_list(attempts.until.min(Instant::now() + LIST_WITHIN));
        Ok(())
    }

    /// Waits until the loader's list is whole. A thread that changes it may wait long for a processor.
    fn await_whole_list(&self, until: Instant) {
        while Instant::now() < until
            && objects_of(&self.target).is_ok_and(|(_, objects)| objects.is_changing())
        {
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether libraries came or went since the request was planned, or do so now.
    fn do_libraries_change(&self) -> Result<bool> {
        if self.counts_libraries()? && self.have_libraries_moved()? {
            return Ok(true);
        }
        // The hook counts a change when it is done, and where there is none nobody counts.
        self.looked.as_ref().map_or(Ok(false), |looked| looked.is_outdated(&self.target))
    }

    fn counts_libraries(&self) -> Result<bool> {
        let hooked = |libraries: &Libraries| self.is_hooked(libraries);
        self.document.libraries.as_ref().map_or(Ok(false), hooked)
    }
}

fn cause(e: &Error) -> Cause {
    match e {
        Error::RemoteCall { call: "mmap", source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
            Cause::Taken
        }
        Error::Memory { action: "read", .. } => Cause::Gone,
        Error::Symbol(_)
        | Error::Disturbed { .. }
        | Error::Entry { .. }
        | Error::Thunk { .. }
        | Error::Link(_)
        | Error::NoPlace { .. }
        | Error::Refused(Refusal::BadDescription {
            reason: DescError::ObjectTwice(_) | DescError::FuncTwice(_),
            ..
        }) => Cause::Libraries,
        _ => Cause::Lasting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pid;

    fn refused_mapping(number: i32) -> Error {
        Error::RemoteCall { pid: Pid(1), call: "mmap", source: io::Error::from_raw_os_error(number) }
    }

    #[test]
    fn only_a_place_that_is_taken_may_be_free_elsewhere() {
        assert_eq!(cause(&refused_mapping(libc::EEXIST)), Cause::Taken);
        assert_eq!(cause(&refused_mapping(libc::ENOMEM)), Cause::Lasting);
        let create = Error::RemoteCall {
            pid: Pid(1),
            call: "memfd_create",
            source: io::Error::from_raw_os_error(libc::EEXIST),
        };
        assert_eq!(cause(&create), Cause::Lasting);
    }

    #[test]
    fn attempts_come_to_an_end() {
        let mut attempts = Attempts::until(Instant::now() + Duration::from_secs(60));
        let made = (1..100).find(|_| attempts.add(refused_mapping(libc::EEXIST)).is_err());
        assert_eq!(made, Some(ATTEMPTS));
        assert!(Attempts::until(Instant::now()).add(refused_mapping(libc::EEXIST)).is_err());
    }

    #[test]
    fn what_is_said_most_often_is_told() {
        let failures = [libc::EEXIST, libc::ENOMEM, libc::EPERM, libc::ENOMEM].map(refused_mapping);
        let mut attempts = Attempts { until: Instant::now(), failures: failures.into() };
        assert_eq!(attempts.told().map(|e| e.to_string()), Some(refused_mapping(libc::ENOMEM).to_string()));
    }
}
