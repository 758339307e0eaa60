//! Finding functions of the target and a way to redirect each.

use crate::code::entry::{Entry, EntryRefusal};
use crate::code::function::{Branches, Function as Code, MAX_TABLE_LEN, Text, possible_tables};
use crate::objects::elf_file::Segment;
use crate::objects::{Object, ObjectId, Objects};
use crate::state::document::Site;
use crate::target::maps::Maps;
use crate::target::memory::Memory;
use crate::{Error, RemoteAddr, Result};
use object::elf::PT_LOAD;
use std::collections::HashMap;
use std::ops::Range;
use ugraft_core::FuncId;

/// Bytes in memory that are compared with the file around a function's start: what may be overwritten lies among them,
/// and somebody else's hook too.
const COMPARED: i64 = 256;
/// From so many functions on, the branches of their object are looked up once for all of them.
const MANY: usize = 10;
/// A function shorter than this may have to share a jump with the padding behind it.
const SHORT: i64 = 16;
/// So much of the text before and behind a function is looked at where not all of it is; more than any short branch reaches.
const SURROUNDINGS: i64 = 512;

/// Finds functions; keeps the text of each object it has read.
#[derive(Debug)]
pub struct Finder<'a, 't> {
    memory: &'a Memory,
    maps: &'a Maps,
    objects: &'a Objects<'t>,
    texts: HashMap<ObjectId, ObjectText>,
    taken: Vec<Range<RemoteAddr>>,
    many: bool,
}

/// What the file of an object has for a text segment.
#[derive(Debug)]
struct ObjectText {
    range: Range<RemoteAddr>,
    bytes: Vec<u8>,
    branches: Option<Branches>,
}

impl ObjectText {
    fn text(&self) -> Text<'_> {
        Text { addr: self.range.start, bytes: &self.bytes }
    }
}

impl<'a, 't> Finder<'a, 't> {
    /// A finder among `objects`. The redirects of `known` have their places already.
    #[must_use]
    pub fn new(memory: &'a Memory, maps: &'a Maps, objects: &'a Objects<'t>, known: &[Site]) -> Self {
        let taken = known.iter().flat_map(|site| site.entry.written()).collect();
        Self { memory, maps, objects, texts: HashMap::new(), taken, many: false }
    }

    /// Prepares for finding so many functions.
    pub fn expect(&mut self, functions: usize) {
        self.many = functions >= MANY;
    }

    /// Finds `func` and analyses its entry, whose place is spoken for from then on.
    ///
    /// # Errors
    /// [`Error::Symbol`] where there is no such function, [`Error::Entry`] where it cannot be redirected.
    pub fn find(&mut self, func: &FuncId) -> Result<Site> {
        let function = self.objects.function(func.object.as_deref(), &func.name, func.sympos)?;
        let object = self.objects.get(function.object);
        let outside = || Error::Entry {
            function: func.to_string(),
            reason: EntryRefusal::OutsideText(function.address),
        };
        let mapping = self.maps.find(function.address).ok_or_else(outside)?;
        if !self.read_text(object, function.address)? {
            return Err(outside());
        }
        let known = self.texts.get(&object.id()).ok_or_else(outside)?;
        let entry = self.analyze(object, function.range(), known.text(), known.branches.as_ref());
        let entry = entry?.map_err(|reason| Error::Entry { function: func.to_string(), reason })?;
        self.taken.extend(entry.written());
        Ok(Site { func: func.clone(), entry, code: function.ranges(), file: (mapping.dev, mapping.inode) })
    }

    /// Analyses the entry of `func`, which lies at `range` of `object`, as [`Finder::find`] does, but from what lies around it
    /// alone: for functions known to be a compiler's, of which no other branches behind the first byte. All text of a C library is
    /// a megabyte to read and to look through.
    ///
    /// # Errors
    /// [`Error::Entry`] where it cannot be redirected.
    pub fn find_at(&mut self, func: &FuncId, object: &Object<'_>, range: Range<RemoteAddr>) -> Result<Entry> {
        let refused = |reason| Error::Entry { function: func.to_string(), reason };
        let text = segment(object, range.start, |s| s.is_text())
            .ok_or_else(|| refused(EntryRefusal::OutsideText(range.start)))?;
        let around = range.start.offset(-SURROUNDINGS).max(text.start)
            ..range.end.offset(SURROUNDINGS).min(text.end).max(range.start);
        let bytes = object.file_bytes(around.clone())?;
        let text = Text { addr: around.start, bytes: &bytes };
        let entry = self.analyze(object, range, text, None)?.map_err(refused)?;
        self.taken.extend(entry.written());
        Ok(entry)
    }

