// A thread is kept from running in the middle of a stub, and meanwhile the transition is turned round. If it has read the
// transition word by then, it goes to the new version whatever is said of it later; so it must not count as a thread that is
// yet to choose, though it stands where such threads stand.

//@ variant word-read OFFSET=27
//@ variant word-used OFFSET=101
//@ file target.c
#include "target.h"
#include <sys/syscall.h>
static volatile int inside = 1, walking;
PATCHABLE int inner(int v) { return v; }
PATCHABLE int outer(int v)
{
	if (v < 0) {
		tell("inside");
		while (inside)
			usleep(1000);
		v = 0;
	}
	return inner(v * 10);
}
static void *sleep_inside(void *arg)
{
	outer(-1);
	return arg;
}
static void *walk(void *arg)
{
	tell("walker %ld, outer %lx", syscall(SYS_gettid), (long)outer);
	while (!walking)
		usleep(1000);
	for (;;)
		if (outer(0) % 11)
			tell("mixed");
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
		else
			inside = 0;
	}
	return 0;
}

// Leaves a thread at an instruction of the stub that a function leads to, and its process stopped by job control.
//@ file leave_at.c
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int pid = atoi(argv[1]), tid = atoi(argv[2]), status;
	uint64_t function = strtoull(argv[3], NULL, 16);
	struct user_regs_struct regs;
	unsigned char code[9];
	int32_t distance;
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", pid);
	if (argc != 5 || pread(open(path, O_RDONLY), code, sizeof code, (off_t)function) != sizeof code)
		return 1;
	int entry = !memcmp(code, "\xf3\x0f\x1e\xfa", 4) ? 4 : 0;
	if (code[entry] != 0xe9)
		return 2;
	memcpy(&distance, code + entry + 1, sizeof distance);
	uint64_t wanted = function + entry + 5 + (int64_t)distance + strtoull(argv[4], NULL, 10);
	if (ptrace(PTRACE_SEIZE, tid, 0, 0) || ptrace(PTRACE_INTERRUPT, tid, 0, 0) || waitpid(tid, &status, __WALL) != tid)
		return 3;
	for (;;) {
		if (ptrace(PTRACE_GETREGS, tid, 0, &regs))
			return 4;
		if (regs.rip == wanted)
			break;
		if (ptrace(PTRACE_SINGLESTEP, tid, 0, 0) || waitpid(tid, &status, __WALL) != tid)
			return 5;
	}
	/* For this thread: it is stopped before it executes anything more. */
	if (syscall(SYS_tgkill, pid, tid, SIGSTOP) || ptrace(PTRACE_DETACH, tid, 0, 0))
		return 6;
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
int inner(int v);
KLP_SYMBOL(inner, "exe", "inner", 1);
static int new_inner(int v) { return v + 1; }
static int new_outer(int v) { return inner((v + 1) * 10); }
static struct klp_func funcs[] = {
	{ .old_name = "inner", .new_func = new_inner },
	{ .old_name = "outer", .new_func = new_outer },
	{}
};
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

// The walker is outside at the begin, and so among the first to switch.
//@ start target
//@ expect walker [=tid], outer [=outer]
//@ say enter
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 1s --quiet
//! [...]
//= 5
//@ say walk
//@ $ ./leave_at $PID $tid $outer $OFFSET
//@ until grep -q '^State:.T (stopped)' /proc/$PID/task/$tid/status
//@ stopped
//@ $ ugraft reverse --pid $PID --timeout 1s --quiet
//! [...]
//= 5
//@ signal CONT
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ say leave
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ never mixed
//@ alive
//@ clean
