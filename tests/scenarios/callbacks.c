// Callbacks: pre_patch, post_patch, pre_unpatch and post_unpatch run inside the process, on a thread of it that is at a safe
// point, in declared order, and see the object and its state. They may call libc, and the thread that lends itself
// notices nothing: neither its errno, nor its vector registers, nor the system call that it sleeps in.

//@ file libcounter.c
__attribute__((noinline, noclone)) int counter(int n) { return n + 1; }
int count(int n) { return counter(n); }

//@ file target.c
#include "target.h"
int count(int n);
PATCHABLE int answer(void) { return 41; }
/* What a callback does, the target sees. */
char journal[4096];
int main(void)
{
	void *volatile heap = malloc(100);
	free(heap);
	tell("ready");
	errno = E2BIG;
	for (const char *c; (c = command());) {
		if (errno != E2BIG)
			tell("complaint: errno is %d", errno);
		tell("%d %d [%s]", answer(), count(1), journal);
		journal[0] = 0;
		errno = E2BIG;
	}
	return 0;
}
//@ build cc -shared -fPIC -O2 -g libcounter.c -o libcounter.so
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c ./libcounter.so '-Wl,-rpath,$ORIGIN' -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef PRE_PATCH
#define PRE_PATCH 0
#endif
extern char journal[];
static void note(const char *what, struct klp_object *obj)
{
	static const char *const states[] = { "live", "coming", "going" };
	/* Allocate, print, clobber what a signal handler would have to keep. */
	char *copy = strdup(what);
	char line[128];
	volatile double x = 1.5;
	errno = ENOTTY;
	snprintf(line, sizeof line, " %s:%s:%s:%.1f", copy, obj->mod ? obj->mod->name : "exe",
		 obj->mod ? states[obj->mod->state] : "live", x * 2);
	free(copy);
	strcat(journal, line);
}
static int pre_patch(struct klp_object *obj) { note("pre_patch", obj); return obj->mod ? PRE_PATCH : 0; }
static void post_patch(struct klp_object *obj) { note("post_patch", obj); }
static void pre_unpatch(struct klp_object *obj) { note("pre_unpatch", obj); }
static void post_unpatch(struct klp_object *obj) { note("post_unpatch", obj); }
#define CALLBACKS { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch }
static int answer(void) { return 42; }
static int counter(int n) { return n + 2; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_func counter_funcs[] = { { .old_name = "counter", .new_func = counter }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = CALLBACKS },
	{ .name = "libcounter.so", .funcs = counter_funcs, .callbacks = CALLBACKS },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK fix.c && cc -c -O2 -fPIC -I$SDK -DPRE_PATCH=-19 fix.c -o no.o

//@ start target
//@ expect ready
//@ say x
//@ expect 41 2 []
//@ snapshot

//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled ([..]
//@ alive
//@ say x
//@ expect 42 3 [ pre_patch:exe:live:3.0 pre_patch:libcounter.so:live:3.0 post_patch:exe:live:3.0 post_patch:libcounter.so:live:3.0]
//@ $ ugraft disable fix --pid $PID
//> patch 'fix': disabled ([..]
//@ say x
//@ expect 41 2 [ pre_unpatch:exe:live:3.0 pre_unpatch:libcounter.so:live:3.0 post_unpatch:exe:live:3.0 post_unpatch:libcounter.so:live:3.0]
//@ $ ugraft enable fix --pid $PID
//> patch 'fix': enabled ([..]
//@ say x
//@ expect 42 3 [ pre_patch:exe:live:3.0 pre_patch:libcounter.so:live:3.0 post_patch:exe:live:3.0 post_patch:libcounter.so:live:3.0]
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft unload fix --pid $PID
//> patch 'fix': unloaded ([..]
//@ clean
//@ say x
//@ expect 41 2 [ pre_unpatch:exe:live:3.0 pre_unpatch:libcounter.so:live:3.0 post_unpatch:exe:live:3.0 post_unpatch:libcounter.so:live:3.0]

// The second object refuses: what the first one's pre_patch did is undone, and the patch is not there.
//@ $ ugraft load no.o --pid $PID
//! ugraft: the pre_patch callback of patch 'no' for the library 'libcounter.so' refused with -19; the patch was not enabled
//= 1
//@ say x
//@ expect 41 2 [ pre_patch:exe:live:3.0 pre_patch:libcounter.so:live:3.0 post_unpatch:exe:live:3.0]
//@ say x
//@ expect 41 2 []
//@ clean
//@ unchanged

//@ $ ugraft load no.o --pid $PID --disabled --quiet
//@ $ ugraft enable no --pid $PID
//! ugraft: the pre_patch callback of patch 'no' for the library 'libcounter.so' refused with -19; the patch was not enabled
//= 1
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'no'
//> [..] livepatch: 'no': initializing patching transition
//> [..] livepatch: pre-patch callback failed for object 'libcounter.so'
//> [..] livepatch: failed to enable patch 'no'
//> [..] livepatch: 'no': canceling patching transition, going to unpatch
//> [..] livepatch: 'no': completing unpatching transition
//> [..] livepatch: 'no': unpatching complete
//@ $ ugraft unload no --pid $PID --quiet
//@ say x
//@ expect 41 2 [ pre_patch:exe:live:3.0 pre_patch:libcounter.so:live:3.0 post_unpatch:exe:live:3.0]
//@ say x
//@ expect 41 2 []
//@ never complaint: [..]
//@ clean
//@ unchanged
