//! The shipped step function, remembered: every state it ever led to has a number here, and every step is taken once.
//!
//! That makes a world of the model a handful of bytes. Who is pending is left out of a numbered state, because the truth
//! about that is the target's table: it is put in before a step is taken and compared after it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use super::hook::{Patches, Table, Use};

use ugraft_core::{
    CallbackKind, Direction, Due, Effect, Event, Faults, FuncDesc, FuncId, Implementation, Life, ObjectDesc,
    ObjectPhase, Patch, PatchDesc, PatchId, Phase, State, ThreadId, step_with_faults,
};

/// The number of a state.
pub type Doc = u32;
/// A set of threads, one bit each.
pub type Mask = u8;
/// An implementation of a function: 0 is the original, others are the numbers of patches.
pub type Code = u8;

/// The functions of the target: `f` of the main executable and `g`, of that or of a library.
pub const FUNCS: usize = 2;
/// Two ordinary patches and a replacing one.
pub const PATCHES: usize = 3;

/// What happens or is asked for, in few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    Load {
        patch: u8,
        enable: bool,
        ignore_order: bool,
    },
    Enable {
        patch: u8,
        ignore_order: bool,
    },
    Disable {
        patch: u8,
        ignore_order: bool,
    },
    Unload {
        patch: u8,
    },
    Started {
        threads: Mask,
    },
    Switched(u8),
    Exited(u8),
    Resumed {
        reversed: bool,
    },
    Reverse {
        threads: Mask,
    },
    Force,
    Returned {
        value: i8,
    },
    Coming,
    Going,
    /// What the hook has done is taken over.
    Came {
        applied: Patches,
        waits: Option<Code>,
    },
    Gone {
        left: Patches,
    },
}

/// A callback that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    pub patch: Code,
    pub callback: CallbackKind,
    /// Whether it is about the library.
    pub library: bool,
}

/// What is done in the target, in few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    Redirect {
        func: u8,
        source: Code,
        goal: Code,
    },
    Begin(Mask),
    Strike(u8),
    /// All that are pending, by force.
    StrikeAll,
    Swap {
        pending: Mask,
        reversed: bool,
    },
    Settle {
        func: u8,
        code: Code,
    },
    Free(Code),
    /// The library may be called from now on, or may not.
    Admit(bool),
    /// The new state is written into the target.
    Save,
}

impl Deed {
    /// Whether it is about `g`, or the library as a whole.
    fn is_of_library(&self) -> bool {
        matches!(self, Self::Redirect { func: 1, .. } | Self::Settle { func: 1, .. } | Self::Admit(_))
    }
}

/// A step that was taken.
#[derive(Clone, Debug)]
pub struct Done {
    pub doc: Doc,
    /// Who is pending in the new state.
    pub pending: Mask,
    /// A number for [`Book::deeds`].
    pub deeds: u32,
}

/// What is known of a state once and for all.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// It is one named state, and survives being written and read.
    pub named: bool,
    /// A replacing patch in transition has a func or a nop for every function below it.
    pub covered: bool,
    /// No nop of a completed replace and no replaced implementation is on a func stack.
    pub clean: bool,
    /// If a transition runs, it can be reversed and then completes, and it can complete as it is.
    pub reversible: bool,
    pub phase: Option<Phase>,
    pub reversed: bool,
    pub awaits: Option<Calls>,
    /// Whether it knows of the library.
    pub loaded: bool,
    /// Whether the patch in transition names the library.
    pub named_by_moving: bool,
    /// The patches that are disabled.
    pub disabled: Patches,
    /// Where the entry of `g` is to lead.
    pub led: Deed,
    /// The tables for the hook: while the transition that runs decides what does, and when it does not any more.
    pub running: Table,
    pub settled: Table,
    pub steady: [Code; FUNCS],
    /// Where each of the model's patches is, if it is loaded.
    pub lives: [Option<Life>; PATCHES],
}

/// What the patches of a model are and which bugs it has.
#[derive(Clone, Debug)]
pub struct Setup {
    pub patches: Vec<PatchDesc>,
    /// The library that `g` is in, if it is in one.
    pub library: Option<&'static str>,
    /// Whether that comes and goes by the hook in the loader, and the tool hears of it afterwards.
    pub hooked: bool,
    pub faults: Faults,
    /// A seeded bug of the tool: it saves every state before it does anything.
    pub save_first: bool,
    /// Another: it does not tell the hook which callbacks it has run.
    pub secretive: bool,
}

