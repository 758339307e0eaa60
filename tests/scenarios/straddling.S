// Functions whose first five bytes lie in two cache lines or in two pages: a thread could fetch the one half before and the
// other half after a write. Some have padding in front of them, some a neighbour. Each is either patched or refused by name,
// never torn: two threads call them all the time.

//@ file functions.S
	.text
	.globl across_line, across_line_padded, across_page, across_page_padded
	.type before, @function
	.type before_padding, @function
	.type across_line, @function
	.type across_line_padded, @function
	.type across_page, @function
	.type across_page_padded, @function

	/* Entry at 62 modulo 64, the function before ends right there. */
	.p2align 6
	.skip 62, 0xcc
across_line:
	movl $1, %eax
	leal (%rax,%rdi), %eax
	ret
	.size across_line, . - across_line

	.p2align 6
	.skip 62, 0x90
across_line_padded:
	movl $2, %eax
	leal (%rax,%rdi), %eax
	ret
	.size across_line_padded, . - across_line_padded

	/* Entry two bytes before the end of a page, and no room before it: the function before ends right there. */
	.p2align 12
before:
	.fill 2046, 2, 0xc0ff	/* inc %eax */
	repz ret
	.size before, . - before
across_page:
	movl $3, %eax
	leal (%rax,%rdi), %eax
	ret
	.size across_page, . - across_page

	/* The same with padding between the two, in which a jump has room that is whole. */
	.p2align 12
before_padding:
	.fill 2030, 2, 0xc0ff
	ret
	.size before_padding, . - before_padding
	.skip 33, 0x90
across_page_padded:
	movl $4, %eax
	leal (%rax,%rdi), %eax
	ret
	.size across_page_padded, . - across_page_padded
	.section .note.GNU-stack, "", @progbits

//@ file target.c
#include "target.h"
#include <stdatomic.h>
int across_line(int), across_line_padded(int), across_page(int), across_page_padded(int);
static int (*const functions[])(int) = { across_line, across_line_padded, across_page, across_page_padded };
static atomic_long calls;
static void *caller(void *arg)
{
	for (;;)
		for (int i = 0; i < 4; i++) {
			int r = functions[i](100);
			if (r != 101 + i && r != 201 + i)
				tell("wrong: function %d gave %d", i, r);
			calls++;
		}
	return arg;
}
int main(void)
{
	pthread_t threads[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, caller, NULL);
	tell("ready %d %d %d %d", (int)((uintptr_t)across_line & 63), (int)((uintptr_t)across_line_padded & 63),
	     (int)((uintptr_t)across_page & 4095), (int)((uintptr_t)across_page_padded & 4095));
	while (command()) {
		long until = calls + 10000;
		while (calls < until)
			usleep(100);
		tell("%d %d %d %d", across_line(0), across_line_padded(0), across_page(0), across_page_padded(0));
	}
	_exit(0);
}
//@ build cc -O2 -g -pthread -I$SUPPORT target.c functions.S -o target

//@ file fix.c
#include <ugraft/livepatch.h>
static int new_1(int n) { return n + 101; }
static int new_2(int n) { return n + 102; }
static int new_4(int n) { return n + 104; }
static struct klp_func funcs[] = {
	{ .old_name = "across_line", .new_func = new_1 },
	{ .old_name = "across_line_padded", .new_func = new_2 },
	{ .old_name = "across_page_padded", .new_func = new_4 },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file torn.c
#include <ugraft/livepatch.h>
static int new_3(int n) { return n + 103; }
static struct klp_func funcs[] = { { .old_name = "across_page", .new_func = new_3 }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready 62 62 4094 4094
//@ say ?
//@ expect 1 2 3 4
//@ $ ugraft load torn.o --pid $PID --timeout 60s
//! ugraft: cannot redirect across_page of the main executable: a jump at [..] would straddle a page, which cannot be written in one piece, and there is no padding within reach to jump through
//= 6
//@ $ ugraft check fix.o --pid $PID
//>  object        function            address         verdict
//>  (executable)  across_line         [..]  can be redirected by a jump
//>  (executable)  across_line_padded  [..]  can be redirected by a jump
//>  (executable)  across_page_padded  [..]  can be redirected by a jump in nearby padding
//> patch 'fix' can be loaded into process $target
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect 101 102 3 104
//@ $ for i in 1 2 3 4 5 6 7 8 9 10; do ugraft disable fix --pid $PID --timeout 60s --quiet && ugraft enable fix --pid $PID --timeout 60s --quiet || exit; done
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect 1 2 3 4
//@ never wrong: [..]
//@ alive
//@ clean
//@ close
//@ wait
