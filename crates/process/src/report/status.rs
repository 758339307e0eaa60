//! Looking without touching: status, list, log, check.

use crate::code::pending::PendingTable;
use crate::code::stub::{WORD_BEGUN, WORD_TABLE};
use crate::report::describe::age;
use crate::report::{Blocked, CallbackReport, Status, TransitionReport};
use crate::session::Session;
use crate::session::census::Census;
use crate::session::look::{Looker, side_watch};
use crate::session::stop::Hindrance;
use crate::session::sweep;
use crate::state::document::Document;
use crate::state::log_ring::{LogRing, Record};
use crate::state::state_area::StateArea;
use crate::target::Target;
use crate::target::live_thread;
use crate::target::maps::Maps;
use crate::{Error, Pid, Result};
use std::time::{Duration, Instant};
use ugraft_core::{Due, Phase, Transition};

/// The longest that the looks at pending threads may take for a status.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);

/// A target's status. Where a transition runs and no tool is at work on it, the pending threads are looked at, each
/// stopped alone and briefly; otherwise nothing is stopped.
///
/// # Errors
/// Those of [`Target::open`] and [`StateArea::find`].
pub fn status(pid: Pid) -> Result<Status> {
    match Session::open(pid) {
        Ok(session) => session.status(),
        Err(Error::Busy(_)) => {
            let target = Target::open(pid)?;
            let maps = target.maps()?;
            let Some((_, document)) = read(&target, &maps)? else {
                return Ok(Status { tool_at_work: true, ..nothing(&target)? });
            };
            let transition = document.state.transition();
            let transition =
                transition.map(|t| transition_report(&target, &document, t, Vec::new())).transpose()?;
            Ok(Status { transition, tool_at_work: true, ..of_document(&target, &maps, &document)? })
        }
        Err(e) => Err(e),
    }
}

/// The messages that a target keeps, oldest first.
///
/// # Errors
/// [`Error::NotPatched`] where it has none, and those of [`Target::open`].
pub fn log(pid: Pid) -> Result<Vec<Record>> {
    let target = Target::open(pid)?;
    let area = StateArea::find(target.memory(), &target.maps()?)?.ok_or(Error::NotPatched(pid))?;
    let mut records = LogRing::new(area.log_ring()).records(target.memory())?;
    let document = Document::parse(&area.document(target.memory())?)?;
    if let Some(runtime) = &document.runtime {
        // Patches write a log of their own: both are one by their times.
        records.extend(runtime.records(target.memory())?);
        records.sort_by_key(|record| record.time_ns);
    }
    Ok(records)
}

/// The processes that have memory of ours, in the order of their ids. Those we may not look at are left out.
#[must_use]
pub fn patched_processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid));
    let mut patched: Vec<_> = pids
        .filter(|pid| {
            let text = live_thread(*pid)
                .ok()
                .flatten()
                .and_then(|(thread, _)| std::fs::read_to_string(format!("/proc/{thread}/maps")).ok());
            Maps::parse(&text.unwrap_or_default()).is_some_and(|maps| sweep::has_traces(&maps))
        })
        .collect();
    patched.sort();
    patched
}

impl Session {
    /// As [`status`].
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::TargetGone`].
    pub fn status(mut self) -> Result<Status> {
        let maps = self.target.maps()?;
        self.look_at_libraries()?;
        let hindrances = self.look_at_pending()?;
        let blockers = self.describe(hindrances);
        let transition = self.document.state.transition();
        let transition =
            transition.map(|t| transition_report(&self.target, &self.document, t, blockers)).transpose()?;
        Ok(Status { transition, ..of_document(&self.target, &maps, &self.document)? })
    }

    /// What keeps the threads that have not switched. They are not struck: this is only to know.
    fn look_at_pending(&mut self) -> Result<Vec<Hindrance>> {
        let Some(transition) = self.document.state.transition() else { return Ok(Vec::new()) };
        let (begun, pending) = pending_keys(&self.target, &self.document)?;
        if !begun || pending.is_empty() {
            return Ok(Vec::new());
        }
        let changes = self.document.state.changes();
        let watch = side_watch(&self.document, &self.target.maps()?, &changes, transition.is_reversed())?;
        self.know_images();
        let deadline = Instant::now() + LOOKS_WITHIN;
        let mut hindrances = Vec::new();
        for tid in self.target.threads()? {
            if Instant::now() > deadline {
                break;
            }
            match self.stop_one(tid)? {
                Err(unstoppable) => hindrances.push(unstoppable),
                Ok(Some(thread)) if pending.contains(&Census::key(&thread).0) => {
                    let maps = self.target.maps()?;
                    let blocker = Looker::new(&self.target, &mut self.prover, maps).look(&thread, &watch)?;
                    hindrances.extend(blocker.map(Hindrance::Blocker));
                }
                Ok(_) => {}
            }
        }
        Ok(hindrances)
    }
}

fn read(target: &Target, maps: &Maps) -> Result<Option<(StateArea, Document)>> {
    let Some(area) = StateArea::find(target.memory(), maps)? else { return Ok(None) };
    let document = Document::parse(&area.document(target.memory())?)?;
    Ok(Some((area, document)))
}

fn nothing(target: &Target) -> Result<Status> {
    Ok(Status { pid: target.pid().0, comm: target.comm()?, ..Status::default() })
}

fn of_document(target: &Target, maps: &Maps, document: &Document) -> Result<Status> {
    Ok(Status {
        patches: document.state.status(),
        mapped_bytes: Session::mapped_bytes(maps),
        written_by: document.tool.clone(),
        ..nothing(target)?
    })
}

fn transition_report(
    target: &Target,
    document: &Document,
    transition: &Transition,
    blockers: Vec<Blocked>,
) -> Result<TransitionReport> {
    let (begun, pending) = pending_keys(target, document)?;
    let begun = begun || transition.phase() != Phase::Initializing;
    let callback = match document.state.due() {
        Due::Callback(call) => Some(CallbackReport {
            object: call.object,
            callback: call.callback.name(),
            tid: document.call.as_ref().map(|running| running.tid),
        }),
        _ => None,
    };
    Ok(TransitionReport {
        callback,
        patch: document.state.patch(transition.patch()).map(|p| p.name().to_owned()).unwrap_or_default(),
        direction: transition.direction(),
        begun,
        since: document.arena.as_ref().map_or(Duration::ZERO, |arena| age(arena.began_ns)),
        threads: target.threads()?.len(),
        pending: pending.len(),
        blockers,
    })
}

/// Whether the transition has begun, and the keys that have not switched, as the target itself has them.
fn pending_keys(target: &Target, document: &Document) -> Result<(bool, Vec<u64>)> {
    let Some(arena) = &document.arena else { return Ok((false, Vec::new())) };
    let mut word = [0];
    target.memory().read(arena.word, &mut word)?;
    if word[0] & WORD_BEGUN == 0 {
        return Ok((false, Vec::new()));
    }
    let table = arena.tables[usize::from(word[0] & WORD_TABLE != 0)];
    let table = PendingTable::parse(&target.memory().read_vec(table, arena.capacity()?.bytes())?)?;
    Ok((true, table.pending().collect()))
}
