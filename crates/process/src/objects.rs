//! The ELF objects of a target: its main executable, the libraries in its loader's list, the loader, the vdso.
//!
//! The list is the loader's own (`r_debug` and the `link_map` chain, as debuggers read it; glibc and musl), headers
//! and tables are those mapped in the target. Files are opened only when somebody asks for what memory does not
//! have, and are believed only where they are what is mapped: same ELF header and program headers, same build-id.
//!
//! Nothing here stops the target. While its loader changes the list (`LoaderDebug::consistent` is false), what was
//! read may be half of a change; whoever needs certainty stops the threads first.

pub mod debug_file;
pub mod demangle;
pub(crate) mod dynamic;
pub mod eh_frame;
pub mod elf_file;
pub(crate) mod ifunc;
pub(crate) mod loader_list;
pub(crate) mod object_file;
pub(crate) mod parts;
mod permanent;
pub mod scope;
pub(crate) mod symbol_error;
pub(crate) mod symbol_set;
pub mod symbols;
pub(crate) mod tls;

use crate::objects::dynamic::{Dynamic, Rela};
use crate::objects::elf_file::{ElfFile, ElfHeader, Segment, build_id_of_notes};
pub use crate::objects::loader_list::LoaderDebug;
use crate::objects::loader_list::{Reader, broken};
pub use crate::objects::object_file::FileProblem;
use crate::objects::symbols::{ObjectSymbols, SymbolError};
use crate::target::maps::{Mapping, Maps};
use crate::target::memory::Memory;
use crate::target::pages::Pages;
use crate::{LinkAddr, RemoteAddr, Result};
use object::elf;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Most objects in a target's list, over all namespaces.
pub const MAX_OBJECTS: usize = 1 << 12;
/// Most namespaces (glibc allows 16).
pub const MAX_NAMESPACES: usize = 64;
/// Longest note segment that is searched for a build-id, in bytes.
const MAX_NOTES: u64 = 1 << 16;

// getauxval(3).
const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const AT_BASE: u64 = 7;
const AT_SYSINFO_EHDR: u64 = 33;

/// Which object of an [`Objects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(crate) usize);

/// What an object is to its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The program: name NULL in a patch.
    Main,
    /// A shared library.
    Library,
    /// The dynamic loader (with musl it is libc, too).
    Loader,
    /// The kernel's own object.
    Vdso,
}

/// The objects of one target.
#[derive(Debug)]
pub struct Objects<'t> {
    pub(crate) pages: Arc<Pages<'t>>,
    list: Vec<Object<'t>>,
    debug: Option<LoaderDebug>,
    starting: bool,
}

/// One object.
#[derive(Debug)]
pub struct Object<'t> {
    pub(crate) id: ObjectId,
    pub(crate) role: Role,
    pub(crate) namespace: usize,
    pub(crate) link_map: Option<RemoteAddr>,
    pub(crate) bias: u64,
    pub(crate) head_at: RemoteAddr,
    pub(crate) header: Option<ElfHeader>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) ranges: Vec<Range<RemoteAddr>>,
    pub(crate) dynamic_at: Option<RemoteAddr>,
    /// The name the loader has for it; empty for the main executable.
    pub(crate) loaded_as: String,
    pub(crate) mapping: Option<Mapping>,
    pub(crate) proc_dir: PathBuf,
    pub(crate) pages: Arc<Pages<'t>>,
    pub(crate) dynamic: OnceLock<Dynamic>,
    pub(crate) soname: OnceLock<Option<String>>,
    pub(crate) build_id: OnceLock<Option<Vec<u8>>>,
    pub(crate) file: OnceLock<Result<ElfFile, FileProblem>>,
    pub(crate) relocations: OnceLock<Vec<Rela>>,
    pub(crate) symbols: OnceLock<ObjectSymbols>,
    pub(crate) mid_function: OnceLock<Vec<Range<RemoteAddr>>>,
}

