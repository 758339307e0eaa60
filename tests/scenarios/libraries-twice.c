// A library that is there twice, in namespaces of their own, is patched once: the copy that came first. The other one is in use by then,
// and left as it is, also when it alone is left; the next copy that comes is patched. So is one of another build left as it is.

//@ file libplug.c
#include "target.h"
PATCHABLE int answer(int x) { return x + 1; }
//@ build cc -O2 -g -shared -fPIC -pthread -Wl,--build-id -I$SUPPORT libplug.c -o libplug.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	void *libs[10] = { 0 };
	tell("ready");
	for (const char *c; (c = command());) {
		void **lib = &libs[c[0] - '0'];
		if (*lib)
			tell("unloaded %d", dlclose(*lib)), *lib = NULL;
		else if ((*lib = dlmopen(c[0] == '0' ? LM_ID_BASE : LM_ID_NEWLM, "./libplug.so", RTLD_NOW)))
			tell("loaded");
		else
			tell("%s", dlerror());
		for (int i = 0; i < 10; i++)
			if (libs[i])
				tell("%d: %d", i, ((int (*)(int))dlsym(libs[i], "answer"))(1));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + ADD; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
#ifdef OTHER
KLP_OBJECT_BUILD_ID("libplug.so", "0123456789abcdef0123456789abcdef01234567");
#endif
//@ build cc -c -O2 -fPIC -I$SDK -DADD=100 fix.c && cc -c -O2 -fPIC -I$SDK -DADD=200 -DOTHER fix.c -o other.o

//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 1
//@ expect 1: 101
//@ say 2
//@ expect 1: 101
//@ expect 2: 2
//@ $ ugraft status --pid $PID | grep libplug
//>  fix             enabled  libplug.so  answer
//@ say 1
//@ expect 2: 2
//@ $ ugraft status --pid $PID | grep libplug
//>  fix             enabled  libplug.so (not loaded)  answer
//@ say 3
//@ expect 2: 2
//@ expect 3: 101
//@ say 2
//@ expect 3: 101
//@ say 3
//@ expect unloaded 0
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet

// Of another build than the patch is for.
//@ $ ugraft load other.o --pid $PID
//> patch 'other': enabled (1 thread, longest pause [..], [..] in all)
//@ say 0
//@ expect 0: 2
//@ $ ugraft status --pid $PID | grep libplug
//>  other           enabled  libplug.so (not loaded)  answer
//@ $ ugraft log --pid $PID | tail -n 1 | sed 's/[^ ]* //'
//> warning: livepatch: patch 'other' is for another build of module 'libplug.so'
//@ $ ugraft disable other --pid $PID --quiet
//@ $ ugraft enable other --pid $PID
//! ugraft: libplug.so has build-id [..], the patch is for 0123456789abcdef0123456789abcdef01234567; build the patch for the running version
//= 6
//@ say 1
//@ expect 0: 2
//@ expect 1: 2
//@ say 0
//@ expect 1: 2
//@ $ ugraft status --pid $PID | grep libplug
//>  other           disabled  libplug.so (not loaded)  answer
