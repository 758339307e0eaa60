/*
 * What does a call cost? Times calls of three functions with the same body, in turns, so that a change of the machine's speed
 * meets all of them:
 *
 *	plain	never touched
 *	hand	its entry is a `jmp rel32` written by hand, to the same body elsewhere: the least a redirect can cost
 *	subject	the one to be patched (calls-patch.c)
 *
 *	cc -O2 -g -pthread -o calls calls.c
 *	./calls
 *
 * says "ready"; for each line on standard input it answers "plain NS hand NS subject NS value V": medians over many short
 * rounds, the loop included, and what subject(0) returns.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

int main(void)
{
	static double times[3][ROUNDS];
	long (*const functions[])(long) = { plain, hand, subject };
	char line[64];
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		for (int round = 0; round < ROUNDS; round++)
			for (int i = 0; i < 3; i++)
				times[i][round] = time_calls(functions[i]);
		for (int i = 0; i < 3; i++)
			qsort(times[i], ROUNDS, sizeof(double), compare);
		printf("plain %.3f hand %.3f subject %.3f value %ld\n", times[0][ROUNDS / 2], times[1][ROUNDS / 2],
		       times[2][ROUNDS / 2], subject(0));
		fflush(stdout);
	}
	return 0;
}
