// 64 threads, eight each that spin, or sleep in poll, epoll_wait, nanosleep, a futex with a deadline, a read, an accept
// and a read with a receive timeout. While patches come and go the target itself looks that no call returns what it
// would not have returned undisturbed: no EINTR, no early and no late timeout, no lost byte; and prints its verdict.

//@ file target.c
#include "target.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define EACH 8
#define NAP_MS 700
/* A loaded machine wakes sleepers late; a timeout that begins anew at each interruption would be later than this. */
#define LATE_MS 20000

static atomic_int stop, complaints, naps;
static atomic_long sum;
PATCHABLE int work(int n) { return n + 1; }

static void complain(const char *where, const char *what)
{
	complaints++;
	tell("complaint: %s: %s", where, what);
}

static void check_nap(const char *where, uint64_t since, uint64_t wanted_ms)
{
	uint64_t took = (now_ns() - since) / 1000000;
	naps++;
	if (took + 2 < wanted_ms)
		complain(where, "timed out early");
	if (took > wanted_ms + LATE_MS)
		complain(where, "timed out late");
}

static void *spin(void *arg)
{
	while (!stop)
		sum += work(1);
	return arg;
}

static void *in_poll(void *arg)
{
	int p[2];
	pipe(p);
	while (!stop) {
		struct pollfd fd = { .fd = p[0], .events = POLLIN };
		uint64_t since = now_ns();
		if (poll(&fd, 1, NAP_MS) != 0)
			complain("poll", strerror(errno));
		check_nap("poll", since, NAP_MS);
		work(1);
	}
	return arg;
}

static void *in_epoll(void *arg)
{
	int e = epoll_create1(0);
	while (!stop) {
		struct epoll_event event;
		uint64_t since = now_ns();
		if (epoll_wait(e, &event, 1, NAP_MS) != 0)
			complain("epoll_wait", strerror(errno));
		check_nap("epoll_wait", since, NAP_MS);
		work(1);
	}
	return arg;
}

static void *in_nanosleep(void *arg)
{
	while (!stop) {
		struct timespec t = { .tv_nsec = NAP_MS * 1000000L };
		uint64_t since = now_ns();
		if (nanosleep(&t, NULL) != 0)
			complain("nanosleep", strerror(errno));
		check_nap("nanosleep", since, NAP_MS);
		work(1);
	}
	return arg;
}

static void *in_futex(void *arg)
{
	int word = 0;
	while (!stop) {
		struct timespec t = { .tv_nsec = NAP_MS * 1000000L };
		uint64_t since = now_ns();
		if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t) != -1 || errno != ETIMEDOUT)
			complain("futex", strerror(errno));
		check_nap("futex", since, NAP_MS);
		work(1);
	}
	return arg;
}

/* Sleeps in read until the main thread sends the one byte of the end. */
static int end_of_reads[2];
static void *in_read(void *arg)
{
	char c;
	if (read(end_of_reads[0], &c, 1) != 1 || c != 'e')
		complain("read", strerror(errno));
	work(1);
	return arg;
}

static int listener;
static void *in_accept(void *arg)
{
	int s = accept(listener, NULL, NULL);
	if (s < 0)
		complain("accept", strerror(errno));
	work(1);
	return arg;
}

/* With SO_RCVTIMEO the kernel itself does not restart a receive that was interrupted. */
static void *in_recv(void *arg)
{
	int s[2];
	struct timeval t = { .tv_usec = NAP_MS * 1000 };
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
	while (!stop) {
		char c;
		uint64_t since = now_ns();
		if (recv(s[0], &c, 1, 0) != -1 || errno != EAGAIN)
			complain("recv", strerror(errno));
		check_nap("recv", since, NAP_MS);
		work(1);
	}
	return arg;
}

int main(void)
{
	void *(*kinds[])(void *) = { spin, in_poll, in_epoll, in_nanosleep, in_futex, in_read, in_accept, in_recv };
	enum { KINDS = sizeof kinds / sizeof *kinds };
	pthread_t threads[KINDS * EACH];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof a;
	pipe(end_of_reads);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&a, sizeof a) || listen(listener, EACH) || getsockname(listener, (void *)&a, &length))
		return 1;
	for (int i = 0; i < KINDS * EACH; i++)
		if (pthread_create(&threads[i], NULL, kinds[i / EACH], NULL))
			return 1;
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "work")) {
			tell("work %d", work(0));
		} else if (!strcmp(c, "nap")) {
			/* Until every timed sleeper has slept at least once more. */
			int until = naps + 5 * EACH * 2;
			while (naps < until)
				usleep(10000);
			tell("napped");
		} else {
			break;
		}
	}
	stop = 1;
	for (int i = 0; i < EACH; i++) {
		int s = socket(AF_INET, SOCK_STREAM, 0);
		if (write(end_of_reads[1], "e", 1) != 1 || connect(s, (void *)&a, sizeof a))
			return 1;
	}
	for (int i = 0; i < KINDS * EACH; i++)
		pthread_join(threads[i], NULL);
	tell("%d complaints", complaints);
	return 0;
}

//@ file fix.c
#include <ugraft/livepatch.h>
static int work(int n) { return n + 2; }
static struct klp_func funcs[] = { { .old_name = "work", .new_func = work }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);

//@ file cumulative.c
#include <ugraft/livepatch.h>
static int work(int n) { return n + 3; }
static struct klp_func funcs[] = { { .old_name = "work", .new_func = work }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .objs = objs, .replace = true };
KLP_PATCH(patch);

//@ start target
//@ expect ready
//@ say work
//@ expect work 1
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ alive
//@ say work
//@ expect work 2
//@ say nap
//@ expect napped
//@ $ ugraft load cumulative.o --pid $PID --timeout 60s --quiet
//@ say work
//@ expect work 3
//@ say nap
//@ expect napped
//@ $ ugraft disable cumulative --pid $PID --timeout 60s --quiet
//@ $ ugraft unload cumulative --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say work
//@ expect work 1
//@ say nap
//@ expect napped
//@ alive
//@ clean
//@ say end
//@ wait
//> 0 complaints
