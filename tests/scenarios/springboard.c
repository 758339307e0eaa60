// A function at the end of a page is redirected by two writes: a jump in padding nearby, and a short one to it. The tool may die
// between them, on the way in and on the way out; and a thread may stand between the two jumps when the padding is to come back.

//@ needs strace

//@ file functions.S
	.text
	.globl price
	.type before, @function
	.type price, @function
	/* Two bytes before the end of a page, with padding before it in which a jump has room. */
	.p2align 12
before:
	.fill 2030, 2, 0xc0ff	/* inc %eax */
	ret
	.size before, . - before
	.skip 33, 0x90
price:
	movl $4, %eax
	leal (%rax,%rdi), %eax
	ret
	.size price, . - price
	.section .note.GNU-stack, "", @progbits

//@ file target.c
#include "target.h"
#include <sys/syscall.h>
int price(int v);
volatile int inside = 1, walking;
PATCHABLE int outer(int v) { return v; }
static void *sleep_inside(void *arg)
{
	outer(-1);
	return arg;
}
static void *walk(void *arg)
{
	tell("walker %ld, price %lx", syscall(SYS_gettid), (long)price);
	while (!walking)
		usleep(1000);
	for (;;)
		if (price(0) != 4)
			tell("wrong");
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, walk, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "enter"))
			pthread_create(&thread, NULL, sleep_inside, NULL);
		else if (!strcmp(c, "walk"))
			walking = 1;
		else if (!strcmp(c, "leave"))
			inside = 0;
		else
			tell("price %d", price(0));
	}
	_exit(0);
}
//@ build cc -O2 -g -pthread -I$SUPPORT target.c functions.S -o target
//@ build cc -O2 -Wall -Werror $SUPPORT/leave_at.c -o leave_at

//@ file fix.c
#include <ugraft/livepatch.h>
#include <unistd.h>
extern volatile int inside;
KLP_SYMBOL(inside, "exe", "inside", 0);
static int new_price(int v) { return v + 5; }
static int new_outer(int v)
{
	while (inside && v < 0)
		usleep(1000);
	return v;
}
static struct klp_func funcs[] = {
	{ .old_name = "price", .new_func = new_price },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect walker [=tid], price [=price]
//@ $ ugraft check fix.o --pid $PID
//> [..]verdict[..]
//> [..]price[..]by a jump in nearby padding[..]
//>  (executable)  outer     [..]  can be redirected by a jump
//> patch 'fix' can be loaded into process $target
//@ say call
//@ expect price 4
//@ snapshot
//@ $ sh $SUPPORT/killed-at-writes.sh 'load fix.o' 1 'disable fix' 'unload fix'
//@ say call
//@ expect price 5
//@ $ sh $SUPPORT/killed-at-writes.sh 'disable fix' 1 'enable fix'
//@ say call
//@ expect price 4
//@ $ sh $SUPPORT/killed-at-writes.sh 'unload fix' 1 'load fix.o' 'disable fix'
//@ clean
//@ unchanged

// The walker is on the original's side, and on its way there by the padding.
//@ $ ugraft load fix.o --pid $PID --quiet
//@ say enter
//@ $ ugraft disable fix --pid $PID --keep --timeout 1s --quiet
//! ugraft: patch 'fix' is still in transition: thread [..] (target): outer (frame 3): in the function, for [..]; `ugraft wait fix` carries it on, `ugraft reverse` turns it round
//= 5
//@ say walk
//@ $ ./leave_at $PID $tid $price 0
//@ until grep -q '^State:.T (stopped)' /proc/$PID/task/$tid/status
//@ stopped
//@ $ ugraft force --pid $PID --quiet
//! ugraft: thread [..] (target) did not stop in time: it is on its way into a function that is to be restored; try again later
//= 1
//@ signal CONT
//@ say leave
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ never wrong
//@ alive
