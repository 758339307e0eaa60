/*
 * How long does the target stand still? One observer thread has a core of its own and reads the clock without pause; the
 * longest time between two readings is the longest time that somebody kept it from running. The other threads sleep, call
 * the functions to be patched on the other cores, or sleep inside one of them, `inside`.
 *
 *	cc -O2 -g -pthread -o gaps gaps.c
 *	./gaps THREADS asleep|calling|inside [alone]
 *
 * says "ready", then takes commands on standard input: "begin" forgets the longest gap ("begun"), "end" tells it
 * ("gap NANOSECONDS"), "call" what f0(0) returns ("call N"), "leave" has those inside come out ("left"). THREADS counts the
 * observer and the crew, not the main thread. With one core only, gaps are the scheduler's; the first line then says
 * "ready shared". With "alone" there is no observer: all are crew, on all cores.
 */
#define _GNU_SOURCE
#include "hundred.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEFINE(n) __attribute__((noipa)) long f##n(long x) { return x + n; }
EACH(DEFINE)
#define POINTER(n) f##n,
static long (*const functions[])(long) = { EACH(POINTER) };

static atomic_ulong longest;
static atomic_int waiting, within;
static int shared;
static sem_t way_out;

/* Where threads stay that keep a transition from its end. */
__attribute__((noipa)) long inside(long x)
{
	within++;
	while (sem_wait(&way_out))
		;
	within--;
	return x + 1;
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Splits the cores that this process may use: the last for the observer, the others for all else. */
static void split(cpu_set_t *observers, cpu_set_t *others)
{
	int last = 0;
	sched_getaffinity(0, sizeof *others, others);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, others))
			last = cpu;
	CPU_ZERO(observers);
	CPU_SET(last, observers);
	shared = CPU_COUNT(others) < 2;
	if (!shared)
		CPU_CLR(last, others);
}

static void *observe(void *arg)
{
	volatile long sink = 0;
	uint64_t before = now();
	waiting--;
	for (unsigned i = 0;; i++) {
		sink += functions[i % 100](1);
		uint64_t t = now();
		if (t - before > longest)
			longest = t - before;
		before = t;
	}
	return arg;
}

static void *call(void *arg)
{
	volatile long sink = 0;
	waiting--;
	for (unsigned i = 0;; i++)
		sink += functions[i % 100](1);
	return arg;
}

static void *dream(void *arg)
{
	waiting--;
	for (;;)
		pause();
	return arg;
}

static void *stay(void *arg)
{
	waiting--;
	inside(1);
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	int threads = atoi(argv[1]);
	int alone = argc > 3;
	void *(*crew)(void *) = !strcmp(argv[2], "calling") ? call : !strcmp(argv[2], "inside") ? stay : dream;
	pthread_t thread;
	pthread_attr_t small;
	cpu_set_t observers, others;
	char line[64];

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 * 1024);
	waiting = threads;
	sem_init(&way_out, 0, 0);
	if (!alone) {
		split(&observers, &others);
		sched_setaffinity(0, sizeof observers, &observers);
		if (pthread_create(&thread, &small, observe, NULL))
			return 1;
		sched_setaffinity(0, sizeof others, &others);
	}
	for (int i = !alone; i < threads; i++)
		if (pthread_create(&thread, &small, crew, NULL))
			return 1;
	while (waiting || (crew == stay && within < threads - !alone))
		usleep(1000);
	puts(shared ? "ready shared" : "ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "begin\n")) {
			longest = 0;
			puts("begun");
		} else if (!strcmp(line, "end\n")) {
			printf("gap %lu\n", longest);
		} else if (!strcmp(line, "leave\n")) {
			for (int i = within; i > 0; i--)
				sem_post(&way_out);
			while (within)
				usleep(1000);
			puts("left");
		} else {
			printf("call %ld\n", functions[0](0));
		}
		fflush(stdout);
	}
	_exit(0);
}
