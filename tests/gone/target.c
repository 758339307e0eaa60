/* Two threads that call without pause and two that nap between their calls. SIGUSR1 makes it another program: the same one again, which
 * says so. */
#include "target.h"
#include <signal.h>

enum { THREADS = 4 };

PATCHABLE int inner(int n) { return n; }
PATCHABLE int outer(int n) { return inner(n); }
/* For the patch to find. */
int base = 0;

static void *work(void *argument)
{
	for (;;) {
		outer(0);
		if ((long)argument % 2)
			usleep(1000);
	}
	return NULL;
}

static void become_another(int signal)
{
	(void)signal;
	execl("/proc/self/exe", "target", "again", NULL);
	_exit(1);
}

int main(int argc, char **argv)
{
	(void)argv;
	struct sigaction action = { .sa_handler = become_another };
	sigset_t usr1;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	/* An exec in a handler leaves the signal blocked, and the program that begins then has nobody to unblock it. */
	sigprocmask(SIG_UNBLOCK, &usr1, NULL);
	sigaction(SIGUSR1, &action, NULL);
	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, work, (void *)i))
			return 1;
	}
	tell(argc > 1 ? "again" : "ready");
	while (command())
		tell("works, version %d", outer(0));
	_exit(0);
}
