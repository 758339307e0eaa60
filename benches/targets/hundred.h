/* A hundred functions, f0 to f99, for targets and patches: EACH(X) is X(0) X(1) ... X(99), the first COUNT of them. */
#ifndef COUNT
#define COUNT 100
#endif
#define TEN(X, t) X(t##0) X(t##1) X(t##2) X(t##3) X(t##4) X(t##5) X(t##6) X(t##7) X(t##8) X(t##9)
#if COUNT == 1
#define EACH(X) X(0)
#elif COUNT == 10
#define EACH(X) TEN(X, )
#elif COUNT == 100
#define EACH(X) TEN(X, ) TEN(X, 1) TEN(X, 2) TEN(X, 3) TEN(X, 4) TEN(X, 5) TEN(X, 6) TEN(X, 7) TEN(X, 8) TEN(X, 9)
#else
#error "COUNT is 1, 10 or 100"
#endif
