//! Shared by the fuzz targets: an object file that is well-formed but for what the fuzzer chooses, a target that has whatever
//! the fuzzer says, and what must hold of everything that is linked.

use ugraft_image::{Error, Import, KlpSymbol, PatchFile, RemoteAddr, Resolution, Resolve, check, link};

/// Takes numbers off the fuzzer's bytes; zeros when they are used up.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes([0; 8].map(|_: u8| self.u8()))
    }
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A section to be written.
pub struct Section {
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub bytes: Vec<u8>,
    /// For SHT_NOBITS.
    pub size: u64,
    pub align: u64,
    /// (offset, type, symbol, addend)
    pub relocs: Vec<(u64, u32, u32, i64)>,
}

/// A symbol to be written.
pub struct Symbol {
    pub name: String,
    /// `st_info`
    pub info: u8,
    /// Index of the section, 0 for an undefined one.
    pub section: u16,
    pub value: u64,
    pub size: u64,
}

/// Writes an ELF64 x86-64 relocatable. Section `n` of `sections` gets index n + 1, symbol `n` index n + 1.
pub fn write_elf(sections: &[Section], symbols: &[Symbol]) -> Vec<u8> {
    let mut file = vec![0u8; 64];
    let mut names = vec![0u8];
    let mut headers: Vec<[u64; 10]> = vec![[0; 10]];
    let with_relocs: Vec<usize> = (0..sections.len()).filter(|n| !sections[*n].relocs.is_empty()).collect();
    let symtab = 1 + sections.len() + with_relocs.len();
    let mut name = |text: &str| {
        names.extend_from_slice(text.as_bytes());
        names.push(0);
        (names.len() - text.len() - 1) as u64
    };
    // A header as [name, type, flags, addr, offset, size, link, info, align, entsize].
    for s in sections {
        let size = if s.kind == 8 { s.size } else { s.bytes.len() as u64 };
        headers.push([name(&s.name), s.kind.into(), s.flags, 0, file.len() as u64, size, 0, 0, s.align, 0]);
        if s.kind != 8 {
            file.extend_from_slice(&s.bytes);
        }
    }
    for n in with_relocs {
        let offset = file.len() as u64;
        for (at, kind, symbol, addend) in &sections[n].relocs {
            file.extend_from_slice(&at.to_le_bytes());
            file.extend_from_slice(&(u64::from(*symbol) << 32 | u64::from(*kind)).to_le_bytes());
            file.extend_from_slice(&addend.to_le_bytes());
        }
        let size = file.len() as u64 - offset;
        let name = name(&format!(".rela{}", sections[n].name));
        headers.push([name, 4, 0x40, 0, offset, size, symtab as u64, n as u64 + 1, 8, 24]);
    }
    let offset = file.len() as u64;
    file.extend_from_slice(&[0; 24]);
    let mut strings = vec![0u8];
    for s in symbols {
        file.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        strings.extend_from_slice(s.name.as_bytes());
        strings.push(0);
        file.extend_from_slice(&[s.info, 0]);
        file.extend_from_slice(&s.section.to_le_bytes());
        file.extend_from_slice(&s.value.to_le_bytes());
        file.extend_from_slice(&s.size.to_le_bytes());
    }
    let size = file.len() as u64 - offset;
    headers.push([name(".symtab"), 2, 0, 0, offset, size, symtab as u64 + 1, 1, 8, 24]);
    headers.push([name(".strtab"), 3, 0, 0, file.len() as u64, strings.len() as u64, 0, 0, 1, 0]);
    file.extend_from_slice(&strings);
    let at = name(".shstrtab");
    headers.push([at, 3, 0, 0, file.len() as u64, names.len() as u64, 0, 0, 1, 0]);
    file.extend_from_slice(&names);
    let table = file.len() as u64;
    for h in &headers {
        let [name, kind, flags, addr, offset, size, link, info, align, entsize] = *h;
        for half in [name, kind] {
            file.extend_from_slice(&(half as u32).to_le_bytes());
        }
        for word in [flags, addr, offset, size] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for half in [link, info] {
            file.extend_from_slice(&(half as u32).to_le_bytes());
        }
        for word in [align, entsize] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    }
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    file[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
    file[40..48].copy_from_slice(&table.to_le_bytes());
    file[52..54].copy_from_slice(&64u16.to_le_bytes());
    file[58..60].copy_from_slice(&64u16.to_le_bytes());
    file[60..62].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    file[62..64].copy_from_slice(&(headers.len() as u16 - 1).to_le_bytes());
    file
}

/// The strings that `KLP_PATCH` writes.
pub const INFO: &[u8] = b"livepatch=Y\0klp_abi=1\0";

/// A patch of one function in `.text`, whose structures are in `.klp.data`: sections 1 to 4, symbols 1 to 3. Ready for more.
pub fn small_patch() -> (Vec<Section>, Vec<Symbol>) {
    const ABS64: u32 = 1;
    let section = |name: &str, flags: u64, bytes: Vec<u8>| Section {
        name: name.into(),
        kind: 1,
        flags,
        bytes,
        size: 0,
        align: 8,
        relocs: Vec::new(),
    };
    // patch 0..48, objs 48..208, funcs 208..304, "f" at 304
    let mut data = vec![0u8; 306];
    data[304] = b'f';
    let mut sections = vec![
        section(".text", 6, vec![0x90; 64]),
        section(".klp.data", 3, data),
        section(".klp.patch", 3, vec![0; 8]),
        section(".modinfo", 2, INFO.to_vec()),
    ];
    let pointer = |at: u64, symbol: u32, addend: i64| (at, ABS64, symbol, addend);
    sections[1].relocs =
        vec![pointer(8, 2, 48), pointer(56, 2, 208), pointer(208, 2, 304), pointer(216, 1, 0)];
    sections[2].relocs = vec![pointer(0, 2, 0)];
    let symbol = |name: &str, info: u8, section: u16, size: u64| Symbol {
        name: name.into(),
        info,
        section,
        value: 0,
        size,
    };
    let symbols = vec![symbol("new", 0x12, 1, 16), symbol("", 3, 2, 0), symbol("new.cold", 2, 1, 8)];
    (sections, symbols)
}

/// Says of every symbol what the fuzzer says.
pub struct Fake<'a>(pub Input<'a>);

