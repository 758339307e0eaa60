/* Ten pieces get the discount that was promised for ten pieces. */
#include <ugraft/livepatch.h>

static long price(long cents, long count)
{
	long total = cents * count;
	if (count >= 10)
		total -= total / 10;
	return total;
}

static struct klp_func funcs[] = {
	{ .old_name = "price", .new_func = price },
	{}
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

KLP_PATCH(patch);
KLP_VERSION("1");
KLP_DESCRIPTION("Give the discount from ten pieces on");
KLP_LICENSE("MIT OR Apache-2.0");
