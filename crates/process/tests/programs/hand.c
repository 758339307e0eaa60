/* Calls the functions of hand.S. */
#include <setjmp.h>
#include <stdlib.h>
static jmp_buf env;
volatile long sink;
__attribute__((noinline)) long leaf(long a) { return a + sink; }
long by_register(void), by_expression(void), two_ways_out(long), without(long), at_calls_only(long);
/* With a frame pointer that its callee's way out restores. */
__attribute__((noinline, optimize("no-omit-frame-pointer"))) long framed(long a) { return at_calls_only(a) + at_calls_only(!a) + 1; }
__attribute__((noinline)) long outer(long a) { return without(a) + by_expression() + two_ways_out(a) + by_register() + framed(a) + 1; }
void without_end(void);
__attribute__((noinline)) long inner_leaf(long a) { return leaf(a) + leaf(a + 1) + 1; }
void away(void) { sink += inner_leaf(3); longjmp(env, 1); }
__attribute__((noinline)) long jumping(void) { if (!setjmp(env)) without_end(); return leaf(2) + 1; }
/* Its address is where a wrong way out of without_end would find a caller. */
int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int r = 0; r < rounds; r++) sink += outer(r & 1) + jumping();
    return 0;
}
