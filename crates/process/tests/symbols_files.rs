//! Where symbols come from when the file on disk does not have them, or is not there.

mod symbols_support;

use std::process::Command;
use symbols_support::{Running, TELL, Workshop};
use ugraft_process::Error;
use ugraft_process::objects::FileProblem;
use ugraft_process::objects::debug_file::SymbolSource;
use ugraft_process::objects::symbols::SymbolError;

const PROGRAM: &str = r#"
#include "tell.h"
__attribute__((noinline)) static int inner(int x) { __asm__ volatile(""); return x + 1; }
int main(int argc, char **argv)
{
    TELL_AS("inner", inner);
    printf("r %x\n", inner(argc));
    READY;
}
"#;

fn shop() -> Workshop {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write("a.c", PROGRAM);
    shop
}

fn found(p: &Running) -> SymbolSource {
    let objects = p.objects();
    let f = objects.function(None, "inner", 0).unwrap();
    assert_eq!(f.address, p.truth("inner"));
    objects.main().symbols().unwrap().source().clone()
}

fn refused(p: &Running) -> Vec<String> {
    match p.objects().function(None, "inner", 0) {
        Err(Error::Symbol(SymbolError::NotFound { notes, .. })) => notes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_debug_file_by_build_id_in_the_targets_root() {
    let shop = shop();
    shop.run("gcc -O2 -g -Wl,--build-id=0xabcdef0123 a.c -o prog").run("mkdir -p debug/.build-id/ab");
    shop.run("objcopy --only-keep-debug prog debug/.build-id/ab/cdef0123.debug").run("strip prog");
    let elsewhere = Running::start(&mut Command::new(shop.path("prog")));
    let place = "it is stripped; /usr/lib/debug/.build-id/ab/cdef0123.debug would have them";
    assert_eq!(refused(&elsewhere), [place]);
    assert_eq!(elsewhere.objects().main().build_id(), Some(&[0xab, 0xcd, 0xef, 0x01, 0x23][..]));
    elsewhere.objects().main().check_build_id(&[0xab, 0xcd, 0xef, 0x01, 0x23]).unwrap();
    assert!(matches!(elsewhere.objects().main().check_build_id(&[1]), Err(SymbolError::BuildId { .. })));

    // A mount namespace of its own gives the target another /usr/lib/debug than ours.
    let mount = format!("mount --bind {} /usr/lib/debug && exec ./prog", shop.path("debug").display());
    let in_root = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success());
    if !in_root {
        println!("no mount namespaces here");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &mount]).current_dir(shop.path(""));
    let p = Running::start(&mut command);
    let SymbolSource::DebugFile(path) = found(&p) else { panic!() };
    assert!(path.ends_with("usr/lib/debug/.build-id/ab/cdef0123.debug"), "{path:?}");
    drop(p);

    // One of another build is passed over.
    shop.run("gcc -O2 -g -Wl,--build-id=0xabcdef0124 a.c -o other");
    shop.run("objcopy --only-keep-debug other debug/.build-id/ab/cdef0123.debug");
    refused(&Running::start(&mut command));
}

#[test]
fn a_debug_file_by_debuglink() {
    for id in ["-Wl,--build-id", "-Wl,--build-id=none"] {
        let shop = shop();
        shop.run(&format!("gcc -O2 -g {id} a.c -o prog")).run("objcopy --only-keep-debug prog prog.dbg");
        shop.run("strip prog").run("objcopy --add-gnu-debuglink=prog.dbg prog");
        let p = Running::start(&mut Command::new(shop.path("prog")));
        assert!(matches!(found(&p), SymbolSource::DebugFile(path) if path.ends_with("prog.dbg")));
        shop.run("mkdir .debug").run("mv prog.dbg .debug/prog.dbg");
        assert!(matches!(found(&p), SymbolSource::DebugFile(path) if path.ends_with(".debug/prog.dbg")));
        // Another file of that name: told by the build-id, or by the CRC where there is none.
        shop.run(&format!("gcc -O2 -g -DOTHER=1 {id} -Wl,--defsym=other=1 a.c -o .debug/prog.dbg"));
        let notes = refused(&p);
        assert!(notes.iter().any(|n| n.ends_with("of another build")), "{notes:?}");
    }
}

#[test]
fn mini_debug_info() {
    let shop = shop();
    shop.run("gcc -O2 -g a.c -o prog").run("cp prog mini").run("objcopy -S --keep-symbol=inner mini mini2");
    shop.run("objcopy --only-keep-debug prog mini").run("strip -g mini").run("strip prog");
    shop.run("cp mini mini.full");
    for (block, corrupt) in [("", false), ("--check=none", false), ("--block-size=4096", false), ("", true)] {
        shop.run("cp mini.full mini").run(&format!("xz -f {block} mini"));
        if corrupt {
            let mut bytes = std::fs::read(shop.path("mini.xz")).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0x55);
            std::fs::write(shop.path("mini.xz"), bytes).unwrap();
        }
        shop.run("objcopy --add-section .gnu_debugdata=mini.xz prog packed");
        let p = Running::start(&mut Command::new(shop.path("packed")));
        if corrupt {
            let notes = refused(&p);
            assert!(notes.iter().any(|n| n.contains("cannot be unpacked")), "{notes:?}");
        } else {
            assert_eq!(found(&p), SymbolSource::MiniDebugInfo);
        }
    }
}

