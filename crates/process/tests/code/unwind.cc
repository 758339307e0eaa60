// Exceptions through functions that call another one within their first bytes: the unwinder must find a return address that it
// knows, although the call was made from a thunk.
#define F extern "C" __attribute__((noinline)) long

F thrower(long a, long b, long *p)
{
	if (a & 1)
		throw a;
	__asm__ volatile("" ::: "memory");
	return p[0] + b;
}
struct Guard {
	long *p;
	~Guard() { *p += 100; }
};
F calls_at_once(long a, long b, long *p) { return thrower(a, b, p) + 1; }
F has_a_guard(long a, long b, long *p)
{
	Guard guard { p };
	return calls_at_once(a, b, p) + 1;
}
F f_catches(long a, long b, long *p)
{
	try {
		return has_a_guard(a, b, p);
	} catch (long value) {
		return -value;
	}
}
