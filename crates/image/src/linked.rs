//! A linked image: the bytes of its parts, and where the patch's functions and structures lie in them.

use crate::RemoteAddr;
use crate::link::{Addresses, Resolution};
use crate::patch::PatchFile;
use crate::sections::Part;
use crate::structures::Spot;
use crate::symbols::{Place, SymbolKind};
use std::collections::HashMap;

/// A part of the linked image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which part, and so how it is to be protected once its bytes are there.
    pub part: Part,
    /// Where it begins, on a page.
    pub addr: RemoteAddr,
    /// Its content; the rest up to `mem_size` is zero.
    pub bytes: Vec<u8>,
    /// Bytes in use. Its last page may have more, which are zero.
    pub mem_size: u64,
}

/// A part of a function that the compiler split off (`foo.cold`, `foo.__part.1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdPart {
    /// Where it begins.
    pub addr: RemoteAddr,
    /// In bytes.
    pub size: u64,
}

/// A function of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name in the patch.
    pub name: String,
    /// Its entry.
    pub addr: RemoteAddr,
    /// In bytes, without the cold parts.
    pub size: u64,
    /// What belongs to it and lies elsewhere.
    pub cold: Vec<ColdPart>,
}

/// The addresses of an object's callbacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkedCallbacks {
    /// `int pre_patch(struct klp_object *)`
    pub pre_patch: Option<RemoteAddr>,
    /// `void post_patch(struct klp_object *)`
    pub post_patch: Option<RemoteAddr>,
    /// `void pre_unpatch(struct klp_object *)`
    pub pre_unpatch: Option<RemoteAddr>,
    /// `void post_unpatch(struct klp_object *)`
    pub post_unpatch: Option<RemoteAddr>,
}

/// An object of the patch, as it lies in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedObject {
    /// Its `struct klp_object`, the argument of its callbacks.
    pub addr: RemoteAddr,
    /// The new functions, in the metadata's order.
    pub new_funcs: Vec<Function>,
    /// Its callbacks.
    pub callbacks: LinkedCallbacks,
}

/// A function of the image with a name, for backtraces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSymbol {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub addr: RemoteAddr,
    /// In bytes.
    pub size: u64,
}

/// A word of the image that holds the address of a symbol whose object may come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// Which of [`PatchFile::imports`].
    pub import: usize,
    /// Where the word lies: 8 bytes, in any part of the image.
    pub word: RemoteAddr,
    /// What it holds more than the symbol's address; without the object, this alone.
    pub addend: i64,
}

/// A patch linked for its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedImage {
    /// Where it begins.
    pub base: RemoteAddr,
    /// Bytes of the whole, whole pages.
    pub size: u64,
    /// Its parts, in order of address, without gaps.
    pub segments: Vec<Segment>,
    /// The `struct klp_patch`.
    pub patch: RemoteAddr,
    /// Its objects, in the metadata's order.
    pub objects: Vec<LinkedObject>,
    /// The parameters' variables, in the metadata's order.
    pub params: Vec<RemoteAddr>,
    /// `int init(void)`
    pub init: Option<RemoteAddr>,
    /// `void exit(void)`
    pub exit: Option<RemoteAddr>,
    /// All its functions, sorted by address.
    pub symbols: Vec<ImageSymbol>,
    /// All its variables that have a name.
    pub variables: Vec<ImageSymbol>,
    /// The unwind tables (`.eh_frame`), ended by a zero word: address and size without that word.
    pub eh_frame: Option<(RemoteAddr, u64)>,
    /// The index of the unwind tables (`.eh_frame_hdr`), where there are any: address and size.
    pub eh_frame_hdr: Option<(RemoteAddr, u64)>,
    /// What was found for each of [`PatchFile::imports`]; a missing weak symbol is `Address(0)`.
    pub imports: Vec<Resolution>,
    /// The words that are to be written when an object comes or goes.
    pub references: Vec<Reference>,
}

