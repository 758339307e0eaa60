// A patch refers to what a library has that comes later: a static function, a static variable, by calls, through the GOT and by a
// pointer in its data. All of it is bound when the library comes, before its constructors run, is 0 while it is not there, and is bound
// anew when it comes again elsewhere. What cannot be bound is refused by name.

//@ file libplug.c
#include <stdio.h>
static int counter = 5;
__attribute__((noipa)) static int hidden(int x) { __asm__ volatile(""); return x * 2 + counter; }
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((constructor)) static void begin(void) { printf("constructor %d %d\n", answer(1), hidden(10)); fflush(stdout); }
void count(void) { counter++; }

//@ file libother.c
int answer(int x) { __asm__ volatile(""); return x + 1; }
void count(void) {}

//@ file libchosen.c
__attribute__((noipa)) static int one(int x) { return x * 2; }
static int (*choose(void))(int) { return one; }
int hidden(int x) __attribute__((ifunc("choose")));
int counter = 5;
int answer(int x) { __asm__ volatile(""); return x + 1; }
void count(void) {}

//@ file libpad.c
char room[1 << 20];

//@ file host.c
#include "target.h"
#include <dlfcn.h>
static void *lib;
__attribute__((noinline)) int state(int x) { __asm__ volatile(""); return x; }
static int call(const char *name, int x) { return ((int (*)(int))dlsym(lib, name))(x); }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load"))
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
		else if (!strcmp(c, "pad"))
			tell(dlopen("./libpad.so", RTLD_NOW) ? "padded" : "%s", dlerror());
		else if (!strcmp(c, "unload"))
			tell("unloaded %d", dlclose(lib));
		else if (!strcmp(c, "state"))
			tell("state %d", state(1));
		else
			call("count", 0), tell("answer %d state %d", call("answer", atoi(c)), state(1));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
/* Weak, so that one may ask whether it is there. */
extern int hidden(int) __attribute__((weak));
extern int counter;
KLP_SYMBOL(hidden, "libplug.so", "hidden", 0);
KLP_SYMBOL(counter, "libplug.so", "counter", 0);
int (*volatile by_pointer)(int) = hidden;
static int new_answer(int x) { return hidden(x) * 1000 + counter; }
static int new_state(int x) { return hidden ? by_pointer(x) : -1; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_func own[] = { { .old_name = "state", .new_func = new_state }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, { .funcs = own }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -fPIC -I"$SDK" fix.c -o fix.o
//@ build cc -c -O2 -fno-pic -mcmodel=small -I"$SDK" fix.c -o near.o

//@ file thread.c
#include <ugraft/livepatch.h>
extern __thread int own __attribute__((tls_model("initial-exec")));
KLP_SYMBOL(own, "libplug.so", "own", 0);
static int new_answer(int x) { return own; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start host
//@ expect ready
//@ $ ugraft check fix.o --pid $PID
//>  object        function  address         verdict
//>  libplug.so    answer                    its object is not loaded
//>  (executable)  state     [..]  can be redirected by a jump in nearby padding
//> note: counter of libplug.so is bound when that library is loaded, and is 0 until then
//> note: hidden of libplug.so is bound when that library is loaded, and is 0 until then
//> patch 'fix' can be loaded into process $host
//@ $ ugraft load near.o --pid $PID
//! ugraft: section .text+0x1: `hidden of libplug.so` can come and go, and a R_X86_64_32 relocation cannot be bound anew: compile with -fPIC (it is reached through the GOT then)
//= 6
//@ $ ugraft load thread.o --pid $PID
//! ugraft: not found in the target: `own of libplug.so` (a thread-local variable of libplug.so, which is not loaded yet: such have no one place): check the object's and the symbol's name and its position
//= 6
//@ $ ugraft load fix.o --pid $PID
//> patch 'fix': enabled (1 thread, longest pause [..], [..] in all)
//@ say state
//@ expect state -1
//@ say load
//@ expect constructor 7005 25
//@ expect loaded
//@ say 7
//@ expect answer 20006 state 8

// Gone, and back elsewhere.
//@ say unload
//@ expect unloaded 0
//@ say state
//@ expect state -1
//@ say pad
//@ expect padded
//@ say load
//@ expect constructor 7005 25
//@ expect loaded
//@ say 7
//@ expect answer 20006 state 8

// It goes and comes while the patch is disabled, and is there when the patch is enabled; then it goes once more.
//@ $ ugraft disable fix --pid $PID --quiet
//@ say 7
//@ expect answer 8 state 1
//@ say unload
//@ expect unloaded 0
//@ say pad
//@ expect padded
//@ say load
//@ expect constructor 2 25
//@ expect loaded
//@ $ ugraft enable fix --pid $PID --quiet
//@ say 7
//@ expect answer 20006 state 8
//@ say unload
//@ expect unloaded 0
//@ say state
//@ expect state -1
//@ $ ugraft disable fix --pid $PID --quiet && ugraft enable fix --pid $PID --quiet
//@ say state
//@ expect state -1

// One that does not have what the patch refers to is not loaded.
//@ $ mv libplug.so kept.so && cp libother.so libplug.so
//@ say load
//@ expect ./libplug.so: patch 'fix' cannot refer to its symbol 'hidden': it has no symbol of that name
//@ $ ugraft log --pid $PID | tail -3 | sed 's/[^ ]* //'
//> error: livepatch: patch 'fix' cannot refer to its symbol 'hidden': it has no symbol of that name
//> warning: livepatch: failed to initialize patch 'fix' for module 'libplug.so' (-22)
//> warning: livepatch: patch 'fix' failed for module 'libplug.so', refusing to load module 'libplug.so'
//@ say state
//@ expect state -1
// Nor one of which the loader has yet to choose it (an IFUNC), when the patch is to be applied.
//@ $ cp libchosen.so libplug.so
//@ say load
//@ expect ./libplug.so: patch 'fix' cannot refer to its symbol 'hidden': it is an IFUNC, and nothing shows yet which implementation will be chosen
//@ $ mv kept.so libplug.so
//@ say load
//@ expect constructor 7005 25
//@ expect loaded

// A patch that is loaded over the library, by name as before.
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 7
//@ expect answer 20006 state 8
//@ say unload
//@ expect unloaded 0
//@ say state
//@ expect state -1
//@ say load
//@ expect constructor 7005 25
//@ expect loaded
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ say 7
//@ expect answer 8 state 1
//@ alive
//@ clean
