// Functions of a C++ program, by their mangled name or, where it is unique, as a programmer writes it. Overloads have one
// name without their arguments, which is refused as ambiguous with all candidates listed. Exceptions that pass through patched
// functions still find their handlers.

//@ file target.cc
#include "target.h"
#include <stdexcept>
#include <string>
namespace shop {
struct Basket {
	int items = 0;
	PATCHABLE int price(int rate) const { return items * rate; }
	PATCHABLE int price(int rate, int discount) const { return items * rate - discount; }
	PATCHABLE static int limit(int n)
	{
		if (n > 10)
			throw std::runtime_error("too many");
		return n;
	}
};
template <typename T> PATCHABLE T largest(T a, T b) { return a > b ? a : b; }
}
PATCHABLE int buy(int n)
{
	try {
		return shop::Basket::limit(n);
	} catch (const std::exception &) {
		return -1;
	}
}
int main()
{
	shop::Basket basket{3};
	tell("ready");
	for (const char *c; (c = command());)
		tell("%d %d %d %d %d", basket.price(10), basket.price(10, 5), shop::largest<long>(1, 2) == 2, buy(5), buy(50));
}

//@ file mangled.c
#include <ugraft/livepatch.h>
static int price(const int *items, int rate) { return *items * rate * 2; }
static struct klp_func funcs[] = { { .old_name = "_ZNK4shop6Basket5priceEi", .new_func = price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file demangled.c
#include <ugraft/livepatch.h>
static int price(const int *items, int rate, int discount) { return *items * rate - 2 * discount; }
static long smallest(long a, long b) { return a < b ? a : b; }
static struct klp_func funcs[] = {
	{ .old_name = "shop::Basket::price(int, int) const", .new_func = price },
	{ .old_name = "long shop::largest<long>(long, long)", .new_func = smallest },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file overloaded.c
#include <ugraft/livepatch.h>
static int price(const int *items, int rate) { return *items * rate; }
static struct klp_func funcs[] = { { .old_name = "shop::Basket::price", .new_func = price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file handler.c
#include <ugraft/livepatch.h>
/* buy in C: without a handler of its own, it must not meet an exception. */
static int buy(int n) { return n > 10 ? -2 : n; }
static struct klp_func funcs[] = { { .old_name = "buy(int)", .new_func = buy }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file later.c
#include <ugraft/livepatch.h>
static int weight(int n) { return n; }
static struct klp_func funcs[] = { { .old_name = "shop::weight(int)", .new_func = weight }, {} };
static struct klp_object objs[] = { { .name = "libweight.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file refers-later.c
#include <ugraft/livepatch.h>
extern int weight(int) __attribute__((weak));
KLP_SYMBOL(weight, "libweight.so", "shop::weight", 0);
static int buy(int n) { return weight ? weight(n) : n; }
static struct klp_func funcs[] = { { .old_name = "buy(int)", .new_func = buy }, {} };
static struct klp_func none[] = { {} };
static struct klp_object objs[] = { { .funcs = funcs }, { .name = "libweight.so", .funcs = none }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I"$SDK" refers-later.c -o refers-later.o

//@ start target
//@ expect ready
//@ say ?
//@ expect 30 25 1 5 -1
//@ snapshot
//@ $ ugraft load mangled.o --pid $PID --quiet
//@ say ?
//@ expect 60 25 1 5 -1
//@ $ ugraft load demangled.o --pid $PID --quiet
//@ say ?
//@ expect 60 20 0 5 -1
//@ $ ugraft status --pid $PID
//> process $target (target)
//>  patch      version  state    objects       functions
//>  mangled             enabled  (executable)  _ZNK4shop6Basket5priceEi
//>  demangled           enabled  (executable)  _ZNK4shop6Basket5priceEii
//>                                             _ZN4shop7largestIlEET_S1_S1_
//> no patch is in transition
//@ $ ugraft load overloaded.o --pid $PID
//! ugraft: target has 2 symbols called shop::Basket::price; give a position: 1 at [..] shop::Basket::price(int) const, 2 at [..] shop::Basket::price(int, int) const
//= 6
// A library that is not loaded has no names yet with which these could be compared.
//@ $ ugraft load later.o --pid $PID
//! ugraft: libweight.so is not loaded, and one that comes later is searched for names as its linker has them: give the mangled name of shop::weight(int) (`nm -D --defined-only` lists them)
//= 6
//@ $ ugraft load refers-later.o --pid $PID
//! ugraft: not found in the target: `shop::weight of libweight.so` (of a library that can come and go: give the name that its linker has, the mangled one): check the object's and the symbol's name and its position
//= 6
//@ $ ugraft check later.o --pid $PID
//>  object        function           address  verdict
//>  libweight.so  shop::weight(int)           its object is not loaded
//> libweight.so is not loaded, and one that comes later is searched for names as its linker has them: give the mangled name of shop::weight(int) (`nm -D --defined-only` lists them)
//> patch 'later' cannot be loaded into process $target
//= 6
//@ $ ugraft load handler.o --pid $PID --quiet
//@ say ?
//@ expect 60 20 0 5 -2
//@ $ for p in handler demangled mangled; do ugraft disable $p --pid $PID --quiet && ugraft unload $p --pid $PID --quiet; done
//@ say ?
//@ expect 30 25 1 5 -1
//@ clean
//@ unchanged
