//! The ELF objects of a target: its main executable, the libraries in its loader's list, the loader, the vdso.
//!
//! The list is the loader's own (`r_debug` and the `link_map` chain, as debuggers read it; glibc and musl), headers
//! and tables are those mapped in the target. Files are opened only when somebody asks for what memory does not
//! have, and are believed only where they are what is mapped: same ELF header and program headers, same build-id.
//!
//! Nothing here stops the target. While its loader changes the list (`LoaderDebug::consistent` is false), what was
//! read may be half of a change; whoever needs certainty stops the threads first.

use crate::dynamic::{Dynamic, MAX_NAME, Rela};
use crate::elf_file::{ElfFile, ElfHeader, HEAD_LEN, Segment, build_id_of_notes};
use crate::maps::{Mapping, Maps};
use crate::memory::Memory;
use crate::pages::Pages;
use crate::symbols::{ObjectSymbols, SymbolError};
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
/// Longest path in a link map, in bytes.
const MAX_PATH: usize = 4096;
const PAGE: u64 = 4096;

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

/// What the loader shows to debuggers (`struct r_debug`, `<link.h>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderDebug {
    /// Where the structure lies.
    pub address: RemoteAddr,
    /// The function that the loader calls around each change of its list (`r_brk`).
    pub brk: RemoteAddr,
    /// Whether the list was not being changed (`r_state` is RT_CONSISTENT).
    pub consistent: bool,
    /// `r_version`; 2 and more have further namespaces behind.
    pub version: u32,
}

/// Why an object's file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// It has none: it is the kernel's, or lies in anonymous memory.
    #[error("{0} is not mapped from a file")]
    None(String),
    /// No way led to it.
    #[error(
        "the file of {object} cannot be opened ({reason}); restart the program if it was removed or replaced"
    )]
    Unreachable {
        /// The object.
        object: String,
        /// What was tried, with the answers.
        reason: String,
    },
    /// What lies there now is not what is mapped.
    #[error(
        "{path} is not the file that is mapped as {object} ({difference}): it was replaced after the program started; restart the program"
    )]
    Differs {
        /// The object.
        object: String,
        /// The file found.
        path: String,
        /// How the two differ.
        difference: &'static str,
    },
}

/// The objects of one target.
#[derive(Debug)]
pub struct Objects<'t> {
    pub(crate) pages: Arc<Pages<'t>>,
    list: Vec<Object<'t>>,
    debug: Option<LoaderDebug>,
}

/// One object.
#[derive(Debug)]
pub struct Object<'t> {
    id: ObjectId,
    role: Role,
    namespace: usize,
    link_map: Option<RemoteAddr>,
    bias: u64,
    head_at: RemoteAddr,
    header: Option<ElfHeader>,
    segments: Vec<Segment>,
    ranges: Vec<Range<RemoteAddr>>,
    dynamic_at: Option<RemoteAddr>,
    /// The name the loader has for it; empty for the main executable.
    loaded_as: String,
    mapping: Option<Mapping>,
    proc_dir: PathBuf,
    pub(crate) pages: Arc<Pages<'t>>,
    dynamic: OnceLock<Dynamic>,
    soname: OnceLock<Option<String>>,
    build_id: OnceLock<Option<Vec<u8>>>,
    file: OnceLock<Result<ElfFile, FileProblem>>,
    pub(crate) relocations: OnceLock<Vec<Rela>>,
    pub(crate) symbols: OnceLock<ObjectSymbols>,
    pub(crate) mid_function: OnceLock<Vec<Range<RemoteAddr>>>,
}

struct LinkMap {
    at: RemoteAddr,
    bias: u64,
    name: String,
    dynamic: RemoteAddr,
}