    /// Judges a function by `text` of its object's file, and `branches` of that if they are known.
    fn analyze(
        &self,
        object: &Object<'_>,
        range: Range<RemoteAddr>,
        text: Text<'_>,
        branches: Option<&Branches>,
    ) -> Result<Result<Entry, EntryRefusal>> {
        let covered = text.range();
        let compared =
            range.start.offset(-COMPARED).max(covered.start)..range.start.offset(COMPARED).min(covered.end);
        let bytes =
            self.memory.read_vec(compared.start, compared.end.distance_from(compared.start) as usize)?;
        let tables = self.tables(object, possible_tables(text.clip(range.clone())));
        let data: Vec<_> = tables.iter().map(|(addr, bytes)| Text { addr: *addr, bytes }).collect();
        let code = Code {
            start: range.start,
            size: range.end.distance_from(range.start) as u64,
            text,
            memory: Some(Text { addr: compared.start, bytes: &bytes }),
            neighbours: &neighbours(object, &range)?,
            data: &data,
            taken: &self.taken,
        };
        Ok(Entry::analyze_with(&code, branches))
    }

    /// Reads the text segment of the object's file that `addr` lies in, unless that is the one at hand; false where there is
    /// none.
    fn read_text(&mut self, object: &Object<'_>, addr: RemoteAddr) -> Result<bool> {
        if self.texts.get(&object.id()).is_some_and(|text| text.range.contains(&addr)) {
            return Ok(true);
        }
        let Some(range) = segment(object, addr, |s| s.is_text()) else { return Ok(false) };
        let bytes = object.file_bytes(range.clone())?;
        let branches = self.many.then(|| Branches::of(Text { addr: range.start, bytes: &bytes }));
        self.texts.insert(object.id(), ObjectText { range, bytes, branches });
        Ok(true)
    }

    /// What lies where a function may have jump tables, as the target has it, relocated.
    fn tables(&self, object: &Object<'_>, mut places: Vec<RemoteAddr>) -> Vec<(RemoteAddr, Vec<u8>)> {
        places.sort();
        let mut ranges: Vec<Range<RemoteAddr>> = Vec::new();
        for at in places {
            let Some(segment) = segment(object, at, |s| !s.is_text()) else { continue };
            let end = at.offset(MAX_TABLE_LEN as i64).min(segment.end);
            match ranges.last_mut() {
                Some(last) if at <= last.end => last.end = last.end.max(end),
                _ => ranges.push(at..end),
            }
        }
        // What cannot be read cannot be jumped by.
        let read = |range: Range<RemoteAddr>| {
            let bytes = self.memory.read_vec(range.start, range.end.distance_from(range.start) as usize);
            Some((range.start, bytes.ok()?))
        };
        ranges.into_iter().filter_map(read).collect()
    }
}

/// Where the functions begin that lie right behind a short one, by their frame descriptions.
fn neighbours(object: &Object<'_>, function: &Range<RemoteAddr>) -> Result<Vec<Range<RemoteAddr>>> {
    let mut found = Vec::new();
    if function.end.distance_from(function.start) < SHORT {
        for at in 0..SHORT {
            if let Some(fde) = object.fde_at(function.end.offset(at))? {
                found.push(fde.range);
                break;
            }
        }
    }
    Ok(found)
}

/// The addresses of the segment that `addr` lies in and that is `wanted`, as far as the file fills it.
fn segment(
    object: &Object<'_>,
    addr: RemoteAddr,
    wanted: impl Fn(&Segment) -> bool,
) -> Option<Range<RemoteAddr>> {
    let loaded = |s: &&Segment| s.kind == PT_LOAD && wanted(s);
    object.segments().iter().filter(loaded).find_map(|s| {
        let start = object.to_remote(s.vaddr);
        let range = start..start.offset(s.filesz as i64);
        range.contains(&addr).then_some(range)
    })
}
