/* Version 1 of both functions. */
#include <ugraft/livepatch.h>
int inner(int n);
static int new_inner(int n) { return n + 1; }
static int new_outer(int n) { return inner(n) + 10; }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
