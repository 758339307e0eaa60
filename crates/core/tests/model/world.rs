//! A target, its threads and the tool, as bytes, and all that can happen to them.
//!
//! Threads call and return as they like; what a frame runs is fixed when the function is called, by where the entry leads
//! and, for a stub, by the transition word and the pending table. The tool asks the machine, and does what it is told one
//! deed at a time, with threads running in between, unless it dies. Only the saved state and the target survive.

use stateright::{Model, Property};

use super::book::{Ask, Book, Code, Deed, Doc, FUNCS, Facts, Mask, PATCHES};
use super::hook::{Hook, Stage};
use ugraft_core::{CallbackKind, Phase};

pub const THREADS: usize = 4;
pub const DEPTH: usize = 3;

/// Where an entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    Steady(Code),
    Stub { source: Code, goal: Code },
}

/// A call that has not returned: the function, and what it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    pub func: u8,
    pub code: Code,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thread {
    pub alive: bool,
    pub depth: u8,
    pub frames: [Frame; DEPTH],
}

impl Thread {
    pub fn stack(&self) -> &[Frame] {
        &self.frames[..usize::from(self.depth)]
    }
}

/// The tool, between two of its deeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// Nothing is left to do; it may as well not run.
    Idle,
    /// It was told what to do and has done some of it.
    Busy { doc: Doc, deeds: u32, next: u8, expected: Mask },
    /// A transition is over, and the hook still works with its table.
    Unsettled,
    /// It died on the way, and nobody has taken over.
    Dead,
}

/// What is still allowed to happen, which keeps the space finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub requests: u8,
    pub reversals: u8,
    pub forces: u8,
    pub deaths: u8,
    pub births: u8,
    pub exits: u8,
    pub moves: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The saved state.
    pub doc: Doc,
    pub tool: Tool,
    pub begun: bool,
    pub swapped: bool,
    pub table: Mask,
    pub entries: [Entry; FUNCS],
    pub threads: [Thread; THREADS],
    pub library: bool,
    pub hook: Hook,
    /// Patches whose memory was given back.
    pub freed: u16,
    /// Somebody forced a transition: from here on P3 is not promised.
    pub forced: bool,
    /// Something was not as the model assumes; never to be seen.
    pub broken: bool,
    pub left: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Call(u8, u8),
    Return(u8),
    Born(u8),
    Exit(u8),
    /// The tool asks, and does the first thing that it is told.
    Ask(Ask),
    /// The tool does the next thing.
    Do,
    Die,
    /// Another run of the tool takes over.
    TakeOver,
    /// The library comes, and one of the patches in the hook's table may refuse it.
    Come {
        refused_by: Option<u8>,
    },
    /// The library goes.
    Go,
    /// The tool hears, under a stop, of what the hook has done.
    Hear,
    /// The same, and the library's function and the hook's table are made what they are to be without a transition.
    Settle,
}

pub struct Target {
    pub book: Book,
    /// What has happened before the exploration begins.
    pub before: Vec<Ask>,
    /// Which requests may be made.
    pub requests: Vec<Ask>,
    pub budget: Budget,
    pub living: u8,
    pub depth: u8,
    pub library_loaded: bool,
    /// What must be seen to happen somewhere.
    pub sometimes: Vec<Sight>,
    /// The seeded bug that is not in the machine: threads are declared switched without a look at their stacks.
    pub skip_the_stack_check: bool,
}

