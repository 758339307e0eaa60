// A library goes: its destructors run patched, then the callbacks run, oldest patch first, and only then its memory goes. So do
// those that go together with it. What was written to a library for that is as it was when the patch is disabled, or the process ends.

//@ file libplug.c
#include "target.h"
PATCHABLE int answer(int x) { return x + 1; }
__attribute__((destructor)) static void end(void) { tell("destructor %d", answer(1)); }
//@ build cc -O2 -g -shared -fPIC -pthread -I$SUPPORT libplug.c -o libplug.so

//@ file libbelow.c
#include "target.h"
#include <dlfcn.h>
extern int ending;
PATCHABLE int below(int x) { return x + 2; }
__attribute__((destructor)) static void end(void)
{
	tell("destructor below %d", below(1));
	/* The loader removes a library while others, whose destructors have run, wait for the process's end. */
	if (ending)
		tell("another came and went: %d", dlclose(dlopen("./libother.so", RTLD_NOW)));
}
//@ build cc -O2 -g -shared -fPIC -pthread -I$SUPPORT libbelow.c -o libbelow.so

//@ file libabove.c
#include "target.h"
#include <dlfcn.h>
extern void *other;
int below(int);
PATCHABLE int above(int x) { return below(x) * 10; }
__attribute__((destructor)) static void end(void)
{
	tell("destructor above %d", above(1));
	if (other)
		dlclose(other), other = NULL, tell("asked for another to go");
}
//@ build cc -O2 -g -shared -fPIC -pthread -I$SUPPORT libabove.c -o libabove.so -L. -lbelow -Wl,-rpath,'$ORIGIN'

// Without the usual files of the C library a library has no finalizer.
//@ file libbare.c
int answer(int x) { __asm__ volatile("nop; nop; nop"); return x + 1; }
//@ build cc -O2 -g -shared -fPIC -nostartfiles libbare.c -o libbare.so && cp libbare.so libother.so

