// A target at one of its resource limits: the patch is refused with the way out, the target lives and is unchanged. A
// limit of file sizes is the worst, since the kernel would kill a process that makes a file of memory beyond it.

//@ needs prlimit
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
//@ say ?
//@ expect f 1
//@ snapshot

// The size of files.
//@ $ prlimit --pid $PID --fsize=0:
//@ $ ugraft load fix.o --pid $PID
//! ugraft: process $target may make no file longer than 0 bytes (RLIMIT_FSIZE), and the [..] bytes of memory that are needed in it are one; raise the limit with `prlimit --pid $target --fsize=[..]:` and try again
//= 1
//@ alive
//@ unchanged
//@ $ prlimit --pid $PID --fsize=unlimited:

// Descriptors: the next one would be the fourth.
//@ $ prlimit --pid $PID --nofile=3:
//@ $ ugraft load fix.o --pid $PID
//! ugraft: memfd_create in process $target failed: Too many open files (os error 24); it is at its limit: raise it with `prlimit --pid $target --nofile=...`
//= 1
//@ alive
//@ unchanged
//@ $ prlimit --pid $PID --nofile=1024:

// Addresses.
//@ $ prlimit --pid $PID --as=4096:
//@ $ ugraft load fix.o --pid $PID
//! ugraft: mmap in process $target failed: Cannot allocate memory (os error 12); it is at a limit of its memory: `prlimit --pid $target --as --data`, or of the number of its mappings: sysctl vm.max_map_count
//= 1
//@ alive
//@ unchanged
//@ $ prlimit --pid $PID --as=unlimited:

//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect f 2
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
//@ unchanged
