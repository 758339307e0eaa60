/*
 * Version 4 of both functions, with parameters that add to it where nobody minds, and with an init and an exit function that
 * complain if one runs when it must not.
 */
#include <ugraft/module.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int inner(int n);
extern int inits;
static int level;
module_param(level, int, 0);
static char *label = "0";
module_param(label, charp, 0);
static void go(const char *function, int before, int after)
{
	/* What takes locks of libc. */
	char *line = malloc(128);
	int n = snprintf(line, 128, "complaint: %s with %d inits\n", function, inits);
	if (inits != before && write(1, line, n) != n)
		abort();
	free(line);
	inits = after;
}
static int init(void)
{
	go("init", 0, 1);
	return 0;
}
static void leave(void) { go("exit", 1, 0); }
module_init(init);
module_exit(leave);
static int new_inner(int n) { return n + 4; }
static int new_outer(int n) { return inner(n) + 40; }
static int new_tuned(void) { return level + atoi(label); }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{ .old_name = "tuned", .new_func = new_tuned },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
