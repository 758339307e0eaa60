// A function that ends in a jump to another, and one whose first instruction is such a jump: after a tail call no return
// address tells that the caller was there, and none is needed. Either end of the call can be patched.

//@ file target.c
#include "target.h"
int first(int), middle(int), last(int);
/* Nothing but a jump: five bytes, or two if the target is near. */
PATCHABLE int first(int n) { return middle(n); }
PATCHABLE int middle(int n) { return last(n + 1); }
static volatile int nothing;
PATCHABLE int last(int n) { return n * 2 + nothing; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("%d", first(atoi(c)));
	return 0;
}

//@ build cc -O2 -g -fno-toplevel-reorder -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
int last(int n);
KLP_SYMBOL(last, "exe", "last", 1);
/* Itself a tail call back into the target. */
static int new_first(int n) { return last(n + 100); }
static struct klp_func funcs[] = { { .old_name = "first", .new_func = new_first }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file end.c
#include <ugraft/livepatch.h>
static int new_last(int n) { return n * 3; }
static struct klp_func funcs[] = { { .old_name = "last", .new_func = new_last }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 1
//@ expect 4
//@ snapshot
//@ $ ugraft load end.o --pid $PID --quiet
//@ say 1
//@ expect 6
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 1
//@ expect 303
//@ $ ugraft disable end --pid $PID --quiet
//@ say 1
//@ expect 202
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload end --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say 1
//@ expect 4
//@ clean
//@ unchanged
