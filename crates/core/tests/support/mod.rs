//! A target that exists on paper only: carries out effects at once, and writes down what a log would show.
#![allow(dead_code, missing_docs)]

use std::collections::{BTreeSet, VecDeque};

use ugraft_core::*;

pub const PHASES: [(ObjectPhase, &str); 3] = [
    (ObjectPhase::Live, "[MODULE_STATE_LIVE] Normal state"),
    (ObjectPhase::Coming, "[MODULE_STATE_COMING] Full formed, running module_init"),
    (ObjectPhase::Going, "[MODULE_STATE_GOING] Going away"),
];

/// A state with threads, callbacks that return what they are told to, and a log.
pub struct Target {
    pub state: State,
    pub threads: BTreeSet<ThreadId>,
    /// Threads that never come clean.
    pub stuck: BTreeSet<ThreadId>,
    pub log: Vec<String>,
    pub effects: Vec<Effect>,
    /// What the next `pre_patch` callbacks return; 0 when used up.
    pub pre_patch: VecDeque<i32>,
    /// Whether transitions are started as soon as they can be.
    pub autostart: bool,
}

pub fn threads(ids: impl IntoIterator<Item = u64>) -> BTreeSet<ThreadId> {
    ids.into_iter().map(ThreadId).collect()
}

impl Target {
    pub fn new(objects: &[&str]) -> Self {
        Self {
            state: State::new(objects.iter().copied()),
            threads: threads([1, 2]),
            stuck: BTreeSet::new(),
            log: Vec::new(),
            effects: Vec::new(),
            pre_patch: VecDeque::new(),
            autostart: true,
        }
    }

    /// A line that is not the machine's.
    pub fn say(&mut self, line: impl Into<String>) {
        self.log.push(line.into());
    }

    /// One event and all that follows from it, with every callback run and every thread that can be switched switched.
    pub fn event(&mut self, event: Event) -> Result<Vec<Effect>, Refusal> {
        let mut all = Vec::new();
        let mut next = Some(event);
        let mut first = true;
        while let Some(event) = next.take() {
            let (state, effects) = match step(&self.state, event) {
                Ok(done) => done,
                Err(refusal) if first => {
                    self.log.extend(refusal.log_line().map(|(_, text)| text));
                    return Err(refusal);
                }
                Err(refusal) => panic!("what follows from an event was refused: {refusal}"),
            };
            first = false;
            self.state = state;
            for effect in &effects {
                match effect {
                    Effect::Log(_, text) => self.log.push(text.clone()),
                    Effect::RunCallback(call) => next = Some(self.call(call)),
                    _ => {}
                }
            }
            all.extend(effects);
            if next.is_none() {
                next = match self.state.due() {
                    Due::Start if self.autostart => Some(Event::Started { pending: self.threads.clone() }),
                    Due::Threads => {
                        let pending = self.state.transition().unwrap().pending();
                        pending.difference(&self.stuck).next().map(|&thread| Event::ThreadSwitched(thread))
                    }
                    _ => None,
                };
            }
        }
        self.effects.extend(all.iter().cloned());
        Ok(all)
    }

    fn call(&mut self, call: &Call) -> Event {
        let patch = self.state.patch(call.patch).unwrap().name();
        let object = match &call.object {
            None => "vmlinux".to_owned(),
            Some(name) => {
                format!("{name} -> {}", PHASES.iter().find(|(phase, _)| *phase == call.phase).unwrap().1)
            }
        };
        self.log.push(format!("{patch}: {}_callback: {object}", call.callback.name()));
        let refuse = call.callback == CallbackKind::PrePatch;
        Event::CallbackReturned { value: if refuse { self.pre_patch.pop_front().unwrap_or(0) } else { 0 } }
    }

    pub fn ok(&mut self, event: Event) -> Vec<Effect> {
        self.event(event).unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }

    pub fn load(&mut self, desc: PatchDesc) -> Vec<Effect> {
        self.ok(Event::Load { desc, enable: true, ignore_order: false })
    }

    pub fn load_disabled(&mut self, desc: PatchDesc) -> Vec<Effect> {
        self.ok(Event::Load { desc, enable: false, ignore_order: false })
    }

    pub fn try_enable(&mut self, patch: &str) -> Result<Vec<Effect>, Refusal> {
        self.event(Event::Enable { patch: patch.into(), ignore_order: false })
    }

    pub fn enable(&mut self, patch: &str) -> Vec<Effect> {
        self.try_enable(patch).unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }

    pub fn try_disable(&mut self, patch: &str) -> Result<Vec<Effect>, Refusal> {
        self.event(Event::Disable { patch: patch.into(), ignore_order: false })
    }

    pub fn disable(&mut self, patch: &str) -> Vec<Effect> {
        self.try_disable(patch).unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }

    pub fn disable_in_any_order(&mut self, patch: &str) -> Vec<Effect> {
        self.ok(Event::Disable { patch: patch.into(), ignore_order: true })
    }

    pub fn try_unload(&mut self, patch: &str) -> Result<Vec<Effect>, Refusal> {
        self.event(Event::Unload { patch: patch.into() })
    }

    pub fn unload(&mut self, patch: &str) -> Vec<Effect> {
        self.try_unload(patch).unwrap_or_else(|refusal| panic!("refused: {refusal}"))
    }

    pub fn reverse(&mut self) -> Vec<Effect> {
        self.ok(Event::Reverse { patch: None, threads: self.threads.clone() })
    }

    pub fn coming(&mut self, object: &str) -> Vec<Effect> {
        self.ok(Event::ObjectComing { object: object.into(), misfits: Vec::new() })
    }

    pub fn going(&mut self, object: &str) -> Vec<Effect> {
        self.ok(Event::ObjectGoing { object: object.into() })
    }

    /// What the function is when no transition runs.
    pub fn runs(&self, func: &FuncId) -> String {
        match self.state.steady(func) {
            Implementation::Original => "original".into(),
            Implementation::Patch(id) => self.state.patch(id).unwrap().name().into(),
        }
    }

    pub fn life(&self, patch: &str) -> Life {
        self.state.patch_named(patch).unwrap_or_else(|| panic!("no patch {patch}")).life()
    }

    /// Lines since the last call.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// The callbacks run since the last call, one a line.
    pub fn take_callbacks(&mut self) -> Vec<String> {
        self.take_log().into_iter().filter(|line| line.contains("_callback: ")).collect()
    }
}

pub fn func(object: Option<&str>, name: &str) -> FuncId {
    FuncId { object: object.map(Into::into), name: name.into(), sympos: 1 }
}

/// A patch with callbacks nowhere: objects with their functions.
pub fn patch(name: &str, objects: &[(Option<&str>, &[&str])]) -> PatchDesc {
    PatchDesc {
        name: name.into(),
        objects: objects
            .iter()
            .map(|(object, funcs)| ObjectDesc {
                name: object.map(Into::into),
                funcs: funcs.iter().map(|f| FuncDesc { old_name: (*f).into(), old_sympos: 0 }).collect(),
                ..ObjectDesc::default()
            })
            .collect(),
        ..PatchDesc::default()
    }
}

pub fn replacing(desc: PatchDesc) -> PatchDesc {
    PatchDesc { replace: true, ..desc }
}

pub fn with_callbacks(mut desc: PatchDesc) -> PatchDesc {
    desc.objects.iter_mut().for_each(|object| object.callbacks = Callbacks::ALL);
    desc
}
