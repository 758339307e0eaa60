// A process with a thousand threads, all asleep but one, is patched and restored like any other.

//@ file target.c
#include "target.h"
PATCHABLE int f(int n) { return n + 1; }
static pthread_barrier_t barrier;
static void *sleeper(void *arg)
{
	pthread_barrier_wait(&barrier);
	for (;;)
		pause();
	return arg;
}
int main(void)
{
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_barrier_init(&barrier, NULL, 1000);
	for (int i = 1; i < 1000; i++) {
		pthread_t thread;
		if (pthread_create(&thread, &small, sleeper, NULL))
			return 1;
	}
	pthread_barrier_wait(&barrier);
	tell("ready");
	for (const char *c; (c = command());)
		tell("f %d", f(atoi(c)));
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(int n) { return n + 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say 1
//@ expect f 2
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --timeout 60s
//> patch 'fix': enabled (1000 threads, longest pause [..], [..] in all)
//@ alive
//@ say 1
//@ expect f 3
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say 1
//@ expect f 2
//@ clean
//@ unchanged
