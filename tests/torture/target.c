/*
 * The target of the torture: threads that call functions which must agree with one another, at full speed, and log every
 * call to rings in a file that the driver maps too.
 *
 *	target FILE THREADS SPAWNERS FORKS_PER_SECOND SIGNALS_PER_SECOND UNWINDING LINGERING SEED
 *
 * A *round* is one call into each group. Its record holds the version bits of both, the index of the last configuration that
 * was complete when the round began (lo), and that of the last one that had been started when it ended (hi): between the
 * two lies the truth. Equal rounds in a row are one record with a count. What the records may be is not judged here.
 *
 * Each lane (ring) has one writer at a time: a thread, the short-lived threads of one spawner one after another, the handlers
 * of one thread, or the forked children of one slot one after another. `generation` tells the writers of a lane apart.
 */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define VERSION 0

#if defined(__cplusplus)
#define THROWS 1
#else
#define THROWS 0
#endif

enum {
	RING = 2048,
	MAX_WORKERS = 64,
	MAX_SPAWNERS = 4,
	BRIEF_SLOTS = 4,	/* of children that run by themselves */
	MANAGED_SLOTS = 2,	/* of children that the driver patches in turn */
	/* Lanes: workers, their handlers, spawners, the forker, its handlers, children. */
	LANE_HANDLERS = MAX_WORKERS,
	LANE_SPAWNERS = 2 * MAX_WORKERS,
	LANE_FORKER = LANE_SPAWNERS + MAX_SPAWNERS,
	LANE_CHILDREN = LANE_FORKER + 1,
	LANES = LANE_CHILDREN + BRIEF_SLOTS + MANAGED_SLOTS,
	/* Blocks of control: the target's own, and one for each slot of children. */
	CONTROLS = 1 + BRIEF_SLOTS + MANAGED_SLOTS,
};

/* One process as the driver steers it. */
struct control {
	uint32_t finished;	/* last configuration that is complete */
	uint32_t started;	/* last configuration that may be met */
	uint32_t stop;
	uint32_t pid;		/* of a managed child that waits for the driver */
};

struct record {
	uint32_t lo, hi;
	uint32_t generation;
	uint32_t count;
	uint16_t mask[GROUPS];
	uint32_t unused;
};

struct lane {
	uint64_t head, tail;	/* records ever written, and read */
	struct record ring[RING];
};

/* The file. tests/src/torture/shared.rs has the same layout. */
struct shared {
	uint32_t magic, lanes, ring, controls;
	struct control control[CONTROLS];
	uint64_t signals, threads, forks, unwound, failed_children;
	struct lane lane[LANES];
};

struct worker {
	struct control *control;
	struct lane *lane;
	struct lane *lane_of_handlers;
	uint32_t generation;
	uint64_t random;
	struct record open;		/* the record that grows */
	struct call *volatile current;
	int slot;			/* of the child to fork, and then of this child; -1 for none */
	int is_child;
	pthread_t thread;
	volatile int is_ready;
};

static struct shared *shared;
static struct worker workers[MAX_WORKERS], forker;
static int unwinding, lingering, threads_wanted;
static __thread struct worker *me;

