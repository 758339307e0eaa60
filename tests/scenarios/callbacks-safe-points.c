// Which threads may run a callback, and what happens when the tool dies while one runs.

//@ file target.c
#include "target.h"
#include <poll.h>
PATCHABLE int answer(void) { return 41; }
int calls;

/* Computes in registers that a callback would use, and looks that they keep their values. */
static void *compute(void *arg)
{
	double a = 1.5, b = 2.5, c = -3.75;
	long rounds = 0;
	errno = E2BIG;
	for (;;) {
		for (int i = 0; i < 1000; i++)
			__asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c), "+r"(rounds));
		rounds++;
		if (a * b + c != 0 || errno != E2BIG)
			tell("complaint: %f * %f + %f, errno %d", a, b, c, errno);
	}
	return arg;
}

static void *allocate(void *arg)
{
	for (;;) {
		void *volatile p = malloc(100);
		free(p);
	}
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line[256];
	if (!strcmp(argv[1], "compute"))
		pthread_create(&thread, NULL, compute, NULL);
	if (!strcmp(argv[1], "allocate"))
		pthread_create(&thread, NULL, allocate, NULL);
	tell("ready");
	if (!strcmp(argv[1], "poll")) {
		/* Waits for ever, with a lock of the C library around it in the variant below. */
		struct pollfd fd = { .fd = 0, .events = POLLIN };
		int n = poll(&fd, 1, -1);
		tell("poll: %d, %s", n, n < 0 ? strerror(errno) : "no error");
		return 0;
	}
	/* Holds the lock of stdin while it waits. */
	while (fgets(line, sizeof line, stdin))
		tell("%d, %d calls", answer(), calls);
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
extern int calls;
static void call(struct klp_object *obj)
{
	char text[64];
	snprintf(text, sizeof text, "%.3f", 1.0 / ++calls);
}
static int pre_patch(struct klp_object *obj)
{
	call(obj);
#ifdef SLOW
	char begun[] = "begun\n";
	if (write(1, begun, sizeof begun - 1) < 0)
		abort();
	while (access("go", F_OK))
		usleep(1000);
#endif
	return 0;
}
static int answer(void) { return 42; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs,
	  .callbacks = { .pre_patch = pre_patch, .post_patch = call, .pre_unpatch = call, .post_unpatch = call } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK fix.c && cc -c -O2 -fPIC -I$SDK -DSLOW fix.c -o slow.o

// The only thread holds the lock of a stream: none is to be had, and nothing changes.
//@ start target nothing
//@ expect ready
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --timeout 500ms
//! ugraft: no thread of process $target came to where a callback can run within [..] s: thread $target (target): it is in [..]gets[..] of libc.so.6; try again, or allow more time
//= 6
//@ clean
//@ unchanged
//@ say x
//@ expect 41, 0 calls
//@ close
//@ wait

// A thread that computes lends itself, and its registers come back.
//@ start target compute
//@ expect ready
//@ $ for i in 1 2 3 4 5 6 7 8 9 10; do ugraft load fix.o --pid $PID --quiet && ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet || exit 1; done
//@ say x
//@ expect 41, 40 calls
//@ never complaint: [..]
//@ clean
//@ close
//@ wait

// One that allocates all the time is caught between two calls.
//@ start target allocate
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet && ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ say x
//@ expect 41, 4 calls
//@ clean
//@ close
//@ wait

// A thread that sleeps for ever in a system call is woken for it, and sleeps on.
//@ start target poll
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet && ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ alive
//@ clean
//@ say x
//@ expect poll: 1, no error
//@ wait

// The tool dies while a callback runs. The callback goes on, and the next run waits for it, cancels what had not begun, and
// does what it was asked for.
//@ start target compute
//@ expect ready
//@ start job: ugraft load slow.o --pid $target --timeout 60s
//@ at target expect begun
//@ at job signal KILL
//@ at job wait
//= 137
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state          objects       functions
//>  slow            being enabled  (executable)  answer
//> patch 'slow' is in transition (patching), which has not begun: nothing has changed yet
//>   it waits for the pre_patch callback for the main executable, which thread [..] was given
//> `ugraft wait slow` carries it on, as any command does; `ugraft reverse` turns it round, `ugraft force` completes it unproved
//= 5
//@ $ touch go
//@ $ ugraft load slow.o --pid $target --timeout 60s
//> patch 'slow': enabled ([..]
//! ugraft: an earlier run left patch 'slow' in transition; it was taken up first
//@ at target say x
//@ at target expect 42, 4 calls
//@ $ ugraft disable slow --pid $target --quiet && ugraft unload slow --pid $target --quiet
//@ at target clean
//@ at target say x
//@ at target expect 41, 6 calls
//@ at target never complaint: [..]
