// A callback for a library that comes runs on the program's own thread, in its dlopen, and does not return: every command says which
// it is, and changes nothing. When it returns all goes on. One that crashes does what any crash of the program does.

//@ file libplug.c
int answer(int x) { __asm__ volatile("nop; nop; nop"); return x + 1; }
//@ build cc -O2 -g -shared -fPIC libplug.c -o libplug.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
#include <semaphore.h>
#include <signal.h>
sem_t go;
int crashes;
void *null;
static void handler(int number) { tell("handler of signal %d", number); _exit(3); }
static void *load(void *unused)
{
	void *lib = dlopen("./libplug.so", RTLD_NOW);
	if (!lib)
		tell("%s", dlerror());
	else
		tell("loaded, %d", ((int (*)(int))dlsym(lib, "answer"))(1)), dlclose(lib), tell("unloaded");
	return NULL;
}
int main(void)
{
	pthread_t thread;
	sem_init(&go, 0, 0);
	signal(SIGSEGV, handler);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load"))
			pthread_create(&thread, NULL, load, NULL), pthread_setname_np(thread, "loads"), pthread_detach(thread);
		else if (!strcmp(c, "crash"))
			crashes = 1, load(NULL);
		else
			sem_post(&go);
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <semaphore.h>
extern sem_t go;
extern int crashes;
extern int *volatile null;
static int pre_patch(struct klp_object *obj)
{
	if (crashes)
		*null = 1;
	sem_wait(&go);
	return 0;
}
static void pre_unpatch(struct klp_object *obj)
{
	if (obj->mod->state == MODULE_STATE_GOING)
		sem_wait(&go);
}
static int new_answer(int x) { return x + 100; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .pre_unpatch = pre_unpatch } }, {}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say load
//@ until ugraft status --pid $PID | grep -q callback
//@ $ ugraft status --pid $PID
//> process $host (host)
//>  patch  version  state    objects                  functions
//>  fix             enabled  libplug.so (not loaded)  answer
//> thread [..] (loads) has been in the pre_patch callback of patch 'fix' for the library 'libplug.so' for [..]: until it returns no thread can load or unload another, and no command can change anything
//> no patch is in transition
//@ $ ugraft disable fix --pid $PID --timeout 100ms
//! ugraft: patch 'fix' could not make its transition in the time given and was reversed: thread [..] (loads): cannot be stopped: it has been in the pre_patch callback of patch 'fix' for the library 'libplug.so' for [..], and holds the loader's lock, for [..]
//= 5
//@ say go
//@ expect loaded, 101
//@ until ugraft status --pid $PID | grep -q callback
//@ $ ugraft status --pid $PID --json | sed -n '/"hook"/,/}/s/^ *//p'
//> "hook": {
//> "callback": "pre_unpatch",
//> "comm": "loads",
//> "object": "libplug.so",
//> "patch": "fix",
//> "since_ns": [..],
//> "tid": [..]
//> },
//@ $ ugraft load fix.o --pid $PID --timeout 100ms
//! ugraft: thread [..] (loads) did not stop in time: it has been in the pre_unpatch callback of patch 'fix' for the library 'libplug.so' for [..], and holds the loader's lock; try again later
//= 1
//@ say go
//@ expect unloaded
//@ $ ugraft status --pid $PID | tail -n 1
//> no patch is in transition
//@ say crash
//@ expect handler of signal 11
//@ wait
//= 3
