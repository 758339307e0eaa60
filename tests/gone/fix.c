/* Version 1, with callbacks, messages, and more than one symbol of the target's. */
#include <ugraft/livepatch.h>
#include <linux/printk.h>
#include <stdlib.h>
int inner(int n);
extern int base;
static int pre_patch(struct klp_object *obj)
{
	free(malloc(100));
	pr_info("fix: pre_patch\n");
	return 0;
}
static void post_unpatch(struct klp_object *obj) { pr_info("fix: post_unpatch\n"); }
static int new_outer(int n) { return inner(n) + base + 1; }
static struct klp_func funcs[] = { { .old_name = "outer", .new_func = new_outer }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
