// Asking for the opposite of what is under way turns it round, as a write to the kernel's `enabled` does: `disable` of a patch that is
// being enabled, and `enable` of one that is being disabled. A load of its file meanwhile carries on what there is, and says so.

//@ file target.c
#include "target.h"
volatile int held;
PATCHABLE int f(void) { return 1; }
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
		else
			tell("f %d", f());
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
extern volatile int held;
static int f(void) { return 2; }
static void linger(void)
{
	if (write(1, "inside anew\n", 12) != 12)
		return;
	while (held)
		usleep(1000);
}
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, { .old_name = "linger", .new_func = linger }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ say enter
//@ expect inside

// Being enabled: a load of the same file is told how things stand and what can be done.
//@ $ ugraft load fix.o --pid $PID --keep --timeout 3s
//! ugraft: patch 'fix' is still in transition: thread [..] (target): [..], for [..] s; `ugraft wait fix` carries it on, `ugraft reverse` turns it round
//= 5
//@ say ?
//@ expect f 2
//@ $ ugraft load fix.o --pid $PID --timeout 500ms
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: a patch 'fix' is loaded already; this file is not loaded
//! ugraft: patch 'fix' is still in transition: thread [..] (target): [..], for [..] s; `ugraft wait fix` carries it on, `ugraft reverse` turns it round
//= 5
// Disabled: it is turned round. Who had not switched need not, so that nothing is in the way.
//@ $ ugraft disable fix --pid $PID
//> patch 'fix': disabled ([..] threads, longest pause [..], [..] in all)
//! ugraft: patch 'fix' was being enabled; its transition is turned round, to have it disabled
//@ say ?
//@ expect f 1
//@ $ ugraft disable fix --pid $PID
//> patch 'fix' is already disabled
//@ $ ugraft log --pid $PID | tail -4
//> [..] livepatch: 'fix': reversing transition from patching to unpatching
//> [..] livepatch: 'fix': starting unpatching transition
//> [..] livepatch: 'fix': completing unpatching transition
//> [..] livepatch: 'fix': unpatching complete

// Neither way is free: one thread is in the old function and one in the new. It goes the way that was asked for last.
//@ $ ugraft enable fix --pid $PID --keep --timeout 3s --quiet
//! ugraft: patch 'fix' is still in transition: [..]
//= 5
//@ say enter
//@ expect inside anew
//@ $ ugraft disable fix --pid $PID --timeout 1s
//! ugraft: patch 'fix' was being enabled; its transition is turned round, to have it disabled
//! ugraft: patch 'fix' is still in transition: [..]
//= 5
//@ $ ugraft disable fix --pid $PID --timeout 1s
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: patch 'fix' is still in transition: [..]
//= 5
//@ $ ugraft enable fix --pid $PID --timeout 1s --json | grep -A1 notes
//>     "notes": [
//>       "patch 'fix' was being disabled; its transition is turned round, to have it enabled"
//@ say leave
//@ expect outside
//@ expect outside
//@ $ ugraft load fix.o --pid $PID
//! ugraft: an earlier run left patch 'fix' in transition; it was taken up first
//! ugraft: a patch 'fix' is loaded already; this file is not loaded
//! ugraft: a patch 'fix' is already loaded (enabled): disable and unload it first, or load this one under another name
//= 1
//@ say ?
//@ expect f 2

// Being disabled, and enabled: the same.
//@ say enter
//@ expect inside anew
//@ $ ugraft disable fix --pid $PID --keep --timeout 3s --quiet
//! ugraft: patch 'fix' is still in transition: [..]
//= 5
//@ say ?
//@ expect f 1
//@ $ ugraft enable fix --pid $PID
//> patch 'fix': enabled ([..] threads, longest pause [..], [..] in all)
//! ugraft: patch 'fix' was being disabled; its transition is turned round, to have it enabled
//@ say ?
//@ expect f 2
//@ say leave
//@ expect outside
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
