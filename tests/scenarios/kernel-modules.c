// More of what sources for the kernel are made of: a target module that has work done by another thread, at once and after a time, waits for
// it, and keeps a list; a patch of its functions with lists, shadow variables with constructor and destructor, and states that
// its successor takes over. All compile as they are.

//@ file host.c
#include "target.h"
#include <dlfcn.h>
int main(void)
{
	void *module = NULL;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "go") && dlclose(module))
			tell("%s", dlerror());
		else if (!strcmp(c, "come") && !(module = dlopen("./klp_busy.so", RTLD_NOW)))
			tell("%s", dlerror());
		else if (!strcmp(c, "work"))
			((void (*)(int))dlsym(module, "klp_work"))(7);
		tell("done");
	}
	return 0;
}
//@ build cc -O2 -g -rdynamic -pthread -I$SUPPORT host.c -o host

//@ file klp_busy.c
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/sched.h>
#include <linux/workqueue.h>
#include <linux/delay.h>
#include <linux/slab.h>

struct item {
	struct list_head list;
	int number;
};

static LIST_HEAD(items);
static void at_once_func(struct work_struct *work);
static DECLARE_WORK(at_once, at_once_func);
static void again_func(struct work_struct *work);
static DECLARE_DELAYED_WORK(again, again_func);
static DECLARE_COMPLETION(begun);
static int rounds;

static noinline struct item *item_alloc(int number)
{
	struct item *item = kzalloc(sizeof(*item), GFP_KERNEL);

	if (item)
		item->number = number;
	return item;
}

static noinline void item_free(struct item *item)
{
	pr_info("item %d\n", item->number);
	kfree(item);
}

static void at_once_func(struct work_struct *work)
{
	pr_info("%s enter\n", __func__);
	complete(&begun);
	msleep(20);
	pr_info("%s exit\n", __func__);
}

static void again_func(struct work_struct *work)
{
	struct delayed_work *self = to_delayed_work(work);
	struct item *item = item_alloc(++rounds);

	if (item)
		list_add_tail(&item->list, &items);
	if (rounds < 3)
		schedule_delayed_work(self, msecs_to_jiffies(10));
}

void klp_work(int number);
void klp_work(int number)
{
	struct item *item = item_alloc(number);

	if (item)
		item_free(item);
}
EXPORT_SYMBOL(klp_work);

static int klp_busy_init(void)
{
	unsigned long start = jiffies;

	schedule_work(&at_once);
	wait_for_completion(&begun);
	pr_info("%s\n", __func__);
	schedule_delayed_work(&again, msecs_to_jiffies(10));
	flush_work(&at_once);
	flush_work(&again.work);
	if (time_before(jiffies, start + msecs_to_jiffies(30)))
		pr_err("it was not waited for\n");
	return 0;
}

static void klp_busy_exit(void)
{
	struct item *item, *after;

	schedule_delayed_work(&again, msecs_to_jiffies(1000000));
	if (!cancel_delayed_work_sync(&again))
		pr_err("it was not waiting\n");
	list_for_each_entry_safe(item, after, &items, list) {
		list_del(&item->list);
		item_free(item);
	}
	pr_info("%s, %s\n", __func__, list_empty(&items) ? "empty" : "items are left");
}

module_init(klp_busy_init);
module_exit(klp_busy_exit);
MODULE_LICENSE("GPL");
//@ build cc -shared -O2 -fPIC -Wall -Wextra -Wno-unused-parameter -Werror -I$SDK -Wl,-soname,klp_busy klp_busy.c -o klp_busy.so
//@ build clang -shared -O2 -fPIC -Wall -Wextra -Wno-unused-parameter -Werror -I$SDK -Wl,-soname,klp_busy klp_busy.c -o clang.so

//@ file klp_fix.c
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/livepatch.h>
#include <linux/slab.h>

enum { SHADOW = 0x1234, STATE = 1 };

struct item {
	struct list_head list;
	int number;
};

static int shadow_ctor(void *obj, void *shadow_data, void *ctor_data)
{
	int **shadow = shadow_data, **value = ctor_data;

	if (!value)
		return -EINVAL;
	*shadow = *value;
	return 0;
}

static void shadow_dtor(void *obj, void *shadow_data)
{
	int **shadow = shadow_data;

	pr_info("%s: item %d had %d\n", __func__, ((struct item *)obj)->number, **shadow);
	kfree(*shadow);
}

static struct item *patched_item_alloc(int number)
{
	struct item *item = kzalloc(sizeof(*item), GFP_KERNEL);
	int *value = kmalloc(sizeof(*value), GFP_ATOMIC);

	if (!item || !value)
		goto out;
	item->number = number;
	*value = 10 * number;
	if (klp_shadow_alloc(item, SHADOW, sizeof(value), GFP_KERNEL, shadow_ctor, &value))
		return item;
out:
	kfree(value);
	kfree(item);
	return NULL;
}

