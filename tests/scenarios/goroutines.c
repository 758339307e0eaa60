// Goroutines give way on stacks of their own. A program that Go's linker made is known by a section of its, whether it has symbols
// left or not, and the tool says what it does not see.

//@ file target.c
#include "target.h"
__attribute__((section(".go.buildinfo"), used)) static const char build[] = "\xff Go buildinf:";
PATCHABLE void f(void) { tell("old"); }
int main(void)
{
	tell("ready");
	while (command())
		f();
	return 0;
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
//@ $ ugraft check fix.o --pid $PID | grep note
//> note: target can switch contexts (goroutines): what is on a stack that no thread runs on is not seen; give --scan memory to look for it in all memory
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//! ugraft: target can switch contexts (goroutines): what is on a stack that no thread runs on is not seen; give --scan memory to look for it in all memory
//@ say go
//@ expect new
//@ $ ugraft disable fix --pid $PID --scan memory --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ say go
//@ expect old
//@ clean
