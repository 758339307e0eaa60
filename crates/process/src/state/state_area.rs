//! The state area: the truth about a target, kept inside the target.
//!
//! One private memfd mapping, found by its name in the maps, copied by `fork` together with the patched text and
//! gone with `exec`. The tool writes it from outside; to the target's own code it is read-only. It holds
//!
//! ```text
//! header      magic, version, where the rest lies                 written once, magic last
//! current     which document counts                               one aligned store flips it
//! log ring    see `log_ring`
//! documents   two slots, the one that counts and the next one
//! ```
//!
//! Invariants:
//! - A document slot that `current` names is whole: it is written, checked by its own length and checksum, before
//!   `current` is stored, and not touched again while it counts. A tool killed at any instant leaves the old
//!   document or the new one.
//! - Offsets are read from the header, never assumed, so that a tool of another version finds its way.

use crate::target::maps::{Mapping, Maps};
use crate::target::memory::Memory;
use crate::{Error, RemoteAddr, Result};
use std::ops::Range;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Name of the area's memfd; the maps show it as `/memfd:ugraft:state (deleted)`.
pub const AREA_NAME: &str = "ugraft:state";

const MAGIC: [u8; 8] = *b"ugraft\x00\x01";
const VERSION: u32 = 1;
const PAGE: u64 = 4096;
const LOG_LEN: u64 = 32 * 1024;
const SLOT_LEN: u64 = 4 * 1024 * 1024;
const LOG_AT: u64 = PAGE;
const SLOTS_AT: u64 = LOG_AT + LOG_LEN;

/// Length of the area in bytes. Pages never written cost address space only.
pub const AREA_LEN: u64 = SLOTS_AT + 2 * SLOT_LEN;

const CURRENT_AT: u64 = 0x100;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    checksum: u32,
    len: u64,
    current: u64,
    log: [u64; 2],
    slots: [u64; 2],
    slot_len: u64,
}

const _: () = assert!(size_of::<Header>() == 72 && size_of::<Header>() <= CURRENT_AT as usize);

impl Header {
    fn new() -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION,
            checksum: 0,
            len: AREA_LEN,
            current: CURRENT_AT,
            log: [LOG_AT, LOG_LEN],
            slots: [SLOTS_AT, SLOTS_AT + SLOT_LEN],
            slot_len: SLOT_LEN,
        };
        header.checksum = header.computed_checksum();
        header
    }

    fn computed_checksum(&self) -> u32 {
        let mut zeroed = *self;
        zeroed.checksum = 0;
        crc32fast::hash(zeroed.as_bytes())
    }

    /// Whether every part lies inside the area, so that a damaged header cannot lead a write astray.
    fn is_sound(&self, mapped: u64) -> bool {
        let inside = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= self.len);
        self.checksum == self.computed_checksum()
            && self.len == mapped
            && inside(self.current, 8)
            && self.current.is_multiple_of(8)
            && inside(self.log[0], self.log[1])
            && self.slots.iter().all(|&at| inside(at, self.slot_len))
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SlotHeader {
    sequence: u64,
    len: u64,
    checksum: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<SlotHeader>() == 24);

/// A state area in a target.
#[derive(Clone, Debug)]
pub struct StateArea {
    base: RemoteAddr,
    header: Header,
}

impl StateArea {
    /// Finds the area among `maps`; `None` where the target has none (or one whose maker died before it was whole).
    ///
    /// # Errors
    /// [`Error::StateArea`] where there is one that cannot be understood, [`Error::Memory`] on a failed read.
    pub fn find(memory: &Memory, maps: &Maps) -> Result<Option<Self>> {
        for mapping in maps.iter().filter(|m| is_named(m, AREA_NAME) && m.offset.0 == 0) {
            let mut header = Header::new_zeroed();
            memory.read(mapping.start, header.as_mut_bytes())?;
            if header.magic == [0; 8] {
                continue;
            }
            if header.magic != MAGIC {
                return Err(Error::StateArea {
                    at: mapping.start,
                    why: "its magic number is not ugraft's".into(),
                });
            }
            if header.version != VERSION {
                let why = format!(
                    "it is of format {}, and this ugraft knows format {VERSION}: use the ugraft that made it",
                    header.version
                );
                return Err(Error::StateArea { at: mapping.start, why });
            }
            if !header.is_sound(area_len(maps, mapping)) {
                return Err(Error::StateArea { at: mapping.start, why: "its header is damaged".into() });
            }
            return Ok(Some(Self { base: mapping.start, header }));
        }
        Ok(None)
    }

