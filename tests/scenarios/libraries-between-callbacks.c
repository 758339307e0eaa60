// A library comes or goes while callbacks of its patch run, before a transition begins and when it is over. The kernel keeps modules waiting
// there; here the library goes its way, and each has the callbacks that it would have had: each once, and each in its pair.

//@ file libplug.c
int answer(int x) { __asm__ volatile("nop; nop; nop; nop"); return x + 1; }
//@ build cc -O2 -g -shared -fPIC -Wl,-soname,libplug.so libplug.c -o libplug.so

//@ file host.c
// Workers load and unload the library for callbacks, which run on one of them, or on the first thread.
#include "target.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
static void *lib;
static atomic_int ask;
static char armed[64];
static int answers, slow;
static void move_library(void)
{
	if (lib)
		dlclose(lib), lib = NULL;
	else
		lib = dlopen("./libplug.so", RTLD_NOW);
}
static void *work(void *nothing)
{
	for (;; usleep(1000))
		if (atomic_exchange(&ask, 0))
			move_library(), answers++;
	return nothing;
}
/* Called by callbacks, which say which they are. */
void during(const char *callback, int wait)
{
	int before = answers;

	if (strcmp(callback, armed))
		return;
	armed[0] = 0, ask = 1;
	if (wait)
		while (*(volatile int *)&answers == before)
			usleep(1000);
	else
		usleep(50000);
	if (slow) {
		slow = 0, close(creat("moved", 0600));
		while (access("go-on", F_OK))
			usleep(1000);
	}
}
int main(void)
{
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, work, NULL);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "move"))
			move_library(), tell(lib ? "there" : "gone");
		else if (!strcmp(c, "call"))
			tell("%d", ((int (*)(int))dlsym(lib, "answer"))(1));
		else if (!strcmp(c, "slowly"))
			slow = 1, tell("slowly, then");
		else
			strcpy(armed, c), tell("%s is awaited", c);
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
// The library is the last of its objects; with FIRST it is the first.
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
#ifndef REFUSE
#define REFUSE 0
#endif
extern void during(const char *callback, int wait);
static const char *const states[] = { "live", "coming", "going" };
static void say(const char *callback, struct klp_object *obj)
{
	if (obj->name)
		pr_info("%s library %s\n", callback, states[obj->mod->state]);
	else
		pr_info("%s host\n", callback);
}
#define CALLBACK(type, callback, end) \
	static type callback(struct klp_object *obj) \
	{ \
		say(#callback, obj); \
		during(obj->name ? #callback " library" : #callback " host", !obj->name); \
		if (obj->name && obj->mod->state == MODULE_STATE_LIVE) \
			say("end of " #callback, obj); \
		end; \
	}
CALLBACK(int, pre_patch, return REFUSE)
CALLBACK(void, post_patch, )
CALLBACK(void, pre_unpatch, )
CALLBACK(void, post_unpatch, )
#define CALLBACKS { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch }
static int new_answer(int x) { return x + 100; }
static struct klp_func plug[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_func none[] = { {} };
static struct klp_object objs[] = {
#ifdef FIRST
	{ .name = "libplug.so", .funcs = plug, .callbacks = CALLBACKS }, { .name = NULL, .funcs = none, .callbacks = CALLBACKS }, {}
#else
	{ .name = NULL, .funcs = none, .callbacks = CALLBACKS }, { .name = "libplug.so", .funcs = plug, .callbacks = CALLBACKS }, {}
#endif
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -c -fPIC -I$SDK fix.c && cc -O2 -c -fPIC -DFIRST -I$SDK fix.c -o first.o && cc -O2 -c -fPIC '-DREFUSE=obj->name ? -19 : 0' -I$SDK fix.c -o no.o

//@ file tell.sh
# What callbacks and the hook have said since it was asked last.
ugraft log --pid $PID | sed 's/[^ ]* //' | grep -v "^livepatch: \('\|enabling\)" >now
tail -n +$((1 + $(cat lines 2>/dev/null || echo 0))) now
wc -l <now >lines

//@ start host
//@ expect ready
//@ say move
//@ expect there
//@ $ ugraft load fix.o --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> pre_patch library live
//> end of pre_patch library live
//> post_patch host
//> post_patch library live
//> end of post_patch library live

// Its patch is about to be disabled, and it goes before its turn, which does not come any more.
//@ say pre_unpatch host
//@ expect pre_unpatch host is awaited
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> pre_unpatch library going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//> post_unpatch host

// It comes then: it is patched, which it has to be told of as the others have.
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> post_patch host
//@ say pre_unpatch host
//@ expect pre_unpatch host is awaited
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> pre_patch library coming
//> post_patch library coming
//> pre_unpatch library live
//> end of pre_unpatch library live
//> post_unpatch host
//> post_unpatch library live
//> end of post_unpatch library live

// It goes while its own callback runs, and waits for the end of that; what it has been told already it is not told again.
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> pre_patch library live
//> end of pre_patch library live
//> post_patch host
//> post_patch library live
//> end of post_patch library live
//@ say pre_unpatch library
//@ expect pre_unpatch library is awaited
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> pre_unpatch library live
//> end of pre_unpatch library live
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//> post_unpatch host

// The patch is enabled, and the library goes before it is told so; or while it is told.
//@ say move
//@ expect there
//@ say post_patch host
//@ expect post_patch host is awaited
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> pre_patch library live
//> end of pre_patch library live
//> post_patch host
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> post_unpatch host
//@ say move
//@ expect there
//@ say post_patch library
//@ expect post_patch library is awaited
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> pre_patch library live
//> end of pre_patch library live
//> post_patch host
//> post_patch library live
//> end of post_patch library live
//> pre_unpatch library going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> post_unpatch host

// It comes before the patch's enabling begins: it is as those that were there, and one that refuses it is not enabled.
//@ say pre_patch host
//@ expect pre_patch host is awaited
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> pre_patch library live
//> end of pre_patch library live
//> post_patch host
//> post_patch library live
//> end of post_patch library live
//@ say call
//@ expect 101
//@ say move
//@ expect gone
//@ $ sh tell.sh
//> pre_unpatch library going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//@ say pre_patch host
//@ expect pre_patch host is awaited
//@ $ ugraft load no.o --pid $PID --quiet; sh tell.sh
//> pre_patch host
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> pre_patch library coming
//> post_patch library coming
//> pre_patch library live
//> end of pre_patch library live
//> warning: livepatch: pre-patch callback failed for object 'libplug.so'
//> warning: livepatch: failed to enable patch 'no'
//> post_unpatch host
//! ugraft: the pre_patch callback of patch 'no' for the library 'libplug.so' refused with -19; the patch was not enabled
//@ say call
//@ expect 101

// The tool is killed while the callback runs before which the library went: the next one waits for that, hears of the library, takes the disabling
// back, and disables the patch.
//@ say slowly
//@ expect slowly, then
//@ say pre_unpatch host
//@ expect pre_unpatch host is awaited
//@ $ ugraft disable fix --pid $PID --quiet & until test -e moved; do sleep 0.01; done; kill -KILL $!; touch go-on
//@ $ ugraft disable fix --pid $PID --quiet && sh tell.sh
//> pre_unpatch host
//> pre_unpatch library going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch library going
//> post_patch host
//> pre_unpatch host
//> post_unpatch host
//@ $ ugraft enable fix --pid $PID --quiet && sh tell.sh
//> pre_patch host
//> post_patch host
//@ say move
//@ expect there
//@ $ sh tell.sh
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> pre_patch library coming
//> post_patch library coming

// The library is the first of its patch's objects: it has been told that it is unpatched when it goes.
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet && rm lines && ugraft load first.o --pid $PID --quiet && sh tell.sh
//> pre_patch library live
//> end of pre_patch library live
//> pre_patch host
//> post_patch library live
//> end of post_patch library live
//> post_patch host
//@ say pre_unpatch host
//@ expect pre_unpatch host is awaited
//@ $ ugraft disable first --pid $PID --quiet && sh tell.sh
//> pre_unpatch library live
//> end of pre_unpatch library live
//> pre_unpatch host
//> livepatch: reverting patch 'first' on unloading module 'libplug.so'
//> post_unpatch library going
//> post_unpatch host
//@ $ ugraft unload first --pid $PID --quiet
//@ clean
