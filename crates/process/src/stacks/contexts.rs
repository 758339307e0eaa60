//! Recognising targets that switch contexts within a thread, and so may have stacks that no thread runs on.
//!
//! An object counts if it is bound to a function that switches contexts, or brings one of its own. One that only could
//! call it, and never has (its slot is still to be bound by the first call), does not.

use crate::objects::{Object, Objects, Role};
use crate::stacks::suspended::{SWITCHERS, uses_ucontext};
use crate::{LinkAddr, Result};
use object::elf::SHN_UNDEF;
use std::fmt;

/// Which C library defines the functions for others; that it has them says nothing.
const LIBC: &str = "libc.so.6";

/// What the name of a library begins with that is in every other process, bound before it is used, and switches contexts
/// for nothing but the asynchronous engines of OpenSSL (ASYNC_start_job(3ssl)).
const CRYPTO: &str = "libcrypto.so";

/// The section in which the linker of Go tells of the program (Go's `debug/buildinfo`). Goroutines give way on stacks of their own.
const GO_SECTION: &str = ".go.buildinfo";

/// What is named for it.
const GO_RUNTIME: &str = "goroutines";

/// An object that can switch contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switcher {
    object: String,
    function: &'static str,
}

impl fmt::Display for Switcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} can switch contexts ({}): what is on a stack that no thread runs on is not seen; give --scan memory to \
             look for it in all memory",
            self.object, self.function
        )
    }
}

/// The first object that can switch contexts. What cannot be read is passed over.
pub(crate) fn switcher(objects: &Objects<'_>) -> Option<Switcher> {
    if is_go(objects.main()) {
        return Some(Switcher { object: objects.main().name().to_owned(), function: GO_RUNTIME });
    }
    if objects.main().is_static() {
        let function = SWITCHERS.into_iter().find(|name| objects.function(None, name, 0).is_ok())?;
        return Some(Switcher { object: objects.main().name().to_owned(), function });
    }
    let candidates = objects.iter().filter(|o| matches!(o.role(), Role::Main | Role::Library));
    candidates.filter(|o| !o.is_called(LIBC) && !o.name().starts_with(CRYPTO)).find_map(|object| {
        let function = used_by(object).ok()??;
        Some(Switcher { object: object.name().to_owned(), function })
    })
}

fn is_go(object: &Object<'_>) -> bool {
    let sections = object.file().ok().and_then(|file| file.sections().ok()).unwrap_or_default();
    sections.iter().any(|section| section.name == GO_SECTION)
}

fn used_by(object: &Object<'_>) -> Result<Option<&'static str>> {
    let (dynamic, pages) = (object.dynamic()?, &object.pages);
    let mut candidates = Vec::new();
    for name in SWITCHERS {
        if dynamic.mentions(pages, name)? {
            candidates.push(name);
        }
    }
    if candidates.is_empty() {
        return Ok(None);
    }
    for name in &candidates {
        let defined = dynamic.lookup(pages, name, |s| Ok((s.section != SHN_UNDEF).then_some(())))?;
        if defined.is_some() {
            return Ok(Some(name));
        }
    }
    for relocation in dynamic.relocations(pages)?.iter().filter(|r| r.symbol != 0) {
        let Some(symbol) = dynamic.symbol(pages, relocation.symbol)? else { continue };
        let Some(name) = dynamic.name_of(pages, &symbol)? else { continue };
        if uses_ucontext([name.as_str()]).is_none() {
            continue;
        }
        let slot = object.to_remote(LinkAddr(relocation.offset));
        let bound_to = pages.memory().read_u64(slot)?;
        if bound_to != 0 && !object.covers(crate::RemoteAddr(bound_to)) {
            return Ok(candidates.iter().find(|c| **c == name).copied());
        }
    }
    Ok(None)
}
