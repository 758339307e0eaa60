/* The second function of that name in the target. */
#include "target.h"
static volatile int factor = 5;
static PATCHABLE int twin(int n) { return n * factor; }
int other(int n) { return twin(n); }
