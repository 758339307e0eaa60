// A patch adds a field to a structure of the running program, which it must not enlarge, by shadow variables: under load, from many
// threads. A cumulative patch takes the data over, which states say; one that does not know the state is refused.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
enum { ACCOUNTS = 200, THREADS = 4 };
struct account { long balance; };
struct account accounts[ACCOUNTS];
PATCHABLE long deposit(struct account *a, long amount) { return __atomic_add_fetch(&a->balance, amount, __ATOMIC_RELAXED); }
/* How often an account was used is what the program forgot to count. */
PATCHABLE long uses(struct account *a) { (void)a; return -1; }
static atomic_int stop;
static void *work(void *arg)
{
	unsigned n = (unsigned)(long)arg;
	while (!stop) {
		for (int i = 0; i < 20; i++)
			deposit(&accounts[(n = n * 1664525 + 1013904223) % ACCOUNTS], 1);
		usleep(100);
	}
	return arg;
}
int main(void)
{
	pthread_t threads[THREADS];
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	tell("ready");
	for (const char *c; (c = command());) {
		long counted = 0;
		if (!strcmp(c, "stop")) {
			stop = 1;
			for (int i = 0; i < THREADS; i++)
				pthread_join(threads[i], NULL);
		}
		for (int i = 0; i < ACCOUNTS; i++)
			counted += uses(&accounts[i]) > 0;
		tell("%ld counted", counted);
		if (!strcmp(c, "check")) {
			long before = uses(&accounts[0]);
			for (int i = 0; i < 1000; i++)
				deposit(&accounts[0], 0);
			tell("%ld uses", uses(&accounts[0]) - before);
		}
	}
	return 0;
}

//@ file count.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
#include <ugraft/shadow.h>
#ifndef VERSION
#define VERSION 1
#endif
#ifndef STATE
#define STATE 7
#endif
#define USES 42
struct account { long balance; };
static int begin(void *account, void *data, void *first)
{
	*(long *)data = (long)first;
	return 0;
}
static long deposit(struct account *a, long amount)
{
	long *uses = klp_shadow_get_or_alloc(a, USES, sizeof *uses, GFP_KERNEL, begin, (void *)0);
	if (uses)
		__atomic_add_fetch(uses, 1, __ATOMIC_RELAXED);
	return __atomic_add_fetch(&a->balance, amount, __ATOMIC_RELAXED);
}
static long uses(struct account *a)
{
	long *uses = klp_shadow_get(a, USES);
	return uses ? *uses : 0;
}
static struct klp_state states[] = { { .id = STATE, .version = VERSION }, {} };
static struct klp_func funcs[] = {
	{ .old_name = "deposit", .new_func = deposit }, { .old_name = "uses", .new_func = uses }, {}
};
static int pre_patch(struct klp_object *obj);
static void post_patch(struct klp_object *obj);
static void post_unpatch(struct klp_object *obj);
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch, .post_unpatch = post_unpatch } },
	{}
};
static struct klp_patch patch = { .objs = objs, .states = states, .replace = true };
KLP_PATCH(patch);
static int pre_patch(struct klp_object *obj)
{
	struct klp_state *previous = klp_get_prev_state(STATE);
	klp_get_state(&patch, STATE)->data = (void *)patch.objs;
	pr_info("version %u after %u\n", klp_get_state(&patch, STATE)->version, previous ? previous->version : 0);
	return klp_get_state(&patch, STATE + 1) ? -22 : 0;
}
static void post_patch(struct klp_object *obj)
{
	int duplicate;
	pr_info("a shadow of %s\n", klp_shadow_alloc(&duplicate, 1, 8, GFP_KERNEL, 0, 0) ? "its own" : "nobody");
	pr_info("a duplicate is %s\n", klp_shadow_alloc(&duplicate, 1, 8, GFP_KERNEL, 0, 0) ? "made" : "refused");
	klp_shadow_free(&duplicate, 1, 0);
}
static void post_unpatch(struct klp_object *obj) { klp_shadow_free_all(USES, 0); }
//@ build for v in 1 2; do cc -c -O2 -fPIC -I$SDK -DVERSION=$v count.c -o count$v.o || exit 1; done; cc -c -O2 -fPIC -I$SDK -DSTATE=8 count.c -o other.o

//@ start target
//@ expect ready
//@ say x
//@ expect 0 counted
//@ $ ugraft load count1.o --pid $PID --quiet
//@ say check
//@ expect [..] counted
//@ $ ugraft load other.o --pid $PID
//! ugraft: patch 'other' is not compatible with the installed patch 'count1': it would replace the owner of state 7 (version 1) without knowing that state; use a patch that knows it
//= 6
//@ $ ugraft load count2.o --pid $PID
//> patch 'count2': enabled; replaced count1 ([..]
//@ $ ugraft unload count1 --pid $PID --quiet
//@ $ ugraft load count1.o --pid $PID
//! ugraft: patch 'count1' is not compatible with the installed patch 'count2': it knows state 7 in version 1, installed is version 2; use a patch that knows version 2
//= 6
//@ $ ugraft log --pid $PID | grep -v starting | grep -v livepatch: | sed 's/[^ ]* //' | sed 's/0x[0-9a-f]*/ADDRESS/'
//> version 1 after 0
//> a shadow of its own
//> warning: Duplicate shadow variable <[..], 1>
//> a duplicate is refused
//> version 2 after 1
//> a shadow of its own
//> warning: Duplicate shadow variable <[..], 1>
//> a duplicate is refused
//@ say stop
//@ expect 200 counted
//@ say check
//@ expect 1000 uses
//@ $ ugraft disable count2 --pid $PID --quiet
//@ say x
//@ expect 0 counted
//@ $ ugraft enable count2 --pid $PID --quiet
//@ say x
//@ expect 0 counted
//@ say check
//@ expect 1000 uses
//@ $ ugraft disable count2 --pid $PID --quiet && ugraft unload count2 --pid $PID --quiet
//@ clean
