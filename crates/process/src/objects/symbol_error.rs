//! Why there is no answer about a symbol, in words that name the object, the symbol and the way out.

use crate::RemoteAddr;
use crate::objects::FileProblem;
use crate::objects::demangle;
use crate::objects::elf_file::ElfError;

/// Most candidates that a message lists.
const MAX_LISTED: usize = 8;

/// Why there is no answer about a symbol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The target has no such object (ENODEV in spirit: a patch may wait for it).
    #[error("object {object} is not loaded in the target; `/proc/PID/maps` lists what is")]
    NotLoaded {
        /// The name asked for.
        object: String,
    },
    /// The name is that of the main executable, which a patch does not name.
    #[error(
        "{object} is the target's main executable, which a patch means by no name: leave out .name of its klp_object"
    )]
    MainByName {
        /// The name asked for.
        object: String,
    },
    /// A C++ or Rust name as a programmer writes it, of a library that is not loaded: it is compared with that of no symbol (EINVAL).
    #[error(
        "{object} is not loaded, and one that comes later is searched for names as its linker has them: give the mangled \
         name of {name} (`nm -D --defined-only` lists them)"
    )]
    DemangledLater {
        /// The library.
        object: String,
        /// The name asked for.
        name: String,
    },
    /// Two different objects bear the name.
    #[error("{object} names several loaded objects: {}", paths.join(", "))]
    AmbiguousObject {
        /// The name asked for.
        object: String,
        /// Their paths.
        paths: Vec<String>,
    },
    /// The target's own tables make no sense.
    #[error("the target's memory is not what an ELF program's must be: {what}")]
    BrokenTarget {
        /// What is wrong.
        what: String,
    },
    /// No symbol of this name (ENOENT).
    #[error("{object} has no symbol {name}{}{}", suggest(near, clones), because(notes))]
    NotFound {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
        /// Copies that the compiler made of it (`name.constprop.0`), where the function itself is gone.
        clones: Vec<String>,
        /// Why the tables may be incomplete.
        notes: Vec<String>,
    },
    /// Several symbols of this name, and no position was given.
    #[error("{object} has {} symbols called {name}; give a position: {}", candidates.len(), listed(candidates))]
    Ambiguous {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// All of them, by position.
        candidates: Vec<Candidate>,
    },
    /// The position is beyond the last.
    #[error("{object} has no symbol {name} at position {position}; there are: {}", listed(candidates))]
    NoSuchPosition {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// The position asked for.
        position: u32,
        /// All of them, by position.
        candidates: Vec<Candidate>,
    },
    /// The symbol is data, or something else that has no code.
    #[error("{name} of {object} is not a function but {kind}")]
    NotAFunction {
        /// The object.
        object: String,
        /// The name asked for.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// A patch asks for another build of the object.
    #[error(
        "{object} has build-id {found}, the patch is for {wanted}; build the patch for the running version"
    )]
    BuildId {
        /// The object.
        object: String,
        /// Hexadecimal, or `none`.
        found: String,
        /// Hexadecimal.
        wanted: String,
    },
    /// The function is chosen when the program starts (STT_GNU_IFUNC), and no slot shows which one was.
    #[error(
        "{name} of {object} is chosen by the resolver at {resolver}, and nothing in the target shows its choice"
    )]
    IfuncUnknown {
        /// The object.
        object: String,
        /// The symbol.
        name: String,
        /// The function that makes the choice.
        resolver: RemoteAddr,
    },
    /// The loader itself changed the code at the place, so the file does not tell what should be there.
    #[error("{object} has a text relocation at {address}; its code in memory is not that of its file")]
    TextRelocation {
        /// The object.
        object: String,
        /// The place.
        address: RemoteAddr,
    },
    /// No object in scope defines it.
    #[error(
        "undefined symbol {}: no object in the target's scope defines it{}",
        versioned(name, version),
        hint(near)
    )]
    Undefined {
        /// The symbol.
        name: String,
        /// The version asked for.
        version: Option<String>,
        /// Where a symbol of that name is, out of scope.
        near: Vec<String>,
    },
    /// A thread-local symbol of a module whose place relative to the thread pointer is not known.
    #[error("thread-local {name} of {object} has no known distance from the thread pointer: {reason}")]
    Tls {
        /// The object.
        object: String,
        /// The symbol.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The object's file cannot be used.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// The object's file is not what an ELF file must be.
    #[error(transparent)]
    Elf(#[from] ElfError),
}

fn suggest(near: &[String], clones: &[String]) -> String {
    if !clones.is_empty() {
        return format!("; the compiler left only copies of it: {}", clones.join(", "));
    }
    hint(near)
}

fn hint(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

fn because(notes: &[String]) -> String {
    if notes.is_empty() {
        String::new()
    } else {
        format!(" (its symbols may be incomplete: {})", notes.join("; "))
    }
}

fn versioned(name: &str, version: &Option<String>) -> String {
    version.as_ref().map_or_else(|| name.to_owned(), |v| format!("{name}@{v}"))
}

/// A name as people read it.
fn shown(name: &str) -> String {
    demangle::demangle(name).unwrap_or_else(|| name.to_owned())
}

fn listed(candidates: &[Candidate]) -> String {
    let various = candidates.windows(2).any(|pair| pair[0].name != pair[1].name);
    let one = |c: &Candidate| {
        let file = c.file.as_deref().map(|f| format!(" ({f})")).unwrap_or_default();
        let name = if various { format!(" {}", shown(&c.name)) } else { String::new() };
        format!("{} at {}{name}{file}", c.position, c.address)
    };
    let mut out: Vec<_> = candidates.iter().take(MAX_LISTED).map(one).collect();
    if candidates.len() > MAX_LISTED {
        out.push("...".to_owned());
    }
    out.join(", ")
}

/// One of several symbols of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its position, from 1.
    pub position: u32,
    /// Its address.
    pub address: RemoteAddr,
    /// Its size in bytes; 0 where the table does not say.
    pub size: u64,
    /// The source file of a local symbol, as the compiler noted it (STT_FILE).
    pub file: Option<String>,
    /// The symbol's own name; differs from the one asked for where that was a demangled one.
    pub name: String,
}
