// A thread that stays inside a function to be changed keeps the transition open. Meanwhile the state is named, a second
// request gets busy, the transition can be reversed, and when its time is over it is reversed by itself, the thread in the way
// named with the function and how long it has been there. Or it is forced.

//@ file target.c
#include "target.h"
#include <sys/prctl.h>
static volatile int left;
PATCHABLE int f(void) { return 1; }
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}
static void *lingers(void *arg)
{
	prctl(PR_SET_NAME, "lingerer");
	linger();
	tell("left");
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, lingers, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave"))
			left = 1;
		else if (!strcmp(c, "linger"))
			left = 0, pthread_create(&thread, NULL, lingers, NULL);
		else
			tell("f %d", f());
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static void linger(void) {}
static struct klp_func funcs[] = {
	{ .old_name = "f", .new_func = f },
	{ .old_name = "linger", .new_func = linger },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file other.c
#include <ugraft/livepatch.h>
static int f(void) { return 3; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect lingering
//@ say ?
//@ expect f 1

// The time runs out: reversed, and the target is as if nothing had been.
//@ $ ugraft load fix.o --pid $PID --timeout 300ms
//> [...]
//! [...]
//= 5
//@ alive
//@ say ?
//@ expect f 1
//@ clean

// Two tools at once: while the first waits for the thread, the second is told that the target is busy.
//@ start job: ugraft load fix.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ $ ugraft status --pid $target
//> [...]
//! [...]
//= 5
//@ $ ugraft status --pid $target --json
//> [...]
//! [...]
//= 5
//@ $ ugraft load other.o --pid $target
//> [...]
//! [...]
//= 75

// The tool dies, and the transition stays as it is. The next one finds it, and turns it round.
//@ at job signal KILL
//@ at job wait
//= 137
//@ $ ugraft status --pid $target
//> [...]
//! [...]
//= 5
//@ at target alive
//@ $ ugraft load other.o --pid $target --timeout 200ms
//> [...]
//! [...]
//= 5
//@ $ ugraft reverse --pid $target
//> [...]
//! [...]
//@ at target say ?
//@ at target expect f 1
//@ $ ugraft unload fix --pid $target --quiet
//@ at target clean

// Forced: done at once, and remembered, because from now on a thread may still be inside the old code.
//@ start job: ugraft load fix.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ at job signal KILL
//@ at job wait
//= 137
//@ $ ugraft force --pid $target
//> [...]
//! [...]
//@ $ ugraft status --pid $target
//> [...]
//! [...]
//@ at target alive
//@ at target say ?
//@ at target expect f 2
//@ at target say leave
//@ at target expect left
//@ $ ugraft log --pid $target
//> [...]
//! [...]
//@ $ ugraft disable fix --pid $target
//> [...]
//! [...]
//@ at target say ?
//@ at target expect f 1
//@ $ ugraft force --pid $target
//> [...]
//! [...]
//= 1
//@ $ ugraft reverse --pid $target
//> [...]
//! [...]
//= 1
