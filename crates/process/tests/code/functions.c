/* Functions whose first instructions are of as many kinds as compilers make. Each takes (a, b, p) with p an array of 16
 * longs that it may change, and must give the same result whenever it gets the same arguments. Built at every
 * optimisation level by gcc and clang, see thunks.rs. */
#include <stdarg.h>

#define F __attribute__((noinline, noclone)) long
static volatile long global = 7, counter;
static __thread volatile long tls = 11;
long exported = 13;
long (*pointer)(long, long, long *);
extern long outside(long, long, long *);

/* shorter than a jump */
F f_zero(long a, long b, long *p) { return 0; }
F f_first(long a, long b, long *p) { return a; }
F f_const(long a, long b, long *p) { return 0x123456789abcL; }
void nothing(long a, long b, long *p) { (void)a; }

/* memory relative to the instruction pointer first */
F f_global(long a, long b, long *p) { return global + a; }
F f_compare(long a, long b, long *p) { if (global == 7) return a; return b; }
F f_address(long a, long b, long *p) { return *(&global + (a & 1) * 0); }
F f_exported(long a, long b, long *p) { return exported + b; }
F f_tls(long a, long b, long *p) { return tls + a; }
F f_count(long a, long b, long *p) { p[0] = ++counter - counter; return p[0] + b; }
double returns_double(long a, long b, long *p) { return 1.5; }
F f_float(long a, long b, long *p) { double d = (double)a * 3.25 + b; return (long)d; }

/* calls first, direct, indirect, through a pointer in memory */
F helper(long a, long b, long *p) { __asm__ volatile("" ::: "memory"); p[1] += a; return p[1] ^ b; }
F helper0(void) { __asm__ volatile("" ::: "memory"); return global; }
F f_call(long a, long b, long *p) { return helper(a, b, p) + 1; }
F f_call0(long a, long b, long *p) { return helper0() + 1; }
F f_call_twice(long a, long b, long *p) { long x = helper(a, b, p); return x + helper(b, a, p); }
F f_outside(long a, long b, long *p) { return outside(a, b, p) + 2; }
F indirect(long (*f)(void), long b, long *p) { return f() + 3; }
F f_indirect(long a, long b, long *p) { return indirect(helper0, b, p); }
F f_pointer(long a, long b, long *p) { pointer = helper; return pointer(a, b, p) + 3; }
struct vtable { long (*method)(struct vtable *, long, long *); };
static long method(struct vtable *v, long b, long *p) { return b + p[2]; }
F virtual(struct vtable *v, long b, long *p) { return v->method(v, b, p) + 4; }
F f_virtual(long a, long b, long *p) { struct vtable v = { method }; return virtual(&v, b, p); }

/* jumps first */
F f_tail(long a, long b, long *p) { return helper(a, b, p); }
F f_tail_outside(long a, long b, long *p) { return outside(a, b, p); }
F f_tail_swapped(long a, long b, long *p) { return helper(b, a, p); }
F f_branch(long a, long b, long *p) { if (a) return helper(a, b, p); return b; }
F f_unlikely(long a, long b, long *p) { if (__builtin_expect(a == 3, 0)) return helper(a, b, p); return b * 3; }

/* loops, also back to the very first instruction */
F f_loop(long a, long b, long *p) { long s = 0; for (long i = 0; i < 16; i++) s += p[i] * (a + i); return s; }
F f_while(long a, long b, long *p) { a &= 15; do { p[a] += b; } while (a--); return p[0]; }
F f_self(long a, long b, long *p) { if ((a & 31) == 0) return b; return f_self(a - 1, b + (a & 3), p); }
F f_count_down(long a, long b, long *p) { a &= 255; while (a) { __asm__ volatile(""); a--; } return a; }
F f_pointer_loop(long a, long b, long *p) { while (*p & 1) p++; return *p + a; }
F f_recursive(long a, long b, long *p) { a &= 15; return a < 2 ? a : f_recursive(a - 1, b, p) + f_recursive(a - 2, b, p); }
F f_even(long a, long b, long *p);
F f_odd(long a, long b, long *p) { a &= 63; return a ? f_even(a - 1, b, p) : 0; }
F f_even(long a, long b, long *p) { a &= 63; return a ? f_odd(a - 1, b, p) : 1; }

