//! Where the parts of an image lie relative to its base, before it is known where that is.
//!
//! The image is one range of pages: text, read-only data, writable data, each beginning a page, so that each can be
//! protected for itself. The text ends with the PLT; the read-only part begins with the GOT and ends with the
//! unwind tables and their index; the writable part ends with the zero-filled sections.

use crate::error::{Error, Result};
use crate::limits::{MAX_IMAGE_SIZE, PAGE_SIZE};
use crate::sections::{Part, Section};
use crate::unwind;

/// Bytes of a PLT entry: `jmp *entry(%rip)` and two `int3`.
pub const PLT_ENTRY: u64 = 8;
/// Bytes of a GOT entry.
pub const GOT_ENTRY: u64 = 8;
/// The zero word that ends the unwind tables.
pub const EH_FRAME_END: u64 = 4;

/// Where one part of the image lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLayout {
    /// Which, and so how it is protected.
    pub part: Part,
    /// From the image's base, a multiple of the page size.
    pub offset: u64,
    /// Bytes that have content.
    pub file_size: u64,
    /// Bytes in use, the zero-filled ones included. Not rounded to pages.
    pub mem_size: u64,
}

impl SegmentLayout {
    /// The size in whole pages, in bytes.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.mem_size.next_multiple_of(PAGE_SIZE)
    }
}

/// The layout of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The parts that are not empty, in the order of [`Part::ALL`], without gaps.
    pub segments: Vec<SegmentLayout>,
    /// Bytes of the whole, a multiple of the page size. The base must be page-aligned.
    pub size: u64,
    /// The image holds 32-bit absolute addresses of itself, so it must end at or below 2 GiB: the section with the first.
    pub below_2g: Option<String>,
    pub(crate) plt: u64,
    pub(crate) got: u64,
    /// Offset and size of the unwind tables without the final zero word.
    pub(crate) eh_frame: Option<(u64, u64)>,
    /// Offset and room of the index of the unwind tables.
    pub(crate) eh_frame_hdr: Option<(u64, u64)>,
}

impl Layout {
    /// The offset of a part's beginning from the image's base.
    pub(crate) fn part(&self, part: Part) -> u64 {
        self.segments.iter().find(|s| s.part == part).map_or(0, |s| s.offset)
    }
}

/// Gives every section its offset. `plt` and `got` are numbers of entries.
pub fn assign(sections: &mut [Section], plt: u64, got: u64, below_2g: Option<String>) -> Result<Layout> {
    let mut segments = Vec::new();
    let mut base = 0;
    let (mut plt_at, mut got_at, mut eh_frame, mut eh_frame_hdr) = (0, 0, None, None);
    let index_size = unwind::size(sections);
    for part in Part::ALL {
        let mut end = 0;
        if part == Part::ReadOnly {
            got_at = base;
            end = got * GOT_ENTRY;
        }
        let mut place = |end: &mut u64, wanted: &dyn Fn(&Section) -> bool| -> Result<Option<u64>> {
            let mut first = None;
            for section in sections.iter_mut().filter(|s| s.part == part && wanted(s)) {
                section.offset = end.next_multiple_of(section.align);
                first.get_or_insert(section.offset);
                // Each term is at most MAX_IMAGE_SIZE plus a page: no overflow.
                *end = section
                    .offset
                    .checked_add(section.size)
                    .filter(|e| *e <= MAX_IMAGE_SIZE)
                    .ok_or(Error::ImageTooLarge { size: section.offset.saturating_add(section.size) })?;
            }
            Ok(first)
        };
        place(&mut end, &|s| !s.eh_frame && !s.bytes.is_empty())?;
        // Empty sections with content type have an address too: symbols at the end of nothing.
        place(&mut end, &|s| !s.eh_frame && s.bytes.is_empty() && s.size == 0)?;
        if let Some(first) = place(&mut end, &|s| s.eh_frame)? {
            eh_frame = Some((base + first, end - first));
            end = (end + EH_FRAME_END).next_multiple_of(unwind::ALIGN);
            eh_frame_hdr = Some((base + end, index_size));
            end += index_size;
        }
        if part == Part::Text {
            end = end.next_multiple_of(PLT_ENTRY * 2);
            plt_at = base + end;
            end += plt * PLT_ENTRY;
        }
        let file_size = end;
        place(&mut end, &|s| s.bytes.is_empty() && s.size > 0)?;
        if end > 0 {
            let segment = SegmentLayout { part, offset: base, file_size, mem_size: end };
            base += segment.page_size();
            segments.push(segment);
        }
        if base > MAX_IMAGE_SIZE {
            return Err(Error::ImageTooLarge { size: base });
        }
    }
    Ok(Layout { segments, size: base, below_2g, plt: plt_at, got: got_at, eh_frame, eh_frame_hdr })
}
