/* The patch of gaps.c that its threads keep from its end: of `inside`, in which they sleep, and of f0, which is called. */
#include <ugraft/livepatch.h>

static long new_inside(long x) { return x + 1000; }
static long new_f0(long x) { return x + 1000; }
static struct klp_func funcs[] = {
	{ .old_name = "inside", .new_func = (void *)new_inside },
	{ .old_name = "f0", .new_func = (void *)new_f0 },
	{},
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
