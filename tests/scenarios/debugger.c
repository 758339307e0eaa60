// A process under a debugger is refused: there is one tracer at a time. Nothing is changed, and the debugger is named.

//@ needs gdb
//@ file target.c
#include "target.h"
PATCHABLE int f(void) { return 1; }
int main(void)
{
	tell("ready");
	while (command())
		tell("f %d", f());
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ start debugger: gdb -nx -q -p $target
//@ say echo attached\n
//@ expect [..]attached[..]
//@ $ ugraft load fix.o --pid $target
//> [...]
//! [...]
//= 6
//@ $ ugraft check fix.o --pid $target
//> [...]
//! [...]
//= 6
//@ at debugger say detach
//@ at debugger say quit
//@ at debugger close
//@ at debugger wait
//> [...]
//! [...]
//@ at target clean
//@ $ ugraft load fix.o --pid $target --quiet
//@ at target say ?
//@ at target expect f 2
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at target say ?
//@ at target expect f 1
//@ at target clean

// A breakpoint that somebody left in the entry is not overwritten either.
//@ start debugger: gdb -nx -q -p $target
//@ say break *f
//@ say set breakpoint always-inserted on
//@ say continue &
//@ say echo armed\n
//@ expect [..]armed[..]
//@ signal KILL
//@ wait
//> [...]
//! [...]
//= 137
