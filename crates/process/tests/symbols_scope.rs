//! Undefined symbols and thread-local variables, against what the loader itself bound.

mod symbols_support;

use std::process::Command;
use symbols_support::{Running, TELL, Workshop};
use ugraft_process::objects::Objects;
use ugraft_process::objects::scope::Value;
use ugraft_process::objects::symbols::SymbolError;
use ugraft_process::{Error, RemoteAddr};

fn resolved(objects: &Objects<'_>, also: &[&str], name: &str, version: Option<&str>) -> RemoteAddr {
    let also: Vec<_> = also.iter().map(|n| objects.find(Some(n)).unwrap().id()).collect();
    match objects.scope(&also).unwrap().resolve(name, version).unwrap().value {
        Value::Address(at) => at,
        other => panic!("{name}: {other:?}"),
    }
}

fn unresolved(objects: &Objects<'_>, also: &[&str], name: &str) -> SymbolError {
    let also: Vec<_> = also.iter().map(|n| objects.find(Some(n)).unwrap().id()).collect();
    match objects.scope(&also).unwrap().resolve(name, None) {
        Err(Error::Symbol(e)) => e,
        other => panic!("{name}: {other:?}"),
    }
}

/// A library that tells its own address of each function.
fn library(functions: &[&str]) -> String {
    functions.iter().map(|f| format!("const char *{f}(void) {{ return \"{f}\"; }}\n")).collect()
}

#[test]
fn the_order_of_the_loader() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write("pre.c", &library(&["everywhere", "in_two"]));
    shop.write("deep.c", &library(&["everywhere", "deep_only", "order"]));
    shop.write("one.c", &library(&["everywhere", "in_two", "one_only"]));
    shop.write("two.c", &library(&["everywhere", "order", "in_two"]));
    shop.write("local.c", &library(&["everywhere", "local_only"]));
    shop.write("global.c", &library(&["everywhere", "global_only"]));
    shop.write(
        "main.c",
        r#"
#include "tell.h"
#include <dlfcn.h>
const char *order(void);
int copied_data_user;
int main(void)
{
    void *local = dlopen("./liblocal.so", RTLD_NOW | RTLD_LOCAL);
    void *global = dlopen("./libglobal.so", RTLD_NOW | RTLD_GLOBAL);
    const char *names[] = { "everywhere", "in_two", "order", "one_only", "deep_only", "global_only", "puts" };
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        TELL_AS(names[i], dlsym(RTLD_DEFAULT, names[i]));
    TELL_AS("local_only", dlsym(local, "local_only"));
    order();
    READY;
}
"#,
    );
    for cc in ["gcc", "musl-gcc"] {
        for lib in ["pre", "deep", "local", "global"] {
            shop.run(&format!("{cc} -shared -fPIC {lib}.c -o lib{lib}.so"));
        }
        // `one` needs `deep`: breadth first, `two` comes before it.
        shop.run(&format!("{cc} -shared -fPIC -Wl,--no-as-needed one.c -o libone.so -L. -ldeep"));
        shop.run(&format!("{cc} -shared -fPIC two.c -o libtwo.so"));
        shop.run(&format!("{cc} main.c -o prog -L. -Wl,--no-as-needed -lone -ltwo -Wl,-rpath-link,."));
        for preload in ["", "./libpre.so"] {
            let mut command = Command::new(shop.path("prog"));
            command.current_dir(shop.path("")).env("LD_LIBRARY_PATH", shop.path(""));
            if !preload.is_empty() {
                command.env("LD_PRELOAD", preload);
            }
            let p = Running::start(&mut command);
            let objects = p.objects();
            for name in ["everywhere", "in_two", "order", "one_only", "deep_only", "puts"] {
                assert_eq!(resolved(&objects, &[], name, None), p.truth(name), "{cc} {preload} {name}");
            }
            let order = objects.scope(&[]).unwrap();
            let two = resolved(&objects, &["libtwo.so"], "order", None);
            assert_eq!(objects.at(two).unwrap().name(), "libtwo.so", "{:?}", order);
            assert!(matches!(unresolved(&objects, &[], "local_only"), SymbolError::Undefined { .. }));
            let local = resolved(&objects, &["liblocal.so"], "local_only", None);
            assert_eq!(local, p.truth("local_only"));
            // musl keeps its global scope to itself: there, the object has to be named.
            let also: &[&str] = if cc == "gcc" { &[] } else { &["libglobal.so"] };
            assert_eq!(resolved(&objects, also, "global_only", None), p.truth("global_only"), "{cc}");
        }
    }
}

