//! The target's mappings, as `/proc/PID/maps` lists them (proc(5)).

use crate::{FileOffset, RemoteAddr};
use std::ops::Range;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: RemoteAddr,
    /// One past the last byte.
    pub end: RemoteAddr,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub exec: bool,
    /// Shared (`s`) and not private (`p`): a write reaches others.
    pub shared: bool,
    /// Where in the file the mapping begins; 0 where there is no file.
    pub offset: FileOffset,
    /// Device of the file, major and minor; (0, 0) where there is none.
    pub dev: (u32, u32),
    /// Inode of the file; 0 where there is none.
    pub inode: u64,
    /// Path, `[stack]`, `/memfd:NAME (deleted)` and so on; empty for an anonymous mapping.
    pub name: String,
}

impl Mapping {
    /// The addresses it covers.
    #[must_use]
    pub fn range(&self) -> Range<RemoteAddr> {
        self.start..self.end
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Never: the kernel has no empty mapping.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether it covers `addr`.
    #[must_use]
    pub fn contains(&self, addr: RemoteAddr) -> bool {
        self.start <= addr && addr < self.end
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let perms = fields.next()?.as_bytes();
        let offset = fields.next()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let inode = fields.next()?;
        let name = fields.next().unwrap_or("").trim_start();
        if perms.len() != 4 {
            return None;
        }
        let hex = |s| u64::from_str_radix(s, 16).ok();
        Some(Self {
            start: RemoteAddr(hex(start)?),
            end: RemoteAddr(hex(end)?),
            read: perms[0] == b'r',
            write: perms[1] == b'w',
            exec: perms[2] == b'x',
            shared: perms[3] == b's',
            offset: FileOffset(hex(offset)?),
            dev: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode: inode.parse().ok()?,
            name: name.to_owned(),
        })
    }
}

/// All mappings of a target at one moment, in address order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps(Vec<Mapping>);

impl Maps {
    /// Reads the text of a `maps` file; `None` where a line does not have the form of proc(5).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.lines().map(Mapping::parse).collect::<Option<Vec<_>>>().map(Self)
    }

    /// The mappings in address order.
    pub fn iter(&self) -> std::slice::Iter<'_, Mapping> {
        self.0.iter()
    }

    /// The mapping that covers `addr`.
    #[must_use]
    pub fn find(&self, addr: RemoteAddr) -> Option<&Mapping> {
        let i = self.0.partition_point(|m| m.end <= addr);
        self.0.get(i).filter(|m| m.contains(addr))
    }

    /// Whether the same files, but for those of memory, are mapped at the same places.
    #[must_use]
    pub fn same_files(&self, other: &Self) -> bool {
        let is_file = |m: &&Mapping| m.inode != 0 && !m.name.starts_with("/memfd:");
        let files = |maps: &Self| maps.iter().filter(is_file).cloned().collect::<Vec<_>>();
        files(self) == files(other)
    }

    /// Treats `range`, which is free, as mapped from now on: it is promised to somebody.
    pub fn reserve(&mut self, range: Range<RemoteAddr>) {
        let i = self.0.partition_point(|m| m.end <= range.start);
        let promised = Mapping {
            start: range.start,
            end: range.end,
            read: false,
            write: false,
            exec: false,
            shared: false,
            offset: FileOffset(0),
            dev: (0, 0),
            inode: 0,
            name: String::new(),
        };
        self.0.insert(i, promised);
    }

    /// The gaps between mappings, in address order, from `bounds.start` to `bounds.end`.
    pub fn gaps(&self, bounds: Range<RemoteAddr>) -> impl Iterator<Item = Range<RemoteAddr>> {
        let mut ends = vec![bounds.start];
        let mut starts = Vec::new();
        for m in &self.0 {
            starts.push(m.start);
            ends.push(m.end);
        }
        starts.push(bounds.end);
        ends.into_iter()
            .zip(starts)
            .map(move |(s, e)| s.max(bounds.start)..e.min(bounds.end))
            .filter(|gap| gap.start < gap.end)
    }
}

impl<'a> IntoIterator for &'a Maps {
    type Item = &'a Mapping;
    type IntoIter = std::slice::Iter<'a, Mapping>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r--p 00000000 fe:00 123                                /bin/a b
00401000-00402000 r-xp 00001000 fe:00 123                                /bin/a b
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
7fff00000000-7fff00021000 rw-s 00000000 00:01 7                          /memfd:x (deleted)
";

    #[test]
    fn reads_every_field() {
        let maps = Maps::parse(TEXT).unwrap();
        let m = maps.find(RemoteAddr(0x401fff)).unwrap();
        assert!(m.read && m.exec && !m.write && !m.shared);
        assert_eq!((m.offset, m.dev, m.inode), (FileOffset(0x1000), (0xfe, 0), 123));
        assert_eq!(m.name, "/bin/a b");
        assert_eq!(maps.find(RemoteAddr(0x402000)), None);
        assert!(maps.find(RemoteAddr(0x7fff00000000)).unwrap().shared);
        assert_eq!(Maps::parse("nonsense"), None);
    }

    #[test]
    fn gaps_lie_between_the_mappings_and_within_the_bounds() {
        let maps = Maps::parse(TEXT).unwrap();
        let gaps: Vec<_> = maps.gaps(RemoteAddr(0x10000)..RemoteAddr(0x7f0000002000)).collect();
        assert_eq!(
            gaps,
            [
                RemoteAddr(0x10000)..RemoteAddr(0x400000),
                RemoteAddr(0x402000)..RemoteAddr(0x7f0000000000),
                RemoteAddr(0x7f0000001000)..RemoteAddr(0x7f0000002000),
            ]
        );
    }
}
