//! Symbol tables that were stripped off a file: separate debug files and MiniDebugInfo.
//!
//! Looked for as debuggers do, in this order: `/usr/lib/debug/.build-id/xx/yyyy.debug` by the build-id that is mapped
//! in the target; the file that `.gnu_debuglink` names, next to the object, in `.debug` below it, and below
//! `/usr/lib/debug`, believed if its build-id is the object's or, where it has none, its CRC is the one in the link;
//! `.gnu_debugdata`, an xz-compressed ELF file within the object. The first two are looked for in the target's root
//! and then in our own.

use crate::objects::Object;
use crate::objects::elf_file::{ElfError, ElfFile, SymbolTable};
use object::elf;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Longest MiniDebugInfo, unpacked, in bytes.
pub const MAX_MINI_DEBUG: usize = 256 << 20;
/// Longest debug file whose CRC is computed, in bytes.
const MAX_CRC: u64 = 4 << 30;

const DEBUG_DIR: &str = "usr/lib/debug";

/// Where an object's symbols come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SymbolSource {
    /// `.symtab` of the object's file.
    Symtab,
    /// `.symtab` of a separate debug file.
    DebugFile(PathBuf),
    /// `.gnu_debugdata` of the object's file.
    MiniDebugInfo,
    /// Only the dynamic symbols, which every dynamic object has in memory.
    DynsymOnly,
}

impl std::fmt::Display for SymbolSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Symtab => f.write_str(".symtab"),
            Self::DebugFile(path) => write!(f, "debug file {}", path.display()),
            Self::MiniDebugInfo => f.write_str("MiniDebugInfo"),
            Self::DynsymOnly => f.write_str("dynamic symbols only"),
        }
    }
}

/// The best table of `object` beyond its dynamic symbols. What is there but cannot be used (a debug file of another
/// build, a broken archive) is passed over and told in `notes`.
pub(crate) fn full_table(
    object: &Object<'_>,
    notes: &mut Vec<String>,
) -> Option<(SymbolTable, SymbolSource)> {
    let file = match object.file() {
        Ok(file) => Some(file),
        Err(problem) => {
            notes.push(problem.to_string());
            None
        }
    };
    if let Some(file) = file
        && let Some(table) = usable(file, notes)
    {
        return Some((table, SymbolSource::Symtab));
    }
    let roots = [object.proc_dir().join("root"), PathBuf::from("/")];
    let id = object.build_id();
    if let Some(id) = id {
        for root in &roots {
            if let Ok(debug) = ElfFile::open(&build_id_path(root, id))
                && debug.debug_build_id().as_deref() == Some(id)
                && let Some(table) = usable(&debug, notes)
            {
                return Some((table, SymbolSource::DebugFile(debug.path().to_owned())));
            }
        }
    }
    let file = file?;
    if let Ok(Some(link)) = file.section(".gnu_debuglink")
        && let Some((name, crc)) = parse_debuglink(&link)
    {
        for path in debuglink_paths(&roots, Path::new(object.path()), &name) {
            let Ok(debug) = ElfFile::open(&path) else { continue };
            let same = match (id, debug.debug_build_id()) {
                (Some(id), Some(theirs)) => id == theirs,
                _ => crc_of(&path) == Some(crc),
            };
            if !same {
                notes.push(format!("{}: of another build", path.display()));
            } else if let Some(table) = usable(&debug, notes) {
                return Some((table, SymbolSource::DebugFile(path)));
            }
        }
    }
    match file.section(".gnu_debugdata") {
        Ok(Some(packed)) => match unpack(&packed, file.path()) {
            Ok(mini) => {
                return usable(&mini, notes).map(|table| (table, SymbolSource::MiniDebugInfo));
            }
            Err(e) => notes.push(e.to_string()),
        },
        Ok(None) => {}
        Err(e) => notes.push(e.to_string()),
    }
    notes.push(stripped(id));
    None
}

