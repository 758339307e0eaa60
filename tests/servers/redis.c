/* redis-server: INCR counts by one; by two under the first patch, by ten under the second. The first also has GET's function
 * anew, which the second gives back. */
#include <ugraft/livepatch.h>

/* The server's own. */
struct client;
void incrDecrCommand(struct client *c, long long by);
int getGenericCommand(struct client *c);

static void incr(struct client *c)
{
	incrDecrCommand(c, VERSION == 1 ? 2 : 10);
}

static void get(struct client *c)
{
	getGenericCommand(c);
}

static struct klp_func funcs[] = {
	{ .old_name = "incrCommand", .new_func = incr },
#if VERSION == 1
	{ .old_name = "getCommand", .new_func = get },
#endif
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = VERSION == 2 };
KLP_PATCH(patch);
