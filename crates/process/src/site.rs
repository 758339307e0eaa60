//! Finding functions of the target and a way to redirect each.

use crate::document::Site;
use crate::entry::{Entry, EntryRefusal};
use crate::function::{Function as Code, Text};
use crate::maps::Maps;
use crate::memory::Memory;
use crate::objects::{Object, ObjectId, Objects};
use crate::symbols::Function;
use crate::{Error, RemoteAddr, Result};
use std::collections::HashMap;
use std::ops::Range;
use ugraft_core::FuncId;

/// Bytes in memory that are compared with the file around a function's start: what may be overwritten lies among them,
/// and somebody else's hook too.
const COMPARED: i64 = 256;
/// A function shorter than this may have to share a jump with the padding behind it.
const SHORT: u64 = 16;

/// Finds functions; keeps the text of each object it has read.
#[derive(Debug)]
pub struct Finder<'a, 't> {
    memory: &'a Memory,
    maps: &'a Maps,
    objects: &'a Objects<'t>,
    texts: HashMap<ObjectId, (Range<RemoteAddr>, Vec<u8>)>,
    taken: Vec<Range<RemoteAddr>>,
}

impl<'a, 't> Finder<'a, 't> {
    /// A finder among `objects`. The redirects of `known` have their places already.
    #[must_use]
    pub fn new(memory: &'a Memory, maps: &'a Maps, objects: &'a Objects<'t>, known: &[Site]) -> Self {
        let taken = known.iter().flat_map(|site| site.entry.written()).collect();
        Self { memory, maps, objects, texts: HashMap::new(), taken }
    }

    /// Finds `func` and analyses its entry, whose place is spoken for from then on.
    ///
    /// # Errors
    /// [`Error::Symbol`] where there is no such function, [`Error::Entry`] where it cannot be redirected.
    pub fn find(&mut self, func: &FuncId) -> Result<Site> {
        let function = self.objects.function(func.object.as_deref(), &func.name, func.sympos)?;
        let object = self.objects.get(function.object);
        let refused = |reason| Error::Entry { function: func.to_string(), reason };
        let outside = || refused(EntryRefusal::OutsideText(function.address));
        let mapping = self.maps.find(function.address).ok_or_else(outside)?;
        let (segment, _) = self.text(object, function.address)?.ok_or_else(outside)?;
        let compared = function.address.offset(-COMPARED).max(segment.start)
            ..function.address.offset(COMPARED).min(segment.end);
        let bytes =
            self.memory.read_vec(compared.start, compared.end.distance_from(compared.start) as usize)?;
        let taken = self.taken.clone();
        let (segment, text) = self.text(object, function.address)?.ok_or_else(outside)?;
        let text = Text { addr: segment.start, bytes: text };
        let code = Code {
            start: function.address,
            size: function.size,
            text,
            memory: Some(Text { addr: compared.start, bytes: &bytes }),
            neighbours: &neighbours(object, &function)?,
            data: &[],
            taken: &taken,
        };
        let entry = Entry::analyze(&code).map_err(refused)?;
        self.taken.extend(entry.written());
        Ok(Site { func: func.clone(), entry, code: function.ranges(), file: (mapping.dev, mapping.inode) })
    }

    /// The file's bytes of the text segment that `addr` lies in, and where they are mapped.
    fn text(&mut self, object: &Object<'_>, addr: RemoteAddr) -> Result<Option<(Range<RemoteAddr>, &[u8])>> {
        let known = self.texts.get(&object.id()).is_some_and(|(range, _)| range.contains(&addr));
        if !known {
            let Some(range) = text_segment(object, addr) else { return Ok(None) };
            let bytes = object.file_bytes(range.clone())?;
            self.texts.insert(object.id(), (range, bytes));
        }
        Ok(self.texts.get(&object.id()).map(|(range, bytes)| (range.clone(), bytes.as_slice())))
    }
}

/// Where the functions begin that lie right behind a short one, by their frame descriptions.
fn neighbours(object: &Object<'_>, function: &Function) -> Result<Vec<Range<RemoteAddr>>> {
    let mut found = Vec::new();
    if function.size < SHORT {
        let end = function.range().end;
        for at in 0..SHORT {
            if let Some(fde) = object.fde_at(end.offset(at as i64))? {
                found.push(fde.range);
                break;
            }
        }
    }
    Ok(found)
}

fn text_segment(object: &Object<'_>, addr: RemoteAddr) -> Option<Range<RemoteAddr>> {
    object.segments().iter().filter(|s| s.is_text()).find_map(|s| {
        let start = object.to_remote(s.vaddr);
        let range = start..start.offset(s.filesz as i64);
        range.contains(&addr).then_some(range)
    })
}
