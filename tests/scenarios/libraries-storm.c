// Eight threads load and unload libraries without pause while patches that change them are enabled, replaced and disabled.
// Every call gives what one of the versions gives, from the constructor on, and nothing is left behind.

//@ file libplug.c
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
__attribute__((noinline, noclone)) static int hidden(int x) { __asm__ volatile(""); return x * 2; }
static int at_start;
__attribute__((constructor)) static void begin(void) { at_start = answer(10) * 1000 + hidden(10); }
int both(int x) { return answer(x) * 1000 + hidden(x); }
int started(void) { return at_start; }
//@ build for i in 0 1 2 3 4 5 6 7; do cc -O2 -g -shared -fPIC -Wl,-soname,libplug$i.so libplug.c -o libplug$i.so; done

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
static atomic_ulong cycles, wrong;
static atomic_int over;
static int is_right(int value, int x)
{
	int a = value / 1000, b = value % 1000;
	return (a == x + 1 || a == x + 100 || a == x + 200) && (b == x * 2 || b == x * 3);
}
static void *run(void *number)
{
	char name[32];
	sprintf(name, "./libplug%ld.so", (long)number % 8);
	while (!over) {
		void *lib = dlopen(name, RTLD_NOW);
		if (!lib) {
			wrong++;
			continue;
		}
		int (*both)(int) = dlsym(lib, "both"), (*started)(void) = dlsym(lib, "started");
		wrong += !is_right(started(), 10);
		for (int i = 0; i < 20; i++)
			wrong += !is_right(both(7), 7);
		dlclose(lib);
		cycles++;
	}
	return NULL;
}
int main(void)
{
	pthread_t threads[8];
	for (long i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, run, (void *)i);
	tell("ready");
	while (command())
		tell("%s, %lu wrong", cycles > 100 ? "many" : "few", wrong);
	over = 1;
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#ifndef ADD
#define ADD 100
#define BOTH
#endif
static int new_answer(int x) { return x + ADD; }
static int new_hidden(int x) { return x * 3; }
static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = new_answer },
#ifdef BOTH
	{ .old_name = "hidden", .new_func = new_hidden },
#endif
	{}
};
static struct klp_object objs[] = {
	{ .name = "libplug0.so", .funcs = funcs }, { .name = "libplug1.so", .funcs = funcs },
	{ .name = "libplug2.so", .funcs = funcs }, { .name = "libplug3.so", .funcs = funcs },
	{ .name = "libplug4.so", .funcs = funcs }, { .name = "libplug5.so", .funcs = funcs },
	{ .name = "libplug6.so", .funcs = funcs }, { .name = "libplug7.so", .funcs = funcs }, {}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
int (*volatile used)(int) = new_hidden;
//@ build cc -O2 -c -I$SDK fix.c && cp fix.c fix2.c && cc -O2 -c -DADD=200 -I$SDK fix2.c

//@ start host
//@ expect ready
//@ file storm.sh
run() { ugraft "$@" --pid $PID --quiet >said 2>&1 || { echo "$@"; cat said; }; }
for round in 1 2; do
	run load fix.o
	run load fix2.o
	run disable fix2
	run unload fix2
	run disable fix
	run enable fix
	run disable fix
	run unload fix
done

//@ $ sh storm.sh
//@ say how
//@ expect many, 0 wrong
//@ clean
//@ close
