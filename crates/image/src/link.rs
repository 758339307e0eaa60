//! Links a verified patch for its place in a target: resolves what it wants from there, fills the GOT and the PLT and
//! applies the relocations. The result is bytes to copy; it is checked against the patch before it is handed out.

use crate::RemoteAddr;
use crate::error::{Error, Result};
use crate::klp_symbol::KlpSymbol;
use crate::layout::{GOT_ENTRY, PLT_ENTRY};
use crate::limits::PAGE_SIZE;
use crate::linked::{LinkedImage, Reference, Segment};
use crate::patch::PatchFile;
use crate::reloc::{Kind, Reloc};
use crate::sections::Part;
use crate::structures::Spot;
use crate::symbols::{Import, Place};
use crate::unwind;

/// The end of the addresses that user space can have with four-level page tables.
const USER_END: u64 = 1 << 47;
/// What 32-bit absolute addresses, sign-extended, reach.
const LOW_END: u64 = 1 << 31;
/// Fills what no instruction reaches in the text: `int3`.
const TRAP: u8 = 0xcc;

/// What a target says about a symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Its address; for an IFUNC that of the chosen implementation.
    Address(RemoteAddr),
    /// Its address now, or 0, in an object that may come and go while the patch is loaded: the image reaches it through words that can
    /// be written anew ([`crate::linked::Reference`]).
    Movable(RemoteAddr),
    /// A thread-local variable in the static TLS block: its offset from the thread pointer (the fs base), negative on
    /// x86-64. The same in every thread.
    TpOffset(i64),
    /// The target has no such symbol. For a weak one that means 0.
    NotFound,
    /// It cannot be said, or not used, for this reason ("there are 3 of that name").
    Refused(String),
}

/// Finds the patch's undefined symbols in the target.
pub trait Resolve {
    /// An ordinary symbol, to be found as the target's own loader would: in the global scope, in order, in the version
    /// that `import` states if it states one.
    fn symbol(&mut self, import: &Import) -> Resolution;
    /// A symbol of one object by its place in that object's symbol table, exported or not.
    fn klp_symbol(&mut self, klp: &KlpSymbol, import: &Import) -> Resolution;
}

/// Links `patch` for `base`, which must be page-aligned and free for [`crate::Layout::size`] bytes, and below 2 GiB if the layout
/// says so. All missing symbols are reported in one error.
pub fn link(patch: &PatchFile, base: RemoteAddr, resolve: &mut dyn Resolve) -> Result<LinkedImage> {
    check_base(patch, base)?;
    let imports = resolve_all(patch, resolve)?;
    let at = Addresses { patch, base, imports: &imports };
    let mut references = Vec::new();
    let mut segments = copy(patch, base);
    let mut write = |addr: RemoteAddr, bytes: &[u8]| -> Result<()> {
        let place = segments.iter_mut().find_map(|s| {
            let start = usize::try_from(addr.0.checked_sub(s.addr.0)?).ok()?;
            s.bytes.get_mut(start..start.checked_add(bytes.len())?)
        });
        match place {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::Check { address: addr, what: "a write outside the image".into() }),
        }
    };
    for (n, (symbol, tls)) in (0..).zip(&patch.slots.got) {
        let value = if *tls { at.tp_offset(*symbol)? as u64 } else { at.symbol(*symbol)?.0 };
        write(at.got_entry(n), &value.to_le_bytes())?;
        references.extend(at.movable(*symbol).map(|(import, _)| Reference {
            import,
            word: at.got_entry(n),
            addend: 0,
        }));
    }
    for (n, symbol) in (0..).zip(&patch.slots.plt) {
        let entry = at.plt_entry(n);
        let got = at.got_of(*symbol, false)?;
        write(entry, &plt_entry(entry, got))?;
    }
    for (index, section) in (0..).zip(&patch.sections) {
        for reloc in &section.relocs {
            let place = at.spot(Spot { section: index, offset: reloc.offset });
            let (value, relaxed) =
                at.value(reloc, place).map_err(|e| e.into_error(patch, &section.name, reloc))?;
            if reloc.kind == Kind::Abs64 {
                let import = at.movable(reloc.symbol).map(|(import, _)| import);
                references.extend(import.map(|import| Reference {
                    import,
                    word: place,
                    addend: reloc.addend,
                }));
            }
            if relaxed {
                // lea reg, [rip+symbol] -> mov reg, [rip+entry of the GOT]; the opcode is two bytes before the operand.
                write(place.offset(-2), &[0x8b])?;
            }
            match reloc.kind.width() {
                8 => write(place, &value.to_le_bytes())?,
                _ => write(place, &(value as u32).to_le_bytes())?,
            }
        }
    }
    let index = index_tables(patch, base, &mut segments)?;
    let mut image = LinkedImage::describe(patch, &at, segments, &imports, index);
    image.references = references;
    crate::check::check(patch, &image)?;
    Ok(image)
}