impl<'t> Objects<'t> {
    /// Reads the list of a target's objects.
    ///
    /// `auxv` are the bytes of `/proc/PID/auxv`; `proc_dir` is `/proc/PID`, below which `root`, `exe` and
    /// `map_files` lead to the files as the target sees them. What is known of an object is read from memory at
    /// first use, its file likewise.
    ///
    /// # Errors
    /// Where the main executable's headers cannot be read or make no sense. A broken list of libraries ends where
    /// it breaks.
    pub fn read(memory: &'t Memory, maps: &Maps, auxv: &[u8], proc_dir: &Path) -> Result<Self> {
        let reader = Reader { pages: Arc::new(Pages::new(memory)), maps, proc_dir };
        let value = |key: u64| {
            auxv.chunks_exact(16).find_map(|entry| {
                let word = |at: usize| {
                    let mut b = [0; 8];
                    b.copy_from_slice(&entry[at..at + 8]);
                    u64::from_le_bytes(b)
                };
                (word(0) == key && word(8) != 0).then(|| word(8))
            })
        };
        let mut objects =
            Self { pages: reader.pages.clone(), list: Vec::new(), debug: None, starting: false };

        let phdr = RemoteAddr(value(AT_PHDR).ok_or_else(|| broken("the kernel states no program headers"))?);
        let phnum = value(AT_PHNUM).unwrap_or(0);
        let started = reader.started(phdr, phnum)?;
        let loader_base = value(AT_BASE).map(RemoteAddr);
        let vdso = value(AT_SYSINFO_EHDR).map(RemoteAddr);

        // DT_DEBUG leads from a dynamic program to the loader's list. Where the kernel started the loader itself
        // (`ld.so ./prog`), the loader's own `_r_debug` does, and the program is the first of the list.
        let started_dynamic = started.dynamic().ok().cloned().unwrap_or_default();
        let run_by_loader = loader_base.is_none() && started.defines_r_debug();
        let debug_at = match started_dynamic.debug {
            Some(at) if !run_by_loader => Some(at),
            // No DT_DEBUG, or not filled in: the loader exports the structure.
            _ => started
                .r_debug_symbol()
                .or_else(|| reader.headed(loader_base?, Role::Loader)?.r_debug_symbol()),
        };
        let mut found = Vec::new();
        if let Some(at) = debug_at {
            objects.debug = reader.debug(at).ok().flatten();
            found = reader.link_maps(at);
            // The program's own entry is there before anything that it needs.
            objects.starting = objects.debug.is_none() || started_dynamic.needs_any() && found.len() < 2;
        }
        if found.is_empty() {
            objects.push(Object { role: Role::Main, ..started });
        }
        let loader_head = if run_by_loader { reader.lowest_of(phdr) } else { loader_base };
        for (i, (namespace, map)) in found.into_iter().enumerate() {
            let main = i == 0;
            if main && !run_by_loader {
                let main = Object {
                    role: Role::Main,
                    link_map: Some(map.at),
                    loaded_as: map.name,
                    ..reader.started(phdr, phnum)?
                };
                objects.push(main);
                continue;
            }
            let Some(mut object) = reader.linked(&map) else { continue };
            object.namespace = namespace;
            object.role = match object.head_at {
                _ if main => Role::Main,
                head if Some(head) == loader_head => Role::Loader,
                head if Some(head) == vdso => Role::Vdso,
                _ => Role::Library,
            };
            objects.push(object);
        }
        if objects.list.first().is_none_or(|o| o.role != Role::Main) {
            return Err(broken("the first of the loader's list is not the main executable"));
        }
        for (head, role) in [(loader_head, Role::Loader), (vdso, Role::Vdso)] {
            let Some(head) = head else { continue };
            if objects.list.iter().all(|o| o.head_at != head)
                && let Some(object) = reader.headed(head, role)
            {
                objects.push(object);
            }
        }
        Ok(objects)
    }

