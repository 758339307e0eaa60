// A patch gives a structure of the running program a field that its layout has no room for, under load: threads make, use and give
// back orders all the time. The new constructor attaches the field as a shadow variable, the new destructor takes it away, and
// orders that live already get theirs when they are first used. A second patch replaces the first under load, takes the state over
// and adds to it; the fields that the first made live on in it. The last one off frees what is left. The program
// checks with every order that its field was never lost and never another's.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
enum { THREADS = 6, KEPT = 32 };
struct order { long number; long amount; };
static atomic_long numbers, made, given_back, wrong, rounds[THREADS];
static atomic_int stop;
PATCHABLE struct order *order_new(long amount)
{
	struct order *o = malloc(sizeof *o);
	*o = (struct order){ .number = ++numbers, .amount = amount };
	return o;
}
PATCHABLE void order_use(struct order *o) { o->amount++; }
PATCHABLE void order_free(struct order *o) { free(o); }
/* What the program can tell of an order's field: nothing (0), how often it was used since it has the field, or that it is not this
 * order's field (-1). */
PATCHABLE long order_uses(struct order *o) { (void)o; return 0; }
static void *work(void *number)
{
	struct order *kept[KEPT] = { 0 };
	long seen[KEPT] = { 0 };
	unsigned n = (unsigned)(long)number;
	while (!stop) {
		for (int i = 0; i < 50; i++) {
			unsigned k = (n = n * 1664525 + 1013904223) >> 16 & (KEPT - 1);
			if (!kept[k]) {
				kept[k] = order_new(n & 1023);
				seen[k] = 0;
				made++;
			} else if (n >> 28) {
				order_use(kept[k]);
				long uses = order_uses(kept[k]);
				/* It never goes back, but for when all fields are gone with the last patch, which is seen with every order (`more`). */
				if (uses < 0 || (uses != 0 && uses < seen[k]))
					wrong++;
				seen[k] = uses;
			} else {
				order_free(kept[k]);
				kept[k] = NULL;
				given_back++;
			}
		}
		rounds[(long)number]++;
		usleep(200);
	}
	for (int k = 0; k < KEPT; k++)
		if (kept[k])
			order_free(kept[k]), given_back++;
	return number;
}
int main(void)
{
	pthread_t threads[THREADS];
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	/* Lives all the time. */
	struct order *first = order_new(0);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "use"))
			order_use(first);
		else if (!strcmp(c, "stop")) {
			stop = 1;
			for (int i = 0; i < THREADS; i++)
				pthread_join(threads[i], NULL);
			tell("%ld lost", made - given_back);
		} else {
			/* In so many rounds each thread comes by each of its orders. */
			for (int i = 0; i < THREADS; i++)
				for (long before = rounds[i]; !stop && rounds[i] < before + 60;)
					usleep(1000);
		}
		tell("first %ld, wrong %ld", order_uses(first), (long)wrong);
	}
	return 0;
}