struct Reader<'a, 't> {
    pages: Arc<Pages<'t>>,
    maps: &'a Maps,
    proc_dir: &'a Path,
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
        let mut objects = Self { pages: reader.pages.clone(), list: Vec::new(), debug: None };

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

fn broken(what: &str) -> crate::Error {
    SymbolError::BrokenTarget { what: what.to_owned() }.into()
}

impl<'t> Reader<'_, 't> {
    /// The object that the kernel started, from its program headers.
    fn started(&self, phdr: RemoteAddr, phnum: u64) -> Result<Object<'t>> {
        let count = usize::try_from(phnum).unwrap_or(0).min(crate::elf_file::MAX_PROGRAM_HEADERS);
        let segments = Segment::parse_all(&self.pages.vec(phdr, count * 56)?);
        let bias = match segments.iter().find(|s| s.kind == elf::PT_PHDR) {
            Some(s) => phdr.0.wrapping_sub(s.vaddr.0),
            // A static program has no PT_PHDR: the headers lie in the segment that holds file offset e_phoff.
            None => self
                .lowest_of(phdr)
                .and_then(|head| {
                    let first = segments.iter().find(|s| s.kind == elf::PT_LOAD && s.offset.0 == 0)?;
                    Some(head.0.wrapping_sub(first.vaddr.0))
                })
                .ok_or_else(|| broken("no segment of the main executable holds its program headers"))?,
        };
        let head = segments
            .iter()
            .find(|s| s.kind == elf::PT_LOAD && s.offset.0 == 0)
            .map_or(RemoteAddr(phdr.0 & !(PAGE - 1)), |s| RemoteAddr(bias.wrapping_add(s.vaddr.0)));
        if !segments.iter().any(|s| s.kind == elf::PT_LOAD) {
            return Err(broken("the main executable has no PT_LOAD segment"));
        }
        Ok(self.object(head, bias, segments, None, String::new(), Role::Main))
    }

    /// An object of the link map.
    fn linked(&self, map: &LinkMap) -> Option<Object<'t>> {
        // Usually the first segment has link address 0 and the headers lie at the bias itself.
        let right = |head: RemoteAddr| {
            let (header, segments) = self.headers(head)?;
            let first = segments.iter().find(|s| s.kind == elf::PT_LOAD)?;
            let bias = head.0.wrapping_sub(first.vaddr.0.wrapping_sub(first.offset.0));
            let dynamic = segments.iter().find(|s| s.kind == elf::PT_DYNAMIC)?;
            let fits = bias == map.bias && bias.wrapping_add(dynamic.vaddr.0) == map.dynamic.0;
            fits.then_some((header, segments))
        };
        let (head, (header, segments)) = [Some(RemoteAddr(map.bias)), self.lowest_of(map.dynamic)]
            .into_iter()
            .flatten()
            .find_map(|head| Some((head, right(head)?)))?;
        let mut object = self.object(head, map.bias, segments, Some(header), map.name.clone(), Role::Library);
        object.link_map = Some(map.at);
        Some(object)
    }

    /// An object of which only the place of its header is known.
    fn headed(&self, head: RemoteAddr, role: Role) -> Option<Object<'t>> {
        let (header, segments) = self.headers(head)?;
        let first = segments.iter().find(|s| s.kind == elf::PT_LOAD)?;
        let bias = head.0.wrapping_sub(first.vaddr.0.wrapping_sub(first.offset.0));
        Some(self.object(head, bias, segments, Some(header), String::new(), role))
    }

    fn headers(&self, head: RemoteAddr) -> Option<(ElfHeader, Vec<Segment>)> {
        self.maps.find(head).filter(|m| m.read)?;
        let bytes = self.pages.vec(head, HEAD_LEN).ok()?;
        let header = ElfHeader::parse(&bytes).ok()?;
        let at = head.0.checked_add(header.phoff)?;
        let table = self.pages.vec(RemoteAddr(at), header.phdrs_len()).ok()?;
        Some((header, Segment::parse_all(&table)))
    }

    /// The start of the mapping, at or below `addr`, of the same file with file offset 0.
    fn lowest_of(&self, addr: RemoteAddr) -> Option<RemoteAddr> {
        let at = self.maps.find(addr)?;
        let same =
            |m: &&Mapping| m.inode == at.inode && m.dev == at.dev && m.start <= at.start && m.offset.0 == 0;
        self.maps.iter().rfind(same).map(|m| m.start)
    }

    fn object(
        &self,
        head_at: RemoteAddr,
        bias: u64,
        segments: Vec<Segment>,
        header: Option<ElfHeader>,
        loaded_as: String,
        role: Role,
    ) -> Object<'t> {
        let loads = segments.iter().filter(|s| s.kind == elf::PT_LOAD);
        let ranges: Vec<_> = loads
            .map(|s| {
                let start = bias.wrapping_add(s.vaddr.0);
                let end = start.saturating_add(s.memsz).saturating_add(PAGE - 1) & !(PAGE - 1);
                RemoteAddr(start & !(PAGE - 1))..RemoteAddr(end)
            })
            .collect();
        let dynamic_at = segments
            .iter()
            .find(|s| s.kind == elf::PT_DYNAMIC)
            .map(|s| RemoteAddr(bias.wrapping_add(s.vaddr.0)));
        Object {
            id: ObjectId(0),
            role,
            namespace: 0,
            link_map: None,
            bias,
            head_at,
            header,
            segments,
            ranges,
            dynamic_at,
            loaded_as,
            mapping: self.maps.find(head_at).cloned(),
            proc_dir: self.proc_dir.to_owned(),
            pages: self.pages.clone(),
            dynamic: OnceLock::new(),
            soname: OnceLock::new(),
            build_id: OnceLock::new(),
            file: OnceLock::new(),
            relocations: OnceLock::new(),
            symbols: OnceLock::new(),
            mid_function: OnceLock::new(),
        }
    }

    fn debug(&self, at: RemoteAddr) -> Result<Option<LoaderDebug>> {
        // struct r_debug: int version, r_map, r_brk, enum state, r_ldbase, (version 2) r_next.
        let version = self.pages.u32(at)?;
        if version == 0 {
            return Ok(None);
        }
        let brk = RemoteAddr(self.pages.u64(at.offset(16))?);
        let consistent = self.pages.u32(at.offset(24))? == 0;
        Ok(Some(LoaderDebug { address: at, brk, consistent, version }))
    }

    /// The link maps of all namespaces, with the number of the namespace.
    fn link_maps(&self, at: RemoteAddr) -> Vec<(usize, LinkMap)> {
        let mut out: Vec<(usize, LinkMap)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut space = at;
        for namespace in 0..MAX_NAMESPACES {
            let Ok(Some(debug)) = self.debug(space) else { break };
            let mut node = self.pages.u64(space.offset(8)).unwrap_or(0);
            while node != 0 && seen.insert(node) && out.len() < MAX_OBJECTS {
                match self.link_map(RemoteAddr(node)) {
                    Ok((map, next)) => {
                        out.push((namespace, map));
                        node = next;
                    }
                    Err(_) => break,
                }
            }
            if debug.version < 2 {
                break;
            }
            match self.pages.u64(space.offset(40)) {
                Ok(next) if next != 0 && seen.insert(next) => space = RemoteAddr(next),
                _ => break,
            }
        }
        out
    }

    fn link_map(&self, at: RemoteAddr) -> Result<(LinkMap, u64)> {
        // struct link_map: l_addr, l_name, l_ld, l_next, l_prev.
        let bias = self.pages.u64(at)?;
        let name = self.pages.u64(at.offset(8))?;
        let dynamic = RemoteAddr(self.pages.u64(at.offset(16))?);
        let next = self.pages.u64(at.offset(24))?;
        let name = match name {
            0 => None,
            name => self.pages.cstr(RemoteAddr(name), MAX_PATH).unwrap_or(None),
        };
        let name = name.map(|n| String::from_utf8_lossy(&n).into_owned()).unwrap_or_default();
        Ok((LinkMap { at, bias, name, dynamic }, next))
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

    /// Its file: opened through the target's root or, where it was removed or replaced, through the kernel's links to
    /// what is mapped; and checked against what is mapped.
    ///
    /// # Errors
    /// [`FileProblem`] where there is no file, none that can be opened, or only a different one.
    pub fn file(&self) -> Result<&ElfFile, FileProblem> {
        self.file.get_or_init(|| self.open()).as_ref().map_err(Clone::clone)
    }

    fn open(&self) -> Result<ElfFile, FileProblem> {
        let object = || self.name().to_owned();
        let Some(mapping) = self.mapping.as_ref().filter(|m| m.inode != 0) else {
            return Err(FileProblem::None(object()));
        };
        // A path is right only where it leads to the mapped inode; the kernel's links always do. Where those need a
        // privilege that we lack, or file systems number inodes twice, the path is tried again and the content decides.
        let path = Path::new(self.path());
        let rooted = self.proc_dir.join("root").join(path.strip_prefix("/").unwrap_or(path));
        let map_file = format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
        let mut ways = Vec::new();
        if !mapping.name.ends_with(" (deleted)") {
            // The kernel shows the path as it is from our root, which is not that of a target in a jail.
            ways.extend([(rooted.clone(), true), (path.to_owned(), true)]);
        }
        ways.push((self.proc_dir.join(map_file), false));
        if self.role == Role::Main {
            ways.push((self.proc_dir.join("exe"), false));
        }
        if !mapping.name.ends_with(" (deleted)") {
            ways.push((rooted, false));
        }
        let mut tried = Vec::new();
        let mut problem = None;
        for (way, same_inode) in &ways {
            let file = match ElfFile::open(way) {
                Ok(file) => file,
                Err(e) => {
                    tried.push(e.to_string());
                    continue;
                }
            };
            if *same_inode && file.inode().is_some_and(|(_, inode)| inode != mapping.inode) {
                tried.push(format!("{}: another file now", way.display()));
                continue;
            }
            match self.difference(&file) {
                None => return Ok(file),
                Some(difference) => {
                    let (object, path) = (object(), path.display().to_string());
                    problem = Some(FileProblem::Differs { object, path, difference });
                }
            }
        }
        tried.dedup();
        Err(problem
            .unwrap_or_else(|| FileProblem::Unreachable { object: object(), reason: tried.join("; ") }))
    }

    /// How `file` differs from what is mapped.
    fn difference(&self, file: &ElfFile) -> Option<&'static str> {
        if file.segments() != self.segments {
            return Some("other program headers");
        }
        let header = match self.header {
            Some(h) => Some(h),
            None => self.pages.vec(self.head_at, HEAD_LEN).ok().and_then(|b| ElfHeader::parse(&b).ok()),
        };
        if header.is_some_and(|h| h != *file.header()) {
            return Some("another ELF header");
        }
        let id = self.build_id();
        if id.is_some() && file.build_id().as_deref() != id {
            return Some("another build-id");
        }
        None
    }
}

/// The last component of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

const _: () = assert!(MAX_PATH <= MAX_NAME);
