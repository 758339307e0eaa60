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
//! ugraft: thread $target is already traced by gdb (pid $debugger); end that first
//= 6
//@ $ ugraft check fix.o --pid $target
//! ugraft: thread $target is already traced by gdb (pid $debugger); end that first
//= 6
//@ at debugger say detach
//@ at debugger say quit
//@ at debugger close
//@ at debugger wait
//> (gdb) Detaching from program: [..]/target, process $target
//> [Inferior 1 (process $target) detached]
//> (gdb)
//! 26	../sysdeps/unix/sysv/linux/read.c: No such file or directory.
//@ at target clean
//@ $ ugraft load fix.o --pid $target --quiet
//@ at target say ?
//@ at target expect f 2
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at target say ?
//@ at target expect f 1
//@ at target clean

// A byte that somebody else has written into the function, a breakpoint here, is not overwritten.
//@ $ gdb -nx -q -batch -p $target -ex "set {unsigned char}f = 0xcc"
//> [...]
//! [...]
//@ $ ugraft load fix.o --pid $target
//! ugraft: cannot redirect f of the main executable: a breakpoint (a debugger's or a uprobe's) of somebody else lies 0 bytes into the function at [..]; take it off first
//= 6
//@ at target alive
//@ at target clean
