// A target that has renounced making memory executable, as services under systemd's MemoryDenyWriteExecute= have, is
// patched like any other: nothing of ours is ever made executable after it was mapped.

//@ file target.c
#include "target.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif
PATCHABLE int f(void) { return 1; }
PATCHABLE int g(void) { return f() + 10; }
int main(void)
{
	void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	prctl(PR_SET_MDWE, 1, 0, 0, 0);
	tell("renounced: %d", mprotect(page, 4096, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
	while (command())
		tell("g %d", g());
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
static int g(void) { return 20; }
static struct klp_func funcs[] = { { .old_name = "g", .new_func = g }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect renounced: 1
//@ say ?
//@ expect g 11
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect g 12
//@ $ ugraft load cumulative.o --pid $PID --quiet
//@ say ?
//@ expect g 20
//@ $ ugraft unload fix --pid $PID --quiet
//@ $ ugraft disable cumulative --pid $PID --quiet
//@ $ ugraft unload cumulative --pid $PID --quiet
//@ say ?
//@ expect g 11
//@ clean
//@ unchanged
