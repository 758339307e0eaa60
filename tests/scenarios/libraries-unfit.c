// A library comes that a patch in effect cannot be applied to: a function is not there, or there is no file descriptor left to write
// its text with. dlopen fails with the reason, the log has the kernel's words, and the library can come when that is over.

//@ file libplug.c
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
//@ build cc -O2 -g -shared -fPIC -Wl,-soname,libplug.so libplug.c -o libplug.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
int spent;
int main(void)
{
	for (const char *c; (c = command());) {
		spent = !strcmp(c, "spent");
		void *lib = dlopen("./libplug.so", RTLD_NOW);

		if (!lib) {
			tell("%s", dlerror());
			continue;
		}
		int (*answer)(int) = dlsym(lib, "answer");
		tell("%d", answer(1));
		dlclose(lib);
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <sys/resource.h>
extern int spent;
static struct rlimit before;
/* Runs when the library has been looked at, and before it is written to. */
static int pre_patch(struct klp_object *obj)
{
	getrlimit(RLIMIT_NOFILE, &before);
	return spent ? setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 0, before.rlim_max }) : 0;
}
static void post_unpatch(struct klp_object *obj) { setrlimit(RLIMIT_NOFILE, &before); }
static int new_answer(int x) { return x + 100; }
static struct klp_func funcs[] = { { .old_name = FUNCTION, .new_func = new_answer }, {} };
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } }, {}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -O2 -fPIC -c -I$SDK -DFUNCTION='"answer"' fix.c && cc -O2 -fPIC -c -I$SDK -DFUNCTION='"nobody"' fix.c -o lacks.o

//@ start host
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say open
//@ expect 101
//@ say spent
//@ expect ./libplug.so: patch 'fix' cannot be applied to it: [..]
//@ $ ugraft log --pid $PID | tail -3
//> [..] livepatch: applying patch 'fix' to loading module 'libplug.so'
//> [..] warning: livepatch: failed to apply patch 'fix' to module 'libplug.so' (-24)
//> [..] warning: livepatch: patch 'fix' failed for module 'libplug.so', refusing to load module 'libplug.so'
//@ say open
//@ expect 101
//@ $ ugraft load lacks.o --pid $PID --quiet
//@ say open
//@ expect ./libplug.so: patch 'lacks' cannot change its function 'nobody': [..]
//@ $ ugraft log --pid $PID | tail -5
//> [..] livepatch: applying patch 'fix' to loading module 'libplug.so'
//> [..] error: livepatch: patch 'lacks' cannot change its function 'nobody': [..]
//> [..] warning: livepatch: failed to initialize patch 'lacks' for module 'libplug.so' (-22)
//> [..] warning: livepatch: patch 'lacks' failed for module 'libplug.so', refusing to load module 'libplug.so'
//> [..] livepatch: reverting patch 'fix' on unloading module 'libplug.so'
//@ $ ugraft disable lacks --pid $PID --quiet && ugraft unload lacks --pid $PID --quiet
//@ say open
//@ expect 101
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ say open
//@ expect 2
//@ clean
//@ close
