// Threads are born and end all the time while patches come and go. A thread that is born in a transition runs the new version
// from its first instruction; one that ends needs no look any more. Every thread calls both functions, nested, and never
// meets a mix.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
static atomic_long born;
static volatile int zero;
PATCHABLE int inner(void) { return zero; }
PATCHABLE int outer(void) { return inner() + zero; }
static void *brief(void *arg)
{
	for (int i = 0; i < 20; i++) {
		int v = outer();
		if (v / 10 != v % 10)
			tell("mixed: %d", v);
		if (i == 10)
			usleep(200);
	}
	return arg;
}
static void *parent(void *arg)
{
	for (;;) {
		pthread_t threads[4];
		for (int i = 0; i < 4; i++)
			if (pthread_create(&threads[i], NULL, brief, NULL))
				tell("cannot create a thread");
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
		born += 4;
	}
	return arg;
}
int main(void)
{
	pthread_t thread;
	for (int i = 0; i < 3; i++)
		pthread_create(&thread, NULL, parent, NULL);
	tell("ready");
	while (command()) {
		for (long until = born + 100; born < until;)
			usleep(1000);
		tell("version %d", outer() % 10);
	}
	_exit(0);
}

//@ file fix.c
#include <ugraft/livepatch.h>
int inner(void);
KLP_SYMBOL(inner, "exe", "inner", 1);
static int new_inner(void) { return 1; }
static int new_outer(void) { return inner() + 10; }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
int inner(void);
KLP_SYMBOL(inner, "exe", "inner", 1);
static int new_inner(void) { return 2; }
static int new_outer(void) { return inner() + 20; }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect version 0
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect version 1
//@ $ ugraft load cumulative.o --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect version 2
//@ $ for i in 1 2 3 4 5 6 7 8; do ugraft disable cumulative --pid $PID --timeout 60s --quiet && ugraft enable cumulative --pid $PID --timeout 60s --quiet || exit; done
//@ $ ugraft disable cumulative --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect version 0
//@ $ ugraft unload cumulative --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ never mixed: [..]
//@ alive
//@ clean
//@ close
//@ wait
