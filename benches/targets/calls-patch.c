/* The patch of calls.c: the same body with another constant, which shows that it runs. */
#include <ugraft/livepatch.h>

static __attribute__((aligned(64))) long subject(long x) { return x + 2; }
static struct klp_func funcs[] = { { .old_name = "subject", .new_func = (void *)subject }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
