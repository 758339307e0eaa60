/* Calls, returns and jumps of many kinds, for a tool that steps through them. */
#define _GNU_SOURCE
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#ifdef __clang__
#undef NOINLINE
#define NOINLINE __attribute__((noinline))
#endif

volatile long sink;
static jmp_buf env;

NOINLINE long leaf(long a) { return a * 3 + sink; }
NOINLINE long recurse(int n) { if (n == 0) return leaf(n); return recurse(n - 1) + leaf(n); }
NOINLINE long even(int n);
NOINLINE long odd(int n) { if (n == 0) return 0; return even(n - 1); }
NOINLINE long even(int n) { if (n == 0) return 1; return odd(n - 1); }
NOINLINE long many(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j) {
    return leaf(a + b) + leaf(c + d) + leaf(e * f) + leaf(g - h) + leaf(i ^ j);
}
NOINLINE long call_many(long a) { return many(a, 1, 2, 3, 4, 5, 6, 7, 8, a) + many(1, a, 2, a, 3, a, 4, a, 5, a); }
NOINLINE long variadic(int n, ...) {
    va_list ap;
    long sum = 0;
    va_start(ap, n);
    for (int i = 0; i < n; i++) sum += leaf(va_arg(ap, long));
    va_end(ap);
    return sum;
}
NOINLINE long dynamic(int n) {
    char *p = alloca(n);
    memset(p, n, n);
    long s = 0;
    for (int i = 0; i < n; i += 7) s += leaf(p[i]);
    return s;
}
NOINLINE long aligned(int n) {
    _Alignas(64) char buf[128];
    memset(buf, n, sizeof buf);
    return leaf(buf[n & 127]) + dynamic(buf[3] & 31);
}
NOINLINE long table(int n) {
    switch (n) {
    case 0: return leaf(1);
    case 1: return recurse(2);
    case 2: return even(5);
    case 3: return dynamic(9);
    case 4: return variadic(2, 1L, 2L);
    case 5: return leaf(9) * leaf(8);
    case 6: return aligned(3);
    default: return 0;
    }
}
static int compare(const void *a, const void *b) { return (int)(leaf(*(const int *)a) - leaf(*(const int *)b)); }
NOINLINE long sorted(int n) {
    int v[32];
    for (int i = 0; i < n; i++) v[i] = (i * 7919) % 31;
    qsort(v, n, sizeof *v, compare);
    return v[0];
}
NOINLINE void jump_out(int n) { if (n == 0) longjmp(env, 1); jump_out(n - 1); sink++; }
__attribute__((noinline, noreturn)) void leave(int n) { sink += leaf(n); longjmp(env, 1); }
/* Its return address is one past its end. */
NOINLINE void ends_with_call(int n) { sink += leaf(n); leave(n + 1); }
NOINLINE long ends(int n) {
    if (setjmp(env) == 0) ends_with_call(n);
    return leaf(n);
}
NOINLINE long jumps(int n) {
    if (setjmp(env) == 0) { jump_out(n); return 1; }
    return leaf(n);
}
struct big { long v[9]; };
NOINLINE struct big make(long a) { struct big b; for (int i = 0; i < 9; i++) b.v[i] = leaf(a + i); return b; }
NOINLINE long through(long (*f)(int), int n) { return f(n) + 1; }
NOINLINE double floats(double x) { char buf[64]; snprintf(buf, sizeof buf, "%.3f %d %s", x, 42, "abc"); return buf[0]; }
NOINLINE long early(long a) {
    if (__builtin_expect(a < 1000000, 1)) return a;
    long t[16];
    for (int i = 0; i < 16; i++) t[i] = leaf(a + i);
    return many(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9]);
}
NOINLINE long clocks(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_nsec + time(0);
}

static volatile int handled;
static void handler(int sig) { handled++; sink += leaf(sig) + recurse(2); }
static void handler_info(int sig, siginfo_t *info, void *context) {
    (void)context;
    handled++;
    sink += leaf(info->si_signo + sig);
    if (handled % 3 == 0) raise(SIGUSR1);
}

static void signals(int alternate) {
    struct sigaction sa = {.sa_handler = handler};
    if (alternate) {
        stack_t st = {.ss_size = 1 << 16};
        st.ss_sp = mmap(0, st.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        sigaltstack(&st, 0);
        sa.sa_flags = SA_ONSTACK;
    }
    sigaction(SIGUSR1, &sa, 0);
    sa.sa_sigaction = handler_info;
    sa.sa_flags |= SA_SIGINFO;
    sigaction(SIGUSR2, &sa, 0);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    if (argc > 2) {
        signals(atoi(argv[2]));
        raise(SIGUSR1);
    }
    for (int r = 0; r < rounds; r++) {
        sink += recurse(8) + even(9) + call_many(r) + variadic(4, 1L, 2L, 3L, 4L) + dynamic(50) + aligned(r);
        for (int i = 0; i < 8; i++) sink += table(i);
        sink += sorted(12) + jumps(4) + ends(r) + make(r).v[3] + through(table, r & 7) + early(r) + early(10000000) + clocks();
        sink += (long)floats(r * 1.5);
        if (argc > 2) { raise(SIGUSR1); raise(SIGUSR2); }
    }
    return 0;
}
