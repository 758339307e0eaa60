// A program of a later version manages what an earlier one has put into a process, the hook in its loader included; an earlier one tells
// what a later one has done, and changes nothing of it. The later one is this one with more in everything that the two share.

//@ needs ugraft-next
//@ file libplug.c
__attribute__((noinline)) int answer(int x) { __asm__ volatile(""); return x + 1; }
int both(int x) { return answer(x) * 1000; }

//@ file host.c
#include "target.h"
#include <dlfcn.h>
static void *lib;
PATCHABLE int own(void) { return 0; }
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "load"))
			lib = dlopen("./libplug.so", RTLD_NOW), tell(lib ? "loaded" : "%s", dlerror());
		else if (!strcmp(c, "unload"))
			tell("unloaded %d", dlclose(lib));
		else if (!strcmp(c, "own"))
			tell("own %d", own());
		else
			tell("both %d", ((int (*)(int))dlsym(lib, "both"))(atoi(c)));
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file fix.c
#include <ugraft/livepatch.h>
#include <linux/printk.h>
static int pre_patch(struct klp_object *obj) { pr_info("pre_patch of fix\n"); return 0; }
static void post_unpatch(struct klp_object *obj) { pr_info("post_unpatch of fix\n"); }
static int new_answer(int x) { return x + 100; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = {
	{ .name = "libplug.so", .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file fix2.c
#include <ugraft/livepatch.h>
static int new_answer(int x) { return x + 200; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = new_answer }, {} };
static struct klp_object objs[] = { { .name = "libplug.so", .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file plain.c
#include <ugraft/livepatch.h>
static int new_own(void) { return 1; }
static struct klp_func funcs[] = { { .old_name = "own", .new_func = new_own }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

// The earlier one's hook patches a library; the later one tells of it.
//@ start host
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say load
//@ expect loaded
//@ say 7
//@ expect both 107000
//@ $ ugraft-next list --pid $PID
//>  patch  version  state    objects     functions
//>  fix             enabled  libplug.so  answer
//@ $ ugraft-next log --pid $PID | tail -n 3 | sed 's/[^ ]* //'
//> livepatch: 'fix': patching complete
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> pre_patch of fix

// It adds a patch of its own. The earlier hook works by the later one's table, and the earlier program reads it.
//@ $ ugraft-next load fix2.o --pid $PID --quiet
//@ say 7
//@ expect both 207000
//@ say unload
//@ expect unloaded 0
//@ say load
//@ expect loaded
//@ say 7
//@ expect both 207000
//@ $ ugraft list --pid $PID
//>  patch  version  state    objects     functions
//>  fix             enabled  libplug.so  answer
//>  fix2            enabled  libplug.so  answer
//@ $ ugraft disable fix2 --pid $PID --quiet && ugraft-next unload fix2 --pid $PID --quiet
//@ say 7
//@ expect both 107000
//@ say unload
//@ expect unloaded 0
//@ say load
//@ expect loaded
//@ $ ugraft-next disable fix --pid $PID --quiet
//@ say 7
//@ expect both 8000
//@ $ ugraft-next unload fix --pid $PID --quiet
//@ clean
//@ say unload
//@ expect unloaded 0

// Nothing has happened since the earlier one was there, and its table is the one that counts when the later one stops the process.
//@ say load
//@ expect loaded
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say 7
//@ expect both 107000
//@ $ ugraft-next disable fix --pid $PID --quiet
//@ say 7
//@ expect both 8000
//@ $ ugraft-next unload fix --pid $PID --quiet
//@ clean
//@ say unload
//@ expect unloaded 0

// What the later one has put in.
//@ $ ugraft-next load fix.o --pid $PID --quiet
//@ say load
//@ expect loaded
//@ say 7
//@ expect both 107000
//@ $ ugraft status --pid $PID
//> process $host (host)
//>  patch  version  state    objects     functions
//>  fix             enabled  libplug.so  answer
//> no patch is in transition
//@ $ ugraft list --pid $PID
//>  patch  version  state    objects     functions
//>  fix             enabled  libplug.so  answer
//@ $ ugraft log --pid $PID | tail -n 3 | sed 's/[^ ]* //'
//> livepatch: 'fix': patching complete
//> livepatch: applying patch 'fix' to loading module 'libplug.so'
//> pre_patch of fix
//@ $ ugraft disable fix --pid $PID
//! ugraft: process $host was patched by a later version, ugraft 0.1.0+next: change it with that one; `status`, `list` and `log` of this one tell what they know
//= 6
//@ $ ugraft unload fix --pid $PID --json
//> {
//>   "command": "unload",
//>   "error": {
//>     "kind": "later_version",
//>     "message": "process $host was patched by a later version, ugraft 0.1.0+next: change it with that one; `status`, `list` and `log` of this one tell what they know"
//>   },
//>   "exit_code": 6,
//>   "ok": false,
//>   "schema": "ugraft/1"
//> }
//= 6
//@ $ ugraft load fix2.o --pid $PID
//! ugraft: process $host was patched by a later version, ugraft 0.1.0+next: change it with that one; `status`, `list` and `log` of this one tell what they know
//= 6
//@ $ ugraft reverse --pid $PID
//! ugraft: process $host was patched by a later version, ugraft 0.1.0+next: change it with that one; `status`, `list` and `log` of this one tell what they know
//= 6
//@ say unload
//@ expect unloaded 0
//@ say load
//@ expect loaded
//@ say 7
//@ expect both 107000
//@ $ ugraft-next disable fix --pid $PID --quiet && ugraft-next unload fix --pid $PID --quiet
//@ say 7
//@ expect both 8000
//@ clean

// Where no code of another version is in the target, either manages what the other has done.
//@ $ ugraft-next load plain.o --pid $PID --quiet
//@ say own
//@ expect own 1
//@ $ ugraft disable plain --pid $PID --quiet
//@ say own
//@ expect own 0
//@ $ ugraft-next enable plain --pid $PID --quiet
//@ $ ugraft disable plain --pid $PID --quiet && ugraft unload plain --pid $PID --quiet
//@ say own
//@ expect own 0
//@ clean
