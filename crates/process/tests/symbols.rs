//! Functions of running programs by name and position, against what the programs say of themselves.

mod symbols_support;

use std::process::Command;
use symbols_support::{Running, TELL, Workshop};
use ugraft_process::Error;
use ugraft_process::objects::Role;
use ugraft_process::scope::Value;
use ugraft_process::symbols::{SizeFrom, SymbolError};

const TWO_FILES: [&str; 2] = [
    r#"
#include "tell.h"
__attribute__((noinline)) static int twice(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline)) int first(int x) { __asm__ volatile(""); return twice(x); }
void tell_b(void);
int data = 3;
int main(void)
{
    TELL(first); TELL_AS("twice.a", twice); TELL(data); TELL_AS("puts", puts);
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
    assert_eq!(objects.klp_symbol(None, "data", 0).unwrap().value, p.truth("data").0);

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
        symbol_error(objects.function(None, "data", 0).unwrap_err()),
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
    for flags in ["-O2", "-O0 -Wl,-z,lazy", "-O2 -Wl,-z,now -pie", "-O2 -no-pie"] {
        shop.run(&format!("gcc {flags} a.c -o prog"));
        let p = Running::start(&mut Command::new(shop.path("prog")));
        let objects = p.objects();
        let scope = objects.scope(&[]).unwrap();
        for name in ["memcpy", "strlen"] {
            let Value::Ifunc { chosen, .. } = scope.resolve(name, None).unwrap().value else { panic!() };
            assert_eq!(chosen, Some(p.truth(name)), "{name} {flags}");
            let f = objects.function(Some("libc.so.6"), name, 0).unwrap();
            assert_eq!((f.address, f.name.as_str()), (p.truth(name), name), "{f:?}");
        }
        let f = objects.function(None, "chosen", 0).unwrap();
        assert_eq!((f.address, f.resolver), (p.truth("chosen"), Some(p.truth("pick"))), "{flags} {f:?}");
    }
}
