// What a patch refers to in a library is bound when that comes while the patch's transition runs, in either direction: threads on the
// patch's side use it, the others do not, and it is 0 again when the library goes.

//@ file libplug.c
#include <stdio.h>
__attribute__((noipa)) static int hidden(int x) { __asm__ volatile(""); return x * 2; }
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((constructor)) static void begin(void) { printf("constructor %d %d\n", answer(1), hidden(10)); fflush(stdout); }

//@ file host.c
#include "target.h"
#include <dlfcn.h>
static void *lib;
static volatile int inside, ask;
PATCHABLE int state(int x) { return x; }
/* The thread that is in here has not switched. */
PATCHABLE int stay(int x)
{
	while (inside) {
		if (ask) {
			tell("inside: state %d answer %d", state(1), lib ? ((int (*)(int))dlsym(lib, "answer"))(x) : -1);
			ask = 0;
		}
		usleep(1000);
	}
	return x;
}
static void *work(void *arg)
{
	for (;;) {
		while (!inside)
			usleep(1000);
		tell("stays");
		stay(7);
		tell("has left");
	}
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, work, NULL);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load")) {
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
		} else if (!strcmp(c, "unload")) {
			void *old = lib;
			lib = NULL;
			tell("unloaded %d", dlclose(old));
		} else if (!strcmp(c, "stay")) {
			inside = 1;
		} else if (!strcmp(c, "leave")) {
			inside = 0;
		} else {
			ask = inside;
			while (ask)
				usleep(1000);
			tell("outside: state %d answer %d", state(1), lib ? ((int (*)(int))dlsym(lib, "answer"))(7) : -1);
		}
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
extern int hidden(int) __attribute__((weak));
KLP_SYMBOL(hidden, "libplug.so", "hidden", 0);
extern volatile int inside;
KLP_SYMBOL(inside, "exe", "inside", 0);
static int new_state(int x) { return hidden ? hidden(x) + 100 : -1; }
static int new_answer(int x) { return hidden(x) * 1000; }
static int new_stay(int x)
{
	while (inside)
		usleep(1000);
	return x;
}
static struct klp_func own[] = {
	{ .old_name = "state", .new_func = new_state }, { .old_name = "stay", .new_func = new_stay }, {}
};
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .funcs = own }, { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I"$SDK" fix.c -o fix.o

// The library comes while the patch is being enabled.
//@ start host
//@ expect ready
//@ say stay
//@ expect stays
//@ $ ugraft load fix.o --pid $PID --keep --timeout 300ms --quiet
//! [...]
//= 5
//@ say ?
//@ expect inside: state 1 answer -1
//@ expect outside: state -1 answer -1
//@ say load
//@ expect constructor 2000 20
//@ expect loaded
//@ say ?
//@ expect inside: state 1 answer 8
//@ expect outside: state 102 answer 14000
//@ say unload
//@ expect unloaded 0
//@ say ?
//@ expect inside: state 1 answer -1
//@ expect outside: state -1 answer -1
//@ say load
//@ expect constructor 2000 20
//@ expect loaded
//@ say leave
//@ expect has left
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect outside: state 102 answer 14000

// And while it is being disabled: who stays is on the patch's side, where the new function asks nothing.
//@ say stay
//@ expect stays
//@ $ ugraft disable fix --pid $PID --timeout 300ms --quiet
//! [...]
//= 5
//@ $ ugraft disable fix --pid $PID --keep --timeout 300ms --quiet
//! [...]
//= 5
//@ say unload
//@ expect unloaded 0
//@ say load
//@ expect constructor 2 20
//@ expect loaded
//@ say leave
//@ expect has left
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect outside: state 1 answer 8
//@ alive
//@ clean
