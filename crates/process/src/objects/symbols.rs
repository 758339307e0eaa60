//! Functions and data of an object by name and position, as the kernel's livepatch names them.
//!
//! # Names
//! A name is looked up among all symbols known of an object: the fullest table there is (see
//! [`debug_file`](crate::objects::debug_file)) together with the dynamic symbols. `foo` means the symbols called `foo`, and
//! where some of them have versions, the default one and not the hidden ones (as a link editor binds it) unless only
//! hidden ones are there; `foo@VERSION` means that one. A name that is nobody's is tried as a demangled C++ or Rust
//! name.
//!
//! # Positions
//! Several symbols of one name at one address are one. What is left is numbered from 1 in the order of addresses
//! within the object, as in the kernel's symbol table; position 0 asks for the only one, and is refused where there
//! are more.

use crate::objects::dynamic::{Rela, Version};
use crate::objects::elf_file::RawSymbol;
pub use crate::objects::parts::Part;
pub use crate::objects::symbol_error::{Candidate, SymbolError};
pub use crate::objects::symbol_set::ObjectSymbols;
use crate::objects::symbol_set::{Entry, Group, is_code, kind_name, preference, text};
use crate::objects::{Object, ObjectId, Objects};
use crate::{Error, LinkAddr, RemoteAddr, Result};
use object::elf;
use std::ops::Range;

/// Where the size of a function comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeFrom {
    /// The symbol states it.
    Symbol,
    /// The function's frame description does (`.eh_frame`).
    UnwindInfo,
    /// The next symbol, or the end of the segment, bounds it: it may be shorter.
    NextSymbol,
}

/// A function of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The object it is in.
    pub object: ObjectId,
    /// Its symbol's name, mangled; with `@VERSION` if that is not the default one. With `position` it names this
    /// function and no other.
    pub name: String,
    /// The position of that name in the object, from 1.
    pub position: u32,
    /// The same for its canonical name, which does not depend on the name that was asked for: of all names of the
    /// address the first, global before weak before local, then by the alphabet.
    pub canonical: (String, u32),
    /// Its version, where the symbol has one.
    pub version: Option<Version>,
    /// Where it begins.
    pub address: RemoteAddr,
    /// Its length in bytes, cold parts not counted.
    pub size: u64,
    /// How the length is known.
    pub size_from: SizeFrom,
    /// All names of that address, the canonical one first.
    pub aliases: Vec<String>,
    /// Its code that was moved elsewhere (`name.cold`): part of the function.
    pub cold: Vec<Part>,
    /// Copies and pieces the compiler made (`name.part.N`, `.constprop.N`, `.isra.N`): functions of their own, with
    /// code of this one, which a patch of this one does not change.
    pub clones: Vec<Part>,
    /// The source file of a local symbol.
    pub file: Option<String>,
    /// For a function that the program chose at start (STT_GNU_IFUNC): who chose. `address` is the choice.
    pub resolver: Option<RemoteAddr>,
}

impl Function {
    /// The addresses of its body.
    #[must_use]
    pub fn range(&self) -> Range<RemoteAddr> {
        self.address..RemoteAddr(self.address.0.saturating_add(self.size))
    }

    /// The addresses of all its code: the body and the cold parts.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<RemoteAddr>> {
        std::iter::once(self.range()).chain(self.cold.iter().map(|p| p.range.clone())).collect()
    }
}

/// A symbol of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The object it is in.
    pub object: ObjectId,
    /// Its name, without a version.
    pub name: String,
    /// Its address; for a thread-local one its offset in its module's block.
    pub value: u64,
    /// Its size in bytes.
    pub size: u64,
    /// STT_FUNC, STT_OBJECT, STT_TLS ...
    pub kind: u8,
}

/// A name for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbolized {
    /// The object it is in.
    pub object: ObjectId,
    /// The function's symbol, mangled, without a version; `None` where none is known.
    pub function: Option<String>,
    /// Distance in bytes from the function's start, or from the object's lowest address where there is no function.
    pub offset: u64,
}

impl<'t> Object<'t> {
    /// Its symbols, read at first use.
    ///
    /// # Errors
    /// Where the target's memory cannot be read. A file that cannot be used leaves the dynamic symbols, and a note.
    pub fn symbols(&self) -> Result<&ObjectSymbols> {
        if let Some(symbols) = self.symbols.get() {
            return Ok(symbols);
        }
        let read = ObjectSymbols::read(self)?;
        Ok(self.symbols.get_or_init(|| read))
    }