    /// Finds the area among `maps`, and reads the document that counts.
    ///
    /// # Errors
    /// Those of [`StateArea::find`] and [`StateArea::document`].
    pub fn find_document(memory: &Memory, maps: &Maps) -> Result<Option<(Self, Vec<u8>)>> {
        let Some(area) = Self::find(memory, maps)? else { return Ok(None) };
        let document = area.document(memory)?;
        Ok(Some((area, document)))
    }

    /// Makes a fresh area of the zeroed mapping at `base`, [`AREA_LEN`] bytes, with `document` as the one that counts.
    ///
    /// # Errors
    /// [`Error::Memory`] on a failed write, [`Error::Limit`] where the document is too large.
    pub fn create(memory: &Memory, base: RemoteAddr, document: &[u8]) -> Result<Self> {
        let area = Self { base, header: Header::new() };
        area.commit(memory, document)?;
        // Magic last: a maker that dies before leaves a mapping that nobody takes for an area.
        memory.write(base.offset(8), &area.header.as_bytes()[8..])?;
        memory.write(base, &MAGIC)?;
        Ok(area)
    }

    /// The addresses the area covers.
    #[must_use]
    pub fn range(&self) -> Range<RemoteAddr> {
        self.base..self.base.offset(self.header.len as i64)
    }

    /// Where the log ring lies, and its length in bytes.
    #[must_use]
    pub fn log_ring(&self) -> (RemoteAddr, u64) {
        (self.at(self.header.log[0]), self.header.log[1])
    }

    /// The document that counts.
    ///
    /// # Errors
    /// [`Error::StateArea`] where it is damaged, [`Error::Memory`] on a failed read.
    pub fn document(&self, memory: &Memory) -> Result<Vec<u8>> {
        // A reader without the lock can meet a writer: the slot it is in the middle of may be written anew once
        // `current` has moved on twice. The sequence number tells, and then it looks again.
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let current = memory.read_u64(self.at(self.header.current))?;
            if let Some(document) = self.read_slot(memory, current)? {
                return Ok(document);
            }
        }
        Err(Error::StateArea { at: self.base, why: "its document is damaged".into() })
    }

    /// Makes `document` the one that counts, by one aligned store after it is written whole.
    ///
    /// # Errors
    /// [`Error::Limit`] where it is too large, [`Error::Memory`] on a failed write.
    pub fn commit(&self, memory: &Memory, document: &[u8]) -> Result<()> {
        let room = self.header.slot_len - size_of::<SlotHeader>() as u64;
        if document.len() as u64 > room {
            return Err(Error::Limit {
                what: "bytes of patch state",
                limit: room,
                wanted: document.len() as u64,
            });
        }
        let sequence = memory.read_u64(self.at(self.header.current))?.wrapping_add(1);
        let slot = SlotHeader {
            sequence,
            len: document.len() as u64,
            checksum: crc32fast::hash(document),
            reserved: 0,
        };
        let at = self.slot(sequence);
        memory.write(at, &[slot.as_bytes(), document].concat())?;
        memory.write(self.at(self.header.current), &sequence.to_le_bytes())
    }

    fn read_slot(&self, memory: &Memory, sequence: u64) -> Result<Option<Vec<u8>>> {
        let mut slot = SlotHeader::new_zeroed();
        memory.read(self.slot(sequence), slot.as_mut_bytes())?;
        let room = self.header.slot_len - size_of::<SlotHeader>() as u64;
        if slot.sequence != sequence || slot.len > room {
            return Ok(None);
        }
        let start = self.slot(sequence).offset(size_of::<SlotHeader>() as i64);
        let document = memory.read_vec(start, slot.len as usize)?;
        Ok((crc32fast::hash(&document) == slot.checksum).then_some(document))
    }

    fn slot(&self, sequence: u64) -> RemoteAddr {
        self.at(self.header.slots[(sequence & 1) as usize])
    }

    fn at(&self, offset: u64) -> RemoteAddr {
        self.base.offset(offset as i64)
    }
}

