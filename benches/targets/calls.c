/*
 * What does a call cost? Times calls of three functions with the same body, in turns, so that a change of the machine's speed
 * meets all of them:
 *
 *	plain	never touched
 *	hand	its entry is a `jmp rel32` written by hand, to the same body elsewhere: the least a redirect can cost
 *	subject	the one to be patched (calls-patch.c)
 *
 *	cc -O2 -g -pthread -o calls calls.c
 *	./calls [PENDING]
 *
 * says "ready"; for "time" on standard input it answers "plain NS hand NS subject NS value V": medians over many short
 * rounds, the loop included, and what subject(0) returns.
 *
 * PENDING threads, the main thread among them, stay in `outer`, which the patch changes too, until "leave": they keep a
 * transition from its end and are themselves on its old side. "time" is answered by the main thread, "new" by one that is
 * not in `outer`.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 401, CALLS = 20000 };

__attribute__((noipa, aligned(64))) long plain(long x) { return x + 1; }
__attribute__((noipa, aligned(64))) long subject(long x) { return x + 1; }
__attribute__((noipa, aligned(64))) long body(long x) { return x + 1; }
long hand(long x);
/* {disp32}: five bytes even though the target is near. */
__asm__(".text\n.p2align 6\n.globl hand\n.type hand, @function\nhand: {disp32} jmp body\n.size hand, . - hand\n"
	".p2align 6\n");

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One loop for all three, so that its own place in memory is the same too. */
static __attribute__((noinline)) double time_calls(long (*volatile function)(long))
{
	long (*f)(long) = function;
	long x = 0;
	uint64_t begun = now();
	for (int i = 0; i < CALLS; i++)
		x = f(x);
	uint64_t took = now() - begun;
	__asm__ volatile("" : : "r"(x));
	return (double)took / CALLS;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void answer(void)
{
	static double times[3][ROUNDS];
	long (*const functions[])(long) = { plain, hand, subject };
	for (int round = 0; round < ROUNDS; round++)
		for (int i = 0; i < 3; i++)
			times[i][round] = time_calls(functions[i]);
	for (int i = 0; i < 3; i++)
		qsort(times[i], ROUNDS, sizeof(double), compare);
	printf("plain %.3f hand %.3f subject %.3f value %ld\n", times[0][ROUNDS / 2], times[1][ROUNDS / 2],
	       times[2][ROUNDS / 2], subject(0));
	fflush(stdout);
}

static sem_t asked, answered, way_out;
static atomic_int within;

static void *answer_from_outside(void *arg)
{
	for (;;) {
		while (sem_wait(&asked))
			;
		answer();
		sem_post(&answered);
	}
	return arg;
}

/* Reads commands until "leave" or the end; for all but the main thread: waits to be let out. */
__attribute__((noipa)) long outer(long commands)
{
	char line[64];
	within++;
	if (!commands)
		while (sem_wait(&way_out))
			;
	while (commands && fgets(line, sizeof line, stdin) && strcmp(line, "leave\n")) {
		if (strcmp(line, "new\n")) {
			answer();
		} else {
			sem_post(&asked);
			while (sem_wait(&answered))
				;
		}
	}
	within--;
	return commands;
}

static void *stay(void *arg)
{
	outer(0);
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	int pending = argc > 1 ? atoi(argv[1]) : 0;
	char line[64];
	pthread_t thread;
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 * 1024);
	sem_init(&asked, 0, 0);
	sem_init(&answered, 0, 0);
	sem_init(&way_out, 0, 0);
	if (pthread_create(&thread, &small, answer_from_outside, NULL))
		return 1;
	for (int i = 1; i < pending; i++)
		if (pthread_create(&thread, &small, stay, NULL))
			return 1;
	while (within < pending - 1)
		usleep(1000);
	puts("ready");
	fflush(stdout);
	if (pending) {
		outer(1);
		for (int i = 1; i < pending; i++)
			sem_post(&way_out);
		while (within)
			usleep(1000);
		puts("left");
		fflush(stdout);
	}
	while (fgets(line, sizeof line, stdin))
		answer();
	return 0;
}