/// Writes the index of the linked unwind tables; where it lies, and its size.
fn index_tables(
    patch: &PatchFile,
    base: RemoteAddr,
    segments: &mut [Segment],
) -> Result<Option<(RemoteAddr, u64)>> {
    let layout = patch.layout();
    let (Some((tables, len)), Some((index, room))) = (layout.eh_frame, layout.eh_frame_hdr) else {
        return Ok(None);
    };
    let (tables, at) = (base.offset(tables as i64), base.offset(index as i64));
    let missing = || Error::Check { address: at, what: "the unwind tables' index lies outside".into() };
    let holds = |s: &&mut Segment| s.addr <= at && at < s.addr.offset(s.bytes.len() as i64);
    let segment = segments.iter_mut().find(holds).ok_or_else(missing)?;
    let place = |addr: RemoteAddr| addr.distance_from(segment.addr) as usize;
    let (from, to) = (place(tables), place(at));
    let bytes = segment.bytes.get(from..from + len as usize).ok_or_else(missing)?;
    let index = unwind::index(at, tables, bytes, room);
    segment.bytes.get_mut(to..to + index.len()).ok_or_else(missing)?.copy_from_slice(&index);
    Ok(Some((at, index.len() as u64)))
}

fn check_base(patch: &PatchFile, base: RemoteAddr) -> Result<()> {
    let size = patch.layout().size;
    let wrong = |reason| Err(Error::Base { base, size, reason });
    let end = base.0.checked_add(size);
    if !base.0.is_multiple_of(PAGE_SIZE) {
        return wrong("it is not the beginning of a page");
    }
    if base.0 == 0 || end.is_none_or(|e| e > USER_END) {
        return wrong("a process cannot have such addresses");
    }
    if patch.layout().below_2g.is_some() && end.is_none_or(|e| e > LOW_END) {
        return wrong(
            "it holds 32-bit addresses of itself and must lie below 2 GiB: compile with -fPIC to lift that",
        );
    }
    Ok(())
}

