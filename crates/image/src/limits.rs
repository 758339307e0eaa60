//! What a patch file may hold at most. A file beyond a limit is refused with the limit's value, so that no file, however
//! made, costs more than bounded time and memory. The values lie far above what compilers produce for a patch.

/// Bytes of a patch file.
pub const MAX_FILE_SIZE: usize = 64 << 20;
/// Sections of a patch file. ELF's extended numbering (beyond 65,279) is not read.
pub const MAX_SECTIONS: usize = 32_768;
/// Entries of the symbol table.
pub const MAX_SYMBOLS: usize = 262_144;
/// Relocations of all sections together.
pub const MAX_RELOCATIONS: usize = 4 << 20;
/// Bytes of the name of a symbol or a section.
pub const MAX_SYMBOL_NAME: usize = 16_384;
/// Alignment of a section, in bytes: a page, since the image is placed at page granularity.
pub const MAX_ALIGN: u64 = PAGE_SIZE;
/// Bytes of a linked image with its own PLT, GOT and zero-filled data.
pub const MAX_IMAGE_SIZE: u64 = 256 << 20;
/// Bytes of a page on x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes of a patch's name: the kernel's `MODULE_NAME_LEN` without the final zero.
pub const MAX_PATCH_NAME: usize = 55;
/// Bytes of an object's name: a file name's length.
pub const MAX_OBJECT_NAME: usize = 255;
/// Bytes of a value in the metadata (version, description, licence).
pub const MAX_INFO_VALUE: usize = 1024;
/// Strings in the metadata section.
pub const MAX_INFO_STRINGS: usize = 1024;
/// Patches that one patch names as its dependencies.
pub const MAX_DEPENDS: usize = 64;
/// Objects of one patch.
pub const MAX_OBJECTS: usize = 256;
/// Functions of one patch, all objects together.
pub const MAX_FUNCS: usize = 4096;
/// States of one patch.
pub const MAX_STATES: usize = 256;
/// Bytes of a build-id, at least and at most (8 is lld's `fast`, 20 the usual SHA-1).
pub const BUILD_ID_SIZES: core::ops::RangeInclusive<usize> = 4..=64;
/// The greatest symbol position.
pub const MAX_SYMPOS: u64 = u32::MAX as u64;

/// Most parameters of a patch.
pub const MAX_PARAMS: usize = 256;
