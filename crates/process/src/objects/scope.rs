//! Undefined symbols, found as the target's own loader would find them.
//!
//! The scope is the loader's global one (main executable, preloaded libraries, their dependencies breadth first, and
//! what dlopen added with RTLD_GLOBAL), then, as for code in a library that was opened with RTLD_LOCAL, the objects
//! that a patch names, each with its dependencies. Only the namespace of the main executable is searched.
//!
//! A reference without a version gets the default one, as the link editor and dlsym(3) would give it; one with a
//! version gets that one, or an unversioned definition. A static program has no dynamic symbols; there, the global
//! and weak symbols of its `.symtab` are the scope.
//!
//! One difference to the loader is meant: a program that is not position-independent may have made the address of a
//! PLT entry of its own the address of a function; here the function itself is found.

use crate::objects::dynamic::{DynSym, Version};
use crate::objects::symbols::SymbolError;
use crate::objects::{Object, ObjectId, Objects, Role};
use crate::{LinkAddr, RemoteAddr, Result};
use object::elf;
use std::collections::{HashMap, HashSet};

/// How much of a loader's private `struct link_map` is searched for its scope, in bytes.
const LINK_MAP_SEARCHED: u64 = 0x500;

/// The order in which undefined symbols are looked for.
#[derive(Debug)]
pub struct Scope<'o, 't> {
    objects: &'o Objects<'t>,
    order: Vec<ObjectId>,
    global: usize,
}

/// What a symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A place in memory.
    Address(RemoteAddr),
    /// A number that is no address (SHN_ABS).
    Absolute(u64),
    /// A function that the program chooses at start; `chosen` where something in the target shows the choice.
    Ifunc {
        /// Who chooses.
        resolver: RemoteAddr,
        /// The choice.
        chosen: Option<RemoteAddr>,
    },
    /// A thread-local variable, by its offset in its module's block; [`Objects::tp_offset`] tells where that is.
    Tls {
        /// `st_value`.
        offset: u64,
    },
}

/// A definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The object that defines it.
    pub object: ObjectId,
    /// What it stands for.
    pub value: Value,
    /// `st_size`, in bytes.
    pub size: u64,
    /// STT_FUNC, STT_OBJECT ...
    pub kind: u8,
    /// The version of the definition.
    pub version: Option<Version>,
}

impl<'t> Objects<'t> {
    /// The scope for a patch that names the objects `also`.
    ///
    /// # Errors
    /// Where the target's memory cannot be read.
    pub fn scope(&self, also: &[ObjectId]) -> Result<Scope<'_, 't>> {
        let mut order = match self.loader_global_scope() {
            Some(order) => order,
            None => self.startup_objects()?,
        };
        let global = order.len();
        let mut seen: HashSet<ObjectId> = order.iter().copied().collect();
        for id in also {
            for id in self.closure(&[*id])? {
                if seen.insert(id) {
                    order.push(id);
                }
            }
        }
        Ok(Scope { objects: self, order, global })
    }

    /// The global scope as glibc's loader keeps it: `l_searchlist` of the main executable's `struct link_map`, which
    /// dlopen with RTLD_GLOBAL extends. It is private, so it is recognised: a pointer to an array of link maps of
    /// which the first is the main executable's own, with their count behind it, that holds all dependencies.
    fn loader_global_scope(&self) -> Option<Vec<ObjectId>> {
        let main = self.main().link_map()?;
        let known: HashMap<u64, ObjectId> =
            self.iter().filter_map(|o| Some((o.link_map()?.0, o.id()))).collect();
        let needed = self.closure(&[self.main().id()]).ok()?;
        let pages = &self.pages;
        let candidate = |at: RemoteAddr| -> Option<Vec<ObjectId>> {
            let array = pages.u64(at).ok()?;
            let count = u64::from(pages.u32(at.offset(8)).ok()?);
            if array % 8 != 0 || array < 4096 || count == 0 || count > known.len() as u64 {
                return None;
            }
            let entry = |i: u64| known.get(&pages.u64(RemoteAddr(array.wrapping_add(8 * i))).ok()?).copied();
            let list: Option<Vec<_>> = (0..count).map(entry).collect();
            let list = list?;
            let distinct: HashSet<_> = list.iter().collect();
            let whole = list.first() == Some(&self.main().id())
                && distinct.len() == list.len()
                && needed.iter().all(|id| distinct.contains(id));
            whole.then_some(list)
        };
        (40..LINK_MAP_SEARCHED)
            .step_by(8)
            .find_map(|offset| candidate(RemoteAddr(main.0.wrapping_add(offset))))
    }

    /// The global scope from public facts: the loader lists what it loads at start first, so it is the shortest part
    /// of the list, from its beginning, that is closed under dependencies. RTLD_GLOBAL ones are not known here.
    pub(crate) fn startup_objects(&self) -> Result<Vec<ObjectId>> {
        let listed: Vec<_> = self
            .iter()
            .filter(|o| o.namespace() == 0 && (o.link_map().is_some() || o.role() == Role::Main))
            .map(Object::id)
            .collect();
        let mut end = 1.min(listed.len());
        loop {
            let closed = self.closure(&listed[..end])?;
            let last = listed.iter().rposition(|id| closed.contains(id)).map_or(end, |i| i + 1);
            if last <= end {
                break;
            }
            end = last;
        }
        Ok(listed[..end].iter().copied().filter(|id| self.get(*id).role() != Role::Vdso).collect())
    }

