//! A patch file, verified whole: whatever can be said against it without a target has been said when a [`PatchFile`]
//! exists.

use crate::error::{Error, Result};
use crate::info;
use crate::klp_symbol::{self, KlpSymbol};
use crate::layout::{self, Layout};
use crate::limits;
use crate::metadata::Metadata;
use crate::raw::{RawElf, RawPlace, RawSymbol};
use crate::reloc::{self, Kind};
use crate::sections::{self, Fate, Part, Section};
use crate::structures::{Reader, Spot, Structures};
use object::elf;
use std::collections::HashMap;
use std::ops::Range;

/// The GOT's address under the name that compilers use for it.
const GOT_SYMBOL: &str = "_GLOBAL_OFFSET_TABLE_";
/// What C++ objects name themselves by when they register a destructor.
const DSO_HANDLE: &str = "__dso_handle";

/// A patch file, verified whole.
#[derive(Debug, Clone)]
pub struct PatchFile {
    pub(crate) sections: Vec<Section>,
    /// By the file's symbol indices.
    pub(crate) symbols: Vec<Symbol>,
    /// The string table that the symbols' names are ranges of.
    strings: Vec<u8>,
    pub(crate) imports: Vec<Import>,
    pub(crate) slots: Slots,
    pub(crate) structures: Structures,
    metadata: Metadata,
    layout: Layout,
}

/// What kind of thing a symbol of the patch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SymbolKind {
    Func,
    Other,
}

/// Where a symbol lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the image.
    Section { section: u32, offset: u64 },
    /// A number.
    Absolute(u64),
    /// In the target.
    Import(u32),
    /// The beginning of the image's own GOT.
    Got,
    /// In this section of the file, which is not in the image.
    Dropped(u32),
    /// Undefined and never referred to.
    Unused,
}

#[derive(Debug, Clone)]
pub(crate) struct Symbol {
    pub name: Range<usize>,
    pub place: Place,
    pub size: u64,
    pub kind: SymbolKind,
}

/// A symbol that the patch wants from the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Its name without a version; for a klp symbol the whole spelling.
    pub name: String,
    /// The version that the object states (`name@VERSION`).
    pub version: Option<String>,
    /// Weak: may be missing, and is then 0.
    pub weak: bool,
    /// Where to look, if it is a `.klp.sym.` name.
    pub klp: Option<KlpSymbol>,
    /// How the code uses it.
    pub usage: Usage,
}

/// How the code of the patch uses a symbol of the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Called or jumped to.
    pub called: bool,
    /// Its address is taken or its content accessed.
    pub addressed: bool,
    /// As a thread-local variable.
    pub tls: bool,
    /// By an instruction that reaches 2 GiB only and has no way round: the image must lie that near.
    pub near: bool,
    /// As a 32-bit absolute address: it must lie below 2 GiB itself.
    pub low: bool,
}

impl Import {
    /// The name as a person would write it.
    #[must_use]
    pub fn display_name(&self) -> String {
        match (&self.klp, &self.version) {
            (Some(klp), _) => klp.to_string(),
            (None, Some(version)) => format!("{}@{version}", self.name),
            (None, None) => self.name.clone(),
        }
    }
}

/// Which symbols have an entry of the GOT or the PLT. An entry's number is its position.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots {
    /// Symbol, and whether the entry holds an offset from the thread pointer.
    pub got: Vec<(u32, bool)>,
    pub got_of: HashMap<(u32, bool), u32>,
    pub plt: Vec<u32>,
    pub plt_of: HashMap<u32, u32>,
}

impl Slots {
    fn want_got(&mut self, symbol: u32, tls: bool) {
        let next = self.got.len() as u32;
        self.got_of.entry((symbol, tls)).or_insert_with(|| {
            self.got.push((symbol, tls));
            next
        });
    }

    fn want_plt(&mut self, symbol: u32) {
        let next = self.plt.len() as u32;
        self.plt_of.entry(symbol).or_insert_with(|| {
            self.plt.push(symbol);
            next
        });
        self.want_got(symbol, false);
    }
}

