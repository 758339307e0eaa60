/* Coroutines by makecontext on mapped stacks, with calls on each. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#define NOINLINE __attribute__((noinline, noclone))
volatile long sink;
static ucontext_t home, other[2];
NOINLINE long leaf(long a) { return a + sink; }
NOINLINE void give_way(int n) { swapcontext(&other[n], &home); sink++; }
NOINLINE void work(int n, int depth) { if (depth) work(n, depth - 1); else give_way(n); sink += leaf(depth); }
static void body(int n) { for (;;) work(n, 3); }
NOINLINE void resume(int n) { swapcontext(&home, &other[n]); sink++; }
int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < 2; i++) {
        getcontext(&other[i]);
        other[i].uc_stack.ss_size = 1 << 16;
        other[i].uc_stack.ss_sp = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect((char *)other[i].uc_stack.ss_sp + (1 << 17), 4096, PROT_NONE);
        makecontext(&other[i], (void (*)(void))body, 1, i);
    }
    for (int r = 0; r < rounds; r++) { resume(0); resume(1); sink += leaf(r); }
    return 0;
}
