/*
 * The patch of calls.c: the same body with another constant, which shows that it runs. With -DOUTER it changes `outer` too, so
 * that the threads in there are pending.
 */
#include <ugraft/livepatch.h>

static __attribute__((aligned(64))) long subject(long x) { return x + 2; }
#ifdef OUTER
static long outer(long commands) { return commands; }
#endif
static struct klp_func funcs[] = {
	{ .old_name = "subject", .new_func = (void *)subject },
#ifdef OUTER
	{ .old_name = "outer", .new_func = (void *)outer },
#endif
	{},
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
