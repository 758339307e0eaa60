//! A well-formed object whose metadata strings and structures are any bytes and point anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ugraft_fuzz::{INFO, Input, small_patch, write_elf};
use ugraft_image::PatchFile;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (mut sections, mut symbols) = small_patch();
    let mode = input.u8();
    if mode & 1 != 0 {
        // Overwrite bytes of the structures.
        for _ in 0..input.u8() % 8 {
            let (at, byte) = (input.u16() as usize % sections[1].bytes.len(), input.u8());
            sections[1].bytes[at] = byte;
        }
    }
    if mode & 2 != 0 {
        // Move pointers.
        for _ in 0..input.u8() % 8 {
            let reloc =
                (u64::from(input.u16() % 400), 1, u32::from(input.u8() % 6), i64::from(input.u16() as i16));
            let n = usize::from(input.u8() % 8);
            match sections[1].relocs.get_mut(n) {
                Some(old) => *old = reloc,
                None => sections[1].relocs.push(reloc),
            }
        }
    }
    if mode & 4 != 0 {
        // Move symbols.
        let n = usize::from(input.u8()) % symbols.len();
        symbols[n].value = u64::from(input.u16() % 400);
        symbols[n].size = u64::from(input.u16() % 400);
        symbols[n].info = input.u8();
    }
    if mode & 8 != 0 {
        sections[2].relocs[0].3 = i64::from(input.u16() as i16);
        sections[2].bytes.resize(usize::from(input.u8() % 32), 0);
    }
    sections[3].bytes = INFO.to_vec();
    if mode & 16 != 0 {
        let prefix: &[&[u8]] = &[
            b"name=",
            b"version=",
            b"depends=",
            b"build_id=exe:",
            b"build_id=",
            b"license=",
            b"description=",
            b"",
        ];
        sections[3].bytes.extend_from_slice(prefix[usize::from(input.u8()) % prefix.len()]);
    }
    sections[3].bytes.extend_from_slice(input.0);
    if mode & 32 == 0 {
        sections[3].bytes.push(0);
    }
    let file = write_elf(&sections, &symbols);
    if let Ok(patch) = PatchFile::parse(&file, "fuzz") {
        let metadata = patch.metadata();
        assert!(!metadata.name.is_empty());
        for object in &metadata.objects {
            assert!(object.name.as_deref() != Some(""));
            for func in &object.funcs {
                assert!(!func.old_name.is_empty() && !func.old_name.contains('\0'));
            }
        }
    }
});
