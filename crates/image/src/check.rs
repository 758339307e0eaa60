//! Re-reads a linked image and follows what it says, independently of how it was written: every relocated place must lead
//! to its symbol, directly or through an entry of the GOT or PLT; every other byte must be the file's.

use crate::RemoteAddr;
use crate::error::{Error, Result};
use crate::layout::{GOT_ENTRY, PLT_ENTRY};
use crate::limits::PAGE_SIZE;
use crate::link::Addresses;
use crate::linked::LinkedImage;
use crate::patch::PatchFile;
use crate::reloc::{Kind, Reloc};
use crate::structures::Spot;
use crate::unwind;

/// Checks `image` against the patch that it was linked from. [`crate::link()`] has done so with what it hands out.
pub fn check(patch: &PatchFile, image: &LinkedImage) -> Result<()> {
    check_segments(image)?;
    let at = Addresses { patch, base: image.base, imports: &image.imports };
    let checker = Checker { patch, image, at };
    for (index, section) in (0..).zip(&patch.sections) {
        let start = checker.at.spot(Spot { section: index, offset: 0 });
        let mut unchanged = 0;
        for reloc in &section.relocs {
            let place = start.offset(reloc.offset as i64);
            let relaxed = checker.relocated(reloc, place)?;
            // A relaxed lea has its opcode changed, two bytes before the operand.
            let skip = if relaxed { 2 } else { 0 };
            checker.same(start, &section.bytes, unchanged, reloc.offset - skip)?;
            if relaxed {
                checker.same(start, &section.bytes, reloc.offset - 1, reloc.offset)?;
            }
            unchanged = reloc.offset + reloc.kind.width();
        }
        checker.same(start, &section.bytes, unchanged, section.bytes.len() as u64)?;
    }
    check_index(patch, image)
}

/// The index of the unwind tables is that of the tables as they are.
fn check_index(patch: &PatchFile, image: &LinkedImage) -> Result<()> {
    let (Some((tables, len)), Some((at, size)), Some((_, room))) =
        (image.eh_frame, image.eh_frame_hdr, patch.layout().eh_frame_hdr)
    else {
        return Ok(());
    };
    let bytes = image.bytes(tables, len as usize).unwrap_or_default();
    if image.bytes(at, size as usize) == Some(unwind::index(at, tables, bytes, room).as_slice()) {
        Ok(())
    } else {
        wrong(at, "the index of the unwind tables is not theirs")
    }
}

fn wrong<T>(address: RemoteAddr, what: impl Into<String>) -> Result<T> {
    Err(Error::Check { address, what: what.into() })
}

fn check_segments(image: &LinkedImage) -> Result<()> {
    let mut end = image.base;
    let mut last = None;
    for segment in &image.segments {
        if segment.addr != end
            || !segment.addr.0.is_multiple_of(PAGE_SIZE)
            || segment.bytes.len() as u64 > segment.mem_size
        {
            return wrong(segment.addr, "a segment lies wrong");
        }
        if last.is_some_and(|l| l >= segment.part) {
            return wrong(segment.addr, "the segments' order is wrong");
        }
        last = Some(segment.part);
        end = end.offset(segment.mem_size.next_multiple_of(PAGE_SIZE) as i64);
    }
    if end.distance_from(image.base) as u64 != image.size {
        return wrong(end, "the size is wrong");
    }
    Ok(())
}

struct Checker<'a> {
    patch: &'a PatchFile,
    image: &'a LinkedImage,
    at: Addresses<'a>,
}