impl PatchFile {
    /// Verifies the file `bytes` and reads what it says about itself. `stem` is the file's name without directory and
    /// ending, the patch's name unless the file states one.
    pub fn parse(bytes: &[u8], stem: &str) -> Result<Self> {
        let elf = RawElf::parse(bytes)?;
        sections::check_maker(&elf)?;
        let fates = elf.sections.iter().map(sections::fate).collect::<Result<Vec<_>>>()?;
        let (mut kept, index_of) = keep(&elf, &fates);
        let mut symbols = place_symbols(&elf, &index_of, &mut kept)?;
        let mut imports = Imports {
            elf: &elf,
            list: Vec::new(),
            by_name: HashMap::new(),
            own: own_symbols(&elf, &symbols),
        };
        let mark = read_relocations(&elf, &fates, &index_of, &mut kept, &mut symbols, &mut imports)?;
        let imports = imports.list;

        let mark = marked(mark, &symbols, &elf)?;
        let info = info::parse(elf.sections.iter().zip(&fates).filter_map(|(s, fate)| {
            (*fate == Fate::Metadata && s.name == sections::INFO_SECTION).then_some(s.bytes)
        }))?;
        let name_of = |symbol: u32| elf.name(&elf.symbols[symbol as usize]).to_string();
        let functions = functions(&symbols, &elf);
        let objects = data_objects(&symbols, &elf);
        let reader = Reader {
            sections: &kept,
            symbols: &symbols,
            name: &name_of,
            functions: &functions,
            objects: &objects,
        };
        let (metadata, structures) = reader.read(mark, info, stem)?;

        let slots = wanted_slots(&kept, &symbols);
        let below_2g = needs_low(&kept, &symbols);
        let layout = layout::assign(&mut kept, slots.plt.len() as u64, slots.got.len() as u64, below_2g)?;
        Ok(Self {
            sections: kept,
            symbols,
            strings: elf.strings.to_vec(),
            imports,
            slots,
            structures,
            metadata,
            layout,
        })
    }

    /// What the patch says about itself.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// How much room the image takes, how it is divided, and where it may lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The symbols that the image wants from the target, each once.
    #[must_use]
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// A symbol's name; a section's for a symbol that stands for one.
    pub(crate) fn symbol_name(&self, symbol: u32) -> String {
        let of = &self.symbols[symbol as usize];
        let name = self.strings.get(of.name.clone()).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("");
        match of.place {
            Place::Section { section, .. } if name.is_empty() => self.sections[section as usize].name.clone(),
            Place::Import(import) => self.imports[import as usize].display_name(),
            _ => name.to_string(),
        }
    }
}

/// Collects the sections of the image, and the mapping from the file's section indices to theirs.
fn keep(elf: &RawElf<'_>, fates: &[Fate]) -> (Vec<Section>, Vec<Option<u32>>) {
    let mut kept = Vec::new();
    let mut index_of = vec![None; elf.sections.len()];
    for (index, (section, fate)) in elf.sections.iter().zip(fates).enumerate() {
        let Fate::Kept(part) = *fate else { continue };
        index_of[index] = Some(kept.len() as u32);
        kept.push(Section {
            name: section.name.to_string(),
            part,
            offset: 0,
            bytes: section.bytes.to_vec(),
            size: section.size,
            align: section.align,
            eh_frame: section.name == ".eh_frame" || section.kind == elf::SHT_X86_64_UNWIND,
            relocs: Vec::new(),
        });
    }
    (kept, index_of)
}

