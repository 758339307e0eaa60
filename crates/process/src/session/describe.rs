//! Names for what hinders a transition: threads, functions, backtraces.

use crate::answers::{BlockKind, Blocked, Frame};
use crate::clock::age;
use crate::objects::Objects;
use crate::session::stop::Hindrance;
use crate::session::{Session, objects_of};
use crate::stacks::{Blocker, Reason};
use crate::state::document::Document;
use crate::target::Target;
use crate::{RemoteAddr, Tid};
use std::rc::Rc;
use std::time::Duration;

impl Session {
    /// What is reported of these hindrances. Names that cannot be had are left out.
    pub(crate) fn describe(&self, hindrances: Vec<Hindrance>) -> Vec<Blocked> {
        let target = Rc::clone(&self.target);
        let objects = objects_of(&target).ok().map(|(_, objects)| objects);
        let since = self.document.arena.as_ref().map_or(Duration::ZERO, |arena| age(arena.began_ns));
        hindrances
            .into_iter()
            .map(|h| describe_one(h, &target, &self.document, objects.as_ref(), since))
            .collect()
    }
}

fn describe_one(
    hindrance: Hindrance,
    target: &Target,
    document: &Document,
    objects: Option<&Objects<'_>>,
    since: Duration,
) -> Blocked {
    match hindrance {
        Hindrance::Unstoppable { tid, comm, why } => Blocked {
            tid: tid.0,
            comm,
            function: None,
            frame: None,
            kind: BlockKind::Unstoppable,
            reason: format!("cannot be stopped: {why}"),
            advice: BlockKind::Unstoppable.advice(),
            since,
            backtrace: Vec::new(),
        },
        Hindrance::Memory { hit, range } => Blocked {
            tid: 0,
            comm: String::new(),
            function: Some(range.function),
            frame: None,
            kind: BlockKind::SuspendedStack,
            reason: format!(
                "suspended stack: the word at {}{} points into the function",
                hit.at,
                within(&hit.mapping)
            ),
            advice: BlockKind::SuspendedStack.advice(),
            since,
            backtrace: Vec::new(),
        },
        Hindrance::Blocker(blocker) => Blocked {
            tid: blocker.tid.0,
            comm: comm(target, blocker.tid),
            function: blocker.function().map(str::to_owned),
            frame: blocker.frame,
            kind: kind(&blocker.reason),
            reason: blocker.reason.to_string(),
            advice: kind(&blocker.reason).advice(),
            since,
            backtrace: backtrace(&blocker, document, objects),
        },
    }
}

fn within(mapping: &str) -> String {
    if mapping.is_empty() { String::new() } else { format!(" (in {mapping})") }
}

fn kind(reason: &Reason) -> BlockKind {
    match reason {
        Reason::RunsIn | Reason::Entering => BlockKind::InFunction,
        Reason::SignalFrame => BlockKind::SignalFrame,
        Reason::Suspended(_) => BlockKind::SuspendedStack,
        Reason::Unreliable { .. } => BlockKind::Unreliable,
        Reason::Scan(_) => BlockKind::Unscannable,
    }
}

fn backtrace(blocker: &Blocker, document: &Document, objects: Option<&Objects<'_>>) -> Vec<Frame> {
    let name = |(i, &addr): (usize, &RemoteAddr)| {
        // A return address names the instruction behind the call, which may belong to the next function.
        let inside = if i == 0 { addr } else { addr.offset(-1) };
        Frame { addr, symbol: document.symbol(inside, objects) }
    };
    blocker.backtrace.iter().enumerate().map(name).collect()
}

fn comm(target: &Target, tid: Tid) -> String {
    target.thread_stat(tid).ok().flatten().map_or_else(|| "?".to_owned(), |stat| stat.comm)
}
