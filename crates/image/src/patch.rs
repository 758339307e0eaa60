//! A patch file, verified whole: whatever can be said against it without a target has been said when a [`PatchFile`]
//! exists.

use crate::error::{Error, Result};
use crate::info;
use crate::layout::{self, Layout};
use crate::limits;
use crate::metadata::Metadata;
use crate::raw::{RawElf, RawPlace};
use crate::reloc::{self, Kind};
use crate::sections::{self, Fate, Part, Section};
use crate::structures::{Reader, Spot, Structures};
use crate::symbols::{
    Import, Imports, Place, Symbol, Usage, data_objects, functions, own_symbols, place_symbols,
};
use object::elf;
use std::collections::HashMap;

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

/// What the `.klp.patch` sections hold.
#[derive(Default)]
struct Marks {
    /// Their size in pointers.
    count: u64,
    first: Option<(u32, i64)>,
    /// What counts where there is none.
    of_module: Option<(u32, i64)>,
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
            let mark = match of.name {
                sections::MARK_SECTION => &mut marks.first,
                sections::MODULE_SECTION => &mut marks.of_module,
                _ => continue,
            };
            if mark.is_none() {
                *mark = relas.iter().find(|r| r.kind == elf::R_X86_64_64).map(|r| (r.symbol, r.addend));
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
        (0, _) => marks.of_module.ok_or(Error::NoPatch)?,
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
