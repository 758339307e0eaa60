//! Looking without touching: status, list, log, parameters.

use crate::answers::{Blocked, CallbackReport, Status, ToolReport, TransitionReport};
use crate::clock::age;
use crate::code::pending::PendingTable;
use crate::report::view::{self, View};
use crate::session::Session;
use crate::session::callbacks::params::ParamReport;
use crate::session::census::Census;
use crate::session::libraries::running::running;
use crate::session::look::{Looker, side_watch};
use crate::session::stop::Hindrance;
use crate::session::sweep;
use crate::state::log_ring::Record;
use crate::target::live_thread;
use crate::target::lock::{self, Looking};
use crate::target::maps::Maps;
use crate::{Error, Pid, Result};
use std::time::{Duration, Instant};
use ugraft_core::{Due, Phase, Transition};

/// The longest that the looks at pending threads may take for a status, and that others who look at them are waited for.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);

/// A target's status. Where a transition runs and no tool is at work on it, the pending threads are looked at, each
/// stopped alone and briefly; otherwise nothing is stopped.
///
/// # Errors
/// Those of [`Target::open_to_read`](crate::Target::open_to_read) and [`StateArea::find`](crate::state::state_area::StateArea::find).
pub fn status(pid: Pid) -> Result<Status> {
    let status = standing(pid)?;
    let pending = status.transition.as_ref().is_some_and(|transition| transition.pending > 0);
    if !pending || status.tool_at_work {
        return Ok(status);
    }
    match Looking::take(pid, Instant::now() + LOOKS_WITHIN)? {
        Some(looking) => view::look(pid, |view| view.status(Some(&looking))),
        // Somebody else is just looking at them, or has begun to change the target.
        None => standing(pid),
    }
}

/// The same without what blocks a transition: no thread is looked at.
///
/// # Errors
/// As [`status`].
pub fn standing(pid: Pid) -> Result<Status> {
    view::look(pid, |view| view.status(None))
}

/// The messages that a target keeps, oldest first.
///
/// # Errors
/// [`Error::NotPatched`] where it has none, and those of [`status`].
pub fn log(pid: Pid) -> Result<Vec<Record>> {
    view::look(pid, |view| view.log())
}

/// The parameters of a loaded patch.
///
/// # Errors
/// [`Error::Refused`] where there is no such patch, and those of [`status`].
pub fn params(pid: Pid, patch: &str) -> Result<Vec<ParamReport>> {
    view::look(pid, |view| view.session.params(patch))
}

/// A loaded patch's code as a file for debuggers (see [`crate::report::symbol_file`]).
///
/// # Errors
/// As [`params`].
pub fn symbol_file(pid: Pid, patch: &str) -> Result<Vec<u8>> {
    view::look(pid, |view| view.session.symbol_file(patch))
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

impl View {
    /// The target as it stands; with the right to look at its threads, also what keeps those that have not switched.
    fn status(&mut self, looking: Option<&Looking>) -> Result<Status> {
        let tool = lock::holder(self.session.target.pid())?;
        if !self.document_only {
            self.session.look_at_libraries()?;
        }
        let blockers = match looking {
            Some(looking) => {
                let hindrances = self.look_at_pending(looking)?;
                self.session.describe(hindrances)
            }
            None => Vec::new(),
        };
        let (target, document) = (&self.session.target, &self.session.document);
        let transition = document.state.transition();
        let transition = transition.map(|t| self.transition_report(t, blockers)).transpose()?;
        Ok(Status {
            pid: target.pid().0,
            comm: target.comm()?,
            patches: document.state.status(),
            hook: if self.document_only { None } else { running(target, document)? },
            transition,
            tool_at_work: tool.is_some(),
            tool: tool.and_then(ToolReport::of),
            mapped_bytes: Session::mapped_bytes(&self.maps),
            written_by: document.tool.clone(),
        })
    }

    /// What keeps the threads that have not switched. They are not struck: this is only to know. It ends early where somebody
    /// wants to change the target.
    fn look_at_pending(&mut self, looking: &Looking) -> Result<Vec<Hindrance>> {
        let Some(reversed) = self.session.document.state.transition().map(Transition::is_reversed) else {
            return Ok(Vec::new());
        };
        let (_, pending) = self.pending_keys()?;
        let session = &mut self.session;
        let changes = session.document.state.changes();
        let watch = side_watch(&session.document, &self.maps, &changes, reversed)?;
        session.know_images();
        let deadline = Instant::now() + LOOKS_WITHIN;
        let mut hindrances = Vec::new();
        for tid in session.target.threads()? {
            if pending.is_empty() || Instant::now() > deadline || looking.is_asked_to_leave()? {
                break;
            }
            match session.stop_one(tid) {
                Ok(Err(unstoppable)) => hindrances.push(unstoppable),
                Ok(Ok(Some(thread))) if pending.contains(&Census::key(&thread).0) => {
                    let maps = session.target.maps()?;
                    let looked =
                        Looker::new(&session.target, &mut session.prover, maps).look(&thread, &watch);
                    session.let_go_one(thread)?;
                    hindrances.extend(looked?.map(Hindrance::Blocker));
                }
                Ok(Ok(Some(thread))) => session.let_go_one(thread)?,
                // What a debugger has can be told, but not looked at.
                Ok(Ok(None)) | Err(Error::AlreadyTraced { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(hindrances)
    }

    fn transition_report(&self, transition: &Transition, blockers: Vec<Blocked>) -> Result<TransitionReport> {
        let document = &self.session.document;
        let (begun, pending) = self.pending_keys()?;
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
            begun: begun || transition.phase() != Phase::Initializing,
            since: document.arena.as_ref().map_or(Duration::ZERO, |arena| age(arena.began_ns)),
            threads: self.session.target.threads()?.len(),
            pending: pending.len(),
            blockers,
        })
    }

    /// Whether the transition has begun, and the keys that have not switched, as the target itself has them.
    fn pending_keys(&self) -> Result<(bool, Vec<u64>)> {
        let (document, memory) = (&self.session.document, self.session.target.memory());
        if self.document_only {
            let known = document.state.transition().into_iter().flat_map(Transition::pending);
            return Ok((false, known.map(|key| key.0).collect()));
        }
        let Some(arena) = &document.arena else { return Ok((false, Vec::new())) };
        let Some(valid) = arena.valid_table(memory.read_u64(arena.word)?)? else {
            return Ok((false, Vec::new()));
        };
        let table = memory.read_vec(arena.tables[valid], arena.capacity()?.bytes())?;
        let table = PendingTable::parse(&table)?;
        Ok((true, table.pending().collect()))
    }
}