/// Says where each symbol lies. Symbols that have no section yet (common ones) get one; undefined ones are `Unused`
/// until a relocation refers to them.
fn place_symbols(elf: &RawElf<'_>, index_of: &[Option<u32>], kept: &mut Vec<Section>) -> Result<Vec<Symbol>> {
    let mut symbols = Vec::with_capacity(elf.symbols.len());
    for (index, raw) in elf.symbols.iter().enumerate() {
        let name = || elf.name(raw).to_string();
        let defined = raw.place != RawPlace::Undefined;
        if raw.kind == elf::STT_GNU_IFUNC && defined {
            return Err(Error::IfuncDefinition { symbol: name() });
        }
        if raw.kind == elf::STT_TLS && defined {
            return Err(Error::OwnTls { name: name() });
        }
        let place = match raw.place {
            RawPlace::Undefined => Place::Unused,
            RawPlace::Absolute => Place::Absolute(raw.value),
            RawPlace::Common => {
                // For common symbols st_value is the alignment.
                let align = raw.value.max(1);
                if !align.is_power_of_two() {
                    return Err(Error::damaged(
                        format!("symbol {index}"),
                        "has an alignment that is no power of two",
                    ));
                }
                if align > limits::MAX_ALIGN {
                    return Err(Error::Alignment { section: format!("COMMON ({})", name()), align });
                }
                kept.push(Section {
                    name: "COMMON".into(),
                    part: Part::Data,
                    offset: 0,
                    bytes: Vec::new(),
                    size: raw.size,
                    align,
                    eh_frame: false,
                    relocs: Vec::new(),
                });
                Place::Section { section: kept.len() as u32 - 1, offset: 0 }
            }
            RawPlace::Section(section) => match index_of[section as usize] {
                Some(section) => Place::Section { section, offset: raw.value },
                None => Place::Dropped(section),
            },
        };
        let kind = if raw.kind == elf::STT_FUNC { SymbolKind::Func } else { SymbolKind::Other };
        symbols.push(Symbol { name: raw.name.clone(), place, size: raw.size, kind });
    }
    Ok(symbols)
}

/// The patch's own global symbols by name: they go before the target's.
fn own_symbols<'a>(elf: &RawElf<'a>, symbols: &[Symbol]) -> HashMap<&'a str, Place> {
    let mut own = HashMap::new();
    for (raw, symbol) in elf.symbols.iter().zip(symbols) {
        if raw.binding != elf::STB_LOCAL && matches!(symbol.place, Place::Section { .. } | Place::Absolute(_))
        {
            own.insert(elf.name(raw), symbol.place);
        }
    }
    own
}

/// The symbols wanted from the target, collected as relocations refer to them.
struct Imports<'e, 'a> {
    elf: &'e RawElf<'a>,
    list: Vec<Import>,
    by_name: HashMap<&'a str, u32>,
    own: HashMap<&'a str, Place>,
}

impl<'a> Imports<'_, 'a> {
    /// Where an undefined symbol lies, once it is referred to.
    fn place(&mut self, raw: &RawSymbol) -> Result<Place> {
        let name = self.elf.name(raw);
        if name == GOT_SYMBOL {
            return Ok(Place::Got);
        }
        if let Some(place) = self.own.get(name) {
            return Ok(*place);
        }
        if name == DSO_HANDLE {
            return Err(Error::DsoHandle);
        }
        if name.is_empty() {
            return Err(Error::damaged("an undefined symbol", "has no name"));
        }
        let weak = raw.binding == elf::STB_WEAK;
        let next = self.list.len() as u32;
        let number = *self.by_name.entry(name).or_insert(next);
        if number == next {
            self.list.push(import(name)?);
            self.list[number as usize].weak = weak;
        }
        self.list[number as usize].weak &= weak;
        Ok(Place::Import(number))
    }
}

fn import(name: &str) -> Result<Import> {
    let klp = name.starts_with(klp_symbol::PREFIX).then(|| KlpSymbol::parse(name)).transpose()?;
    let (bare, version) = match name.split_once('@') {
        Some((bare, version)) if klp.is_none() && !bare.is_empty() => {
            (bare, Some(version.trim_start_matches('@')))
        }
        _ => (name, None),
    };
    Ok(Import {
        name: bare.to_string(),
        version: version.map(str::to_string),
        weak: false,
        klp,
        usage: Usage::default(),
    })
}

/// What the `.klp.patch` sections hold.
#[derive(Default)]
struct Marks {
    /// Their size in pointers.
    count: u64,
    first: Option<(u32, i64)>,
}

