// Two static functions of the same name, in two files of one program: the symbol position says which is meant, counted
// in the order of the symbol table as the kernel counts. Without a position the name is ambiguous and is refused. Data
// that the program does not export is reached in the same way.

//@ file target.c
#include "target.h"
int north(int), south(int);
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("%d %d", north(1), south(1));
	return 0;
}
//@ file north.c
#include "target.h"
static volatile int offset = 10;
static PATCHABLE int step(int n) { return n + offset; }
int north(int n) { return step(n); }
//@ file south.c
#include "target.h"
static volatile int offset = 20;
static PATCHABLE int step(int n) { return n + offset; }
int south(int n) { return step(n); }
//@ build cc -O2 -g -I$SUPPORT target.c north.c south.c -o target

//@ file first.c
#include <ugraft/livepatch.h>
static int step(int n) { return n + 100; }
static struct klp_func funcs[] = { { .old_name = "step", .new_func = step, .old_sympos = 1 }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file second.c
#include <ugraft/livepatch.h>
extern volatile int its_offset;
KLP_SYMBOL(its_offset, "exe", "offset", 2);
static int step(int n) { return n + 200 + its_offset; }
static struct klp_func funcs[] = { { .old_name = "step", .new_func = step, .old_sympos = 2 }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file ambiguous.c
#include <ugraft/livepatch.h>
static int step(int n) { return n; }
static struct klp_func funcs[] = { { .old_name = "step", .new_func = step }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file third.c
#include <ugraft/livepatch.h>
static int step(int n) { return n; }
static struct klp_func funcs[] = { { .old_name = "step", .new_func = step, .old_sympos = 3 }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect 11 21
//@ snapshot
//@ $ ugraft load ambiguous.o --pid $PID
//! ugraft: target has 2 symbols called step; give a position: 1 at [..] (north.c), 2 at [..] (south.c)
//= 6
//@ $ ugraft load third.o --pid $PID
//! ugraft: target has no symbol step at position 3; there are: 1 at [..] (north.c), 2 at [..] (south.c)
//= 6
//@ unchanged
//@ $ ugraft load first.o --pid $PID --quiet
//@ say ?
//@ expect 101 21
//@ $ ugraft load second.o --pid $PID --quiet
//@ say ?
//@ expect 101 221
//@ $ ugraft status --pid $PID
//> process $target (target)
//>  patch   version  state    objects       functions
//>  first            enabled  (executable)  step
//>  second           enabled  (executable)  step,2
//> no patch is in transition
//@ $ ugraft disable first --pid $PID --quiet
//@ say ?
//@ expect 11 221
//@ $ ugraft disable second --pid $PID --quiet
//@ $ ugraft unload first --pid $PID --quiet
//@ $ ugraft unload second --pid $PID --quiet
//@ say ?
//@ expect 11 21
//@ clean
//@ unchanged
