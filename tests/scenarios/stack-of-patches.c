// Several patches of one function: the newest wins. A patch depends on the earlier ones that touch its functions, so
// they come off in the opposite order, unless the order is overridden; then the newest that is left wins. Patches that
// have nothing in common come and go as they please.

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

//@ file one.c
#include <ugraft/livepatch.h>
static int new_f(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file two.c
#include <ugraft/livepatch.h>
static int new_f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file three.c
#include <ugraft/livepatch.h>
static int new_f(void) { return 3; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = new_f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file other.c
#include <ugraft/livepatch.h>
static int new_g(void) { return 9; }
static struct klp_func funcs[] = { { .old_name = "g", .new_func = new_g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect f 0 g 0
//@ snapshot
//@ $ ugraft load one.o --pid $PID --quiet
//@ $ ugraft load two.o --pid $PID --quiet
//@ $ ugraft load other.o --pid $PID --quiet
//@ $ ugraft load three.o --pid $PID --quiet
//@ say ?
//@ expect f 3 g 9

// Order is kept: the refusal names the patch in the way and the function.
//@ $ ugraft disable two --pid $PID
//! ugraft: patch 'two' is needed by the enabled patch 'three' (both change the function f of the main executable): disable 'three' first, or ask to ignore the order
//= 6
//@ $ ugraft disable other --pid $PID --quiet
//@ say ?
//@ expect f 3 g 0
//@ $ ugraft disable three --pid $PID --quiet
//@ say ?
//@ expect f 2 g 0
//@ $ ugraft disable two --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0
//@ $ ugraft enable three --pid $PID
//! ugraft: patch 'three' depends on patch 'two', which is disabled (both change the function f of the main executable): enable 'two' first, or ask to ignore the order
//= 6
//@ $ ugraft enable two --pid $PID --quiet
//@ $ ugraft enable three --pid $PID --quiet
//@ say ?
//@ expect f 3 g 0

// Overridden: from the middle and from the bottom, and back.
//@ $ ugraft disable two --pid $PID --ignore-order --quiet
//@ say ?
//@ expect f 3 g 0
//@ $ ugraft disable three --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0
//@ $ ugraft disable one --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0
//@ $ ugraft enable two --pid $PID --ignore-order --quiet
//@ say ?
//@ expect f 2 g 0
//@ $ ugraft enable one --pid $PID --ignore-order --quiet
//@ say ?
//@ expect f 2 g 0
//@ $ ugraft list --pid $PID
//>  patch  version  state     objects       functions
//>  one             enabled   (executable)  f
//>  two             enabled   (executable)  f
//>  other           disabled  (executable)  g
//>  three           disabled  (executable)  f
//@ $ ugraft disable two --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0
//@ $ ugraft disable one --pid $PID --quiet
//@ $ ugraft unload two --pid $PID --quiet
//@ $ ugraft unload one --pid $PID --quiet
//@ $ ugraft unload other --pid $PID --quiet
//@ $ ugraft unload three --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0
//@ clean
//@ unchanged
