/* A patch that is right in every respect; the table makes its wrong ones from it. */
#include <ugraft/livepatch.h>

int scale(int n);
extern int its_factor;
KLP_SYMBOL(its_factor, "exe", "factor", 1);

static int calls;
static const char *const names[] = { "zero", "one" };
static int price(int n)
{
	calls++;
	return scale(n) + its_factor + names[n & 1][0];
}

static struct klp_func funcs[] = {
	{ .old_name = "price", .new_func = price, .old_sympos = 0 },
	{}
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .replace = false };

KLP_PATCH(patch);
KLP_LICENSE("MIT");
