//! Functions of running programs by name and position, against what the programs say of themselves.

mod symbols_support;

use std::process::Command;
use symbols_support::{Running, TELL, Workshop};
use ugraft_process::Error;
use ugraft_process::objects::Role;
use ugraft_process::objects::scope::Value;
use ugraft_process::objects::symbols::{SizeFrom, SymbolError};

const TWO_FILES: [&str; 2] = [
    r#"
#include "tell.h"
__attribute__((noinline)) static int twice(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline)) int first(int x) { __asm__ volatile(""); return twice(x); }
void tell_b(void);
int some_data = 3;
int main(void)
{
    TELL(first); TELL_AS("twice.a", twice); TELL(some_data); TELL_AS("puts", puts);
    tell_b();
    READY;
}
"#,
    r#"
#include "tell.h"
__attribute__((noinline)) static int twice(int x) { __asm__ volatile(""); return x + 2; }
__attribute__((noinline)) int second(int x) { __asm__ volatile(""); return twice(x); }
void tell_b(void) { TELL(second); TELL_AS("twice.b", twice); }
"#,
];

fn two_files(flags: &str, cc: &str) -> (Workshop, Running) {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write("a.c", TWO_FILES[0]).write("b.c", TWO_FILES[1]);
    shop.run(&format!("{cc} -O2 {flags} a.c b.c -o prog"));
    let running = Running::start(&mut Command::new(shop.path("prog")));
    (shop, running)
}

fn symbol_error(e: Error) -> SymbolError {
    match e {
        Error::Symbol(e) => e,
        other => panic!("{other}"),
    }
}

fn check_two_files(p: &Running) {
    let objects = p.objects();
    let first = objects.function(None, "first", 0).unwrap();
    assert_eq!(first.address, p.truth("first"));
    assert_eq!(first.size_from, SizeFrom::Symbol);
    assert_eq!((first.name.as_str(), first.position), ("first", 1));
    assert_eq!(objects.klp_symbol(None, "some_data", 0).unwrap().value, p.truth("some_data").0);

    let mut both = [p.truth("twice.a"), p.truth("twice.b")];
    both.sort();
    for (i, address) in both.into_iter().enumerate() {
        let f = objects.function(None, "twice", i as u32 + 1).unwrap();
        assert_eq!(f.address, address);
        let file = if address == p.truth("twice.a") { "a.c" } else { "b.c" };
        assert_eq!(f.file.as_deref(), Some(file));
    }
    let SymbolError::Ambiguous { candidates, .. } =
        symbol_error(objects.function(None, "twice", 0).unwrap_err())
    else {
        panic!()
    };
    assert_eq!(candidates.iter().map(|c| c.address).collect::<Vec<_>>(), both);
    assert!(matches!(
        symbol_error(objects.function(None, "twice", 3).unwrap_err()),
        SymbolError::NoSuchPosition { position: 3, .. }
    ));
    assert!(matches!(
        symbol_error(objects.function(None, "some_data", 0).unwrap_err()),
        SymbolError::NotAFunction { kind: "data", .. }
    ));
    let SymbolError::NotFound { near, .. } = symbol_error(objects.function(None, "frist", 0).unwrap_err())
    else {
        panic!()
    };
    assert_eq!(near[0], "first");

    let at = ugraft_process::RemoteAddr(first.address.0 + 1);
    let said = objects.symbolize(at).unwrap().unwrap();
    assert_eq!((said.function.as_deref(), said.offset), (Some("first"), 1));

    let code = p.memory().read_vec(first.address, first.size as usize).unwrap();
    assert_eq!(objects.main().file_bytes(first.range()).unwrap(), code);

    let scope = objects.scope(&[]).unwrap();
    let puts = scope.resolve("puts", None).unwrap();
    assert_eq!(puts.value, Value::Address(p.truth("puts")));
    assert!(matches!(
        symbol_error(scope.resolve("no_such_thing", None).unwrap_err()),
        SymbolError::Undefined { .. }
    ));
}

