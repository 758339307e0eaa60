// Debuggers see through code of a patch: `ugraft symbols` writes a file with its names and unwind tables for gdb, which then names the
// patch's functions and finds the program's beyond them, in the running process, in a core that gcore takes and in one that the
// kernel writes.

//@ needs gdb
//@ file target.c
#include "target.h"
PATCHABLE int leaf(volatile int *p)
{
	tell("in leaf");
	command();
	return *p;
}
PATCHABLE int work(volatile int *p) { return leaf(p) + 1; }
PATCHABLE int outer(volatile int *p) { return work(p) + 1; }
int main(void)
{
	int n = 1;
	tell("ready");
	for (const char *c; (c = command());)
		tell("%d", outer(!strcmp(c, "crash") ? NULL : &n));
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
int leaf(volatile int *p);
static __attribute__((noipa)) int helper(volatile int *p)
{
	volatile char room[200] = { 1 };
	return leaf(p) + room[0];
}
static int new_work(volatile int *p) { return helper(p) + 1; }
static struct klp_func funcs[] = { { .old_name = "work", .new_func = new_work }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -g -rdynamic -I"$SUPPORT" target.c -o target

//@ start target: sh -c 'ulimit -c unlimited; exec ./target'
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ $ ugraft symbols nothing -o fix.symbols --pid $PID
//! ugraft: no patch 'nothing' is loaded in this target[..]
//= 4
//@ $ ugraft symbols fix -o fix.symbols --pid $PID
//> in gdb: add-symbol-file fix.symbols
//@ say go
//@ expect in leaf
//@ $ gdb -nx -q -batch -p $PID -ex 'add-symbol-file fix.symbols' -ex bt -ex 'gcore taken' 2>&1 | grep -oE ' in (helper|new_work|outer) '
//>  in helper
//>  in new_work
//>  in outer
//@ $ gdb -nx -q -batch ./target taken -ex 'add-symbol-file fix.symbols' -ex bt 2>&1 | grep -oE ' in (helper|new_work|outer) '
//>  in helper
//>  in new_work
//>  in outer
//@ say on
//@ expect 4
//@ say crash
//@ expect in leaf
//@ say now
//@ wait
//= 139
// Where the kernel gives cores to another program, the one that was taken has to do.
//@ $ mv core.$target core 2>/dev/null; [ -e core ] || mv taken core; gdb -nx -q -batch ./target core -ex 'add-symbol-file fix.symbols' -ex bt 2>&1 | grep -oE ' in (helper|new_work|outer) '
//>  in helper
//>  in new_work
//>  in outer
