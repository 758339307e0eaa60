/* PostgreSQL: the integer 4711 is written as 4712 under the first patch, as 4713 under the second; all others as ever. The first
 * also has the comparison of integers in index searches anew, which the second gives back. */
#include <stdbool.h>
#include <stdint.h>
#include <ugraft/livepatch.h>

/* The server's own: what a function that SQL calls is given, and where its results lie. */
struct call {
	void *function, *context, *result;
	uint32_t collation;
	bool isnull;
	int16_t count;
	struct {
		uint64_t value;
		bool isnull;
	} args[];
};
void *palloc(uint64_t size);
int pg_ltoa(int32_t value, char *to);

static uint64_t int4out(struct call *call)
{
	char *text = palloc(12);
	int32_t value = call->args[0].value;

	pg_ltoa(value == 4711 ? value + VERSION : value, text);
	return (uint64_t)text;
}

static uint64_t compare(struct call *call)
{
	int32_t a = call->args[0].value, b = call->args[1].value;

	return (uint64_t)(int64_t)((a > b) - (a < b));
}

static struct klp_func funcs[] = {
	{ .old_name = "int4out", .new_func = int4out },
#if VERSION == 1
	{ .old_name = "btint4cmp", .new_func = compare },
#endif
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = VERSION == 2 };
KLP_PATCH(patch);