/// Something that can happen, and how to see that it has.
pub type Sight = (&'static str, fn(&Target, &World) -> bool);

impl World {
    fn living(&self) -> Mask {
        (0..THREADS).filter(|&at| self.threads[at].alive).fold(0, |mask, at| mask | 1 << at)
    }

    fn is_pending(&self, thread: usize) -> bool {
        self.table >> thread & 1 == 1
    }

    /// What a thread runs when it calls the function now.
    pub fn runs(&self, thread: usize, func: u8) -> Code {
        match self.entries[usize::from(func)] {
            Entry::Steady(code) => code,
            Entry::Stub { source, goal } => {
                if self.begun && self.is_pending(thread) == self.swapped {
                    goal
                } else {
                    source
                }
            }
        }
    }

    /// Whether a thread's stack holds no implementation that it would leave by switching.
    fn is_clean(&self, thread: usize) -> bool {
        self.threads[thread].stack().iter().all(|frame| match self.entries[usize::from(frame.func)] {
            Entry::Steady(_) => true,
            Entry::Stub { source, goal } => frame.code != if self.swapped { goal } else { source },
        })
    }

    /// Whether every frame on the thread's stack is what the thread would run if it called the function now: no thread
    /// ever has two versions on its stack, nor calls another one than it has there.
    pub fn is_consistent(&self, thread: usize) -> bool {
        self.threads[thread].stack().iter().all(|frame| frame.code == self.runs(thread, frame.func))
    }

    /// Whether a thread is in the library: a program does not close what it runs in.
    fn is_in_library(&self) -> bool {
        let used = |thread: &Thread| thread.stack().iter().any(|frame| frame.func == 1);
        self.threads.iter().any(used)
    }

    fn uses(&self, code: Code) -> bool {
        let on_a_stack =
            self.threads.iter().any(|thread| thread.stack().iter().any(|frame| frame.code == code));
        on_a_stack
            || self.entries.iter().any(|entry| match *entry {
                Entry::Steady(to) => to == code,
                Entry::Stub { source, goal } => source == code || goal == code,
            })
    }

    pub fn uses_freed(&self) -> bool {
        (1..16).any(|code| self.freed >> code & 1 == 1 && self.uses(code))
    }

    fn perform(&mut self, deed: Deed, doc: Doc) {
        match deed {
            Deed::Redirect { func, source, goal } => {
                self.entries[usize::from(func)] = Entry::Stub { source, goal }
            }
            Deed::Settle { func, code } => self.entries[usize::from(func)] = Entry::Steady(code),
            Deed::Begin(threads) => {
                self.broken |= self.begun;
                (self.begun, self.swapped, self.table) = (true, false, threads);
            }
            Deed::Strike(thread) => self.table &= !(1 << thread),
            Deed::StrikeAll => self.table = 0,
            Deed::Swap { pending, reversed } => {
                self.broken |= !self.begun || self.swapped == reversed;
                (self.swapped, self.table) = (reversed, pending);
            }
            Deed::Free(code) => self.freed |= 1 << code,
            Deed::Admit(admitted) => self.library = admitted,
            Deed::Save => self.doc = doc,
        }
    }

    /// Leads the library's function where the state has it, if the library is there.
    fn lead(&mut self, deed: Deed) {
        if self.library {
            self.perform(deed, self.doc);
        }
    }

    /// What the transition had is given back.
    fn give_back(&mut self) {
        self.broken |= self.table != 0;
        (self.begun, self.swapped, self.table) = (false, false, 0);
    }

    /// Threads are as good as each other: the one order of them that stands for all. What a busy tool has still to do
    /// names no thread, since what does is always done first.
    fn canonical(mut self) -> Self {
        let bit = |mask: Mask, at: usize| mask >> at & 1;
        let table = self.table;
        let expected = if let Tool::Busy { expected, .. } = self.tool { expected } else { 0 };
        let mut order: [usize; THREADS] = std::array::from_fn(|at| at);
        order.sort_by_key(|&at| (std::cmp::Reverse(self.threads[at]), bit(table, at), bit(expected, at)));
        let permuted =
            |mask: Mask| order.iter().enumerate().fold(0, |to, (at, &from)| to | bit(mask, from) << at);
        self.threads = order.map(|at| self.threads[at]);
        self.table = permuted(table);
        if let Tool::Busy { expected, .. } = &mut self.tool {
            *expected = permuted(*expected);
        }
        self
    }
}

impl Target {
    /// Does the next deed of a busy tool, if there is one, and lets it rest when there is none.
    fn advance(&self, world: &mut World) {
        let Tool::Busy { doc, deeds, next, expected } = world.tool else { return };
        let (deed, count) = self.book.deed(deeds, usize::from(next));
        if let Some(deed) = deed {
            world.perform(deed, doc);
            if self.book.setup.hooked && matches!(deed, Deed::Begin(_)) {
                let facts = self.book.facts(doc);
                world.lead(facts.led);
                world.hook.table = facts.running;
            }
        }
        let next = next + 1;
        world.tool = Tool::Busy { doc, deeds, next, expected };
        if usize::from(next) >= count {
            world.tool = Tool::Idle;
            let phase = self.book.facts(doc).phase;
            let started = phase == Some(Phase::Started);
            world.broken |= world.doc != doc || started && world.table != expected;
            if world.hook.table.running && !started && phase != Some(Phase::Initializing) {
                world.tool = Tool::Unsettled;
            } else if !started {
                world.give_back();
            }
        }
    }

    /// The tool asks the machine and does the first thing that it is told. Nothing is lost by doing that at once: if it
    /// died before, nothing would have happened. Threads that must not run in between are stopped for just that long.
    fn ask(&self, world: &World, ask: Ask) -> Option<World> {
        let done = self.book.ask(world.doc, world.table, ask)?;
        let mut next = *world;
        if let (Ask::Returned { value: 0 }, Some(call)) = (ask, self.book.facts(world.doc).awaits)
            && call.library
            && self.book.setup.hooked
        {
            next.hook.call(call.patch, call.callback);
            if !self.book.setup.secretive {
                next.hook.told(call.patch, call.callback);
            }
        }
        next.tool = Tool::Busy { doc: done.doc, deeds: done.deeds, next: 0, expected: done.pending };
        self.advance(&mut next);
        Some(next)
    }

    /// As [`Self::ask`], and all the rest of it, too.
    fn ask_wholly(&self, world: &World, ask: Ask) -> Option<World> {
        let mut next = self.ask(world, ask)?;
        while matches!(next.tool, Tool::Busy { .. }) {
            self.advance(&mut next);
        }
        Some(next)
    }

    /// Another run of the tool reads the saved state and looks at the target: it lets the state catch up with a transition
    /// that has begun, and then makes all entries what the state says.
    fn take_over(&self, world: &World) -> Option<World> {
        let mut next = *world;
        let phase = self.book.facts(world.doc).phase;
        let going_on = matches!(phase, Some(Phase::Initializing | Phase::Started));
        let (doc, expected, first) = if going_on && world.begun {
            let done = self.book.ask(world.doc, world.table, Ask::Resumed { reversed: world.swapped })?;
            (done.doc, done.pending, done.deeds)
        } else {
            next.broken |= phase == Some(Phase::Started);
            (world.doc, 0, self.book.list(Vec::new()))
        };
        next.tool = Tool::Busy { doc, deeds: self.book.recovery(doc, first), next: 0, expected };
        self.advance(&mut next);
        Some(next)
    }

    /// Whether the hook has done something that the tool has not heard of, or a library came that is to be taken in.
    fn has_moved(&self, world: &World) -> bool {
        let facts = self.book.facts(world.doc);
        let gone = facts.loaded && (world.hook.went || !world.library);
        self.book.setup.hooked && (gone || world.library && !facts.loaded && self.is_told_of(world, &facts))
    }

    /// Whether the tool is told of a library that came: by what was applied to it, or since it begins a transition that needs to know.
    fn is_told_of(&self, world: &World, facts: &Facts) -> bool {
        world.hook.table.applied() != 0 || facts.phase == Some(Phase::Initializing) && facts.named_by_moving
    }

    /// The tool hears of what the hook has done.
    fn hear(&self, world: &mut World) {
        let table = world.hook.table;
        if self.book.facts(world.doc).loaded && (world.hook.went || !world.library) {
            self.take_in(world, Ask::Gone { left: table.all() });
        }
        world.hook.went = false;
        let facts = self.book.facts(world.doc);
        if world.library && !facts.loaded && self.is_told_of(world, &facts) {
            self.take_in(world, Ask::Came { applied: table.applied(), waits: table.waits() });
        }
    }

    /// A request finds out itself about a library that the hook has nothing to do with.
    fn note(&self, world: &mut World) {
        let loaded = self.book.facts(world.doc).loaded;
        if world.hook.table.all() == 0 && loaded && (world.hook.went || !world.library) {
            self.hear(world);
        }
        if world.hook.table.all() == 0 && world.library && !self.book.facts(world.doc).loaded {
            self.take_in(world, Ask::Coming);
        }
    }

    fn take_in(&self, world: &mut World, ask: Ask) {
        let done = self.book.ask(world.doc, world.table, ask).expect("what has happened is not refused");
        let mut at = 0;
        while let (Some(deed), _) = self.book.deed(done.deeds, at) {
            world.perform(deed, done.doc);
            at += 1;
        }
    }

    /// The end of a transition under a stop, or another look at libraries: nothing is left of the transition.
    fn settle(&self, world: &mut World) {
        self.hear(world);
        let facts = self.book.facts(world.doc);
        world.lead(facts.led);
        world.hook.table = facts.settled;
        world.give_back();
        world.tool = Tool::Idle;
    }

    /// Whether the tool is at rest and knows of all that the hook has done.
    fn is_heard(&self, world: &World) -> bool {
        world.tool == Tool::Idle && !self.has_moved(world)
    }

    /// Whether each patch has had the callbacks that it is to have had for the library when no transition runs.
    fn has_called_back(&self, world: &World) -> bool {
        let facts = self.book.facts(world.doc);
        let stage = |patch: Code| world.hook.stages[usize::from(patch)];
        let is_called = |applied: bool| if applied { Stage::PostPatch } else { Stage::Unpatched };
        let in_effect = world.hook.table.uses.iter().flatten().filter(|one| one.calls);
        let without = (1..8).filter(|patch| facts.disabled >> patch & 1 == 1);
        facts.phase.is_some()
            || facts.awaits.is_some()
            || world.hook.table != facts.settled
            || in_effect.clone().all(|one| stage(one.patch) == is_called(one.applied))
                && without.clone().all(|patch| stage(patch) == Stage::Unpatched)
    }

    /// Whether the library's function leads where the state has it, and all patches are applied to it.
    fn is_led(&self, world: &World) -> bool {
        let facts = self.book.facts(world.doc);
        let due =
            facts.phase.is_none() && world.hook.table == facts.settled || facts.phase == Some(Phase::Started);
        let led = match facts.led {
            Deed::Redirect { source, goal, .. } => Entry::Stub { source, goal },
            Deed::Settle { code, .. } => Entry::Steady(code),
            _ => return false,
        };
        !due || world.entries[1] == led && world.hook.table.uses.iter().flatten().all(|one| one.applied)
    }

    /// What the hook can do by itself, at any time.
    fn hook_actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.left.moves == 0 {
            return;
        }
        if world.library {
            if !world.is_in_library() {
                actions.push(Action::Go);
            }
            return;
        }
        actions.push(Action::Come { refused_by: None });
        let refusing = (0..PATCHES as u8)
            .filter(|&at| world.hook.table.uses[usize::from(at)].is_some_and(|one| one.calls));
        actions.extend(refusing.map(|at| Action::Come { refused_by: Some(at) }));
    }

    /// What the tool can ask on its own account: to start, and to look at threads.
    fn tool_actions(&self, world: &World, actions: &mut Vec<Action>) {
        let facts = self.book.facts(world.doc);
        let moved = self.has_moved(world);
        if let Some(call) = facts.awaits {
            if moved
                && call.library
                && matches!(call.callback, CallbackKind::PostPatch | CallbackKind::PreUnpatch)
            {
                // What the hook would run, too, is run only for a library that it has not run it for.
                actions.push(Action::Hear);
                return;
            }
            actions.push(Action::Ask(Ask::Returned { value: 0 }));
            if call.callback == CallbackKind::PrePatch {
                actions.push(Action::Ask(Ask::Returned { value: -19 }));
            }
            return;
        }
        match facts.phase {
            Some(Phase::Initializing | Phase::Started) if moved => actions.push(Action::Hear),
            Some(Phase::Initializing) => actions.push(Action::Ask(Ask::Started { threads: world.living() })),
            Some(Phase::Started) => {
                for at in (0..THREADS).filter(|&at| world.is_pending(at)) {
                    let thread = at as u8;
                    if !world.threads[at].alive {
                        actions.push(Action::Ask(Ask::Exited(thread)));
                    } else if self.skip_the_stack_check || world.is_clean(at) {
                        actions.push(Action::Ask(Ask::Switched(thread)));
                    }
                }
            }
            _ => {
                let stale = self.book.setup.hooked && world.hook.table != facts.settled;
                if stale {
                    actions.push(Action::Settle);
                }
                // The library may move just after the tool has looked.
                if !stale || moved {
                    let requests = self.requests.iter().filter(|_| world.left.requests > 0);
                    actions.extend(requests.map(|&ask| Action::Ask(ask)));
                }
            }
        }
        if facts.phase == Some(Phase::Initializing) || facts.phase == Some(Phase::Started) && !moved {
            if world.left.reversals > 0 {
                actions.push(Action::Ask(Ask::Reverse { threads: world.living() }));
            }
            if world.left.forces > 0 {
                actions.push(Action::Ask(Ask::Force));
            }
        }
    }

    fn thread_actions(&self, world: &World, actions: &mut Vec<Action>) {
        for at in 0..THREADS {
            let thread = at as u8;
            let now = &world.threads[at];
            if !now.alive {
                if world.left.births > 0 && world.living() != 0 {
                    actions.push(Action::Born(thread));
                }
                continue;
            }
            if now.depth < self.depth {
                actions.push(Action::Call(thread, 0));
                if self.book.setup.library.is_none() || world.library {
                    actions.push(Action::Call(thread, 1));
                }
            }
            if now.depth > 0 {
                actions.push(Action::Return(thread));
            } else if world.left.exits > 0 && world.living().count_ones() > 1 {
                actions.push(Action::Exit(thread));
            }
        }
    }

    pub fn start(&self) -> World {
        let library = self.library_loaded.then_some(self.book.setup.library).flatten();
        let mut world = World {
            doc: self.book.number(ugraft_core::State::new(library)),
            tool: Tool::Idle,
            begun: false,
            swapped: false,
            table: 0,
            entries: [Entry::Steady(0); FUNCS],
            threads: [Thread::default(); THREADS],
            library: self.library_loaded,
            hook: Hook::default(),
            freed: 0,
            forced: false,
            broken: false,
            left: self.budget,
        };
        for thread in world.threads.iter_mut().take(usize::from(self.living)) {
            thread.alive = true;
        }
        for &ask in &self.before {
            world = self.ask_wholly(&world, ask).expect("what happened before is possible");
            let mut steps = Vec::new();
            while self.book.facts(world.doc).phase.is_some() {
                steps.clear();
                self.tool_actions(&world, &mut steps);
                let Some(Action::Ask(ask)) = steps.first().copied() else { break };
                world = self.ask_wholly(&world, ask).expect("what is due is possible");
                if world.tool == Tool::Unsettled {
                    self.settle(&mut world);
                }
            }
        }
        world
    }
}

