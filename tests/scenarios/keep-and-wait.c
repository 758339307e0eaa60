// A transition that is not complete in time can be left as it is: whoever is clean runs the new code, the thread in the
// way goes on with the old, and any later run carries the transition on. `wait` does nothing else.

//@ file target.c
#include "target.h"
volatile int left;
PATCHABLE int f(void) { return 1; }
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}
static void *lingers(void *arg)
{
	linger();
	tell("left");
	return arg;
}
int main(void)
{
	pthread_t thread;
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
#include <unistd.h>
extern volatile int left;
KLP_SYMBOL(left, "exe", "left", 1);
static int f(void) { return 2; }
static void linger(void)
{
	if (write(1, "lingering anew\n", 15) != 15)
		return;
	while (!left)
		usleep(1000);
}
static struct klp_func funcs[] = {
	{ .old_name = "f", .new_func = f },
	{ .old_name = "linger", .new_func = linger },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ say linger
//@ expect lingering
//@ $ ugraft load fix.o --pid $PID --keep --timeout 2s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ alive
//@ say ?
//@ expect f 2
//@ $ ugraft status --pid $PID --quiet
//= 5

// A wait that gives up leaves everything as it is.
//@ $ ugraft wait fix --pid $PID --timeout 300ms
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5

// Two waits at once: the second waits for the first, too.
//@ start first: ugraft wait fix --pid $target --timeout 60s
//@ start second: ugraft wait fix --pid $target --timeout 60s
//@ at target say leave
//@ at target expect left
//@ at first wait
//> patch 'fix': enabled[..]
//@ at second wait
//> patch 'fix': enabled[..]
//@ $ ugraft wait fix --pid $target
//> patch 'fix': enabled
//@ $ ugraft wait other --pid $target
//! ugraft: no patch 'other' is loaded in this target: [..]
//= 4

// The same for disable, which a reverse takes back, and for enable.
//@ at target say linger
//@ at target expect lingering anew
//@ $ ugraft disable fix --pid $target --keep --timeout 2s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ at target say ?
//@ at target expect f 1
//@ $ ugraft reverse --pid $target --quiet
//@ $ ugraft wait fix --pid $target
//> patch 'fix': enabled
//@ at target say ?
//@ at target expect f 2
//@ at target say leave
//@ at target expect left
//@ $ ugraft disable fix --pid $target --quiet
//@ at target say linger
//@ at target expect lingering
//@ $ ugraft enable fix --pid $target --keep --timeout 2s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ at target say leave
//@ at target expect left
// Any command takes it up.
//@ $ ugraft enable fix --pid $target
//> patch 'fix' is already enabled
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ $ ugraft wait fix --pid $target
//! ugraft: process $target is not patched
//= 3
//@ at target clean
