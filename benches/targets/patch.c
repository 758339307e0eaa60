/*
 * A patch of the first COUNT functions of gaps.c (-DCOUNT=1, 10 or 100), a replacing one with -DREPLACE; the new functions
 * add VALUE (default 1000), so that it shows which patch runs.
 */
#include "hundred.h"
#include <ugraft/livepatch.h>

#ifndef VALUE
#define VALUE 1000
#endif
#define NEW(n) static long new_##n(long x) { return x + VALUE + n; }
EACH(NEW)
#define FUNC(n) { .old_name = "f" #n, .new_func = (void *)new_##n },
static struct klp_func funcs[] = { EACH(FUNC) {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = {
	.objs = objs,
#ifdef REPLACE
	.replace = true,
#endif
};
KLP_PATCH(patch);