static uint32_t load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static uint64_t load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static void count(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
static int stopping(struct worker *w) { return load(&w->control->stop) != 0; }

static uint64_t next(uint64_t *random)
{
	uint64_t x = *random;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *random = x;
}

static void nap(long us)
{
	struct timespec t = { us / 1000000, us % 1000000 * 1000 };
	nanosleep(&t, NULL);
}

static void publish(struct lane *lane, const struct record *record)
{
	uint64_t head = lane->head;
	while (head - load64(&lane->tail) == RING)
		nap(100);
	lane->ring[head % RING] = *record;
	__atomic_store_n(&lane->head, head + 1, __ATOMIC_RELEASE);
}

/* Publishes the record that grows, if there is one. */
static void flush(struct worker *w)
{
	if (w->open.count)
		publish(w->lane, &w->open);
	w->open.count = 0;
}

static void log_round(struct worker *w, uint32_t lo, uint32_t hi, const uint16_t *mask)
{
	struct record *o = &w->open;
	if (o->count && o->lo == lo && o->hi == hi && o->mask[X] == mask[X] && o->mask[Y] == mask[Y] && o->count < UINT32_MAX) {
		o->count++;
		return;
	}
	flush(w);
	o->lo = lo, o->hi = hi, o->mask[X] = mask[X], o->mask[Y] = mask[Y];
	o->generation = w->generation;
	o->count = 1;
}

ENTRY void x_outer(struct call *c) { X_OUTER(c) }
ENTRY void x_recursive(struct call *c, int n) { X_RECURSIVE(c, n) }
ENTRY void x_leaf(struct call *c) { X_LEAF(c) }
ENTRY void y_outer(struct call *c) { Y_OUTER(c) }
ENTRY void y_leaf(struct call *c) { Y_LEAF(c) }

/* Goes on after a while, spent on the processor or off it. */
static void pause_for(uint64_t how, uint64_t one_nap_in, int longest)
{
	if (how % one_nap_in == 0)
		nap((long)(how >> 8) % 200);
	else if (how % one_nap_in == 1)
		sched_yield();
	else
		for (volatile int i = (int)(how >> 8) % longest; i > 0; i--)
			;
}

/* A hook: stays inside the functions. */
static void linger(struct call *c)
{
	if (lingering)
		pause_for(c->salt >> 32, 256, 100);
}

/* Stays outside them, about twice as long, so that a thread has a chance to be met there. */
static void rest(struct worker *w)
{
	uint64_t how = next(&w->random) >> 32;
	if (lingering)
		pause_for(how, 32, 2000);
	else
		for (volatile int i = (int)(how % 400); i > 0; i--)
			;
}

/* A hook: forks inside the functions. The child goes back through them. */
static void fork_here(struct call *c)
{
	struct worker *w = c->worker;
	if (w->slot < 0 || w->is_child)
		return;
	int slot = w->slot;
	flush(w);
	pid_t child = fork();
	if (child < 0)
		abort();
	if (child > 0) {
		w->slot = -1 - child;	/* for whoever waits for it */
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct control *control = &shared->control[1 + slot];
	/* From now on nothing is done to this process unless the driver takes it in hand. */
	__atomic_store_n(&control->started, load(&w->control->started), __ATOMIC_RELEASE);
	w->is_child = 1;
	w->control = control;
	w->lane = &shared->lane[LANE_CHILDREN + slot];
	w->lane_of_handlers = NULL;
	w->open.count = 0;
	w->generation = (uint32_t)getpid();
}

/* Leaves all functions by the shortest way. */
static void leave(struct call *c)
{
	c->depth = 0;
	count(&shared->unwound);
#if THROWS
	/* Through frames of the program and its library only: nobody has told the unwinder of a patch's tables. */
	if (c->mask == 1)
		throw 1;
#endif
	longjmp(c->out, 1);
}

/* One call into a group; returns the versions met. */
static ENTRY uint16_t enter(struct worker *w, int group, void (*hook)(struct call *))
{
	struct call c;
	memset(&c, 0, sizeof c);
	c.group = group;
	c.salt = next(&w->random);
	c.hook = hook;
	c.worker = w;
	if (unwinding && c.salt >> 20 & 1)
		c.leave = leave;
	w->current = &c;
	if (!setjmp(c.out)) {
#if THROWS
		try {
			(group == X ? x_outer : y_outer)(&c);
		} catch (int) {
		}
#else
		(group == X ? x_outer : y_outer)(&c);
#endif
	}
	w->current = NULL;
	return c.mask | c.mask_of_handlers;
}

static void go_round(struct worker *w, void (*hook_of_x)(struct call *))
{
	uint32_t lo = load(&w->control->finished);
	uint16_t mask[GROUPS];
	mask[X] = enter(w, X, hook_of_x);
	mask[Y] = enter(w, Y, w->random & 1 ? linger : NULL);
	log_round(w, lo, load(&w->control->started), mask);
}

/* The code of transitions: stubs and thunks. Looked up from time to time by the thread that sends the signals. */
static struct range {
	uintptr_t start, end;
} stubs[8];

static struct range range_of(uintptr_t start, uintptr_t end)
{
	struct range r = { start, end };
	return r;
}

static void find_stubs(void)
{
	char line[512];
	const unsigned all = sizeof stubs / sizeof *stubs;
	unsigned n = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && n < all && fgets(line, sizeof line, maps)) {
		unsigned long start, end;
		if (strstr(line, "r-x") && strstr(line, "ugraft:transition") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			stubs[n++] = range_of(start, end);
	}
	while (n < all)
		stubs[n++] = range_of(0, 0);
	if (maps)
		fclose(maps);
}

/* For how long (us) a thread is to be held at a place where few instructions are spent and much depends on them: the very
 * entry of a function, or a stub. */
static long hold_at(uintptr_t pc)
{
	static void (*const entries[])(struct call *) = { x_outer, x_leaf, lib_x_leaf, y_outer, y_leaf, lib_y_leaf };
	for (unsigned i = 0; i < sizeof entries / sizeof *entries; i++)
		if (pc == (uintptr_t)entries[i])
			return 5000;
	for (unsigned i = 0; i < sizeof stubs / sizeof *stubs; i++)
		if (pc >= stubs[i].start && pc < stubs[i].end)
			return 10000;
	return 0;
}

/* Calls into both groups on the alternate stack. What runs on top of a function of a group must agree with it. */
static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	struct worker *w = me;
	int saved = errno;
	count(&shared->signals);
	if (w && w->lane_of_handlers) {
		struct call *below = w->current;
		struct record record;
		memset(&record, 0, sizeof record);
		record.lo = load(&w->control->finished);
		for (int group = 0; group < GROUPS; group++) {
			struct call c;
			memset(&c, 0, sizeof c);
			c.group = group;
			c.salt = next(&w->random);
			(group == X ? x_outer : y_outer)(&c);
			record.mask[group] = c.mask;
			if (below && below->group == group && below->depth > 0)
				below->mask_of_handlers |= c.mask;
		}
		record.hi = load(&w->control->started);
		record.generation = w->generation;
		record.count = 1;
		/* Nobody waits here: what does not fit is not logged. */
		struct lane *lane = w->lane_of_handlers;
		if (lane->head - load64(&lane->tail) < RING)
			publish(lane, &record);
	}
	/* Holds the thread where it is seldom met; but not twice on end: a signal that came meanwhile finds it at the same
	 * instruction, and with more than one in the time of a hold it would stay there for ever. */
	static __thread int was_held;
	long hold = was_held ? 0 : hold_at((uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP]);
	was_held = hold != 0;
	if (hold)
		nap(hold);
	errno = saved;
}

static void prepare(struct worker *w, int number, uint64_t seed)
{
	w->control = &shared->control[0];
	w->random = (seed + 1) * 0x9e3779b97f4a7c15u + (uint64_t)number * 0xbf58476d1ce4e5b9u;
	w->random |= 1;
	w->slot = -1;
}

static void *work(void *argument)
{
	struct worker *w = (struct worker *)argument;
	stack_t alternate;
	memset(&alternate, 0, sizeof alternate);
	alternate.ss_size = 64 << 10;
	alternate.ss_sp = malloc(alternate.ss_size);
	if (!alternate.ss_sp || sigaltstack(&alternate, NULL))
		abort();
	me = w;
	w->is_ready = 1;
	while (!stopping(w)) {
		go_round(w, linger);
		rest(w);
	}
	w->is_ready = 0;
	flush(w);
	return NULL;
}

static void *work_briefly(void *argument)
{
	struct worker *w = (struct worker *)argument;
	for (int i = 0; i < 30; i++)
		go_round(w, i == 10 ? linger : NULL);
	flush(w);
	return NULL;
}

/* Threads, one after another. */
static void *spawn(void *argument)
{
	struct worker *w = (struct worker *)argument;
	while (!stopping(w)) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, work_briefly, w))
			abort();
		pthread_join(thread, NULL);
		count(&shared->threads);
		w->generation++;
		nap(500);
	}
	return NULL;
}

