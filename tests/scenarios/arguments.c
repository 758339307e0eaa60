// Whatever a caller passes reaches the new function, and what that returns reaches the caller: ten integers and ten
// floating-point numbers (in registers and on the stack), a variable number of arguments (whose count of vector registers is
// in al), a structure returned through memory, vectors of 32 bytes, long double, 128-bit numbers; during a transition
// just as after it, when calls pass through a stub.

//@ file target.c
#include "target.h"
typedef double vec __attribute__((vector_size(32)));
struct big { long v[6]; };
#define TARGET __attribute__((target("avx")))

PATCHABLE double ten(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, double k, double l, double m,
		     double n, double o, double p, double q, double r, double s, double t)
{
	return a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q + r + s + t;
}
PATCHABLE int join(char *out, size_t size, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	int n = vsnprintf(out, size, format, args);
	va_end(args);
	return n;
}
PATCHABLE struct big fill(long seed) { return (struct big){ { seed, seed, seed, seed, seed, seed } }; }
PATCHABLE TARGET vec twice(vec a) { return a + a; }
PATCHABLE __int128 wide(__int128 a, long double b) { return a * (long)b; }
static volatile int left;
/* Keeps a thread inside a function of the patch, so that calls of the others meet a stub. */
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}

static TARGET void show(void)
{
	char text[64];
	double sum = ten(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1.);
	join(text, sizeof text, "%d %s %.1f %.1f", 1, "two", 3., 4.);
	struct big b = fill(7);
	vec v = twice((vec){ 1, 2, 3, 4 });
	__int128 w = wide((__int128)1 << 100, 3);
	tell("%.1f | %s | %ld %ld | %g %g | %llx", sum, text, b.v[0], b.v[5], v[0], v[3], (unsigned long long)(w >> 64));
}
static void *lingers(void *arg) { linger(); return arg; }
int main(void)
{
	pthread_t thread;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "linger"))
			pthread_create(&thread, NULL, lingers, NULL);
		else if (!strcmp(c, "leave"))
			left = 1, pthread_join(thread, NULL), tell("left");
		else
			show();
	}
	return 0;
}

//@ file fix.c
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <ugraft/livepatch.h>
typedef double vec __attribute__((vector_size(32)));
struct big { long v[6]; };
static double ten(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, double k, double l, double m,
		  double n, double o, double p, double q, double r, double s, double t)
{
	return -(a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q + r + s + t);
}
static int join(char *out, size_t size, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	int n = vsnprintf(out, size, format, args);
	va_end(args);
	if (n > 0)
		out[0] = 'X';
	return n;
}
static struct big fill(long seed) { return (struct big){ { -seed, 0, 0, 0, 0, -seed } }; }
static __attribute__((target("avx"))) vec twice(vec a) { return a * 10; }
static __int128 wide(__int128 a, long double b) { return a * 2 * (long)b; }
static void linger(void) {}
static struct klp_func funcs[] = {
	{ .old_name = "ten", .new_func = ten },
	{ .old_name = "join", .new_func = join },
	{ .old_name = "fill", .new_func = fill },
	{ .old_name = "twice", .new_func = twice },
	{ .old_name = "wide", .new_func = wide },
	{ .old_name = "linger", .new_func = linger },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say show
//@ expect 60.5 | 1 two 3.0 4.0 | 7 7 | 2 8 | 3000000000

// A thread inside `linger` keeps the transition open; the main thread's calls go through stubs meanwhile. It may run either
// version, but only one of them, and every argument must arrive.
//@ say linger
//@ expect lingering
//@ start job: ugraft load fix.o --pid $target --timeout 60s --quiet
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ at target say show
//@ at target expect [..]60.5 | [..] two 3.0 4.0 | [..]7 [..]7 | [..]
//@ at target say leave
//@ at target expect left
//@ at job wait

//@ at target say show
//@ at target expect -60.5 | X two 3.0 4.0 | -7 -7 | 10 40 | 6000000000
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at target say show
//@ at target expect 60.5 | 1 two 3.0 4.0 | 7 7 | 2 8 | 3000000000
//@ at target clean
