/* Version 3 of both functions, with callbacks that complain of any order of them but the right one. */
#include <ugraft/livepatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int inner(int n);
extern int stage;
enum { OUT, COMING, IN, GOING };
static void go(const char *callback, int allowed, int stage_after)
{
	/* What takes locks of libc. */
	char *line = malloc(128);
	int n = snprintf(line, 128, "complaint: %s at stage %d\n", callback, stage);
	if (!(allowed >> stage & 1) && write(1, line, n) != n)
		abort();
	free(line);
	stage = stage_after;
}
static int pre_patch(struct klp_object *obj)
{
	go("pre_patch", 1 << OUT, COMING);
	return 0;
}
static void post_patch(struct klp_object *obj) { go("post_patch", 1 << COMING | 1 << GOING, IN); }
static void pre_unpatch(struct klp_object *obj) { go("pre_unpatch", 1 << IN, GOING); }
static void post_unpatch(struct klp_object *obj) { go("post_unpatch", 1 << COMING | 1 << GOING, OUT); }
static int new_inner(int n) { return n + 3; }
static int new_outer(int n) { return inner(n) + 30; }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { pre_patch, post_patch, pre_unpatch, post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