/* many blocks */
F f_switch(long a, long b, long *p)
{
	switch (a & 15) {
	case 0: return b;
	case 1: return b * 3;
	case 2: return p[2] + 1;
	case 3: return p[3] - b;
	case 4: p[4] = b; return 5;
	case 5: return helper(b, a, p);
	case 6: return b / 3;
	case 7: return ~b;
	case 9: return global;
	default: return -1;
	}
}
F f_interpreter(long a, long b, long *p)
{
	long s = 0;
	for (unsigned long i = 0; i < 16; i++)
		switch (p[i] & 7) {
		case 0: s += 1; continue;
		case 1: s -= 2; break;
		case 2: s ^= a; continue;
		case 3: s *= 3; break;
		case 4: s += p[i]; continue;
		case 5: s <<= 1; continue;
		case 6: p[i] = s; break;
		case 7: return s;
		}
	return s + b;
}
F f_goto(long a, long b, long *p)
{
	static void *const targets[] = { &&add, &&sub, &&mul, &&end };
	long s = b, i = 0;
next:
	if (i >= 16)
		return s;
	goto *targets[p[i++] & 3];
add:
	s += a;
	goto next;
sub:
	s -= p[i & 15];
	goto next;
mul:
	s *= 5;
	goto next;
end:
	return s;
}

/* frames */
F f_many(long a, long b, long *p)
{
	long x[16];
	for (int i = 0; i < 16; i++)
		x[i] = p[15 - i] ^ a;
	for (int i = 0; i < 16; i++)
		p[i] = helper(x[i], b, p);
	return x[a & 15];
}
F f_alloca(long a, long b, long *p)
{
	long n = (a & 7) + 1, *x = __builtin_alloca(n * 8);
	for (long i = 0; i < n; i++)
		x[i] = p[i] + b;
	return x[n - 1];
}
F f_big_frame(long a, long b, long *p)
{
	volatile char x[70000];
	x[a & 65535] = (char)b;
	return x[a & 65535];
}
F f_aligned(long a, long b, long *p)
{
	_Alignas(64) volatile long x[8];
	x[a & 7] = b;
	return x[a & 7] + (((unsigned long)x & 63) == 0);
}
F variadic(long n, ...)
{
	va_list l;
	long s = 0;
	va_start(l, n);
	for (long i = 0; i < n; i++)
		s = s * 3 + (i & 1 ? (long)va_arg(l, double) : va_arg(l, long));
	va_end(l);
	return s;
}
F f_variadic(long a, long b, long *p) { return variadic(8, a, 1.5, b, 2.5, p[0], 3.5, p[1], (double)(int)a); }
F many(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, double k, double l, double m,
       double n, double o, double q, double r, double s, double t, double u)
{
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j
		+ (long)(k + 2 * l + 3 * m + 4 * n + 5 * o + 6 * q + 7 * r + 8 * s + 9 * t + 10 * u);
}
F f_many_arguments(long a, long b, long *p)
{
	return many(a, b, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], (int)a, (int)b, 3, 4, 5, 6, 7, 8, 9, (char)p[9]);
}
struct big { long x[6]; };
__attribute__((noinline)) struct big returns_big(long a, long b, long *p) { struct big r = { { a, b, p[0], p[1], 5, 6 } }; return r; }
F f_struct(long a, long b, long *p) { struct big r = returns_big(a, b, p); return r.x[a & 3] + r.x[5]; }
F f_string(long a, long b, long *p)
{
	const char *s = "a string in read-only data";
	long h = a;
	while (*s)
		h = h * 31 + *s++;
	return h;
}
F f_divide(long a, long b, long *p) { return a / (b | 1) + a % (b | 1); }
F f_int128(long a, long b, long *p) { __int128 x = (__int128)a * b; return (long)(x >> 64) ^ (long)x; }
