// Enabling that fails, each time with the kernel's words in the log, the callbacks that the kernel would call, and nothing left
// behind; and the two complaints of shadow variables. (The words of transitions that come through, are turned round or forced
// are in turned-round.c.)

//@ file target.c
#include "target.h"
char journal[4096];
PATCHABLE int f(void) { return 0; }
PATCHABLE int g(void) { return 0; }
int main(void)
{
	for (const char *c; (c = command());) {
		tell("f %d g %d [%s ]%s", f(), g(), journal, ((volatile unsigned char *)g)[4] == 0xcc ? " breakpoint" : "");
		journal[0] = 0;
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT target.c -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
#include <ugraft/shadow.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#ifndef PRE_PATCH
#define PRE_PATCH return 0
#endif
#ifndef STATE
#define STATE 7
#endif
#ifndef REPLACE
#define REPLACE 0
#endif
extern char journal[];
extern int g(void);
/* What a debugger does: g ends before the fifth byte of what a redirect overwrites, so it can still be called. */
static void breakpoint(void)
{
	uint8_t *at = (uint8_t *)g;
	uint8_t *page = (uint8_t *)((uintptr_t)at & -4096ul);
	mprotect(page, 8192, PROT_READ | PROT_WRITE);
	at[4] = 0xcc;
	mprotect(page, 8192, PROT_READ | PROT_EXEC);
}
static int fails(void *object, void *data, void *value) { return (int)(intptr_t)value; }
static int pre_patch(struct klp_object *obj)
{
	strcat(journal, " pre_patch");
	PRE_PATCH;
	return (intptr_t)breakpoint && (intptr_t)fails ? 0 : 1;
}
static void post_patch(struct klp_object *obj) { strcat(journal, " post_patch"); }
static void pre_unpatch(struct klp_object *obj) { strcat(journal, " pre_unpatch"); }
static void post_unpatch(struct klp_object *obj) { strcat(journal, " post_unpatch"); }
static int number(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = FUNCTION, .new_func = number }, {} };
static struct klp_state states[] = { { .id = STATE, .version = 1 }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs, .states = states, .replace = REPLACE };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"f"' fix.c
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DREPLACE=1 -DSTATE=8 fix.c -o stranger.o
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DSTATE=8 fix.c -o neighbour.o
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DREPLACE=1 -DPRE_PATCH='return -19' fix.c -o refuses.o
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DPRE_PATCH='return 7' fix.c -o positive.o
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DPRE_PATCH='breakpoint()' fix.c -o disturbed.o
//@ build cc -c -O2 -fPIC -I$SDK -DFUNCTION='"g"' -DPRE_PATCH='klp_shadow_alloc(journal, 5, 8, GFP_KERNEL, fails, (void *)-12l); klp_shadow_alloc(journal, 5, 8, GFP_KERNEL, 0, 0); klp_shadow_alloc(journal, 5, 8, GFP_KERNEL, 0, 0); klp_shadow_free_all(5, 0)' fix.c -o shadows.o
//@ file callbacks-only.c
#include <ugraft/livepatch.h>
#include <string.h>
extern char journal[];
static int pre_patch(struct klp_object *obj) { strcat(journal, " only:pre_patch"); return 0; }
static void post_unpatch(struct klp_object *obj) { strcat(journal, " only:post_unpatch"); }
static struct klp_func none[] = { {} };
static struct klp_object objs[] = { { .funcs = none, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0 [ pre_patch post_patch ]

// A replacing patch whose pre_patch refuses leaves the others as they are, and so does a positive value, which is as much a
// refusal as a negative one.
//@ $ ugraft load refuses.o --pid $PID
//! ugraft: the pre_patch callback of patch 'refuses' for the main executable refused with -19; the patch was not enabled
//= 1
//@ say ?
//@ expect f 1 g 0 [ pre_patch ]
//@ $ ugraft log --pid $PID | tail -6
//> [..] livepatch: 'refuses': initializing patching transition
//> [..] warning: livepatch: pre-patch callback failed for object 'vmlinux'
//> [..] warning: livepatch: failed to enable patch 'refuses'
//> [..] livepatch: 'refuses': canceling patching transition, going to unpatch
//> [..] livepatch: 'refuses': completing unpatching transition
//> [..] livepatch: 'refuses': unpatching complete
//@ $ ugraft load positive.o --pid $PID
//! ugraft: the pre_patch callback of patch 'positive' for the main executable refused with 7; the patch was not enabled
//= 1
//@ say ?
//@ expect f 1 g 0 [ pre_patch ]

// The state of an enabled patch must be known by one that replaces it, not by its neighbour; that of a disabled one by nobody.
//@ $ ugraft load stranger.o --pid $PID
//! ugraft: patch 'stranger' is not compatible with the installed patch 'fix': it would replace the owner of state 7 (version 1) without knowing that state; use a patch that knows it
//= 6
//@ $ ugraft log --pid $PID | tail -1
//> [..] error: livepatch: Livepatch patch (stranger) is not compatible with the already installed livepatches.
//@ $ ugraft load neighbour.o --pid $PID --quiet
//@ $ ugraft disable neighbour --pid $PID --quiet && ugraft unload neighbour --pid $PID --quiet
//@ say ?
//@ expect f 1 g 0 [ pre_patch post_patch pre_unpatch post_unpatch ]
//@ $ ugraft disable fix --pid $PID --quiet
//@ $ ugraft load stranger.o --pid $PID --quiet
//@ $ ugraft disable stranger --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 [ pre_unpatch post_unpatch pre_patch post_patch pre_unpatch post_unpatch ]
//@ $ ugraft unload stranger --pid $PID --quiet && ugraft unload fix --pid $PID --quiet

// Callbacks alone.
//@ $ ugraft load callbacks-only.o --pid $PID --quiet
//@ $ ugraft disable callbacks-only --pid $PID --quiet && ugraft unload callbacks-only --pid $PID --quiet
//@ say ?
//@ expect f 0 g 0 [ only:pre_patch only:post_unpatch ]

// Shadow variables: a constructor that fails, and one too many.
//@ $ ugraft load shadows.o --pid $PID --quiet
//@ $ ugraft log --pid $PID | grep shadow
//> [..] livepatch: enabling patch 'shadows'
//> [..] livepatch: 'shadows': initializing patching transition
//> [..] error: livepatch: Failed to construct shadow variable <[..], 5> (-12)
//> [..] warning: Duplicate shadow variable <[..], 5>
//> [..] livepatch: 'shadows': starting patching transition
//> [..] livepatch: 'shadows': completing patching transition
//> [..] livepatch: 'shadows': patching complete
//@ $ ugraft disable shadows --pid $PID --quiet && ugraft unload shadows --pid $PID --quiet
//@ clean
//@ say ?
//@ expect f 0 g 0 [ pre_patch post_patch pre_unpatch post_unpatch ]

// Somebody else comes to the function after it was looked at, and before the begin: the object is not patched, has its
// post_unpatch, and what was written there is left alone.
//@ $ ugraft load fix.o --pid $PID --quiet
//@ $ ugraft load disturbed.o --pid $PID
//! ugraft: somebody else has changed the code of g of the main executable at [..]; nothing is done while that is so
//= 6
//@ alive
//@ $ ugraft log --pid $PID | tail -7
//> [..] livepatch: enabling patch 'disturbed'
//> [..] livepatch: 'disturbed': initializing patching transition
//> [..] warning: livepatch: failed to patch object 'vmlinux'
//> [..] warning: livepatch: failed to enable patch 'disturbed'
//> [..] livepatch: 'disturbed': canceling patching transition, going to unpatch
//> [..] livepatch: 'disturbed': completing unpatching transition
//> [..] livepatch: 'disturbed': unpatching complete
//@ say ?
//@ expect f 1 g 0 [ pre_patch post_patch pre_patch post_unpatch ] breakpoint
//@ $ ugraft list --pid $PID
//>  patch  version  state    objects       functions
//>  fix             enabled  (executable)  f
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
