// The tests of the kernel's callbacks in which a module comes or goes: libraries that a host loads and unloads while
// patches are in, with no tool around. The log is the kernel's, line for line.

//@ file host.c
// Has libraries where the kernel has modules.
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	void *module = NULL, *busy = NULL;

	tell("ready");
	for (const char *c; (c = command());) {
		void **which = strstr(c, "busy") ? &busy : &module;

		if (!strncmp(c, "insmod ", 7)) {
			*which = dlopen(c + 7, RTLD_NOW);
			tell(*which ? "inserted" : "%s", dlerror());
		} else if (*which) {
			tell("removed %d", dlclose(*which));
			*which = NULL;
		}
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file klp_mod.c
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/kernel.h>

static int klp_mod_init(void)
{
	pr_info("%s\n", __func__);
	return 0;
}

static void klp_mod_exit(void)
{
	pr_info("%s\n", __func__);
}

module_init(klp_mod_init);
module_exit(klp_mod_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A module to be patched");
//@ build cc -shared -O2 -fPIC -Wall -Werror -I$SDK -Wl,-soname,klp_mod klp_mod.c -o klp_mod.so

//@ file klp_busy.c
// Has a thread that is inside one of its functions until it is unloaded, or only for a moment.
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#ifndef BRIEFLY
#define BRIEFLY 0
#endif
static pthread_t thread;
static atomic_int over, inside;
__attribute__((noinline)) int busymod_work_func(void *nothing)
{
	inside = 1;
	while (!over && !BRIEFLY)
		usleep(1000);
	return 0;
}
static void *work(void *nothing) { busymod_work_func(nothing); return NULL; }
__attribute__((constructor)) static void init(void)
{
	pthread_create(&thread, NULL, work, NULL);
	while (!inside)
		usleep(1000);
}
__attribute__((destructor)) static void finish(void) { over = 1; pthread_join(thread, NULL); }
//@ build for i in 0 1; do cc -shared -O2 -fPIC -pthread -DBRIEFLY=$i -Wl,-soname,klp_busy klp_busy.c -o klp_busy$i.so; done

//@ file klp_demo.c
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/livepatch.h>

static int pre_patch_ret;
module_param(pre_patch_ret, int, 0644);
MODULE_PARM_DESC(pre_patch_ret, "what pre_patch returns");
static int replace;
module_param(replace, int, 0644);
MODULE_PARM_DESC(replace, "whether to replace the other patches");

static const char *const states[] = {
	[MODULE_STATE_LIVE]	= "[MODULE_STATE_LIVE] Normal state",
	[MODULE_STATE_COMING]	= "[MODULE_STATE_COMING] Full formed, running module_init",
	[MODULE_STATE_GOING]	= "[MODULE_STATE_GOING] Going away",
	[MODULE_STATE_UNFORMED]	= "[MODULE_STATE_UNFORMED] Still setting it up",
};

static void tell(const char *callback, struct klp_object *obj)
{
	char *copy = kzalloc(64, GFP_KERNEL);

	if (!copy)
		return;
	strncpy(copy, callback, 63);
	if (obj->mod)
		pr_info("%s: %s -> %s\n", copy, obj->mod->name, states[obj->mod->state]);
	else
		pr_info("%s: vmlinux\n", copy);
	kfree(copy);
}

static int pre_patch_callback(struct klp_object *obj)
{
	tell(__func__, obj);
	return pre_patch_ret;
}

static void post_patch_callback(struct klp_object *obj)
{
	tell(__func__, obj);
}

static void pre_unpatch_callback(struct klp_object *obj)
{
	tell(__func__, obj);
}

static void post_unpatch_callback(struct klp_object *obj)
{
	tell(__func__, obj);
}

static struct klp_func no_funcs[] = {
	{ }
};

static int patched_work_func(void *nothing)
{
	pr_info("%s\n", __func__);
	return 0;
}

static struct klp_func busy_funcs[] = {
	{ .old_name = "busymod_work_func", .new_func = patched_work_func, },
	{ }
};

#define CALLBACKS {						\
		.pre_patch = pre_patch_callback,		\
		.post_patch = post_patch_callback,		\
		.pre_unpatch = pre_unpatch_callback,		\
		.post_unpatch = post_unpatch_callback,		\
	}

static struct klp_object objs[] = {
	{ .name = NULL, .funcs = no_funcs, .callbacks = CALLBACKS },
	{ .name = "klp_mod", .funcs = no_funcs, .callbacks = CALLBACKS },
	{ .name = "klp_busy", .funcs = busy_funcs, .callbacks = CALLBACKS },
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
};

static int __init klp_demo_init(void)
{
	if (ARRAY_SIZE(objs) != 4)
		return -EINVAL;
	patch.replace = replace;
	return klp_enable_patch(&patch);
}

static void __exit klp_demo_exit(void)
{
}

module_init(klp_demo_init);
module_exit(klp_demo_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
//@ build cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_demo.c

//@ start host
//@ expect ready
// The module comes after the patch, and stays (the second of the tests).
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: post_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> klp_demo: pre_unpatch_callback: klp_mod -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean
//@ say rmmod klp_mod
//@ expect removed 0

// It is there before the patch, and goes (the third).
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ say rmmod klp_mod
//@ expect removed 0
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> klp_demo: post_patch_callback: klp_mod -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': patching complete
//> klp_demo: pre_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_mod'
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean

// It comes and goes (the fourth).
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ say rmmod klp_mod
//@ expect removed 0
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: post_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: pre_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_mod'
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean

// It is refused, and later let in (the seventh).
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ $ ugraft param klp_demo pre_patch_ret=-19 --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect ./klp_mod.so: the pre_patch callback of patch 'klp_demo' refused with -19
//@ $ ugraft param klp_demo pre_patch_ret=0 --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ say rmmod klp_mod
//@ expect removed 0
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> warning: livepatch: pre-patch callback failed for object 'klp_mod'
//> warning: livepatch: patch 'klp_demo' failed for module 'klp_mod', refusing to load module 'klp_mod'
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: post_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: pre_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_mod'
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean

// A function of a module changes, in which nobody is any more (the eighth).
//@ say insmod ./klp_busy1.so
//@ expect inserted
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ say rmmod klp_mod
//@ expect removed 0
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: pre_patch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> klp_demo: post_patch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': patching complete
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: post_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> klp_demo: pre_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_mod'
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> klp_demo: pre_unpatch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> klp_demo: post_unpatch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean
//@ say rmmod klp_busy
//@ expect removed 0

// One in which a thread stays, so that the transition stalls; a module comes and goes meanwhile (the ninth).
//@ say insmod ./klp_busy0.so
//@ expect inserted
//@ $ ugraft load klp_demo.o --pid $PID --keep --timeout 100ms --quiet >/dev/null 2>&1
//= 5
//@ say insmod ./klp_mod.so
//@ expect inserted
//@ say rmmod klp_mod
//@ expect removed 0
//@ $ ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: pre_patch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_mod'
//> klp_demo: post_unpatch_callback: klp_mod -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': reversing transition from patching to unpatching
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> klp_demo: post_unpatch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean

// The module that it stalls on goes: that is the end of it.
//@ $ ugraft load klp_demo.o --pid $PID --keep --timeout 100ms --quiet >/dev/null 2>&1
//= 5
//@ say rmmod klp_busy
//@ expect removed 0
//@ $ ugraft wait klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: pre_patch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_busy'
//> klp_demo: post_unpatch_callback: klp_busy -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//@ $ ugraft disable klp_demo --pid $PID --quiet && ugraft unload klp_demo --pid $PID --quiet
//@ clean

// One that comes while it stalls is refused, and the transition goes on without it.
//@ say insmod ./klp_busy0.so
//@ expect inserted
//@ $ ugraft load klp_demo.o --pid $PID --keep --timeout 100ms --quiet >/dev/null 2>&1
//= 5
//@ $ ugraft param klp_demo pre_patch_ret=-19 --pid $PID --quiet
//@ say insmod ./klp_mod.so
//@ expect ./klp_mod.so: the pre_patch callback of patch 'klp_demo' refused with -19
//@ say rmmod klp_busy
//@ expect removed 0
//@ $ ugraft wait klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: pre_patch_callback: klp_busy -> [MODULE_STATE_LIVE] Normal state
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: applying patch 'klp_demo' to loading module 'klp_mod'
//> klp_demo: pre_patch_callback: klp_mod -> [MODULE_STATE_COMING] Full formed, running module_init
//> warning: livepatch: pre-patch callback failed for object 'klp_mod'
//> warning: livepatch: patch 'klp_demo' failed for module 'klp_mod', refusing to load module 'klp_mod'
//> livepatch: reverting patch 'klp_demo' on unloading module 'klp_busy'
//> klp_demo: post_unpatch_callback: klp_busy -> [MODULE_STATE_GOING] Going away
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//@ $ ugraft disable klp_demo --pid $PID --quiet && ugraft unload klp_demo --pid $PID --quiet
//@ clean
