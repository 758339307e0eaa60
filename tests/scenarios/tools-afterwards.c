// A patched process is an ordinary process: a debugger attaches to it and sees its stack, strace follows it, a core is taken
// and read, a thread is cancelled out of a patched function and runs its cleanup, another leaves one by longjmp.

//@ needs gdb strace
//@ file target.c
#include "target.h"
#include <setjmp.h>
static jmp_buf out;
PATCHABLE int wait_here(int how)
{
	if (how == 1)
		tell("old code waits");
	return how;
}
PATCHABLE int answer(void) { return 1; }
void leave(void) { longjmp(out, 7); }
static void cleanup(void *arg) { tell("cleaned up%s", (char *)arg); }
static void *cancelled(void *arg)
{
	pthread_cleanup_push(cleanup, "");
	wait_here(1);
	pthread_cleanup_pop(0);
	return arg;
}
int main(void)
{
	pthread_t thread;
	void *result;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "start")) {
			pthread_create(&thread, NULL, cancelled, NULL);
		} else if (!strcmp(c, "cancel")) {
			pthread_cancel(thread);
			pthread_join(thread, &result);
			tell("%s", result == PTHREAD_CANCELED ? "cancelled" : "not cancelled");
		} else if (!strcmp(c, "jump")) {
			int how = setjmp(out);
			tell("%d", how ? how : wait_here(2));
		} else {
			tell("answer %d", answer());
		}
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
void tell(const char *format, ...);
void leave(void);
static int waits(int how)
{
	if (how == 2)
		leave();
	for (;;) {
		write(1, "new code waits\n", 15);
		pause();
	}
}
static int answer(void) { return 2; }
static struct klp_func funcs[] = {
	{ .old_name = "wait_here", .new_func = waits },
	{ .old_name = "answer", .new_func = answer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -g -rdynamic -pthread -I"$SUPPORT" target.c -o target

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say start
//@ expect new code waits
//@ $ gdb -nx -q -batch -p $target -ex 'thread apply all bt 3' 2>&1 | grep -cE '^Thread [12] '
//> 2
//@ alive
//@ $ gdb -nx -q -batch -p $target -ex 'gcore core.target' 2>&1 | grep -o 'Saved corefile'
//> Saved corefile
//@ $ gdb -nx -q -batch ./target core.target -ex 'print (int)sizeof(out) > 0' -ex 'info threads' 2>&1 | grep -c 'LWP'
//> [..]
//@ alive
//@ start tracer: strace -f -q -p $target -o trace
//@ until grep -q TracerPid:[[:space:]][1-9] /proc/$target/status
//@ at target say ?
//@ at target expect answer 2
//@ at tracer signal INT
//@ at tracer wait
//> [...]
//! [...]
//= 130
//@ $ grep -c 'answer 2' trace
//> 1
//@ at target alive
//@ at target say jump
//@ at target expect 7
//@ at target say cancel
//@ at target expect cleaned up
//@ at target expect cancelled
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at target say ?
//@ at target expect answer 1
//@ at target clean