#[test]
fn a_dynamic_position_independent_program() {
    let (_shop, p) = two_files("-pie -fPIE", "gcc");
    let objects = p.objects();
    assert!(objects.loader_debug().unwrap().consistent);
    assert_eq!(objects.main().role(), Role::Main);
    assert_eq!(objects.main().name(), "prog");
    let libc = objects.find(Some("libc.so.6")).unwrap();
    assert_eq!(libc.soname(), Some("libc.so.6"));
    assert!(objects.iter().any(|o| o.role() == Role::Loader));
    assert!(objects.iter().any(|o| o.role() == Role::Vdso));
    let Err(e) = objects.find(Some("libnothing.so")) else { panic!() };
    assert!(matches!(e, SymbolError::NotLoaded { .. }));
    check_two_files(&p);
}

#[test]
fn programs_of_every_kind() {
    for (cc, flags) in [
        ("gcc", "-no-pie"),
        ("gcc", "-static"),
        ("gcc", "-static-pie -fPIE"),
        ("gcc", "-Wl,--hash-style=sysv"),
        ("gcc", "-Wl,-z,noseparate-code"),
        ("clang", "-fuse-ld=lld"),
        ("clang", "-no-pie"),
        ("musl-gcc", ""),
        ("musl-gcc", "-static"),
    ] {
        println!("{cc} {flags}");
        let (_shop, p) = two_files(flags, cc);
        check_two_files(&p);
        let objects = p.objects();
        assert_eq!(objects.main().is_static(), flags.starts_with("-static"));
        assert!(objects.main().is_static() || objects.loader_debug().is_some(), "{cc} {flags}");
    }
}

#[test]
fn a_program_run_by_the_loader_itself() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write("a.c", TWO_FILES[0]).write("b.c", TWO_FILES[1]);
    for (cc, loader) in [("gcc", "/lib64/ld-linux-x86-64.so.2"), ("musl-gcc", "/lib/ld-musl-x86_64.so.1")] {
        shop.run(&format!("{cc} -O2 a.c b.c -o prog"));
        let p = Running::start(Command::new(loader).arg(shop.path("prog")));
        check_two_files(&p);
        let objects = p.objects();
        assert_eq!(objects.main().name(), "prog");
        assert_eq!(objects.iter().filter(|o| o.role() == Role::Loader).count(), 1);
        assert!(objects.loader_debug().is_some());
    }
}

#[test]
fn functions_chosen_at_start_are_the_chosen_ones() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write(
        "a.c",
        r#"
#include "tell.h"
#include <string.h>
static int plain(int x) { return x; }
static int fancy(int x) { return x + 1; }
static int (*pick(void))(int) { __builtin_cpu_init(); return __builtin_cpu_supports("sse2") ? fancy : plain; }
int chosen(int) __attribute__((ifunc("pick")));
static void *volatile here[4];
int main(int argc, char **argv)
{
    here[0] = memcpy; here[1] = strlen; here[2] = chosen;
    TELL_AS("chosen", fancy); TELL_AS("memcpy", here[0]); TELL_AS("strlen", here[1]); TELL_AS("pick", pick);
    READY;
}
"#,
    );
    for flags in
        ["-O2", "-O0 -Wl,-z,lazy", "-O2 -Wl,-z,now -pie", "-O2 -no-pie", "-O2 -static", "-O2 -static-pie"]
    {
        shop.run(&format!("gcc {flags} a.c -o prog"));
        let p = Running::start(&mut Command::new(shop.path("prog")));
        let objects = p.objects();
        let scope = objects.scope(&[]).unwrap();
        for name in ["memcpy", "strlen"] {
            let Value::Ifunc { chosen, .. } = scope.resolve(name, None).unwrap().value else { panic!() };
            assert_eq!(chosen, Some(p.truth(name)), "{name} {flags}");
            let object = (!objects.main().is_static()).then_some("libc.so.6");
            let f = objects.function(object, name, 0).unwrap();
            assert_eq!((f.address, f.name.as_str()), (p.truth(name), name), "{f:?}");
        }
        let f = objects.function(None, "chosen", 0).unwrap();
        assert_eq!((f.address, f.resolver), (p.truth("chosen"), Some(p.truth("pick"))), "{flags} {f:?}");
    }
}

