// Functions with every kind of beginning: reading relative to their own place, calling, jumping, jumping on a condition,
// looping back to their entry, with a landing pad, shorter than a jump but padded. While a thread keeps the transition open,
// the others still run the originals, whose first instructions have moved to a thunk: they must do there what they did here.

//@ file functions.S
	.macro function name
	.p2align 4
	.globl \name
	.type \name, @function
\name:
	.endm
	.macro end name
	.size \name, . - \name
	.endm
	.text

	/* Each returns its number, by different ways. */
function relative
	movl one(%rip), %eax
	ret
end relative

function calling
	call two
	ret
end calling
two:
	movl $2, %eax
	ret

function jumping
	jmp three
end jumping
	.p2align 4
	.skip 200, 0xcc
three:
	movl $3, %eax
	ret

function testing
	testq %rdi, %rdi
	jne 1f
	movl $4, %eax
	ret
1:	movl $-4, %eax
	ret
end testing

	/* Counts down from the argument by jumping back to its own first instruction. */
function looping
	subq $1, %rdi
	jns looping
	movl $5, %eax
	ret
end looping

function landing
	endbr64
	movl $6, %eax
	ret
end landing

function short
	movb $7, %al
	ret
end short
	.skip 13, 0xcc

	.section .rodata
	.p2align 2
one:	.long 1
	.section .note.GNU-stack, "", @progbits

//@ file target.c
#include "target.h"
#include <stdatomic.h>
int relative(long), calling(long), jumping(long), testing(long), looping(long), landing(long);
unsigned char short_(long) __asm__("short");
static int shorter(long n) { return short_(n); }
static int (*const functions[])(long) = { relative, calling, jumping, testing, looping, landing, shorter };
static volatile int left;
static atomic_long rounds;
PATCHABLE void linger(void)
{
	tell("lingering");
	while (!left)
		usleep(1000);
}
static void *lingers(void *arg) { linger(); return arg; }
static void *caller(void *arg)
{
	for (;; rounds++)
		for (int i = 0; i < 7; i++) {
			int r = functions[i](0) & 0xff;
			if (r != i + 1 && r != 101 + i)
				tell("wrong: %d gave %d", i + 1, r);
		}
	return arg;
}
int main(void)
{
	pthread_t thread;
	for (int i = 0; i < 2; i++)
		pthread_create(&thread, NULL, caller, NULL);
	pthread_create(&thread, NULL, lingers, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave")) {
			left = 1;
			pthread_join(thread, NULL);
			tell("left");
			continue;
		}
		for (long until = rounds + 100; rounds < until;)
			usleep(100);
		tell("%d %d %d %d %d %d %d", relative(0), calling(0), jumping(0), testing(0), looping(3), landing(0), short_(0));
	}
	_exit(0);
}
//@ build cc -O2 -g -pthread -I$SUPPORT target.c functions.S -o target

//@ file fix.c
#include <ugraft/livepatch.h>
#define NEW(n) static int new_##n(long x) { return 100 + n; }
NEW(1) NEW(2) NEW(3) NEW(4) NEW(5) NEW(6) NEW(7)
static void linger(void) {}
#define FUNC(name, n) { .old_name = name, .new_func = new_##n }
static struct klp_func funcs[] = {
	FUNC("relative", 1), FUNC("calling", 2), FUNC("jumping", 3), FUNC("testing", 4), FUNC("looping", 5), FUNC("landing", 6),
	FUNC("short", 7),
	{ .old_name = "linger", .new_func = linger },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect lingering
//@ say ?
//@ expect 1 2 3 4 5 6 7
//@ $ ugraft check fix.o --pid $target
//>  object        function  address         verdict
//>  (executable)  relative  [..]  can be redirected by a jump
//>  (executable)  calling   [..]  can be redirected by a jump
//>  (executable)  jumping   [..]  can be redirected by a jump
//>  (executable)  testing   [..]  can be redirected by a jump
//>  (executable)  looping   [..]  can be redirected by a jump
//>  (executable)  landing   [..]  can be redirected by a jump
//>  (executable)  short     [..]  can be redirected by a jump
//>  (executable)  linger    [..]  can be redirected by a jump
//> patch 'fix' can be loaded into process $target

// In the middle of the transition each thread runs one side or the other, and the originals still work.
//@ start job: ugraft load fix.o --pid $target --timeout 60s --quiet
//@ until grep -q ugraft:transition /proc/$target/maps
//@ until ugraft status --pid $target --quiet; test $? = 5
//@ at target say ?
//@ at target expect [..]1 [..]2 [..]3 [..]4 [..]5 [..]6 [..]7
//@ at target say leave
//@ at target expect left
//@ at job wait
//@ at target say ?
//@ at target expect 101 102 103 104 105 106 107
//@ $ ugraft disable fix --pid $target --timeout 60s --quiet
//@ $ ugraft unload fix --pid $target --timeout 60s --quiet
//@ at target say ?
//@ at target expect 1 2 3 4 5 6 7
//@ at target never wrong: [..]
//@ at target alive
//@ at target clean
