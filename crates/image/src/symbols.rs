//! The symbols of a patch file: its own, by where they lie in the image, and those that it wants from the target.

use crate::error::{Error, Result};
use crate::klp_symbol::{self, KlpSymbol};
use crate::limits;
use crate::raw::{RawElf, RawPlace, RawSymbol};
use crate::sections::{Part, Section};
use crate::structures::Spot;
use object::elf;
use std::collections::HashMap;
use std::ops::Range;

/// The GOT's address under the name that compilers use for it.
const GOT_SYMBOL: &str = "_GLOBAL_OFFSET_TABLE_";
/// What C++ objects name themselves by when they register a destructor.
const DSO_HANDLE: &str = "__dso_handle";

/// What kind of thing a symbol of the patch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    Func,
    Other,
}

/// Where a symbol lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
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
pub struct Symbol {
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

/// Says where each symbol lies. Symbols that have no section yet (common ones) get one; undefined ones are `Unused`
/// until a relocation refers to them.
pub fn place_symbols(
    elf: &RawElf<'_>,
    index_of: &[Option<u32>],
    kept: &mut Vec<Section>,
) -> Result<Vec<Symbol>> {
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
pub fn own_symbols<'a>(elf: &RawElf<'a>, symbols: &[Symbol]) -> HashMap<&'a str, Place> {
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
pub struct Imports<'e, 'a> {
    pub elf: &'e RawElf<'a>,
    pub list: Vec<Import>,
    pub by_name: HashMap<&'a str, u32>,
    pub own: HashMap<&'a str, Place>,
}

impl<'a> Imports<'_, 'a> {
    /// Where an undefined symbol lies, once it is referred to.
    pub fn place(&mut self, raw: &RawSymbol) -> Result<Place> {
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

/// The functions of the image by where they begin. Of several symbols for one place a global one with a size is preferred, since it is
/// the name that people know.
pub fn functions(symbols: &[Symbol], elf: &RawElf<'_>) -> HashMap<Spot, u32> {
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
pub fn data_objects(symbols: &[Symbol], elf: &RawElf<'_>) -> Vec<(u32, u64, u64)> {
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
