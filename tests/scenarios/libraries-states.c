// Callbacks for a library that comes and goes see the states of older patches, as callbacks that a tool has run do.

//@ file libplug.c
int answer(int x) { __asm__ volatile("nop; nop; nop"); return x + 1; }
//@ build cc -O2 -g -shared -fPIC libplug.c -o libplug.so

//@ file host.c
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	void *lib = NULL;
	tell("ready");
	while (command()) {
		if (lib)
			tell("unloaded %d", dlclose(lib)), lib = NULL;
		else
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
#include <ugraft/shadow.h>
static struct klp_state states[] = { { .id = 7, .version = VERSION }, {} };
static int previous(void)
{
	struct klp_state *state = klp_get_prev_state(7);
	return state ? (int)state->version : -1;
}
static int pre_patch(struct klp_object *obj) { pr_info("%d: pre_patch, before it %d\n", VERSION, previous()); return 0; }
static void post_unpatch(struct klp_object *obj) { pr_info("%d: post_unpatch, before it %d\n", VERSION, previous()); }
static int new_answer(int x) { return x + VERSION; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } }, {}
};
static struct klp_patch patch = { .objs = objs, .states = states };
KLP_PATCH(patch);
//@ build for i in 1 2 3; do cc -c -O2 -fPIC -I$SDK -DVERSION=$i fix.c -o fix$i.o; done

//@ file news.sh
ugraft log --pid $PID | sed 's/[^ ]* //' | grep 'before it' | tail -n $1

//@ start host
//@ expect ready
//@ $ for i in 1 2 3; do ugraft load fix$i.o --pid $PID --quiet; done
//@ say load
//@ expect loaded
//@ $ sh news.sh 3
//> 1: pre_patch, before it -1
//> 2: pre_patch, before it 1
//> 3: pre_patch, before it 2
//@ say unload
//@ expect unloaded 0
//@ $ sh news.sh 3
//> 1: post_unpatch, before it -1
//> 2: post_unpatch, before it 1
//> 3: post_unpatch, before it 2

// What is disabled does not count, nor does what is newer; and callbacks that the tool runs see the same.
//@ say load
//@ expect loaded
//@ $ ugraft disable fix2 --ignore-order --pid $PID --quiet
//@ $ sh news.sh 1
//> 2: post_unpatch, before it 1
//@ say unload
//@ expect unloaded 0
//@ $ sh news.sh 2
//> 1: post_unpatch, before it -1
//> 3: post_unpatch, before it 1
//@ $ ugraft disable fix1 --ignore-order --pid $PID --quiet
//@ say load
//@ expect loaded
//@ $ ugraft disable fix3 --pid $PID --quiet
//@ $ sh news.sh 2
//> 3: pre_patch, before it -1
//> 3: post_unpatch, before it -1