fn resolve_all(patch: &PatchFile, resolve: &mut dyn Resolve) -> Result<Vec<Resolution>> {
    let mut missing = Vec::new();
    let mut missing_klp = false;
    let mut found = Vec::with_capacity(patch.imports().len());
    for import in patch.imports() {
        let resolution = match &import.klp {
            Some(klp) => resolve.klp_symbol(klp, import),
            None => resolve.symbol(import),
        };
        let resolution = match resolution {
            Resolution::NotFound if import.weak && !import.usage.tls => Resolution::Address(RemoteAddr(0)),
            Resolution::NotFound => {
                missing_klp |= import.klp.is_some();
                missing.push(format!("`{}`", import.display_name()));
                continue;
            }
            Resolution::Refused(reason) => {
                missing_klp |= import.klp.is_some();
                missing.push(format!("`{}` ({reason})", import.display_name()));
                continue;
            }
            found => found,
        };
        let mismatch = |is, used| Err(Error::TlsMismatch { symbol: import.display_name(), is, used });
        match resolution {
            Resolution::TpOffset(_) if import.usage.called || import.usage.addressed => {
                return mismatch("thread-local", "an ordinary function or variable");
            }
            Resolution::Address(_) | Resolution::Movable(_) if import.usage.tls => {
                return mismatch("not thread-local", "a thread-local variable");
            }
            _ => found.push(resolution),
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    let way = if missing_klp {
        "check the object's and the symbol's name and its position"
    } else {
        "check the spelling; what the target has but does not export is bound by KLP_SYMBOL"
    };
    Err(Error::Unresolved { symbols: missing, way })
}

/// The segments with the sections' unlinked bytes in place.
fn copy(patch: &PatchFile, base: RemoteAddr) -> Vec<Segment> {
    let mut segments: Vec<Segment> = patch
        .layout()
        .segments
        .iter()
        .map(|s| Segment {
            part: s.part,
            addr: base.offset(s.offset as i64),
            bytes: vec![if s.part == Part::Text { TRAP } else { 0 }; s.file_size as usize],
            mem_size: s.mem_size,
        })
        .collect();
    for section in &patch.sections {
        let start = section.offset as usize;
        if let Some(segment) = segments.iter_mut().find(|s| s.part == section.part)
            && let Some(place) = segment.bytes.get_mut(start..start + section.bytes.len())
        {
            place.copy_from_slice(&section.bytes);
        }
    }
    segments
}

/// `jmp *got(%rip)`, `int3`, `int3`. No endbr64: it is only jumped to directly.
fn plt_entry(entry: RemoteAddr, got: RemoteAddr) -> [u8; PLT_ENTRY as usize] {
    let distance = (got.distance_from(entry) - 6) as i32;
    let d = distance.to_le_bytes();
    [0xff, 0x25, d[0], d[1], d[2], d[3], TRAP, TRAP]
}

/// Why a relocation cannot be applied.
pub(crate) enum Unfit {
    /// The value does not fit.
    Reach(RemoteAddr),
    /// The value may change, and the place cannot be written anew.
    Fixed,
    Other(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Unfit {
    fn into_error(self, patch: &PatchFile, section: &str, reloc: &Reloc) -> Error {
        let address = match self {
            Self::Other(error) => return error,
            Self::Reach(address) => address,
            Self::Fixed => {
                return Error::Movable {
                    section: section.to_string(),
                    offset: reloc.offset,
                    symbol: patch.symbol_name(reloc.symbol),
                    kind: reloc.kind.name(),
                    way: match reloc.kind {
                        Kind::Branch => "call the function itself, not a place within it",
                        _ => "compile with -fPIC (it is reached through the GOT then)",
                    },
                };
            }
        };
        let own = !matches!(patch.symbols[reloc.symbol as usize].place, Place::Import(_));
        let way = match reloc.kind {
            Kind::Abs32 | Kind::Abs32S | Kind::Pc32 | Kind::Lea if !own => {
                "compile with -fPIC (a variable: reached through the GOT then)"
            }
            Kind::Abs32 | Kind::Abs32S => "compile with -fPIC",
            Kind::Branch => "call the function itself, not a place within it",
            Kind::TpOff32 => "compile with -fPIC -ftls-model=initial-exec",
            _ => "compile with -fPIC, or with -mcmodel=large",
        };
        Error::OutOfReach {
            section: section.to_string(),
            offset: reloc.offset,
            symbol: patch.symbol_name(reloc.symbol),
            address,
            kind: reloc.kind.name(),
            way,
        }
    }
}

/// Where everything lies.
pub(crate) struct Addresses<'a> {
    pub patch: &'a PatchFile,
    pub base: RemoteAddr,
    pub imports: &'a [Resolution],
}

impl Addresses<'_> {
    pub fn got(&self) -> RemoteAddr {
        self.base.offset(self.patch.layout().got as i64)
    }

    pub fn got_entry(&self, n: u32) -> RemoteAddr {
        self.got().offset(i64::from(n) * GOT_ENTRY as i64)
    }

    pub fn plt_entry(&self, n: u32) -> RemoteAddr {
        self.base.offset((self.patch.layout().plt + u64::from(n) * PLT_ENTRY) as i64)
    }

    pub fn got_of(&self, symbol: u32, tls: bool) -> Result<RemoteAddr> {
        match self.patch.slots.got_of.get(&(symbol, tls)) {
            Some(n) => Ok(self.got_entry(*n)),
            None => Err(Error::Check { address: self.got(), what: "a GOT entry is missing".into() }),
        }
    }

    pub fn spot(&self, spot: Spot) -> RemoteAddr {
        let section = &self.patch.sections[spot.section as usize];
        let in_image = self.patch.layout().part(section.part) + section.offset;
        RemoteAddr(self.base.0.wrapping_add(in_image).wrapping_add(spot.offset))
    }

    /// S: a symbol's address.
    pub fn symbol(&self, symbol: u32) -> Result<RemoteAddr> {
        match self.patch.symbols[symbol as usize].place {
            Place::Section { section, offset } => Ok(self.spot(Spot { section, offset })),
            Place::Absolute(value) => Ok(RemoteAddr(value)),
            Place::Got => Ok(self.got()),
            Place::Import(import) => match self.imports.get(import as usize) {
                Some(Resolution::Address(address) | Resolution::Movable(address)) => Ok(*address),
                _ => Err(self.unplaced(symbol)),
            },
            Place::Dropped(_) | Place::Unused => Err(self.unplaced(symbol)),
        }
    }

    /// Which import a symbol is, and its address or 0, where that may change.
    pub fn movable(&self, symbol: u32) -> Option<(usize, RemoteAddr)> {
        let Place::Import(import) = self.patch.symbols[symbol as usize].place else { return None };
        match self.imports.get(import as usize) {
            Some(Resolution::Movable(address)) => Some((import as usize, *address)),
            _ => None,
        }
    }

    /// T: a thread-local symbol's offset from the thread pointer.
    pub fn tp_offset(&self, symbol: u32) -> Result<i64> {
        match self.patch.symbols[symbol as usize].place {
            Place::Import(import) => match self.imports.get(import as usize) {
                Some(Resolution::TpOffset(offset)) => Ok(*offset),
                _ => Err(self.unplaced(symbol)),
            },
            _ => Err(self.unplaced(symbol)),
        }
    }

    fn unplaced(&self, symbol: u32) -> Error {
        Error::Check {
            address: self.base,
            what: format!("`{}` has no address", self.patch.symbol_name(symbol)),
        }
    }

    /// What a relocation writes, in the low bytes, and whether its `lea` becomes a `mov`.
    fn value(&self, reloc: &Reloc, place: RemoteAddr) -> Result<(u64, bool), Unfit> {
        let Reloc { kind, symbol, addend, .. } = *reloc;
        let s = || self.symbol(symbol);
        let pc = |target: RemoteAddr| target.offset(addend).distance_from(place);
        let signed = |value: i64, of: RemoteAddr| {
            i32::try_from(value).map(|v| v as u32 as u64).map_err(|_| Unfit::Reach(of))
        };
        let unsigned =
            |value: u64, of: RemoteAddr| u32::try_from(value).map(u64::from).map_err(|_| Unfit::Reach(of));
        let movable = self.movable(symbol);
        let by_word =
            matches!(kind, Kind::Abs64 | Kind::Lea | Kind::GotPcRel | Kind::GotPcRel64 | Kind::Got64)
                || kind == Kind::Branch && addend == -4;
        if movable.is_some() && !by_word {
            return Err(Unfit::Fixed);
        }
        let value = match kind {
            Kind::Abs64 => s()?.offset(addend).0,
            Kind::Abs32 => unsigned(s()?.offset(addend).0, s()?)?,
            Kind::Abs32S => signed(s()?.offset(addend).0 as i64, s()?)?,
            Kind::Pc32 => signed(pc(s()?), s()?)?,
            Kind::Pc64 => pc(s()?) as u64,
            Kind::Branch => {
                let direct = match movable {
                    Some((_, address)) if addend == -4 => Err(Unfit::Reach(address)),
                    _ => signed(pc(s()?), s()?),
                };
                match self.patch.slots.plt_of.get(&symbol) {
                    // Beyond the entry's beginning there is nothing of the function.
                    Some(n) if direct.is_err() && addend == -4 => signed(pc(self.plt_entry(*n)), s()?)?,
                    _ => direct?,
                }
            }
            Kind::Lea => match signed(pc(s()?), s()?) {
                Ok(value) if movable.is_none() => value,
                _ => return Ok((signed(pc(self.got_of(symbol, false)?), s()?)?, true)),
            },
            Kind::GotPcRel => signed(pc(self.got_of(symbol, false)?), s()?)?,
            Kind::GotPcRel64 => pc(self.got_of(symbol, false)?) as u64,
            Kind::Got64 => self.got_of(symbol, false)?.offset(addend).distance_from(self.got()) as u64,
            Kind::GotOff64 | Kind::PltOff64 => s()?.offset(addend).distance_from(self.got()) as u64,
            Kind::GotPc32 => signed(pc(self.got()), self.got())?,
            Kind::GotPc64 => pc(self.got()) as u64,
            Kind::TpOff32 => {
                let t = self.tp_offset(symbol)?;
                signed(t.wrapping_add(addend), RemoteAddr(t as u64))?
            }
            Kind::TpOff64 => self.tp_offset(symbol)?.wrapping_add(addend) as u64,
            Kind::GotTpOff => {
                let got = self.got_of(symbol, true)?;
                signed(pc(got), got)?
            }
            Kind::Size32 => {
                let size = self.patch.symbols[symbol as usize].size.wrapping_add_signed(addend);
                unsigned(size, RemoteAddr(size))?
            }
            Kind::Size64 => self.patch.symbols[symbol as usize].size.wrapping_add_signed(addend),
        };
        Ok((value, false))
    }
}
