// A child made by fork carries its parent's patches and is a target of its own from then on: what is done to the one is
// not done to the other.

//@ file target.c
#include "target.h"
#include <signal.h>
#include <sys/wait.h>
PATCHABLE int f(void) { return 1; }
static void answer(int signal) { (void)signal; tell("child f %d", f()); }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "fork")) {
			pid_t child = fork();
			if (child == 0) {
				signal(SIGUSR1, answer);
				tell("child %d", getpid());
				for (;;)
					pause();
			}
		} else {
			tell("f %d", f());
		}
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

//@ file cumulative.c
#include <ugraft/livepatch.h>
static int f(void) { return 3; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say fork
//@ expect child [=child]
//@ adopt child child
//@ $ ugraft list --pid $child
//>  patch  version  state    objects       functions
//>  fix             enabled  (executable)  f
//@ signal USR1
//@ at target expect child f 2
//@ $ ugraft load cumulative.o --pid $child --quiet
//@ signal USR1
//@ at target expect child f 3
//@ at target say ?
//@ at target expect f 2
//@ $ ugraft disable cumulative --pid $child --quiet
//@ signal USR1
//@ at target expect child f 1
//@ $ ugraft unload cumulative --pid $child --quiet
//@ $ ugraft unload fix --pid $child --quiet
//@ clean
//@ alive
//@ signal USR1
//@ at target expect child f 1
//@ at target say ?
//@ at target expect f 2
//@ $ ugraft disable fix --pid $target --quiet
//@ $ ugraft unload fix --pid $target --quiet
//@ at target clean
