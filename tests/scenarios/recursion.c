// A recursive function. While a thread is anywhere inside the recursion the function cannot change under it: a change
// half way up would mix the two versions in one result. It changes when the outermost call has returned.

//@ file target.c
#include "target.h"
/* Asks how to go on at the bottom, so that a patch can be loaded with all the frames on the stack. */
PATCHABLE int depth(int n)
{
	if (n == 0) {
		tell("at the bottom");
		command();
		return 0;
	}
	return depth(n - 1) + 1;
}
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("depth %d", depth(atoi(c)));
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
/* Calls the function by its name in the target, so that every level passes through the patched entry. */
int depth(int n);
KLP_SYMBOL(depth, "exe", "depth", 1);
static int new_depth(int n) { return n == 0 ? 0 : depth(n - 1) + 100; }
static struct klp_func funcs[] = { { .old_name = "depth", .new_func = new_depth }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 5
//@ expect at the bottom
//@ start job: ugraft load fix.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ at target say go on
//@ at target expect depth 5
//@ at job wait
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ at target say 5
//@ at target expect depth 500
//@ $ ugraft disable fix --pid $target --quiet
//@ at target say 3
//@ at target expect at the bottom
//@ at target say go on
//@ at target expect depth 3
//@ $ ugraft unload fix --pid $target --quiet
//@ at target clean