/// Reads the relocations of every section of the image, and the pointer that `KLP_PATCH` wrote.
fn read_relocations(
    elf: &RawElf<'_>,
    fates: &[Fate],
    index_of: &[Option<u32>],
    kept: &mut [Section],
    symbols: &mut [Symbol],
    imports: &mut Imports<'_, '_>,
) -> Result<Marks> {
    let mut marks = Marks::default();
    for (section, fate) in elf.sections.iter().zip(fates) {
        if *fate == Fate::Metadata && section.name == sections::MARK_SECTION {
            marks.count += section.size / 8;
        }
    }
    let mut total = 0;
    for table in &elf.sections {
        let target = table.info as usize;
        let fate = fates.get(target).copied().unwrap_or(Fate::Dropped);
        match table.kind {
            elf::SHT_REL if fate != Fate::Dropped => {
                return Err(Error::damaged(
                    format!("section {}", table.name),
                    "has relocations without addends, which x86-64 objects do not have",
                ));
            }
            elf::SHT_RELA if target == 0 || target >= fates.len() => {
                return Err(Error::damaged(
                    format!("section {}", table.name),
                    "relocates a section that does not exist",
                ));
            }
            elf::SHT_RELA if fate != Fate::Dropped => {}
            _ => continue,
        }
        let relas = elf.relocations(table)?;
        total += relas.len();
        if total > limits::MAX_RELOCATIONS {
            return Err(Error::TooMany {
                what: "relocations",
                count: total as u64,
                limit: limits::MAX_RELOCATIONS as u64,
            });
        }
        let of = &elf.sections[target];
        let Some(index) = index_of[target] else {
            if of.name == sections::MARK_SECTION && marks.first.is_none() {
                marks.first = relas.iter().find(|r| r.kind == elf::R_X86_64_64).map(|r| (r.symbol, r.addend));
            }
            continue;
        };
        for rela in relas {
            let Some(raw) = elf.symbols.get(rela.symbol as usize) else {
                return Err(Error::damaged(
                    format!("section {}", table.name),
                    "names a symbol that does not exist",
                ));
            };
            if rela.kind == elf::R_X86_64_NONE {
                continue;
            }
            let symbol = &mut symbols[rela.symbol as usize];
            if symbol.place == Place::Unused {
                symbol.place = match rela.symbol {
                    0 => Place::Absolute(0),
                    _ => imports.place(raw)?,
                };
            }
            let name = || match (elf.name(raw), raw.place) {
                ("", RawPlace::Section(s)) => elf.sections[s as usize].name,
                (name, _) => name,
            };
            if let Place::Dropped(section) = symbol.place {
                return Err(Error::RefersToDropped {
                    section: of.name.to_string(),
                    offset: rela.offset,
                    dropped: format!("section {}", elf.sections[section as usize].name),
                });
            }
            let is_import = matches!(symbol.place, Place::Import(_));
            let far_code = is_import && kept[index as usize].part == Part::Text;
            let Some(reloc) = reloc::read(rela, of.name, of.bytes, name(), far_code)? else { continue };
            if !is_import && reloc.kind.is_tls() {
                return Err(Error::OwnTls { name: name().to_string() });
            }
            if matches!(reloc.kind, Kind::Size32 | Kind::Size64) && is_import {
                return Err(Error::RelocationKind {
                    section: of.name.to_string(),
                    offset: rela.offset,
                    kind: reloc.kind.name().into(),
                    symbol: name().to_string(),
                    way: "the size of a symbol of the target is not known",
                });
            }
            kept[index as usize].relocs.push(reloc);
        }
    }
    for section in kept.iter_mut() {
        settle(section)?;
        for reloc in &section.relocs {
            if let Place::Import(import) = symbols[reloc.symbol as usize].place {
                note_usage(&mut imports.list[import as usize].usage, reloc.kind);
            }
        }
    }
    Ok(marks)
}

/// Brings a section's relocations into order, none of them overlapping another.
fn settle(section: &mut Section) -> Result<()> {
    section.relocs.sort_by_key(|r| r.offset);
    let mut free_from = 0;
    for reloc in &mut section.relocs {
        if reloc.offset < free_from {
            return Err(Error::damaged(
                format!("section {}", section.name),
                format!("has two relocations of the same bytes at {:#x}", reloc.offset),
            ));
        }
        // The opcode of a lea that might be changed must be the file's own bytes.
        if reloc.kind == Kind::Lea && reloc.offset < free_from + 3 {
            reloc.kind = Kind::Pc32;
        }
        free_from = reloc.offset + reloc.kind.width();
    }
    Ok(())
}