impl Resolve for Fake<'_> {
    fn symbol(&mut self, import: &Import) -> Resolution {
        match self.0.u8() % 8 {
            0 => Resolution::NotFound,
            1 => Resolution::Refused("so it is".into()),
            2 => Resolution::TpOffset(self.0.u64() as i64),
            3 => Resolution::Address(RemoteAddr(self.0.u64())),
            _ if import.usage.tls => Resolution::TpOffset(-64),
            n => Resolution::Address(RemoteAddr(0x10_0000 * u64::from(n))),
        }
    }
    fn klp_symbol(&mut self, _: &KlpSymbol, import: &Import) -> Resolution {
        self.symbol(import)
    }
}

/// Links a patch and checks what must hold.
pub fn link_and_check(patch: &PatchFile, base: u64, resolve: &mut dyn Resolve) {
    let layout = patch.layout();
    let mut end = 0;
    for s in &layout.segments {
        assert_eq!(s.offset, end);
        assert!(s.file_size <= s.mem_size && s.mem_size > 0);
        end = s.offset + s.page_size();
    }
    assert_eq!(end, layout.size);
    match link(patch, RemoteAddr(base), resolve) {
        Ok(image) => {
            check(patch, &image).expect("the check of a linked image");
            for (s, l) in image.segments.iter().zip(&layout.segments) {
                assert_eq!(s.addr.0, base + l.offset);
                assert_eq!((s.bytes.len() as u64, s.mem_size), (l.file_size, l.mem_size));
            }
            let inside = |addr: RemoteAddr| addr.0 >= base && addr.0 < base + image.size;
            assert!(inside(image.patch));
            for object in &image.objects {
                assert!(inside(object.addr));
                for func in &object.new_funcs {
                    assert!(
                        inside(func.addr) && func.size > 0 && func.addr.0 + func.size <= base + image.size
                    );
                }
            }
        }
        Err(error) => assert!(!matches!(error, Error::Check { .. }), "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The targets begin at a patch that is good: what the fuzzer changes is all that is wrong with it.
    #[test]
    fn the_small_patch_is_good() {
        let (mut sections, mut symbols) = small_patch();
        symbols.push(Symbol { name: "far".into(), info: 0x10, section: 0, value: 0, size: 0 });
        sections[0].relocs.push((8, 4, 4, -4));
        sections[0].relocs.push((16, 42, 4, -4));
        let patch = PatchFile::parse(&write_elf(&sections, &symbols), "fuzz").unwrap();
        assert_eq!(patch.metadata().objects[0].funcs[0].old_name, "f");
        let image = link(&patch, RemoteAddr(0x1000_0000), &mut Fake(Input(&[7]))).unwrap();
        assert_eq!(image.objects[0].new_funcs[0].cold.len(), 1);
        link_and_check(&patch, 0x5555_5555_5000, &mut Fake(Input(&[7])));
    }
}
