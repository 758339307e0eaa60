//! What is to be mapped and written in the target, collected first and then done at one go.

use crate::remote::mapping::{MapRequest, Part as MappedPart, Prot};
use crate::remote::place::{self, Constraints};
use crate::target::Target;
use crate::target::maps::Maps;
use crate::{Error, Pid, RemoteAddr, Result};
use std::ops::Range;
use ugraft_image::{Layout, LinkedImage, Part, SegmentLayout};

/// Bytes of a page on x86-64.
pub const PAGE: u64 = 4096;

/// Free addresses of the target, as of one reading of its mappings, less those promised since.
#[derive(Clone, Debug)]
pub struct Ground {
    pid: Pid,
    maps: Maps,
    constraints: Constraints,
}

impl Ground {
    /// The free addresses of `target` among `maps`.
    #[must_use]
    pub fn new(target: &Target, maps: Maps) -> Self {
        Self { pid: target.pid(), maps, constraints: Constraints::of(target) }
    }

    /// The same, with so much room between what is promised and its neighbours, where there is enough.
    #[must_use]
    pub fn apart(self, apart: u64) -> Self {
        Self { constraints: Constraints { apart, ..self.constraints }, ..self }
    }

    /// Promises `len` bytes within a jump's reach of all of `reach`; anywhere where that is empty.
    ///
    /// # Errors
    /// [`Error::NoPlace`] where there is no such place.
    pub fn take(&mut self, len: u64, reach: &[RemoteAddr]) -> Result<Range<RemoteAddr>> {
        self.take_where(len, reach, false)
    }

    /// Like [`Ground::take`], and below 2 GiB where that is asked for.
    ///
    /// # Errors
    /// [`Error::NoPlace`] where there is no such place.
    pub fn take_where(
        &mut self,
        len: u64,
        reach: &[RemoteAddr],
        below_2g: bool,
    ) -> Result<Range<RemoteAddr>> {
        let anywhere = || self.maps.iter().find(|m| m.exec).map_or(RemoteAddr(0), |m| m.start);
        let low = reach.iter().min().copied().unwrap_or_else(anywhere);
        let high = reach.iter().max().copied().unwrap_or(low);
        let constraints = Constraints { below_2g, ..self.constraints };
        let near = low..high.offset(1);
        let start = place::place(&self.maps, len, near.clone(), &constraints).ok_or(Error::NoPlace {
            pid: self.pid,
            len,
            near,
        })?;
        let range = start..start.offset(len as i64);
        self.maps.reserve(range.clone());
        Ok(range)
    }
}

/// Mappings to make and bytes to write into them.
#[derive(Debug)]
pub struct Batch {
    /// Where there is room.
    pub ground: Ground,
    /// The mappings.
    pub requests: Vec<MapRequest>,
    /// The bytes; mappings are zero elsewhere.
    pub writes: Vec<(RemoteAddr, Vec<u8>)>,
}

impl Batch {
    /// Nothing yet.
    #[must_use]
    pub fn new(ground: Ground) -> Self {
        Self { ground, requests: Vec::new(), writes: Vec::new() }
    }

    /// Adds an image that is linked for its place: a mapping of the name given, laid out so, with its segments' bytes.
    pub fn add_image(&mut self, name: String, layout: &Layout, linked: &LinkedImage) {
        let part =
            |s: &SegmentLayout| MappedPart { offset: s.offset, len: s.page_size(), prot: prot_of(s.part) };
        let parts = layout.segments.iter().map(part).collect();
        self.requests.push(MapRequest { name, addr: linked.base, len: layout.size, parts });
        self.writes.extend(linked.segments.iter().map(|s| (s.addr, s.bytes.clone())));
    }
}

fn prot_of(part: Part) -> Prot {
    match part {
        Part::Text => Prot::ReadExec,
        Part::ReadOnly => Prot::Read,
        Part::Data => Prot::ReadWrite,
    }
}