// One that can be mapped, but not relocated: its patch has been applied by then.
//@ file libbroken.c
extern int nowhere_to_be_found;
int answer(int x) { return x + nowhere_to_be_found; }
//@ build cc -O2 -g -shared -fPIC libbroken.c -o libbroken.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <link.h>
void *other;
/* What a callback can call while the library is there; the callbacks say so themselves. */
int (*in_library)(int);
int ending;
void called_back(void)
{
	if (ending)
		tell("a callback at the end");
}
static unsigned long finalizer_word(void *lib)
{
	ElfW(Dyn) *entry = ((struct link_map *)lib)->l_ld;
	while (entry->d_tag && entry->d_tag != DT_FINI)
		entry++;
	return entry->d_un.d_ptr;
}
int main(void)
{
	void *lib = NULL;
	tell("ready");
	for (char *c; (c = (char *)command());) {
		char *name = strchr(c, ' ');
		if (name)
			*name++ = 0;
		if (!strcmp(c, "load") || !strcmp(c, "stay") || !strcmp(c, "apart")) {
			int mode = RTLD_NOW | (!strcmp(c, "stay") ? RTLD_NODELETE : 0);
			lib = !strcmp(c, "apart") ? dlmopen(LM_ID_NEWLM, name, mode) : dlopen(name, mode);
			tell(lib ? "loaded" : "%s", dlerror());
		} else if (!strcmp(c, "keep")) {
			other = lib, tell("kept");
		} else if (!strcmp(c, "unload")) {
			tell("unloaded %d", dlclose(lib));
		} else if (!strcmp(c, "word")) {
			tell("word %lx", finalizer_word(lib));
		} else if (!strcmp(c, "call")) {
			in_library = dlsym(lib, name), tell("%d", in_library(1));
		} else if (!strcmp(c, "forget")) {
			in_library = NULL, tell("forgotten");
		} else if (!strcmp(c, "child")) {
			if (!fork())
				tell("child unloaded %d", dlclose(lib)), _exit(0);
		} else {
			ending = 1, exit(0);
		}
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
extern int (*in_library)(int);
extern void called_back(void);
static const char *const states[] = { "LIVE", "COMING", "GOING" };
static int called(void) { called_back(); return in_library ? in_library(1) : 0; }
static int pre_patch(struct klp_object *obj) { pr_info("pre_patch %s %s\n", obj->name, states[obj->mod->state]); return 0; }
static void post_patch(struct klp_object *obj) { pr_info("post_patch %s %s\n", obj->name, states[obj->mod->state]); }
static void pre_unpatch(struct klp_object *obj) { pr_info("pre_unpatch %s %s, calls %d\n", obj->name, states[obj->mod->state], called()); }
static void post_unpatch(struct klp_object *obj) { pr_info("post_unpatch %s %s, calls %d\n", obj->name, states[obj->mod->state], called()); }
static int new_answer(int x) { return x + ADD; }
static struct klp_func answers[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_func belows[] = { { .old_name = "below", .new_func = new_answer }, {} };
static struct klp_func aboves[] = { { .old_name = "above", .new_func = new_answer }, {} };
#define CALLBACKS .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch }
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = answers, CALLBACKS },
#ifdef ALL
	{ .name = "libbelow.so", .funcs = belows, CALLBACKS },
	{ .name = "libabove.so", .funcs = aboves, CALLBACKS },
	{ .name = "libbare.so", .funcs = answers, CALLBACKS },
	{ .name = "libbroken.so", .funcs = answers, CALLBACKS },
#endif
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
void *volatile used[] = { belows, aboves };
//@ build cc -c -O2 -fPIC -I$SDK -DADD=100 -DALL fix.c && cc -c -O2 -fPIC -I$SDK -DADD=200 fix.c -o second.o

//@ file news.sh
ugraft log --pid $PID | sed 's/[^ ]* //' | grep -v "'fix':\|'second':" | tail -n ${1:-100}

//@ start host
//@ expect ready
//@ say load ./libplug.so
//@ expect loaded
//@ say word
//@ expect word [=word]
//@ say unload
//@ expect destructor 2
//@ $ ugraft load fix.o --pid $PID --quiet && ugraft load second.o --pid $PID --quiet
//@ say load ./libplug.so
//@ expect loaded
//@ say call answer
//@ expect 201
//@ say unload
//@ expect destructor 201
//@ expect unloaded 0
//@ $ sh news.sh 6
//> pre_unpatch libplug.so GOING, calls 201
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 201
//> pre_unpatch libplug.so GOING, calls 201
//> livepatch: reverting patch 'second' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 201

// The same for a library that was there when it was patched.
//@ $ ugraft disable second --pid $PID --quiet
//@ $ ugraft disable fix --pid $PID --quiet
//@ say load ./libplug.so
//@ expect loaded
//@ $ ugraft enable fix --pid $PID --quiet
//@ say call answer
//@ expect 101
//@ say unload
//@ expect destructor 101
//@ expect unloaded 0
//@ $ sh news.sh 3
//> pre_unpatch libplug.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 101

// What goes with its dependency, and has another one go, which comes last.
//@ say load ./libplug.so
//@ expect loaded
//@ say keep
//@ expect kept
//@ say load ./libabove.so
//@ expect loaded
//@ say unload
//@ expect destructor above 101
//@ expect asked for another to go
//@ expect destructor below 101
//@ expect destructor 101
//@ expect unloaded 0
//@ say forget
//@ expect forgotten
//@ $ sh news.sh 9
//> pre_unpatch libabove.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libabove.so'
//> post_unpatch libabove.so GOING, calls 101
//> pre_unpatch libbelow.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libbelow.so'
//> post_unpatch libbelow.so GOING, calls 101
//> pre_unpatch libplug.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 101

// A copy in a namespace of its own.
//@ say apart ./libplug.so
//@ expect loaded
//@ say call answer
//@ expect 101
//@ say unload
//@ expect destructor 101
//@ expect unloaded 0
//@ $ sh news.sh 3
//> pre_unpatch libplug.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 101

// Of one without a finalizer, and of one that fails to load after its patch has been applied, the memory is gone by then.
//@ say forget
//@ expect forgotten
//@ say load ./libbare.so
//@ expect loaded
//@ say unload
//@ expect unloaded 0
//@ $ sh news.sh 3
//> pre_unpatch libbare.so GOING, calls 0
//> livepatch: reverting patch 'fix' on unloading module 'libbare.so'
//> post_unpatch libbare.so GOING, calls 0
//@ say load ./libbroken.so
//@ expect ./libbroken.so: undefined symbol: nowhere_to_be_found
//@ $ sh news.sh 6
//> livepatch: applying patch 'fix' to loading module 'libbroken.so'
//> pre_patch libbroken.so COMING
//> post_patch libbroken.so COMING
//> pre_unpatch libbroken.so GOING, calls 0
//> livepatch: reverting patch 'fix' on unloading module 'libbroken.so'
//> post_unpatch libbroken.so GOING, calls 0

// In a child of fork, and then in the parent.
//@ say load ./libplug.so
//@ expect loaded
//@ say call answer
//@ expect 101
//@ say child
//@ expect destructor 101
//@ expect child unloaded 0
//@ $ sh news.sh 1
//> post_patch libplug.so COMING
//@ say unload
//@ expect destructor 101
//@ expect unloaded 0
//@ $ sh news.sh 3
//> pre_unpatch libplug.so GOING, calls 101
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> post_unpatch libplug.so GOING, calls 101

// The library stays, and the patch goes: it is as it was.
//@ say load ./libplug.so
//@ expect loaded
//@ $ ugraft disable fix --pid $PID --quiet
//@ say word
//@ expect word $word
//@ $ ugraft enable fix --pid $PID --quiet
//@ say word
//@ expect word [=other]
//@ $ test $other != $word
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet && ugraft unload second --pid $PID --quiet
//@ say word
//@ expect word $word
//@ clean
//@ say unload
//@ expect destructor 2
//@ expect unloaded 0

// One that never goes. And the end of the process, at which destructors run patched and callbacks do not run.
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say stay ./libplug.so
//@ expect loaded
//@ say unload
//@ expect unloaded 0
//@ $ sh news.sh 1
//> post_patch libplug.so COMING
//@ say load ./libabove.so
//@ expect loaded
//@ say exit
//@ wait
//> destructor 101
//> destructor above 101
//> destructor below 101
//> another came and went: 0
