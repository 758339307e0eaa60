// Threads that are nearly always inside a function to be changed: they leave it for some hundred nanoseconds at a time, and a look
// at them hardly ever falls into these. They make the transition all the same, each between two calls of its own, and old and
// new are never mixed: not in nested calls, nor where one function jumps to the other.

//@ file target.c
#include "target.h"
enum { THREADS = 12 };
static volatile int quit;
static volatile unsigned long calls[THREADS], wrong;
static volatile int nothing;
/* Says which version it is. */
PATCHABLE int inner(int version) { return nothing + (version == 1 ? 1 : -1); }
static __attribute__((noinline)) void work(void)
{
	for (volatile int i = 0; i < 200000; i++)
		;
}
/* Nearly all the time is spent in here. */
PATCHABLE int outer(void)
{
	work();
	int first = inner(1);
	work();
	return first == inner(1) ? first : -1;
}
/* Ends in a jump. */
PATCHABLE int leaps(void)
{
	work();
	return inner(1);
}
static void *run(void *arg)
{
	int i = (int)(long)arg;
	while (!quit) {
		int result = i & 1 ? leaps() : outer();
		if (result != 1 && result != 2)
			wrong++;
		calls[i]++;
	}
	return NULL;
}
int main(void)
{
	pthread_t threads[THREADS];
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, run, (void *)i);
	for (int i = 0; i < THREADS; i++)
		while (!calls[i])
			usleep(1000);
	tell("ready");
	while (command()) {
		unsigned long before[THREADS];
		for (int i = 0; i < THREADS; i++)
			before[i] = calls[i];
		for (int i = 0; i < THREADS; i++)
			while (calls[i] < before[i] + 2)
				usleep(1000);
		tell("wrong %lu", wrong);
	}
	quit = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}

//@ build cc -O2 -g -pthread -foptimize-sibling-calls -fno-toplevel-reorder -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
int inner(int);
void work(void);
KLP_SYMBOL(inner, "exe", "inner", 1);
KLP_SYMBOL(work, "exe", "work", 1);
static volatile int nothing;
static int new_inner(int version) { return nothing + (version == 2 ? 2 : -1); }
static int new_outer(void)
{
	work();
	int first = inner(2);
	work();
	return first == inner(2) ? first : -1;
}
static int new_leaps(void)
{
	work();
	return inner(2);
}
static struct klp_func funcs[] = {
	{ .old_name = "outer", .new_func = new_outer },
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "leaps", .new_func = new_leaps },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect wrong 0
//@ $ ugraft load fix.o --pid $PID --timeout 60s
//> patch 'fix': enabled ([..])
//@ say ?
//@ expect wrong 0
//@ $ ugraft disable fix --pid $PID --timeout 60s
//> patch 'fix': disabled ([..])
//@ say ?
//@ expect wrong 0
//@ $ ugraft enable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say ?
//@ expect wrong 0
//@ clean
