//! The hook in the loader: what it does by itself when the library comes and goes, by the table that it was given last, and which callbacks
//! have run for the library, whoever ran them.

use super::book::{Code, PATCHES};
use super::world::Entry;
use ugraft_core::CallbackKind;

/// A set of patches, one bit for each number.
pub type Patches = u8;

/// What the table has of a patch for the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Use {
    pub patch: Code,
    /// What it makes of `g`.
    pub new: Code,
    /// Whether it has callbacks there, as it has not where it has nops only.
    pub calls: bool,
    /// Whether it is in transition.
    pub moving: bool,
    pub applied: bool,
    pub between: bool,
}

/// What the hook works with, the oldest patch first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Table {
    pub uses: [Option<Use>; PATCHES],
    /// Whether it is one of a transition, and of one that began by disabling its patch.
    pub running: bool,
    pub disabling: bool,
}

impl Table {
    fn listed(&self) -> impl Iterator<Item = &Use> {
        self.uses.iter().flatten()
    }

    fn set_of(&self, is_in: impl Fn(&Use) -> bool) -> Patches {
        self.listed().filter(|one| is_in(one)).fold(0, |set, one| set | 1 << one.patch)
    }

    pub fn all(&self) -> Patches {
        self.set_of(|_| true)
    }

    pub fn applied(&self) -> Patches {
        self.set_of(|one| one.applied)
    }

    /// The patch that owes the library the callback that ends a transition.
    pub fn waits(&self) -> Option<Code> {
        self.listed().find(|one| one.applied && (one.moving || one.between)).map(|one| one.patch)
    }

    /// Where the entry of `g` leads by the patches that are applied; the newest wins, and of the one in transition only one side has it.
    fn entry(&self) -> Entry {
        let newest = |moving: bool| {
            let counts = |one: &&Use| one.applied && (moving || !one.moving);
            self.listed().filter(counts).last().map_or(0, |one| one.new)
        };
        let (without, with) = (newest(false), newest(true));
        let (source, goal) = if self.disabling { (with, without) } else { (without, with) };
        if source == goal { Entry::Steady(source) } else { Entry::Stub { source, goal } }
    }
}

/// Which callback of a patch the library had last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stage {
    /// None, or `post_unpatch`.
    #[default]
    Unpatched,
    PrePatch,
    PostPatch,
    PreUnpatch,
}

impl Stage {
    /// What comes after it by this callback; `None` where that must not run now.
    fn after(self, callback: CallbackKind) -> Option<Self> {
        use CallbackKind as Callback;
        match (callback, self) {
            (Callback::PrePatch, Self::Unpatched) => Some(Self::PrePatch),
            (Callback::PostPatch, Self::PrePatch | Self::PreUnpatch) => Some(Self::PostPatch),
            (Callback::PreUnpatch, Self::PostPatch) => Some(Self::PreUnpatch),
            (Callback::PostUnpatch, Self::PrePatch | Self::PreUnpatch) => Some(Self::Unpatched),
            _ => None,
        }
    }
}

/// Patches that can be numbered.
const NUMBERS: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hook {
    pub table: Table,
    /// Whether a library that the tool knows of has gone since.
    pub went: bool,
    /// By the patches' numbers.
    pub stages: [Stage; NUMBERS],
    /// A callback has run that must not have.
    pub unpaired: bool,
}

impl Hook {
    /// A callback runs for the library.
    pub fn call(&mut self, patch: Code, callback: CallbackKind) {
        let stage = &mut self.stages[usize::from(patch)];
        match stage.after(callback) {
            Some(after) => *stage = after,
            None => self.unpaired = true,
        }
    }

    fn call_of(&mut self, one: Use, callback: CallbackKind) {
        if one.calls {
            self.call(one.patch, callback);
        }
    }

    /// The library comes. Where the entry of `g` leads then; `None` where a patch has refused it.
    pub fn come(&mut self, refused_by: Option<u8>) -> Option<Entry> {
        for at in 0..PATCHES {
            let Some(mut one) = self.table.uses[at] else { continue };
            if refused_by == Some(at as u8) {
                (0..at).for_each(|earlier| self.release(earlier));
                return None;
            }
            self.call_of(one, CallbackKind::PrePatch);
            (one.applied, one.between) = (true, one.moving);
            if !one.moving {
                self.call_of(one, CallbackKind::PostPatch);
            }
            self.table.uses[at] = Some(one);
        }
        Some(self.table.entry())
    }

    /// The library goes.
    pub fn go(&mut self) {
        (0..PATCHES).for_each(|at| self.release(at));
    }

    fn release(&mut self, at: usize) {
        let Some(one) = self.table.uses[at].filter(|one| one.applied) else { return };
        if !one.moving && !one.between {
            self.call_of(one, CallbackKind::PreUnpatch);
        }
        self.call_of(one, CallbackKind::PostUnpatch);
        self.table.uses[at] = Some(Use { applied: false, between: false, ..one });
    }

    /// The tool says that it has run a callback for the library, which makes a difference to what the hook runs when it goes.
    pub fn told(&mut self, patch: Code, callback: CallbackKind) {
        let between = match callback {
            CallbackKind::PostPatch => false,
            CallbackKind::PreUnpatch => true,
            _ => return,
        };
        for one in self.table.uses.iter_mut().flatten().filter(|one| one.patch == patch) {
            one.between = between;
        }
    }
}
