// A leaf function keeps values in the 128 bytes below its stack pointer, which nobody else may touch. The target writes a
// pattern there and looks whether it stays, in a loop, while patches come and go and while its thread is the one that
// maps memory for them.

//@ file target.c
#include "target.h"
#include <stdatomic.h>
PATCHABLE int f(void) { return 1; }
static atomic_long rounds;

/* Fills the red zone, waits a while in user mode, compares. Without a call, the red zone is this function's own. */
static __attribute__((noinline)) long damaged(unsigned long pattern)
{
	long bad;
	__asm__ volatile(
		"	lea -128(%%rsp), %%rcx\n"
		"1:	mov %1, (%%rcx)\n"
		"	add $8, %%rcx\n"
		"	cmp %%rsp, %%rcx\n"
		"	jb 1b\n"
		"	mov $20000, %%edx\n"
		"2:	dec %%edx\n"
		"	jnz 2b\n"
		"	xor %0, %0\n"
		"	lea -128(%%rsp), %%rcx\n"
		"3:	cmp %1, (%%rcx)\n"
		"	je 4f\n"
		"	inc %0\n"
		"4:	add $8, %%rcx\n"
		"	cmp %%rsp, %%rcx\n"
		"	jb 3b\n"
		: "=&r"(bad)
		: "r"(pattern)
		: "rcx", "rdx", "cc", "memory");
	return bad;
}

static void *guard(void *arg)
{
	for (unsigned long i = 1;; i++) {
		long bad = damaged(i * 0x9e3779b97f4a7c15ul);
		if (bad)
			tell("red zone damaged in %ld words", bad);
		f();
		rounds++;
	}
	return arg;
}
int main(void)
{
	pthread_t threads[3];
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, guard, NULL);
	tell("ready");
	while (command()) {
		long until = rounds + 1000;
		while (rounds < until)
			usleep(1000);
		tell("f %d", f());
	}
	_exit(0);
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int f(void) { return 2; }
static struct klp_func funcs[] = { { .old_name = "f", .new_func = f }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say ?
//@ expect f 1
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect f 2
//@ $ for i in 1 2 3 4 5; do ugraft disable fix --pid $PID --timeout 60s --quiet && ugraft enable fix --pid $PID --timeout 60s --quiet || exit; done
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect f 1
//@ never red zone damaged [..]
//@ alive
//@ clean
//@ close
//@ wait