fn stripped(id: Option<&[u8]>) -> String {
    match id {
        Some(id) => {
            let path = build_id_path(Path::new("/"), id);
            format!("it is stripped; {} would have them", path.display())
        }
        None => "it is stripped, and has no build-id to find a debug file by".to_owned(),
    }
}

/// The file's `.symtab`, where it has one with symbols.
fn usable(file: &ElfFile, notes: &mut Vec<String>) -> Option<SymbolTable> {
    match file.symbol_table(elf::SHT_SYMTAB) {
        Ok(table) => table.filter(|t| t.len() > 1),
        Err(e) => {
            notes.push(e.to_string());
            None
        }
    }
}

fn build_id_path(root: &Path, id: &[u8]) -> PathBuf {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let (first, rest) = hex.split_at(2.min(hex.len()));
    root.join(DEBUG_DIR).join(".build-id").join(first).join(format!("{rest}.debug"))
}

fn debuglink_paths(roots: &[PathBuf], object: &Path, name: &str) -> Vec<PathBuf> {
    let dir = object.parent().unwrap_or(Path::new("/"));
    let dir = dir.strip_prefix("/").unwrap_or(dir);
    let mut out = Vec::new();
    for root in roots {
        out.push(root.join(dir).join(name));
        out.push(root.join(dir).join(".debug").join(name));
        out.push(root.join(DEBUG_DIR).join(dir).join(name));
    }
    out
}

/// A file name without directories, NUL-padded to 4 bytes, then the CRC (objcopy --add-gnu-debuglink).
fn parse_debuglink(bytes: &[u8]) -> Option<(String, u32)> {
    let end = bytes.iter().position(|b| *b == 0)?;
    let name = std::str::from_utf8(&bytes[..end]).ok()?;
    let at = (end + 1).next_multiple_of(4);
    let crc: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    (!name.is_empty() && !name.contains('/')).then(|| (name.to_owned(), u32::from_le_bytes(crc)))
}

fn crc_of(path: &Path) -> Option<u32> {
    let mut file = std::fs::File::open(path).ok()?;
    if file.metadata().ok()?.len() > MAX_CRC {
        return None;
    }
    let mut crc = crc32fast::Hasher::new();
    let mut buf = vec![0; 1 << 16];
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Some(crc.finalize()),
            Ok(n) => crc.update(&buf[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

fn unpack(packed: &[u8], path: &Path) -> Result<ElfFile, ElfError> {
    let error = |reason: String| ElfError { path: format!("{} (.gnu_debugdata)", path.display()), reason };
    let mut out = Bounded(Vec::new());
    let mut input = packed;
    lzma_rs::xz_decompress(&mut input, &mut out).map_err(|e| error(format!("cannot be unpacked: {e:?}")))?;
    ElfFile::from_bytes(out.0, path)
}

/// Memory that refuses to grow without end: a few packed bytes can stand for gigabytes.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + buf.len() > MAX_MINI_DEBUG {
            return Err(std::io::Error::other("too long"));
        }
        self.0.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debuglinks_are_a_name_and_a_crc() {
        let link = b"prog.debug\0\0\x78\x56\x34\x12";
        assert_eq!(parse_debuglink(link), Some(("prog.debug".to_owned(), 0x1234_5678)));
        assert_eq!(parse_debuglink(&link[..14]), None);
        assert_eq!(parse_debuglink(b"../../etc/passwd\0\0\0\0abcd"), None);
        assert_eq!(parse_debuglink(b""), None);
    }

    #[test]
    fn broken_archives_are_errors() {
        let mut packed = Vec::new();
        let text: Vec<u8> = (0..3000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        lzma_rs::xz_compress(&mut text.as_slice(), &mut packed).unwrap();
        for at in 0..packed.len().min(400) {
            for bit in 0..8 {
                let mut broken = packed.clone();
                broken[at] ^= 1 << bit;
                assert!(unpack(&broken, Path::new("x")).is_err());
            }
            assert!(unpack(&packed[..at], Path::new("x")).is_err());
        }
    }
}