impl Checker<'_> {
    /// The bytes `from..to` of a section are as in the file.
    fn same(&self, start: RemoteAddr, bytes: &[u8], from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let addr = start.offset(from as i64);
        if self.image.bytes(addr, (to - from) as usize) == bytes.get(from as usize..to as usize) {
            Ok(())
        } else {
            wrong(addr, "bytes differ from the file's")
        }
    }

    fn word(&self, addr: RemoteAddr) -> Result<u64> {
        match self.image.bytes(addr, 8).and_then(|b| b.try_into().ok()) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes)),
            None => wrong(addr, "outside the image"),
        }
    }

    fn half(&self, addr: RemoteAddr) -> Result<u32> {
        match self.image.bytes(addr, 4).and_then(|b| b.try_into().ok()) {
            Some(bytes) => Ok(u32::from_le_bytes(bytes)),
            None => wrong(addr, "outside the image"),
        }
    }

    /// What the GOT entry at `addr` holds.
    fn got(&self, addr: RemoteAddr) -> Result<u64> {
        let offset = addr.0.wrapping_sub(self.at.got().0);
        if offset >= self.patch.slots.got.len() as u64 * GOT_ENTRY || !offset.is_multiple_of(GOT_ENTRY) {
            return wrong(addr, "is no entry of the GOT");
        }
        self.word(addr)
    }

    /// Whether an entry of the PLT begins at `addr`.
    fn in_plt(&self, addr: RemoteAddr) -> bool {
        let offset = addr.0.wrapping_sub(self.at.plt_entry(0).0);
        offset < self.patch.slots.plt.len() as u64 * PLT_ENTRY && offset.is_multiple_of(PLT_ENTRY)
    }

    /// Where a jump to the PLT entry at `addr` arrives.
    fn through_plt(&self, addr: RemoteAddr) -> Result<RemoteAddr> {
        if self.image.bytes(addr, 2) != Some(&[0xff, 0x25]) {
            return wrong(addr, "a PLT entry is not a jump");
        }
        let distance = self.half(addr.offset(2))? as i32;
        self.got(addr.offset(6 + i64::from(distance))).map(RemoteAddr)
    }

    /// Follows one relocated place. Says whether its instruction was changed.
    fn relocated(&self, reloc: &Reloc, place: RemoteAddr) -> Result<bool> {
        let addend = reloc.addend;
        let symbol = || self.at.symbol(reloc.symbol);
        let signed = || -> Result<i64> {
            Ok(match reloc.kind.width() {
                8 => self.word(place)? as i64,
                _ => i64::from(self.half(place)? as i32),
            })
        };
        // What a PC-relative operand leads to, the addend taken away.
        let leads_to = || -> Result<RemoteAddr> { Ok(place.offset(signed()?).offset(addend.wrapping_neg())) };
        let from_got =
            || -> Result<RemoteAddr> { Ok(self.at.got().offset(signed()?).offset(addend.wrapping_neg())) };
        let mut changed = false;
        let good = match reloc.kind {
            Kind::Abs64 | Kind::Abs32S => RemoteAddr(signed()? as u64) == symbol()?.offset(addend),
            Kind::Abs32 => RemoteAddr(u64::from(self.half(place)?)) == symbol()?.offset(addend),
            Kind::Pc32 | Kind::Pc64 => leads_to()? == symbol()?,
            Kind::Branch => {
                let target = leads_to()?;
                let direct = target == symbol()? && (self.at.movable(reloc.symbol).is_none() || addend != -4);
                direct || self.in_plt(target) && self.through_plt(target)? == symbol()?
            }
            Kind::Lea => match self.image.bytes(place.offset(-2), 1) {
                Some([0x8d]) => self.at.movable(reloc.symbol).is_none() && leads_to()? == symbol()?,
                Some([0x8b]) => {
                    changed = true;
                    RemoteAddr(self.got(leads_to()?)?) == symbol()?
                }
                _ => false,
            },
            Kind::GotPcRel | Kind::GotPcRel64 => RemoteAddr(self.got(leads_to()?)?) == symbol()?,
            Kind::Got64 => RemoteAddr(self.got(from_got()?)?) == symbol()?,
            Kind::GotOff64 | Kind::PltOff64 => from_got()? == symbol()?,
            Kind::GotPc32 | Kind::GotPc64 => leads_to()? == self.at.got(),
            Kind::TpOff32 | Kind::TpOff64 => {
                signed()? == self.at.tp_offset(reloc.symbol)?.wrapping_add(addend)
            }
            Kind::GotTpOff => self.got(leads_to()?)? as i64 == self.at.tp_offset(reloc.symbol)?,
            Kind::Size32 | Kind::Size64 => {
                let size = self.patch.symbols[reloc.symbol as usize].size.wrapping_add_signed(addend);
                if reloc.kind.width() == 8 {
                    self.word(place)? == size
                } else {
                    u64::from(self.half(place)?) == size
                }
            }
        };
        if good {
            Ok(changed)
        } else {
            wrong(place, format!("{} of `{}`", reloc.kind.name(), self.patch.symbol_name(reloc.symbol)))
        }
    }
}