fn note_usage(usage: &mut Usage, kind: Kind) {
    match kind {
        Kind::Branch | Kind::PltOff64 => usage.called = true,
        _ if kind.is_tls() => usage.tls = true,
        Kind::Pc32 => (usage.addressed, usage.near) = (true, true),
        Kind::Abs32 | Kind::Abs32S => (usage.addressed, usage.low) = (true, true),
        _ => usage.addressed = true,
    }
}

/// The spot of the one structure that is marked.
fn marked(marks: Marks, symbols: &[Symbol], elf: &RawElf<'_>) -> Result<Spot> {
    let (symbol, addend) = match (marks.count, marks.first) {
        (0, _) => return Err(Error::NoPatch),
        (1, Some(first)) => first,
        (1, None) => {
            return Err(Error::Structure {
                path: "KLP_PATCH".into(),
                reason: "marks no structure: use the macro of <ugraft/livepatch.h>".into(),
            });
        }
        (count, _) => return Err(Error::SeveralPatches { count }),
    };
    let spot = symbols.get(symbol as usize).and_then(|s| match s.place {
        Place::Section { section, offset } => {
            Some(Spot { section, offset: offset.checked_add_signed(addend)? })
        }
        _ => None,
    });
    spot.ok_or_else(|| Error::Structure {
        path: "KLP_PATCH".into(),
        reason: format!(
            "marks `{}`, which is not defined in this file: define it there, or join the objects with `ld -r`",
            elf.symbols.get(symbol as usize).map_or("", |s| elf.name(s))
        ),
    })
}

/// The functions of the image by where they begin. Of several symbols for one place a global one with a size is preferred, since it is
/// the name that people know.
fn functions(symbols: &[Symbol], elf: &RawElf<'_>) -> HashMap<Spot, u32> {
    let mut functions: HashMap<Spot, u32> = HashMap::new();
    let rank = |index: u32| {
        let index = index as usize;
        (symbols[index].size > 0, elf.symbols[index].binding != elf::STB_LOCAL)
    };
    for (index, symbol) in (0u32..).zip(symbols) {
        let (SymbolKind::Func, Place::Section { section, offset }) = (symbol.kind, symbol.place) else {
            continue;
        };
        functions
            .entry(Spot { section, offset })
            .and_modify(|old| {
                if rank(index) > rank(*old) {
                    *old = index;
                }
            })
            .or_insert(index);
    }
    functions
}

/// Section, beginning and size of each variable, sorted.
fn data_objects(symbols: &[Symbol], elf: &RawElf<'_>) -> Vec<(u32, u64, u64)> {
    let mut objects: Vec<_> = symbols
        .iter()
        .zip(&elf.symbols)
        .filter(|(_, raw)| raw.kind == elf::STT_OBJECT && raw.size > 0)
        .filter_map(|(symbol, raw)| match symbol.place {
            Place::Section { section, offset } => Some((section, offset, raw.size)),
            _ => None,
        })
        .collect();
    objects.sort_unstable();
    objects
}

/// Which symbols need an entry of the GOT or PLT, or may need it depending on where things will lie.
fn wanted_slots(kept: &[Section], symbols: &[Symbol]) -> Slots {
    let mut slots = Slots::default();
    for reloc in kept.iter().flat_map(|s| &s.relocs) {
        let import = matches!(symbols[reloc.symbol as usize].place, Place::Import(_));
        match reloc.kind {
            kind if kind.wants_got() => slots.want_got(reloc.symbol, kind.is_tls()),
            Kind::Branch if import => slots.want_plt(reloc.symbol),
            Kind::Lea if import => slots.want_got(reloc.symbol, false),
            _ => {}
        }
    }
    slots
}

/// The first section that holds a 32-bit absolute address of the image itself.
fn needs_low(kept: &[Section], symbols: &[Symbol]) -> Option<String> {
    kept.iter()
        .find(|s| {
            s.relocs.iter().any(|r| {
                matches!(r.kind, Kind::Abs32 | Kind::Abs32S)
                    && matches!(symbols[r.symbol as usize].place, Place::Section { .. } | Place::Got)
            })
        })
        .map(|s| s.name.clone())
}
