//! Files that are no patches, or patches that cannot be linked, each with the message it gets. The messages are in
//! refused/messages.txt, one a line after the case's name; with UGRAFT_BLESS=1 the test writes that file anew.

#[path = "support/elf_edit.rs"]
mod elf_edit;
mod support;

use elf_edit::{Elf, sh};
use std::path::Path;
use std::process::Command;
use support::*;
use ugraft_image::{Import, KlpSymbol, PatchFile, RemoteAddr, Resolution, Resolve, link};

const GOOD: &str = include_str!("refused/good.c");

/// The named cases, in order.
struct Cases {
    list: Vec<(String, String)>,
    good: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Cases {
    fn new() -> Self {
        Self {
            list: Vec::new(),
            good: object("gcc", GOOD, &["-O2", "-fPIC"]),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn named(&mut self, name: &str, bytes: &[u8], stem: &str) {
        let message = match PatchFile::parse(bytes, stem) {
            Ok(_) => "ACCEPTED".to_string(),
            Err(error) => error.to_string(),
        };
        assert!(!message.contains('\n'), "{name}: one line: {message}");
        self.list.push((name.to_string(), message));
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        self.named(name, bytes, "fix");
    }

    /// The good object, changed.
    fn edit(&mut self, name: &str, change: impl FnOnce(Elf) -> Elf) {
        let elf = change(Elf(self.good.clone()));
        self.bytes(name, &elf.0);
    }

    /// A source compiled as a whole.
    fn source(&mut self, name: &str, cc: &str, source: &str, options: &[&str]) {
        let bytes = object(cc, source, options);
        self.bytes(name, &bytes);
    }

    /// The good source with a piece replaced.
    fn instead(&mut self, name: &str, from: &str, to: &str) {
        assert!(GOOD.contains(from), "{name}: {from}");
        self.source(name, "gcc", &GOOD.replace(from, to), &["-O2", "-fPIC"]);
    }

    /// The good source with lines added.
    fn with(&mut self, name: &str, more: &str, options: &[&str]) {
        let options = [&["-O2"][..], options].concat();
        self.source(name, "gcc", &format!("{GOOD}\n{more}\n"), &options);
    }

    /// The good source linked by `f`.
    fn link(&mut self, name: &str, more: &str, options: &[&str], base: u64, resolve: &mut dyn Resolve) {
        let bytes = object("gcc", &format!("{GOOD}\n{more}\n"), &[&["-O2"][..], options].concat());
        let patch = PatchFile::parse(&bytes, "fix").unwrap_or_else(|e| panic!("{name}: {e}"));
        let message = match link(&patch, RemoteAddr(base), resolve) {
            Ok(_) => "ACCEPTED".to_string(),
            Err(error) => error.to_string(),
        };
        self.list.push((name.to_string(), message));
    }
}

/// Where what is far lies.
const FAR: RemoteAddr = RemoteAddr(0x7000_0000_0000);

/// Everything but `far_function` has one answer.
struct Answer(Resolution);

impl Resolve for Answer {
    fn symbol(&mut self, import: &Import) -> Resolution {
        if import.name == "far_function" { Resolution::Address(FAR) } else { self.0.clone() }
    }
    fn klp_symbol(&mut self, _: &KlpSymbol, _: &Import) -> Resolution {
        self.0.clone()
    }
}

#[test]
fn messages() {
    let mut cases = Cases::new();
    let good = cases.good.clone();
    cases.bytes("the good one", &good);
    files(&mut cases);
    elf_structure(&mut cases);
    sections(&mut cases);
    symbols_and_relocations(&mut cases);
    info(&mut cases);
    structures(&mut cases);
    linking(&mut cases);

    let accepted: Vec<_> = cases.list.iter().filter(|(_, m)| m == "ACCEPTED").map(|(n, _)| n).collect();
    assert_eq!(accepted, ["the good one"]);
    let text: String = cases.list.iter().map(|(name, message)| format!("{name}: {message}\n")).collect();
    let snapshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused/messages.txt");
    if std::env::var_os("UGRAFT_BLESS").is_some() {
        std::fs::write(&snapshot, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&snapshot).unwrap_or_default();
    for (line, wanted) in text.lines().zip(expected.lines()) {
        assert_eq!(line, wanted);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
}

fn files(cases: &mut Cases) {
    cases.bytes("an empty file", b"");
    cases.bytes("a source file", GOOD.as_bytes());
    cases.bytes("gzip", b"\x1f\x8b\x08\0\0\0\0\0");
    cases.bytes("xz", b"\xfd7zXZ\0\0\0");
    cases.bytes("zstd", b"\x28\xb5\x2f\xfd\0\0");
    cases.bytes("zip", b"PK\x03\x04\0\0");
    cases.bytes("script", b"#!/bin/sh\n");
    cases.bytes("noise", &[0xf3, 1, 2, 3, 0, 9, 8, 7]);
    cases.source("clang -flto", "clang", GOOD, &["-O2", "-flto"]);
    cases.source("gcc -flto", "gcc", GOOD, &["-O2", "-flto"]);
    let plain = "int f(void) { return 1; }";
    cases.source("i386", "clang", plain, &["--target=i386-linux-gnu"]);
    cases.source("x32", "clang", plain, &["--target=x86_64-linux-gnux32"]);
    cases.source("aarch64", "clang", plain, &["--target=aarch64-linux-gnu"]);
    cases.edit("big endian", |e| e.set(5, &[2]));
    let dir = cases.dir.path().to_path_buf();
    std::fs::write(dir.join("main.c"), "int main(void) { return 0; }").unwrap();
    for (name, options) in [
        ("an executable", &["-no-pie"][..]),
        ("a pie", &["-pie"]),
        ("a shared object", &["-shared", "-fPIC"]),
    ] {
        run(Command::new("gcc").args(options).arg(dir.join("main.c")).arg("-o").arg(dir.join("out")));
        cases.bytes(name, &std::fs::read(dir.join("out")).unwrap());
    }
    std::fs::write(dir.join("good.o"), &cases.good).unwrap();
    run(Command::new("ar").arg("rc").arg(dir.join("good.a")).arg(dir.join("good.o")));
    cases.bytes("an archive", &std::fs::read(dir.join("good.a")).unwrap());
    cases.edit("a core file", |e| e.set(16, &[4, 0]));
    cases.edit("an unknown type", |e| e.set(16, &[9, 0]));
    cases.with(
        "a kernel module",
        "int this_module __attribute__((section(\".gnu.linkonce.this_module\"))) = 1;",
        &[],
    );
    let mut large = cases.good.clone();
    large.resize((64 << 20) + 1, 0);
    cases.bytes("too large", &large);
}

fn elf_structure(cases: &mut Cases) {
    let good = cases.good.clone();
    cases.bytes("cut off in the magic", &good[..3]);
    cases.bytes("cut off in the header", &good[..63]);
    cases.bytes("cut off in the middle", &good[..good.len() / 2]);
    cases.bytes("cut off at the end", &good[..good.len() - 1]);
    cases.edit("class", |e| e.set(4, &[7]));
    cases.edit("byte order", |e| e.set(5, &[7]));
    cases.edit("version", |e| e.set(20, &[2]));
    cases.edit("another system", |e| e.set(7, &[9]));
    cases.edit("header size", |e| e.set(52, &[65]));
    cases.edit("no section headers", |e| e.set(40, &[0; 8]));
    cases.edit("section headers far away", |e| e.set(40, &[0xff; 8]));
    cases.edit("section header size", |e| e.set(58, &[63]));
    cases.edit("no sections", |e| e.set(60, &[0; 2]));
    cases.edit("extended numbering", |e| {
        let at = e.header(0) + sh::SIZE;
        e.set(60, &[0; 2]).set(at, &70_000u64.to_le_bytes())
    });
    cases.edit("too many sections", |e| e.set(60, &40_000u16.to_le_bytes()));
    cases.edit("section 0", |e| {
        let at = e.header(0) + sh::TYPE;
        e.set(at, &[1])
    });
    cases.edit("no section names", |e| e.set(62, &[0xff, 0]));
    cases.edit("section name far away", |e| e.section(".data", sh::NAME, &[0xff; 4]));
    cases.edit("sections overlap", |e| {
        let text = e.content(".text") as u64;
        e.section(".rodata.str1.1", sh::OFFSET, &text.to_le_bytes())
    });
    cases.edit("section over the header", |e| e.section(".rodata.str1.1", sh::OFFSET, &16u64.to_le_bytes()));
    cases.edit("section beyond the file", |e| e.section(".text", sh::SIZE, &(1u64 << 40).to_le_bytes()));
    cases.edit("section end overflows", |e| e.section(".text", sh::SIZE, &[0xff; 8]));
    cases.edit("alignment 24", |e| e.section(".text", sh::ALIGN, &[24]));
    cases.edit("two symbol tables", |e| e.section(".text", sh::TYPE, &[2]));
    cases.edit("symbol size", |e| e.section(".symtab", sh::ENTSIZE, &[25]));
    cases.edit("part of a symbol", |e| {
        let size = e.u64(e.header(e.index(".symtab")) + sh::SIZE) - 1;
        e.section(".symtab", sh::SIZE, &size.to_le_bytes())
    });
    cases.edit("no symbol names", |e| e.section(".symtab", sh::LINK, &[1]));
    let symbol = |cases: &mut Cases, name: &str, member: usize, value: &[u8]| {
        cases.edit(name, |e| {
            let at = e.symbol("new_answer") + member;
            e.set(at, value)
        });
    };
    symbol(cases, "symbol in no section", 6, &[0x99, 0]);
    symbol(cases, "symbol in a reserved section", 6, &[0x80, 0xff]);
    symbol(cases, "symbol too long", 16, &[0xff, 0xff]);
    symbol(cases, "symbol end overflows", 8, &[0xff; 8]);
    symbol(cases, "symbol type", 4, &[9]);
    symbol(cases, "symbol binding", 4, &[0x92]);
    symbol(cases, "symbol name far away", 0, &[0xff, 0xff, 0xff, 0]);
    cases.edit("symbol name not UTF-8", |e| {
        let at = e.content(".strtab") + e.u32(e.symbol("new_answer")) as usize;
        e.set(at, &[0xff])
    });
    cases.edit("symbol name does not end", |e| {
        let (at, size) = (e.content(".strtab"), e.u64(e.header(e.index(".strtab")) + sh::SIZE) as usize);
        e.set(at + size - 1, b"x")
    });
    let long = format!("void {}(void); void g(void) {{ {}(); }}", "x".repeat(17_000), "x".repeat(17_000));
    cases.with("symbol name too long", &long, &[]);
    cases.edit("relocation size", |e| e.section(".rela.text", sh::ENTSIZE, &[23]));
    cases.edit("part of a relocation", |e| {
        let size = e.u64(e.header(e.index(".rela.text")) + sh::SIZE) - 1;
        e.section(".rela.text", sh::SIZE, &size.to_le_bytes())
    });
    cases.edit("relocation without symbols", |e| e.section(".rela.text", sh::LINK, &[1]));
    cases.edit("relocation of no section", |e| e.section(".rela.text", sh::INFO, &[0x99]));
    cases.edit("relocation of section 0", |e| e.section(".rela.text", sh::INFO, &[0]));
    cases.edit("relocation of no symbol", |e| {
        let at = e.rela(".rela.text", 0) + 12;
        e.set(at, &[0xff, 0xff])
    });
    cases.edit("relocation beyond the section", |e| {
        let at = e.rela(".rela.text", 0);
        e.set(at, &[0xff; 8])
    });
    cases.edit("relocations overlap", |e| {
        let (at, offset) = (e.rela(".rela.data.rel.local", 1), e.u64(e.rela(".rela.data.rel.local", 0)));
        e.set(at, &(offset + 7).to_le_bytes())
    });
    cases.edit("relocations without addend", |e| e.section(".rela.text", sh::TYPE, &[9]));
}

fn sections(cases: &mut Cases) {
    cases.with("writable code", "__asm__(\".section .mixed,\\\"awx\\\"; nop; .text\");", &[]);
    cases.with(
        "constructor",
        "__attribute__((constructor)) static void start(void) { answer_calls = 5; }",
        &[],
    );
    cases.with("destructor", "__attribute__((destructor)) static void stop(void) { answer_calls = 5; }", &[]);
    cases.with("old constructor", "__asm__(\".section .ctors,\\\"aw\\\"; .quad 0; .text\");", &[]);
    cases.with("init section", "__asm__(\".section .init,\\\"ax\\\"; nop; .text\");", &[]);
    cases.with(
        "address sanitizer",
        "int buffer[4]; int get(int i) { return buffer[i]; }",
        &["-fsanitize=address"],
    );
    cases.with("own thread-local variable", "__thread int mine = 3; int *get(void) { return &mine; }", &[]);
    cases.with(
        "own thread-local zero",
        "static __thread int mine; int *get(void) { return &mine; }",
        &["-fPIC"],
    );
    cases.with(
        "nested function",
        "int call(int (*f)(int)); int outer(int a) { int inner(int b) { return a + b; } return call(inner); }",
        &["-O0"],
    );
    cases.edit("compressed", |e| {
        let flags = e.u64(e.header(e.index(".text")) + sh::FLAGS) | 0x800;
        e.section(".text", sh::FLAGS, &flags.to_le_bytes())
    });
    cases.with("alignment", "int spread __attribute__((aligned(8192))) = 1;", &[]);
    cases.with("alignment of a common symbol", "int spread __attribute__((aligned(8192)));", &["-fcommon"]);
    cases.edit("unknown kind", |e| e.section(".rodata.str1.1", sh::TYPE, &0x6000_0001u32.to_le_bytes()));
    cases.with("constant zeros", "__asm__(\".section .hole,\\\"a\\\",@nobits; .zero 64; .text\");", &[]);
    cases.with("too large an image", "char big[300 << 20];", &[]);
    cases.with("too large a sum", "char a[200 << 20]; char b[200 << 20];", &["-fcommon"]);
}

fn symbols_and_relocations(cases: &mut Cases) {
    cases.with(
        "ifunc",
        "static int one(void) { return 1; } static int (*pick(void))(void) { return one; } int f(void) __attribute__((ifunc(\"pick\")));",
        &[],
    );
    cases.with(
        "target_clones",
        "__attribute__((target_clones(\"avx2\", \"default\"))) int f(int a) { return a * 3; }",
        &[],
    );
    for (name, symbol) in [
        ("klp symbol without position", ".klp.sym.exe.f"),
        ("klp symbol with a bad position", ".klp.sym.exe.f,x"),
        ("klp symbol with too large a position", ".klp.sym.exe.f,4294967296"),
        ("klp symbol without symbol", ".klp.sym.libz.so.1,0"),
        ("klp symbol without object", ".klp.sym..f,0"),
        ("klp symbol with a slash", ".klp.sym.lib/z.f,0"),
    ] {
        cases.with(
            name,
            &format!("int f(void); __asm__(\".set f, \\\"{symbol}\\\"\"); int g(void) {{ return f(); }}"),
            &[],
        );
    }
    let cc = "#include <ugraft/livepatch.h>\nstruct T { int v; T(); ~T(); };\nextern \"C\" int f(void) { static T t; return t.v; }\n\
        static klp_func funcs[] = { { \"f\", (void *)f }, {} };\nstatic klp_object objs[] = { { nullptr, funcs }, {} };\n\
        static klp_patch patch = { nullptr, objs };\nKLP_PATCH(patch);\n";
    let dir = tempfile::tempdir().unwrap();
    let from = compile(dir.path(), "g++", "static", "cc", cc, &["-O2"]);
    cases.bytes("static object with destructor", &std::fs::read(from).unwrap());

    let reloc = |cases: &mut Cases, name: &str, directive: &str| {
        cases.with(name, &format!("__asm__(\".data; {directive}; .text\");"), &[]);
    };
    reloc(cases, "R_X86_64_8", ".byte far_symbol");
    reloc(cases, "R_X86_64_16", ".word far_symbol");
    reloc(cases, "R_X86_64_PC8", ".byte far_symbol - .");
    reloc(cases, "R_X86_64_PC16", ".word far_symbol - .");
    reloc(cases, "R_X86_64_GOT32", ".long far_symbol@GOT");
    for (name, kind) in
        [("R_X86_64_RELATIVE", 8u32), ("R_X86_64_CODE_4_GOTPCRELX", 43), ("an unknown relocation", 200)]
    {
        cases.edit(name, |e| {
            let at = e.rela(".rela.text", 0) + 8;
            e.set(at, &kind.to_le_bytes())
        });
    }
    let tls = "extern __thread int theirs; int *get(void) { return &theirs; }";
    cases.with("dynamic TLS", tls, &["-fPIC"]);
    cases.with("TLS descriptors", tls, &["-fPIC", "-mtls-dialect=gnu2"]);
    cases.with(
        "local dynamic TLS",
        "__asm__(\"leaq theirs@TLSLD(%rip), %rdi; call __tls_get_addr@PLT\");",
        &[],
    );
    cases.with("TLS offset in a module", "__asm__(\"leaq theirs@DTPOFF(%rax), %rdi\");", &[]);
    cases.edit("thread-local access to an own variable", |e| {
        let at = e.rela(".rela.text", 0) + 8;
        e.set(at, &22u32.to_le_bytes())
    });
    cases.with("size of a target's symbol", "__asm__(\".data; .quad far_symbol@SIZE; .text\");", &[]);
    cases.with(
        "reference to a dropped section",
        "__asm__(\".section .notes; here: .long 1; .data; .quad here; .text\");",
        &[],
    );
}

fn info(cases: &mut Cases) {
    let good = cases.good.clone();
    cases.named("the file's name", &good, "my fix");
    cases.named("an empty file name", &good, "");
    cases.named("a long file name", &good, &"n".repeat(56));
    cases.named("a hidden file", &good, ".fix");
    let more = |cases: &mut Cases, name: &str, text: &str| cases.with(name, text, &[]);
    more(cases, "empty name", "KLP_NAME(\"\");");
    more(cases, "name with a slash", "KLP_NAME(\"a/b\");");
    more(cases, "name with a dash first", "KLP_NAME(\"-rf\");");
    more(cases, "two names", "KLP_NAME(\"a\"); KLP_NAME(\"b\");");
    more(cases, "two versions", "KLP_VERSION(\"1\"); KLP_VERSION(\"2\");");
    more(cases, "terminal escape", "KLP_DESCRIPTION(\"\\033[2J\");");
    more(cases, "description not UTF-8", "KLP_DESCRIPTION(\"\\377\");");
    more(cases, "long description", &format!("KLP_DESCRIPTION(\"{}\");", "d".repeat(1025)));
    more(
        cases,
        "not key=value",
        "static const char s[] __attribute__((section(\".modinfo\"), used)) = \"nonsense\";",
    );
    cases.edit("string that does not end", |e| {
        let last = e.content(".modinfo") + e.u64(e.header(e.index(".modinfo")) + sh::SIZE) as usize - 1;
        e.set(last, b"x")
    });
    let strings: String = (0..1100).map(|i| format!("KLP_INFO(\"k{i}\", \"v\");")).collect();
    more(cases, "too many strings", &strings);
    more(cases, "dependency on itself", "KLP_DEPENDS(\"fix\");");
    more(cases, "empty dependency", "KLP_DEPENDS(\"a,,b\");");
    let depends: String = (0..65).map(|i| format!("KLP_DEPENDS(\"d{i}\");")).collect();
    more(cases, "too many dependencies", &depends);
    more(cases, "build-id without object", "KLP_OBJECT_BUILD_ID(\"\", \"0011223344\");");
    more(cases, "build-id of another object", "KLP_OBJECT_BUILD_ID(\"libq.so\", \"0011223344\");");
    more(cases, "build-id not hexadecimal", "KLP_OBJECT_BUILD_ID(\"exe\", \"0011223g\");");
    more(cases, "build-id of odd length", "KLP_OBJECT_BUILD_ID(\"exe\", \"001122334\");");
    more(cases, "build-id too short", "KLP_OBJECT_BUILD_ID(\"exe\", \"0011\");");
    more(
        cases,
        "two build-ids",
        "KLP_OBJECT_BUILD_ID(\"exe\", \"00112233\"); KLP_OBJECT_BUILD_ID(\"exe\", \"00112234\");",
    );
    more(cases, "build-id without colon", "KLP_INFO(\"build_id\", \"001122\");");
    cases.source(
        "header of another version",
        "gcc",
        &GOOD.replace("KLP_PATCH(patch)", "#undef KLP_ABI\n#define KLP_ABI \"9\"\nKLP_PATCH(patch)"),
        &["-O2"],
    );
    cases.edit("no version of the header", |e| {
        let start = e.content(".modinfo");
        let at = start + e.0[start..].windows(4).position(|w| w == b"klp_").unwrap();
        e.set(at, b"xlp_")
    });
}

fn structures(cases: &mut Cases) {
    cases.instead("no patch", "KLP_PATCH(patch);", "struct klp_patch *p = &patch;");
    cases.with("two patches", "KLP_PATCH(patch);", &[]);
    cases.instead(
        "a mark of nothing",
        "KLP_PATCH(patch);",
        "KLP_INFO(\"klp_abi\", KLP_ABI); __asm__(\".section .klp.patch,\\\"aw\\\"; .quad 0; .text\");",
    );
    cases.instead(
        "a mark of something elsewhere",
        "KLP_PATCH(patch);",
        "extern struct klp_patch elsewhere; KLP_PATCH(elsewhere); struct klp_patch *p = &patch;",
    );
    let member = |cases: &mut Cases, name: &str, to: &str| cases.instead(name, ".mod = THIS_MODULE,", to);
    member(cases, "module elsewhere", ".mod = (struct module *)&answer_calls,");
    member(cases, "internal member of the patch", ".klp_reserved = { 1 },");
    cases.instead("objs missing", ".objs = objs", ".states = 0");
    cases.instead("objs a number", ".objs = objs", ".objs = (struct klp_object *)4096");
    cases.instead(
        "objs elsewhere",
        "static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs",
        "extern struct klp_object far_objs[]; struct klp_object *other = objs; static struct klp_patch patch = { .objs = far_objs",
    );
    cases.instead("objs in code", ".objs = objs", ".objs = (struct klp_object *)new_answer");
    cases.instead("objs without end", "{ } /* end of objs */", "");
    cases.instead("funcs without end", "{ } /* end of funcs */", "");
    cases.instead("funcs missing", ".funcs = funcs", ".funcs = NULL, .name = \"libz.so.1\"");
    cases.instead("funcs missing with a callback", ".funcs = funcs", ".callbacks = { .post_patch = done }");
    let object = |cases: &mut Cases, name: &str, to: &str| {
        cases.instead(name, ".funcs = funcs", &format!(".funcs = funcs, {to}"))
    };
    object(cases, "object exe", ".name = \"exe\"");
    object(cases, "object vmlinux", ".name = \"vmlinux\"");
    object(cases, "object with a path", ".name = \"/lib/libz.so.1\"");
    object(cases, "object without name", ".name = \"\"");
    object(cases, "object with a blank", ".name = \"lib z\"");
    object(cases, "object with a long name", &format!(".name = \"{}\"", "o".repeat(256)));
    object(cases, "object name a number", ".name = (const char *)1");
    object(cases, "object name not UTF-8", ".name = \"\\377\"");
    object(cases, "internal member of the object", ".klp_reserved = { 0, 7 }");
    object(
        cases,
        "callback in data",
        ".callbacks = { .pre_patch = (int (*)(struct klp_object *))&answer_calls }",
    );
    object(
        cases,
        "callback elsewhere",
        ".callbacks = { .post_patch = (void (*)(struct klp_object *))far_function }",
    );
    let func = |cases: &mut Cases, name: &str, to: &str| {
        cases.instead(name, ".old_name = \"answer\", .new_func = (void *)new_answer", to);
    };
    func(cases, "old_name missing", ".new_func = (void *)new_answer");
    func(cases, "old_name empty", ".old_name = \"\", .new_func = (void *)new_answer");
    func(cases, "old_name with a newline", ".old_name = \"a\\nb\", .new_func = (void *)new_answer");
    func(cases, "old_name with a blank first", ".old_name = \" a\", .new_func = (void *)new_answer");
    func(cases, "old_name not UTF-8", ".old_name = \"\\377\", .new_func = (void *)new_answer");
    func(
        cases,
        "old_name too long",
        &format!(".old_name = \"{}\", .new_func = (void *)new_answer", "l".repeat(16_385)),
    );
    func(
        cases,
        "old_name holds an address",
        ".old_name = (const char *)&answer_name, .new_func = (void *)new_answer",
    );
    func(cases, "new_func missing", ".old_name = \"answer\"");
    func(cases, "new_func a number", ".old_name = \"answer\", .new_func = (void *)1");
    func(cases, "new_func in data", ".old_name = \"answer\", .new_func = &answer_calls");
    func(cases, "new_func elsewhere", ".old_name = \"answer\", .new_func = (void *)far_function");
    func(cases, "new_func in the middle", ".old_name = \"answer\", .new_func = (char *)new_answer + 1");
    func(cases, "new_func without type", ".old_name = \"answer\", .new_func = (void *)untyped");
    func(cases, "new_func without size", ".old_name = \"answer\", .new_func = (void *)unsized");
    func(
        cases,
        "sympos too large",
        ".old_name = \"answer\", .new_func = (void *)new_answer, .old_sympos = 1ul << 32",
    );
    func(
        cases,
        "sympos an address",
        ".old_name = \"answer\", .new_func = (void *)new_answer, .old_sympos = (unsigned long)&answer_calls",
    );
    func(
        cases,
        "internal member of the func",
        ".old_name = \"answer\", .new_func = (void *)new_answer, .klp_reserved = { 0, 0, 1 }",
    );
    let twice = ".old_name = \"answer\", .new_func = (void *)new_answer }, { .old_name = \"answer\", .old_sympos = 1, .new_func = (void *)new_answer";
    func(cases, "function twice", twice);
    cases.instead("object twice", "{ } /* end of objs */", "{ .funcs = funcs }, { }");
    cases.instead(
        "library twice",
        "{ } /* end of objs */",
        "{ .name = \"l.so\", .funcs = funcs }, { .name = \"l.so\", .funcs = funcs }, { }",
    );
    func(cases, "nothing to do", "");
    let many: String =
        (0..4097).map(|i| format!("{{ .old_name = \"f{i}\", .new_func = (void *)new_answer }},")).collect();
    cases.instead("too many functions", "{ } /* end of funcs */", &format!("{many} {{ }}"));
    let many: String = (0..257).map(|i| format!("{{ .name = \"l{i}.so\", .funcs = none }},")).collect();
    cases.instead("too many objects", "{ } /* end of objs */", &format!("{many} {{ }}"));
    let states = |cases: &mut Cases, name: &str, to: &str| {
        cases.instead(name, "static struct klp_patch patch = {", &format!("static struct klp_state states[] = {{ {to} }};\nstatic struct klp_patch patch = {{ .states = states,"));
    };
    states(cases, "state twice", "{ .id = 1 }, { .id = 2 }, { .id = 1 }, { }");
    states(cases, "states without end", "{ .id = 1 }");
    states(cases, "state with data", "{ .id = 1, .data = &answer_calls }, { }");
    let many: String = (1..258).map(|i| format!("{{ .id = {i} }},")).collect();
    states(cases, "too many states", &format!("{many} {{ }}"));
}

fn linking(cases: &mut Cases) {
    let mut nothing = Answer(Resolution::NotFound);
    let mut far = Answer(Resolution::Address(FAR));
    let mut thread = Answer(Resolution::TpOffset(-8));
    let mut refused = Answer(Resolution::Refused("there are 3 of that name".into()));
    const BASE: u64 = 0x5555_0000_0000;
    let call = "extern int far_call(int); extern int far_data; int use(void) { return far_call(far_data); }";
    cases.link("base not on a page", "", &["-fPIC"], BASE + 8, &mut far);
    cases.link("base 0", "", &["-fPIC"], 0, &mut far);
    cases.link("base in the kernel", "", &["-fPIC"], 1 << 47, &mut far);
    cases.link("base at the end", "", &["-fPIC"], u64::MAX - 4095, &mut far);
    cases.link("base too high", "int *get(void) { return &answer_calls; }", &["-fno-pic"], BASE, &mut far);
    cases.link("symbols missing", call, &["-fPIC"], BASE, &mut nothing);
    cases.link(
        "symbol refused",
        "extern int far_call(int); int use(void) { return far_call(1); }",
        &["-fPIC"],
        BASE,
        &mut refused,
    );
    let klp = "extern int hidden(int); KLP_SYMBOL(hidden, \"libz.so.1\", \"inflate.part.0\", 4); int use(void) { return hidden(1); }";
    cases.link("klp symbol missing", klp, &["-fPIC"], BASE, &mut nothing);
    let version = "extern int old_call(int); __asm__(\".symver old_call, old_call@GLIBC_2.2.5\"); int use(void) { return old_call(1); }";
    cases.link("version missing", version, &["-fPIC"], BASE, &mut nothing);
    cases.link("function that is thread-local", call, &["-fPIC"], BASE, &mut thread);
    let tls = "extern __thread int theirs; int use(void) { return theirs; }";
    cases.link("thread-local that is not", tls, &["-fPIC", "-ftls-model=initial-exec"], BASE, &mut far);
    cases.link("variable out of reach", call, &["-fpie"], BASE, &mut far);
    cases.link(
        "variable out of 32 bits",
        "extern int far_data; int *get(void) { return &far_data; }",
        &["-fno-pic"],
        0x10000,
        &mut far,
    );
    let mut later = Answer(Resolution::Movable(RemoteAddr(0)));
    cases.link("variable that can go", call, &["-fpie"], BASE, &mut later);
    cases.link(
        "jump into a function that can go",
        "__asm__(\"call far_call+8\");",
        &["-fPIC"],
        BASE,
        &mut later,
    );
    cases.link(
        "thread-local that is not, and can go",
        tls,
        &["-fPIC", "-ftls-model=initial-exec"],
        BASE,
        &mut later,
    );
    cases.link("jump into a far function", "__asm__(\"call far_call+8\");", &["-fPIC"], BASE, &mut far);
    let mut large_tls = Answer(Resolution::TpOffset(-(1 << 40)));
    cases.link(
        "thread-local out of reach",
        tls,
        &["-fno-pic", "-ftls-model=local-exec"],
        0x10000,
        &mut large_tls,
    );
}
