//! The index of an image's unwind tables (`.eh_frame_hdr`): what unwinders find a function's frame description by.
//!
//! It is made here, since a relocatable object has none: the linker of a program makes it (Linux Standard Base, core
//! specification, "Exception Frames"). A version byte, three of encodings, the address of `.eh_frame`, a count, and as many pairs
//! of a function's beginning and its frame description's, sorted, as signed 32-bit distances from the index itself.

use crate::RemoteAddr;
use crate::sections::Section;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};

/// Bytes before the pairs.
const HEAD: u64 = 12;
/// Bytes of a pair.
const PAIR: u64 = 8;
/// An index must begin at a multiple of this: readers take its numbers whole.
pub const ALIGN: u64 = 4;

const VERSION: u8 = 1;
/// DW_EH_PE_pcrel | DW_EH_PE_sdata4
const PC_RELATIVE: u8 = 0x1b;
/// DW_EH_PE_udata4
const COUNT: u8 = 0x03;
/// DW_EH_PE_datarel | DW_EH_PE_sdata4
const INDEX_RELATIVE: u8 = 0x3b;
/// DW_EH_PE_omit
const OMITTED: u8 = 0xff;

/// Bytes that the index of the tables in `sections`, which are not linked yet, takes at most.
pub fn size(sections: &[Section]) -> u64 {
    let tables = sections.iter().filter(|section| section.eh_frame);
    HEAD + PAIR * tables.map(|section| count(&section.bytes)).sum::<u64>()
}

/// Frame descriptions in `bytes`. What is no such table has none, and those behind what cannot be read do not count.
fn count(bytes: &[u8]) -> u64 {
    let bases = BaseAddresses::default().set_eh_frame(0);
    let tables = EhFrame::new(bytes, LittleEndian);
    let mut entries = tables.entries(&bases);
    let mut count = 0;
    while let Ok(Some(entry)) = entries.next() {
        count += u64::from(matches!(entry, CieOrFde::Fde(_)));
    }
    count
}

/// The index that lies at `at`, of the linked tables `bytes` that lie at `eh_frame`: `size` bytes at most. Where the tables are not
/// such that all of them can be indexed it has no pairs, and unwinders read the tables from end to end.
pub fn index(at: RemoteAddr, eh_frame: RemoteAddr, bytes: &[u8], size: u64) -> Vec<u8> {
    let pairs = pairs(at, eh_frame, bytes).filter(|pairs| HEAD + PAIR * pairs.len() as u64 <= size);
    // The image is far smaller than 2 GiB.
    let to_tables = eh_frame.distance_from(at.offset(4)) as i32;
    let encodings = match pairs {
        Some(_) => [VERSION, PC_RELATIVE, COUNT, INDEX_RELATIVE],
        None => [VERSION, PC_RELATIVE, OMITTED, OMITTED],
    };
    let mut index = encodings.to_vec();
    index.extend(to_tables.to_le_bytes());
    if let Some(pairs) = pairs {
        index.extend((pairs.len() as u32).to_le_bytes());
        for (function, description) in pairs {
            index.extend(function.to_le_bytes());
            index.extend(description.to_le_bytes());
        }
    }
    index
}

/// Function and frame description, sorted; `None` where that cannot be said of all.
fn pairs(at: RemoteAddr, eh_frame: RemoteAddr, bytes: &[u8]) -> Option<Vec<(i32, i32)>> {
    let bases = BaseAddresses::default().set_eh_frame(eh_frame.0);
    let tables = EhFrame::new(bytes, LittleEndian);
    let mut entries = tables.entries(&bases);
    let mut pairs = Vec::new();
    while let Some(entry) = entries.next().ok()? {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).ok()?;
        let function = RemoteAddr(fde.initial_address()).distance_from(at);
        let description = eh_frame.offset(fde.offset() as i64).distance_from(at);
        pairs.push((i32::try_from(function).ok()?, i32::try_from(description).ok()?));
    }
    pairs.sort_unstable();
    Some(pairs)
}