impl Model for Target {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.thread_actions(world, actions);
        match world.tool {
            Tool::Idle => self.tool_actions(world, actions),
            Tool::Busy { .. } => {
                actions.push(Action::Do);
                if world.left.deaths > 0 {
                    actions.push(Action::Die);
                }
            }
            Tool::Unsettled => {
                actions.push(Action::Settle);
                if world.left.deaths > 0 {
                    actions.push(Action::Die);
                }
            }
            Tool::Dead => actions.push(Action::TakeOver),
        }
        if self.book.setup.hooked {
            self.hook_actions(world, actions);
            return;
        }
        // The library comes and goes through the loader: nobody calls it before it is admitted, or once it is going.
        if self.book.setup.library.is_some() && world.left.moves > 0 && world.tool == Tool::Idle {
            actions.push(Action::Ask(if world.library { Ask::Going } else { Ask::Coming }));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = *world;
        match action {
            Action::Call(thread, func) => {
                let code = world.runs(thread.into(), func);
                let thread = &mut next.threads[usize::from(thread)];
                thread.frames[usize::from(thread.depth)] = Frame { func, code };
                thread.depth += 1;
            }
            Action::Return(thread) => {
                let thread = &mut next.threads[usize::from(thread)];
                thread.depth -= 1;
                thread.frames[usize::from(thread.depth)] = Frame::default();
            }
            Action::Born(thread) => {
                next.threads[usize::from(thread)].alive = true;
                next.left.births -= 1;
            }
            Action::Exit(thread) => {
                next.threads[usize::from(thread)].alive = false;
                next.left.exits -= 1;
            }
            Action::Do => self.advance(&mut next),
            Action::Die => {
                next.tool = Tool::Dead;
                next.left.deaths -= 1;
            }
            Action::TakeOver => next = self.take_over(world)?,
            Action::Come { refused_by } => {
                if let Some(entry) = next.hook.come(refused_by) {
                    next.library = true;
                    next.entries[1] = entry;
                }
                next.left.moves -= 1;
            }
            Action::Go => {
                next.hook.go();
                next.hook.went |= self.book.facts(world.doc).loaded;
                next.library = false;
                next.entries[1] = Entry::Steady(0);
                next.left.moves -= 1;
            }
            Action::Hear => self.hear(&mut next),
            Action::Settle => self.settle(&mut next),
            Action::Ask(ask) => {
                if self.book.setup.hooked && self.requests.contains(&ask) {
                    self.note(&mut next);
                }
                next = self.ask(&next, ask)?;
                match ask {
                    Ask::Coming => next.left.moves -= 1,
                    Ask::Going => {
                        if world.is_in_library() {
                            return None;
                        }
                        next.library = false;
                        next.left.moves -= 1;
                    }
                    Ask::Reverse { .. } => next.left.reversals -= 1,
                    Ask::Force => {
                        next.left.forces -= 1;
                        next.forced = true;
                    }
                    Ask::Load { .. } | Ask::Enable { .. } | Ask::Disable { .. } | Ask::Unload { .. } => {
                        next.left.requests -= 1;
                    }
                    _ => {}
                }
            }
        }
        Some(next.canonical())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("P2: one named state", |model: &Self, world: &World| {
                let facts = model.book.facts(world.doc);
                let told = world.tool != Tool::Idle
                    || world.begun == (facts.phase == Some(Phase::Started))
                        && (!world.begun || world.swapped == facts.reversed);
                facts.named && told && !world.broken
            }),
            Property::always("P3: no thread mixes versions", |_, world: &World| {
                world.forced || (0..THREADS).all(|at| world.is_consistent(at))
            }),
            Property::always(
                "a transition can be reversed, and can complete",
                |model: &Self, world: &World| model.book.facts(world.doc).reversible,
            ),
            Property::always("a replacing patch covers all below it", |model: &Self, world: &World| {
                model.book.facts(world.doc).covered
            }),
            Property::always("no nop and nothing replaced is left", |model: &Self, world: &World| {
                let facts = model.book.facts(world.doc);
                let settled = |at: usize| {
                    let unheard = at == 1 && model.book.setup.hooked;
                    unheard || world.entries[at] == Entry::Steady(facts.steady[at])
                };
                let idle = world.tool == Tool::Idle && facts.phase.is_none();
                facts.clean && (!idle || (0..FUNCS).all(settled))
            }),
            Property::always("freed memory is not used", |_, world: &World| !world.uses_freed()),
        ];
        if self.book.setup.hooked {
            properties.push(Property::always("callbacks pair up", |model: &Self, world: &World| {
                !world.hook.unpaired && (!model.is_heard(world) || model.has_called_back(world))
            }));
            properties.push(Property::always(
                "the library is what the patches make of it",
                |model: &Self, world: &World| !world.library || !model.is_heard(world) || model.is_led(world),
            ));
        }
        properties.extend(self.sometimes.iter().map(|&(name, seen)| Property::sometimes(name, seen)));
        properties
    }
}
