// A process that its user has stopped stays stopped while it is patched, and finds itself patched when it goes on.

//@ file target.c
#include "target.h"
PATCHABLE int f(void) { return 1; }
static void *sleeper(void *arg)
{
	tell("ready");
	for (;;)
		pause();
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, sleeper, NULL);
	while (command())
		tell("f %d", f());
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect f 1
//@ snapshot
//@ signal STOP
//@ stopped
//@ $ ugraft load fix.o --pid $PID --quiet
//@ stopped
//@ signal CONT
//@ say ?
//@ expect f 2
//@ alive
//@ signal TSTP
//@ stopped
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ stopped
//@ clean
//@ signal CONT
//@ say ?
//@ expect f 1
//@ alive
//@ unchanged
