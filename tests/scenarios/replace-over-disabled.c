// A replacing patch also takes the place of patches that are loaded but disabled: they cannot come back underneath it.

//@ file target.c
#include "target.h"
/* Read anew at each call; a function that is shorter than a jump and the last of its section has no room for one. */
static volatile int nothing;
PATCHABLE int f(void) { return nothing; }
PATCHABLE int g(void) { return nothing; }
int main(void)
{
	tell("ready");
	while (command())
		tell("f %d g %d", f(), g());
	return 0;
}

//@ file old.c
#include <ugraft/livepatch.h>
static int new_f(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file absent.c
// For a library that this process does not have: allowed, it waits.
#include <ugraft/livepatch.h>
static int new_f(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "nothing", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .name = "libabsent.so.1", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
static int new_g(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "g", .new_func = new_g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect f 0 g 0
//@ snapshot
//@ $ ugraft load old.o --pid $PID --disabled --quiet
//@ $ ugraft load absent.o --pid $PID
//> patch 'absent': enabled (1 thread, longest pause [..], [..] in all)
//@ $ ugraft load cumulative.o --pid $PID
//> patch 'cumulative': enabled; replaced old, absent (1 thread, longest pause [..], [..] in all)
//@ say ?
//@ expect f 0 g 2
//@ $ ugraft list --pid $PID
//>  patch       version  state                   objects                      functions
//>  old                  replaced by cumulative  (executable)                 f
//>  absent               replaced by cumulative  libabsent.so.1 (not loaded)  nothing
//>  cumulative           enabled                 (executable)                 g
//@ $ ugraft enable old --pid $PID
//! ugraft: patch 'old' was replaced by 'cumulative' and cannot be used again: unload it and load it anew
//= 1
//@ say ?
//@ expect f 0 g 2
//@ $ ugraft disable cumulative --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0
//@ $ for patch in old absent cumulative; do ugraft unload $patch --pid $PID --quiet; done
//@ clean
//@ unchanged