    fn choose<'s>(
        &self,
        symbols: &'s ObjectSymbols,
        name: &'s str,
        position: u32,
        wanted: impl Fn(&RawSymbol<'_>) -> bool,
    ) -> Result<Group<'s>, SymbolError> {
        let mut groups = symbols.named(name, &wanted);
        if groups.is_empty() {
            groups = symbols.demangled(name, &wanted);
        }
        let object = self.name().to_owned();
        if groups.is_empty() {
            return Err(match symbols.named(name, |_| true).first().and_then(|g| g.entries.first()) {
                Some(other) => SymbolError::NotAFunction {
                    object,
                    name: name.to_owned(),
                    kind: kind_name(other.raw.kind),
                },
                None => SymbolError::NotFound {
                    object,
                    name: name.to_owned(),
                    near: symbols.near(name),
                    clones: symbols.copies_of(name),
                    notes: symbols.notes().to_vec(),
                },
            });
        }
        let index = match position {
            0 if groups.len() == 1 => 0,
            p if p > 0 && p as usize <= groups.len() => p as usize - 1,
            position => {
                let name = name.to_owned();
                let candidates = self.candidates(symbols, &groups);
                return Err(match position {
                    0 => SymbolError::Ambiguous { object, name, candidates },
                    _ => SymbolError::NoSuchPosition { object, name, position, candidates },
                });
            }
        };
        Ok(groups.swap_remove(index))
    }

    fn candidates(&self, symbols: &ObjectSymbols, groups: &[Group<'_>]) -> Vec<Candidate> {
        let candidate = |(i, g): (usize, &Group<'_>)| Candidate {
            position: i as u32 + 1,
            address: self.to_remote(LinkAddr(g.value())),
            size: g.size(),
            file: g.entries.iter().find_map(|e| symbols.file_of(e)).map(|(_, file)| file),
            name: g.name(),
        };
        groups.iter().enumerate().map(candidate).collect()
    }

    /// The function called `name` at `position` (0: the only one).
    ///
    /// # Errors
    /// [`SymbolError`]: not found, ambiguous, not a function. A function that the program chooses at start is
    /// [`SymbolError::IfuncUnknown`] here; [`Objects::function`] looks for the choice.
    pub fn function(&self, name: &str, position: u32) -> Result<Function> {
        let symbols = self.symbols()?;
        let group = self.choose(symbols, name, position, is_code)?;
        if group.is_ifunc() {
            let (object, name) = (self.name().to_owned(), group.name());
            let resolver = self.to_remote(LinkAddr(group.value()));
            return Err(SymbolError::IfuncUnknown { object, name, resolver }.into());
        }
        self.describe(symbols, &group)
    }

    fn describe(&self, symbols: &ObjectSymbols, group: &Group<'_>) -> Result<Function> {
        let value = group.value();
        let address = self.to_remote(LinkAddr(value));
        let local = group.entries.iter().find_map(|e| symbols.file_of(e));
        let (size, size_from) = self.size_of(symbols, value, group.size())?;
        let body = address..RemoteAddr(address.0.saturating_add(size));
        let name = group.name();
        let mut aliases = symbols.code_at(value).names();
        if aliases.is_empty() {
            aliases.push(name.clone());
        }
        let (cold, clones) = self.parts(symbols, &aliases, local.as_ref().map(|(i, _)| *i), body)?;
        let canonical = aliases.first().unwrap_or(&name).clone();
        Ok(Function {
            object: self.id(),
            position: symbols.position(&name, value),
            canonical: (canonical.clone(), symbols.position(&canonical, value)),
            name,
            version: group.entries.iter().find_map(|e| e.version.clone()),
            address,
            size,
            size_from,
            aliases,
            cold,
            clones,
            file: local.map(|(_, file)| file),
            resolver: None,
        })
    }

    /// The function that begins at `address`, known by a symbol or only by its frame description; `None` where neither
    /// says that one begins there. One without a symbol is called `func_` and its link address in hexadecimal.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn function_at(&self, address: RemoteAddr) -> Result<Option<Function>> {
        let symbols = self.symbols()?;
        let value = self.to_link(address).0;
        let mut group = symbols.code_at(value);
        if group.entries.is_empty() {
            if self.fde_len(LinkAddr(value))?.is_none() {
                return Ok(None);
            }
            group.unnamed_at = Some((value, format!("func_{value:x}")));
        }
        self.describe(symbols, &group).map(Some)
    }

    fn size_of(&self, symbols: &ObjectSymbols, value: u64, stated: u64) -> Result<(u64, SizeFrom)> {
        if stated > 0 {
            return Ok((stated, SizeFrom::Symbol));
        }
        if let Some(len) = self.fde_len(LinkAddr(value))? {
            return Ok((len, SizeFrom::UnwindInfo));
        }
        let places = symbols.places();
        let next = places.get(places.partition_point(|p| p.value <= value)).map(|p| p.value);
        let segment = self.segments().iter().find(|s| s.is_text() && s.covers(LinkAddr(value)));
        let end = segment.map_or(value, |s| s.vaddr.0.saturating_add(s.memsz));
        Ok((next.unwrap_or(end).min(end).saturating_sub(value), SizeFrom::NextSymbol))
    }

    /// The symbol called `name` at `position` (0: the only one), of any kind.
    ///
    /// # Errors
    /// [`SymbolError`]: not found, ambiguous.
    pub fn symbol(&self, name: &str, position: u32) -> Result<Symbol> {
        let symbols = self.symbols()?;
        let group = self.choose(symbols, name, position, |_| true)?;
        let first = group.entries.first();
        let (kind, section) = first.map_or((0, 0), |e| (e.raw.kind, e.raw.section));
        let value = match kind {
            elf::STT_TLS => group.value(),
            _ if section == elf::SHN_ABS => group.value(),
            _ => self.to_remote(LinkAddr(group.value())).0,
        };
        let name = first.map(|e| text(e.name)).unwrap_or_default();
        Ok(Symbol { object: self.id(), name, value, size: group.size(), kind })
    }

    /// The global or weak symbol `name` of the full table, with its value made an address of the process but for a
    /// thread-local one: what a reference in a static program would have been linked to. Hidden ones of its libraries
    /// are among them, which the link editor makes local symbols that belong to no source file.
    pub(crate) fn global_symbol(&self, name: &str) -> Result<Option<Symbol>> {
        let symbols = self.symbols()?;
        let groups = symbols.named(name, |_| true);
        let entries = groups.iter().flat_map(|g| &g.entries);
        let linkable = |e: &&Entry<'_>| e.raw.bind != elf::STB_LOCAL || symbols.file_of(e).is_none();
        let entry = entries.filter(linkable).min_by_key(|e| preference(&e.raw));
        Ok(entry.map(|e| {
            let value = match e.raw.kind {
                elf::STT_TLS => e.raw.value,
                _ if e.raw.section == elf::SHN_ABS => e.raw.value,
                _ => self.to_remote(LinkAddr(e.raw.value)).0,
            };
            Symbol { object: self.id(), name: text(e.name), value, size: e.raw.size, kind: e.raw.kind }
        }))
    }

    /// The name of the function that `addr` lies in, and how far in.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn symbolize(&self, addr: RemoteAddr) -> Result<Symbolized> {
        let symbols = self.symbols()?;
        let at = self.to_link(addr).0;
        let places = symbols.places();
        let end = places.partition_point(|p| p.value <= at);
        let place = places[..end].last().filter(|p| at < p.end || (p.end == p.value && self.is_text(addr)));
        if let Some(p) = place
            && let Some(entry) = symbols.entry(p.table, p.index)
        {
            return Ok(Symbolized {
                object: self.id(),
                function: Some(text(entry.name)),
                offset: at - p.value,
            });
        }
        let lowest = self.ranges().iter().map(|r| r.start).min().unwrap_or_default();
        Ok(Symbolized { object: self.id(), function: None, offset: addr.0.wrapping_sub(lowest.0) })
    }

    /// The bytes that the object's file has for `range` of its text.
    ///
    /// # Errors
    /// [`SymbolError::File`] where the file cannot be used, [`SymbolError::TextRelocation`] where the loader has
    /// changed the range, [`SymbolError::Elf`] where the file does not hold it.
    pub fn file_bytes(&self, range: Range<RemoteAddr>) -> Result<Vec<u8>> {
        let file = self.file().map_err(SymbolError::File)?;
        let dynamic = self.dynamic()?;
        if dynamic.has_textrel() {
            let (start, end) = (self.to_link(range.start).0, self.to_link(range.end).0);
            let hit = |r: &&Rela| r.offset < end && r.offset.saturating_add(8) > start;
            if let Some(r) = self.relocations()?.iter().find(hit) {
                let address = self.to_remote(LinkAddr(r.offset));
                return Err(SymbolError::TextRelocation { object: self.name().to_owned(), address }.into());
            }
        }
        let len = range.end.0.saturating_sub(range.start.0);
        Ok(file.read_at(self.to_link(range.start), len).map_err(SymbolError::Elf)?)
    }

    /// Checks the build-id that a patch asks for.
    ///
    /// # Errors
    /// [`SymbolError::BuildId`] where it is another one.
    pub fn check_build_id(&self, wanted: &[u8]) -> Result<(), SymbolError> {
        let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self.build_id() {
            Some(id) if id == wanted => Ok(()),
            found => Err(SymbolError::BuildId {
                object: self.name().to_owned(),
                found: found.map_or_else(|| "none".to_owned(), hex),
                wanted: hex(wanted),
            }),
        }
    }
}

