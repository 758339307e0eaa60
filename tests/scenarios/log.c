// Patches write messages, as kernel code does; they come in the log in their place among those of the patching itself.

//@ file target.c
#include "target.h"
PATCHABLE int answer(int n) { return n; }
static void *work(void *arg)
{
	for (int i = 0; i < 1000; i++)
		answer((int)(long)arg);
	return arg;
}
int main(void)
{
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "storm")) {
			pthread_t threads[8];
			for (long i = 0; i < 8; i++)
				pthread_create(&threads[i], NULL, work, (void *)(i + 2));
			for (int i = 0; i < 8; i++)
				pthread_join(threads[i], NULL);
		}
		tell("%d", answer(1));
	}
	return 0;
}

//@ file fix.c
#define pr_fmt(fmt) "fix: " fmt
#include <ugraft/livepatch.h>
#include <ugraft/log.h>
static int answer(int n)
{
	pr_info("answer(%d)\n", n);
	return n + 41;
}
static int pre_patch(struct klp_object *obj)
{
	char *volatile nothing = NULL;
	pr_info("pre_patch: %s\n", obj->name ? obj->name : "vmlinux");
	pr_debug("integers %d %5d|%-5d|%05d %+d % d %u %hhd %hd %ld %lld %zu", -1, 42, 42, 42, 42, 42, ~0u, 0x1ff, 0x1ffff, -2l,
		 1ll << 62, sizeof(long));
	pr_debug("bases %x %X %#x %#o %08lx %.3d %p", 0xbeef, 0xbeef, 0xbeef, 8, 0xbeeful, 7, (void *)0x1234);
	pr_debug("strings %s|%5s|%-5s|%.2s|%.*s|%c|%s|%%", "abc", "abc", "abc", "abc", 1, "abc", 'x', nothing);
	pr_warn("a warning");
	pr_err("%s", "an error\twith\033control characters");
	printk("without a level\n");
	return 0;
}
static void post_patch(struct klp_object *obj) { pr_notice("post_patch\n"); }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = answer }, {} };
static struct klp_object objs[] = {
	{ .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch } },
	{}
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
//@ build cc -c -O2 -Wall -Werror -fPIC -I$SDK fix.c

//@ start target
//@ expect ready
//@ say x
//@ expect 1
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say x
//@ expect 42
//@ $ ugraft log --pid $PID
//> [..] livepatch: enabling patch 'fix'
//> [..] livepatch: 'fix': initializing patching transition
//> [..] fix: pre_patch: vmlinux
//> [..] fix: integers -1    42|42   |00042 +42  42 4294967295 -1 -1 -2 4611686018427387904 8
//> [..] fix: bases beef BEEF 0xbeef 010 0000beef 007 0x1234
//> [..] fix: strings abc|  abc|abc  |ab|a|x|(null)|%
//> [..] warning: fix: a warning
//> [..] error: fix: an error with control characters
//> [..] warning: without a level
//> [..] livepatch: 'fix': starting patching transition
//> [..] livepatch: 'fix': completing patching transition
//> [..] fix: post_patch
//> [..] livepatch: 'fix': patching complete
//> [..] fix: answer(1)
//@ $ ugraft log --pid $PID --level warn
//> [..] warning: fix: a warning
//> [..] error: fix: an error with control characters
//> [..] warning: without a level

// Many threads at once; the ring keeps the last messages, each whole.
//@ say storm
//@ expect 42
//@ $ ugraft log --pid $PID | grep -c 'fix: answer([0-9])$'
//> [..]
//@ $ ugraft log --pid $PID | grep 'fix:' | grep -v 'fix: answer([0-9])$'
//= 1
//@ $ ugraft disable fix --pid $PID --quiet && ugraft unload fix --pid $PID --quiet
//@ say x
//@ expect 1
//@ clean
