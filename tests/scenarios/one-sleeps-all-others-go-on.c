// One thread sleeps inside the old function. All others are on the new side before it wakes; the program says who is in the
// way, and where; when the thread returns, it follows, and the transition is over.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
#include <sys/prctl.h>
#define WORKERS 8
static atomic_int awake;
static atomic_int met[WORKERS];
PATCHABLE int f(int sleeps)
{
	if (sleeps) {
		tell("asleep");
		while (!awake)
			usleep(10000);
	}
	return 1;
}
static void *work(void *arg)
{
	for (;;) {
		met[(long)arg] = f(0);
		usleep(1000);
	}
	return NULL;
}
static void *sleeps(void *arg)
{
	prctl(PR_SET_NAME, "sleeper");
	tell("first met %d", f(1));
	tell("then met %d", f(0));
	return arg;
}
int main(void)
{
	pthread_t thread;
	for (long i = 0; i < WORKERS; i++)
		pthread_create(&thread, NULL, work, (void *)i);
	pthread_create(&thread, NULL, sleeps, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "wake")) {
			awake = 1;
			continue;
		}
		for (int i = 0; i < WORKERS; i++)
			while (met[i] != 2)
				usleep(1000);
		tell("all others are new");
	}
	_exit(0);
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(int sleeps) { return 2 + 0 * sleeps; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect asleep
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s
//! ugraft: patch 'fix' is still in transition: [..]thread [..] (sleeper): f (frame [..]): in the function, for [..]
//= 5
//@ start job: ugraft wait fix --pid $target --timeout 60s
//@ at target say ?
//@ at target expect all others are new
//@ at target never first met [..]
//@ at target say wake
//@ at target expect first met 1
//@ at target expect then met [..]
//@ at job wait
//> patch 'fix': enabled[..]
//@ at target alive
//@ $ ugraft disable fix --pid $target --timeout 60s --quiet
//@ $ ugraft unload fix --pid $target --timeout 60s --quiet
//@ at target clean