impl Objects<'_> {
    /// The function called `name` at `position` (0: the only one) of `object` (`None`: the main executable).
    ///
    /// # Errors
    /// [`SymbolError`]: object not loaded, not found, ambiguous, not a function, choice not known.
    pub fn function(&self, object: Option<&str>, name: &str, position: u32) -> Result<Function> {
        let object = self.find(object)?;
        let mut found = object.function(name, position);
        if let Err(Error::Symbol(SymbolError::NotFound { near, .. })) = &mut found {
            near.extend(self.definers(object, name));
        }
        if let Err(Error::Symbol(SymbolError::IfuncUnknown { resolver, .. })) = found
            && let Some(address) = self.ifunc_choice(object, resolver)?
        {
            return self.chosen(object, name, position, resolver, address);
        }
        found
    }

    /// The function at `address`, chosen by `resolver` for what `object` has by the name `query` at `position`.
    fn chosen(
        &self,
        object: &Object<'_>,
        query: &str,
        position: u32,
        resolver: RemoteAddr,
        address: RemoteAddr,
    ) -> Result<Function> {
        let symbols = object.symbols()?;
        let asked = object.choose(symbols, query, position, is_code)?;
        let name = asked.name();
        let position = symbols.position(&name, asked.value());
        let version = asked.entries.iter().find_map(|e| e.version.clone());
        // The choice may be the kernel's own function, in the vdso.
        let owner = self.at(address).unwrap_or(object);
        let symbols = owner.symbols()?;
        let value = owner.to_link(address).0;
        let mut group = symbols.code_at(value);
        if group.entries.is_empty() {
            group.unnamed_at = Some((value, name.clone()));
        }
        let chosen = owner.describe(symbols, &group)?;
        let canonical =
            if group.entries.is_empty() { (name.clone(), position) } else { chosen.canonical.clone() };
        Ok(Function { name, position, canonical, version, resolver: Some(resolver), ..chosen })
    }

    /// Other objects whose dynamic symbols have `name`, for a message.
    fn definers(&self, besides: &Object<'_>, name: &str) -> Vec<String> {
        let others = self.iter().filter(|o| o.id() != besides.id());
        let defining = others.filter(|o| o.definition(name, None).is_ok_and(|s| s.is_some()));
        defining.map(|o| format!("{name} of {}", o.name())).take(3).collect()
    }

    /// The symbol called `name` at `position` of `object`, of any kind: what `.klp.sym.OBJECT.NAME,POSITION` means.
    ///
    /// # Errors
    /// [`SymbolError`]: object not loaded, not found, ambiguous.
    pub fn klp_symbol(&self, object: Option<&str>, name: &str, position: u32) -> Result<Symbol> {
        self.find(object)?.symbol(name, position)
    }

    /// A name for `addr`; `None` where no object covers it.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn symbolize(&self, addr: RemoteAddr) -> Result<Option<Symbolized>> {
        self.at(addr).map(|o| o.symbolize(addr)).transpose()
    }
}
