// A function that goes round by its own entry has values below its stack pointer then. While a transition runs its entry leads to a
// stub, which must leave them alone.

//@ file target.c
#include "target.h"
static volatile int inside = 1;
/* Fills its red zone, goes back to its entry, and counts the words that are not what they were. */
long round_by_entry(long again);
__asm__(".text\n.p2align 4\n.globl round_by_entry\n.type round_by_entry, @function\nround_by_entry:\n"
	"	cmp $0x12345678, %rdi\n"
	"	je 2f\n"
	"	mov $0x12345678, %edi\n"
	"	mov $-16, %rcx\n"
	"1:	mov %rdi, (%rsp,%rcx,8)\n"
	"	inc %rcx\n"
	"	jnz 1b\n"
	"	jmp round_by_entry\n"
	"2:	xor %eax, %eax\n"
	"	mov $-16, %rcx\n"
	"3:	cmp %rdi, (%rsp,%rcx,8)\n"
	"	je 4f\n"
	"	inc %eax\n"
	"4:	inc %rcx\n"
	"	jnz 3b\n"
	"	ret\n"
	".size round_by_entry, . - round_by_entry\n");
PATCHABLE long stay(void)
{
	long damaged = 0;
	tell("inside");
	for (long calls = 0; inside; calls++) {
		damaged += round_by_entry(0);
		if (calls % 1000 == 0)
			usleep(100);
	}
	return damaged;
}
static void *work(void *arg)
{
	tell("damaged %ld", stay());
	return arg;
}
int main(void)
{
	pthread_t thread;
	tell("by itself %ld", round_by_entry(0));
	pthread_create(&thread, NULL, work, NULL);
	while (command())
		inside = 0;
	_exit(0);
}

//@ file fix.c
#include <ugraft/livepatch.h>
static long new_round(long again) { return 0; }
static long new_stay(void) { return 0; }
static struct klp_func funcs[] = {
	{ .old_name = "round_by_entry", .new_func = new_round },
	{ .old_name = "stay", .new_func = new_stay },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect by itself 0
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 500ms --quiet
//! [...]
//= 5
//@ say leave
//@ expect damaged 0
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ alive
//@ clean