impl Setup {
    pub fn func(&self, func: u8) -> FuncId {
        let object = if func == 0 { None } else { self.library.map(Into::into) };
        FuncId { object, name: ["f", "g"][usize::from(func)].into(), sympos: 1 }
    }
}

/// A patch of some of the two functions.
pub fn patch(name: &str, library: Option<&str>, funcs: &[u8], replace: bool) -> PatchDesc {
    let func = |name: &str| FuncDesc { old_name: name.into(), old_sympos: 0 };
    let mut objects = vec![ObjectDesc { name: None, ..ObjectDesc::default() }];
    if library.is_some() {
        objects.push(ObjectDesc { name: library.map(Into::into), ..ObjectDesc::default() });
    }
    let last = objects.len() - 1;
    for at in funcs {
        if *at == 0 {
            objects[0].funcs.push(func("f"));
        } else {
            objects[last].funcs.push(func("g"));
        }
    }
    objects.retain(|object| !object.funcs.is_empty());
    PatchDesc { name: name.into(), replace, objects, ..PatchDesc::default() }
}

#[derive(Default)]
struct Pages {
    states: Vec<State>,
    numbers: HashMap<State, Doc>,
    facts: Vec<Facts>,
    deeds: Vec<Vec<Deed>>,
    steps: HashMap<(Doc, Mask, Ask), Option<Done>>,
    recoveries: HashMap<(Doc, u32), u32>,
}

pub struct Book {
    pub setup: Setup,
    pages: RwLock<Pages>,
}

pub fn threads(mask: Mask) -> BTreeSet<ThreadId> {
    (0..8).filter(|at| mask >> at & 1 == 1).map(ThreadId).collect()
}

fn mask(threads: &BTreeSet<ThreadId>) -> Mask {
    threads.iter().fold(0, |mask, thread| mask | 1 << thread.0)
}

fn patches(set: Patches) -> Vec<PatchId> {
    (0..8).filter(|number| set >> number & 1 == 1).map(PatchId).collect()
}

fn number(patch: PatchId) -> Code {
    Code::try_from(patch.0).expect("a model loads few patches")
}

fn code(implementation: Implementation) -> Code {
    match implementation {
        Implementation::Original => 0,
        Implementation::Patch(id) => number(id),
    }
}

impl Book {
    pub fn new(setup: Setup) -> Self {
        Self { setup, pages: RwLock::default() }
    }