    /// `roots` and all they need, breadth first.
    fn closure(&self, roots: &[ObjectId]) -> Result<Vec<ObjectId>> {
        // What DT_NEEDED may say of an object: its SONAME, or the name it was loaded by, as a path or not.
        let mut by_name: HashMap<(usize, &str), ObjectId> = HashMap::new();
        for o in self.iter().filter(|o| o.role() != Role::Main) {
            for name in o.names() {
                by_name.entry((o.namespace(), name)).or_insert(o.id());
            }
        }
        let mut out: Vec<ObjectId> = Vec::new();
        let mut seen = HashSet::new();
        out.extend(roots.iter().filter(|id| seen.insert(**id)));
        let mut next = 0;
        while let Some(id) = out.get(next).copied() {
            next += 1;
            let object = self.get(id);
            for name in object.dynamic()?.needed(&self.pages)? {
                if let Some(id) = by_name.get(&(object.namespace(), name.as_str()))
                    && seen.insert(*id)
                {
                    out.push(*id);
                }
            }
        }
        Ok(out)
    }
}

impl Object<'_> {
    /// The definition of `name` that a reference from outside finds here.
    pub(crate) fn definition(&self, name: &str, version: Option<&str>) -> Result<Option<DynSym>> {
        let (dynamic, pages) = (self.dynamic()?, &self.pages);
        let mut newest = None;
        let exact = dynamic.lookup(pages, name, |s| {
            let visible = matches!(s.visibility, elf::STV_DEFAULT | elf::STV_PROTECTED);
            let bound = matches!(s.bind, elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE);
            let usable = s.section != elf::SHN_UNDEF
                && (s.value != 0 || s.section == elf::SHN_ABS || s.kind == elf::STT_TLS)
                && (s.kind <= elf::STT_FUNC
                    || matches!(s.kind, elf::STT_COMMON | elf::STT_TLS | elf::STT_GNU_IFUNC));
            if !(visible && bound && usable) {
                return Ok(None);
            }
            let defined = dynamic.version_of(pages, s.index)?;
            Ok(match (version, defined) {
                (None, None) | (Some(_), None) => Some(s),
                (Some(wanted), Some(v)) if v.name == wanted => Some(s),
                (None, Some(v)) if !v.hidden => {
                    newest.get_or_insert(s);
                    None
                }
                _ => None,
            })
        })?;
        Ok(exact.or(newest))
    }
}

impl<'t> Scope<'_, 't> {
    /// The objects in the order they are searched.
    pub fn iter(&self) -> impl Iterator<Item = &Object<'t>> {
        self.order.iter().map(|id| self.objects.get(*id))
    }

    /// How many of them, from the first, are the global scope.
    #[must_use]
    pub fn global_len(&self) -> usize {
        self.global
    }

    /// The definition that a reference to `name` (`foo`, `foo@VERSION`) binds to.
    ///
    /// # Errors
    /// [`SymbolError::Undefined`] where there is none: for a weak reference the caller takes 0 then.
    pub fn resolve(&self, name: &str, version: Option<&str>) -> Result<Resolved> {
        let (name, version) = match (name.split_once('@'), version) {
            (Some((base, v)), None) if !base.is_empty() => (base, Some(v.trim_start_matches('@'))),
            _ => (name, version),
        };
        for object in self.iter() {
            if object.is_static() {
                if let Some(found) = self.in_static(object, name)? {
                    return Ok(found);
                }
                continue;
            }
            let Some(s) = object.definition(name, version)? else { continue };
            let at = object.to_remote(LinkAddr(s.value));
            let value = match s.kind {
                elf::STT_TLS => Value::Tls { offset: s.value },
                _ if s.section == elf::SHN_ABS => Value::Absolute(s.value),
                elf::STT_GNU_IFUNC => {
                    Value::Ifunc { resolver: at, chosen: self.objects.ifunc_choice(object, at)? }
                }
                _ => Value::Address(at),
            };
            let version = object.dynamic()?.version_of(&object.pages, s.index)?;
            return Ok(Resolved { object: object.id(), value, size: s.size, kind: s.kind, version });
        }
        let near = self.elsewhere(name);
        Err(SymbolError::Undefined { name: name.to_owned(), version: version.map(str::to_owned), near }
            .into())
    }

    fn in_static(&self, object: &Object<'_>, name: &str) -> Result<Option<Resolved>> {
        let Some(s) = object.global_symbol(name)? else { return Ok(None) };
        let value = match s.kind {
            elf::STT_TLS => Value::Tls { offset: s.value },
            elf::STT_GNU_IFUNC => {
                let resolver = RemoteAddr(s.value);
                Value::Ifunc { resolver, chosen: self.objects.ifunc_choice(object, resolver)? }
            }
            _ => Value::Address(RemoteAddr(s.value)),
        };
        Ok(Some(Resolved { object: object.id(), value, size: s.size, kind: s.kind, version: None }))
    }

    /// Objects that have `name` where a reference does not reach it, for the message.
    fn elsewhere(&self, name: &str) -> Vec<String> {
        let has = |o: &&Object<'_>| o.symbol(name, 0).is_ok();
        let say = |o: &Object<'_>| match o.role() {
            Role::Main => format!("the main executable's own {name} (.klp.sym.exe.{name},0)"),
            _ => format!("{name} of {} (.klp.sym.{}.{name},0)", o.name(), o.name()),
        };
        self.objects.iter().filter(|o| o.role() != Role::Vdso).filter(has).take(3).map(say).collect()
    }
}
