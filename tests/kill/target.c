/*
 * Sixteen threads: four that call without pause, the others in naps of five kinds between their calls. Each call of `outer`
 * tells which version of it ran and which version of `inner` it met; a mix of the two is a complaint, and so is a system
 * call that failed. Only epoll_wait may be interrupted: the kernel does not restart it after a stop, and a tool that dies
 * while a thread is stopped can no longer hide that.
 */
#include "target.h"
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

enum { THREADS = 16, NAP_MS = 3 };

static atomic_long rounds[THREADS];
/* How far the callbacks of a patch are. */
int stage;
/* How often the init function of a patch has run and not the exit function. */
int inits;

PATCHABLE int inner(int n) { return n; }
PATCHABLE int outer(int n) { return inner(n) + 0; }

/* What a patch adds to its version, for whoever asks: it may change at any time. */
PATCHABLE int tuned(void) { return 0; }

static void call(int number)
{
	int versions = outer(0);
	if (versions / 10 != versions % 10)
		tell("complaint: outer %d met inner %d", versions / 10, versions % 10);
	rounds[number]++;
}

static void nap(int number, int epoll, int *pipe)
{
	struct timespec t = { .tv_nsec = NAP_MS * 1000000L };
	struct pollfd fd = { .fd = pipe[0], .events = POLLIN };
	struct epoll_event event;
	int word = 0;
	char c = 'x';
	switch (number % 6) {
	case 0:
		return;
	case 1:
		if (poll(&fd, 1, NAP_MS) != 0)
			tell("complaint: poll: %s", strerror(errno));
		return;
	case 2:
		if (epoll_wait(epoll, &event, 1, NAP_MS) != 0 && errno != EINTR)
			tell("complaint: epoll_wait: %s", strerror(errno));
		return;
	case 3:
		if (nanosleep(&t, NULL) != 0)
			tell("complaint: nanosleep: %s", strerror(errno));
		return;
	case 4:
		if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t) != -1 || errno != ETIMEDOUT)
			tell("complaint: futex: %s", strerror(errno));
		return;
	default:
		if (write(pipe[1], &c, 1) != 1 || read(pipe[0], &c, 1) != 1)
			tell("complaint: pipe: %s", strerror(errno));
		usleep(NAP_MS * 1000);
	}
}

static void *work(void *argument)
{
	int number = (int)(long)argument, epoll = epoll_create1(0), ends[2];
	if (pipe(ends))
		abort();
	for (;;) {
		call(number);
		nap(number, epoll, ends);
	}
	return NULL;
}

int main(void)
{
	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, work, (void *)i))
			return 1;
	}
	tell("ready");
	while (command()) {
		/* Every thread works: each has gone round twice since it was asked. */
		for (int i = 0; i < THREADS; i++)
			for (long until = rounds[i] + 2; rounds[i] < until;)
				usleep(200);
		tell("works, version %d", outer(0) % 10 + tuned());
	}
	_exit(0);
}
