// Callbacks that crash, hang, deadlock or end their thread; and targets that offer no thread at a safe point. Each is
// reported as what it is, what can be undone is, and the target lives on.

//@ file target.c
#include "target.h"
#include <signal.h>
PATCHABLE int answer(void) { return 41; }
int pre, post;
/* The program's own handler must not see what a callback does. */
static void on_fault(int signal) { tell("complaint: signal %d", signal); _exit(1); }
int main(void)
{
	signal(SIGSEGV, on_fault);
	signal(SIGABRT, on_fault);
	tell("ready");
	for (const char *c; (c = command());)
		tell("%d, %d pre_patch, %d post_unpatch", answer(), pre, post);
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
extern int pre, post;
static void overflow(volatile char *p);
static int pre_patch(struct klp_object *obj)
{
	pre++;
#ifdef PRE
	PRE;
#endif
	return 0;
}
static void post_patch(struct klp_object *obj)
{
#ifdef POST
	POST;
#endif
}
static void post_unpatch(struct klp_object *obj) { post++; }
static __attribute__((noinline)) void overflow(volatile char *p)
{
	volatile char room[4096];
	room[0] = *p;
	overflow(room);
	p[0] = 0;
}
void *volatile use = overflow;
static int answer(void) { return 42; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch, .post_unpatch = post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK -D'PRE=*(volatile int *)8 = 1' fix.c -o segv.o
//@ build cc -c -O2 -fPIC -I$SDK -D'PRE=abort()' fix.c -o abort.o
//@ build cc -c -O2 -fPIC -I$SDK -D'PRE=char c = 0; overflow(&c)' fix.c -o overflow.o
//@ build cc -c -O2 -fPIC -I$SDK -D'PRE=for (;;) __asm__ volatile ("")' fix.c -o spin.o
//@ build cc -c -O2 -fPIC -I$SDK -D'PRE=for (;;) sleep(1000)' fix.c -o asleep.o
//@ build cc -c -O2 -fPIC -I$SDK -D'POST=*(volatile int *)8 = 1' fix.c -o late.o

//@ start target
//@ expect ready
//@ say x
//@ expect 41, 0 pre_patch, 0 post_unpatch
//@ snapshot

//@ $ ugraft load segv.o --pid $PID
//! ugraft: the pre_patch callback of patch 'segv' for the main executable crashed by signal 11 (SIGSEGV) at segv: pre_patch+[..]; its thread goes on where it was
//= 10
//@ alive
//@ say x
//@ expect 41, 1 pre_patch, 0 post_unpatch
//@ $ ugraft load abort.o --pid $PID
//! ugraft: the pre_patch callback of patch 'abort' for the main executable crashed by signal 6 (SIGABRT) at libc.so.6: [..]; its thread goes on where it was
//= 10
//@ $ ugraft load overflow.o --pid $PID
//! ugraft: the pre_patch callback of patch 'overflow' for the main executable crashed by signal 11 (SIGSEGV) at overflow: [..]; its thread goes on where it was
//= 10
//@ $ ugraft load spin.o --pid $PID --timeout 1s
//! ugraft: the pre_patch callback of patch 'spin' for the main executable did not return in time and was given up at spin: pre_patch+[..]; its thread goes on where it was
//= 10
//@ $ ugraft load asleep.o --pid $PID --timeout 1s
//! ugraft: the pre_patch callback of patch 'asleep' for the main executable did not return in time and was given up at libc.so.6: [..]; its thread goes on where it was
//= 10
//@ alive
//@ say x
//@ expect 41, 5 pre_patch, 0 post_unpatch
//@ clean
//@ unchanged

// What has happened cannot be undone by a crash after it: the patch is in, and the failure told.
//@ $ ugraft load late.o --pid $PID
//! ugraft: the post_patch callback of patch 'late' for the main executable crashed by signal 11 (SIGSEGV) at late: post_patch+[..]; its thread goes on where it was
//= 10
//@ say x
//@ expect 42, 6 pre_patch, 0 post_unpatch
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'late'
//> [..] livepatch: 'late': initializing patching transition
//> [..] livepatch: 'late': starting patching transition
//> [..] livepatch: 'late': completing patching transition
//> [..] livepatch: 'late': post_patch callback for object 'vmlinux' crashed by signal 11 (SIGSEGV) at late: post_patch+[..]; its thread goes on where it was
//> [..] livepatch: 'late': patching complete
//@ $ ugraft disable late --pid $PID --quiet
//@ $ ugraft unload late --pid $PID --quiet
//@ say x
//@ expect 41, 6 pre_patch, 1 post_unpatch
//@ never complaint: [..]
//@ clean
