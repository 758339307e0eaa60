// Programs with musl: a library that comes is patched before its constructors run, and never goes. There is no way to refuse one: then it
// stays as it is. A static program has no loader that would tell of libraries, and the command says so.

//@ needs musl-gcc

//@ file libplug.c
#include "target.h"
PATCHABLE int answer(int x) { return x + 1; }
__attribute__((constructor)) static void begin(void) { tell("constructor %d", answer(1)); }
__attribute__((destructor)) static void end(void) { tell("destructor %d", answer(1)); }
//@ build for i in plug refused; do musl-gcc -O2 -g -shared -fPIC -I$SUPPORT -Wl,-soname,lib$i.so libplug.c -o lib$i.so; done

//@ file host.c
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	void *lib = NULL;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "unload"))
			tell("unloaded %d", dlclose(lib));
		else if (!strcmp(c, "exit"))
			return 0;
		else if ((lib = dlopen(c, RTLD_NOW)))
			tell("loaded, %d", ((int (*)(int))dlsym(lib, "answer"))(1));
		else
			tell("%s", dlerror());
	}
	return 0;
}
//@ build musl-gcc -O2 -g -rdynamic -I$SUPPORT host.c -o host && musl-gcc -O2 -g -static -I$SUPPORT host.c -o static

//@ file fix.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
static int accept(struct klp_object *obj) { pr_info("pre_patch %s\n", obj->name); return 0; }
static int refuse(struct klp_object *obj) { return -19; }
static int new_answer(int x) { return x + 100; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = funcs, .callbacks = { .pre_patch = accept } },
	{ .name = "librefused.so", .funcs = funcs, .callbacks = { .pre_patch = refuse } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file news.sh
ugraft log --pid $PID | sed 's/[^ ]* //' | grep -v "'fix':" | tail -n $1

//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say ./libplug.so
//@ expect constructor 101
//@ expect loaded, 101
//@ say unload
//@ expect unloaded 0
//@ $ sh news.sh 1
//> pre_patch libplug.so
//@ say ./librefused.so
//@ expect constructor 2
//@ expect loaded, 2
//@ $ sh news.sh 2
//> warning: livepatch: pre-patch callback failed for object 'librefused.so'
//> warning: livepatch: patch 'fix' failed for module 'librefused.so', refusing to load module 'librefused.so'
//@ $ ugraft status --pid $PID | grep lib
//>  fix             enabled  libplug.so                  answer
//>                           librefused.so (not loaded)  answer
//@ $ ugraft disable fix --pid $PID --quiet
//@ say ./libplug.so
//@ expect loaded, 2
//@ $ ugraft unload fix --pid $PID --quiet
//@ clean
//@ say exit
//@ wait
//> destructor 2
//> destructor 2

//@ start static
//@ expect ready
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//! ugraft: libraries that are loaded from now on will not be patched: the process has no dynamic loader that would tell of them
//@ say ./libplug.so
//@ expect Dynamic loading not supported
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ clean
