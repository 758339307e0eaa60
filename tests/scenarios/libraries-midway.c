// Libraries come and go while a transition runs that cannot complete, since a thread stays in a function that changes. What comes
// is patched for the threads that have switched, and is for the one that has not what it was before: while patching, unpatching and
// replacing, after a reversal, after a force, and with no tool around.

//@ file libplug.c
void stay(void);
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline, noclone)) static int hidden(int x) { __asm__ volatile(""); return x * 2; }
__attribute__((noinline)) int inside(int x) { stay(); return x; }
static int at_start;
__attribute__((constructor)) static void begin(void) { at_start = answer(1) * 1000 + hidden(10); }
int both(int x) { return answer(x) * 1000 + hidden(x); }
int started(int x) { return at_start; }
//@ build cc -O2 -g -shared -fPIC -Wl,-soname,libplug.so libplug.c -o libplug.so

//@ file host.c
// The worker stays in `held`, or in the library's `inside`, and calls the library from there. The first thread is in neither.
#include "target.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
static void *lib;
static atomic_int ask, value, out, staying, go_inside, resting;
static int call(const char *name, int x) { return ((int (*)(int))dlsym(lib, name))(x); }
void stay(void)
{
	staying++;
	while (!out) {
		int what = atomic_exchange(&ask, 0);

		if (what == 1)
			lib = dlopen("./libplug.so", RTLD_NOW), value = lib ? 1 : -1;
		else if (what)
			value = call("both", what);
		usleep(1000);
	}
	out = 0;
}
__attribute__((noinline, noclone)) int held(int x) { stay(); return x; }
static void *work(void *nothing)
{
	for (;;) {
		held(1);
		if (atomic_exchange(&go_inside, 0))
			call("inside", 1);
		for (resting = 1; resting; usleep(1000))
			;
	}
	return nothing;
}
static int in_there(int what)
{
	value = 0, ask = what;
	while (!value)
		usleep(1000);
	return value;
}
/* What the worker stays in next, or 0 for where it rests. */
static void leave_for(int where)
{
	int before = staying;

	go_inside = where == 2;
	out = !resting;
	if (where == 1)
		resting = 0;
	while (where ? staying == before : !resting)
		usleep(1000);
}
int main(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, work, NULL);
	while (!staying)
		usleep(1000);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load"))
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
		else if (!strcmp(c, "load there"))
			tell("loaded there %d", in_there(1));
		else if (!strcmp(c, "unload"))
			tell("unloaded %d", dlclose(lib));
		else if (!strcmp(c, "leave"))
			leave_for(0), tell("left");
		else if (!strcmp(c, "go back"))
			leave_for(1), tell("back");
		else if (!strcmp(c, "go inside"))
			leave_for(2), tell("inside");
		else
			tell("here %d, there %d, started %d", call("both", 7), in_there(7), call("started", 0));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.h
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
void stay(void);
static const char *const states[] = { "live", "coming", "going" };
#define CALLBACK(type, callback, end) \
	static type callback(struct klp_object *obj) { pr_info(NAME #callback " %s\n", states[obj->mod->state]); end; }
CALLBACK(int, pre_patch, return 0)
CALLBACK(void, post_patch, )
CALLBACK(void, pre_unpatch, )
CALLBACK(void, post_unpatch, )
#define CALLBACKS { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch }
static int new_held(int x) { stay(); return x; }
static struct klp_func host[] = { { .old_name = "held", .new_func = new_held }, {} };

//@ file fix.c
#define NAME "fix: "
#include "fix.h"
static int new_answer(int x) { return x + 100; }
static int new_hidden(int x) { return x * 3; }
static int new_inside(int x) { stay(); return x; }
static struct klp_func plug[] = {
	{ .old_name = "answer", .new_func = new_answer }, { .old_name = "hidden", .new_func = new_hidden },
	{ .old_name = "inside", .new_func = new_inside }, {}
};
static struct klp_object objs[] = {
	{ .name = NULL, .funcs = host }, { .name = "libplug.so", .funcs = plug, .callbacks = CALLBACKS }, {}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -c -I$SDK fix.c

//@ file all.c
// Cumulative, and without anything for the library; or with another version of one of its functions.
#define NAME "all: "
#include "fix.h"
#ifdef PLUG
static int new_answer(int x) { return x + 200; }
static struct klp_func plug[] = { { .old_name = "answer", .new_func = new_answer }, {} };
#endif
static struct klp_object objs[] = {
	{ .name = NULL, .funcs = host },
#ifdef PLUG
	{ .name = "libplug.so", .funcs = plug, .callbacks = CALLBACKS },
#endif
	{}
};
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);
void *used[] = { pre_patch, post_patch, pre_unpatch, post_unpatch };
//@ build cc -O2 -c -I$SDK all.c && cc -O2 -c -DPLUG -I$SDK all.c -o all2.o

//@ file odd.c
#include <ugraft/livepatch.h>
static int none(int x) { return x; }
static struct klp_func plug[] = { { .old_name = "answer", .new_func = none }, { .old_name = "unheard_of", .new_func = none }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = plug }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file tell.sh
# What the log says since it was asked last.
ugraft log --pid $PID | sed 's/[^ ]* //' >now
tail -n +$((1 + $(cat lines 2>/dev/null || echo 0))) now
wc -l <now >lines

//@ start host
//@ expect ready

// Patching: no post_patch for what comes; no pre_unpatch for what goes.
//@ $ ugraft load fix.o --pid $PID --keep --timeout 100ms >/dev/null 2>&1
//= 5
//@ say load
//@ expect loaded
//@ say call
//@ expect here 107021, there 8014, started 101030
//@ say unload
//@ expect unloaded 0
//@ say load there
//@ expect loaded there 1
//@ say call
//@ expect here 107021, there 8014, started 2020
//@ $ sh tell.sh
//> livepatch: enabling patch 'fix'
//> livepatch: 'fix': initializing patching transition
//> livepatch: 'fix': starting patching transition
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming

// The worker goes on from one changing function to another that has come meanwhile, and is still where it was before.
//@ say go inside
//@ expect inside
//@ $ ugraft status --pid $PID | grep -o "inside.*" | head -1
//> inside
//@ $ ugraft wait fix --pid $PID --timeout 300ms >/dev/null 2>&1
//= 5
//@ say call
//@ expect here 107021, there 8014, started 2020
//@ say leave
//@ expect left
//@ $ ugraft wait fix --pid $PID --quiet
//@ say go back
//@ expect back
//@ say call
//@ expect here 107021, there 107021, started 2020
//@ $ sh tell.sh
//> livepatch: 'fix': completing patching transition
//> fix: post_patch live
//> livepatch: 'fix': patching complete

// Unpatching: what comes is original for those who have switched.
//@ say unload
//@ expect unloaded 0
//@ $ ugraft disable fix --pid $PID --keep --timeout 100ms >/dev/null 2>&1
//= 5
//@ say load
//@ expect loaded
//@ say call
//@ expect here 8014, there 107021, started 2020
//@ say unload
//@ expect unloaded 0
//@ say load there
//@ expect loaded there 1
//@ say call
//@ expect here 8014, there 107021, started 101030
// Turned round it is over at once: only the first thread has to go back.
//@ $ ugraft reverse --pid $PID --quiet
//@ say call
//@ expect here 107021, there 107021, started 101030
//@ $ sh tell.sh
//> fix: pre_unpatch going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: 'fix': initializing unpatching transition
//> livepatch: 'fix': starting unpatching transition
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> livepatch: 'fix': reversing transition from unpatching to patching
//> livepatch: 'fix': starting patching transition
//> livepatch: 'fix': completing patching transition
//> fix: post_patch live
//> livepatch: 'fix': patching complete

// Replacing: the library is original for the new patch, which says that it is applied and has no callbacks there.
//@ say unload
//@ expect unloaded 0
//@ $ ugraft load all.o --pid $PID --keep --timeout 100ms >/dev/null 2>&1
//= 5
//@ say load
//@ expect loaded
//@ say call
//@ expect here 8014, there 107021, started 2020
//@ say unload
//@ expect unloaded 0
//@ say load there
//@ expect loaded there 1
//@ say call
//@ expect here 8014, there 107021, started 101030
//@ $ sh tell.sh
//> fix: pre_unpatch going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: enabling patch 'all'
//> livepatch: 'all': initializing patching transition
//> livepatch: 'all': starting patching transition
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> fix: post_patch coming
//> livepatch: applying patch 'all' to loading module 'libplug.so'
//> fix: pre_unpatch going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: reverting patch 'all' on unloading module 'libplug.so'
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> fix: post_patch coming
//> livepatch: applying patch 'all' to loading module 'libplug.so'
// Turned round: the replaced patch is as it was.
//@ say unload
//@ expect unloaded 0
//@ $ ugraft reverse --pid $PID --quiet
//@ say load
//@ expect loaded
//@ say call
//@ expect here 107021, there 107021, started 101030
//@ $ sh tell.sh
//> fix: pre_unpatch going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: reverting patch 'all' on unloading module 'libplug.so'
//> livepatch: 'all': reversing transition from patching to unpatching
//> livepatch: 'all': starting unpatching transition
//> livepatch: 'all': completing unpatching transition
//> livepatch: 'all': unpatching complete
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> fix: post_patch coming

// Another version instead; and nobody waits for the worker.
//@ $ ugraft unload all --pid $PID --quiet
//@ say unload
//@ expect unloaded 0
//@ $ ugraft load all2.o --pid $PID --keep --timeout 100ms >/dev/null 2>&1
//= 5
//@ say load
//@ expect loaded
//@ say call
//@ expect here 207014, there 107021, started 201020
//@ $ ugraft force --pid $PID --quiet
//@ say call
//@ expect here 207014, there 207014, started 201020
//@ say unload
//@ expect unloaded 0
//@ say load
//@ expect loaded
//@ say call
//@ expect here 207014, there 207014, started 201020
//@ $ sh tell.sh
//> fix: pre_unpatch going
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> fix: post_unpatch going
//> livepatch: enabling patch 'all2'
//> livepatch: 'all2': initializing patching transition
//> livepatch: 'all2': starting patching transition
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> fix: pre_patch coming
//> fix: post_patch coming
//> livepatch: applying patch 'all2' to loading module 'libplug.so'
//> all: pre_patch coming
//> warning: livepatch: forcing remaining tasks to the patched state
//> livepatch: 'all2': completing patching transition
//> all: post_patch live
//> livepatch: 'all2': patching complete
//> all: pre_unpatch going
//> livepatch: reverting patch 'all2' on unloading module 'libplug.so'
//> all: post_unpatch going
//> livepatch: applying patch 'all2' to loading module 'libplug.so'
//> all: pre_patch coming
//> all: post_patch coming

// One that does not fit keeps the library out, and those before it let go again.
//@ say unload
//@ expect unloaded 0
//@ $ ugraft load odd.o --pid $PID --quiet && sh tell.sh >/dev/null
//@ say load
//@ expect ./libplug.so: patch 'odd' cannot change its function 'unheard_of': [..]
//@ $ sh tell.sh
//> livepatch: applying patch 'all2' to loading module 'libplug.so'
//> all: pre_patch coming
//> all: post_patch coming
//> error: livepatch: patch 'odd' cannot change its function 'unheard_of': it has no symbol of that name
//> warning: livepatch: failed to initialize patch 'odd' for module 'libplug.so' (-22)
//> warning: livepatch: patch 'odd' failed for module 'libplug.so', refusing to load module 'libplug.so'
//> all: pre_unpatch coming
//> livepatch: reverting patch 'all2' on unloading module 'libplug.so'
//> all: post_unpatch coming
//@ $ ugraft disable odd --pid $PID --quiet
//@ say load
//@ expect loaded
//@ say call
//@ expect here 207014, there 207014, started 201020
