// A thread that stays inside a function to be changed keeps the transition open. Meanwhile the state is named, a second
// request gets busy, the transition can be reversed, and when its time is over it is reversed by itself, the thread in the way
// named with the function and how long it has been there. Or it is forced.

//@ file target.c
#include "target.h"
#include <sys/prctl.h>
static volatile int left;
PATCHABLE int f(void) { return 1; }
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}
static void *lingers(void *arg)
{
	prctl(PR_SET_NAME, "lingerer");
	linger();
	tell("left");
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, lingers, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave"))
			left = 1;
		else if (!strcmp(c, "linger"))
			left = 0, pthread_create(&thread, NULL, lingers, NULL);
		else
			tell("f %d", f());
	}
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static void linger(void) {}
static struct klp_func funcs[] = {
	{ .old_name = "f", .new_func = f },
	{ .old_name = "linger", .new_func = linger },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file other.c
#include <ugraft/livepatch.h>
static int f(void) { return 3; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect lingering
//@ say ?
//@ expect f 1

// The time runs out: reversed, and the target is as if nothing had been.
//@ $ ugraft load fix.o --pid $PID --timeout 5s
//! ugraft: patch 'fix' could not make its transition in the time given and was reversed: thread [..] (lingerer): linger (frame [..]): in the function, for [..]
//= 5
//@ alive
//@ say ?
//@ expect f 1
//@ clean

// Two tools at once: while the first waits for the thread, the second is told that the target is busy.
//@ start job: ugraft load fix.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target | grep -q '1 of 2 threads have not switched'
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state          objects       functions
//>  fix             being enabled  (executable)  f
//>                                               linger
//> another ugraft (pid $job) is at work on it
//> patch 'fix' is in transition (patching) for [..]: 1 of 2 threads have not switched
//> `ugraft wait fix` carries it on, as any command does; `ugraft reverse` turns it round, `ugraft force` completes it unproved
//= 5
//@ $ ugraft status --pid $target --json
//> {
//>   "command": "status",
//>   "exit_code": 5,
//>   "ok": false,
//>   "schema": "ugraft/1",
//>   "status": {
//>     "comm": "target",
//>     "hook": null,
//>     "mapped_bytes": [..],
//>     "patches": [
//>       {
//>         "description": "",
//>         "forced": false,
//>         "id": 1,
//>         "life": "enabling",
//>         "may_unload": false,
//>         "name": "fix",
//>         "objects": [
//>           {
//>             "funcs": [
//>               {
//>                 "name": "f",
//>                 "nop": false,
//>                 "sympos": 1
//>               },
//>               {
//>                 "name": "linger",
//>                 "nop": false,
//>                 "sympos": 1
//>               }
//>             ],
//>             "loaded": true,
//>             "name": null,
//>             "patched": true
//>           }
//>         ],
//>         "replace": false,
//>         "replaced_by": null,
//>         "transition": true,
//>         "version": ""
//>       }
//>     ],
//>     "pid": $target,
//>     "tool": {
//>       "pid": $job,
//>       "stopped": false
//>     },
//>     "tool_at_work": true,
//>     "transition": {
//>       "begun": true,
//>       "blockers": [],
//>       "callback": null,
//>       "direction": "patching",
//>       "patch": "fix",
//>       "pending": 1,
//>       "since_ns": [..],
//>       "threads": 2
//>     },
//>     "written_by": "ugraft [..]"
//>   }
//> }
//= 5
//@ $ ugraft load other.o --pid $target
//! ugraft: another ugraft (pid $job) is at work on process $target; try again when it has finished
//= 75
// One that is stopped itself keeps nobody from looking either.
//@ at job signal STOP
//@ until grep -q '^State:.T' /proc/$job/status
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state          objects       functions
//>  fix             being enabled  (executable)  f
//>                                               linger
//> another ugraft (pid $job) is at work on it, and is stopped: continue it (`kill -CONT $job`), or kill it, and the next command takes its work up
//> patch 'fix' is in transition (patching) for [..]: 1 of 2 threads have not switched
//> `ugraft wait fix` carries it on, as any command does; `ugraft reverse` turns it round, `ugraft force` completes it unproved
//= 5
//@ $ ugraft log --pid $target | tail -1
//> [..] livepatch: 'fix': starting patching transition
//@ $ ugraft disable fix --pid $target
//! ugraft: another ugraft (pid $job) is at work on process $target; it is stopped: continue it (`kill -CONT $job`), or kill it, and the next command takes its work up
//= 75
//@ at job signal CONT

// The tool dies, and the transition stays as it is. The next one finds it, and turns it round.
//@ at job signal KILL
//@ at job wait
//= 137
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state          objects       functions
//>  fix             being enabled  (executable)  f
//>                                               linger
//> patch 'fix' is in transition (patching) for [..]: 1 of 2 threads have not switched
//> [...]
//>   thread [..] (lingerer): linger: in the function, for [..]
//>     what helps: wait until it returns; if it never does, leave the function out of the patch, or force
//> [...]
//>     #3 [..] target: linger+[..]
//>     #4 [..] target: lingers+[..]
//> [...]
//> `ugraft wait fix` carries it on, as any command does; `ugraft reverse` turns it round, `ugraft force` completes it unproved
//= 5
//@ at target alive
//@ $ ugraft load other.o --pid $target --timeout 5s
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: patch 'fix' is still in transition: thread [..] (lingerer): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft reverse --pid $target
//> patch 'fix': reversed (2 threads, longest pause [..], [..] in all)
//@ at target say ?
//@ at target expect f 1
//@ $ ugraft unload fix --pid $target --quiet
//@ at target clean

// Forced: done at once, and remembered, because from now on a thread may still be inside the old code.
//@ start job: ugraft load fix.o --pid $target --timeout 60s
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target | grep -q '1 of 2 threads have not switched'
//@ at job signal KILL
//@ at job wait
//= 137
//@ $ ugraft force --pid $target
//> patch 'fix': forced (2 threads, longest pause [..], [..] in all)
//! ugraft: threads that were still in the other version may run a mix of both until they leave it
//@ $ ugraft status --pid $target
//> process $target (target)
//>  patch  version  state    objects       functions
//>  fix             enabled  (executable)  f
//>                                         linger
//> no patch is in transition
//@ at target alive
//@ at target say ?
//@ at target expect f 2
//@ at target say leave
//@ at target expect left
//@ $ ugraft log --pid $target
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] warning: livepatch: forcing remaining tasks to the patched state
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete
//@ $ ugraft disable fix --pid $target
//> patch 'fix': disabled (1 thread, longest pause [..], [..] in all)
//@ at target say ?
//@ at target expect f 1
//@ $ ugraft force --pid $target
//! ugraft: no patch is in transition
//= 1
//@ $ ugraft reverse --pid $target
//! ugraft: no patch is in transition
//= 1