impl LinkedImage {
    /// `len` bytes of content at `addr`.
    pub(crate) fn bytes(&self, addr: RemoteAddr, len: usize) -> Option<&[u8]> {
        self.segments.iter().find_map(|s| {
            let start = usize::try_from(addr.0.checked_sub(s.addr.0)?).ok()?;
            s.bytes.get(start..start.checked_add(len)?)
        })
    }

    /// Says where things lie in the finished image.
    pub(crate) fn describe(
        patch: &PatchFile,
        at: &Addresses<'_>,
        segments: Vec<Segment>,
        imports: &[Resolution],
        index: Option<(RemoteAddr, u64)>,
    ) -> Self {
        let mut symbols = Vec::new();
        let mut variables = Vec::new();
        let mut parts: HashMap<String, Vec<ColdPart>> = HashMap::new();
        for (index, symbol) in (0u32..).zip(&patch.symbols) {
            let Place::Section { section, offset } = symbol.place else { continue };
            let name = patch.symbol_name(index);
            let addr = at.spot(Spot { section, offset });
            let whole =
                (patch.sections[section as usize].part == Part::Text).then(|| part_of(&name)).flatten();
            if whole.is_some() || symbol.kind == SymbolKind::Func {
                symbols.push(ImageSymbol { name: name.clone(), addr, size: symbol.size });
            }
            let in_text = patch.sections[section as usize].part == Part::Text;
            if symbol.kind != SymbolKind::Func && !in_text && !name.is_empty() {
                variables.push(ImageSymbol { name: name.clone(), addr, size: symbol.size });
            }
            if let Some(whole) = whole {
                parts.entry(whole.to_string()).or_default().push(ColdPart { addr, size: symbol.size });
            }
        }
        symbols.sort_by(|a, b| (a.addr, &a.name).cmp(&(b.addr, &b.name)));
        let address = |symbol: u32| at.symbol(symbol).unwrap_or(RemoteAddr(0));
        let objects = patch
            .structures
            .objects
            .iter()
            .map(|object| {
                let new_funcs = object
                    .new_funcs
                    .iter()
                    .map(|symbol| {
                        let addr = address(*symbol);
                        // A function of several names has its parts under one of them.
                        let first = symbols.partition_point(|s| s.addr < addr);
                        let names = symbols[first..].iter().take_while(|s| s.addr == addr).map(|s| &s.name);
                        let cold = names.flat_map(|name| parts.get(name)).flatten().copied().collect();
                        let size = patch.symbols[*symbol as usize].size;
                        Function { name: patch.symbol_name(*symbol), addr, size, cold }
                    })
                    .collect();
                let [pre_patch, post_patch, pre_unpatch, post_unpatch] =
                    object.callbacks.map(|c| c.map(address));
                LinkedObject {
                    addr: at.spot(object.object),
                    new_funcs,
                    callbacks: LinkedCallbacks { pre_patch, post_patch, pre_unpatch, post_unpatch },
                }
            })
            .collect();
        LinkedImage {
            base: at.base,
            size: patch.layout().size,
            segments,
            patch: at.spot(patch.structures.patch),
            objects,
            params: patch.structures.params.iter().map(|spot| at.spot(*spot)).collect(),
            init: patch.structures.init.map(address),
            exit: patch.structures.exit.map(address),
            symbols,
            variables,
            eh_frame: patch.layout().eh_frame.map(|(offset, size)| (at.base.offset(offset as i64), size)),
            eh_frame_hdr: index,
            imports: imports.to_vec(),
            references: Vec::new(),
        }
    }
}

/// The name of the function that `name` is a part of: gcc and clang call parts that are seldom run `f.cold` and `f.cold.1`,
/// clang calls those of -fbasic-block-sections `f.__part.1`.
fn part_of(name: &str) -> Option<&str> {
    let (at, rest) = match (name.find(".cold"), name.find(".__part.")) {
        (Some(at), _) => (at, &name[at + ".cold".len()..]),
        (None, Some(at)) => (at, ""),
        _ => return None,
    };
    ((rest.is_empty() || rest.starts_with('.')) && at > 0).then(|| &name[..at])
}