#[test]
fn names_of_cpp_and_rust_as_people_write_them() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write(
        "a.cc",
        r#"
#include "tell.h"
#include <string>
namespace ns {
struct Foo {
    int v;
    __attribute__((noinline)) Foo(int v) : v(v) { __asm__ volatile(""); }
    __attribute__((noinline)) int bar(int x) { __asm__ volatile(""); return x + v; }
    __attribute__((noinline)) int bar(const std::string &s) { __asm__ volatile(""); return s.size() + v; }
    __attribute__((noinline)) int only(double) const { __asm__ volatile(""); return v; }
    __attribute__((noinline)) int operator+(int x) { __asm__ volatile(""); return v - x; }
};
template <class T> __attribute__((noinline)) T add(T a, T b) { __asm__ volatile(""); return a + b; }
}
__attribute__((noinline)) int global_function(int x) { __asm__ volatile(""); return x; }
int main()
{
    ns::Foo f(1);
    int n = f.bar(2) + f.bar(std::string("x")) + f.only(1.0) + (f + 3) + ns::add<int>(1, 2) + global_function(1);
    TELL_AS("add", (int (*)(int, int))ns::add<int>);
    TELL_AS("global", global_function);
    printf("result %x\n", n);
    READY;
}
"#,
    );
    for cc in ["g++ -O1", "clang++ -O1"] {
        shop.run(&format!("{cc} a.cc -o prog"));
        let p = Running::start(&mut Command::new(shop.path("prog")));
        let objects = p.objects();
        for (query, mangled) in [
            ("ns::Foo::bar(int)", "_ZN2ns3Foo3barEi"),
            ("ns::Foo::only(double) const", "_ZNK2ns3Foo4onlyEd"),
            ("ns::Foo::only", "_ZNK2ns3Foo4onlyEd"),
            ("ns::Foo::operator+(int)", "_ZN2ns3FooplEi"),
            ("ns::Foo::operator+", "_ZN2ns3FooplEi"),
            ("int ns::add<int>(int, int)", "_ZN2ns3addIiEET_S1_S1_"),
            ("ns::add<int>(int, int)", "_ZN2ns3addIiEET_S1_S1_"),
            ("ns::add<int>", "_ZN2ns3addIiEET_S1_S1_"),
            ("global_function", "_Z15global_functioni"),
            ("ns::Foo::Foo(int)", "_ZN2ns3FooC2Ei"),
        ] {
            let f = objects.function(None, query, 0).unwrap_or_else(|e| panic!("{query}: {e}"));
            assert!(f.aliases.iter().any(|n| n == mangled), "{query}: {f:?}");
            assert_eq!(objects.function(None, mangled, 0).unwrap().address, f.address);
            let again = objects.function(None, &f.name, f.position).unwrap();
            assert_eq!((again.address, again.canonical), (f.address, f.canonical), "{query}");
        }
        assert_eq!(objects.function(None, "ns::add<int>", 0).unwrap().address, p.truth("add"));
        assert_eq!(objects.function(None, "global_function", 0).unwrap().address, p.truth("global"));
        let Err(e) = objects.function(None, "ns::Foo::bar", 0) else { panic!() };
        let SymbolError::Ambiguous { candidates, .. } = symbol_error(e) else { panic!() };
        assert_eq!(candidates.len(), 2);
        let said = objects.function(None, "ns::Foo::bar", 0).unwrap_err().to_string();
        assert!(said.contains("ns::Foo::bar(int)"), "{said}");
        let said = objects.function(None, "ns::Fool::only(double) const", 0).unwrap_err().to_string();
        assert!(said.contains("did you mean ns::Foo::only(double) const?"), "{said}");
    }

    shop.write(
        "a.rs",
        r#"
mod inner {
    pub struct Foo(pub u64);
    impl Foo { #[inline(never)] pub fn bar(&self, x: u64) -> u64 { std::hint::black_box(self.0 + x) } }
    impl std::fmt::Display for Foo {
        #[inline(never)]
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{}", self.0) }
    }
}
fn main() {
    let foo = inner::Foo(std::env::args().count() as u64);
    eprint!("{}", &foo.to_string()[..0]);
    println!("bar {:x}", inner::Foo::bar as fn(&inner::Foo, u64) -> u64 as usize);
    println!("result {:x}", foo.bar(2));
    println!("ready");
    loop { std::thread::park(); }
}
"#,
    );
    for mangling in ["legacy", "v0"] {
        let unstable = if mangling == "legacy" { "-Zunstable-options" } else { "" };
        shop.run(&format!(
            "env RUSTC_BOOTSTRAP=1 rustc {unstable} -Csymbol-mangling-version={mangling} -O a.rs -o prog"
        ));
        let p = Running::start(&mut Command::new(shop.path("prog")));
        let objects = p.objects();
        let f = objects
            .function(None, "a::inner::Foo::bar", 0)
            .or_else(|_| objects.function(None, "<a::inner::Foo>::bar", 0));
        let f = f.unwrap_or_else(|e| panic!("{mangling}: {e}"));
        assert_eq!(f.address, p.truth("bar"), "{mangling}");
        let hashed = format!("{}", rustc_demangle::demangle(&f.name));
        assert_eq!(objects.function(None, &hashed, 0).unwrap().address, f.address, "{hashed}");
        assert!(hashed.len() > 20);
        objects.function(None, "<a::inner::Foo as core::fmt::Display>::fmt", 0).unwrap();
    }
}

