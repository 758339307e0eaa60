/* What compilers can make of C, in one function that writes down what came out. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ugraft/livepatch.h>

#ifdef REFERENCE
int target_variable = 41;
int target_function(int x) { return 3 * x + 1; }
int hidden_variable = 41;
int hidden(int x) { return 3 * x + 1; }
#include <errno.h>
#define target_errno errno
extern int missing(void) __attribute__((weak));
#else
extern int target_variable;
extern int target_function(int x);
extern int hidden_variable;
KLP_SYMBOL(hidden_variable, "libhidden.so.1", "hidden_variable", 1);
extern int hidden(int x);
KLP_SYMBOL(hidden, "exe", "hidden.constprop.0", 2);
extern __thread int target_errno __attribute__((tls_model("initial-exec")));
extern int missing(void) __attribute__((weak));
#endif

static int zeros[3000];
static int counter = 7;
int global_counter = 11;
static const double table[] = { 0.5, 1.25, 2.125, 3.0625 };
static const char *const names[] = { "zero", "one", "two", "three", "four", "five", "six", "seven" };
int *pointer_into = &zeros[2999];
int (*volatile indirect)(int) = target_function;

static int square(int x) { return x * x; }
static int negate(int x) { return -x; }
int (*const functions[])(int) = { square, negate, target_function };

__attribute__((noinline)) static int sum(int n, ...)
{
	va_list ap;
	int total = 0;
	va_start(ap, n);
	while (n-- > 0)
		total += va_arg(ap, int);
	va_end(ap);
	return total;
}

__attribute__((noinline)) static const char *choose(int x)
{
	switch (x) {
	case 0: return "switch-a";
	case 1: return names[square(x) + 1];
	case 2: return "switch-c";
	case 3: return strchr("xswitch-d", 's');
	case 4: return "switch-e";
	case 5: counter += 100; return "switch-f";
	case 6: return "switch-g";
	case 7: return names[7];
	default: return "switch-other";
	}
}

__attribute__((noinline)) static double mix(double a, float b, long double c, int i)
{
	return a * table[i & 3] + (double)b + (double)c;
}

__attribute__((noinline, cold)) void fail(const char *why)
{
	puts(why);
	abort();
}

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int run(char *out, size_t size)
{
	size_t n = 0;
	int i, sorted[] = { 5, 3, 9, -1, 4 };
#define PUT(...) (n += (size_t)snprintf(out + n, size - n, __VA_ARGS__))
	if (size < 1000)
		fail("short");
	for (i = 0; i < 10; i++)
		PUT("%s ", choose(i));
	PUT("%d %d ", counter, global_counter++);
	PUT("%d %d ", target_variable, target_function(5));
	PUT("%d %d ", hidden_variable, hidden(6));
	PUT("%d ", sum(6, 1, 2, 3, 4, 5, 6));
	PUT("%.4f ", mix(2.0, 1.5f, 0.25L, 3));
	for (i = 0; i < 3; i++)
		PUT("%d ", functions[i](i + 7));
	PUT("%d ", indirect(8));
	*pointer_into = 99;
	PUT("%d %d ", zeros[2999], zeros[0]);
	qsort(sorted, 5, sizeof *sorted, compare);
	for (i = 0; i < 5; i++)
		PUT("%d ", sorted[i]);
	target_errno = 77;
	PUT("%d ", target_errno);
	PUT("%s ", missing ? "there" : "missing");
	PUT("%s", strlen(names[3]) == 5 ? "end" : "bad");
	global_counter = 11;
	return (int)n;
}

static int refuse(struct klp_object *object)
{
	return object->name ? -1 : 0;
}

static struct klp_func funcs[] = {
	{ .old_name = "run", .new_func = (void *)run },
	{ }
};
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = refuse } },
	{ }
};
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
KLP_PATCH(patch);
