//! The torture: a target whose functions must agree with one another, called by many threads at full speed, while patches
//! are enabled, disabled, replaced, reversed and cut short at random by the real program.
//!
//! The target (`torture/target.c`) logs every call ([`shared`]); the driver ([`driver`]) knows which configurations were in
//! effect when; the judge ([`checker`]) finds calls that met a mix, or a version that was not to be met then, or again.
//! docs/torture.md has the whole idea.

pub mod checker;
pub mod driver;
pub mod shared;
mod steer;
mod world;

use std::time::Duration;

/// What happens in the target besides its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name.
    pub name: &'static str,
    /// Threads stay a while inside the functions, and outside; else they do nothing but call.
    pub lingering: bool,
    /// Compiled so that functions may end in jumps to each other.
    pub tail_calls: bool,
    /// Threads that make short-lived threads.
    pub spawners: u32,
    /// Children made by fork, per second.
    pub forks: u32,
    /// Signals, per second, handled on alternate stacks.
    pub signals: u32,
    /// Calls are left by `longjmp`.
    pub unwinding: bool,
    /// And by C++ exceptions.
    pub exceptions: bool,
}

const PLAIN: Variant = Variant {
    name: "plain",
    lingering: true,
    tail_calls: false,
    spawners: 0,
    forks: 0,
    signals: 0,
    unwinding: false,
    exceptions: false,
};

/// All variants.
pub const VARIANTS: [Variant; 9] = [
    PLAIN,
    Variant { name: "calls", lingering: false, tail_calls: true, signals: 1000, ..PLAIN },
    Variant { name: "tail-calls", tail_calls: true, ..PLAIN },
    Variant { name: "threads", spawners: 4, ..PLAIN },
    Variant { name: "forks", forks: 50, ..PLAIN },
    Variant { name: "signals", signals: 1000, ..PLAIN },
    Variant { name: "longjmp", unwinding: true, ..PLAIN },
    Variant { name: "exceptions", unwinding: true, exceptions: true, ..PLAIN },
    Variant {
        name: "everything",
        lingering: true,
        tail_calls: true,
        spawners: 2,
        forks: 50,
        signals: 1000,
        unwinding: true,
        exceptions: true,
    },
];

/// One run of a target.
#[derive(Clone, Copy, Debug)]
pub struct Episode {
    /// What happens besides.
    pub variant: Variant,
    /// Threads that call without end.
    pub threads: u32,
    /// What all choices follow from. The schedule of the machine does not, so a replay is no repetition.
    pub seed: u64,
    /// At least so many calls.
    pub calls: u64,
    /// At least so many commands.
    pub commands: u32,
    /// At least for so long.
    pub time: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Calls into a group, judged and found right.
    pub calls: u64,
    /// Commands given.
    pub commands: u64,
    /// Commands that led to where they were to lead.
    pub completed: u64,
    /// Commands whose transition was reversed, by command or for lack of time.
    pub reversed: u64,
    /// Commands that were killed.
    pub killed: u64,
    /// Commands that were refused.
    pub refused: u64,
    /// Children that were patched in turn.
    pub children: u64,
    /// What the target counted.
    pub counts: shared::Counts,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, o: Self) {
        self.calls += o.calls;
        self.commands += o.commands;
        self.completed += o.completed;
        self.reversed += o.reversed;
        self.killed += o.killed;
        self.refused += o.refused;
        self.children += o.children;
        self.counts.signals += o.counts.signals;
        self.counts.threads += o.counts.threads;
        self.counts.forks += o.counts.forks;
        self.counts.unwound += o.counts.unwound;
        self.counts.failed_children += o.counts.failed_children;
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.counts;
        write!(
            f,
            "{} calls; {} commands: {} completed, {} reversed, {} killed, {} refused; {} threads, {} forks, {} children patched, \
             {} signals, {} calls left half-way",
            self.calls,
            self.commands,
            self.completed,
            self.reversed,
            self.killed,
            self.refused,
            c.threads,
            c.forks,
            self.children,
            c.signals,
            c.unwound
        )
    }
}

/// Numbers that follow from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}