#[test]
fn cold_parts_and_copies_are_told() {
    let shop = Workshop::new();
    // Three functions with cold parts; two are static namesakes. `big` jumps through a table.
    let body = |name: &str, linkage: &str, word: &str| {
        format!(
            r#"
__attribute__((noinline)) {linkage} int {name}(int *p, int n)
{{
    volatile char keep[64]; keep[n & 63] = 1;
    if (n > 1000) {{ rare(p); rare(p + 1); *p += keep[3]; fputs("{word}", stderr); rare(p + 2); }}
    return p[n] + keep[n & 7];
}}
"#
        )
    };
    let rare = r#"
#include "tell.h"
__attribute__((cold, noinline)) void rare(int *p);
"#;
    shop.write("tell.h", TELL);
    let tell = r#"
void tell_b(void);
__attribute__((cold, noinline)) void rare(int *p) { *p = 3; }
int main(int argc, char **argv)
{
    int some[8] = { argc };
    TELL_AS("a", split); TELL(shared);
    tell_b();
    printf("r %x\n", split(some, argc) + shared(some, argc));
    READY;
}
"#;
    shop.write("a.c", &format!("{rare}{}{}{tell}", body("split", "static", "a"), body("shared", "", "s")));
    shop.write(
        "b.c",
        &format!(
            "{rare}{}void tell_b(void) {{ int some[8] = {{ 1 }}; TELL_AS(\"b\", split); printf(\"rb %x\\n\", split(some, 1)); }}",
            body("split", "static", "b")
        ),
    );
    shop.run("gcc -O2 a.c b.c -o prog");
    shop.run("cp prog stripped").run("strip stripped");
    let p = Running::start(&mut Command::new(shop.path("prog")));
    let objects = p.objects();
    let mut truth = Vec::new();
    for name in ["a", "b"] {
        let f = (1..=2)
            .map(|i| objects.function(None, "split", i).unwrap())
            .find(|f| f.address == p.truth(name))
            .unwrap();
        assert_eq!(f.cold.len(), 1, "{f:?}");
        assert!(f.cold[0].name.starts_with("split.cold"), "{f:?}");
        let cold = f.cold[0].range.clone();
        let fde = objects.main().fde_at(cold.start).unwrap().unwrap();
        assert_eq!(fde.range, cold);
        assert!(fde.mid_function);
        let own = objects.main().fde_at(f.address).unwrap().unwrap();
        assert_eq!((own.range, own.mid_function), (f.range(), false));
        truth.push(objects.main().to_link(cold.start));
    }
    assert_ne!(truth[0], truth[1]);
    let shared = objects.function(None, "shared", 0).unwrap();
    assert_eq!(shared.cold.len(), 1, "{shared:?}");

    let p = Running::start(&mut Command::new(shop.path("stripped")));
    let objects = p.objects();
    let main = objects.main();
    assert!(matches!(
        symbol_error(objects.function(None, "shared", 0).unwrap_err()),
        SymbolError::NotFound { .. }
    ));
    for (name, cold) in ["a", "b"].into_iter().zip(truth) {
        let parts = main.function_at(p.truth(name)).unwrap().unwrap().cold;
        assert_eq!(parts.len(), 1);
        assert_eq!(main.to_link(parts[0].range.start), cold);
    }

    // A function that jumps through a table: what no direct jump shows is counted as its own.
    shop.write(
        "t.c",
        r#"
#include "tell.h"
#include <stdlib.h>
__attribute__((cold, noinline)) void rare(int *p) { *p = 3; }
__attribute__((noinline)) int table(int *p, int n)
{
    volatile int keep[8]; keep[n & 7] = n;
    switch (n) {
    case 0: return p[1] * 3;
    case 1: p[2] = keep[1]; return p[5];
    case 2: rare(p); keep[0] = p[2]; rare(p + 1); return keep[3];
    case 3: return puts("three");
    case 4: p[1] ^= keep[5]; return 12;
    case 5: return p[3] / (p[1] | 1);
    case 6: rare(p); keep[0] = p[1]; rare(p + 2); abort();
    default: return keep[2];
    }
}
int main(int c, char **v)
{
    int some[8] = { c };
    TELL(table);
    printf("r %x\n", table(some, c));
    READY;
}
"#,
    );
    shop.run("gcc -O2 t.c -o table").run("cp table stripped-table").run("strip stripped-table");
    let p = Running::start(&mut Command::new(shop.path("table")));
    let objects = p.objects();
    let f = objects.function(None, "table", 0).unwrap();
    assert_eq!(f.cold.len(), 1, "{f:?}");
    let cold = f.cold[0].range.clone();
    let (start, end) = (objects.main().to_link(cold.start), objects.main().to_link(cold.end));
    let p = Running::start(&mut Command::new(shop.path("stripped-table")));
    let objects = p.objects();
    let main = objects.main();
    let f = main.function_at(p.truth("table")).unwrap().unwrap();
    let covers = |p: &ugraft_process::objects::symbols::Part| {
        main.to_link(p.range.start) <= start && end <= main.to_link(p.range.end)
    };
    assert!(f.cold.iter().any(covers), "{start}..{end} {f:?}");
    // The PLT begins as cold code does, and is none.
    let plt = main.file().unwrap().sections().unwrap().iter().find(|s| s.name == ".plt").unwrap();
    assert!(main.fde_at(main.to_remote(plt.addr)).unwrap().is_some_and(|fde| !fde.mid_function));
    assert!(f.cold.iter().all(|p| !p.range.contains(&main.to_remote(plt.addr))), "{f:?}");

    shop.write(
        "c.c",
        r#"
#include "tell.h"
__attribute__((noinline)) static int copied(int *p, int n, int mode)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += mode == 7 ? p[i] : p[i] * i;
    __asm__ volatile("");
    return s;
}
int main(int argc, char **argv)
{
    int some[8] = { argc };
    printf("r %x\n", copied(some, argc, 7));
    READY;
}
"#,
    );
    shop.run("gcc -O2 c.c -o copies");
    let p = Running::start(&mut Command::new(shop.path("copies")));
    let objects = p.objects();
    let SymbolError::NotFound { clones, .. } = symbol_error(objects.function(None, "copied", 0).unwrap_err())
    else {
        panic!()
    };
    assert_eq!(clones.len(), 1, "{clones:?}");
    assert!(clones[0].starts_with("copied."));
    objects.function(None, &clones[0], 0).unwrap();
}

#[test]
fn every_function_of_libc_is_found_again_by_its_own_name() {
    let (_shop, p) = two_files("", "gcc");
    let objects = p.objects();
    let libc = objects.find(Some("libc.so.6")).unwrap();
    let mut count = 0;
    let all: Vec<_> = libc.symbols().unwrap().functions().collect();
    for (name, address) in all.into_iter().step_by(97) {
        let address = libc.to_remote(address);
        let mut found = libc.function(&name, 0);
        if let Err(Error::Symbol(SymbolError::Ambiguous { candidates, .. })) = &found {
            let c = candidates.iter().find(|c| c.address == address).unwrap_or_else(|| panic!("{name}"));
            found = libc.function(&name, c.position);
        }
        let f = match found {
            Ok(f) => f,
            Err(Error::Symbol(SymbolError::IfuncUnknown { .. })) => continue,
            Err(e) => panic!("{name}: {e}"),
        };
        assert_eq!(f.address, address, "{name}");
        let (canonical, position) = f.canonical.clone();
        let again = libc.function(&canonical, position).unwrap();
        assert_eq!((again.address, again.canonical), (address, f.canonical), "{name}");
        count += 1;
    }
    assert!(count > 50, "{count}");
}
