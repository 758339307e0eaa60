// perf names the functions of a patch: `ugraft symbols` writes a file that it finds as that of the patch's memory.

//@ needs perf
//@ file target.c
#include "target.h"
static volatile int stop;
PATCHABLE long work(long n)
{
	long sum = 0;
	while (n-- > 0)
		sum += n ^ sum;
	return sum;
}
static void *run(void *arg)
{
	volatile long sum = 0;
	while (!stop)
		sum += work(100000);
	return arg;
}
int main(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, run, NULL);
	tell("ready");
	command();
	stop = 1;
	pthread_join(thread, NULL);
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static __attribute__((noipa)) long helper(long n)
{
	long sum = 1;
	while (n-- > 0)
		sum += n ^ sum;
	return sum;
}
static long new_work(long n) { return helper(n) + 1; }
static struct klp_func funcs[] = { { .old_name = "work", .new_func = new_work }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --quiet
//@ $ mkdir files; ugraft symbols fix -o "files/memfd:ugraft:patch:fix (deleted)" --pid $PID
//> in gdb: add-symbol-file files/memfd:ugraft:patch:fix (deleted)
// Until one of its samples is in the patch.
//@ until perf record -q -N -e cpu-clock -o record -p $PID -- sleep 0.2 && perf report -i record --symfs files --stdio 2>/dev/null | grep -q '\[\.\] helper$'
//@ alive
//@ say end
//@ wait
