// A thread is kept from running in the middle of a stub, and meanwhile the transition is turned round. If it has read the
// transition word by then, it goes to the new version whatever is said of it later; so it must not count as a thread that is
// yet to choose, though it stands where such threads stand.

//@ variant word-read OFFSET=26
//@ variant at-the-table OFFSET=72
//@ file target.c
#include "target.h"
#include <sys/syscall.h>
static volatile int inside = 1, walking;
PATCHABLE int inner(int v) { return v; }
PATCHABLE int outer(int v)
{
	if (v < 0) {
		tell("inside");
		while (inside)
			usleep(1000);
		v = 0;
	}
	return inner(v * 10);
}
static void *sleep_inside(void *arg)
{
	outer(-1);
	return arg;
}
static void *walk(void *arg)
{
	tell("walker %ld, outer %lx", syscall(SYS_gettid), (long)outer);
	while (!walking)
		usleep(1000);
	for (;;)
		if (outer(0) % 11)
			tell("mixed");
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, walk, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "enter"))
			pthread_create(&thread, NULL, sleep_inside, NULL);
		else if (!strcmp(c, "walk"))
			walking = 1;
		else
			inside = 0;
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

// The walker is outside at the begin, and so among the first to switch.
//@ start target
//@ expect walker [=tid], outer [=outer]
//@ say enter
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s --quiet
//! [...]
//= 5
//@ say walk
//@ $ ./leave_at $PID $tid $outer $OFFSET
//@ until grep -q '^State:.T (stopped)' /proc/$PID/task/$tid/status
//@ stopped
//@ $ ugraft reverse --pid $PID --timeout 1s --quiet
//! [...]
//= 5
//@ signal CONT
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ say leave
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ never mixed
//@ alive
//@ clean
