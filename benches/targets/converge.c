/*
 * Threads that are always running and spend a given share of their time in one function.
 *
 *	cc -O2 -g -pthread -o converge converge.c
 *	./converge THREADS PERCENT
 *
 * says "ready" and runs until its standard input ends. Each thread works PERIOD_US of its own processor time over and over,
 * PERCENT of it in `busy`, the rest elsewhere.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD_US = 1000 };

static double percent;

static inline __attribute__((always_inline)) void work(long us)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	long end = t.tv_sec * 1000000 + t.tv_nsec / 1000 + us;
	do
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	while (t.tv_sec * 1000000 + t.tv_nsec / 1000 < end);
}

__attribute__((noipa)) long busy(long us) { work(us); return us; }
__attribute__((noipa)) long elsewhere(long us) { work(us); return us; }

static void *run(void *arg)
{
	for (;;) {
		busy((long)(PERIOD_US * percent / 100));
		elsewhere((long)(PERIOD_US * (100 - percent) / 100 + 0.5));
	}
	return arg;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	pthread_t thread;
	percent = atof(argv[2]);
	for (int i = atoi(argv[1]); i > 0; i--)
		if (pthread_create(&thread, NULL, run, NULL))
			return 1;
	usleep(100000);
	puts("ready");
	fflush(stdout);
	while (getchar() != EOF)
		;
	_exit(0);
}
