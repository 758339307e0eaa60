//! The target's answers to a patch's undefined symbols.

use crate::objects::demangle;
use crate::objects::scope::{Scope, Value};
use crate::objects::symbols::SymbolError;
use crate::objects::{ObjectId, Objects};
use crate::session::libraries::references;
use crate::{Error, RemoteAddr, Result};
use object::elf;
use std::collections::{BTreeMap, BTreeSet};
use ugraft_image::{Import, KlpSymbol, Resolution, Resolve};

/// Resolves symbols as the target's own loader would, and non-exported ones by object and position.
#[derive(Debug)]
pub struct Resolver<'o, 't> {
    objects: &'o Objects<'t>,
    scope: Scope<'o, 't>,
    /// Functions that come before the target's.
    runtime: BTreeMap<String, RemoteAddr>,
    /// Names of libraries that can come or go while the patch is loaded, and that it is told of.
    movable: BTreeSet<String>,
}

impl<'o, 't> Resolver<'o, 't> {
    /// A resolver for a patch that names the objects `also`.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn new(objects: &'o Objects<'t>, also: &[ObjectId]) -> Result<Self> {
        Ok(Self { objects, scope: objects.scope(also)?, runtime: BTreeMap::new(), movable: BTreeSet::new() })
    }

    /// The same, with functions of our own that come before the target's.
    #[must_use]
    pub fn with(self, runtime: BTreeMap<String, RemoteAddr>) -> Self {
        Self { runtime, ..self }
    }

    /// The same for a patch that is told when the libraries of these names come and go: its references to them by position can be
    /// bound anew.
    #[must_use]
    pub fn with_movable(self, movable: BTreeSet<String>) -> Self {
        Self { movable, ..self }
    }

    /// What the target says about `import`.
    pub fn resolve(&self, import: &Import) -> Resolution {
        if let (None, Some(addr)) = (&import.klp, self.runtime.get(&import.name)) {
            return Resolution::Address(*addr);
        }
        let answer = match &import.klp {
            Some(klp) if self.is_movable(klp) => self.by_position_later(klp, import),
            Some(klp) => self.by_position(klp),
            None => self.by_scope(import),
        };
        answer.unwrap_or_else(|e| match e {
            Error::Symbol(SymbolError::Undefined { .. }) => Resolution::NotFound,
            e => Resolution::Refused(e.to_string()),
        })
    }

    fn by_scope(&self, import: &Import) -> Result<Resolution> {
        let found = self.scope.resolve(&import.name, import.version.as_deref())?;
        Ok(match found.value {
            Value::Address(addr) => Resolution::Address(addr),
            Value::Absolute(value) => Resolution::Address(RemoteAddr(value)),
            Value::Ifunc { chosen: Some(addr), .. } => Resolution::Address(addr),
            Value::Ifunc { resolver, chosen: None } => Resolution::Refused(format!(
                "it is an IFUNC (resolver at {resolver}), and nothing in the target shows which implementation was chosen"
            )),
            Value::Tls { offset } => self.thread_local(found.object, offset)?,
        })
    }

    fn by_position(&self, klp: &KlpSymbol) -> Result<Resolution> {
        let symbol = self.objects.klp_symbol(klp.object.as_deref(), &klp.symbol, klp.pos)?;
        Ok(match symbol.kind {
            elf::STT_TLS => self.thread_local(symbol.object, symbol.value)?,
            elf::STT_GNU_IFUNC => {
                let function = self.objects.function(klp.object.as_deref(), &klp.symbol, klp.pos)?;
                Resolution::Address(function.address)
            }
            _ => Resolution::Address(RemoteAddr(symbol.value)),
        })
    }

    fn is_movable(&self, klp: &KlpSymbol) -> bool {
        klp.object.as_ref().is_some_and(|object| self.movable.contains(object))
    }

    fn by_position_later(&self, klp: &KlpSymbol, import: &Import) -> Result<Resolution> {
        if demangle::is_demangled(&klp.symbol) {
            return Ok(Resolution::Refused(
                "of a library that can come and go: give the name that its linker has, the mangled one"
                    .to_owned(),
            ));
        }
        if let Some(object) = klp.object.as_deref().filter(|object| references::is_away(self.objects, object))
        {
            return Ok(match import.usage.tls {
                false => Resolution::Movable(RemoteAddr(0)),
                true => Resolution::Refused(format!(
                    "a thread-local variable of {object}, which is not loaded yet: such have no one place"
                )),
            });
        }
        Ok(match self.by_position(klp)? {
            Resolution::Address(address) => Resolution::Movable(address),
            other => other,
        })
    }

    fn thread_local(&self, object: ObjectId, offset: u64) -> Result<Resolution> {
        Ok(Resolution::TpOffset(self.objects.tp_offset(object, offset)?))
    }
}

impl Resolve for Resolver<'_, '_> {
    fn symbol(&mut self, import: &Import) -> Resolution {
        self.resolve(import)
    }

    fn klp_symbol(&mut self, _: &KlpSymbol, import: &Import) -> Resolution {
        self.resolve(import)
    }
}

/// Nobody's symbols, for code of ours that needs none.
#[derive(Debug)]
pub(crate) struct NoSymbols;

impl Resolve for NoSymbols {
    fn symbol(&mut self, _: &Import) -> Resolution {
        Resolution::NotFound
    }

    fn klp_symbol(&mut self, _: &KlpSymbol, _: &Import) -> Resolution {
        Resolution::NotFound
    }
}
