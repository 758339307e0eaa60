/* What the targets of the scenarios share: they take commands line by line from standard input and answer with
 * lines on standard output, so that a transcript can tell them what to do and see what they did. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Keeps the compiler from seeing through a call: neither inlined nor cloned nor folded. */
#ifdef __clang__
#define PATCHABLE __attribute__((noinline, optnone))
#else
#define PATCHABLE __attribute__((noinline, noclone, noipa))
#endif

/* One line on standard output, whole, at once. */
static inline __attribute__((format(printf, 1, 2))) void tell(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n < 0 || n > (int)sizeof line - 2)
		abort();
	line[n] = '\n';
	if (write(1, line, (size_t)n + 1) != n + 1)
		abort();
}

/* The next command, without its line end, in a static buffer; NULL at the end of input. Reads byte by byte, so that
 * nothing of ours waits in a buffer while the thread sleeps in the kernel. */
static inline const char *command(void)
{
	static char line[256];
	size_t n = 0;
	char c;
	for (;;) {
		ssize_t got = read(0, &c, 1);
		if (got < 0) {
			tell("read failed: %s", strerror(errno));
			exit(1);
		}
		if (got == 0)
			return NULL;
		if (c == '\n')
			break;
		if (n < sizeof line - 1)
			line[n++] = c;
	}
	line[n] = 0;
	return line;
}

/* Nanoseconds of a clock that only goes forward. */
static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
