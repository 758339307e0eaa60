//! Reading what a target says of itself, beside whoever changes it.
//!
//! No right is needed for that and none is taken away: not the lock, and no thread is stopped. What is read may be changed at any
//! moment, and memory be gone that the document names. So whatever is asked is asked of one [`View`], and is the answer only if
//! the document is still the same when all has been read: memory that a document names is made before it counts, and given back
//! after. Otherwise all is read anew, for a while; in the end what the document says by itself has to do, which is always true of
//! the moment at which it was read.

use crate::session::Session;
use crate::state::document::Document;
use crate::state::log_ring::{LogRing, Record};
use crate::state::state_area::StateArea;
use crate::target::maps::Maps;
use crate::target::{Unfit, lock};
use crate::{Error, Pid, Result, Target};
use std::time::{Duration, Instant};

/// For how long an answer is looked for that is of one piece.
const WITHIN: Duration = Duration::from_secs(2);
/// Pause before the second attempt; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How often an error is asked for again that is not of somebody's change.
const ATTEMPTS: u32 = 5;

/// A target as it was read at one moment.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) session: Session,
    /// The target's mappings.
    pub(crate) maps: Maps,
    /// Whether no more than the document is to be asked.
    pub(crate) document_only: bool,
    /// The document as it was written.
    written: Vec<u8>,
}

/// Asks `read` of process `pid`, until the answer is of one piece.
///
/// # Errors
/// Those of `read`, and of [`Target::open_to_read`].
pub(crate) fn look<T>(pid: Pid, mut read: impl FnMut(&mut View) -> Result<T>) -> Result<T> {
    let until = Instant::now() + WITHIN;
    let (mut pause, mut attempts) = (PAUSE, 0);
    loop {
        attempts += 1;
        let last = Instant::now() + pause >= until;
        match View::open(pid, last).and_then(|mut view| view.ask(&mut read)) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => tracing::debug!("process {pid} was changed while it was read"),
            // A program that was started a moment ago.
            Err(Error::Unfit { why: Unfit::Starting, .. }) if !last => {}
            Err(e) if last || !is_torn(&e) => return Err(e),
            Err(e) if attempts >= ATTEMPTS && lock::holder(pid)?.is_none() => return Err(e),
            Err(e) => tracing::debug!("process {pid} is read anew: {e}"),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether a failure may be that of memory which was changed or given back while it was read.
fn is_torn(e: &Error) -> bool {
    matches!(
        e,
        Error::Memory { .. }
            | Error::StateArea { .. }
            | Error::Damaged(_)
            | Error::Symbol(_)
            | Error::Pending(_)
    )
}

impl View {
    fn open(pid: Pid, document_only: bool) -> Result<Self> {
        let target = Target::open_to_read(pid)?;
        let maps = target.maps()?;
        let found = StateArea::find_document(target.memory(), &maps).map_err(|e| target.cause_of(e))?;
        let (area, written) = found.unzip();
        let document = written.as_deref().map_or_else(|| Ok(Document::default()), Document::parse)?;
        let session = Session::of(target, maps.clone(), area, document, None);
        Ok(Self { session, maps, document_only, written: written.unwrap_or_default() })
    }

    /// The answer, if it is of one piece.
    fn ask<T>(&mut self, read: &mut impl FnMut(&mut Self) -> Result<T>) -> Result<Option<T>> {
        let answer = read(self).map_err(|e| self.session.target().cause_of(e));
        let same = match &self.session.area {
            Some(area) if !self.document_only => {
                // An area that cannot be read any more is gone.
                area.document(self.session.target().memory()).is_ok_and(|now| now == self.written)
            }
            _ => true,
        };
        if same { answer.map(Some) } else { Ok(None) }
    }

    /// The messages that the target keeps, oldest first.
    pub(crate) fn log(&self) -> Result<Vec<Record>> {
        let target = self.session.target();
        let area = self.session.area.as_ref().ok_or(Error::NotPatched(target.pid()))?;
        let mut records = LogRing::new(area.log_ring()).records(target.memory())?;
        if let Some(runtime) = self.session.document.runtime.as_ref().filter(|_| !self.document_only) {
            // Patches write a log of their own: both are one by their times.
            records.extend(runtime.records(target.memory())?);
            records.sort_by_key(|record| record.time_ns);
        }
        Ok(records)
    }
}
