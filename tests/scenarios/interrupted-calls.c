// A thread asleep in each system call that blocks: with a timeout that it is to keep, and with none or an hour. While patches are
// loaded, replaced, disabled and unloaded, none returns what it would not have returned undisturbed. And while signals are sent that
// have a handler, each one sent to a sleeping thread gives its EINTR, once. docs/stops.md has the table.

//@ file target.c
#include "target.h"
#include "kinds.h"

/* One more, which ends them. */
static struct sleeper sleepers[2 * KINDS + 1];
static int count;

int main(void)
{
	pthread_t sender;
	count = start_sleepers(sleepers);
	tell("ready");
	for (const char *c; (c = command());) {
		if (!strcmp(c, "work")) {
			tell("work %d", work(0));
		} else if (!strcmp(c, "nap")) {
			/* Until every one with a timeout has slept twice more. */
			for (int i = 0; i < count; i++)
				if (sleepers[i].ms == NAP_MS)
					for (int until = sleepers[i].naps + 2; sleepers[i].naps < until;)
						usleep(1000);
			tell("napped");
		} else if (!strcmp(c, "storm")) {
			storming = 1;
			pthread_create(&sender, NULL, storm, sleepers);
			tell("storming");
		} else if (!strcmp(c, "calm")) {
			storming = 0;
			pthread_join(sender, NULL);
			tell("calm");
		} else {
			break;
		}
	}
	stop_sleepers(sleepers);
	tell("%d complaints", complaints);
	return 0;
}

//@ file kinds.h
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { NAP_MS = 300, HOUR_MS = 3600 * 1000 };

/* A thread that sleeps in one kind of call, again and again. */
struct sleeper {
	const struct kind *kind;
	long ms;		/* its timeout, where the call has one */
	int fd, other;
	long id;		/* of what is no descriptor */
	atomic_int tid, naps, signals, interruptions;
	volatile int handled;
	pthread_t thread;
};

static atomic_int stop, complaints, storming;
static __thread struct sleeper *me;
static pid_t child;
static char lock_file[] = "lock", flock_file[] = "flock";

PATCHABLE int work(int n) { return n + 1; }

static struct timespec after(long ms) { return (struct timespec){ ms / 1000, ms % 1000 * 1000000 }; }

static struct timespec at(clockid_t clock, long ms)
{
	struct timespec t;
	clock_gettime(clock, &t);
	t.tv_sec += ms / 1000, t.tv_nsec += ms % 1000 * 1000000;
	if (t.tv_nsec >= 1000000000)
		t.tv_sec++, t.tv_nsec -= 1000000000;
	return t;
}

static void limit(int fd, int option, long ms)
{
	struct timeval t = { ms / 1000, ms % 1000 * 1000 };
	setsockopt(fd, SOL_SOCKET, option, &t, sizeof t);
}

