//! Why a function of a library that has just come cannot be redirected: the words are the tool's own where the tool knows the
//! reason too (`SymbolError`, `FileProblem`, `EntryRefusal`). Who reports one names the function and the object in front.

use super::format::Text;
use super::syscall::Errno;

/// What a change of the text by somebody else looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    Breakpoint,
    Jump,
    Call,
    Change,
}

/// A reason. Addresses are those of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No ELF header lies where the object begins.
    NoHeader,
    /// Its file cannot be opened or read.
    File(Errno),
    /// The file is not the one that is mapped.
    Differs(&'static str),
    /// The file's tables lie outside of it, or are too large.
    Damaged(&'static str),
    /// No memory to read it into.
    NoMemory(Errno),
    /// No symbol of that name; `local` tells whether the file has local symbols at all.
    NotFound {
        local: bool,
    },
    /// A symbol of that name is no function.
    NotAFunction,
    /// Several have that name, and no position was given.
    Ambiguous {
        count: usize,
    },
    /// There are fewer of that name.
    NoSuchPosition {
        count: usize,
    },
    /// More than are looked at.
    TooMany,
    /// A function that the program chooses when it is first needed.
    Ifunc,
    /// A thread-local variable, which has no address of its own.
    ThreadLocal,
    /// The loader is still going to change the object's text.
    TextRelocations,
    NoSize {
        start: u64,
    },
    OutsideText {
        start: u64,
    },
    TooShort {
        start: u64,
        room: u64,
        need: u64,
    },
    PaddingTaken {
        start: u64,
    },
    OtherEntry {
        start: u64,
        at: u64,
    },
    BranchInto {
        from: u64,
        to: u64,
        place: u64,
    },
    AddressTaken {
        from: u64,
        to: u64,
        place: u64,
    },
    TableInto {
        table: u64,
        to: u64,
        place: u64,
    },
    CallReturnsInto {
        at: u64,
        to: u64,
        place: u64,
    },
    StraddlesPage {
        place: u64,
    },
    Foreign {
        start: u64,
        offset: u64,
        what: Foreign,
    },
    Undecodable {
        at: u64,
    },
    Unmovable {
        at: u64,
    },
    OutOfReach {
        from: u64,
        to: u64,
    },
    /// No free addresses within reach of the object.
    NoPlace,
    /// The process's memory cannot be opened for writing (`/proc/thread-self/mem`).
    NoProc(Errno),
    /// A write to the text failed.
    Write {
        at: u64,
        error: Errno,
    },
    /// A transition runs, and no stub can be made for it.
    NoStub,
    /// What was written is not there.
    NotWritten {
        at: u64,
    },
}

impl Refusal {
    /// The errno of the kernel's that says it best.
    pub fn errno(&self) -> i32 {
        const ENOMEM: i32 = 12;
        const EINVAL: i32 = 22;
        match *self {
            Self::File(Errno(number)) | Self::NoProc(Errno(number)) => number,
            Self::NoMemory(_) | Self::NoPlace => ENOMEM,
            Self::Write { error: Errno(number), .. } => number,
            _ => EINVAL,
        }
    }

    /// Appends the reason in words.
    pub fn write<const N: usize>(&self, text: &mut Text<N>) {
        let mut to = Words(text);
        match *self {
            Self::NoHeader => to.say("it has no ELF header where it was loaded"),
            Self::File(e) => to.say("its file cannot be read (errno ").number(e.0).say(")"),
            Self::Differs(what) => to
                .say("its file is not the one that is mapped (")
                .say(what)
                .say("): it was replaced; restart the program"),
            Self::Damaged(what) => to.say("its file is damaged: ").say(what),
            Self::NoMemory(e) => to.say("no memory to read its file into (errno ").number(e.0).say(")"),
            Self::NotFound { local: true } => to.say("it has no symbol of that name"),
            Self::NotFound { local: false } => to.say(
                "it has no symbol of that name; its file is stripped, so static functions cannot be found while it is being loaded",
            ),
            Self::NotAFunction => to.say("the symbol is not a function"),
            Self::Ambiguous { count } => {
                to.number(count as i32).say(" of its functions have that name; say which by the symbol position")
            }
            Self::NoSuchPosition { count } => {
                to.say("the symbol position is too high: ").number(count as i32).say(" have that name")
            }
            Self::TooMany => to.say("too many of its symbols have that name"),
            Self::Ifunc => to.say("it is an IFUNC, and nothing shows yet which implementation will be chosen"),
            Self::ThreadLocal => to.say("it is thread-local, and has no one place in a library loaded later"),
            Self::TextRelocations => {
                to.say("the object has text relocations, which the loader is yet to make")
            }
            Self::NoSize { start } => to
                .say("the length of the function at ")
                .at(start)
                .say(" is not known; debug symbols would tell"),
            Self::OutsideText { start } => to
                .say("the function at ")
                .at(start)
                .say(" does not lie in the object's text as a whole"),
            Self::TooShort { start, room, need } => to
                .say("the function at ")
                .at(start)
                .say(" has ")
                .number(room as i32)
                .say(" bytes to its end and the padding behind it, a jump takes ")
                .number(need as i32),
            Self::PaddingTaken { start } => to
                .say("the padding behind the function at ")
                .at(start)
                .say(" is used by the redirect of another function"),
            Self::OtherEntry { start, at } => to
                .say("another function begins at ")
                .at(at)
                .say(", ")
                .number(at.wrapping_sub(start) as i32)
                .say(" bytes into the function at ")
                .at(start)
                .say(", where the jump would lie"),
            Self::BranchInto { from, to: into, place } => to
                .say("the branch at ")
                .at(from)
                .say(" leads to ")
                .at(into)
                .say(", into the bytes that a jump at ")
                .at(place)
                .say(" would overwrite"),
            Self::AddressTaken { from, to: into, place } => to
                .say("the code at ")
                .at(from)
                .say(" takes the address ")
                .at(into)
                .say(", which a jump at ")
                .at(place)
                .say(" would overwrite"),
            Self::TableInto { table, to: into, place } => to
                .say("the jump table at ")
                .at(table)
                .say(" lists ")
                .at(into)
                .say(", which a jump at ")
                .at(place)
                .say(" would overwrite"),
            Self::CallReturnsInto { at, to: into, place } => to
                .say("the call at ")
                .at(at)
                .say(" returns to ")
                .at(into)
                .say(", into the bytes that a jump at ")
                .at(place)
                .say(" would overwrite"),
            Self::StraddlesPage { place } => to
                .say("a jump at ")
                .at(place)
                .say(" would straddle a page, and there is no padding within reach to jump through"),
            Self::Foreign { start, offset, what } => to
                .say(match what {
                    Foreign::Breakpoint => "a breakpoint (a debugger's or a uprobe's)",
                    Foreign::Jump => "a jump (a hook's or another patcher's)",
                    Foreign::Call => "a call (a tracer's or a uprobe's)",
                    Foreign::Change => "a change",
                })
                .say(" of somebody else lies ")
                .number(offset as i32)
                .say(" bytes into the function at ")
                .at(start)
                .say("; take it off first"),
            Self::Undecodable { at } => {
                to.say("the bytes at ").at(at).say(", among the function's first, are no instruction")
            }
            Self::Unmovable { at } => {
                to.say("the instruction at ").at(at).say(", among the function's first, cannot run at another place")
            }
            Self::OutOfReach { from, to: there } => {
                to.at(there).say(" is more than 2 GiB away from ").at(from)
            }
            Self::NoPlace => to.say("there are no free addresses within 2 GiB of it"),
            Self::NoProc(e) => to
                .say("the process cannot write its own text through /proc/thread-self/mem (errno ")
                .number(e.0)
                .say("); is /proc mounted?"),
            Self::Write { at, error } => {
                to.say("writing text at ").at(at).say(" failed (errno ").number(error.0).say(")")
            }
            Self::NoStub => to.say("a transition is running, and what it needs to take the function along is not there"),
            Self::NotWritten { at } => to.say("the text at ").at(at).say(" does not keep what is written to it"),
        };
    }
}

/// A text that is being put together.
struct Words<'t, const N: usize>(&'t mut Text<N>);

impl<const N: usize> Words<'_, N> {
    fn say(&mut self, words: &str) -> &mut Self {
        self.0.add(words.as_bytes());
        self
    }

    fn number(&mut self, value: i32) -> &mut Self {
        if value < 0 {
            self.0.add(b"-");
        }
        self.0.add_number(u64::from(value.unsigned_abs()), 10);
        self
    }

    fn at(&mut self, address: u64) -> &mut Self {
        self.0.add(b"0x");
        self.0.add_number(address, 16);
        self
    }
}
