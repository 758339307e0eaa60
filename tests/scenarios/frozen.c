// A process whose control group is frozen (a paused container) can be stopped but runs nothing that it is given. The tool gives
// up and says so; when the group is thawed the process goes on as if nothing had been, and is patched.

//@ file target.c
#include "target.h"
PATCHABLE void f(void) { tell("old"); }
int main(void)
{
	tell("ready");
	while (command())
		f();
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
static void f(void)
{
	if (write(1, "new\n", 4) != 4)
		return;
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ needs root cgroup2

//@ start target
//@ expect ready
//@ $ set -e; group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)/ugraft-$PID; mkdir $group; echo $PID > $group/cgroup.procs; echo 1 > $group/cgroup.freeze; until grep -q 'frozen 1' $group/cgroup.events; do sleep 0.01; done; echo $group > group
//@ $ ugraft load fix.o --pid $PID
//! ugraft: thread [..] (target) did not stop in time: it did not finish the calls it was given, as if its control group (its container) were frozen, but will when it runs; try again later
//= 1
//@ $ ugraft status --pid $PID
//> process [..] (target): not patched
//= 3
//@ $ echo 0 > $(cat group)/cgroup.freeze
//@ say go
//@ expect old
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say go
//@ expect new
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
//@ $ echo $PID > $(dirname $(cat group))/cgroup.procs; rmdir $(cat group)
