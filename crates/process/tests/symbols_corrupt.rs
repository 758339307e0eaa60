//! Whatever bytes a file or a target's memory holds, the answer is a value or an error.

mod symbols_support;

use std::path::Path;
use std::process::Command;
use symbols_support::{Running, TELL, Workshop};
use ugraft_process::objects::Objects;
use ugraft_process::objects::elf_file::ElfFile;
use ugraft_process::target::maps::Maps;
use ugraft_process::{FileOffset, LinkAddr, RemoteAddr};

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Values that break things more often than others do.
    fn nasty(&mut self) -> u64 {
        let list = [0, 1, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 1 << 63, 0x10, 0x1000];
        match self.below(3) {
            0 => self.next(),
            _ => list[self.below(list.len())],
        }
    }
}

fn program(shop: &Workshop) {
    shop.write("tell.h", TELL);
    shop.write("lib.c", "__thread int t = 1; int exported(int x) { return x + t; } static int own(int x) { __asm__ volatile(\"\"); return x; } int user(int x) { return own(x); }");
    shop.write(
        "main.c",
        r#"
#include "tell.h"
int exported(int);
__attribute__((noinline)) static int mine(int x) { __asm__ volatile(""); return x; }
int main(int c, char **v) { printf("r %x\n", exported(mine(c))); READY; }
"#,
    );
    shop.write("lib.map", "V1 { global: *; };");
    shop.run("gcc -O2 -shared -fPIC -Wl,--version-script=lib.map lib.c -o libx.so");
    shop.run("gcc -O2 main.c -o prog -L. -lx");
}

#[test]
fn broken_files() {
    let shop = Workshop::new();
    program(&shop);
    let whole = std::fs::read(shop.path("prog")).unwrap();
    let mut numbers = Numbers(1);
    let headers = u64::from_le_bytes(whole[0x28..0x30].try_into().unwrap()) as usize;
    for round in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + numbers.below(4) {
            // Headers are hit more often than what they describe.
            let at = match numbers.below(4) {
                0 => numbers.below(64),
                1 => 64 + numbers.below(13 * 56),
                2 => headers + numbers.below(bytes.len().saturating_sub(headers)),
                _ => numbers.below(bytes.len()),
            };
            let value = numbers.nasty().to_le_bytes();
            let len = (1 << numbers.below(4)).min(bytes.len().saturating_sub(at));
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        if round % 5 == 0 {
            bytes.truncate(numbers.below(bytes.len()));
        }
        let Ok(file) = ElfFile::from_bytes(bytes, Path::new("broken")) else { continue };
        let _ = (file.build_id(), file.debug_build_id(), file.sections());
        for kind in [object::elf::SHT_SYMTAB, object::elf::SHT_DYNSYM] {
            if let Ok(Some(table)) = file.symbol_table(kind) {
                assert!(table.iter().count() == table.len());
            }
        }
        let _ = file.section(".text");
        let _ = file.read_at(LinkAddr(numbers.nasty()), numbers.nasty());
        let _ = file.read(FileOffset(numbers.nasty()), numbers.nasty());
    }
}

/// Everything that can be asked.
fn ask(p: &Running, maps: &Maps, auxv: &[u8]) {
    let proc_dir = format!("/proc/{}", p.pid());
    let Ok(objects) = Objects::read(p.memory(), maps, auxv, Path::new(&proc_dir)) else { return };
    for object in &objects {
        let _ = (object.name(), object.build_id(), object.file().is_ok(), object.loaded_as());
        for range in object.ranges() {
            let _ = object.fde_at(range.start.offset(0x40)).is_ok();
        }
        let _ = objects.tp_offset(object.id(), 0).is_ok();
    }
    for (object, name) in [(None, "mine"), (Some("libx.so"), "exported"), (Some("libx.so"), "own")] {
        if let Ok(f) = objects.function(object, name, 0) {
            let _ = objects.symbolize(f.address).is_ok();
            if let Some(o) = objects.at(f.address) {
                let _ = o.file_bytes(f.range()).is_ok();
            }
        }
    }
    let also: Vec<_> = objects.find(Some("libx.so")).iter().map(|o| o.id()).collect();
    if let Ok(scope) = objects.scope(&also) {
        for name in ["puts", "exported", "exported@V1", "t", "memcpy", "nothing"] {
            let _ = scope.resolve(name, None).is_ok();
        }
    }
}

#[test]
fn broken_memory() {
    let shop = Workshop::new();
    program(&shop);
    let p = Running::start(Command::new(shop.path("prog")).env("LD_LIBRARY_PATH", shop.path("")));
    let maps = p.maps();
    let auxv = std::fs::read(format!("/proc/{}/auxv", p.pid())).unwrap();
    ask(&p, &maps, &auxv);

    // The program sleeps for ever; what it does not run can be broken and mended again.
    let mut places: Vec<(RemoteAddr, u64)> = Vec::new();
    {
        let objects = p.objects();
        let debug = objects.loader_debug().unwrap();
        places.push((debug.address, 48));
        for object in &objects {
            if let Some(map) = object.link_map() {
                places.push((map, 40));
                places.push((map, 0x480));
            }
            let own = object.path().ends_with("prog") || object.path().ends_with("libx.so");
            for s in object.segments().iter().filter(|_| own) {
                use object::elf;
                let at = object.to_remote(s.vaddr);
                match s.kind {
                    elf::PT_DYNAMIC | elf::PT_GNU_EH_FRAME | elf::PT_NOTE => places.push((at, s.memsz)),
                    // Headers, hash tables, symbols, versions, relocations.
                    elf::PT_LOAD if s.offset.0 == 0 => {
                        places.push((at, 64 + 13 * 56));
                        places.push((at, s.memsz));
                    }
                    _ => {}
                }
            }
        }
    }
    let mut numbers = Numbers(2);
    for _ in 0..60 {
        let (start, len) = places[numbers.below(places.len())];
        let at = start.offset(numbers.below(len as usize) as i64 & !3);
        let before = p.memory().read_vec(at, 8).unwrap();
        // Pointers into the target's own tables make rings.
        let value = match numbers.below(3) {
            0 => {
                let (start, len) = places[numbers.below(places.len())];
                (start.0 + numbers.below(len as usize) as u64) & !7
            }
            _ => numbers.nasty(),
        };
        let width = [4, 8][numbers.below(2)];
        p.memory().write(at, &value.to_le_bytes()[..width]).unwrap();
        ask(&p, &maps, &auxv);
        p.memory().write(at, &before).unwrap();
    }

    // A ring in the list of libraries, and each node of it pointing to itself.
    let nodes: Vec<_> = p.objects().iter().filter_map(|o| o.link_map()).collect();
    for node in &nodes {
        for next in [*node, nodes[0]] {
            let at = node.offset(24);
            let before = p.memory().read_vec(at, 8).unwrap();
            p.memory().write(at, &next.0.to_le_bytes()).unwrap();
            ask(&p, &maps, &auxv);
            assert!(p.objects().iter().count() <= nodes.len() + 2);
            p.memory().write(at, &before).unwrap();
        }
    }
    // The kernel's own words may be missing or cut short.
    for len in [0, 8, 16, 100, auxv.len()] {
        ask(&p, &maps, &auxv[..len]);
        ask(&p, &Maps::default(), &auxv[..len]);
    }
    assert_eq!(p.objects().function(None, "mine", 0).unwrap().position, 1);
}
