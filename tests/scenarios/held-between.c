// A thread that has not switched is stopped where few instructions are spent: in a stub, which has chosen the old version
// for it and has not gone there yet, and at the very entry of a function, to which another changing one has just jumped.
// Neither place is a function of the patch, and no stack tells of it; but whoever switches there has half of each version.

//@ file target.c
#include "target.h"
#include <signal.h>
#include <sys/prctl.h>
#include <ucontext.h>
static volatile int inside, go, held, release;
static volatile enum { NOWHERE, STUB, ENTRY } place;
static uintptr_t stub_start, stub_end;
PATCHABLE int inner(int v) { return v; }
PATCHABLE int outer(int v)
{
	if (inside) {
		tell("inside");
		while (inside)
			usleep(1000);
	}
	return inner(v * 10);
}
/* Holds the thread if the signal met it at the place that is asked for. */
static void hold(int signal, siginfo_t *info, void *context)
{
	uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	(void)signal, (void)info;
	if ((place == STUB && pc >= stub_start && pc < stub_end) || (place == ENTRY && pc == (uintptr_t)inner)) {
		place = NOWHERE;
		held = 1;
		while (!release)
			usleep(1000);
		held = 0;
	}
}
static void *work(void *arg)
{
	prctl(PR_SET_NAME, "worker");
	outer(0);
	tell("outside");
	for (;;) {
		if (outer(0) % 11)
			tell("mixed");
		/* Twice as long outside, or it would seldom be met there. */
		for (volatile int i = 0; i < 100; i++)
			;
	}
	return arg;
}
static void find_stubs(void)
{
	char line[512];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof line, maps))
		if (strstr(line, "r-x") && strstr(line, "ugraft:transition") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			stub_start = start, stub_end = end;
	fclose(maps);
}
int main(void)
{
	pthread_t thread;
	struct sigaction action = { .sa_sigaction = hold, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigaction(SIGUSR1, &action, NULL);
	inside = 1;
	pthread_create(&thread, NULL, work, NULL);
	for (const char *c; (c = command());) {
		if (!strcmp(c, "leave")) {
			inside = 0;
		} else if (!strcmp(c, "release")) {
			release = 1;
			while (held)
				usleep(1000);
			tell("released");
		} else {
			find_stubs();
			release = 0;
			place = !strcmp(c, "stub") ? STUB : ENTRY;
			while (!held) {
				pthread_kill(thread, SIGUSR1);
				usleep(20);
			}
			tell("held");
		}
	}
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

// The thread is inside at the beginning, so that it is one of those that have to switch; then it only calls.
//@ start target
//@ expect inside
//@ $ ugraft load fix.o --pid $PID --keep --timeout 500ms --quiet
//! [...]
//= 5
//@ say leave
//@ expect outside

//@ say stub
//@ expect held
//@ $ ugraft wait fix --pid $PID --timeout 1s
//! [...]
//= 5
//@ say release
//@ expect released
//@ say entry
//@ expect held
//@ $ ugraft wait fix --pid $PID --timeout 1s
//! [...]
//= 5
//@ say release
//@ expect released
//@ $ ugraft wait fix --pid $PID --timeout 60s --quiet
//@ never mixed

// And the same on the way back.
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ never mixed
//@ alive
//@ clean
