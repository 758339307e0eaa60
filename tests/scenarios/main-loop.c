// The function to be changed holds the program's main loop, and is never left. The transition does not complete, and the
// report names the loop; it is reversed cleanly; forced, it is over at once, and all that the loop calls is new.

//@ file target.c
#include "target.h"
PATCHABLE int handle(void) { return 1; }
PATCHABLE void serve(void)
{
	for (const char *c; (c = command());)
		tell("handled by %d", handle());
}
int main(void)
{
	tell("ready");
	serve();
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int handle(void) { return 2; }
static void serve(void) { for (;;) ; }
static struct klp_func funcs[] = {
	{ .old_name = "handle", .new_func = handle },
	{ .old_name = "serve", .new_func = serve },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --timeout 1s
//! ugraft: patch 'fix' could not make its transition in the time given and was reversed: thread [..] (target): serve (frame [..]): in the function, for [..]
//= 5
//@ unchanged
//@ say ?
//@ expect handled by 1

//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s
//! [...]
//= 5
//@ say ?
//@ expect handled by 1
//@ $ ugraft reverse --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
//@ say ?
//@ expect handled by 1

//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s
//! [...]
//= 5
//@ $ ugraft force --pid $PID
//> patch 'fix': forced ([..])
//! ugraft: threads that were still in the other version may run a mix of both until they leave it[..]
//@ say ?
//@ expect handled by 2
//@ alive
//@ close
//@ wait
