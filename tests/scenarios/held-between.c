// A thread that has not switched is stopped where few instructions are spent: in a stub, which has chosen the old version
// for it and has not gone there yet, and at the very entry of a function, to which another changing one has just jumped.
// Neither place is a function of the patch, and no stack tells of it; but whoever switches there has half of each version.

//@ file target.c
#include "target.h"
#include <signal.h>
#include <sys/syscall.h>
static volatile int inside = 1, held, release;
PATCHABLE int inner(int v) { return v; }
PATCHABLE int outer(int v)
{
	if (inside) {
		tell("inside");
		while (inside)
			usleep(1000);
	}
	return inner(v * 10);
}
/* Holds the thread wherever the signal met it. */
static void hold(int signal)
{
	(void)signal;
	tell("held");
	held = 1;
	while (!release)
		usleep(1000);
	held = 0;
}
static void *work(void *arg)
{
	tell("worker %ld, outer %lx, inner %lx", syscall(SYS_gettid), (long)outer, (long)inner);
	outer(0);
	tell("outside");
	for (;;)
		if (outer(0) % 11)
			tell("mixed");
	return arg;
}
int main(void)
{
	pthread_t thread;
	struct sigaction action = { .sa_handler = hold, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &action, NULL);
	pthread_create(&thread, NULL, work, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave")) {
			inside = 0;
		} else {
			release = 1;
			while (held)
				usleep(1000);
			release = 0;
			tell("released");
		}
	}
	return 0;
}
//@ build cc -O2 -Wall -Werror $SUPPORT/leave_at.c -o leave_at

//@ file fix.c
#include <ugraft/livepatch.h>
int inner(int v);
KLP_SYMBOL(inner, "exe", "inner", 1);
static int new_inner(int v) { return v + 1; }
static int new_outer(int v) { return inner((v + 1) * 10); }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

// The thread is inside at the beginning, so that it is one of those that have to switch; then it only calls.
//@ start target
//@ expect worker [=tid], outer [=outer], inner [=inner]
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 500ms --quiet
//! [...]
//= 5
//@ say leave
//@ expect outside

// Behind the instruction that has told the side, with SIGUSR1.
//@ $ ./leave_at $PID $tid $outer 147 10
//@ expect held
//@ $ ugraft wait fix --pid $PID --timeout 1s
//! [...]
//= 5
//@ say release
//@ expect released
//@ $ ./leave_at $PID $tid $inner entry 10
//@ expect held
//@ $ ugraft wait fix --pid $PID --timeout 1s
//! [...]
//= 5
//@ say release
//@ expect released
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ never mixed

// And the same on the way back.
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ never mixed
//@ alive
//@ clean