/// Whether `mapping` is of a memfd called `name`.
#[must_use]
pub fn is_named(mapping: &Mapping, name: &str) -> bool {
    mapping.name.strip_prefix("/memfd:").and_then(|n| n.strip_suffix(" (deleted)")) == Some(name)
}

/// The length of the area that begins with `first`: protections may have split it into several mappings.
fn area_len(maps: &Maps, first: &Mapping) -> u64 {
    let mut end = first.end;
    for m in maps.iter().filter(|m| m.inode == first.inode && m.dev == first.dev) {
        if m.start == end {
            end = m.end;
        }
    }
    end.0 - first.start.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pid;
    use std::fs::OpenOptions;

    fn own_memory() -> Memory {
        let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
        Memory::new(Pid(std::process::id() as i32), file)
    }

    fn leaked_area() -> RemoteAddr {
        RemoteAddr(Vec::leak(vec![0u64; AREA_LEN as usize / 8]).as_ptr() as u64)
    }

    #[test]
    fn the_last_committed_document_counts() {
        let memory = own_memory();
        let area = StateArea::create(&memory, leaked_area(), b"one").unwrap();
        assert_eq!(area.document(&memory).unwrap(), b"one");
        area.commit(&memory, b"two, which is longer").unwrap();
        assert_eq!(area.document(&memory).unwrap(), b"two, which is longer");
        area.commit(&memory, b"").unwrap();
        assert_eq!(area.document(&memory).unwrap(), b"");
    }

    #[test]
    fn a_document_half_written_does_not_count() {
        let memory = own_memory();
        let area = StateArea::create(&memory, leaked_area(), b"whole").unwrap();
        let next = area.slot(memory.read_u64(area.at(CURRENT_AT)).unwrap() + 1);
        memory.write(next, &[0xff; 64]).unwrap();
        assert_eq!(area.document(&memory).unwrap(), b"whole");
    }

    #[test]
    fn a_damaged_document_is_reported() {
        let memory = own_memory();
        let area = StateArea::create(&memory, leaked_area(), b"whole").unwrap();
        let current = memory.read_u64(area.at(CURRENT_AT)).unwrap();
        memory.write(area.slot(current).offset(size_of::<SlotHeader>() as i64), b"W").unwrap();
        assert!(matches!(area.document(&memory), Err(Error::StateArea { .. })));
    }

    #[test]
    fn a_document_beyond_its_slot_is_refused_and_the_old_one_counts() {
        let memory = own_memory();
        let area = StateArea::create(&memory, leaked_area(), b"small").unwrap();
        assert!(matches!(area.commit(&memory, &vec![0; SLOT_LEN as usize]), Err(Error::Limit { .. })));
        assert_eq!(area.document(&memory).unwrap(), b"small");
    }

    #[test]
    fn a_damaged_header_is_not_sound() {
        assert!(Header::new().is_sound(AREA_LEN));
        let mut header = Header::new();
        header.slots[1] = AREA_LEN;
        assert!(!header.is_sound(AREA_LEN));
        header.checksum = header.computed_checksum();
        assert!(!header.is_sound(AREA_LEN));
        assert!(!Header::new().is_sound(AREA_LEN - PAGE));
    }
}