/* What each kind needs, and one call of it. */
static void no_setup(struct sleeper *s) { (void)s; }
static void new_pipe(struct sleeper *s)
{
	int p[2];
	pipe(p);
	s->fd = p[0], s->other = p[1];
}
static void full_pipe(struct sleeper *s)
{
	new_pipe(s);
	fcntl(s->other, F_SETFL, O_NONBLOCK);
	while (write(s->other, "x", 1) == 1)
		;
	fcntl(s->other, F_SETFL, 0);
}
static void new_epoll(struct sleeper *s) { s->fd = epoll_create1(0); }
static void new_socket(struct sleeper *s)
{
	int p[2];
	socketpair(AF_UNIX, SOCK_STREAM, 0, p);
	s->fd = p[0], s->other = p[1];
	limit(s->fd, SO_RCVTIMEO, s->ms);
	limit(s->fd, SO_SNDTIMEO, s->ms);
}
static void full_socket(struct sleeper *s)
{
	new_socket(s);
	while (send(s->fd, "x", 1, MSG_DONTWAIT) == 1)
		;
}
static void new_listener(struct sleeper *s)
{
	/* Bound to a name of the kernel's choice. */
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	s->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	bind(s->fd, (void *)&a, sizeof a.sun_family);
	listen(s->fd, 0);
	limit(s->fd, SO_RCVTIMEO, s->ms);
}
static long connect_to(int fd, int listener)
{
	struct sockaddr_un a;
	socklen_t length = sizeof a;
	getsockname(listener, (void *)&a, &length);
	return connect(fd, (void *)&a, length);
}
static void full_listener(struct sleeper *s)
{
	new_listener(s);
	while (!connect_to(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), s->fd))
		;
	s->other = socket(AF_UNIX, SOCK_STREAM, 0);
	limit(s->other, SO_SNDTIMEO, s->ms);
}
static void new_semaphore(struct sleeper *s) { s->id = semget(IPC_PRIVATE, 1, 0600); }
static void new_messages(struct sleeper *s) { s->id = msgget(IPC_PRIVATE, 0600); }
static void new_aio(struct sleeper *s)
{
	aio_context_t context = 0;
	syscall(SYS_io_setup, 1, &context);
	s->id = (long)context;
}
static void new_ring(struct sleeper *s)
{
	struct io_uring_params p = { 0 };
	s->fd = (int)syscall(SYS_io_uring_setup, 2, &p);
}
static void new_queue(struct sleeper *s)
{
	char name[64];
	snprintf(name, sizeof name, "/ugraft-test-%d-%ld", getpid(), (long)(s->ms));
	s->fd = mq_open(name, O_CREAT | O_RDWR, 0600, NULL);
	mq_unlink(name);
}
static void new_timer(struct sleeper *s) { s->fd = timerfd_create(CLOCK_MONOTONIC, 0); }
static void new_event(struct sleeper *s) { s->fd = eventfd(0, 0); }
static void new_watch(struct sleeper *s)
{
	s->fd = inotify_init1(0);
	inotify_add_watch(s->fd, "/", IN_DELETE_SELF);
}
static void new_signals(struct sleeper *s)
{
	sigset_t set;
	sigemptyset(&set), sigaddset(&set, SIGUSR2);
	s->fd = signalfd(-1, &set, 0);
}
static void locked(struct sleeper *s)
{
	s->fd = open(flock_file, O_RDWR | O_CREAT, 0600);
	s->other = open(flock_file, O_RDWR);
	flock(s->other, LOCK_EX);
}
static void locked_by_child(struct sleeper *s) { s->fd = open(lock_file, O_RDWR); }