#[test]
fn a_program_that_was_removed_or_replaced() {
    let shop = shop();
    shop.run("gcc -O2 a.c -o prog").run("cp prog again");
    let p = Running::start(&mut Command::new(shop.path("prog")));
    let before = p.objects().main().path().to_owned();

    shop.run("rm prog");
    assert_eq!(found(&p), SymbolSource::Symtab);
    let objects = p.objects();
    assert_eq!(objects.main().path(), before);
    let f = objects.function(None, "inner", 0).unwrap();
    let code = p.memory().read_vec(f.address, f.size as usize).unwrap();
    assert_eq!(objects.main().file_bytes(f.range()).unwrap(), code);

    // As a package upgrade does it: another file under the same name.
    shop.write("b.c", &PROGRAM.replace("x + 1", "x * 77")).run("gcc -O2 b.c -o new").run("mv new prog");
    assert_eq!(found(&p), SymbolSource::Symtab);
    let objects = p.objects();
    let f = objects.function(None, "inner", 0).unwrap();
    assert_eq!(objects.main().file_bytes(f.range()).unwrap(), code);
}

#[test]
fn a_program_in_a_jail() {
    let shop = shop();
    shop.run("gcc -O2 -static a.c -o prog");
    let jail = shop.path("");
    let allowed = Command::new("chroot").args(["/", "true"]).status().is_ok_and(|s| s.success());
    if !allowed {
        println!("chroot is not allowed here");
        return;
    }
    let p = Running::start(Command::new("chroot").arg(&jail).arg("/prog"));
    assert_eq!(found(&p), SymbolSource::Symtab);
    let objects = p.objects();
    let f = objects.function(None, "inner", 0).unwrap();
    let code = p.memory().read_vec(f.address, f.size as usize).unwrap();
    assert_eq!(objects.main().file_bytes(f.range()).unwrap(), code);
}

#[test]
fn a_library_that_was_replaced_in_place_is_refused() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write("lib.c", "int exported(int x) { return x + 1; } static int own(int x) { __asm__ volatile(\"\"); return x; } int user(int x) { return own(x); }");
    shop.write("other.c", "int more(int x) { return x; } int exported(int x) { return more(x) + 1; }");
    shop.write(
        "main.c",
        "#include \"tell.h\"\nint exported(int);\nint main(void) { printf(\"r %x\\n\", exported(1)); READY; }",
    );
    shop.run("gcc -shared -fPIC lib.c -o libgone.so")
        .run("gcc -shared -fPIC -Wl,--build-id=0x11 other.c -o other.so");
    shop.run("gcc main.c -o prog -L. -lgone");
    let p = Running::start(Command::new(shop.path("prog")).env("LD_LIBRARY_PATH", shop.path("")));
    let exported = p.objects().function(Some("libgone.so"), "exported", 0).unwrap();
    // Same inode, other bytes; what is mapped keeps the headers that were read at the start in its page cache, so
    // the notes of the two can only differ where the new file's length does not reach.
    let at = p.objects().find(Some("libgone.so")).unwrap().segments()[0].vaddr;
    let bias = p.objects().find(Some("libgone.so")).unwrap().bias();
    let note = ugraft_process::RemoteAddr(at.0 + bias);
    let mut head = p.memory().read_vec(note, 4096).unwrap();
    let gnu = head.windows(4).position(|w| w == b"GNU\0").unwrap();
    let id = head[gnu..].windows(4).skip(1).position(|w| w == b"GNU\0").map_or(gnu, |i| gnu + 1 + i);
    // The private copy of the page in the target is made to tell of another build.
    head[id + 4] ^= 0xff;
    p.memory().write(note, &head).unwrap();
    let objects = p.objects();
    let lib = objects.find(Some("libgone.so")).unwrap();
    let Err(FileProblem::Differs { difference, .. }) = lib.file() else { panic!("{:?}", lib.file()) };
    assert_eq!(difference, "another build-id");
    let f = objects.function(Some("libgone.so"), "exported", 0).unwrap();
    assert_eq!(f.address, exported.address);
    assert_eq!(lib.symbols().unwrap().source(), &SymbolSource::DynsymOnly);
    let Err(Error::Symbol(SymbolError::File(_))) = lib.file_bytes(f.range()) else { panic!() };
    let Err(Error::Symbol(SymbolError::NotFound { notes, .. })) = lib.function("own", 0) else { panic!() };
    assert!(notes[0].contains("another build-id"), "{notes:?}");
}

#[test]
fn text_relocations_are_told() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write(
        "lib.s",
        ".text\n.globl where\n.type where,@function\nwhere: movabs $where, %rax\nret\n.size where,.-where\n\
         .globl plain\n.type plain,@function\n.p2align 4\nplain: mov %edi,%eax\nret\n.size plain,.-plain\n\
         .section .note.GNU-stack,\"\",@progbits\n",
    );
    shop.write(
        "main.c",
        "#include \"tell.h\"\nvoid *where(void);\nint main(void) { TELL_AS(\"where\", where()); READY; }",
    );
    shop.run("gcc -shared -Wl,-z,notext lib.s -o libtext.so").run("gcc main.c -o prog -L. -ltext");
    let p = Running::start(Command::new(shop.path("prog")).env("LD_LIBRARY_PATH", shop.path("")));
    let objects = p.objects();
    let lib = objects.find(Some("libtext.so")).unwrap();
    let f = lib.function("where", 0).unwrap();
    assert_eq!(f.address, p.truth("where"));
    let Err(Error::Symbol(SymbolError::TextRelocation { address, .. })) = lib.file_bytes(f.range()) else {
        panic!()
    };
    assert_eq!(address.0, f.address.0 + 2);
    let plain = lib.function("plain", 0).unwrap();
    assert_eq!(lib.file_bytes(plain.range()).unwrap(), [0x89, 0xf8, 0xc3]);
}
