/* Calls the functions of hand.S. */
#include <stdlib.h>
volatile long sink;
__attribute__((noinline)) long leaf(long a) { return a + sink; }
long by_register(void), by_expression(void), two_ways_out(long), without(long), at_calls_only(long);
/* With a frame pointer that its callee's way out restores. */
__attribute__((noinline, optimize("no-omit-frame-pointer"))) long framed(long a) { return at_calls_only(a) + at_calls_only(!a) + 1; }
__attribute__((noinline)) long outer(long a) { return without(a) + by_expression() + two_ways_out(a) + by_register() + framed(a) + 1; }
int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int r = 0; r < rounds; r++) sink += outer(r & 1);
    return 0;
}
