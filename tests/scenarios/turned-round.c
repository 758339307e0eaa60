// What a transition that was begun can still become, with the callbacks and the log of each way: turned round while patching and
// while unpatching, any number of times; a replacing one turned round and round again; and forced, with what stays for ever after it.
// Other requests wait or are refused meanwhile.

//@ file target.c
#include "target.h"
volatile int held;
char journal[4096];
PATCHABLE int f(void) { return 0; }
PATCHABLE int g(void) { return 0; }
PATCHABLE void linger(void)
{
	tell("inside");
	while (held)
		usleep(1000);
}
static void *lingers(void *arg)
{
	linger();
	tell("outside");
	return arg;
}
int main(void)
{
	pthread_t thread;
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave"))
			held = 0;
		else if (!strcmp(c, "enter"))
			held = 1, pthread_create(&thread, NULL, lingers, NULL);
		else {
			tell("f %d g %d [%s ]", f(), g(), journal);
			journal[0] = 0;
		}
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <string.h>
#include <unistd.h>
extern volatile int held;
extern char journal[];
static int pre_patch(struct klp_object *obj) { strcat(journal, " pre_patch"); return 0; }
static void post_patch(struct klp_object *obj) { strcat(journal, " post_patch"); }
static void pre_unpatch(struct klp_object *obj) { strcat(journal, " pre_unpatch"); }
static void post_unpatch(struct klp_object *obj) { strcat(journal, " post_unpatch"); }
static int number(void) { return NUMBER; }
static void linger(void)
{
	if (write(1, "inside anew\n", 12) != 12)
		return;
	while (held)
		usleep(1000);
}
static struct klp_func funcs[] = {
	{ .old_name = FUNCTION, .new_func = number },
#ifndef WITHOUT
	{ .old_name = "linger", .new_func = linger },
#endif
	{}
};
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch } },
	{}
};
#ifndef REPLACE
#define REPLACE 0
#endif
static struct klp_patch patch = { .objs = objs, .replace = REPLACE };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK -DNUMBER=1 -DFUNCTION='"f"' fix.c
//@ build cc -c -O2 -fPIC -I$SDK -DNUMBER=2 -DFUNCTION='"g"' -DWITHOUT fix.c -o other.o
//@ build cc -c -O2 -fPIC -I$SDK -DNUMBER=3 -DFUNCTION='"g"' -DWITHOUT -DREPLACE=1 fix.c -o cumulative.o

//@ start target
//@ say enter
//@ expect inside

// Patching, turned round: no pre_unpatch, and post_unpatch at its end.
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft reverse --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 [ pre_patch post_unpatch ]
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': reversing transition from patching to unpatching
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': completing unpatching transition
//> [..] livepatch: 'fix': unpatching complete
//@ $ ugraft unload fix --pid $PID --quiet
//@ say leave
//@ expect outside

// Again and again: one thread is inside the old function and one inside the new, so that no way is free. The callbacks before
// the begin run once, those after the end for the way that was taken.
//@ say enter
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say enter
//@ expect inside anew
//@ $ ugraft reverse --pid $PID --timeout 1s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say ?
//@ expect f 0 g 0 [ pre_patch ]
//@ $ ugraft reverse --pid $PID --timeout 1s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say ?
//@ expect f 1 g 0 [ ]
//@ say leave
//@ expect outside
//@ expect outside
//@ $ ugraft wait fix --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0 [ post_patch ]
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': reversing transition from patching to unpatching
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': reversing transition from unpatching to patching
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete

// Unpatching, turned round: no pre_patch, and post_patch once more, though pre_unpatch had run. Until then nothing else is done.
//@ say enter
//@ expect inside anew
//@ $ ugraft disable fix --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft load other.o --pid $PID --timeout 300ms
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft load cumulative.o --pid $PID --timeout 300ms
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft load other.o --disabled --pid $PID --timeout 300ms
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft reverse --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0 [ pre_unpatch post_patch ]
//@ $ ugraft log --pid $PID | tail -7
//> [..] livepatch: 'fix': patching complete
//> [..] livepatch: 'fix': initializing unpatching transition
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': reversing transition from unpatching to patching
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete

