//! What the tool and the unwinder's code in the target both know: the table of images.

/// Images that the table has room for.
pub const SLOTS: usize = 128;
/// Bytes of an image's name, with the zero that ends it.
pub const NAME_LEN: usize = 72;

/// The table of images, written by the tool only.
#[repr(C)]
#[derive(Debug)]
pub struct Table {
    /// Another number after each change of the images, far from any that a loader counts to.
    pub generation: u64,
    /// How many of the slots, from the first, may be used.
    pub limit: u64,
    /// The original `_dl_find_object`, 0 where the target has none.
    pub find_object: u64,
    /// The original `dl_iterate_phdr`, 0 where the target has none.
    pub iterate_phdr: u64,
    /// The images.
    pub slots: [Slot; SLOTS],
}

/// An image.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    /// 1 where there is one: the first byte, written last and cleared first.
    pub used: u64,
    /// Its first byte.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
    /// The index of its unwind tables (`.eh_frame_hdr`).
    pub index: u64,
    /// `struct link_map`, the part that is public: base, name, dynamic section, next and previous one.
    pub link_map: [u64; 5],
    /// Its program headers (`Elf64_Phdr`): PT_LOAD of the whole, PT_GNU_EH_FRAME.
    pub headers: [[u64; 7]; 2],
    /// Its name.
    pub name: [u8; NAME_LEN],
}

const _: () = assert!(size_of::<Slot>() == 256);
const _: () = assert!(size_of::<Table>() == 32 + 256 * SLOTS);
