// pthread_cancel meets the thread that runs a callback: the callback comes to its end first, the cancellation takes effect
// afterwards. And a thread that was taken out of a callback that crashed can be cancelled as before.

//@ file target.c
#include "target.h"
PATCHABLE int answer(void) { return 41; }
/* What callbacks have come to: 0 none, 1 in one, 2 its thread is cancelled, 3 it came to its end. */
volatile int stage;
static int cleanups;
static void cleanup(void *arg) { cleanups++; }

/* The thread that lends itself: it sleeps in a function that is a cancellation point. */
static void *lend(void *arg)
{
	int ends[2];
	char c;
	if (pipe(ends))
		abort();
	pthread_cleanup_push(cleanup, NULL);
	while (read(ends[0], &c, 1) >= 0)
		;
	pthread_cleanup_pop(0);
	return arg;
}

/* The other one is never at a safe point: it works from inside qsort(3), which could hold memory. */
static pthread_t thread;
static int work(const void *a, const void *b)
{
	for (const char *c; (c = command());) {
		void *result;
		if (!strcmp(c, "answer")) {
			tell("%d, stage %d", answer(), stage);
			continue;
		}
		if (!strcmp(c, "when in a callback"))
			while (stage != 1)
				usleep(1000);
		pthread_cancel(thread);
		stage = 2;
		pthread_join(thread, &result);
		tell("%s, %d cleanups", result == PTHREAD_CANCELED ? "cancelled" : "ended by itself", cleanups);
		stage = 0;
		cleanups = 0;
		pthread_create(&thread, NULL, lend, NULL);
	}
	exit(0);
}
int main(void)
{
	int two[2] = { 0 };
	pthread_create(&thread, NULL, lend, NULL);
	tell("ready");
	qsort(two, 2, sizeof two[0], work);
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/module.h>
#include <unistd.h>
extern volatile int stage;
static bool crash;
module_param(crash, bool, 0);
static bool await;
module_param(await, bool, 0);
static int pre_patch(struct klp_object *obj)
{
	if (crash)
		*(volatile int *)8 = 1;
	if (!await)
		return 0;
	stage = 1;
	while (stage != 2)
		;
	/* Cancellation points. */
	usleep(1000);
	if (write(1, "still here\n", 11) != 11)
		return -1;
	stage = 3;
	return 0;
}
static int answer(void) { return 42; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = { { .funcs = funcs, .callbacks = { .pre_patch = pre_patch } }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK fix.c

//@ start target
//@ expect ready
//@ say when in a callback
//@ $ ugraft load fix.o await=y --pid $PID
//> patch 'fix': enabled ([..]
//@ expect still here
//@ expect cancelled, 1 cleanups
//@ say answer
//@ expect 42, stage 0
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean

//@ $ ugraft load fix.o crash=y --pid $PID
//! ugraft: the pre_patch callback of patch 'fix' for the main executable crashed by signal 11 (SIGSEGV) at fix: pre_patch[..]; its thread goes on where it was
//= 10
//@ clean
//@ say now
//@ expect cancelled, 1 cleanups
//@ say answer
//@ expect 41, stage 0
