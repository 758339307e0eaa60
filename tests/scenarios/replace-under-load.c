// Two patches, one of f and one of g, are replaced by a third that changes f and drops the change of g, while threads call both
// at full speed. One thread is inside g, so that the replacing stops half-way: it is reversed there, and f and g are as they
// were; then it is forced there. Without anybody in the way it completes, and g has its own bytes back.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
static atomic_int inside, stays;
static unsigned char before[16];
PATCHABLE int f(void) { return 0; }
PATCHABLE int g(int stay)
{
	if (stay) {
		inside = 1;
		while (stays)
			usleep(1000);
	}
	return 0;
}
static void *calls(void *arg)
{
	for (;;) {
		f();
		g(0);
		for (volatile int i = 0; i < 400; i++)
			;
	}
	return arg;
}
static void *stay(void *arg)
{
	g(1);
	tell("left g");
	return arg;
}
int main(void)
{
	pthread_t thread;
	memcpy(before, (void *)g, sizeof before);
	for (int i = 0; i < 3; i++)
		pthread_create(&thread, NULL, calls, NULL);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "enter g")) {
			inside = 0, stays = 1;
			pthread_create(&thread, NULL, stay, NULL);
			while (!inside)
				usleep(1000);
			tell("in g");
		} else if (!strcmp(c, "leave g")) {
			stays = 0;
		} else {
			tell("f %d, g %d, g's bytes %s", f(), g(0), memcmp(before, (void *)g, sizeof before) ? "changed" : "its own");
		}
	}
	_exit(0);
}

//@ file a.c
#include <ugraft/livepatch.h>
static int f(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file b.c
#include <ugraft/livepatch.h>
#include <stdatomic.h>
#include <unistd.h>
extern atomic_int inside, stays;
KLP_SYMBOL(inside, "exe", "inside", 1);
KLP_SYMBOL(stays, "exe", "stays", 1);
static int g(int stay)
{
	if (stay) {
		inside = 1;
		while (stays)
			usleep(1000);
	}
	return 1;
}
static struct klp_func funcs[] = { { .old_name = "g", .new_func = g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file c.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load a.o --pid $PID --timeout 60s --quiet
//@ $ ugraft load b.o --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect f 1, g 1, g's bytes changed

// Reversed half-way.
//@ say enter g
//@ expect in g
//@ $ ugraft load c.o --pid $PID --keep --timeout 1s
//! ugraft: patch 'c' is still in transition: [..]
//= 5
//@ until ugraft status --pid $PID | grep -q ': 1 of'
//@ $ ugraft reverse --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect f 1, g 1, g's bytes changed
//@ $ ugraft unload c --pid $PID --timeout 60s --quiet

// Completed.
//@ say leave g
//@ expect left g
//@ $ ugraft load c.o --pid $PID --timeout 60s
//> patch 'c': enabled; replaced a, b ([..])
//@ say ?
//@ expect f 2, g 0, g's bytes its own
//@ $ ugraft disable c --pid $PID --timeout 60s --quiet
//@ $ for patch in c b a; do ugraft unload $patch --pid $PID --timeout 60s --quiet; done
//@ say ?
//@ expect f 0, g 0, g's bytes its own
//@ clean

// Forced half-way.
//@ $ ugraft load a.o --pid $PID --timeout 60s --quiet
//@ $ ugraft load b.o --pid $PID --timeout 60s --quiet
//@ say enter g
//@ expect in g
//@ $ ugraft load c.o --pid $PID --keep --timeout 1s
//! ugraft: patch 'c' is still in transition: [..]
//= 5
//@ $ ugraft force --pid $PID --quiet
//! [...]
//@ say ?
//@ expect f 2, g 0, g's bytes its own
//@ say leave g
//@ expect left g
//@ $ ugraft disable c --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect f 0, g 0, g's bytes its own
//@ alive
