// Asking for what is already so succeeds and says so: scripts may be run again.

//@ file target.c
#include "target.h"
PATCHABLE int answer(void) { return 1; }
int main(void)
{
	tell("ready");
	while (command())
		tell("%d", answer());
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int answer(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ $ ugraft enable fix --pid $PID
//> patch 'fix' is already enabled
//@ say x
//@ expect 2
//@ $ ugraft disable fix --pid $PID
//> patch 'fix': disabled (1 thread, longest pause [..], [..] in all)
//@ $ ugraft disable fix --pid $PID
//> patch 'fix' is already disabled
//@ say x
//@ expect 1
//@ $ ugraft unload fix --pid $PID
//> patch 'fix': unloaded (1 thread, longest pause [..], [..] in all)

// A second patch of the same name is no such case: it may be another one.
//@ $ ugraft load fix.o --pid $PID --quiet
//@ $ ugraft load fix.o --pid $PID
//! ugraft: a patch 'fix' is already loaded (enabled): disable and unload it first, or load this one under another name
//= 1
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet

// A patch that is not there is another matter: its name may be misspelt.
//@ $ ugraft unload fix --pid $PID
//! ugraft: process $target is not patched
//= 3
//@ alive
//@ clean