//@ file fields.c
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
#include <ugraft/shadow.h>
#include <stdlib.h>
#define FIELD 0x1001
#define STATE 5
struct order { long number; long amount; };
/* The field, and what can be said of all. The number is the order's whose field this is. */
struct field { long number; long uses; };
struct totals { long made, freed; };
static struct totals own, *totals = &own;
static void dtor(void *order, void *field)
{
	(void)order, (void)field;
	__atomic_add_fetch(&totals->freed, 1, __ATOMIC_RELAXED);
}
static int ctor(void *order, void *field, void *unused)
{
	(void)unused;
	*(struct field *)field = (struct field){ .number = ((struct order *)order)->number };
	__atomic_add_fetch(&totals->made, 1, __ATOMIC_RELAXED);
	return 0;
}
KLP_SYMBOL(numbers, "exe", "numbers", 1);
extern long numbers;
static struct order *order_new(long amount)
{
	struct order *o = malloc(sizeof *o);
	if (!o)
		abort();
	*o = (struct order){ .number = __atomic_add_fetch(&numbers, 1, __ATOMIC_SEQ_CST), .amount = amount };
	/* An order that was here before may have been given back by a thread which was not patched. */
	klp_shadow_free(o, FIELD, dtor);
	if (!klp_shadow_alloc(o, FIELD, sizeof(struct field), GFP_KERNEL, ctor, 0))
		abort();
	return o;
}
static void order_use(struct order *o)
{
	struct field *f = klp_shadow_get_or_alloc(o, FIELD, sizeof *f, GFP_KERNEL, ctor, 0);
	if (f)
		f->uses += VERSION;
	o->amount++;
}
static void order_free(struct order *o)
{
	klp_shadow_free(o, FIELD, dtor);
	free(o);
}
static long order_uses(struct order *o)
{
	struct field *f = klp_shadow_get(o, FIELD);
	return f ? f->number == o->number ? f->uses : -1 : 0;
}
static struct klp_func funcs[] = {
	{ .old_name = "order_new", .new_func = order_new },
	{ .old_name = "order_use", .new_func = order_use },
	{ .old_name = "order_free", .new_func = order_free },
	{ .old_name = "order_uses", .new_func = order_uses },
	{}
};
static struct klp_state states[] = { { .id = STATE, .version = VERSION }, {} };
static int pre_patch(struct klp_object *obj);
static void post_unpatch(struct klp_object *obj);
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_unpatch = post_unpatch } }, {}
};
static struct klp_patch patch = { .objs = objs, .states = states, .replace = true };
KLP_PATCH(patch);
static int pre_patch(struct klp_object *obj)
{
	struct klp_state *mine = klp_get_state(&patch, STATE), *before = klp_get_prev_state(STATE);
	(void)obj;
	/* The totals lie in a shadow variable, too, so that they outlive the patch that made them. */
	totals = klp_shadow_get_or_alloc(&numbers, FIELD + 1, sizeof *totals, GFP_KERNEL, 0, 0);
	if (!totals)
		return -12;
	pr_info("version %u after %u, with %s totals\n", mine->version, before ? before->version : 0,
		before && before->data == totals ? "the same" : "new");
	mine->data = totals;
	return 0;
}
static void post_unpatch(struct klp_object *obj)
{
	(void)obj;
	klp_shadow_free_all(FIELD, dtor);
	pr_info("%ld fields are left\n", totals->made - totals->freed);
	klp_shadow_free_all(FIELD + 1, 0);
}
//@ build for v in 1 2; do cc -c -O2 -Wall -Werror -fPIC -I$SDK -DVERSION=$v fields.c -o fields$v.o || exit 1; done

//@ start target
//@ expect ready
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft load fields1.o --pid $PID --timeout 60s --quiet
// An order that lived before has no field until it is used.
//@ say more
//@ expect first 0, wrong 0
//@ say use
//@ expect first 1, wrong 0
//@ $ ugraft load fields2.o --pid $PID --timeout 60s
//> patch 'fields2': enabled; replaced fields1 ([..]
//@ $ ugraft unload fields1 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 1, wrong 0
//@ say use
//@ expect first 3, wrong 0

// Back and forth.
//@ $ ugraft disable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft enable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft disable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft enable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft disable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft enable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ say use
//@ expect first 2, wrong 0
//@ say more
//@ expect first 2, wrong 0
//@ $ ugraft disable fields2 --pid $PID --timeout 60s --quiet
//@ say more
//@ expect first 0, wrong 0
//@ $ ugraft log --pid $PID | grep -v livepatch: | sed 's/[^ ]* //' | head -4
//> version 1 after 0, with new totals
//> version 2 after 1, with the same totals
//> 0 fields are left
//> version 2 after 0, with new totals
//@ $ ugraft unload fields2 --pid $PID --timeout 60s --quiet
//@ clean
//@ say stop
//@ expect 0 lost
//@ expect first 0, wrong 0
