//! Finding a function of the target and a way to redirect it.

use crate::document::Site;
use crate::entry::{Entry, EntryRefusal};
use crate::function::{Function as Code, Text};
use crate::maps::Maps;
use crate::memory::Memory;
use crate::objects::{Object, Objects};
use crate::symbols::Function;
use crate::{Error, RemoteAddr, Result};
use std::ops::Range;
use ugraft_core::FuncId;

/// Bytes in memory that are compared with the file, from the function's start: what may be overwritten lies in the
/// first of them, and somebody else's hook too.
const COMPARED: u64 = 64;
/// Bytes before a function that are read for padding.
const BEFORE: u64 = 256;

/// Finds `func` among `objects` and analyses its entry. `taken` are bytes promised to the redirects of other functions.
///
/// # Errors
/// [`Error::Symbol`] where there is no such function, [`Error::Entry`] where it cannot be redirected.
pub fn find(
    memory: &Memory,
    maps: &Maps,
    objects: &Objects<'_>,
    func: &FuncId,
    taken: &[Range<RemoteAddr>],
) -> Result<Site> {
    let function = objects.function(func.object.as_deref(), &func.name, func.sympos)?;
    let object = objects.get(function.object);
    let refused = |reason| Error::Entry { function: func.to_string(), reason };
    let segment = text_segment(object, function.address)
        .ok_or_else(|| refused(EntryRefusal::OutsideText(function.address)))?;
    let file = object.file_bytes(segment.clone())?;
    let compared = function.address.offset(-(BEFORE as i64)).max(segment.start)
        ..function.address.offset((function.size.min(COMPARED) + BEFORE) as i64).min(segment.end);
    let bytes = memory.read_vec(compared.start, compared.end.distance_from(compared.start) as usize)?;
    let code = Code {
        start: function.address,
        size: function.size,
        text: Text { addr: segment.start, bytes: &file },
        memory: Some(Text { addr: compared.start, bytes: &bytes }),
        neighbours: &[],
        data: &[],
        taken,
    };
    let entry = Entry::analyze(&code).map_err(refused)?;
    let mapping = maps.find(function.address).ok_or(refused(EntryRefusal::OutsideText(function.address)))?;
    Ok(Site { func: func.clone(), entry, code: code_of(&function), file: (mapping.dev, mapping.inode) })
}

fn code_of(function: &Function) -> Vec<Range<RemoteAddr>> {
    function.ranges()
}

fn text_segment(object: &Object<'_>, addr: RemoteAddr) -> Option<Range<RemoteAddr>> {
    object.segments().iter().filter(|s| s.is_text()).find_map(|s| {
        let start = object.to_remote(s.vaddr);
        let range = start..start.offset(s.filesz as i64);
        range.contains(&addr).then_some(range)
    })
}
