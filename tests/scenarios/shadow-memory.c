// Memory for shadow variables comes as it is needed, in a target that may make no long files: many variables, a long one, threads that
// attach and free all the time while more memory is mapped, and children made in the middle of that. A child goes on by itself, and
// its memory goes with its last patch as its parent's does. Both then have the mappings that there were before.

//@ needs prlimit
//@ file target.c
#include "target.h"
#include <signal.h>
enum { THREADS = 4, STORM = 1 << 20 };
/* How many variables of `size` bytes the objects from `first` on have by now; each is filled with its object's number. */
PATCHABLE long attach(long first, long count, long size) { (void)first, (void)count, (void)size; return -1; }
/* How many of the objects have theirs, and undamaged. */
PATCHABLE long whole(long first, long count, long size) { (void)first, (void)count, (void)size; return -1; }
PATCHABLE void detach(long first, long count) { (void)first, (void)count; }
static int go[2];
static volatile int calm;
static volatile long wrong, rounds[THREADS];
static void storm(long thread)
{
	/* Short ones and long ones, so that there are always too few of some length. */
	for (long round = 0; !calm; round++) {
		long first = (thread + 1) * STORM, count = 1 + round % 50, size = 8 << (round + thread) % 17;
		if (attach(first, count, size) != count || whole(first, count, size) != count)
			wrong++;
		detach(first, count);
		rounds[thread]++;
	}
}
static void *work(void *thread)
{
	for (char c; read(go[0], &c, 1) == 1;)
		storm((long)thread);
	return thread;
}
static void child(void)
{
	sigset_t set;
	int signal;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	tell("child %d", getpid());
	/* What it had from its parent is there, and there is more to be had. */
	while (sigwait(&set, &signal) == 0)
		tell("child: %ld whole, %ld more", whole(0, 20000, 100), attach(100000, 20000, 200));
}
int main(void)
{
	pthread_t threads[THREADS];
	if (pipe(go))
		return 1;
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	tell("ready");
	for (const char *c; (c = command());) {
		long first, count, size, before;
		if (!strcmp(c, "storm")) {
			calm = 0;
			tell("%zd blow", write(go[1], "....", THREADS));
		} else if (!strcmp(c, "calm")) {
			for (int i = 0; i < THREADS; i++)
				for (before = rounds[i]; rounds[i] < before + 60;)
					usleep(1000);
			calm = 1;
			tell("%ld wrong", wrong);
		} else if (sscanf(c, "fork %ld", &count) == 1) {
			for (; count > 0; usleep(5000), count--)
				if (fork() == 0)
					child();
		} else if (sscanf(c, "attach %ld %ld %ld", &first, &count, &size) == 3)
			tell("%ld attached", attach(first, count, size));
		else if (sscanf(c, "whole %ld %ld %ld", &first, &count, &size) == 3)
			tell("%ld whole", whole(first, count, size));
	}
	return 0;
}

//@ file fields.c
#include <ugraft/livepatch.h>
#include <ugraft/shadow.h>
#include <string.h>
#define ID 1
#define OBJECT(n) ((void *)(8 * (n) + 8))
static long attach(long first, long count, long size)
{
	long done = 0;
	for (long n = first; n < first + count; n++) {
		unsigned char *data = klp_shadow_alloc(OBJECT(n), ID, size, GFP_KERNEL, 0, 0);
		if (!data)
			break;
		/* A new one is all zeros. */
		if (data[0] || memcmp(data, data + 1, size - 1))
			break;
		memset(data, (int)n, size);
		done++;
	}
	return done;
}
static long whole(long first, long count, long size)
{
	long found = 0;
	for (long n = first; n < first + count; n++) {
		unsigned char *data = klp_shadow_get(OBJECT(n), ID);
		found += data && data[0] == (unsigned char)n && !memcmp(data, data + 1, size - 1);
	}
	return found;
}
static void detach(long first, long count)
{
	for (long n = first; n < first + count; n++)
		klp_shadow_free(OBJECT(n), ID, 0);
}
static struct klp_func funcs[] = {
	{ .old_name = "attach", .new_func = attach },
	{ .old_name = "whole", .new_func = whole },
	{ .old_name = "detach", .new_func = detach },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target: prlimit --fsize=8500000 ./target
//@ expect ready
//@ $ cat /proc/$PID/maps >before
//@ $ ugraft load fields.o --pid $PID --quiet
//@ say attach 0 20000 100
//@ expect 20000 attached
//@ say attach 50000 1 50000000
//@ expect 1 attached

// No more where the process may have no more.
//@ $ prlimit --pid $PID --as=4096:
//@ say attach 50001 1 50000000
//@ expect 0 attached
//@ $ prlimit --pid $PID --as=unlimited:
//@ say attach 50001 1 50000000
//@ expect 1 attached

// What was mapped is seen as ours.
//@ $ test $(ugraft status --pid $PID --json | sed -n 's/.*"mapped_bytes": *\([0-9]*\).*/\1/p') -gt 100000000

//@ say storm
//@ expect 4 blow
//@ say fork 12
//@ expect child [=child]
//@ say calm
//@ expect 0 wrong
//@ adopt child child
//@ signal USR1
//@ at target expect child: 20000 whole, 20000 more
//@ $ ugraft disable fields --pid $child --quiet && ugraft unload fields --pid $child --quiet
//@ clean
//@ $ diff before /proc/$child/maps
//@ signal USR1
//@ at target expect child: -1 whole, -1 more
//@ $ for p in $(cat /proc/$target/task/$target/children); do test $p = $child || { ugraft disable fields --pid $p --quiet && ugraft unload fields --pid $p --quiet && diff before /proc/$p/maps && kill $p; } || echo $p; done

//@ at target say whole 0 20000 100
//@ at target expect 20000 whole
//@ at target say whole 50000 2 50000000
//@ at target expect 2 whole
//@ $ ugraft disable fields --pid $target --quiet && ugraft unload fields --pid $target --quiet
//@ $ diff before /proc/$target/maps