    fn push(&mut self, mut object: Object<'t>) {
        if self.list.len() < MAX_OBJECTS {
            object.id = ObjectId(self.list.len());
            self.list.push(object);
        }
    }

    /// All objects: the main executable first, then in the order of the loader's list.
    pub fn iter(&self) -> std::slice::Iter<'_, Object<'t>> {
        self.list.iter()
    }

    /// The object with this id.
    #[must_use]
    pub fn get(&self, id: ObjectId) -> &Object<'t> {
        &self.list[id.0]
    }

    /// The main executable.
    #[must_use]
    pub fn main(&self) -> &Object<'t> {
        &self.list[0]
    }

    /// What the loader shows to debuggers; `None` for a static program.
    #[must_use]
    pub fn loader_debug(&self) -> Option<LoaderDebug> {
        self.debug
    }

    /// Whether the loader has not come to load what the program needs, as just after an `exec`.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.starting
    }

    /// Whether the loader was changing its list when that was read.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.debug.is_some_and(|debug| !debug.consistent)
    }

    /// The object that covers `addr`.
    #[must_use]
    pub fn at(&self, addr: RemoteAddr) -> Option<&Object<'t>> {
        self.list.iter().find(|o| o.covers(addr))
    }

    /// The object that a patch calls `name`: `None` is the main executable, otherwise a SONAME or a file name
    /// (without directories), in the main namespace.
    ///
    /// # Errors
    /// [`SymbolError::NotLoaded`] where there is none, [`SymbolError::AmbiguousObject`] where two different ones
    /// bear the name.
    pub fn find(&self, name: Option<&str>) -> Result<&Object<'t>, SymbolError> {
        let Some(name) = name else { return Ok(self.main()) };
        let loaded = || self.list.iter().filter(|o| o.role != Role::Main);
        let mut found: Vec<_> = loaded().filter(|o| o.is_called(name)).collect();
        if found.iter().any(|o| o.namespace == 0) {
            found.retain(|o| o.namespace == 0);
        }
        match found[..] {
            [one] => Ok(one),
            [] => Err(SymbolError::NotLoaded { object: name.to_owned() }),
            _ => Err(SymbolError::AmbiguousObject {
                object: name.to_owned(),
                paths: found.iter().map(|o| o.path().to_owned()).collect(),
            }),
        }
    }
}

impl<'a, 't> IntoIterator for &'a Objects<'t> {
    type Item = &'a Object<'t>;
    type IntoIter = std::slice::Iter<'a, Object<'t>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'t> Object<'t> {
    /// Which object of its [`Objects`] it is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// What it is to the process.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The number of the loader's namespace it is in; others than 0 were made by dlmopen.
    #[must_use]
    pub fn namespace(&self) -> usize {
        self.namespace
    }

    /// Where the loader's `struct link_map` of it lies, if it is in the loader's list.
    #[must_use]
    pub fn link_map(&self) -> Option<RemoteAddr> {
        self.link_map
    }

    /// What is added to an address of the file to get one of the process, modulo 2^64.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// Where `addr` of the file is in the process.
    #[must_use]
    pub fn to_remote(&self, addr: LinkAddr) -> RemoteAddr {
        RemoteAddr(addr.0.wrapping_add(self.bias))
    }

    /// Where `addr` of the process is in the file's address space.
    #[must_use]
    pub fn to_link(&self, addr: RemoteAddr) -> LinkAddr {
        LinkAddr(addr.0.wrapping_sub(self.bias))
    }

    /// Its program headers, as mapped.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The address ranges of its PT_LOAD segments, in whole pages, in the order of the program headers.
    #[must_use]
    pub fn ranges(&self) -> &[Range<RemoteAddr>] {
        &self.ranges
    }

    /// Whether one of its segments covers `addr`.
    #[must_use]
    pub fn covers(&self, addr: RemoteAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(&addr))
    }

