// Every exit code that the help text promises, with what it says to the one who has to act on it.

//@ needs setpriv root
//@ file target.c
#include "target.h"
PATCHABLE int f(void) { return 1; }
/* One byte of code: no room for a jump, and a neighbour right behind. */
__asm__(".globl tiny, tiny2\n.type tiny, @function\n.type tiny2, @function\n"
	"tiny: ret\n.size tiny, 1\ntiny2: ret\n.size tiny2, 1\n");
static volatile int left;
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}
static void *lingers(void *arg) { linger(); return arg; }
int main(void)
{
	pthread_t thread;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "linger"))
			pthread_create(&thread, NULL, lingers, NULL);
		else
			tell("f %d", f());
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file missing.c
#include <ugraft/livepatch.h>
extern int no_such_function(void);
static int f(void) { return no_such_function(); }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file tiny.c
#include <ugraft/livepatch.h>
static void tiny(void) {}
static struct klp_func funcs[] = { { .old_name = "tiny", .new_func = tiny }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file stuck.c
#include <ugraft/livepatch.h>
static void linger(void) {}
static struct klp_func funcs[] = { { .old_name = "linger", .new_func = linger }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file noise.o
This is no object file.

//@ start target
//@ expect ready

// 6: refused as unsafe, here for a symbol that nobody defines.
//@ $ ugraft load missing.o --pid $PID
//! ugraft: not found in the target: `no_such_function`: check the spelling; what the target has but does not export is bound by KLP_SYMBOL
//= 6
// 2: wrong usage.
//@ $ ugraft load
//! error: the following required arguments were not provided:
//!   --pid <PID>
//!   <FILE>
//!
//! Usage: ugraft load --pid <PID> <FILE> [NAME=VALUE]...
//!
//! For more information, try '--help'.
//= 2
//@ $ ugraft load fix.o --pid 0
//! error: invalid value '0' for '--pid <PID>': a process id is a positive number
//!
//! For more information, try '--help'.
//= 2
// 3: not patched.
//@ $ ugraft disable fix --pid $PID
//! ugraft: process $target is not patched
//= 3
// 8: a bad patch file.
//@ $ ugraft load noise.o --pid $PID
//! ugraft: noise.o: not an ELF object but text, perhaps the source: compile the source with `cc -c`
//= 8
// 6: the same for a function that has no room for a jump.
//@ $ ugraft load tiny.o --pid $PID
//! ugraft: cannot redirect tiny of the main executable: the function at [..] has 1 bytes to its end and the padding behind it, a jump takes 5
//= 6
// 7: permission.
//@ $ cp "$(command -v ugraft)" as-nobody && chmod 755 . as-nobody && chmod 644 fix.o
//@ $ setpriv --reuid=65534 --regid=65534 --clear-groups ./as-nobody load fix.o --pid $PID
//! ugraft: not allowed to trace process $target: it belongs to user 0 and this program runs as user 65534; run it as that user, or with sudo
//= 7
// 0: as asked.
//@ $ ugraft load fix.o --pid $PID --quiet
// 1: failed, the target is unchanged: loaded twice.
//@ $ ugraft load fix.o --pid $PID
//! ugraft: a patch 'fix' is already loaded (enabled): disable and unload it first, or load this one under another name
//= 1
// 4: no such patch, no such process.
//@ $ ugraft disable fxi --pid $PID
//! ugraft: no patch 'fxi' is loaded in this target: see the list of patches for the names there are
//= 4
//@ $ ugraft status --pid 999999999
//! ugraft: no process 999999999; see `ps -e`
//= 4
//@ start parent: sh -c 'sleep 0.5 & echo $!; exec sleep 1000'
//@ expect [=ended]
//@ until grep -q '^State:.Z' /proc/$ended/status
//@ $ ugraft status --pid $ended
//! ugraft: cannot work on process $ended: it has exited (a zombie)
//= 4
// 5: still in transition.
//@ at target say linger
//@ at target expect lingering
//@ $ ugraft load stuck.o --pid $target --timeout 5s
//! ugraft: patch 'stuck' could not make its transition in the time given and was reversed: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
// 75: busy. 9: the target died meanwhile.
//@ start job: ugraft load stuck.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ $ ugraft disable fix --pid $target
//! ugraft: another ugraft (pid $job) is at work on process $target; try again when it has finished
//= 75
//@ at target signal KILL
//@ at target wait
//= 137
//@ at job wait
//! ugraft: process $target died or became another program meanwhile
//= 9
