//! Which sections of the file become part of the image, in which part of it, and which make the file no patch.

use crate::error::{Error, Result};
use crate::limits;
use crate::raw::{RawElf, RawSection};
use crate::reloc::Reloc;
use object::elf;

/// The section with the pointer to the `struct klp_patch`, written by `KLP_PATCH`.
pub const MARK_SECTION: &str = ".klp.patch";
/// The section with the pointer to a patch of nothing, written by <linux/livepatch.h>: for a module that never comes to `klp_enable_patch()`.
pub const MODULE_SECTION: &str = ".klp.module";
/// The section with the key=value strings.
pub const INFO_SECTION: &str = ".modinfo";

/// The parts of an image, by what may be done with them. In the order in which they lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Readable and executable.
    Text,
    /// Readable only, after linking.
    ReadOnly,
    /// Readable and writable.
    Data,
}

impl Part {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Text, Self::ReadOnly, Self::Data];
}

/// A section of the image.
#[derive(Debug, Clone)]
pub struct Section {
    pub name: String,
    pub part: Part,
    /// From the beginning of its part; set by the layout.
    pub offset: u64,
    /// As in the file, unlinked; empty if zero-filled.
    pub bytes: Vec<u8>,
    /// Bytes in memory.
    pub size: u64,
    pub align: u64,
    /// Holds the unwind tables, which are placed together and ended by a zero word.
    pub eh_frame: bool,
    /// In order of offset, not overlapping.
    pub relocs: Vec<Reloc>,
}

/// What a section of the file is for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Part of the image.
    Kept(Part),
    /// Read for the metadata, not part of the image.
    Metadata,
    /// Left out.
    Dropped,
}

/// Loaded sections that tell tools about the file and that nothing in it refers to.
const DROPPED_NAMES: &[&str] = &[".sframe", ".gnu.attributes", ".gnu_debuglink", ".stack_sizes"];

fn is_constructor(name: &str) -> bool {
    [".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors"]
        .iter()
        .any(|c| name.strip_prefix(c).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        || matches!(name, ".init" | ".fini")
}

/// Judges one section.
pub fn fate(section: &RawSection<'_>) -> Result<Fate> {
    let name = || section.name.to_string();
    if section.name == ".note.GNU-stack" && section.is(elf::SHF_EXECINSTR) {
        return Err(Error::ExecStack);
    }
    if !section.is(elf::SHF_ALLOC) || section.is(elf::SHF_EXCLUDE) {
        return Ok(Fate::Dropped);
    }
    if section.is(elf::SHF_TLS) {
        return if section.size == 0 { Ok(Fate::Dropped) } else { Err(Error::OwnTls { name: name() }) };
    }
    if section.kind == elf::SHT_NOTE
        || DROPPED_NAMES.contains(&section.name)
        || section.kind == elf::SHT_GNU_SFRAME
    {
        return Ok(Fate::Dropped);
    }
    let constructors =
        matches!(section.kind, elf::SHT_INIT_ARRAY | elf::SHT_FINI_ARRAY | elf::SHT_PREINIT_ARRAY)
            || is_constructor(section.name);
    if constructors {
        return if section.size == 0 {
            Ok(Fate::Dropped)
        } else {
            Err(Error::Constructors { section: name() })
        };
    }
    if section.is(elf::SHF_COMPRESSED) {
        return Err(Error::Compressed { section: name() });
    }
    if !matches!(section.kind, elf::SHT_PROGBITS | elf::SHT_NOBITS | elf::SHT_X86_64_UNWIND) {
        return Err(Error::SectionKind { section: name(), kind: section.kind });
    }
    if [MARK_SECTION, MODULE_SECTION, INFO_SECTION].contains(&section.name) {
        return Ok(Fate::Metadata);
    }
    let (write, exec) = (section.is(elf::SHF_WRITE), section.is(elf::SHF_EXECINSTR));
    if write && exec {
        return Err(Error::WritableText { section: name() });
    }
    if section.align > limits::MAX_ALIGN {
        return Err(Error::Alignment { section: name(), align: section.align });
    }
    if section.kind == elf::SHT_NOBITS && !write {
        // Nothing is written there, not even by the linker: a reserved place of zeros is a variable in disguise.
        return Err(Error::SectionKind { section: name(), kind: section.kind });
    }
    let relro = section.name == ".data.rel.ro" || section.name.starts_with(".data.rel.ro.");
    Ok(Fate::Kept(match (exec, write && !relro) {
        (true, _) => Part::Text,
        (false, true) => Part::Data,
        (false, false) => Part::ReadOnly,
    }))
}

/// Refuses files that were made for something else: a compiler's intermediate code in place of machine code, a kernel module.
pub fn check_maker(elf: &RawElf<'_>) -> Result<()> {
    if elf.sections.iter().any(|s| s.name == ".gnu.linkonce.this_module") {
        return Err(Error::KernelModule);
    }
    let slim = elf.symbols.iter().any(|s| elf.name(s) == "__gnu_lto_slim");
    let gnu = elf.sections.iter().any(|s| s.name.starts_with(".gnu.lto_"));
    let code = elf.sections.iter().any(|s| s.is(elf::SHF_EXECINSTR) && s.is(elf::SHF_ALLOC) && s.size > 0);
    if slim || (gnu && !code) {
        return Err(Error::Lto { compiler: "gcc" });
    }
    if elf.sections.iter().any(|s| s.name == ".llvmbc" && s.size > 0) && !code {
        return Err(Error::Lto { compiler: "clang" });
    }
    Ok(())
}
