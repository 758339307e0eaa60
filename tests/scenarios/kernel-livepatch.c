// Sources written for the kernel compile as patches and as a library, and behave as there: the tests of the kernel's callbacks that
// need no library to come or go while a patch is in. The log is the kernel's, line for line.

//@ file host.c
// Has libraries where the kernel has modules.
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());)
		if (!dlopen(c, RTLD_NOW))
			tell("%s", dlerror());
		else
			tell("loaded");
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

#define CALLBACKS {						\
		.pre_patch = pre_patch_callback,		\
		.post_patch = post_patch_callback,		\
		.pre_unpatch = pre_unpatch_callback,		\
		.post_unpatch = post_unpatch_callback,		\
	}

static struct klp_object objs[] = {
	{ .name = NULL, .funcs = no_funcs, .callbacks = CALLBACKS },
	{ .name = "klp_mod", .funcs = no_funcs, .callbacks = CALLBACKS },
	{ .name = "klp_busy", .funcs = no_funcs, .callbacks = CALLBACKS },
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
//@ build cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_demo.c && cp klp_demo.c klp_demo2.c && cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_demo2.c

// The module is there before the patch.
//@ start host
//@ expect ready
//@ say ./klp_mod.so
//@ expect loaded
//@ $ ugraft load klp_demo.o --pid $PID --quiet && ugraft disable klp_demo --pid $PID --quiet
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

// A pre_patch callback refuses.
//@ $ ugraft load klp_demo.o pre_patch_ret=-19 --disabled --pid $PID --quiet
//@ $ ugraft enable klp_demo --pid $PID
//! ugraft: the pre_patch callback of patch 'klp_demo' for the main executable refused with -19; the patch was not enabled
//= 1
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> warning: livepatch: pre-patch callback failed for object 'vmlinux'
//> warning: livepatch: failed to enable patch 'klp_demo'
//> livepatch: 'klp_demo': canceling patching transition, going to unpatch
//> livepatch: 'klp_demo': completing unpatching transition
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean
//@ close
//@ wait
//! klp_mod: klp_mod_init
//! klp_mod: klp_mod_exit

// The module is not there.
//@ start host
//@ expect ready
//@ $ ugraft load klp_demo.o --pid $PID --quiet && ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//> livepatch: 'klp_demo': initializing unpatching transition
//> klp_demo: pre_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': starting unpatching transition
//> livepatch: 'klp_demo': completing unpatching transition
//> klp_demo: post_unpatch_callback: vmlinux
//> livepatch: 'klp_demo': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet
//@ clean

// Two patches, each with callbacks of its own.
//@ $ ugraft load klp_demo.o --pid $PID --quiet && ugraft load klp_demo2.o --pid $PID --quiet && ugraft disable klp_demo2 --pid $PID --quiet && ugraft disable klp_demo --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //' | grep -v livepatch:
//> klp_demo: pre_patch_callback: vmlinux
//> klp_demo: post_patch_callback: vmlinux
//> klp_demo2: pre_patch_callback: vmlinux
//> klp_demo2: post_patch_callback: vmlinux
//> klp_demo2: pre_unpatch_callback: vmlinux
//> klp_demo2: post_unpatch_callback: vmlinux
//> klp_demo: pre_unpatch_callback: vmlinux
//> klp_demo: post_unpatch_callback: vmlinux
//@ $ ugraft unload klp_demo --pid $PID --quiet && ugraft unload klp_demo2 --pid $PID --quiet
//@ clean

// The second replaces the first, none of whose callbacks run then.
//@ $ ugraft load klp_demo.o --pid $PID --quiet
//@ $ ugraft load klp_demo2.o replace=1 --pid $PID
//> patch 'klp_demo2': enabled; replaced klp_demo ([..]
//@ $ ugraft disable klp_demo2 --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> livepatch: enabling patch 'klp_demo'
//> livepatch: 'klp_demo': initializing patching transition
//> klp_demo: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo': starting patching transition
//> livepatch: 'klp_demo': completing patching transition
//> klp_demo: post_patch_callback: vmlinux
//> livepatch: 'klp_demo': patching complete
//> livepatch: enabling patch 'klp_demo2'
//> livepatch: 'klp_demo2': initializing patching transition
//> klp_demo2: pre_patch_callback: vmlinux
//> livepatch: 'klp_demo2': starting patching transition
//> livepatch: 'klp_demo2': completing patching transition
//> klp_demo2: post_patch_callback: vmlinux
//> livepatch: 'klp_demo2': patching complete
//> livepatch: 'klp_demo2': initializing unpatching transition
//> klp_demo2: pre_unpatch_callback: vmlinux
//> livepatch: 'klp_demo2': starting unpatching transition
//> livepatch: 'klp_demo2': completing unpatching transition
//> klp_demo2: post_unpatch_callback: vmlinux
//> livepatch: 'klp_demo2': unpatching complete
//@ $ ugraft unload klp_demo --pid $PID --quiet && ugraft unload klp_demo2 --pid $PID --quiet
//@ clean