#define CALL(name) static long name(struct sleeper *s)
CALL(call_poll) { struct pollfd p = { s->fd, POLLIN, 0 }; return poll(&p, 1, (int)s->ms); }
CALL(call_ppoll) { struct pollfd p = { s->fd, POLLIN, 0 }; struct timespec t = after(s->ms); return ppoll(&p, 1, &t, NULL); }
CALL(call_select)
{
	fd_set set;
	struct timeval t = { s->ms / 1000, s->ms % 1000 * 1000 };
	FD_ZERO(&set);
	FD_SET(s->fd, &set);
	return select(s->fd + 1, &set, NULL, NULL, &t);
}
CALL(call_pselect)
{
	fd_set set;
	struct timespec t = after(s->ms);
	FD_ZERO(&set);
	FD_SET(s->fd, &set);
	return pselect(s->fd + 1, &set, NULL, NULL, &t, NULL);
}
CALL(call_epoll_wait) { struct epoll_event e; return epoll_wait(s->fd, &e, 1, (int)s->ms); }
CALL(call_epoll_pwait) { struct epoll_event e; sigset_t none; sigemptyset(&none); return epoll_pwait(s->fd, &e, 1, (int)s->ms, &none); }
CALL(call_epoll_pwait2) { struct epoll_event e; struct timespec t = after(s->ms); return syscall(441, s->fd, &e, 1, &t, NULL, 8); }
CALL(call_sigtimedwait)
{
	sigset_t set;
	struct timespec t = after(s->ms);
	sigemptyset(&set), sigaddset(&set, SIGUSR2);
	return syscall(SYS_rt_sigtimedwait, &set, NULL, &t, 8);
}
CALL(call_semop) { struct sembuf b = { 0, -1, 0 }; return semop((int)s->id, &b, 1); }
CALL(call_semtimedop) { struct sembuf b = { 0, -1, 0 }; struct timespec t = after(s->ms); return semtimedop((int)s->id, &b, 1, &t); }
CALL(call_msgrcv) { struct { long type; char text[8]; } m; return msgrcv((int)s->id, &m, sizeof m.text, 0, 0); }
CALL(call_io_getevents) { struct io_event e; struct timespec t = after(s->ms); return syscall(SYS_io_getevents, s->id, 1L, 1L, &e, &t); }
CALL(call_io_pgetevents) { struct io_event e; struct timespec t = after(s->ms); return syscall(333, s->id, 1L, 1L, &e, &t, NULL); }
CALL(call_io_uring_enter)
{
	struct timespec t = after(s->ms);
	struct io_uring_getevents_arg a = { .ts = (uintptr_t)&t };
	return syscall(SYS_io_uring_enter, s->fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a);
}
CALL(call_accept) { return accept(s->fd, NULL, NULL); }
CALL(call_accept4) { return accept4(s->fd, NULL, NULL, 0); }
CALL(call_connect) { return connect_to(s->other, s->fd); }
CALL(call_recv) { char c; return recv(s->fd, &c, 1, 0); }
CALL(call_recvmsg) { char c; struct iovec v = { &c, 1 }; struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 }; return recvmsg(s->fd, &m, 0); }
CALL(call_recvmmsg) { char c; struct iovec v = { &c, 1 }; struct mmsghdr m = { .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1 } }; return recvmmsg(s->fd, &m, 1, 0, NULL); }
CALL(call_send) { return send(s->fd, "x", 1, 0); }
CALL(call_sendmsg) { struct iovec v = { "x", 1 }; struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 }; return sendmsg(s->fd, &m, 0); }
CALL(call_read) { char c[128]; return read(s->fd, c, sizeof c); }
CALL(call_readv) { char c; struct iovec v = { &c, 1 }; return readv(s->fd, &v, 1); }
CALL(call_write) { return write(s->fd, "x", 1); }
CALL(call_writev) { struct iovec v = { "x", 1 }; return writev(s->fd, &v, 1); }
CALL(call_write_other) { return write(s->other, "x", 1); }
CALL(call_nanosleep) { struct timespec t = after(s->ms); return nanosleep(&t, NULL); }
CALL(call_clock_nanosleep) { struct timespec t = after(s->ms); return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL); }
CALL(call_clock_nanosleep_to) { struct timespec t = at(CLOCK_MONOTONIC, s->ms); return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); }
CALL(call_futex) { int word = 0; struct timespec t = after(s->ms); return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t); }
CALL(call_futex_to) { int word = 0; struct timespec t = at(CLOCK_MONOTONIC, s->ms); return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &t, NULL, -1); }
CALL(call_futex_waitv)
{
	int word = 0;
	struct timespec t = at(CLOCK_MONOTONIC, s->ms);
	struct futex_waitv w = { .uaddr = (uintptr_t)&word, .flags = FUTEX_32 };
	return syscall(449, &w, 1, 0, &t, CLOCK_MONOTONIC);
}
CALL(call_futex_pi) { int word = getpid(); struct timespec t = at(CLOCK_REALTIME, s->ms); return syscall(SYS_futex, &word, FUTEX_LOCK_PI, 0, &t); }
CALL(call_mq_timedreceive) { static __thread char text[1 << 16]; struct timespec t = at(CLOCK_REALTIME, s->ms); return mq_timedreceive(s->fd, text, sizeof text, NULL, &t); }
CALL(call_timerfd)
{
	uint64_t n;
	struct itimerspec t = { .it_value = after(s->ms) };
	timerfd_settime(s->fd, 0, &t, NULL);
	return read(s->fd, &n, sizeof n);
}
CALL(call_flock) { return flock(s->fd, LOCK_EX); }
CALL(call_lockw) { struct flock l = { .l_type = F_WRLCK }; return fcntl(s->fd, F_SETLKW, &l); }
CALL(call_wait4) { (void)s; return wait4(child, NULL, 0, NULL); }
CALL(call_waitid) { siginfo_t i; (void)s; return waitid(P_PID, (id_t)child, &i, WEXITED | WNOWAIT); }
CALL(call_pause) { (void)s; return pause(); }
CALL(call_sigsuspend) { sigset_t set; (void)s; sigemptyset(&set), sigaddset(&set, SIGUSR2); return sigsuspend(&set); }

