// The life of a patch: loaded and enabled, disabled, enabled again, disabled and unloaded; what the tool tells at each
// point, in tables and in JSON; and that afterwards the process is what it was before (P4).

//@ file target.c
#include "target.h"
PATCHABLE int price(int count) { return count * 12; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		tell("price of %s: %d", c, price(atoi(c)));
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int price(int count) { return count * 10; }
static struct klp_func funcs[] = { { .old_name = "price", .new_func = price }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
KLP_VERSION("1.2");
KLP_DESCRIPTION("Ten of these cost a hundred");
KLP_LICENSE("MIT");

//@ start target
//@ expect ready
//@ say 3
//@ expect price of 3: 36
//@ snapshot

// Nothing is patched yet, and the tool says so.
//@ $ ugraft status --pid $PID
//> [...]
//! [...]
//= 3
//@ $ ugraft list --pid $PID
//> [...]
//! [...]
//= 3
//@ $ ugraft log --pid $PID
//> [...]
//! [...]
//= 3

// A file can be looked at without a process, and tried on one without touching it.
//@ $ ugraft info fix.o
//> [...]
//! [...]
//@ $ ugraft info fix.o --json
//> [...]
//! [...]
//@ $ ugraft check fix.o --pid $PID
//> [...]
//! [...]
//@ $ ugraft check fix.o --pid $PID --json
//> [...]
//! [...]
//@ unchanged

//@ $ ugraft load fix.o --pid $PID
//> [...]
//! [...]
//@ alive
//@ say 3
//@ expect price of 3: 30
//@ $ ugraft list --pid $PID
//> [...]
//! [...]
//@ $ ugraft status --pid $PID
//> [...]
//! [...]
//@ $ ugraft status --pid $PID --json
//> [...]
//! [...]

//@ $ ugraft disable fix --pid $PID
//> [...]
//! [...]
//@ say 3
//@ expect price of 3: 36
//@ $ ugraft list --pid $PID
//> [...]
//! [...]
//@ $ ugraft enable fix --pid $PID
//> [...]
//! [...]
//@ say 3
//@ expect price of 3: 30

// The same in JSON, and the log of it all.
//@ $ ugraft disable fix --pid $PID --json
//> [...]
//! [...]
//@ $ ugraft list --pid $PID --json
//> [...]
//! [...]
//@ $ ugraft log --pid $PID
//> [...]
//! [...]
//@ $ ugraft unload fix --pid $PID
//> [...]
//! [...]
//@ say 3
//@ expect price of 3: 36
//@ alive
//@ clean
//@ unchanged
//@ $ ugraft status --pid $PID
//> [...]
//! [...]
//= 3

// Loaded without being enabled, the code waits.
//@ $ ugraft load fix.o --pid $PID --disabled
//> [...]
//! [...]
//@ say 3
//@ expect price of 3: 36
//@ $ ugraft enable fix --pid $PID --quiet
//@ say 3
//@ expect price of 3: 30
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
