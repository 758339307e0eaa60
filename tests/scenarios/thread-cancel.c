// Threads are cancelled out of code of a patch, at a cancellation point and in the middle of computing, and out of a function of the
// program that it calls: every cleanup handler runs, the patch's own and those of its callers. In a C program the library that unwinds
// is loaded by the first cancellation, long after the patch.

//@ variant plain
//@ variant exceptions EXCEPTIONS=yes
//@ variant static TARGET_FLAGS=-static EXCEPTIONS=yes
//@ file target.c
#include "target.h"
static void cleanup(void *arg) { tell("cleaned up: %s", (const char *)arg); }
PATCHABLE void sleep_here(void) { pause(); }
PATCHABLE void compute(volatile int *until) { while (!*until) ; }
static volatile int never;
static void *sleeper(void *arg)
{
	pthread_cleanup_push(cleanup, "the program's");
	sleep_here();
	pthread_cleanup_pop(0);
	return arg;
}
static void *computer(void *arg)
{
	int old;
	pthread_cleanup_push(cleanup, "the program's");
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
	compute(&never);
	pthread_cleanup_pop(0);
	return arg;
}
static void *leaver(void *arg)
{
	pthread_cleanup_push(cleanup, "the program's");
	compute(NULL);
	pthread_exit(NULL);
	pthread_cleanup_pop(0);
	return arg;
}
int main(void)
{
	pthread_t thread;
	void *result;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "exit"))
			pthread_create(&thread, NULL, leaver, NULL);
		else
			pthread_create(&thread, NULL, !strcmp(c, "sleep") ? sleeper : computer, NULL);
		if (strcmp(c, "exit")) {
			usleep(50000);
			pthread_cancel(thread);
		}
		pthread_join(thread, &result);
		tell("%s", result == PTHREAD_CANCELED ? "cancelled" : result == (void *)1 ? "exited" : "not cancelled");
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <pthread.h>
#include <unistd.h>
static void cleanup(void *arg) { write(1, "cleaned up: the patch's\n", 24); }
static void sleeps(void)
{
	pthread_cleanup_push(cleanup, NULL);
	for (;;)
		pause();
	pthread_cleanup_pop(0);
}
/* Compilers run cleanups for exceptions that come from calls; so this is one. */
static __attribute__((noipa)) void spin(volatile int *until)
{
	while (!*until)
		;
}
static void computes(volatile int *until)
{
	pthread_cleanup_push(cleanup, NULL);
	if (!until)
		pthread_exit((void *)1);
	spin(until);
	pthread_cleanup_pop(0);
}
static struct klp_func funcs[] = {
	{ .old_name = "sleep_here", .new_func = sleeps },
	{ .old_name = "compute", .new_func = computes },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build ${TARGET_CC:-cc} -O2 -g ${EXCEPTIONS:+-fexceptions} -rdynamic -pthread -I"$SUPPORT" $TARGET_FLAGS target.c -o target
//@ build cc -c -O2 ${EXCEPTIONS:+-fexceptions} -I"$SDK" fix.c -o fix.o

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say sleep
//@ expect cleaned up: the patch's
//@ expect cleaned up: the program's
//@ expect cancelled
//@ say compute
//@ expect cleaned up: the patch's
//@ expect cleaned up: the program's
//@ expect cancelled
//@ say exit
//@ expect cleaned up: the patch's
//@ expect cleaned up: the program's
//@ expect exited
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
//@ alive
