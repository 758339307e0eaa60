// A function that has given way in the middle is on a stack that no thread runs on. Looking at the threads does not find it, and
// the tool says so of a program that switches contexts; with `--scan memory` it finds it, and waits.

//@ file target.c
#include "target.h"
#include <sys/mman.h>
#include <ucontext.h>
enum { STACK = 256 << 10 };
static ucontext_t here, there;
static void *stack;
/* Gives way between two halves that must be of one version. */
PATCHABLE void f(void)
{
	tell("first half of the old");
	swapcontext(&there, &here);
	tell("second half of the old");
}
static void run(void) { f(); }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "begin")) {
			stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			getcontext(&there);
			there.uc_stack.ss_sp = stack;
			there.uc_stack.ss_size = STACK;
			there.uc_link = &here;
			makecontext(&there, run, 0);
			swapcontext(&here, &there);
			tell("suspended");
		} else {
			swapcontext(&here, &there);
			munmap(stack, STACK);
			/* It holds the place where f gave way. */
			memset(&there, 0, sizeof there);
			tell("done");
		}
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
static void f(void)
{
	if (write(1, "all of the new\n", 15) != 15)
		return;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready

// Before the first context is made nothing is known against it; lazily bound, the program has never called it.
//@ $ ugraft check fix.o --pid $PID | grep -c 'can be loaded'
//> 1
//@ say begin
//@ expect suspended
//@ $ ugraft check fix.o --pid $PID | grep note
//> note: target can switch contexts (swapcontext): what is on a stack that no thread runs on is not seen; give --scan memory to look for it in all memory

// Without the option the tool warns.
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//! ugraft: target can switch contexts (swapcontext): what is on a stack that no thread runs on is not seen; give --scan memory to look for it in all memory
//@ $ ugraft disable fix --pid $PID --scan memory --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean

// With it the stack blocks.
//@ $ ugraft load fix.o --pid $PID --scan memory --timeout 2s
//! ugraft: patch 'fix' could not make its transition in the time given and was reversed: no thread: f: suspended stack: the word at 0x[..] points into the function, for [..]
//= 5
//@ clean
//@ $ ugraft load fix.o --pid $PID --scan memory --timeout 2s --keep --quiet
//! ugraft: patch 'fix' is still in transition: no thread: f: suspended stack: the word at 0x[..] points into the function, for [..]
//= 5
// Who waits later remembers how to look.
//@ $ ugraft wait fix --pid $PID --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: no thread: f: suspended stack: the word at 0x[..] points into the function, for [..]
//= 5
//@ say end
//@ expect second half of the old
//@ expect done
//@ $ ugraft wait fix --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say begin
//@ expect all of the new
//@ expect suspended
//@ $ ugraft disable fix --pid $PID --scan memory --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