static void patched_item_free(struct item *item)
{
	if (klp_shadow_get(item, SHADOW))
		klp_shadow_free(item, SHADOW, shadow_dtor);
	else
		pr_info("item %d has no shadow\n", item->number);
	kfree(item);
}

static struct klp_func funcs[] = {
	{
		.old_name = "item_alloc",
		.new_func = patched_item_alloc,
	}, {
		.old_name = "item_free",
		.new_func = patched_item_free,
	}, { }
};

static struct klp_patch patch;

static int pre_patch(struct klp_object *obj)
{
	struct klp_state *state = klp_get_state(&patch, STATE), *before = klp_get_prev_state(STATE);

	if (!state)
		return -EINVAL;
	state->data = before ? before->data : kzalloc(sizeof(int), GFP_KERNEL);
	if (!state->data)
		return -ENOMEM;
	pr_info("%s: %d before\n", __func__, (*(int *)state->data)++);
	return 0;
}

static struct klp_object objs[] = {
	{
		.name = "klp_busy",
		.funcs = funcs,
		.callbacks = { .pre_patch = pre_patch },
	}, { }
};

static struct klp_state states[] = {
	{ .id = STATE, .version = 1 }, { }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.states = states,
	.replace = true,
};

static int klp_fix_init(void)
{
	return klp_enable_patch(&patch);
}

static void klp_fix_exit(void)
{
}

module_init(klp_fix_init);
module_exit(klp_fix_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
//@ build cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_fix.c && cp klp_fix.c klp_fix2.c && cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_fix2.c
//@ build clang -c -O2 -fPIC -Wall -Werror -I$SDK klp_fix.c -o clang.o

// One that patches nothing, and uses what patches use.
//@ file klp_shadow.c
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>

static int klp_shadow_init(void)
{
	int thing, *shadow;

	if (klp_shadow_get(&thing, 1))
		return -EEXIST;
	shadow = klp_shadow_get_or_alloc(&thing, 1, sizeof(*shadow), GFP_KERNEL, NULL, NULL);
	if (!shadow)
		return -ENOMEM;
	pr_info("%s: %d, %s\n", __func__, *shadow, shadow == klp_shadow_get(&thing, 1) ? "found" : "lost");
	klp_shadow_free_all(1, NULL);
	pr_info("%s: %s\n", __func__, klp_shadow_get(&thing, 1) ? "still there" : "gone");
	return 0;
}

static void klp_shadow_exit(void)
{
}

module_init(klp_shadow_init);
module_exit(klp_shadow_exit);
MODULE_LICENSE("GPL");
//@ build cc -c -O2 -fPIC -Wall -Werror -I$SDK klp_shadow.c
//@ build clang -c -O2 -fPIC -Wall -Werror -I$SDK klp_shadow.c -o clang.o
//@ needs clang

//@ start host
//@ expect ready
//@ say come
//@ expect done
//@ $ ugraft load klp_fix.o --pid $PID --quiet
//@ say work
//@ expect done
//@ $ ugraft load klp_fix2.o --pid $PID --quiet
//@ say work
//@ expect done
//@ $ ugraft disable klp_fix2 --pid $PID --quiet
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //' | grep -v livepatch:
//> klp_fix: pre_patch: 0 before
//> klp_fix: shadow_dtor: item 7 had 70
//> klp_fix2: pre_patch: 1 before
//> klp_fix2: shadow_dtor: item 7 had 70
//@ $ ugraft unload klp_fix --pid $PID --quiet && ugraft unload klp_fix2 --pid $PID --quiet
//@ clean
//@ say work
//@ expect done

//@ $ ugraft load klp_shadow.o --pid $PID
//> patch 'klp_shadow': enabled (1 thread, longest pause [..], [..] in all)
//@ $ ugraft log --pid $PID | sed 's/[^ ]* //'
//> klp_shadow: klp_shadow_init: 0, found
//> klp_shadow: klp_shadow_init: gone
//> livepatch: enabling patch 'klp_shadow'
//> livepatch: 'klp_shadow': initializing patching transition
//> livepatch: 'klp_shadow': starting patching transition
//> livepatch: 'klp_shadow': completing patching transition
//> livepatch: 'klp_shadow': patching complete
//@ $ ugraft disable klp_shadow --pid $PID --quiet && ugraft unload klp_shadow --pid $PID --quiet
//@ clean

//@ say go
//@ expect done
//@ close
//@ wait
//! klp_busy: at_once_func enter
//! klp_busy: klp_busy_init
//! klp_busy: at_once_func exit
//! klp_busy: item 7
//! klp_busy: item 1
//! klp_busy: item 2
//! klp_busy: item 3
//! klp_busy: klp_busy_exit, empty