#[test]
fn versions_and_visibility() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write(
        "lib.c",
        r#"
__asm__(".symver old_foo, foo@VER_1");
__asm__(".symver new_foo, foo@@VER_2");
int old_foo(int x) { return x + 1; }
int new_foo(int x) { return x + 2; }
__asm__(".symver gone_impl, gone@VER_1");
int gone_impl(int x) { return x; }
int only(int x) { return x + 3; }
__attribute__((visibility("hidden"))) int hidden(int x) { return x; }
static int own(int x) { __asm__ volatile(""); return x; }
int (*volatile keep)(int) = own;
int calls(int x) { return keep(x) + hidden(x); }
"#,
    );
    shop.write(
        "lib.map",
        "VER_1 { global: foo; gone; only; calls; local: *; };\nVER_2 { global: foo; } VER_1;\n",
    );
    shop.write(
        "main.c",
        r#"
#include "tell.h"
#include <dlfcn.h>
int foo(int);
int main(void)
{
    TELL_AS("foo@VER_1", dlvsym(RTLD_DEFAULT, "foo", "VER_1"));
    TELL_AS("foo@VER_2", dlvsym(RTLD_DEFAULT, "foo", "VER_2"));
    TELL_AS("foo", dlsym(RTLD_DEFAULT, "foo"));
    TELL_AS("gone@VER_1", dlvsym(RTLD_DEFAULT, "gone", "VER_1"));
    TELL_AS("only", dlsym(RTLD_DEFAULT, "only"));
    TELL_AS("fmemopen@GLIBC_2.2.5", dlvsym(RTLD_DEFAULT, "fmemopen", "GLIBC_2.2.5"));
    TELL_AS("fmemopen@GLIBC_2.22", dlvsym(RTLD_DEFAULT, "fmemopen", "GLIBC_2.22"));
    return foo(0) == 99 ? 1 : ({ READY; 0; });
}
"#,
    );
    for ld in ["bfd", "lld"] {
        let flags = format!("clang -fuse-ld={ld}");
        shop.run(&format!("{flags} -O2 -fno-semantic-interposition -shared -fPIC lib.c -o libver.so -Wl,-soname,libver.so.1 -Wl,--version-script=lib.map"));
        shop.run("ln -sf libver.so libver.so.1");
        shop.run(&format!("{flags} main.c -o prog -L. -lver"));
        let p = Running::start(Command::new(shop.path("prog")).env("LD_LIBRARY_PATH", shop.path("")));
        let objects = p.objects();
        for spelled in ["foo@VER_1", "foo@VER_2", "gone@VER_1"] {
            let (name, version) = spelled.split_once('@').unwrap();
            assert_eq!(resolved(&objects, &[], name, Some(version)), p.truth(spelled), "{spelled}");
            assert_eq!(resolved(&objects, &[], spelled, None), p.truth(spelled), "{spelled}");
            let f = objects.function(Some("libver.so.1"), spelled, 0).unwrap();
            assert_eq!(f.address, p.truth(spelled), "{ld} {spelled}");
            let again = objects.function(Some("libver.so.1"), &f.name, f.position).unwrap();
            assert_eq!(again.address, f.address, "{ld} {spelled} {f:?}");
            let (name, position) = &f.canonical;
            let again = objects.function(Some("libver.so.1"), name, *position).unwrap();
            assert_eq!(again.address, f.address, "{ld} {spelled} {f:?}");
        }
        for version in ["GLIBC_2.2.5", "GLIBC_2.22"] {
            let truth = p.truth(&format!("fmemopen@{version}"));
            assert_eq!(resolved(&objects, &[], "fmemopen", Some(version)), truth);
            let f = objects.function(Some("libc.so.6"), &format!("fmemopen@{version}"), 0).unwrap();
            assert_eq!(f.address, truth);
        }
        assert_eq!(resolved(&objects, &[], "foo", None), p.truth("foo@VER_2"));
        assert_eq!(objects.function(Some("libver.so.1"), "foo", 0).unwrap().address, p.truth("foo@VER_2"));
        assert_eq!(
            objects.function(Some("libver.so"), "foo@@VER_2", 0).unwrap().address,
            p.truth("foo@VER_2")
        );
        assert!(objects.function(Some("libver.so.1"), "foo@@VER_1", 0).is_err());
        assert!(objects.function(Some("libver.so.1"), "foo@VER_9", 0).is_err());
        assert_eq!(objects.function(Some("libver.so.1"), "gone", 0).unwrap().address, p.truth("gone@VER_1"));
        let SymbolError::Undefined { near, .. } = unresolved(&objects, &[], "hidden") else { panic!() };
        assert_eq!(near, ["hidden of libver.so.1 (.klp.sym.libver.so.1.hidden,0)"]);
        assert!(matches!(unresolved(&objects, &[], "own"), SymbolError::Undefined { .. }));
        objects.function(Some("libver.so.1"), "own", 0).unwrap();
    }
}

#[test]
fn copied_data_is_the_copy() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write("lib.c", "int shared_data = 5; int *lib_view(void) { return &shared_data; }");
    shop.write(
        "main.c",
        r#"
#include "tell.h"
extern int shared_data; int *lib_view(void);
int main(void) { TELL(shared_data); TELL_AS("lib", lib_view()); READY; }
"#,
    );
    shop.run("gcc -shared -fPIC lib.c -o libdata.so").run("gcc -no-pie main.c -o prog -L. -ldata");
    let p = Running::start(Command::new(shop.path("prog")).env("LD_LIBRARY_PATH", shop.path("")));
    let objects = p.objects();
    assert_eq!(p.truth("lib"), p.truth("shared_data"));
    assert_eq!(resolved(&objects, &[], "shared_data", None), p.truth("shared_data"));
}