    /// Whether `addr` lies in an executable segment of it.
    #[must_use]
    pub fn is_text(&self, addr: RemoteAddr) -> bool {
        let at = self.to_link(addr);
        self.segments.iter().any(|s| s.is_text() && s.covers(at))
    }

    /// The path of its file as the kernel shows it, without ` (deleted)`; what the loader calls it where there is no
    /// file; `[vdso]`.
    #[must_use]
    pub fn path(&self) -> &str {
        match &self.mapping {
            Some(m) if !m.name.is_empty() => m.name.strip_suffix(" (deleted)").unwrap_or(&m.name),
            _ => &self.loaded_as,
        }
    }

    /// Its SONAME, from its dynamic section.
    #[must_use]
    pub fn soname(&self) -> Option<&str> {
        let read = || self.dynamic().ok()?.soname(&self.pages).ok()?;
        self.soname.get_or_init(read).as_deref()
    }

    /// The name that a patch and the log use: SONAME, else the file name. The main executable has its file name here
    /// and NULL in a patch.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.role {
            Role::Main => file_name(self.path()),
            _ => self.soname().unwrap_or_else(|| {
                file_name(if self.loaded_as.is_empty() { self.path() } else { &self.loaded_as })
            }),
        }
    }

    /// Whether a patch may mean it by `name`: SONAME, the file name it was loaded by, or the name of its file.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        !name.contains('/') && self.names().any(|n| n == name)
    }

    /// Its SONAME, the name the loader has for it, that without directories, and the name of its file.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let loaded_as = (!self.loaded_as.is_empty()).then_some(self.loaded_as.as_str());
        [self.soname(), loaded_as, loaded_as.map(file_name), Some(file_name(self.path()))]
            .into_iter()
            .flatten()
    }

    /// The name that the loader has for it (a path as given to dlopen or found on the search path); may be empty.
    #[must_use]
    pub fn loaded_as(&self) -> &str {
        &self.loaded_as
    }

    /// The build-id in its mapped notes.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        let read = || {
            self.segments.iter().filter(|s| s.kind == elf::PT_NOTE && s.memsz <= MAX_NOTES).find_map(|s| {
                build_id_of_notes(&self.pages.vec(self.to_remote(s.vaddr), s.memsz as usize).ok()?)
            })
        };
        self.build_id.get_or_init(read).as_deref()
    }

    /// Whether it is a program that no dynamic loader starts: it has no interpreter.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.role == Role::Main && !self.segments.iter().any(|s| s.kind == elf::PT_INTERP)
    }

    pub(crate) fn proc_dir(&self) -> &Path {
        &self.proc_dir
    }

    pub(crate) fn dynamic(&self) -> Result<&Dynamic> {
        if let Some(d) = self.dynamic.get() {
            return Ok(d);
        }
        let read = match self.dynamic_at {
            Some(at) => {
                let size = self.segments.iter().find(|s| s.kind == elf::PT_DYNAMIC).map_or(0, |s| s.memsz);
                Dynamic::read(&self.pages, at, size, self.bias, &self.ranges)?
            }
            None => Dynamic::default(),
        };
        Ok(self.dynamic.get_or_init(|| read))
    }

    /// Whether this is a dynamic loader: it defines what debuggers look for.
    fn defines_r_debug(&self) -> bool {
        self.r_debug_symbol().is_some()
    }

    fn r_debug_symbol(&self) -> Option<RemoteAddr> {
        let dynamic = self.dynamic().ok()?;
        let defined = |name: &str| {
            dynamic
                .lookup(&self.pages, name, |s| Ok((s.section != elf::SHN_UNDEF).then_some(s.value)))
                .ok()?
                .map(|value| self.to_remote(LinkAddr(value)))
        };
        // glibc exports the structure, musl a pointer to it.
        defined("_r_debug").or_else(|| {
            let at = self.pages.u64(defined("_dl_debug_addr")?).ok()?;
            (at != 0).then_some(RemoteAddr(at))
        })
    }
}

/// The last component of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
