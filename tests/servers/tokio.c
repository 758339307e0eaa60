/* The server of tokio/: its price is one more under the first patch, two more under the second. The first also has its checksum
 * anew, which the second gives back. */
#include <stdint.h>
#include <ugraft/livepatch.h>

static uint64_t price(uint64_t amount)
{
	return amount * 3 + VERSION;
}

static uint64_t checksum(uint64_t number)
{
	for (int i = 0; i < 8; i++)
		number = (number ^ number >> 7) * 0x9e3779b97f4a7c15;
	return number;
}

static struct klp_func funcs[] = {
	{ .old_name = "shop::price", .new_func = price },
#if VERSION == 1
	{ .old_name = "shop::checksum", .new_func = checksum },
#endif
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = VERSION == 2 };
KLP_PATCH(patch);