#[test]
fn objects_of_other_namespaces_are_marked_and_not_searched() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL);
    shop.write("lib.c", "int puts(const char *); int elsewhere(void) { return puts(\"\"); }");
    shop.write(
        "main.c",
        r#"
#include "tell.h"
#include <dlfcn.h>
int main(void)
{
    void *h = dlmopen(LM_ID_NEWLM, "./libns.so", RTLD_NOW);
    TELL_AS("elsewhere", dlsym(h, "elsewhere"));
    READY;
}
"#,
    );
    shop.run("gcc -shared -fPIC lib.c -o libns.so").run("gcc main.c -o prog");
    let p = Running::start(Command::new(shop.path("prog")).current_dir(shop.path("")));
    let objects = p.objects();
    let own = objects.find(Some("libns.so")).unwrap();
    assert_eq!(own.namespace(), 1);
    assert_eq!(own.function("elsewhere", 0).unwrap().address, p.truth("elsewhere"));
    assert_eq!(objects.find(Some("libc.so.6")).unwrap().namespace(), 0);
    assert_eq!(objects.iter().filter(|o| o.is_called("libc.so.6")).count(), 2);
    assert!(matches!(unresolved(&objects, &[], "elsewhere"), SymbolError::Undefined { .. }));
}

const TLS_MAIN: &str = r#"
#include "tell.h"
#include <errno.h>
#ifdef LIBS
#include <dlfcn.h>
char *lib_first(void), *lib_second(void);
#endif
static __thread char small = 1;
__thread long wide[5] __attribute__((aligned(64))) = { 7 };
int main(void)
{
    char *tp = __builtin_thread_pointer();
    TELL_AS("small", &small - tp);
    TELL_AS("wide", (char *)wide - tp);
    TELL_AS("errno", (char *)&errno - tp);
#ifdef LIBS
    TELL_AS("first", lib_first() - tp);
    TELL_AS("second", lib_second() - tp);
    char *(*late)(void) = dlsym(dlopen("./liblate.so", RTLD_NOW), "lib_late");
    TELL_AS("late", late() - tp);
#endif
    READY;
}
"#;

#[test]
fn thread_local_variables() {
    let shop = Workshop::new();
    shop.write("tell.h", TELL).write("main.c", TLS_MAIN);
    shop.write("first.c", "__thread char first_odd[3] = {1}, first[40] __attribute__((aligned(32))); char *lib_first(void) { return first; }");
    shop.write("second.c", "__thread int second = 4; char *lib_second(void) { return (char *)&second; }");
    shop.write("late.c", "__thread int late = 4; char *lib_late(void) { return (char *)&late; }");
    for (cc, main) in [
        ("gcc", "-DLIBS"),
        ("gcc", "-DLIBS -no-pie"),
        ("gcc", "-static"),
        ("gcc", "-static-pie -fPIE"),
        ("musl-gcc", "-DLIBS"),
        ("musl-gcc", "-static"),
    ] {
        println!("{cc} {main}");
        let libs = if main.contains("LIBS") {
            for lib in ["first", "second", "late"] {
                shop.run(&format!("{cc} -shared -fPIC {lib}.c -o lib{lib}.so"));
            }
            "-L. -lfirst -lsecond"
        } else {
            ""
        };
        shop.run(&format!("{cc} -Wno-implicit-function-declaration {main} main.c -o prog {libs}"));
        let p = Running::start(
            Command::new(shop.path("prog")).current_dir(shop.path("")).env("LD_LIBRARY_PATH", shop.path("")),
        );
        let objects = p.objects();
        let main_id = objects.main().id();
        for name in ["small", "wide"] {
            let s = objects.klp_symbol(None, name, 0).unwrap();
            assert_eq!(objects.tp_offset(main_id, s.value).unwrap(), p.truth(name).0 as i64, "{name}");
        }
        if objects.main().is_static() {
            continue;
        }
        let scope = objects.scope(&[]).unwrap();
        for name in ["first", "second"] {
            let found = scope.resolve(name, None).unwrap();
            let Value::Tls { offset } = found.value else { panic!() };
            assert_eq!(objects.tp_offset(found.object, offset).unwrap(), p.truth(name).0 as i64, "{name}");
        }
        if cc == "gcc" {
            let found = scope.resolve("errno", None).unwrap();
            let Value::Tls { offset } = found.value else { panic!() };
            assert_eq!(objects.tp_offset(found.object, offset).unwrap(), p.truth("errno").0 as i64);
        }
        // Opened later: a block of its own, at another distance in every thread.
        let late = objects.find(Some("liblate.so")).unwrap();
        let refused = objects.tp_offset(late.id(), 0).unwrap_err();
        assert!(matches!(refused, Error::Symbol(SymbolError::Tls { .. })), "{cc}: {refused}");
    }
}