/* Which of a kind there are: with a timeout; such that a signal ends it. */
enum { TIMED = 1, ENDLESS = 2, BOTH = 3 };
static const struct kind {
	const char *name;
	void (*setup)(struct sleeper *);
	long (*call)(struct sleeper *);
	int which;
	long result;		/* when the timeout is over */
	int error;
} kinds[] = {
	{ "poll", new_pipe, call_poll, BOTH, 0, 0 },
	{ "ppoll", new_pipe, call_ppoll, BOTH, 0, 0 },
	{ "select", new_pipe, call_select, BOTH, 0, 0 },
	{ "pselect", new_pipe, call_pselect, BOTH, 0, 0 },
	{ "epoll_wait", new_epoll, call_epoll_wait, BOTH, 0, 0 },
	{ "epoll_pwait", new_epoll, call_epoll_pwait, BOTH, 0, 0 },
	{ "epoll_pwait2", new_epoll, call_epoll_pwait2, BOTH, 0, 0 },
	{ "rt_sigtimedwait", no_setup, call_sigtimedwait, BOTH, -1, EAGAIN },
	{ "semop", new_semaphore, call_semop, ENDLESS, 0, 0 },
	{ "semtimedop", new_semaphore, call_semtimedop, BOTH, -1, EAGAIN },
	{ "msgrcv", new_messages, call_msgrcv, ENDLESS, 0, 0 },
	{ "io_getevents", new_aio, call_io_getevents, BOTH, 0, 0 },
	{ "io_pgetevents", new_aio, call_io_pgetevents, BOTH, 0, 0 },
	{ "io_uring_enter", new_ring, call_io_uring_enter, BOTH, -1, ETIME },
	{ "accept", new_listener, call_accept, BOTH, -1, EAGAIN },
	{ "accept4", new_listener, call_accept4, BOTH, -1, EAGAIN },
	{ "connect", full_listener, call_connect, BOTH, -1, EAGAIN },
	{ "recvfrom", new_socket, call_recv, BOTH, -1, EAGAIN },
	{ "recvmsg", new_socket, call_recvmsg, BOTH, -1, EAGAIN },
	{ "recvmmsg", new_socket, call_recvmmsg, BOTH, -1, EAGAIN },
	{ "sendto", full_socket, call_send, BOTH, -1, EAGAIN },
	{ "sendmsg", full_socket, call_sendmsg, BOTH, -1, EAGAIN },
	{ "read of a socket", new_socket, call_read, BOTH, -1, EAGAIN },
	{ "readv of a socket", new_socket, call_readv, BOTH, -1, EAGAIN },
	{ "write to a socket", full_socket, call_write, BOTH, -1, EAGAIN },
	{ "writev to a socket", full_socket, call_writev, BOTH, -1, EAGAIN },
	{ "read of a pipe", new_pipe, call_read, ENDLESS, 0, 0 },
	{ "write to a pipe", full_pipe, call_write_other, ENDLESS, 0, 0 },
	{ "read of an eventfd", new_event, call_read, ENDLESS, 0, 0 },
	{ "read of a signalfd", new_signals, call_read, ENDLESS, 0, 0 },
	{ "read of an inotify", new_watch, call_read, ENDLESS, 0, 0 },
	{ "read of a timerfd", new_timer, call_timerfd, BOTH, 8, 0 },
	{ "nanosleep", no_setup, call_nanosleep, BOTH, 0, 0 },
	{ "clock_nanosleep", no_setup, call_clock_nanosleep, BOTH, 0, 0 },
	{ "clock_nanosleep to a time", no_setup, call_clock_nanosleep_to, BOTH, 0, 0 },
	{ "futex wait", no_setup, call_futex, BOTH, -1, ETIMEDOUT },
	{ "futex wait to a time", no_setup, call_futex_to, BOTH, -1, ETIMEDOUT },
	{ "futex_waitv", no_setup, call_futex_waitv, BOTH, -1, ETIMEDOUT },
	/* The kernel begins this one again after a handler, too. */
	{ "futex lock with priority", no_setup, call_futex_pi, TIMED, -1, ETIMEDOUT },
	{ "mq_timedreceive", new_queue, call_mq_timedreceive, BOTH, -1, ETIMEDOUT },
	{ "flock", locked, call_flock, ENDLESS, 0, 0 },
	{ "fcntl F_SETLKW", locked_by_child, call_lockw, ENDLESS, 0, 0 },
	{ "wait4", no_setup, call_wait4, ENDLESS, 0, 0 },
	{ "waitid", no_setup, call_waitid, ENDLESS, 0, 0 },
	{ "pause", no_setup, call_pause, ENDLESS, 0, 0 },
	{ "sigsuspend", no_setup, call_sigsuspend, ENDLESS, 0, 0 },
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void complain(struct sleeper *s, const char *what, long result)
{
	complaints++;
	tell("complaint: %s, %ld ms: %s: %ld %s", s->kind->name, s->ms, what, result, strerror(errno));
}

static void on_signal(int signal)
{
	(void)signal;
	me->handled = 1;
}

static void *sleep_on(void *argument)
{
	struct sleeper *s = me = argument;
	s->tid = (int)syscall(SYS_gettid);
	while (!stop) {
		uint64_t since = now_ns();
		errno = 0;
		long result = s->kind->call(s);
		if (result == -1 && errno == EINTR) {
			if (!s->handled)
				complain(s, "interrupted by no signal", result);
			s->handled = 0;
			s->interruptions++;
		} else if (s->ms != NAP_MS || result != s->kind->result || (result == -1 && errno != s->kind->error)) {
			complain(s, "returned", result);
			/* Not for ever at full speed. */
			usleep(100000);
		} else {
			if (now_ns() - since + 2000000 < NAP_MS * 1000000ull)
				complain(s, "too early", (long)(now_ns() - since));
			s->naps++;
		}
		work(1);
	}
	return NULL;
}

/* Whether it sleeps, and so in its call. */
static int is_asleep(struct sleeper *s)
{
	char path[64], text[512];
	snprintf(path, sizeof path, "/proc/self/task/%d/stat", s->tid);
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	char *state = strrchr(text, ')');
	return state && state[2] == 'S';
}

/* One signal to a thread in its call, which must give one EINTR. */
static void interrupt(struct sleeper *s)
{
	while (!is_asleep(s))
		usleep(1000);
	s->signals++;
	pthread_kill(s->thread, SIGUSR1);
	while (s->interruptions < s->signals)
		usleep(200);
	if (s->interruptions > s->signals)
		complain(s, "interrupted twice", s->interruptions);
}

static void *storm(void *argument)
{
	struct sleeper *all = argument;
	while (storming)
		for (struct sleeper *s = all; s->kind; s++)
			if (s->ms != NAP_MS)
				interrupt(s);
	return NULL;
}

static int start_sleepers(struct sleeper *all)
{
	sigset_t set;
	int n = 0, ready[2];
	char c;
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&set), sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pipe(ready);
	child = fork();
	if (child == 0) {
		struct flock l = { .l_type = F_WRLCK };
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(open(lock_file, O_RDWR | O_CREAT, 0600), F_SETLK, &l);
		write(ready[1], "x", 1);
		for (;;)
			pause();
	}
	read(ready[0], &c, 1);
	for (int k = 0; k < KINDS; k++) {
		for (int which = TIMED; which <= ENDLESS; which++) {
			if (!(kinds[k].which & which))
				continue;
			struct sleeper *s = &all[n++];
			s->kind = &kinds[k];
			s->ms = which == TIMED ? NAP_MS : HOUR_MS;
			s->kind->setup(s);
			pthread_create(&s->thread, NULL, sleep_on, s);
			while (!s->tid)
				usleep(100);
		}
	}
	return n;
}

