//! The loader's list of objects, as it lies in the target: `struct r_debug` and the `struct link_map` chain of
//! `<link.h>`, the interface of debuggers, the same in glibc and musl; and the headers of what it lists.

use crate::objects::dynamic::MAX_NAME;
use crate::objects::elf_file::{ElfHeader, HEAD_LEN, Segment};
use crate::objects::symbols::SymbolError;
use crate::objects::{MAX_NAMESPACES, MAX_OBJECTS, Object, ObjectId, Role};
use crate::target::maps::{Mapping, Maps};
use crate::target::pages::Pages;
use crate::{RemoteAddr, Result};
use object::elf;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Longest path in a link map, in bytes.
const MAX_PATH: usize = 4096;
const PAGE: u64 = 4096;
const _: () = assert!(MAX_PATH <= MAX_NAME);

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

/// One entry of the loader's list.
pub(crate) struct LinkMap {
    pub(crate) at: RemoteAddr,
    pub(crate) bias: u64,
    pub(crate) name: String,
    pub(crate) dynamic: RemoteAddr,
}

/// What the list is read from.
pub(crate) struct Reader<'a, 't> {
    pub(crate) pages: Arc<Pages<'t>>,
    pub(crate) maps: &'a Maps,
    pub(crate) proc_dir: &'a Path,
}

pub(crate) fn broken(what: &str) -> crate::Error {
    SymbolError::BrokenTarget { what: what.to_owned() }.into()
}

impl<'t> Reader<'_, 't> {
    /// The object that the kernel started, from its program headers.
    pub(crate) fn started(&self, phdr: RemoteAddr, phnum: u64) -> Result<Object<'t>> {
        let count = usize::try_from(phnum).unwrap_or(0).min(crate::objects::elf_file::MAX_PROGRAM_HEADERS);
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
    pub(crate) fn linked(&self, map: &LinkMap) -> Option<Object<'t>> {
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
    pub(crate) fn headed(&self, head: RemoteAddr, role: Role) -> Option<Object<'t>> {
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
    pub(crate) fn lowest_of(&self, addr: RemoteAddr) -> Option<RemoteAddr> {
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

    pub(crate) fn debug(&self, at: RemoteAddr) -> Result<Option<LoaderDebug>> {
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
    pub(crate) fn link_maps(&self, at: RemoteAddr) -> Vec<(usize, LinkMap)> {
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
