// The first thread has left by pthread_exit and is a zombie; the kernel shows neither memory, mappings nor files under the
// process's own number any more. The other threads are patched as ever, and the process is found among the patched ones.

//@ variant dynamic
//@ variant static TARGET_FLAGS="-static"

//@ file target.c
#include "target.h"
PATCHABLE void f(void) { tell("old"); }
static void *others_go_on(void *arg)
{
	pthread_join(*(pthread_t *)arg, NULL);
	tell("ready");
	while (command())
		f();
	exit(0);
}
int main(void)
{
	static pthread_t first;
	pthread_t second;
	first = pthread_self();
	pthread_create(&second, NULL, others_go_on, &first);
	pthread_exit(NULL);
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
static void f(void)
{
	if (write(1, "new\n", 4) != 4)
		return;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ grep State /proc/$PID/status
//> State:	Z (zombie)
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say go
//@ expect new
//@ $ ugraft list | grep -c "$PID"
//> 1
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say go
//@ expect old
//@ clean