static void stop_sleepers(struct sleeper *all)
{
	stop = 1;
	for (struct sleeper *s = all; s->kind; s++) {
		if (s->ms != NAP_MS)
			interrupt(s);
		pthread_join(s->thread, NULL);
		if (s->kind->setup == new_semaphore)
			semctl((int)s->id, 0, IPC_RMID);
		if (s->kind->setup == new_messages)
			msgctl((int)s->id, IPC_RMID, NULL);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
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
//@ $ set -e; for i in 1 2 3; do ugraft load fix.o --pid $PID --timeout 60s --quiet; ugraft load cumulative.o --pid $PID --timeout 60s --quiet; ugraft disable cumulative --pid $PID --timeout 60s --quiet; ugraft unload cumulative --pid $PID --timeout 60s --quiet; ugraft unload fix --pid $PID --timeout 60s --quiet; done
//@ say nap
//@ expect napped
//@ $ ugraft load fix.o --pid $PID --timeout 60s --quiet
//@ say work
//@ expect work 2
//@ say storm
//@ expect storming
//@ $ set -e; for i in 1 2 3; do ugraft load cumulative.o --pid $PID --timeout 60s --quiet; ugraft disable cumulative --pid $PID --timeout 60s --quiet; ugraft unload cumulative --pid $PID --timeout 60s --quiet; ugraft unload fix --pid $PID --timeout 60s --quiet; ugraft load fix.o --pid $PID --timeout 60s --quiet; done
//@ say calm
//@ expect calm
//@ $ ugraft disable fix --pid $PID --timeout 60s --quiet
//@ $ ugraft unload fix --pid $PID --timeout 60s --quiet
//@ say nap
//@ expect napped
//@ say work
//@ expect work 1
//@ alive
//@ clean
//@ say end
//@ wait
//> 0 complaints
