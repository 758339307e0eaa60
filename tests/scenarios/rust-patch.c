// A patch in Rust: the example of the Rust SDK, made by one cargo command. It replaces two functions, one of them static, calls
// another static one, reads and writes variables, keeps a shadow variable for each order, has callbacks, init, exit,
// a parameter and a state; and a panic of it is told in the log.

//@ needs cargo
//@ file target.c
#include "target.h"
struct order { int pieces, customer; };
int total;
static PATCHABLE int rebate(int customer) { return customer / 10; }
static PATCHABLE int discount(int percent) { return percent * 2; }
PATCHABLE int price(const struct order *order) { total += 1; return order->pieces + rebate(order->customer); }
int main(void)
{
	static struct order orders[2] = { { 0, 100 }, { 0, 200 } };
	tell("ready");
	for (const char *c; (c = command());) {
		struct order *order = &orders[c[0] == 'b'];
		order->pieces = atoi(c + 1);
		int p = price(order);
		tell("price %d total %d discount %d", p, total, discount(70));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target
//@ build cargo build --release --quiet --offline --locked --manifest-path $SDK/../rust/example/Cargo.toml --target-dir cargo
//@ build cp cargo/release/fix-price fix-price

//@ start target
//@ expect ready
//@ say a2
//@ expect price 12 total 1 discount 140
//@ snapshot
//@ $ ugraft info fix-price
//> name:        fix-price
//> version:     1.0
//> description: prices are right, and orders are counted
//> license:     MIT OR Apache-2.0
//> replace:     no
//> state:       0x70726963, version 1
//> parameter:   factor (int)
//> size:        [..] bytes
//> object:      (executable)
//>   price -> [..]fix_price5price[..]
//>   discount,1 -> [..]fix_price8discount[..]
//@ $ ugraft check fix-price --pid $PID
//>  object        function  address         verdict
//>  (executable)  price     0x[..]  can be redirected by a jump
//>  (executable)  discount  0x[..]  can be redirected by a jump
//> patch 'fix-price' can be loaded into process [..]
//@ $ ugraft load fix-price factor=-1 --pid $PID
//! ugraft: the pre_patch callback of patch 'fix-price' for the main executable refused with -22; the patch was not enabled
//= 1
//@ $ ugraft load fix-price factor=7 --pid $PID
//> patch 'fix-price': enabled ([..]
//@ say a2
//@ expect price 4 total 5 discount 50
//@ say b5
//@ expect price 15 total 20 discount 50
//@ say a3
//@ expect price 11 total 31 discount 50
//@ $ ugraft param fix-price factor=9 --pid $PID
//> factor=9
//@ say a1
//@ expect price -1 total 30 discount 50
//@ $ ugraft disable fix-price --pid $PID --quiet
//@ say a2
//@ expect price 12 total 31 discount 140
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> init, factor 7
//> livepatch: enabling patch 'fix-price'
//> livepatch: 'fix-price': initializing patching transition
//> pre_patch of None, Live
//> state before None, now Some(1)
//> livepatch: 'fix-price': starting patching transition
//> livepatch: 'fix-price': completing patching transition
//> post_patch
//> livepatch: 'fix-price': patching complete
//> order 1 of customer 100
//> order 1 of customer 200
//> order 2 of customer 100
//> order 3 of customer 100
//> livepatch: 'fix-price': initializing unpatching transition
//> pre_unpatch
//> livepatch: 'fix-price': starting unpatching transition
//> livepatch: 'fix-price': completing unpatching transition
//> post_unpatch
//> livepatch: 'fix-price': unpatching complete
//@ $ ugraft unload fix-price --pid $PID --quiet
//@ clean
//@ unchanged

// A callback that panics is one that crashes.
//@ $ ugraft load fix-price --pid $PID --quiet
//@ $ ugraft param fix-price factor=0 --pid $PID --quiet
//@ $ ugraft disable fix-price --pid $PID
//! ugraft: the pre_unpatch callback of patch 'fix-price' for the main executable crashed by signal 4 (SIGILL) at fix-price: [..]panic[..]; its thread goes on where it was
//= 10
//@ $ ugraft log --pid $PID | grep -A1 BUG | sed 's/[^ ]* //'
//> error: BUG: panicked at src/main.rs:[..]: the factor has become 0
//> error: livepatch: 'fix-price': pre_unpatch callback for object 'vmlinux' crashed by signal 4 (SIGILL) at fix-price: [..]panic[..]; its thread goes on where it was
//@ $ ugraft unload fix-price --pid $PID --quiet
//@ clean
//@ say a2
//@ expect price 12 total 32 discount 140

// A function that panics ends the program, as assert() does.
//@ $ ugraft load fix-price --pid $PID --quiet
//@ say a-2
//@ wait
//! BUG: panicked at src/main.rs:[..]:
//! the factor has become 0
//! BUG: panicked at src/main.rs:[..]:
//! -2 pieces
//= 132
