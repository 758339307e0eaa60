// One patch over the main executable and a shared library: both change together. Code of the patch calls functions and
// reads data of both, by their dynamic symbols.

//@ file libshop.c
int rate = 2;
int shipping(int weight) { return weight * 3; }
int total(int weight) { return shipping(weight) * rate; } /* through the PLT: shipping can be interposed */

//@ file target.c
#include "target.h"
int total(int weight);
extern int rate;
int fee = 5;
PATCHABLE int bill(int weight) { return total(weight) + fee; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("bill %d rate %d", bill(atoi(c)), rate);
	return 0;
}
//@ build cc -O2 -g -rdynamic -I$SUPPORT target.c ./libshop.so '-Wl,-rpath,$ORIGIN' -o target

//@ file fix.c
#include <ugraft/livepatch.h>
extern int fee, rate;
int total(int weight);
static int calls;
static int new_bill(int weight) { return total(weight) + 2 * fee; }
static int new_shipping(int weight) { return weight * 4 + ++calls; }
static struct klp_func exe[] = { { .old_name = "bill", .new_func = new_bill }, {} };
static struct klp_func lib[] = { { .old_name = "shipping", .new_func = new_shipping }, {} };
static struct klp_object objs[] = { { .funcs = exe }, { .name = "libshop.so", .funcs = lib }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 10
//@ expect bill 65 rate 2
//@ snapshot
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say 10
//@ expect bill 92 rate 2
//@ say 10
//@ expect bill 94 rate 2
//@ $ ugraft status --pid $PID
//> process $target (target)
//>  patch  version  state    objects       functions
//>  fix             enabled  (executable)  bill
//>                           libshop.so    shipping
//> no patch is in transition
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say 10
//@ expect bill 65 rate 2
//@ clean
//@ unchanged