// A replacing one. While it runs the replaced patches are what they were; turned round it leaves them so; turned round once more
// it replaces them, without any of their callbacks.
//@ $ ugraft load other.o --pid $PID --quiet
//@ say ?
//@ expect f 1 g 2 [ pre_patch post_patch ]
//@ $ ugraft load cumulative.o --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'cumulative' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft list --pid $PID
//>  patch       version  state          objects       functions
//>  fix                  enabled        (executable)  f
//>                                                    linger
//>  other                enabled        (executable)  g
//>  cumulative           being enabled  (executable)  g
//>                                                    f (nop)
//>                                                    linger (nop)
//@ $ ugraft status --pid $PID --json | tr -d ' \n' | grep -o '"name":"[a-z]*","nop":[a-z]*' | tail -3
//> "name":"g","nop":false
//> "name":"f","nop":true
//> "name":"linger","nop":true
//@ $ ugraft disable other --pid $PID --timeout 300ms
//! ugraft: an earlier run left patch 'cumulative' in transition; it was taken up first
//! ugraft: patch 'cumulative' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say enter
//@ expect inside
//@ $ ugraft reverse --pid $PID --timeout 1s --quiet
//! ugraft: patch 'cumulative' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say ?
//@ expect f 1 g 2 [ pre_patch ]
//@ $ ugraft reverse --pid $PID --timeout 1s --quiet
//! ugraft: patch 'cumulative' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ say leave
//@ expect outside
//@ expect outside
//@ $ ugraft wait cumulative --pid $PID --quiet
//@ say ?
//@ expect f 0 g 3 [ post_patch ]
//@ $ ugraft load fix.o --pid $PID
//! ugraft: a patch 'fix' is already loaded (replaced): unload it first, then load it anew
//= 1
//@ $ ugraft disable cumulative --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 [ pre_unpatch post_unpatch ]
//@ $ for patch in other cumulative fix; do ugraft unload $patch --pid $PID --quiet; done
//@ clean

// Forced while patching: all can be taken off again, when the thread has left.
//@ say enter
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft force --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0 [ pre_patch post_patch ]
//@ say leave
//@ expect outside
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 [ pre_unpatch post_unpatch ]
//@ clean

// Forced while replacing: the replaced patch stays for ever, the forcing one does not. Others go on working.
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say enter
//@ expect inside anew
//@ $ ugraft load cumulative.o --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'cumulative' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft force --pid $PID --quiet
//@ say ?
//@ expect f 0 g 3 [ pre_patch post_patch pre_patch post_patch ]
//@ say leave
//@ expect outside
//@ $ ugraft disable cumulative --pid $PID --quiet && ugraft unload cumulative --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID
//! ugraft: patch 'fix' cannot be unloaded: a transition was forced while threads could be in its code, so its memory stays for ever
//= 1
//@ $ ugraft load fix.o --pid $PID
//! ugraft: a patch 'fix' is already loaded (replaced): its memory stays for ever because a transition was forced, so load this one under another name
//= 1
//@ $ ugraft load other.o --pid $PID --quiet
//@ say ?
//@ expect f 0 g 2 [ pre_unpatch post_unpatch pre_patch post_patch ]

// Forced while unpatching: it is off, and stays.
//@ start again: ./target
//@ say ?
//@ expect f 0 g 0 [ ]
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say enter
//@ expect inside anew
//@ $ ugraft disable fix --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): linger (frame [..]): in the function, for [..]
//= 5
//@ $ ugraft force --pid $PID --quiet
//@ say leave
//@ expect outside
//@ say ?
//@ expect f 0 g 0 [ pre_patch post_patch pre_unpatch post_unpatch ]
//@ $ ugraft list --pid $PID
//>  patch  version  state                               objects       functions
//>  fix             disabled, forced: its memory stays  (executable)  f
//>                                                                    linger
//@ $ ugraft unload fix --pid $PID
//! ugraft: patch 'fix' cannot be unloaded: a transition was forced while threads could be in its code, so its memory stays for ever
//= 1
//@ $ ugraft enable fix --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ $ ugraft log --pid $PID | tail -5
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] livepatch: 'fix': patching complete
//@ alive
