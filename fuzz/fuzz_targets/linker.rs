//! A well-formed patch with any sections, symbols and relocations, linked for any place in a target that has any symbols.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ugraft_fuzz::{Fake, Input, Section, Symbol, link_and_check, small_patch, write_elf};
use ugraft_image::PatchFile;

/// Relocation types that are supported.
const KINDS: &[u32] = &[1, 2, 4, 9, 10, 11, 18, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 41, 42];
const NAMES: &[(&str, u32, u64)] = &[
    (".text.more", 1, 6),
    (".rodata", 1, 2),
    (".data.rel.ro.more", 1, 3),
    (".bss.more", 8, 3),
    (".eh_frame", 1, 2),
    (".data.more", 1, 3),
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let base = match input.u8() % 4 {
        0 => 0x1000_0000,
        1 => 0x5555_5555_5000,
        2 => 0x7fff_e000,
        _ => input.u64() & !0xfff,
    };
    let (mut sections, mut symbols) = small_patch();
    for _ in 0..input.u8() % 6 {
        let (name, kind, flags) = NAMES[usize::from(input.u8()) % NAMES.len()];
        let content = usize::from(input.u8());
        let mut bytes = input.bytes(content).to_vec();
        bytes.resize(content, 0);
        sections.push(Section {
            name: name.into(),
            kind,
            flags,
            bytes,
            size: u64::from(input.u16()),
            align: 1 << (input.u8() % 13),
            relocs: Vec::new(),
        });
    }
    for _ in 0..input.u8() % 8 {
        let choice = input.u8();
        let name = match choice % 8 {
            0 => "_GLOBAL_OFFSET_TABLE_".to_string(),
            1 => format!(".klp.sym.libz.so.1.s{choice},{}", choice % 3),
            2 => format!("v{choice}@GLIBC_2.2.5"),
            _ => format!("s{choice}"),
        };
        let section = u16::from(input.u8()) % (sections.len() as u16 + 2);
        symbols.push(Symbol {
            name,
            info: [0x10, 0x12, 0x20, 0x02, 0x01, 0x11, 0x16, 0x03][usize::from(choice >> 4) % 8],
            section: if section > sections.len() as u16 {
                [0xfff1, 0xfff2][usize::from(choice & 1)]
            } else {
                section
            },
            value: u64::from(input.u8()),
            size: u64::from(input.u8() % 16),
        });
    }
    while !input.is_empty() && sections.iter().map(|s| s.relocs.len()).sum::<usize>() < 100 {
        let n = usize::from(input.u8()) % sections.len();
        if n == 2 || n == 3 {
            break;
        }
        let offset = u64::from(input.u16()) % (sections[n].bytes.len() as u64 + 4);
        let kind = input.u8();
        let kind = KINDS.get(usize::from(kind)).copied().unwrap_or(KINDS[usize::from(kind) % KINDS.len()]);
        let symbol = u32::from(input.u8()) % (symbols.len() as u32 + 1);
        let addend = match input.u8() % 4 {
            0 => 0,
            1 | 2 => -4,
            _ => input.u64() as i64,
        };
        sections[n].relocs.push((offset, kind, symbol, addend));
    }
    let file = write_elf(&sections, &symbols);
    if let Ok(patch) = PatchFile::parse(&file, "fuzz") {
        link_and_check(&patch, base, &mut Fake(input));
    }
});
