// A Rust program: its functions by the names a programmer writes, without the hash that the compiler adds; a patch is C all
// the same. A panic that unwinds through the target still ends where it is caught.

//@ needs rustc
//@ file target.rs
use std::io::{BufRead, Write};
mod shop {
    #[inline(never)]
    pub extern "C" fn price(n: i32) -> i32 {
        std::hint::black_box(n) * 12
    }
    #[inline(never)]
    pub extern "C-unwind" fn limit(n: i32) -> i32 {
        if std::hint::black_box(n) > 10 { panic!("too many") }
        n
    }
}
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let n: i32 = line.unwrap().parse().unwrap();
        let limit = std::panic::catch_unwind(|| shop::limit(n)).unwrap_or(-1);
        println!("price {} limit {limit}", shop::price(n));
        std::io::stdout().flush().unwrap();
    }
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int price(int n) { return n * 10; }
static struct klp_func funcs[] = { { .old_name = "target::shop::price", .new_func = price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 20
//@ expect price 240 limit -1
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 20
//@ expect price 200 limit -1
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say 20
//@ expect price 240 limit -1
//@ clean
//@ unchanged