    pub fn number(&self, state: State) -> Doc {
        if let Some(&doc) = self.pages.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&state) {
            return doc;
        }
        let facts = self.look(&state);
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let next = Doc::try_from(pages.states.len()).expect("few states");
        let doc = *pages.numbers.entry(state.clone()).or_insert(next);
        if doc == next {
            pages.states.push(state);
            pages.facts.push(facts);
        }
        doc
    }

    pub fn state(&self, doc: Doc) -> State {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).states[doc as usize].clone()
    }

    pub fn facts(&self, doc: Doc) -> Facts {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).facts[doc as usize]
    }

    pub fn count(&self) -> (usize, usize) {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        (pages.states.len(), pages.steps.len())
    }

    /// One of a step's deeds, and how many there are.
    pub fn deed(&self, deeds: u32, at: usize) -> (Option<Deed>, usize) {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let list = &pages.deeds[deeds as usize];
        (list.get(at).copied(), list.len())
    }

    pub fn list(&self, list: Vec<Deed>) -> u32 {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let known = pages.deeds.iter().position(|known| *known == list);
        let at = known.unwrap_or_else(|| {
            pages.deeds.push(list);
            pages.deeds.len() - 1
        });
        u32::try_from(at).expect("few lists")
    }

    /// Takes the shipped step. `None` if it is refused.
    pub fn ask(&self, doc: Doc, table: Mask, ask: Ask) -> Option<Done> {
        let key = (doc, table, ask);
        if let Some(done) = self.pages.read().unwrap_or_else(PoisonError::into_inner).steps.get(&key) {
            return done.clone();
        }
        let done = self.step(doc, table, ask);
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        pages.steps.entry(key).or_insert(done).clone()
    }

    fn step(&self, doc: Doc, table: Mask, ask: Ask) -> Option<Done> {
        let mut state = self.state(doc);
        state.set_pending(threads(table));
        let event = self.event(ask, table);
        let (mut after, effects) = step_with_faults(&state, event.clone(), self.setup.faults).ok()?;
        let save_at = if self.setup.save_first { 0 } else { event.save_after(&effects) };
        let mut deeds = Vec::new();
        for (at, effect) in effects.iter().enumerate() {
            if at == save_at {
                deeds.push(Deed::Save);
            }
            match self.deed_of(effect) {
                // Whom force strikes, and in what order, makes no difference to what is promised after it.
                Some(Deed::Strike(_)) if ask == Ask::Force => {
                    if deeds.last() != Some(&Deed::StrikeAll) {
                        deeds.push(Deed::StrikeAll);
                    }
                }
                deed => deeds.extend(deed),
            }
        }
        if save_at >= effects.len() {
            deeds.push(Deed::Save);
        }
        let pending = after.transition().map_or(0, |transition| mask(transition.pending()));
        after.set_pending(BTreeSet::new());
        let after = self.number(after);
        if after == doc {
            deeds.retain(|deed| *deed != Deed::Save);
        }
        Some(Done { doc: after, pending, deeds: self.list(deeds) })
    }

    fn event(&self, ask: Ask, table: Mask) -> Event {
        let name = |patch: u8| self.setup.patches[usize::from(patch)].name.clone();
        let library = || String::from(self.setup.library.unwrap_or_default());
        match ask {
            Ask::Load { patch, enable, ignore_order } => {
                Event::Load { desc: self.setup.patches[usize::from(patch)].clone(), enable, ignore_order }
            }
            Ask::Enable { patch, ignore_order } => Event::Enable { patch: name(patch), ignore_order },
            Ask::Disable { patch, ignore_order } => Event::Disable { patch: name(patch), ignore_order },
            Ask::Unload { patch } => Event::Unload { patch: name(patch) },
            Ask::Started { threads: all } => Event::Started { pending: threads(all) },
            Ask::Switched(thread) => Event::ThreadSwitched(ThreadId(thread.into())),
            Ask::Exited(thread) => Event::ThreadExited(ThreadId(thread.into())),
            Ask::Resumed { reversed } => Event::Resumed { pending: threads(table), reversed },
            Ask::Reverse { threads: all } => Event::Reverse { patch: None, threads: threads(all) },
            Ask::Force => Event::Force { patch: None },
            Ask::Returned { value } => Event::CallbackReturned { value: value.into() },
            Ask::Coming => Event::ObjectComing { object: library(), misfits: Vec::new() },
            Ask::Going => Event::ObjectGoing { object: library() },
            Ask::Came { applied, waits } => Event::ObjectCame {
                object: library(),
                applied: patches(applied),
                waits: waits.map(|patch| PatchId(patch.into())),
            },
            Ask::Gone { left } => Event::ObjectGone { object: library(), left: patches(left) },
        }
    }

    /// What is to be done at once. Where the library comes by the hook, its function is led anew only while all threads are stopped for the
    /// begin or the end of a transition.
    fn deed_of(&self, effect: &Effect) -> Option<Deed> {
        self.any_deed_of(effect).filter(|deed| !self.setup.hooked || !deed.is_of_library())
    }

    fn any_deed_of(&self, effect: &Effect) -> Option<Deed> {
        let place =
            |func: &FuncId| (0..FUNCS as u8).find(|&at| self.setup.func(at) == *func).expect("two functions");
        match effect {
            Effect::Redirect { func, source, goal } => {
                Some(Deed::Redirect { func: place(func), source: code(*source), goal: code(*goal) })
            }
            Effect::Begin { pending } => Some(Deed::Begin(mask(pending))),
            Effect::Switch(thread) => Some(Deed::Strike(u8::try_from(thread.0).expect("few threads"))),
            Effect::Swap { pending, reversed } => {
                Some(Deed::Swap { pending: mask(pending), reversed: *reversed })
            }
            Effect::Settle { func, implementation } => {
                Some(Deed::Settle { func: place(func), code: code(*implementation) })
            }
            Effect::Admit { .. } => Some(Deed::Admit(true)),
            Effect::Refuse { .. } => Some(Deed::Admit(false)),
            Effect::FreePatch(id) => Some(Deed::Free(code(Implementation::Patch(*id)))),
            // Of these nothing is seen in what threads run: the log, the end (the table is empty already), the outcome,
            // and callbacks, which are answered by the model.
            _ => None,
        }
    }

    /// The deeds by which a run that takes over makes the target what the state says, after those of a first step. Nobody
    /// is pending any more where no transition is under way; and where none has begun, or all is saved, it is safe to lead
    /// entries to where the state says.
    pub fn recovery(&self, doc: Doc, first: u32) -> u32 {
        let key = (doc, first);
        if let Some(&deeds) = self.pages.read().unwrap_or_else(PoisonError::into_inner).recoveries.get(&key) {
            return deeds;
        }
        let state = self.state(doc);
        let entries = state.entries();
        let mut list =
            self.pages.read().unwrap_or_else(PoisonError::into_inner).deeds[first as usize].clone();
        if state.transition().is_none_or(|transition| transition.phase() != Phase::Started) {
            list.push(Deed::StrikeAll);
        }
        let funcs = if self.setup.hooked { 1 } else { FUNCS as u8 };
        for func in 0..funcs {
            let named = entries.iter().filter_map(|effect| self.deed_of(effect)).find(|deed| match deed {
                Deed::Redirect { func: of, .. } | Deed::Settle { func: of, .. } => *of == func,
                _ => false,
            });
            list.push(named.unwrap_or(Deed::Settle { func, code: 0 }));
        }
        if let Some(library) = self.setup.library.filter(|_| !self.setup.hooked) {
            let on_the_way = matches!(state.due(), Due::Callback(call) if call.phase != ObjectPhase::Live);
            list.push(Deed::Admit(state.is_loaded(Some(library)) && !on_the_way));
        }
        let deeds = self.list(list);
        self.pages.write().unwrap_or_else(PoisonError::into_inner).recoveries.insert(key, deeds);
        deeds
    }

    /// Whether every func stack is as a state without transition must have it.
    fn is_clean(&self, state: &State) -> bool {
        let stacks = (0..FUNCS as u8).map(|func| state.func_stack(&self.setup.func(func)));
        let on_stacks: Vec<_> = stacks.flatten().collect();
        let settled = |life| matches!(life, Life::Enabled | Life::Replaced);
        state.patches().iter().all(|patch| {
            let none_replaced =
                patch.life() != Life::Replaced || on_stacks.iter().all(|(id, _)| *id != patch.id());
            let no_nops = !settled(patch.life()) || patch.nops().is_empty();
            none_replaced && no_nops
        }) && (state.transition().is_some()
            || on_stacks.iter().all(|(_, top)| *top != Implementation::Original))
    }

    fn is_named(state: &State) -> bool {
        let moving = |life| matches!(life, Life::Enabling | Life::Disabling);
        let moving: Vec<_> = state.patches().iter().filter(|p| moving(p.life())).map(|p| p.id()).collect();
        let named: Vec<_> = state.transition().map(|transition| transition.patch()).into_iter().collect();
        let written = serde_json::to_string(state).expect("states can be written");
        let read: Option<State> = serde_json::from_str(&written).ok();
        state.check().is_ok() && moving == named && read.as_ref() == Some(state)
    }

    fn is_covered(state: &State) -> bool {
        let Some(patch) =
            state.transition().and_then(|t| state.patch(t.patch())).filter(|p| p.desc().replace)
        else {
            return true;
        };
        let below =
            state.patches().iter().take_while(|other| other.id() != patch.id()).filter(|p| p.is_on_stack());
        below
            .flat_map(|other| other.desc().funcs().collect::<Vec<_>>())
            .all(|func| patch.desc().changes(&func) || patch.nops().contains(&func))
    }

    /// From a transition, with and without a reversal, all threads switching and all callbacks succeeding: where it ends.
    fn is_reversible(&self, state: &State) -> bool {
        let Some(transition) = state.transition() else { return true };
        if transition.phase() == Phase::Completing {
            return true;
        }
        let patch = transition.patch();
        let towards = |life: Life| matches!(life, Life::Enabling | Life::Enabled);
        let before = state.patch(patch).map(|p| towards(p.life()));
        let mut some_switched = state.clone();
        some_switched.set_pending(threads(0b011));
        let all = 0b111;
        let mut ways: Vec<(State, bool)> = vec![(some_switched.clone(), false)];
        let answered = self.answer(some_switched);
        match step_with_faults(
            &answered,
            Event::Reverse { patch: None, threads: threads(all) },
            self.setup.faults,
        ) {
            Ok((reversed, _)) => ways.push((reversed, true)),
            Err(_) => return false,
        }
        ways.into_iter().all(|(way, reversed)| {
            let end = self.finish(way, all);
            // A load that is given up before its start is no load.
            let after = end.patch(patch).map_or(Some(false), |p| Some(towards(p.life())));
            end.transition().is_none() && (after == before) != reversed
        })
    }

    /// Answers the callback that has not returned, and those that follow, well.
    fn answer(&self, mut state: State) -> State {
        while matches!(state.due(), Due::Callback(_)) {
            let returned = Event::CallbackReturned { value: 0 };
            let Ok((next, _)) = step_with_faults(&state, returned, self.setup.faults) else { break };
            state = next;
        }
        state
    }

    fn finish(&self, mut state: State, all: Mask) -> State {
        for _ in 0..8 {
            state = self.answer(state);
            let event = match state.due() {
                Due::Start => Event::Started { pending: threads(all) },
                Due::Threads => match state.transition().and_then(|t| t.pending().first().copied()) {
                    Some(thread) => Event::ThreadSwitched(thread),
                    None => break,
                },
                _ => break,
            };
            let Ok((next, _)) = step_with_faults(&state, event, self.setup.faults) else { break };
            state = next;
        }
        state
    }

    /// The table that the tool gives the hook; `running` says whether the transition still decides what runs.
    fn table(&self, state: &State, running: bool) -> Table {
        let Some(library) = self.setup.library else { return Table::default() };
        let transition = state.transition().filter(|t| t.phase() != Phase::Completing);
        let running = running && transition.is_some();
        let g = self.setup.func(1);
        let in_effect = |patch: &&Patch| match state.transition().filter(|t| t.patch() == patch.id()) {
            Some(_) if running => true,
            Some(transition) => transition.direction() == Direction::Patching,
            None => patch.life() == Life::Enabled,
        };
        let mut uses = state.patches().iter().filter(in_effect).filter_map(|patch| {
            let object = patch.objects().iter().find(|object| object.name() == Some(library))?;
            let moving = running && patch.life() != Life::Enabled;
            let calls = patch.desc().objects.iter().any(|object| object.name.as_deref() == Some(library));
            let new = if patch.desc().changes(&g) { number(patch.id()) } else { 0 };
            let (applied, between) = (object.is_patched(), object.is_between());
            (calls || moving).then(|| Use { patch: number(patch.id()), new, calls, moving, applied, between })
        });
        Table {
            uses: std::array::from_fn(|_| uses.next()),
            running,
            disabling: running && transition.is_some_and(|t| t.origin() == Direction::Unpatching),
        }
    }

    fn look(&self, state: &State) -> Facts {
        let due = state.due();
        let awaits = match &due {
            Due::Callback(call) => Some(Calls {
                patch: number(call.patch),
                callback: call.callback,
                library: call.object.is_some(),
            }),
            _ => None,
        };
        let names = |patch: &Patch| patch.objects().iter().any(|object| object.name().is_some());
        let moving = state.transition().and_then(|transition| state.patch(transition.patch()));
        let led =
            state.entries().iter().filter_map(|effect| self.any_deed_of(effect)).find(Deed::is_of_library);
        Facts {
            named: Self::is_named(state),
            covered: Self::is_covered(state),
            clean: self.is_clean(state),
            reversible: self.is_reversible(state),
            phase: state.transition().map(|transition| transition.phase()),
            reversed: state.transition().is_some_and(|transition| transition.is_reversed()),
            awaits,
            loaded: self.setup.library.is_some_and(|library| state.is_loaded(Some(library))),
            named_by_moving: moving.is_some_and(names),
            disabled: state
                .patches()
                .iter()
                .filter(|patch| patch.life() == Life::Disabled)
                .fold(0, |set, patch| set | 1 << patch.id().0),
            led: led.unwrap_or(Deed::Settle { func: 1, code: 0 }),
            running: self.table(state, true),
            settled: self.table(state, false),
            steady: [0, 1].map(|func| code(state.steady(&self.setup.func(func)))),
            lives: std::array::from_fn(|at| {
                Some(state.patch_named(&self.setup.patches.get(at)?.name)?.life())
            }),
        }
    }
}
