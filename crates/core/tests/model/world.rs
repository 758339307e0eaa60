//! A target, its threads and the tool, as bytes, and all that can happen to them.
//!
//! Threads call and return as they like; what a frame runs is fixed when the function is called, by where the entry leads
//! and, for a stub, by the transition word and the pending table. The tool asks the machine, and does what it is told one
//! deed at a time, with threads running in between, unless it dies. Only the saved state and the target survive.

use stateright::{Model, Property};

use super::book::{Ask, Book, Code, Deed, Doc, FUNCS, Mask};
use ugraft_core::Phase;

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
        }
        let next = next + 1;
        world.tool = Tool::Busy { doc, deeds, next, expected };
        if usize::from(next) >= count {
            world.tool = Tool::Idle;
            let started = self.book.facts(doc).phase == Some(Phase::Started);
            world.broken |= world.doc != doc || started && world.table != expected;
            if !started {
                // The transition's word and tables are given back.
                world.broken |= world.table != 0;
                (world.begun, world.swapped, world.table) = (false, false, 0);
            }
        }
    }

    /// The tool asks the machine and does the first thing that it is told. Nothing is lost by doing that at once: if it
    /// died before, nothing would have happened. Threads that must not run in between are stopped for just that long.
    fn ask(&self, world: &World, ask: Ask) -> Option<World> {
        let done = self.book.ask(world.doc, world.table, ask)?;
        let mut next = *world;
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

    /// What the tool can ask on its own account: to start, and to look at threads.
    fn tool_actions(&self, world: &World, actions: &mut Vec<Action>) {
        let facts = self.book.facts(world.doc);
        if facts.awaits {
            actions.push(Action::Ask(Ask::Returned { value: 0 }));
            if facts.awaits_pre_patch {
                actions.push(Action::Ask(Ask::Returned { value: -19 }));
            }
            return;
        }
        match facts.phase {
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
            _ => actions.extend(
                self.requests.iter().filter(|_| world.left.requests > 0).map(|&ask| Action::Ask(ask)),
            ),
        }
        if facts.phase.is_some() {
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
            Tool::Dead => actions.push(Action::TakeOver),
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
            Action::Ask(ask) => {
                next = self.ask(world, ask)?;
                match ask {
                    Ask::Coming => next.left.moves -= 1,
                    Ask::Going => {
                        let used = |thread: &Thread| thread.stack().iter().any(|frame| frame.func == 1);
                        if world.threads.iter().any(used) {
                            // A program does not close what it runs in.
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
                let settled = |at: usize| world.entries[at] == Entry::Steady(facts.steady[at]);
                let idle = world.tool == Tool::Idle && facts.phase.is_none();
                facts.clean && (!idle || (0..FUNCS).all(settled))
            }),
            Property::always("freed memory is not used", |_, world: &World| !world.uses_freed()),
        ];
        properties.extend(self.sometimes.iter().map(|&(name, seen)| Property::sometimes(name, seen)));
        properties
    }
}
