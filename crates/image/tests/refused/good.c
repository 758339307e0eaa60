#include <ugraft/livepatch.h>

extern int far_function(int x);
extern int untyped(int x);
extern int unsized(int x);
__asm__(".text; untyped: ret; .size untyped, 1; .type unsized, @function; unsized: ret");

int answer_calls = 1;
const char *answer_name = "answer";

int new_answer(int x)
{
	answer_calls++;
	return far_function(x) + 1;
}

void done(struct klp_object *object)
{
	(void)object;
	answer_calls = 0;
}

struct klp_func none[] = { { } };
static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = (void *)new_answer },
	{ } /* end of funcs */
};
static struct klp_object objs[] = {
	{ .funcs = funcs },
	{ } /* end of objs */
};
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
KLP_PATCH(patch);
