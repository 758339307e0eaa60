// A thread is interrupted by a signal in a function that does not change, which one that does has called; the handler waits
// on another stack. Nothing there speaks of the changing function: not the stack pointer, nor the frame of the signal,
// which holds the callee's address. The return address lies on the thread's first stack, and must be found there.

//@ file target.c
#include "target.h"
#include <signal.h>
static volatile int left, handled, inside;
static void handler(int signal)
{
	(void)signal;
	handled = 1;
	tell("in the handler");
	while (!left)
		usleep(1000);
}
/* Goes round until the signal has come and its handler has returned. */
__attribute__((noipa)) static int callee(int n)
{
	while (n > 1 && !handled)
		inside = 1;
	return n;
}
/* Holds the number that it adds over the call, so that a thread that switched on the way would tell. */
PATCHABLE int f(int n)
{
	volatile int version = 10;
	return callee(n) + version;
}
static void *worker(void *arg)
{
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	sigaltstack(&stack, NULL);
	tell("worked %d", f(2));
	for (;;)
		pause();
	return arg;
}
int main(void)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	pthread_t thread;
	sigaction(SIGUSR1, &action, NULL);
	pthread_create(&thread, NULL, worker, NULL);
	while (!inside)
		usleep(1000);
	tell("working");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "signal"))
			pthread_kill(thread, SIGUSR1);
		else if (!strcmp(c, "leave"))
			left = 1;
		else
			tell("f %d", f(1));
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(int n) { return n + 20; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect working
//@ say signal
//@ expect in the handler
//@ $ ugraft load fix.o --pid $PID --timeout 1s
//! ugraft: patch 'fix' could not make its transition in the time given and was reversed: thread [..] (target): f (frame [..]): [..]
//= 5
//@ say ?
//@ expect f 11
//@ say leave
//@ expect worked 12
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect f 21
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ alive
//@ clean
