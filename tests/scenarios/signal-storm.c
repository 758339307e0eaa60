// Numbered signals are queued to a thread without pause while patches come and go: each of them arrives, once, and in its
// order; and the thread's calls between them, and those of the handler, are whole.

//@ file target.c
#include "target.h"
#include <signal.h>
#include <stdatomic.h>
static atomic_int sent, received, stop, leave;
static pthread_t caller;
PATCHABLE int inner(int v) { return v; }
PATCHABLE int outer(int v) { return inner(v * 10) + 0; }
static void call(const char *who)
{
	int v = outer(0);
	if (v % 11)
		tell("complaint: %s met %d", who, v);
}
static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	if (info->si_value.sival_int != received + 1)
		tell("complaint: signal %d after %d", info->si_value.sival_int, received);
	received = info->si_value.sival_int;
	call("handler");
}
static void *calls(void *arg)
{
	while (!leave) {
		call("thread");
		for (volatile int i = 0; i < 200; i++)
			;
	}
	return arg;
}
static void *storm(void *arg)
{
	while (!stop) {
		union sigval number = { .sival_int = sent + 1 };
		/* EAGAIN: the queue is full. */
		if (pthread_sigqueue(caller, SIGRTMIN, number) == 0)
			sent++;
		else
			usleep(1000);
		if (sent % 8 == 0)
			usleep(100);
	}
	return arg;
}
int main(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	sigaction(SIGRTMIN, &action, NULL);
	pthread_t stormer;
	pthread_create(&caller, NULL, calls, NULL);
	pthread_create(&stormer, NULL, storm, NULL);
	tell("ready");
	while (command())
		tell("%s", received > 1000 ? "many" : "few");
	stop = 1;
	pthread_join(stormer, NULL);
	while (received != sent)
		usleep(1000);
	leave = 1;
	pthread_join(caller, NULL);
	tell("all there");
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

//@ start target
//@ expect ready
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ $ for i in 1 2 3 4 5; do ugraft disable fix --pid $PID --timeout 60s --quiet && ugraft enable fix --pid $PID --timeout 60s --quiet || exit; done
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say ?
//@ expect many
//@ clean
//@ never complaint: [..]
//@ close
//@ wait
//> all there
