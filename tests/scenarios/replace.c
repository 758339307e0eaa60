// Atomic replace. A cumulative patch takes the place of all that came before in one transition: functions that only the
// old patches touched run their original again, and what it shares with them runs its own code. The replaced patches
// cannot be enabled again; unloaded and loaded anew they can, which is how one downgrades.

//@ file target.c
#include "target.h"
/* Read anew at each call; a function that is shorter than a jump and the last of its section has no room for one. */
static volatile int nothing;
PATCHABLE int f(void) { return nothing; }
PATCHABLE int g(void) { return nothing; }
PATCHABLE int h(void) { return nothing; }
int main(void)
{
	tell("ready");
	while (command())
		tell("f %d g %d h %d", f(), g(), h());
	return 0;
}

//@ file one.c
#include <ugraft/livepatch.h>
static int new_f(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file two.c
#include <ugraft/livepatch.h>
static int new_g(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "g", .new_func = new_g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
static int new_g(void) { return 3; }
static int new_h(void) { return 3; }
static struct klp_func funcs[] = {
	{ .old_name = "g", .new_func = new_g },
	{ .old_name = "h", .new_func = new_h },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
KLP_VERSION("1");

//@ file next.c
#include <ugraft/livepatch.h>
static int new_h(void) { return 4; }
static struct klp_func funcs[] = { { .old_name = "h", .new_func = new_h }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
KLP_VERSION("2");

//@ start target
//@ expect ready
//@ say ?
//@ expect f 0 g 0 h 0
//@ snapshot
//@ $ ugraft load one.o --pid $PID --quiet
//@ $ ugraft load two.o --pid $PID --quiet
//@ say ?
//@ expect f 1 g 2 h 0
//@ $ ugraft load cumulative.o --pid $PID
//> patch 'cumulative': enabled; replaced one, two (1 thread, longest pause [..], [..] in all)
//@ say ?
//@ expect f 0 g 3 h 3
//@ $ ugraft list --pid $PID
//>  patch       version  state                   objects       functions
//>  one                  replaced by cumulative  (executable)  f
//>  two                  replaced by cumulative  (executable)  g
//>  cumulative  1        enabled                 (executable)  g
//>                                                             h
//@ $ ugraft enable one --pid $PID
//! ugraft: patch 'one' was replaced by 'cumulative' and cannot be used again: unload it and load it anew
//= 1

// A patch that comes later stacks on top, whatever its replace flag was; the next replacing one takes both away.
//@ $ ugraft unload one --pid $PID --quiet
//@ $ ugraft load one.o --pid $PID --quiet
//@ say ?
//@ expect f 1 g 3 h 3
//@ $ ugraft load next.o --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 h 4

// Downgrade: the older cumulative patch, loaded again, replaces the newer.
//@ $ ugraft unload cumulative --pid $PID --quiet
//@ $ ugraft load cumulative.o --pid $PID --quiet
//@ say ?
//@ expect f 0 g 3 h 3
//@ $ ugraft list --pid $PID
//>  patch       version  state                   objects       functions
//>  two                  replaced by cumulative  (executable)  g
//>  one                  replaced by next        (executable)  f
//>  next        2        replaced by cumulative  (executable)  h
//>  cumulative  1        enabled                 (executable)  g
//>                                                             h

// Disabling the replacing patch gives the original code, never the replaced patches.
//@ $ ugraft disable cumulative --pid $PID
//> patch 'cumulative': disabled (1 thread, longest pause [..], [..] in all)
//@ say ?
//@ expect f 0 g 0 h 0
//@ $ for patch in cumulative next one two; do ugraft unload $patch --pid $PID --quiet || echo $patch stays; done
//@ clean
//@ unchanged
