// A library is loaded after the patch that changes it: with no tool around its functions, static ones too, are the patch's
// before its constructors run. It goes, comes again and is patched again; the tools that come later know of it.

//@ file libplug.c
#include <stdio.h>
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline, noclone)) static int hidden(int x) { __asm__ volatile(""); return x * 2; }
__attribute__((constructor)) static void begin(void) { printf("constructor %d %d\n", answer(1), hidden(10)); fflush(stdout); }
__attribute__((destructor)) static void end(void) { printf("destructor %d %d\n", answer(1), hidden(10)); fflush(stdout); }
int both(int x) { return answer(x) * 1000 + hidden(x); }

//@ file host.c
#include "target.h"
#include <dlfcn.h>
static void *lib;
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load"))
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
		else if (!strcmp(c, "unload"))
			tell("unloaded %d", dlclose(lib));
		else
			tell("both %d", ((int (*)(int))dlsym(lib, "both"))(atoi(c)));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + 100; }
static int new_hidden(int x) { return x * 3; }
static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = new_answer }, { .old_name = "hidden", .new_func = new_hidden }, {}
};
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file fix2.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + 200; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled ([..]
//@ say load
//@ expect constructor 101 30
//@ expect loaded
//@ say 7
//@ expect both 107021
//@ say unload
//@ expect destructor 101 30
//@ expect unloaded 0
//@ say load
//@ expect constructor 101 30
//@ expect loaded
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'fix'
//> livepatch: 'fix': initializing patching transition
//> livepatch: 'fix': starting patching transition
//> livepatch: 'fix': completing patching transition
//> livepatch: 'fix': patching complete
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//> livepatch: applying patch 'fix' to loading module 'libplug.so'

// A second patch over the first, and off again.
//@ $ ugraft load fix2.o --pid $PID --quiet
//@ say 7
//@ expect both 207021
//@ say unload
//@ expect destructor 201 30
//@ expect unloaded 0
//@ say load
//@ expect constructor 201 30
//@ expect loaded
//@ $ ugraft disable fix2 --pid $PID --quiet && ugraft unload fix2 --pid $PID --quiet
//@ say 7
//@ expect both 107021
//@ $ ugraft disable fix --pid $PID --quiet
//@ say 7
//@ expect both 8014
//@ $ ugraft enable fix --pid $PID --quiet
//@ say 7
//@ expect both 107021
//@ say unload
//@ expect destructor 101 30
//@ expect unloaded 0
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
//@ say load
//@ expect constructor 2 20
//@ expect loaded

// Nothing of it stays where nothing has happened.
//@ snapshot
//@ $ ugraft load fix.o --pid $PID --quiet && ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
//@ unchanged