/* Has a child that was forked in `slot` ended? Its control block is free again then. */
static int reap(pid_t *child, int slot, int options)
{
	int status;
	if (*child == 0)
		return 1;
	pid_t got = waitpid(*child, &status, options);
	if (got == 0)
		return 0;
	if (got != *child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fprintf(stderr, "child %d: waitpid gave %d, status %#x\n", *child, got, status);
		count(&shared->failed_children);
	}
	*child = 0;
	__atomic_store_n(&shared->control[1 + slot].pid, 0, __ATOMIC_RELEASE);
	return 1;
}

/* What a child does when it is out of the functions in which it was forked. */
static void be_child(struct worker *w)
{
	struct control *control = w->control;
	int managed = w->slot >= BRIEF_SLOTS;
	if (managed) {
		flush(w);
		__atomic_store_n(&control->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
	}
	for (int i = 0; managed ? !stopping(w) : i < 40; i++) {
		go_round(w, linger);
		if (managed)
			nap(50);
	}
	flush(w);
	_exit(0);
}

/* On the first thread: a child of another one keeps the dead stack of its parent's first thread, and whatever lies there. */
static void forks(long per_second)
{
	struct worker *w = &forker;
	pid_t children[BRIEF_SLOTS + MANAGED_SLOTS] = { 0 };
	enum { SLOTS = BRIEF_SLOTS + MANAGED_SLOTS };
	for (int i = 0; !stopping(w); i++) {
		int slot = i % SLOTS;
		nap(1000000 / per_second);
		if (!reap(&children[slot], slot, slot < BRIEF_SLOTS ? 0 : WNOHANG))
			continue;
		struct control *control = &shared->control[1 + slot];
		control->stop = 0;
		control->finished = load(&w->control->finished);
		w->slot = slot;
		go_round(w, fork_here);
		if (w->is_child)
			be_child(w);
		if (w->slot < -1) {
			children[slot] = -1 - w->slot;
			count(&shared->forks);
		}
		w->slot = -1;
	}
	for (int slot = 0; slot < SLOTS; slot++) {
		shared->control[1 + slot].stop = 1;
		reap(&children[slot], slot, 0);
	}
	flush(w);
}

/* The driver says when it is enough, by the file or by going away. */
static void *wait_for_stop(void *argument)
{
	char c;
	while (!load(&shared->control[0].stop) && read(0, &c, 1) > 0)
		;
	__atomic_store_n(&shared->control[0].stop, 1, __ATOMIC_RELEASE);
	return argument;
}

/* Signals, to one thread after another. */
static void *storm(void *argument)
{
	long per_second = *(long *)argument;
	for (int i = 0; !load(&shared->control[0].stop); i++) {
		if (i % 8 == 0)
			find_stubs();
		struct worker *w = &workers[i % threads_wanted];
		if (w->is_ready)
			pthread_kill(w->thread, SIGUSR1);
		nap(1000000 / per_second);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 9)
		return 2;
	int fd = open(argv[1], O_RDWR);
	threads_wanted = atoi(argv[2]);
	int spawners = atoi(argv[3]);
	static long forks_per_second, signals_per_second;
	forks_per_second = atol(argv[4]);
	signals_per_second = atol(argv[5]);
	unwinding = atoi(argv[6]);
	lingering = atoi(argv[7]);
	uint64_t seed = strtoull(argv[8], NULL, 10);
	if (threads_wanted < 1 || threads_wanted > MAX_WORKERS || spawners > MAX_SPAWNERS)
		return 2;
	if (fd < 0 || ftruncate(fd, sizeof *shared))
		return 2;
	shared = (struct shared *)mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		return 2;
	struct sigaction action;
	memset(&action, 0, sizeof action);
	action.sa_sigaction = on_signal;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigfillset(&action.sa_mask);
	sigaction(SIGUSR1, &action, NULL);

	static struct worker spawning[MAX_SPAWNERS];
	static pthread_t threads[MAX_WORKERS + MAX_SPAWNERS + 2];
	int n = 0;
	for (int i = 0; i < threads_wanted; i++) {
		prepare(&workers[i], i, seed);
		workers[i].lane = &shared->lane[i];
		workers[i].lane_of_handlers = &shared->lane[LANE_HANDLERS + i];
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			return 2;
		threads[n++] = workers[i].thread;
	}
	for (int i = 0; i < spawners; i++) {
		prepare(&spawning[i], MAX_WORKERS + i, seed);
		spawning[i].lane = &shared->lane[LANE_SPAWNERS + i];
		if (pthread_create(&threads[n++], NULL, spawn, &spawning[i]))
			return 2;
	}
	if (pthread_create(&threads[n++], NULL, wait_for_stop, NULL))
		return 2;
	if (signals_per_second && pthread_create(&threads[n++], NULL, storm, &signals_per_second))
		return 2;
	shared->lanes = LANES, shared->ring = RING, shared->controls = CONTROLS;
	__atomic_store_n(&shared->magic, 0x54524f54u, __ATOMIC_RELEASE);
	puts("ready");
	fflush(stdout);
	if (forks_per_second) {
		prepare(&forker, MAX_WORKERS + MAX_SPAWNERS, seed);
		forker.lane = &shared->lane[LANE_FORKER];
		forks(forks_per_second);
	}
	/* The last first: the storm must not aim at threads that are gone. */
	while (n > 0)
		pthread_join(threads[--n], NULL);
	puts("done");
	return 0;
}
